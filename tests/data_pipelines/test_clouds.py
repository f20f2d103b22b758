"""Clouds: files, number of points, neighbours, normals."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_pipelines.clouds import files as cloud_files
from data_pipelines.clouds import sampling as clouds
from data_pipelines.clouds.canonical import frame_of, shuffled
from data_pipelines.scan import DataError, Scan
from tests.scans import ellipsoid


def scan_of(xyz, mask=None):
    return Scan(xyz, np.zeros(len(xyz), bool) if mask is None else mask, np.ones(len(xyz), bool))


@pytest.mark.parametrize("suffix", [".pcd", ".ply", ".xyz", ".txt", ".csv", ".npy"])
def test_reads_clouds_in_file_order(tmp_path, suffix):
    xyz, path = np.round(ellipsoid(50, 0)[0], 4), tmp_path / f"scan{suffix}"
    if suffix in (".pcd", ".ply"):
        import open3d as o3d

        o3d.io.write_point_cloud(str(path), o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz)))
    elif suffix == ".npy":
        np.save(path, xyz)
    else:
        np.savetxt(path, xyz, delimiter="," if suffix == ".csv" else " ")
    np.testing.assert_allclose(cloud_files.read_cloud(path), xyz, rtol=1e-6)
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    if suffix not in (".xyz", ".txt", ".csv"):  # half a text is a shorter text
        with pytest.raises(DataError, match="scan"):
            cloud_files.read_cloud(path)


def test_unknown_formats_and_missing_files(tmp_path):
    (tmp_path / "a.stl").write_bytes(b"solid")
    for path, message in ((tmp_path / "a.stl", "unknown cloud format '.stl'"), (tmp_path / "b.pcd", "no such file")):
        with pytest.raises(DataError, match=message):
            cloud_files.read_cloud(path)


def farthest(xyz, count, seed):
    """Indices of farthest points, as `resample` finds them."""
    steps = frame_of(xyz).steps(xyz)
    order = shuffled(steps, seed)
    return np.sort(order[clouds.farthest_points(steps[order], count)])


def test_farthest_points_spread_as_the_exact_method_does():
    xyz = ellipsoid(6000, 1)[0]
    xyz = np.concatenate([xyz, xyz[:2000] + 0.01])  # uneven density
    picked = farthest(xyz, 1500, seed=0)
    assert len(set(picked)) == 1500

    import open3d as o3d

    exact = np.asarray(o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz)).farthest_point_down_sample(1500).points)

    def cover_and_gap(chosen):
        return cKDTree(chosen).query(xyz)[0].max(), cKDTree(chosen).query(chosen, k=2)[0][:, 1].min()

    (cover, gap), (cover_exact, gap_exact) = cover_and_gap(xyz[picked]), cover_and_gap(exact)
    assert cover < 1.12 * cover_exact and gap > 0.9 * gap_exact
    np.testing.assert_array_equal(picked, farthest(xyz, 1500, seed=0))
    assert (picked != farthest(xyz, 1500, seed=1)).any()


def test_farthest_points_of_odd_clouds():
    dense = ellipsoid(20_000, 0)[0]
    picked = farthest(dense, 200, 0)  # thinned first
    assert len(set(picked)) == 200
    assert cKDTree(dense[picked]).query(dense)[0].max() < 3.2
    line = np.stack([np.arange(1000.0), np.zeros(1000), np.zeros(1000)], 1)
    assert np.diff(farthest(line, 100, 0)).max() < 20


def test_resample_down_keeps_points_and_labels():
    xyz, mask = ellipsoid(3000, 2, bump=True)
    down = clouds.resample(scan_of(xyz, mask), 1000, seed=3)
    assert down.xyz.shape == (1000, 3) and not down.organised and down.valid.all()
    np.testing.assert_array_equal(down.xyz, down.frame.unit(xyz)[down.source])
    np.testing.assert_array_equal(down.mask, mask[down.source])


@pytest.mark.parametrize("count", [1500, 20_000])  # the second: more than ten times the points, the published code fails there
def test_resample_up_adds_points_between_neighbours(count):
    xyz, mask = ellipsoid(1000, 2, bump=True)
    up = clouds.resample(scan_of(xyz, mask), count, seed=3)
    assert up.xyz.shape == (count, 3) and up.xyz.dtype == np.float32 and len(np.unique(up.xyz, axis=0)) > 0.99 * count
    whole = up.frame.unit(xyz)
    assert (cKDTree(up.xyz).query(whole)[0] == 0).all()
    np.testing.assert_array_equal(up.mask, mask[up.source])
    to_source = np.linalg.norm(up.xyz - whole[up.source], axis=1)
    nearest_edge = cKDTree(whole).query(whole, k=4)[0][:, 3]
    assert (to_source <= nearest_edge.max() / 2 + 1e-4).all()  # the nearer end
    np.testing.assert_array_equal(up.xyz, clouds.resample(scan_of(xyz, mask), count, seed=3).xyz)


def test_organised_scans_are_resized_to_the_nearest_pixel():
    height, width = 6, 9
    xyz = np.stack([np.arange(54.0), np.zeros(54), np.ones(54)], 1)
    valid = np.arange(54) % 5 > 0
    scan = Scan(np.float32(xyz), np.ones(54, bool), valid, grid=(height, width))
    small = clouds.resample(scan, 16, seed=0)
    expected = [width * (i * height // 4) + j * width // 4 for i in range(4) for j in range(4)]
    np.testing.assert_array_equal(small.source, expected)
    np.testing.assert_array_equal(small.valid, valid[expected])
    np.testing.assert_array_equal(small.mask, valid[expected])  # an empty pixel is never defective
    assert small.organised
    with pytest.raises(ValueError, match="square number"):
        clouds.resample(scan, 15, seed=0)


def test_unit_sphere_equals_the_reference(shared_reference):
    with np.load(shared_reference / "p.npz") as stored:
        np.testing.assert_allclose(clouds.unit_sphere(stored["in_raw"]), stored["normalised"], atol=2e-6)


def test_cloud_points_are_seeded_and_filled_up():
    xyz = ellipsoid(100, 0)[0]
    few, many = clouds.cloud_points(xyz, 40, 7), clouds.cloud_points(xyz, 250, 7)
    assert few.shape == (40, 3) and many.shape == (250, 3) and few.dtype == np.float32
    assert len(np.unique(few, axis=0)) == 40 and len(np.unique(many, axis=0)) == 100
    np.testing.assert_array_equal(few, clouds.cloud_points(xyz, 40, 7))
    assert (few != clouds.cloud_points(xyz, 40, 8)).any()
    np.testing.assert_allclose(np.linalg.norm(clouds.unit_sphere(xyz), axis=1).max(), 1, atol=1e-6)


def test_knn_starts_with_the_point_itself():
    xyz = np.repeat(ellipsoid(30, 0)[0], 3, axis=0)  # copies
    near = clouds.knn(xyz, 5)
    assert near.dtype == np.int32
    np.testing.assert_array_equal(near[:, 0], np.arange(90))
    brute = np.sort(np.linalg.norm(xyz[:, None] - xyz[None], axis=2), axis=1)[:, :5]
    np.testing.assert_allclose(np.sort(np.linalg.norm(xyz[near] - xyz[:, None], axis=2), axis=1), brute, atol=1e-9)
    assert all(len(set(row)) == 5 for row in near)
    assert clouds.knn(xyz[:3], 5).shape == (3, 5)


def test_normals_and_variation():
    rng = np.random.default_rng(0)
    plane = np.concatenate([rng.uniform(-1, 1, (800, 2)), np.zeros((800, 1))], 1)

    def planes(points, k=30):
        return clouds.planes(points, clouds.knn(points, k))

    np.testing.assert_allclose(np.abs(planes(plane)[0] @ [0, 0, 1]), 1, atol=1e-9)
    assert planes(plane)[1].max() < 1e-9
    assert abs(planes(rng.normal(size=(4000, 3)), k=1000)[1].mean() - 0.25) < 0.08  # a ball: near 1/3
    xyz, mask = ellipsoid(3000, 0, bump=True)
    ring = np.abs((xyz - [100, -40, 5]) / [12, 9, 7] @ [0.6, 0, -0.8] / np.linalg.norm((xyz - [100, -40, 5]) / [12, 9, 7], axis=1)
                  - 0.93) < 0.02
    assert planes(xyz)[1][ring].mean() > 2 * planes(xyz)[1][~ring].mean()  # the bump's edge


def test_seeds_depend_on_every_word():
    words = [(0, "a", "b"), (0, "ab", ""), (1, "a", "b"), (0, "b", "a")]
    assert len({clouds.seed_of(*word) for word in words}) == 4
    assert clouds.seed_of(0, "a") == clouds.seed_of(0, "a") >= 0
