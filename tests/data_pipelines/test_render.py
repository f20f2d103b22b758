"""Views of clouds: one camera for everything, Open3D's drawing against numpy's, visibility by brute force."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from data_pipelines.rendering import views as render
from data_pipelines.rendering.cameras import Cameras, rotation, views
from data_pipelines.scan import DataError
from tests.scans import ellipsoid

FRONT = Cameras(np.eye(3)[None])


@pytest.fixture(scope="module")
def window():
    """Open3D's own drawing, in its process: these tests are about it, so they fail where it cannot draw."""
    return render.DrawingProcess(128)


def numbers_of(rasteriser, xyz, window, splat):
    """Which point every pixel shows."""
    shot = render.Shot(xyz, np.tile([0.0, 0, 1], (len(xyz), 1)), render.fit_camera(xyz, window))
    return next(iter(rasteriser.draw([shot], splat)))[1]


def drawn(xyz, mask=None, cameras=FRONT, size=128, window=128, splat=3.0, draw=None, **options):
    mask = np.zeros(len(xyz), bool) if mask is None else mask
    look = render.Look(size, window, splat, **options)
    return render.render_object(xyz, np.ones(len(xyz), bool), mask, cameras, look, draw=draw)


def test_camera_lists():
    ring = views("ring", 9)
    angles = [-144, -108, -72, -36, 0, 36, 72, 108, 144]
    np.testing.assert_allclose(ring.rotations, [rotation([("x", 180 + a)]) for a in angles], atol=1e-12)
    mvtec = [(("x", 180), ("x", a)) for a in (-45, -15, 0, 15, 45)] + [(("x", 180), ("y", a)) for a in (-30, -15, 15, 30)]
    np.testing.assert_allclose(views("mvtec3d", 9).rotations, [rotation(v) for v in mvtec], atol=1e-12)
    assert views("eyecandies").back_off and not views("ring").back_off
    for name in ("ring", "mvtec3d", "eyecandies"):
        for count in (3, 5, 7, 9, 11):
            turns = views(name, count).rotations
            assert len(turns) == count and len(np.unique(turns.round(9), axis=0)) == count
            np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    np.testing.assert_allclose(rotation([("x", 90), ("y", 90)]) @ [0, 1, 0], [1, 0, 0], atol=1e-12)  # y -> z -> x
    own = views([[["z", 90]], [["x", 10], ["y", 5]]])
    assert len(own) == 2 and np.allclose(own.rotations[0] @ [1, 0, 0], [0, 1, 0])
    for wrong, count in (("rings", 9), ("mvtec3d", 4), ([[["q", 1]]], 1), ([[["x", 1]]], 2)):
        with pytest.raises(ValueError):
            views(wrong, count)


READ_BACK = """
import sys
import numpy as np
from data_pipelines.rendering import open3d_worker as drawing, projection as render
xyz = np.load(sys.argv[1])
window, camera = drawing.Open3DRasteriser(128), render.fit_camera(xyz, 128)
((_, numbers),) = window.draw([render.Shot(xyz, np.tile([0.0, 0, 1], (len(xyz), 1)), camera)], 3)
held = window._view.get_view_control().convert_to_pinhole_camera_parameters()
depth = np.asarray(window._view.capture_depth_float_buffer(do_render=True))
np.savez(sys.argv[2], numbers=numbers, depth=depth, extrinsic=held.extrinsic, intrinsic=held.intrinsic.intrinsic_matrix)
"""


