"""The Real3D-AD reader: what it finds, what it reads, and the one line it says of broken input."""

import shutil

import numpy as np
import pytest

from data_pipelines.datasets import open_reader
from data_pipelines.datasets.real3d import defect_of
from data_pipelines.scan import DataError
from tests.scans import ellipsoid, write_pcd, write_set


@pytest.fixture
def root(tmp_path):
    return write_set(tmp_path / "top" / "a" / "b" / "set", good=2, defective=2)


def test_finds_categories_and_samples_in_number_order(root):
    reader = open_reader("real3d", root)
    assert reader.categories() == ["ball", "egg"]
    samples = reader.samples("ball")
    assert [s.id for s in samples] == ["8_good", "9_good", "10_bulge", "11_bulge"]
    assert [(s.defect, s.label) for s in samples] == [("good", 0)] * 2 + [("bulge", 1)] * 2
    templates = reader.samples("ball", "train")
    assert [(s.id, s.label, s.split) for s in templates] == [("1_template", 0, "train")]


@pytest.mark.parametrize("stem, defect", [
    ("142_good", "good"), ("142_good_cut", "good"), ("482_bulge_cut", "bulge"), ("7_sink", "sink"), ("9_sink_copy", "sink"),
    ("vase0_concavity1", "vase_concavity"), ("12", "defect")])
def test_defect_kinds(stem, defect):
    assert defect_of(stem) == defect


def test_points_of_defective_scans_come_from_the_ground_truth(root):
    reader = open_reader("real3d", root)
    sample = reader.samples("egg")[2]
    xyz, mask = ellipsoid(700, 102, bump=True)
    turned = np.arange(700)[::-1]  # rows in another order than the cloud
    np.savetxt(sample.mask_path, np.column_stack([xyz, mask])[turned], fmt="%.4f,%.4f,%.4f,%.1f")  # and commas
    scan = reader.load(sample)
    np.testing.assert_allclose(scan.xyz, xyz[turned], atol=1e-3)
    np.testing.assert_array_equal(scan.mask, mask[turned])
    assert 5 < scan.mask.sum() < 100 and scan.valid.all() and scan.grid is None


def test_good_scans_and_upper_case_ground_truth(root):
    reader = open_reader("real3d", root)
    good = reader.load(reader.samples("ball")[0])
    np.testing.assert_allclose(good.xyz, ellipsoid(700, 0)[0], rtol=1e-6)
    assert not good.mask.any()
    (root / "ball" / "gt").rename(root / "ball" / "GT")
    assert reader.load(reader.samples("ball")[2]).mask.any()


def test_root_may_be_three_levels_above(root):
    assert open_reader("real3d", root.parents[2]).root == root
    with pytest.raises(DataError, match="holds no category folder"):
        open_reader("real3d", root.parents[3])
    shutil.copytree(root, root.parent / "second")
    with pytest.raises(DataError, match="several data sets"):
        open_reader("real3d", root.parent)


def test_says_what_is_wrong_with_names(root, tmp_path):
    with pytest.raises(DataError, match="unknown data set 'reel3d', did you mean 'real3d'"):
        open_reader("reel3d", root)
    with pytest.raises(DataError, match="no category 'bal' .*did you mean 'ball'.*found: ball, egg"):
        open_reader("real3d", root).samples("bal")
    with pytest.raises(DataError, match="does not exist"):
        open_reader("real3d", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no category folder"):
        open_reader("real3d", tmp_path / "empty")


def _cut_file(path):
    path.write_bytes(path.read_bytes()[:-400])


def _cut_compressed(path):
    import open3d as o3d

    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(ellipsoid(700, 0)[0]))
    assert o3d.io.write_point_cloud(str(path), cloud, compressed=True)
    _cut_file(path)


def _value(value, rows):
    def spoil(path):
        xyz = ellipsoid(700, 0)[0]
        xyz[rows, 1] = value
        write_pcd(path, xyz)

    return spoil


BROKEN = {
    "cut": (_cut_file, "truncated"),
    "cut compressed": (_cut_compressed, "truncated"),
    "cut ascii": (lambda p: (write_pcd(p, ellipsoid(700, 0)[0], "ascii"), _cut_file(p)), "damaged|truncated"),
    "no header": (lambda p: p.write_bytes(b"no cloud at all"), "not a PCD"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "nan": (_value(np.nan, slice(5, None)), "only 5 points .695 are NaN of 700 rows"),
    "inf": (_value(np.inf, slice(None)), "700 of 700 points are infinite"),
    "huge": (_value(1e30, slice(0, 1)), "too large"),
    "few": (lambda p: write_pcd(p, ellipsoid(9, 0)[0]), "only 9 points"),
    "one place": (lambda p: write_pcd(p, np.ones((50, 3))), "at one place"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_clouds_are_named(root, kind):
    spoil, message = BROKEN[kind]
    path = root / "ball" / "test" / "8_good.pcd"
    spoil(path)
    reader = open_reader("real3d", root)
    with pytest.raises(DataError, match=message) as error:
        reader.load(reader.samples("ball")[0])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_broken_ground_truth_is_named(root):
    reader = open_reader("real3d", root)
    sample = reader.samples("ball")[2]
    path = root / "ball" / "gt" / "10_bulge.txt"
    rows = path.read_text().splitlines()

    def says(text, message):
        path.write_text(text)
        with pytest.raises(DataError, match=message) as error:
            reader.load(sample)
        assert str(path) in str(error.value)

    says("\n".join(rows[:-2]), "698 rows but 10_bulge.pcd has 700 points")
    says("\n".join(rows)[:-20], "not all numbers of one length")
    says("\n".join(row + " 3" if i == 0 else row for i, row in enumerate(rows)), "not all numbers of one length")
    says("\n".join(row.rsplit(" ", 1)[0] for row in rows), "found 3 columns")
    says("\n".join(row.rsplit(" ", 1)[0] + " 7" for row in rows), "must be 0 or 1")
    says("", "empty")
    path.unlink()
    with pytest.raises(DataError, match="without ground truth"):
        reader.load(reader.samples("ball")[2])


def test_one_row_more_is_the_data_sets_own_slip(root):
    path = root / "ball" / "gt" / "10_bulge.txt"
    path.write_text(path.read_text() + "100 -40 5 0\n")
    reader = open_reader("real3d", root)
    assert len(reader.load(reader.samples("ball")[2]).xyz) == 701


def test_the_sample_scans(shared_data):
    reader = open_reader("real3d", shared_data / "real3d_ad")
    assert reader.categories() == ["bunny", "fandisk", "rockerarm", "spot", "suzanne", "teapot"]
    samples = reader.samples("bunny")
    assert sum(s.label for s in samples) == 8 and len(samples) == 12
    scan = reader.load(next(s for s in samples if s.id == "175_bulge"))
    assert scan.xyz.shape == (20000, 3) and scan.mask.sum() > 100
