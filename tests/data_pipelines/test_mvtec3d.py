"""The MVTec 3D-AD reader: what it finds, what is left of a scan, broken input, and every sample scan against its manifest."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_pipelines.datasets import foreground, open_reader
from data_pipelines.scan import DataError

HEIGHT, WIDTH = 60, 74
RADIUS = 0.015


def table(noise=0.0002):
    """A dome [H, W, 3] in metres on a tilted table, one point a millimetre, and which pixels are the dome's above 5 mm."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH] * 0.001 - [[[0.03]], [[0.037]]]
    plane = 0.5 + 0.1 * x - 0.05 * y
    height = np.sqrt(np.maximum(RADIUS**2 - x**2 - y**2, 0))
    xyz = np.stack([x, y, plane - height + rng.normal(0, noise, x.shape)], -1)
    xyz[rng.random(x.shape) < 0.03] = 0
    return xyz.astype(np.float32), (height > 0.0062) & xyz.any(-1)


def write_scan(folder, stem, xyz, gt=None, dtype=np.float32, rgb=True):
    for kind in ("xyz", "rgb", "gt"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(folder / "xyz" / f"{stem}.tiff", xyz.astype(dtype), compression="zlib")
    if rgb:
        Image.fromarray(np.full((*xyz.shape[:2], 3), 90, np.uint8)).save(folder / "rgb" / f"{stem}.png")
    gt = np.zeros(xyz.shape[:2], np.uint8) if gt is None else gt
    Image.fromarray(gt).save(folder / "gt" / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "mvtec 3d ünïcode"
    gt = np.zeros((HEIGHT, WIDTH), np.uint8)
    gt[28:33, 35:41], gt[2, 3] = 250, 1  # ids of kinds of defects, not 255
    for category in ("cable gland", "tire"):
        for stem in ("000", "010", "009"):
            write_scan(root / category / "test" / "good", stem, table()[0])
        write_scan(root / category / "test" / "bent thread", "000", table()[0], gt, np.float64)
        write_scan(root / category / "train" / "good", "000", table()[0])
        (root / category / "calibration").mkdir()
    return root


def digest(root):
    return {path: (hashlib.sha256(path.read_bytes()).hexdigest(), os.stat(path).st_mtime_ns)
            for path in root.rglob("*") if path.is_file()}


def test_finds_categories_and_samples(root):
    reader = open_reader("mvtec3d", root.parent)
    assert reader.root == root and reader.categories() == ["cable gland", "tire"]
    samples = reader.samples("tire")
    assert [(s.id, s.defect, s.label) for s in samples] == [
        ("bent thread_000", "bent thread", 1), ("good_000", "good", 0), ("good_009", "good", 0), ("good_010", "good", 0)]
    assert [s.mask_path is None for s in samples] == [False, True, True, True]
    assert [s.id for s in reader.samples("tire", "train")] == ["good_000"] and reader.samples("tire", "validation") == []
    with pytest.raises(DataError, match="did you mean 'tire'"):
        reader.samples("tyre")


def test_keeps_the_object_on_a_square_without_touching_the_files(root):
    before = digest(root)
    reader = open_reader("mvtec3d", root)
    scan, good = (reader.load(sample) for sample in reader.samples("tire")[:2])
    assert digest(root) == before
    xyz, dome = table()
    assert scan.grid == (100, 100) and scan.xyz.shape == (10000, 3) and scan.xyz.dtype == np.float64
    valid = scan.valid.reshape(100, 100)
    inner = (slice(20, 20 + HEIGHT), slice(13, 13 + WIDTH))
    assert valid.sum() == valid[inner].sum() and 350 < dome.sum() < 600
    assert (valid[inner] != dome).sum() < 0.06 * dome.sum()  # the noise of the plane's own height
    np.testing.assert_array_equal(scan.xyz.reshape(100, 100, 3)[valid], xyz[valid[inner]])
    assert not scan.xyz[~scan.valid].any() and not scan.rgb[~valid].any() and (scan.rgb[valid] == 90).all()
    mask = scan.mask.reshape(100, 100)
    assert mask.sum() == 31 and mask[inner][28:33, 35:41].all() and mask[inner][2, 3] and not good.mask.any()
    again = reader.load(reader.samples("tire")[0])
    np.testing.assert_array_equal(again.xyz, scan.xyz)
    np.testing.assert_array_equal(again.valid, scan.valid)


def test_the_plane_is_the_same_every_time():
    xyz, _ = table(noise=0.002)  # so rough that which points are near the plane depends on the draw
    valid = xyz.any(-1)
    normal, offset = foreground.border_plane(xyz, valid)
    again = foreground.border_plane(xyz, valid)
    other = foreground.border_plane(xyz, valid, seed=1)
    assert (again[0] == normal).all() and again[1] == offset and other[1] != offset
    assert abs(abs(normal @ [0.1, -0.05, -1]) / np.sqrt(1.0125) - 1) < 1e-4  # the table's own tilt


def test_strays_and_scatter_are_no_object(root):
    xyz, dome = table()
    xyz[2:8, 2:8, 2] -= 0.05  # a cluster of 36 points
    far = np.zeros(dome.shape, bool)
    far[::2, ::2] = True
    far[11:-11, 13:-13] = False
    xyz[far & (np.arange(WIDTH) > 9)] *= np.random.default_rng(1).uniform(0.5, 0.9, (far & (np.arange(WIDTH) > 9)).sum())[:, None]
    valid = foreground.object_pixels(xyz)
    assert (valid != dome).sum() < 0.06 * dome.sum()
    # More scatter than object: the published preprocessing would keep the scatter.
    assert foreground.largest_cluster(np.random.default_rng(2).uniform(-1, 1, (3000, 3))).sum() == 0


def test_preprocessed_scans_stay_as_they_are(root):
    xyz, _ = table()
    kept = xyz * foreground.object_pixels(xyz)[..., None]
    np.testing.assert_array_equal(foreground.object_pixels(kept), kept.any(-1))
    bar = np.zeros_like(xyz)  # a flat object that reaches two edges of the picture is no table
    y, x = np.mgrid[20:40, :WIDTH] * 0.001
    bar[20:40] = np.stack([x, y, np.full_like(x, 0.5)], -1)
    assert foreground.border_plane(bar, bar.any(-1)) is None
    np.testing.assert_array_equal(foreground.object_pixels(bar), bar.any(-1))
    full = xyz.copy()
    full[..., 2][full.any(-1)] = np.random.default_rng(0).uniform(0.3, 0.6, full.any(-1).sum())
    assert foreground.border_plane(full, full.any(-1)) is None  # no plane in the border at all


def test_clusters_against_another_implementation():
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(3)
    for centres, spread in ((6, 0.03), (25, 0.06), (12, 0.1)):
        points = (rng.normal(size=(centres, 3)) * spread)[rng.integers(centres, size=2500)] + rng.normal(size=(2500, 3)) * 0.003
        points = np.concatenate([points, points[:200] * 0.01])  # cells full enough to need no search
        found = cluster.DBSCAN(eps=0.006, min_samples=30).fit(points)
        sizes = np.bincount(found.labels_[found.labels_ >= 0])
        kept, core = foreground.largest_cluster(points), np.zeros(len(points), bool)
        core[found.core_sample_indices_] = True
        best = np.flatnonzero(sizes == sizes.max())
        assert found.labels_[kept & core][0] in best
        np.testing.assert_array_equal(kept & core, core & (found.labels_ == found.labels_[kept & core][0]))
        assert kept[found.labels_ == found.labels_[kept & core][0]].all()
        assert foreground.largest_cluster(points[kept]).all()
        mixed = rng.permutation(len(points))
        np.testing.assert_array_equal(foreground.largest_cluster(points[mixed]), kept[mixed])


def test_no_colours(root):
    shutil.rmtree(root / "tire" / "test" / "good" / "rgb")
    reader = open_reader("mvtec3d", root)
    assert reader.load(reader.samples("tire")[1]).rgb is None


def _cut(path, keep):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def _tiff(array, **options):
    return lambda path: tifffile.imwrite(path, array, **options)


def _cut_plain(path):  # not packed: the picture's rows are simply missing
    tifffile.imwrite(path, table()[0], rowsperstrip=4)
    _cut(path, 0.7)


BROKEN = {
    "xyz": {
        "cut": (lambda p: _cut(p, 0.6), "not a readable TIFF"),
        "cut rows": (_cut_plain, "not a readable TIFF .*truncated"),
        "no tiff": (lambda p: p.write_bytes(b"nothing"), "not a readable TIFF"),
        "nothing": (lambda p: p.write_bytes(b""), "not a readable TIFF"),
        "integers": (_tiff(np.ones((60, 74, 3), np.uint16)), "expected float32 or float64 coordinates, found uint16"),
        "halves": (_tiff(np.ones((60, 74, 3), np.float16)), "found float16"),
        "depth": (_tiff(np.ones((60, 74), np.float32)), r"shape \(height, width, 3\), found \(60, 74\)"),
        "planes": (_tiff(np.ones((3, 60, 74), np.float32), photometric="minisblack"), r"found \(3, 60, 74\)"),
        "empty": (_tiff(np.zeros((60, 74, 3), np.float32)), "only 0 of 4440 pixels hold a point"),
        "nan": (_tiff(np.full((60, 74, 3), np.nan, np.float32)), "only 0 of 4440 pixels"),
        "millimetres": (lambda p: tifffile.imwrite(p, table()[0] * 1000), "have to be in metres"),
    },
    "gt": {
        "cut": (lambda p: _cut(p, 0.5), "not a readable picture"),
        "no png": (lambda p: p.write_bytes(b"nothing"), "not a readable picture"),
        "size": (lambda p: Image.new("L", (60, 74)).save(p), "60 x 74 pixels where 74 x 60 are expected"),
        "missing": (lambda p: p.unlink(), "defective sample without ground truth; expected .*000.png"),
    },
    "rgb": {
        "cut": (lambda p: _cut(p, 0.5), "not a readable picture"),
        "size": (lambda p: Image.new("RGB", (10, 10)).save(p), "10 x 10 pixels"),
        "16 bits": (lambda p: Image.fromarray(np.zeros((60, 74), np.uint16)).save(p), "expected 8 bits"),
        "missing": (lambda p: p.unlink(), "no such file"),
    },
}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind, cases in BROKEN.items() for name in cases])
def test_broken_files_are_named(root, kind, name):
    spoil, message = BROKEN[kind][name]
    path = root / "tire" / "test" / "bent thread" / kind / f"000.{'tiff' if kind == 'xyz' else 'png'}"
    spoil(path)
    reader = open_reader("mvtec3d", root)
    with pytest.raises(DataError, match=message) as error:
        reader.load(reader.samples("tire")[0])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_nothing_but_table(root):
    path = root / "tire" / "test" / "good" / "xyz" / "000.tiff"
    xyz, _ = table()
    y, x = np.mgrid[:HEIGHT, :WIDTH] * 0.001
    tifffile.imwrite(path, np.stack([x, y, np.full_like(x, 0.5)], -1).astype(np.float32))
    reader = open_reader("mvtec3d", root)
    with pytest.raises(DataError, match=f"no object left of {HEIGHT * WIDTH} points") as error:
        reader.load(reader.samples("tire")[1])
    assert str(path) in str(error.value)