def test_open3d_shows_points_where_our_camera_puts_them(tmp_path):
    """Open3D's camera and depth capture, read back from its window, against ours. A process of its own, as drawing needs."""
    xyz = ellipsoid(3000, 0)[0]
    xyz = (xyz - xyz.mean(0)) @ rotation([("x", 30), ("y", 40)]).T / 30
    np.save(tmp_path / "in.npy", xyz)
    command = [sys.executable, "-c", READ_BACK, str(tmp_path / "in.npy"), str(tmp_path / "out.npz")]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True)
    with np.load(tmp_path / "out.npz") as out:
        numbers, depth, extrinsic, intrinsic = (out[name] for name in ("numbers", "depth", "extrinsic", "intrinsic"))
    pixel = intrinsic @ (extrinsic[:3, :3] @ xyz.T + extrinsic[:3, 3:])
    column, row, distance = render.fit_camera(xyz, 128).project(xyz)
    np.testing.assert_allclose(column, pixel[0] / pixel[2], atol=1e-3)
    np.testing.assert_allclose(row, pixel[1] / pixel[2], atol=1e-3)
    np.testing.assert_array_equal(numbers >= 0, depth > 0)
    shown = numbers >= 0
    np.testing.assert_allclose(distance[numbers[shown]], depth[shown], atol=1e-3)
    y, x = np.nonzero(shown)  # every pixel lies within the square of the point it shows
    assert np.abs(x - column[numbers[shown]]).max() < 1.51 and np.abs(y - row[numbers[shown]]).max() < 1.51


def test_numpy_splats_equal_open3d(window):
    xyz, mask = ellipsoid(4000, 0, bump=True)
    ours, theirs = (drawn(xyz, mask, views("ring", 3), splat=4, draw=draw) for draw in (render.SplatRasteriser(), window))
    for name in ours.keys() - {"render"}:  # a splat on the edge between two pixels may be rounded either way
        assert (ours[name] == theirs[name]).mean() >= 0.995, name
    assert ((ours["depth"] == 255) == (theirs["depth"] == 255)).mean() > 0.999
    assert np.abs(ours["render"].astype(int) - theirs["render"]).mean() < 10


def test_one_window_serves_clouds_of_all_sizes(window):
    small, large = ellipsoid(1500, 0)[0], ellipsoid(2500, 1)[0] * [5, 1, 1]
    first = drawn(small, draw=window)
    drawn(large, draw=window)
    again = drawn(small, draw=window)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name], err_msg=name)


def test_nothing_depends_on_the_unit(window):
    xyz, mask = ellipsoid(1500, 0, bump=True)
    millimetres, metres = drawn(xyz, mask, draw=window), drawn(xyz / 1024, mask, draw=window)
    for name in millimetres:
        np.testing.assert_array_equal(millimetres[name], metres[name], err_msg=name)


