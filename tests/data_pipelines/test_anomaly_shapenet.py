"""The Anomaly-ShapeNet reader: names, the ground truth's traps, and every sample scan against its manifest."""

import json

import numpy as np
import pytest

from data_pipelines.clouds.files import read_cloud
from data_pipelines.datasets import open_reader
from data_pipelines.scan import DataError
from tests.scans import ellipsoid, write_pcd


def write_class(root, cls, kinds, seed=0):
    """A class in the published layout; label rows turned round, commas."""
    for k in range(2):
        write_pcd(root / cls / "train" / f"{cls}_template{k}.pcd", ellipsoid(500, 50 + k)[0])
    for i, kind in enumerate(kinds):
        bump = not kind.startswith("positive")
        xyz, mask = ellipsoid(500, seed + i, bump)
        write_pcd(root / cls / "test" / f"{cls}_{kind}.pcd", xyz)
        if bump:
            (root / cls / "GT").mkdir(exist_ok=True)
            rows = np.column_stack([xyz.astype(np.float32), mask])[::-1]
            np.savetxt(root / cls / "GT" / f"{cls}_{kind}.txt", rows, fmt="%.9g,%.9g,%.9g,%.1f")


@pytest.fixture
def root(tmp_path):
    """Two classes, under a path with spaces and accents."""
    root = tmp_path / "Prüf Daten" / "dataset" / "pcd"
    for c, cls in enumerate(("vase0", "phone stand1")):
        write_class(root, cls, ("positive0", "positive10", "positive2", "concavity0", "crak1"), 10 * c)
    (root.parent / "obj" / "vase0").mkdir(parents=True)
    return root


def test_finds_classes_and_samples(root):
    reader = open_reader("anomaly_shapenet", root.parents[1])
    assert reader.root == root and reader.name == "anomaly_shapenet"
    assert reader.categories() == ["phone stand1", "vase0"]
    samples = reader.samples("vase0")
    assert [(s.id, s.defect, s.label) for s in samples] == [
        ("vase0_concavity0", "concavity", 1), ("vase0_crak1", "crak", 1), ("vase0_positive0", "good", 0),
        ("vase0_positive2", "good", 0), ("vase0_positive10", "good", 0)]
    assert [s.id for s in reader.samples("vase0", "train")] == ["vase0_template0", "vase0_template1"]
    assert all((s.mask_path is None) == (s.label == 0) for s in samples)
    assert [s.defect for s in reader.samples("phone stand1")][:2] == ["concavity", "crak"]
    with pytest.raises(DataError, match="no category 'vase'.*did you mean 'vase0'"):
        reader.samples("vase")


@pytest.mark.parametrize("stem, defect", [
    ("desk_bulge0", "bulge"), ("vase0_positive12", "good"), ("good0_hole1", "hole"), ("7", "defect")])
def test_defect_kinds(root, stem, defect):
    assert open_reader("anomaly_shapenet", root).defect_of(stem) == defect


def test_points_come_from_the_ground_truth_in_its_order(root):
    reader = open_reader("anomaly_shapenet", root)
    xyz, mask = ellipsoid(500, 3, bump=True)
    scan = reader.load(reader.samples("vase0")[0])
    np.testing.assert_allclose(scan.xyz, xyz.astype(np.float32)[::-1], rtol=1e-7)  # as the text has them, in doubles
    np.testing.assert_array_equal(scan.mask, mask[::-1])
    assert mask.any() and scan.valid.all() and scan.views is None
    good = reader.load(reader.samples("vase0")[2])
    np.testing.assert_array_equal(good.xyz, ellipsoid(500, 0)[0].astype(np.float32))
    assert not good.mask.any()


def test_blanks_one_row_more_and_lower_case_folder(root):
    path = root / "vase0" / "GT" / "vase0_concavity0.txt"
    path.write_text(path.read_text().replace(",", " ") + "100 -40 5 0\n")
    path.parent.rename(root / "vase0" / "gt")
    reader = open_reader("anomaly_shapenet", root)
    assert reader.load(reader.samples("vase0")[0]).xyz.shape == (501, 3)


def test_says_what_is_wrong(root):
    reader = open_reader("anomaly_shapenet", root)
    sample = reader.samples("vase0")[0]
    path = root / "vase0" / "GT" / "vase0_concavity0.txt"
    text = path.read_text()
    rows = text.splitlines()

    def says(message, content=None):
        if content is not None:
            path.write_text(content)
        with pytest.raises(DataError, match=message) as error:
            reader.load(sample)
        assert str(path) in str(error.value) and "\n" not in str(error.value)

    says("498 rows but vase0_concavity0.pcd has 500 points", "\n".join(rows[2:]))
    says("not all numbers of one length", text[:-8])
    says("found 3 columns", "\n".join(row.rsplit(",", 1)[0] for row in rows))
    says("must be 0 or 1", text.replace(",1.0", ",2.0"))
    says("infinite", "\n".join(["inf,0,0,0", *rows[1:]]))
    says("empty", "")
    path.unlink()
    says("without ground truth")
    good = reader.samples("vase0")[2]
    cloud = root / "vase0" / "test" / "vase0_positive0.pcd"
    cloud.write_bytes(cloud.read_bytes()[:-40])
    with pytest.raises(DataError, match="truncated") as error:
        reader.load(good)
    assert str(cloud) in str(error.value)


def test_two_sets_under_one_root(root):
    write_pcd(root.parent / "new_pcd" / "desk0" / "test" / "desk_bulge0.pcd", ellipsoid(50, 0)[0])
    with pytest.raises(DataError, match="several data sets"):
        open_reader("anomaly_shapenet", root.parent)


def test_the_sample_scans(shared_data):
    reader = open_reader("anomaly_shapenet", shared_data / "anomaly_shapenet")
    manifest = json.loads((shared_data / "manifest.json").read_text())["shapenet"]
    assert reader.categories() == sorted(f"{cls}0" for cls in manifest)
    for cls, rows in manifest.items():
        found = {f"{s.split}/{s.id}.pcd": s for split in ("train", "test") for s in reader.samples(f"{cls}0", split)}
        assert found.keys() == {row["file"] for row in rows}
        for row in rows:
            sample = found[row["file"]]
            scan = reader.load(sample)
            assert (sample.label, len(scan.xyz), scan.mask.sum()) == (row["label"], row["points"], row.get("anomalous_points", 0))
            cloud = read_cloud(sample.path)
            if row.get("gt_rows_shuffled"):
                assert not np.array_equal(scan.xyz, cloud)
                cloud, scan.xyz = (a[np.lexsort(np.float32(a).T)] for a in (cloud, scan.xyz))
            np.testing.assert_allclose(scan.xyz, cloud, rtol=1e-7, atol=1e-7)  # text and float32 of the same numbers