def test_odd_masks(root):
    path = root / "tire" / "test" / "bent thread" / "gt" / "000.png"
    reader = open_reader("mvtec3d", root)
    marks = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    marks[..., 3], marks[5, 6, 2] = 255, 1
    Image.fromarray(marks).save(path)  # RGBA, blue and faint
    assert reader.load(reader.samples("tire")[0]).mask.sum() == 1
    Image.fromarray(marks[..., 2] > 0).save(path)  # one bit
    assert reader.load(reader.samples("tire")[0]).mask.sum() == 1


@pytest.mark.slow
def test_the_sample_scans(shared_data):
    reader = open_reader("mvtec3d", shared_data / "mvtec3d")
    manifest = json.loads((shared_data / "manifest.json").read_text())["mvtec"]
    assert reader.categories() == sorted(manifest)
    short = []
    for category, rows in manifest.items():
        found = {s.path: s for split in ("train", "validation", "test") for s in reader.samples(category, split)}
        assert found.keys() == {str(reader.root / category / row["file"]) for row in rows}
        for row in rows:
            path = str(reader.root / category / row["file"])
            scan = reader.load(found[path])
            assert (found[path].label, scan.mask.sum()) == (row["label"], row["anomalous_pixels"])
            short.append(1 - scan.valid.sum() / row["object_pixels"])
            raw = tifffile.imread(path)
            top, left = (scan.grid[0] - raw.shape[0]) // 2, (scan.grid[1] - raw.shape[1]) // 2
            inner = (slice(top, top + raw.shape[0]), slice(left, left + raw.shape[1]))
            valid = scan.valid.reshape(scan.grid)[inner]
            assert valid.sum() == scan.valid.sum()
            np.testing.assert_array_equal(scan.xyz.reshape(*scan.grid, 3)[inner][valid], raw[valid])
    # The lowest 5 mm of an object go with the plane, as published: 2.4 to 8.9 % of its pixels here, and nothing is added.
    assert 0.02 < min(short) and max(short) < 0.09