def test_pixels_by_hand():
    """Corners of a square plate of side 2, distance 0.7 * 2 / tan 30: x / distance * focal = 1 / 2.4249 * 110.85 = 45.71."""
    plate = np.array([[-1, -1, 0], [1, -1, 0], [-1, 1, 0], [1, 1, 0]] + [[0.0, 0, 0]] * 6)
    shown = drawn(plate, splat=1.0)
    low, high = int(64 - 45.714), int(64 + 45.714)  # y points up, rows down
    np.testing.assert_array_equal(shown["pixel"][0, :4], [[low, high], [high, high], [low, low], [high, low]])
    half = drawn(plate, size=64, splat=2.0)
    np.testing.assert_array_equal(half["pixel"][0, :4], shown["pixel"][0, :4] // 2)


def test_depth_near_is_bright_and_background_white():
    slope = np.stack(np.meshgrid(np.linspace(-1, 1, 60), np.linspace(-1, 1, 60)), -1).reshape(-1, 2)
    slope = np.column_stack([slope, 0.5 * slope[:, 0]])  # rises to the right, towards the camera
    shown = drawn(slope, splat=4)
    depth, render_ = shown["depth"][0].astype(int), shown["render"][0]
    assert depth[0, 0] == 255 and render_[0, 0] == 255
    middle = depth[64, 30:100]
    assert (np.diff(middle) >= -4).all() and middle[-1] - middle[0] > 130
    inside = depth[40:90, 40:90]
    assert inside.max() < 255 and depth.min() == 0


def test_splats_close_the_surface(window):
    xyz = ellipsoid(8000, 3)[0]
    numbers = numbers_of(window, xyz, 128, 4)
    rows = [np.flatnonzero(row) for row in numbers >= 0 if row.any()]
    assert len(rows) > 60 and sum(row[-1] - row[0] + 1 - len(row) for row in rows) == 0


def test_shading_shows_a_bump(window):
    cameras = Cameras(rotation([("y", -143.13)])[None])  # the bump faces the camera's side
    smooth, bumped = (drawn(ellipsoid(8000, 5, bump=bump)[0], cameras=cameras, splat=4, draw=window)["render"][0].astype(int)
                      for bump in (False, True))
    mask = drawn(*ellipsoid(8000, 5, bump=True), cameras=cameras, splat=4, draw=window)["view_mask"][0]
    assert mask.sum() > 100
    assert np.abs(bumped - smooth)[mask].mean() > 8
    assert 120 < smooth[smooth < 255].mean() < 250 and smooth[smooth < 255].std() > 10


def test_masks_agree_with_points(window):
    xyz, mask = ellipsoid(6000, 0, bump=True)
    shown = drawn(xyz, mask, views("ring", 5), size=64, splat=4, draw=window)
    assert shown["view_mask"].any()
    for v in range(5):
        x, y = shown["pixel"][v, shown["drawn"][v]].T
        labels = mask[shown["drawn"][v]]
        assert (shown["view_mask"][v, y, x] == labels).mean() > 0.95, v
        # Apart from the border the two are the same, but for points just behind an edge.
        outside = labels & ~binary_dilation(shown["view_mask"][v], iterations=2)[y, x]
        within = ~labels & binary_erosion(shown["view_mask"][v], iterations=2)[y, x]
        assert (outside | within).mean() < 0.006, v
    none = drawn(xyz, np.zeros_like(mask), views("ring", 5), size=64, splat=4, draw=window)
    assert not none["view_mask"].any()


def test_seen_is_the_front_most_point_of_every_pixel():
    xyz = ellipsoid(900, 0)[0]
    seen = np.flatnonzero(drawn(xyz, size=64, window=64, splat=5)["drawn"][0])
    column, row, distance = render.fit_camera(xyz, 64).project(xyz)
    taken = {}
    for i, pixel in enumerate(zip(np.floor(column + 0.5), np.floor(row + 0.5), strict=True)):
        if pixel not in taken or distance[i] < distance[taken[pixel]]:
            taken[pixel] = i
    hidden = set(taken.values()) - set(seen)  # alone in its pixel, yet behind the drawn surface
    assert set(seen) <= set(taken.values()) and len(seen) > 200
    numbers = numbers_of(render.SplatRasteriser(), xyz, 64, 5)
    over = [numbers[int(row[i] + 0.5), int(column[i] + 0.5)] for i in hidden]
    assert len(hidden) > 50 and (distance[over] < distance[list(hidden)] - 1).all()
    surface = np.flatnonzero(drawn(xyz, size=16, window=64, splat=5, seen="surface")["drawn"][0])
    assert set(surface) >= set(seen) and len(surface) > len(drawn(xyz, size=16, window=64, splat=5)["drawn"][0].nonzero()[0])
    with pytest.raises(ValueError, match="unknown visibility"):
        drawn(xyz, seen="everything")


def test_a_plate_hides_what_is_behind_it():
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, 50), np.linspace(-1, 1, 50)), -1).reshape(-1, 2)
    front, back = np.column_stack([grid, np.full(2500, 0.3)]), np.column_stack([grid * 0.8 + 0.01, np.full(2500, -0.3)])
    shown = drawn(np.concatenate([front, back]), np.repeat([False, True], 2500), splat=5)
    assert shown["drawn"][0, :2500].mean() > 0.95 and not shown["drawn"][0, 2500:].any()
    assert not shown["view_mask"].any()
    behind = drawn(np.concatenate([front, back]), np.repeat([False, True], 2500), Cameras(rotation([("x", 180)])[None]), splat=5)
    assert behind["view_mask"].sum() > 1000


