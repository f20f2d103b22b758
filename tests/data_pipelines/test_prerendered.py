"""The reader of the authors' rendered trees: everything by id and number, nothing drawn; the sample tree against its manifest."""

import json
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_pipelines.clouds.sampling import resample
from data_pipelines.datasets import open_reader
from data_pipelines.rendering.cameras import views
from data_pipelines.rendering.views import fit_camera
from data_pipelines.scan import DataError

SIDE, COUNT = 24, 11  # pixels of a view; views: view_10 comes after view_2 by number, before it by name
LABELS = {"good": 0, "crack": 1, "anomaly": 1}


def write_colours(path, xyz, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.zeros(len(xyz), np.dtype([("xyz", "<f4", 3), ("rgb", "<u4")]))
    rows["xyz"], rows["rgb"] = xyz, np.where(mask, 0xFFFFFF, 0x800000)  # half red is not white
    head = (f"VERSION 0.7\nFIELDS x y z rgb\nSIZE 4 4 4 4\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH {len(xyz)}\nHEIGHT 1\n"
            f"VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(xyz)}\nDATA binary\n")
    path.write_bytes(head.encode() + rows.tobytes())


def write_scan(specie, name, kind, seed, defective):
    """One scan of an organised ('tiff', 'cloud') or unorganised ('loose') data set; returns points, mask and maps [V, N, 3]."""
    rng = np.random.default_rng(seed)
    grid = rng.uniform(0.1, 0.2, (30, 30, 3)).astype(np.float32)
    grid[:5] = 0
    shown = grid[np.arange(SIDE)[:, None] * 30 // SIDE, np.arange(SIDE) * 30 // SIDE].reshape(-1, 3)
    kept = np.flatnonzero(shown[:, 2]) if kind != "loose" else np.arange(SIDE * SIDE)
    points = shown[kept] if kind != "loose" else rng.normal(size=(len(kept), 3)).astype(np.float32)
    mask = (rng.random(len(kept)) < 0.2) & bool(defective)
    maps = np.concatenate([rng.integers(0, SIDE, (COUNT, len(kept), 2)), rng.integers(0, 2, (COUNT, len(kept), 1))], 2)
    maps[:, 5, 2] = 0  # a point that no view sees
    for folder, called in (("2d_rendering", "view_{}.png"), ("2d_gt", "view_{}_gt.png"), ("2d_depth", "view_{}_depth.png")):
        (specie / folder / name).mkdir(parents=True)
        for v in range(COUNT):
            mode = "RGB" if folder != "2d_depth" else "L"
            pixels = Image.new("L", (SIDE, SIDE), 10 * v + (len(folder) if folder != "2d_gt" else 100 * (v > 5)))
            pixels.convert(mode).save(specie / folder / name / called.format(v))
    (specie / "2d_3d_cor" / name).mkdir(parents=True)
    for v in range(COUNT):
        np.save(specie / "2d_3d_cor" / name / f"view_{v}_cor.npy", maps[v].astype(np.int16 if v % 2 else np.int64))
    if kind != "loose":
        np.save(specie / "2d_3d_cor" / name / "nonzero_indices.npy", kept)
        (specie / "rgb").mkdir(exist_ok=True)
        Image.new("RGB", (30, 30), (1, 2, 3)).save(specie / "rgb" / f"{name}.png")
    if kind == "tiff":
        (specie / "xyz").mkdir(exist_ok=True)
        tifffile.imwrite(specie / "xyz" / f"{name}.tiff", grid)
    turned = points * ([1, -1, -1] if kind == "tiff" else [1, 1, 1])
    write_colours(specie / "gt_pcd" / f"{name}.pcd", turned, mask)
    if kind != "tiff":
        write_colours(specie / "pcd" / f"{name}.pcd", turned, mask & False)
    return points, mask, maps, kept


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("schon gerendert") / "Bäume"
    truth = {}
    for c, (category, kind) in enumerate((("tire", "tiff"), ("Candy", "cloud"), ("duck", "loose"))):
        for specie in ("good", "crack" if kind == "tiff" else "anomaly"):
            for i, name in enumerate(("9", "10")):
                folder = root / category / "test" / specie
                truth[category, f"{specie}_{name}"] = write_scan(folder, name, kind, 10 * c + i, LABELS[specie])
    return root, truth


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "tree")


def test_finds_scans_by_folder(made):
    reader = open_reader("prerendered", made[0])
    assert reader.categories() == ["Candy", "duck", "tire"]
    samples = reader.samples("tire")
    assert [(s.id, s.defect, s.label) for s in samples] == [
        ("crack_9", "crack", 1), ("crack_10", "crack", 1), ("good_9", "good", 0), ("good_10", "good", 0)]
    assert [s.label for s in reader.samples("duck")] == [1, 1, 0, 0] and reader.samples("duck", "train") == []
    with pytest.raises(DataError, match="did you mean 'duck'"):
        reader.samples("dock")


@pytest.mark.parametrize("prefix", ["{root}/", "", "C:\\\\Daten\\\\mv tec\\\\"])
def test_labels_of_meta_files_with_any_paths(root, prefix):
    def path(specie, name):
        plain = prefix.format(root=root) + f"tire/test/{specie}/2d_rendering/{name}"
        return plain.replace("/", "\\") if "\\" in prefix else plain

    items = [{"d2_render_img_path": path("good", "9"), "anomaly": 1}, {"d2_render_img_path": path("crack", "10"), "anomaly": 0}]
    (root / "all_meta.json").write_text(json.dumps({"train": {}, "test": {"tire": items}}))
    samples = {s.id: s for s in open_reader("prerendered", root).samples("tire")}
    assert {name: (s.label, s.defect) for name, s in samples.items()} == {
        "crack_9": (1, "crack"), "crack_10": (0, "good"), "good_9": (1, "defect"), "good_10": (0, "good")}
    (root / "all_meta.json").write_text('{"test": [3]}')
    with pytest.raises(DataError, match="all_meta.json: not the authors' list"):
        open_reader("prerendered", root)


@pytest.mark.parametrize("category", ["tire", "Candy", "duck"])
def test_gives_what_the_files_hold(made, category):
    reader = open_reader("prerendered", made[0])
    for sample in reader.samples(category):
        points, mask, maps, kept = made[1][category, sample.id]
        scan = reader.load(sample)
        assert scan.grid == (None if category == "duck" else (SIDE, SIDE)) and len(scan.xyz) == SIDE * SIDE
        np.testing.assert_array_equal(np.flatnonzero(scan.valid), kept)
        np.testing.assert_array_equal(scan.xyz[kept], points)
        np.testing.assert_array_equal(scan.mask[kept], mask)
        assert not scan.mask[~scan.valid].any() and (mask.any() == bool(sample.label))
        given = scan.views
        assert (given.render[:, 3, 4] == np.arange(COUNT) * 10 + 12).all() and given.render.shape == (COUNT, SIDE, SIDE)
        assert (given.depth[:, 3, 4] == np.arange(COUNT) * 10 + 8).all() and given.depth.dtype == np.uint8
        assert (given.view_mask[:, 0, 0] == (np.arange(COUNT) > 5)).all()
        some = np.delete(np.arange(len(kept)), 5)
        some = some[maps[:, some, 2].any(0)]
        np.testing.assert_array_equal(given.pixel[:, kept[some]], maps[:, some, :2])
        np.testing.assert_array_equal(given.visible[:, kept[some]], maps[:, some, 2] > 0)
        # A point no view sees goes by its nearest visible neighbour.
        nearest = some[np.linalg.norm(points[some].astype(np.float64) - points[5], axis=1).argmin()]
        np.testing.assert_array_equal(given.visible[:, kept[5]], given.visible[:, kept[nearest]])
        assert not given.visible[:, ~scan.valid].any()
        assert (scan.rgb is None) == (category == "duck")
        # Nothing is lost or turned round on the way into a record.
        np.testing.assert_array_equal(resample(scan, SIDE * SIDE, 0).source, np.arange(SIDE * SIDE))


def test_given_views_must_fit_the_recipe(made):
    reader = open_reader("prerendered", made[0])
    given = reader.load(reader.samples("duck")[0]).views
    assert given.fitting(SIDE * SIDE, SIDE, COUNT, "scan").keys() == {"render", "depth", "view_mask", "pixel", "visible"}
    with pytest.raises(DataError, match="scan: given pictures .* set config.data.points=576 config.data.views=11$"):
        given.fitting(500, SIDE, 9, "scan")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def _save(array):
    return lambda path: np.save(path, array)


KEPT = SIDE * (SIDE - 4)
BROKEN = {
    "no depth": ("2d_depth/9/view_3_depth.png", lambda p: p.unlink(), "no such file, one of 11 views .PointAD"),
    "no map": ("2d_3d_cor/9/view_10_cor.npy", lambda p: p.unlink(), "no such file, one of 11 views"),
    "no first": ("2d_rendering/9/view_0.png", lambda p: p.unlink(), "no such file, one of 11"),
    "cut picture": ("2d_rendering/9/view_2.png", _cut, "not a readable picture"),
    "small mask": ("2d_gt/9/view_1_gt.png", lambda p: Image.new("L", (9, 9)).save(p), "9 x 9 pixels where 24 x 24"),
    "cut map": ("2d_3d_cor/9/view_4_cor.npy", _cut, "not a readable array"),
    "map of floats": ("2d_3d_cor/9/view_4_cor.npy", _save(np.ones((KEPT, 3))), "whole numbers, found float64"),
    "short map": ("2d_3d_cor/9/view_4_cor.npy", _save(np.ones((7, 3), int)), "expected a map of shape .480, 3., found .7, 3."),
    "far map": ("2d_3d_cor/9/view_4_cor.npy", _save(np.full((KEPT, 3), 24)), "pixels outside the 24 x 24 pictures"),
    "pixels twice": ("2d_3d_cor/9/nonzero_indices.npy", _save(np.zeros(KEPT, int)), "pixels twice"),
    "few pixels": ("2d_3d_cor/9/nonzero_indices.npy", _save(np.arange(4)), "4 pixels where the maps beside it have 480 points"),
    "other pixels": ("2d_3d_cor/9/nonzero_indices.npy", _save(np.arange(KEPT)), "no data on pixels"),
    "no labels": ("gt_pcd/9.pcd", lambda p: p.unlink(), "without ground truth"),
    "cut labels": ("gt_pcd/9.pcd", _cut, "truncated"),
    "few labels": ("gt_pcd/9.pcd", lambda p: write_colours(p, np.ones((20, 3)), np.ones(20, bool)), "20 points where the maps"),
    "cut tiff": ("xyz/9.tiff", _cut, "not a readable TIFF"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named(root, kind):
    item, spoil, message = BROKEN[kind]
    path = root / "tire" / "test" / "crack" / item
    spoil(path)
    reader = open_reader("prerendered", root)
    with pytest.raises(DataError, match=message) as error:
        reader.load(reader.samples("tire")[0])
    assert (str(path) in str(error.value) or kind == "other pixels") and "\n" not in str(error.value)


def test_clouds_without_colours_or_points(root):
    reader = open_reader("prerendered", root)
    sample = reader.samples("duck")[0]
    folder = root / "duck" / "test" / "anomaly"
    plain = folder / "pcd" / "9.pcd"
    plain.unlink()
    assert reader.load(sample).mask.any()  # the labelled cloud has the points too
    rows = np.zeros((SIDE * SIDE, 3), "<f4").tobytes()
    head = (folder / "gt_pcd" / "9.pcd").read_bytes().split(b"DATA")[0]
    head = head.replace(b" rgb", b"").replace(b"4 4 4 4", b"4 4 4").replace(b"F F F U", b"F F F").replace(b"1 1 1 1", b"1 1 1")
    (folder / "gt_pcd" / "9.pcd").write_bytes(head + b"DATA binary\n" + rows)
    with pytest.raises(DataError, match="gt_pcd/9.pcd: the points have no colours"):
        reader.load(sample)


def test_the_sample_tree(shared_data):
    reader = open_reader("prerendered", shared_data / "prerendered")
    rows = json.loads((shared_data / "manifest.json").read_text())["prerendered"]["rockerarm"]
    samples = {s.id: s for s in reader.samples("rockerarm")}
    assert samples.keys() == {"_".join(row["file"].split("/")[-2:]) for row in rows}
    raw = open_reader("mvtec3d", shared_data / "mvtec3d")
    same = {s.id: s for s in raw.samples("rockerarm")}
    cameras = views("mvtec3d", 9)
    for row in rows:
        name = "_".join(row["file"].split("/")[-2:])
        scan, own = reader.load(samples[name]), raw.load(same[name])
        assert (samples[name].label, scan.valid.sum(), scan.mask.sum()) == (row["label"], row["points"], row["anomalous_points"])
        assert scan.views.render.shape == (9, 336, 336) and scan.views.visible[:, scan.valid].any(0).all()
        assert scan.views.view_mask.any() == bool(row["label"]) and not scan.views.visible[:, ~scan.valid].any()
        # The raw scan through the reader of MVTec 3D-AD: the same points on the same pixels.
        scored = resample(own, 336 * 336, 0)
        np.testing.assert_array_equal(scored.valid, scan.valid)
        np.testing.assert_allclose(scored.xyz[scan.valid], scored.frame.unit(scan.xyz)[scan.valid], atol=1e-7)
        # Labels as the authors make them, bicubic, are those of the tree; nearest pixels differ from them at the rim alone.
        grey = Image.fromarray(own.mask.reshape(own.grid).astype(np.uint8) * 255)
        smooth = np.asarray(grey.resize((336, 336), Image.Resampling.BICUBIC)).ravel() / 255 > 0.5
        np.testing.assert_array_equal(smooth & scan.valid, scan.mask)
        assert (scored.mask != scan.mask).sum() <= 0.07 * max(1, scan.mask.sum())
        # Colours but for the pixels without a point, which the published preprocessing leaves as they are.
        valid = own.valid.reshape(own.grid)
        np.testing.assert_array_equal(own.rgb[valid], scan.rgb[valid])
        # Pixels of the points are those of our own cameras.
        points = own.xyz.reshape(*own.grid, 3)[np.arange(336)[:, None] * 300 // 336, np.arange(336) * 300 // 336].reshape(-1, 3)
        points = points[scan.valid].astype(np.float64)
        for v in range(9):
            x, y, _ = fit_camera(points @ cameras.rotations[v].T, 1024).project(points @ cameras.rotations[v].T)
            gap = np.abs(np.stack([x, y], 1) * 336 / 1024 - scan.views.pixel[v, scan.valid] - 0.5).max(1)
            assert np.quantile(gap, 0.7) < 0.8  # but for the unseen ones, which hold a neighbour's