def test_the_plane_of_the_sample_scans_against_a_fit_without_chance(shared_data):
    """What goes is what lies within 5 mm of the table, and what stands apart: the table here is a fit to the border's middle."""
    from sklearn.cluster import DBSCAN

    reader = open_reader("mvtec3d", shared_data / "mvtec3d")
    for sample in reader.samples("rockerarm")[:3]:
        raw = tifffile.imread(sample.path).astype(np.float64)
        seen, edge = raw.any(-1), np.ones(raw.shape[:2], bool)
        edge[10:-10, 10:-10] = False
        points = raw[edge & seen]
        use = np.ones(len(points), bool)
        for _ in range(20):
            a, b, c = np.linalg.lstsq(np.column_stack([points[use, :2], np.ones(use.sum())]), points[use, 2], rcond=None)[0]
            gap = np.abs(points @ [a, b, -1] + c) / np.sqrt(a * a + b * b + 1)
            use = gap <= np.quantile(gap, 0.5)
        apart = (np.abs(raw @ [a, b, -1] + c) / np.sqrt(a * a + b * b + 1) > 0.005) & seen
        labels = DBSCAN(eps=0.006, min_samples=30).fit(raw[apart]).labels_
        expected = np.bincount(labels[labels >= 0]).max()
        assert abs(int(reader.load(sample).valid.sum()) - expected) <= 0.01 * expected