def test_unseen_points_take_their_nearest_seen_neighbour():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [5, 0, 0], [0.9, 0, 0], [4, 0, 0]])
    pixel = np.arange(20).reshape(2, 5, 2)
    seen = np.array([[1, 0, 0, 0, 0], [1, 1, 1, 0, 0]], bool)
    pixel_out, seen_out = render.fill_unseen(points, pixel, seen)
    np.testing.assert_array_equal(pixel_out[:, 3], pixel[:, 1])
    np.testing.assert_array_equal(pixel_out[:, 4], pixel[:, 2])
    np.testing.assert_array_equal(seen_out, [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(pixel_out[:, :3], pixel[:, :3])
    shown = drawn(ellipsoid(900, 0)[0])
    assert shown["visible"].any(0).all() and not shown["drawn"].any(0).all()


def test_invalid_points_take_no_part():
    xyz, mask = ellipsoid(900, 0, bump=True)
    valid = np.arange(900) % 3 > 0
    spoilt = xyz.copy()
    spoilt[~valid] = 0  # organised scans hold zeros there
    shown = render.render_object(spoilt, valid, mask, views("ring", 3), render.Look(64, 64, 3))
    assert not shown["visible"][:, ~valid].any() and shown["visible"].any(0)[valid].all()
    alone = drawn(xyz[valid], mask[valid], views("ring", 3), 64, 64)
    np.testing.assert_array_equal(shown["depth"], alone["depth"])
    np.testing.assert_array_equal(shown["pixel"][:, valid], alone["pixel"])
    with pytest.raises(ValueError, match="no valid point"):
        render.render_object(xyz, np.zeros(900, bool), mask, FRONT, render.Look(64, 64, 3))


def test_cameras_back_off_until_everything_is_inside(window):
    box = np.random.default_rng(0).uniform(-1, 1, (4000, 3))
    box[np.arange(4000), np.arange(4000) % 3] = np.sign(box[np.arange(4000), np.arange(4000) % 3])  # a cube's faces
    near, far = (render.fit_camera(box, 128, back_off=b) for b in (False, True))
    outside = [((np.array(c.project(box)[:2]) < -0.5) | (np.array(c.project(box)[:2]) > 127.5)).any() for c in (near, far)]
    assert outside == [True, False]
    cameras = Cameras(np.eye(3)[None], back_off=True)
    shown = drawn(box, cameras=cameras, draw=window)
    assert (shown["depth"][0][[0, -1]] == 255).all() and (shown["depth"][0][64, 10:118] < 255).any()
    splats = drawn(box, cameras=cameras, draw=render.SplatRasteriser())  # the window zoomed as the camera says
    assert (shown["depth"] == splats["depth"]).mean() > 0.99
    assert (drawn(box, draw=window)["depth"][0][0] < 255).any()


def test_other_pictures_never_stand_in_unasked(monkeypatch):
    for name in ("__EGL_VENDOR_LIBRARY_DIRS", "LIBGL_DRIVERS_PATH"):  # where the GL library looks for what draws
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setattr(render, "_STARTED", [])
    with pytest.raises(DataError, match="Open3D cannot draw here .*rasteriser=numpy"):
        render.rasteriser(61)
    assert isinstance(render.rasteriser(61, "numpy"), render.SplatRasteriser)


def test_a_drawing_that_goes_down_is_an_error(window):
    mine = render.DrawingProcess(32)
    xyz = ellipsoid(100, 0)[0]
    mine._process.kill()
    with pytest.raises(RuntimeError, match="the drawing process went down, status -9"):
        list(mine.draw([render.Shot(xyz, xyz, render.fit_camera(xyz, 32))], 2))


def test_a_process_that_was_started_ahead_draws_first(window, monkeypatch):
    monkeypatch.setattr(render, "_STARTED", [])
    render.rasteriser.cache_clear()
    render.start_drawing()
    render.start_drawing()
    ((process, _),) = render._STARTED
    first, second = render.DrawingProcess(32), render.DrawingProcess(32)
    assert first._process is process is not second._process and not render._STARTED
    xyz = ellipsoid(100, 0)[0]
    np.testing.assert_array_equal(numbers_of(first, xyz, 32, 2), numbers_of(second, xyz, 32, 2))
    render.rasteriser(16, "numpy")  # something draws here: there is no hurry
    render.start_drawing()
    assert not render._STARTED
    render.rasteriser.cache_clear()


def test_a_process_that_was_started_for_nothing_ends_with_this_one():
    program = "from data_pipelines.rendering import views; views.start_drawing(); print(views._STARTED[0][0].pid)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    end = time.monotonic() + 60
    while Path(f"/proc/{done.stdout.strip()}").exists():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_threads_share_a_drawing_process(window):
    clouds = [ellipsoid(3000, seed)[0] for seed in range(4)]
    wanted = [numbers_of(window, xyz, 128, 2) for xyz in clouds]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: numbers_of(window, clouds[at % 4], 128, 2), range(40)))
    for at, numbers in enumerate(found):
        np.testing.assert_array_equal(numbers, wanted[at % 4])


def test_depth_and_visibility_equal_ray_casting(window):
    """An independent judge: rays cast at the mesh that the points were sampled from."""
    import open3d as o3d

    rng = np.random.default_rng(0)
    mesh = o3d.geometry.TriangleMesh.create_torus(1.0, 0.4, 60, 40)  # hides parts of itself from most sides
    block = o3d.geometry.TriangleMesh.create_box(0.5, 0.5, 1.6).translate((-0.25, -0.25, -0.8))
    mesh += block
    corners, faces = np.asarray(mesh.vertices), np.asarray(mesh.triangles)
    a, b, c = (corners[faces[:, i]] for i in range(3))
    normal = np.cross(b - a, c - a)
    area = np.linalg.norm(normal, axis=1)
    normal = normal / area[:, None]
    face = rng.choice(len(faces), 40_000, p=area / area.sum())
    u, v = np.sqrt(rng.random(40_000)), rng.random(40_000)
    xyz = (1 - u)[:, None] * a[face] + (u * (1 - v))[:, None] * b[face] + (u * v)[:, None] * c[face]

    cameras = views("mvtec3d", 5)
    shown = drawn(xyz, cameras=cameras, splat=3.0, seen="surface", draw=window)
    middle, scale = xyz.mean(0), np.ptp(xyz, axis=0).max()
    for number, turn in enumerate(cameras.rotations):
        turned, hull = ((p - middle) / scale @ turn.T for p in (xyz, corners))
        camera = render.fit_camera(turned, 128)
        scene = o3d.t.geometry.RaycastingScene()
        scene.add_triangles(o3d.core.Tensor(hull.astype(np.float32)), o3d.core.Tensor(faces.astype(np.uint32)))

        def cast(towards, camera=camera, scene=scene):
            """Where the first hit lies, in multiples of each ray's direction."""
            rays = np.concatenate([np.broadcast_to(camera.eye, towards.shape), towards], -1).astype(np.float32)
            return scene.cast_rays(o3d.core.Tensor(np.ascontiguousarray(rays)))["t_hit"].numpy()

        row, column = np.mgrid[:128, :128]
        focal = 64 / render.TAN
        depth = cast(np.stack([(column - 63.5) / focal, -(row - 63.5) / focal, -np.ones((128, 128))], -1))
        hit = np.isfinite(depth)
        inside = binary_erosion(hit, iterations=2)
        painted = (shown["render"][number] < 255) | (shown["depth"][number] < 255)
        # What faces the light is as white as the background: up to a twentieth of the object.
        assert painted[inside].mean() > 0.93 and not painted[~binary_dilation(hit, iterations=3)].any()
        # Away from edges, where a splat's depth and that of its pixel's ray part, the picture is the rays' depth in 8 bits. Its
        # ends, the nearest and farthest pixel, lie on edges: the scale is fitted.
        near, far = depth[hit].min(), depth[hit].max()
        flat = inside & (np.hypot(*np.gradient(np.where(hit, depth, far))) < 0.02 * (far - near))
        expected, got = 255 * (far - depth[flat]) / (far - near), shown["depth"][number][flat].astype(float)
        slope, start = np.polyfit(expected, got, 1)
        apart = np.abs(got - slope * expected - start)
        assert flat.sum() > 1500 and abs(slope - 1) < 0.15 and abs(start) < 40, (number, slope, start)
        assert np.median(apart) < 3 and np.quantile(apart, 0.99) < 12, (number, np.quantile(apart, [0.5, 0.99]))
        # A point is seen where nothing lies between it and the eye; where the surface is seen edge-on, splats hide each other.
        towards = turned - camera.eye
        open_view = cast(towards) > 1 - 4e-3
        across = np.einsum("ij,ij->i", normal[face] @ turn.T, towards / np.linalg.norm(towards, axis=1)[:, None])
        facing = np.abs(across) > 0.5
        wrong = (shown["drawn"][number] != open_view)[facing]
        assert 0.2 < open_view.mean() < 0.7 and facing.mean() > 0.5 and wrong.mean() < 0.03, (number, wrong.mean())


def plate(side: int, hole: float = 0.0) -> np.ndarray:
    """A square grid of side 2 at z = 0, without the points nearer to its middle than `hole` along both axes."""
    grid = np.stack(np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side)), -1).reshape(-1, 2)
    return np.column_stack([grid[np.abs(grid).max(1) >= hole], np.zeros((np.abs(grid).max(1) >= hole).sum())])


def test_cavity_darkens_what_is_not_flat():
    roof = plate(60)
    roof[:, 2] = -np.abs(roof[:, 0])  # a ridge of a right angle at x = 0: two planes
    plain, half, full = (drawn(roof, splat=4, cavity=c) for c in (0.0, 0.5, 1.0))
    for name in plain.keys() - {"render"}:
        np.testing.assert_array_equal(plain[name], full[name], err_msg=name)
    kept = full["render"][0].astype(float) / plain["render"][0]
    rows, ridge = slice(45, 85), int(render.fit_camera(roof / 2, 128).project(np.zeros((1, 3)))[0][0] + 0.5)
    assert (kept[rows, ridge - 25 : ridge - 12] == 1).all()  # on a plane nothing changes
    # Half of the neighbours on either side of the ridge: lambda_0 / sum near 0.1 leaves next to nothing.
    assert kept[rows, ridge].max() < 0.5 and full["render"].max() == 255
    mean = (plain["render"][0].astype(int) + full["render"][0]) / 2
    assert np.abs(half["render"][0] - mean).max() <= 1


def test_depth_relief_shows_what_eight_bits_of_distance_hide():
    """A step of less than a hundredth of the side on a plate, before a larger plate that takes up the range of distance."""
    step = plate(90)
    step[np.abs(step[:, :2]).max(1) < 0.1, 2] = 0.02
    xyz = np.concatenate([step, plate(110) * 1.8 - [0, 0, 1.0]])
    for share, least, most in ((0.0, 4, 6), (1.0, 12, 30)):  # 255 * 0.02 / 1.02 = 5
        shown = drawn(xyz, splat=4, depth_relief=share)["depth"][0].astype(int)
        assert least <= np.median(shown[62:66, 62:66]) - np.median(shown[62:66, 51:55]) <= most, share
    # At most the step's share of the side over 2 * RELIEF: the coarse blur follows a part of it.
    assert 10 < shown[64, 64] - 127.5 < 255 * (0.02 / 3.6) / (2 * render.RELIEF) + 1
    assert (shown[0] == 255).all() and (shown < 255).any()


def test_gaps_between_splats_are_filled_and_holes_are_not():
    """A plate whose points are 1.4 splats apart before a dense one: the far one shines through, until gaps are filled."""
    front, back = plate(22) + [0, 0, 0.3], plate(90) * 0.9 - [0, 0, 0.3]
    mask = np.repeat([False, True], [len(front), len(back)])
    open_, filled = (drawn(np.concatenate([front, back]), mask, splat=3.0, fill_gaps=f) for f in (False, True))
    inside = np.s_[0, 30:98, 30:98]
    assert 0.2 < open_["view_mask"][inside].mean() < 0.8 and not filled["view_mask"][inside].any()
    assert np.ptp(open_["depth"][inside]) > 100 and np.ptp(filled["depth"][inside]) < 5
    pierced = plate(57, hole=0.2)  # seven splats wide
    shown = drawn(np.concatenate([pierced + [0, 0, 0.3], back]), splat=3.0, fill_gaps=True)["depth"][0]
    assert shown[64, 64] < 60 and shown[64, 40] > 200
    alone = [drawn(pierced, splat=3.0, fill_gaps=f)["depth"] for f in (False, True)]
    np.testing.assert_array_equal(*alone)  # background through a hole stays, and so does the outline
