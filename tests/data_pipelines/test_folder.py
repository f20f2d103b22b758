"""The reader of your own scans: every format, every kind of marks, single categories, and what it says of broken input."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_pipelines.clouds.files import TEXT
from data_pipelines.clouds.sampling import resample
from data_pipelines.datasets import open_reader
from data_pipelines.datasets.folder import MESH_POINTS, sample_mesh
from data_pipelines.records.store import prepare
from data_pipelines.scan import DataError
from tests.scans import ellipsoid, write_pcd

POINTS = 400


def cloud(seed=0):
    """Points and marks of a scan, as float32 has them."""
    xyz, mask = ellipsoid(POINTS, seed, bump=True)
    return xyz.astype(np.float32), mask


def write_cloud(path, xyz, mask=None):
    """A scan or, with `mask`, its points coloured by it, in the format of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix
    rows = xyz if mask is None else np.column_stack([xyz, mask])
    if kind == ".npy":
        np.save(path, rows)
    elif kind in TEXT:
        np.savetxt(path, rows, fmt="%.9g", delimiter="," if kind == ".csv" else " ")
    elif mask is None and kind == ".pcd":
        write_pcd(path, xyz)
    else:
        import open3d as o3d

        points = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz.astype(np.float64)))
        if mask is not None:
            points.colors = o3d.utility.Vector3dVector(np.repeat(mask[:, None].astype(float), 3, 1))
        assert o3d.io.write_point_cloud(str(path), points)
    return path


def box_stl(path, size=(2.0, 4.0, 6.0), binary=True):
    """A box from 0 to `size`, two triangles a side, as STL text or binary; or OBJ."""
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * size
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = [face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))]
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".obj":
        path.write_text("".join(f"v {x} {y} {z}\n" for x, y, z in corners)
                        + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in faces))
    elif binary:
        rows = np.zeros(len(faces), np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")]))
        rows["corners"] = corners[np.array(faces)]
        path.write_bytes(b"\0" * 80 + len(faces).to_bytes(4, "little") + rows.tobytes())
    else:
        text = "".join("facet normal 0 0 0\nouter loop\n" + "".join(f"vertex {x} {y} {z}\n" for x, y, z in corners[list(face)])
                       + "endloop\nendfacet\n" for face in faces)
        path.write_text(f"solid box\n{text}endsolid box\n")
    return path


@pytest.fixture
def root(tmp_path):
    """bolt: good and two kinds of defects, one of which has no marks; nut: good alone."""
    root = tmp_path / "meine Teile äöü"
    for stem in ("2", "10"):
        write_cloud(root / "bolt" / "good" / f"{stem}.ply", cloud()[0])
    xyz, mask = cloud(1)
    write_cloud(root / "bolt" / "bent pin" / "2.txt", xyz)
    write_cloud(root / "bolt" / "bent pin" / "2_mask.txt", xyz, mask)
    write_cloud(root / "bolt" / "defective" / "7.npy", xyz)
    (root / "bolt" / "good" / ".hidden.ply").write_text("nothing")
    write_cloud(root / "nut" / "good" / "1.pcd", xyz)
    (root / "notes").mkdir()
    return root


def test_finds_categories_kinds_and_marks(root):
    reader = open_reader("folder", root)
    assert reader.categories() == ["bolt", "nut"]
    samples = reader.samples("bolt")
    assert [(s.id, s.defect, s.label, s.mask_path is None) for s in samples] == [
        ("bent pin_2", "bent pin", 1, False), ("defective_7", "defective", 1, True), ("good_2", "good", 0, True),
        ("good_10", "good", 0, True)]
    assert reader.samples("bolt", "train") == []
    with pytest.raises(DataError, match="did you mean 'bolt'"):
        reader.samples("bold")
    with pytest.raises(DataError, match="no category folder"):
        open_reader("folder", root / "notes")


def test_one_category_is_called_after_its_folder(root):
    reader = open_reader("folder", root / "bolt")
    assert reader.categories() == ["bolt"] and len(reader.samples("bolt")) == 4
    assert reader.load(reader.samples("bolt")[0]).mask.any()


def test_unmarked_defects_say_so(root):
    reader = open_reader("folder", root)
    assert [sample.labelled for sample in reader.samples("bolt")][:3] == [True, False, True]
    marked, unmarked, good, _ = (reader.load(sample) for sample in reader.samples("bolt"))
    assert marked.mask.any() and not unmarked.mask.any() and not good.mask.any()


def test_training_needs_a_defective_scan(root, tmp_path):
    data = {"name": "folder", "root": str(root), "train_category": "nut", "points": 600, "image_size": 48, "views": 3,
            "cameras": "ring", "window": 96, "point_size": 4, "cloud_points": 128, "neighbours": 4, "sample_seed": 0}
    with pytest.raises(DataError, match="'nut' .* has no defective sample"):
        prepare(data, tmp_path / "cache")


@pytest.mark.parametrize("kind", ["ply", "pcd", "xyz", "txt", "csv", "tsv", "asc", "pts", "npy"])
def test_clouds_of_every_format(tmp_path, kind):
    xyz, mask = cloud(2)
    write_cloud(tmp_path / "part" / "crack" / f"a.{kind}", xyz)
    write_cloud(tmp_path / "part" / "good" / f"a.{kind}", xyz)
    write_cloud(tmp_path / "part" / "masks" / f"a.{kind}", xyz, mask)
    reader = open_reader("folder", tmp_path)
    scan, good = (reader.load(sample) for sample in reader.samples("part"))
    np.testing.assert_allclose(scan.xyz, xyz, rtol=1e-7)  # text in doubles
    np.testing.assert_array_equal(scan.mask, mask)
    assert scan.grid is None and scan.valid.all() and not good.mask.any()


def marks(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        np.savetxt(path, values, fmt="%g")


@pytest.mark.parametrize("place", [
    "masks/hole/a.npy", "masks/hole/a_mask.txt", "masks/a.npy", "masks/a_mask.txt", "hole/a_mask.npy"])
def test_a_label_a_point_from_any_place(tmp_path, place):
    xyz, mask = cloud(3)
    write_cloud(tmp_path / "p" / "hole" / "a.ply", xyz)
    write_cloud(tmp_path / "p" / "good" / "b.ply", xyz)
    marks(tmp_path / "p" / place, mask if place.endswith("npy") else mask.astype(int) * 3)
    reader = open_reader("folder", tmp_path)
    samples = reader.samples("p")
    assert [s.id for s in samples] == ["good_b", "hole_a"]
    np.testing.assert_array_equal(reader.load(samples[1]).mask, mask)


def test_rows_in_another_order_and_number(tmp_path):
    xyz, mask = cloud(4)
    write_cloud(tmp_path / "p" / "good" / "a.ply", xyz)
    write_cloud(tmp_path / "p" / "hole" / "a.ply", xyz)
    order = np.random.default_rng(0).permutation(POINTS)
    write_cloud(tmp_path / "p" / "masks" / "a.csv", np.repeat(xyz[order], 2, 0), np.repeat(mask[order], 2))
    reader = open_reader("folder", tmp_path)
    np.testing.assert_array_equal(reader.load(reader.samples("p")[1]).mask, mask)


@pytest.mark.parametrize("name", ["a.stl", "b.stl", "c.obj"])
def test_meshes_are_sampled_evenly_and_always_the_same(tmp_path, name):
    path = box_stl(tmp_path / "Gehäuse 1" / "dent" / name, binary=name != "b.stl")
    box_stl(tmp_path / "Gehäuse 1" / "good" / name)
    rng = np.random.default_rng(0)
    xyz = rng.uniform(0, [2, 4, 6], (4000, 3))
    axis = rng.integers(3, size=4000)
    xyz[np.arange(4000), axis] = np.array([2, 4, 6])[axis] * rng.integers(0, 2, 4000)  # onto a side
    write_cloud(tmp_path / "Gehäuse 1" / "masks" / f"{path.stem}.txt", xyz, xyz[:, 2] > 3)
    reader = open_reader("folder", tmp_path)
    sample = reader.samples("Gehäuse 1")[0]
    scan = reader.load(sample)
    np.testing.assert_array_equal(reader.load(sample).xyz, scan.xyz)
    assert len(scan.xyz) == MESH_POINTS and scan.xyz.min() >= 0 and (scan.xyz.max(0) <= np.array([2, 4, 6]) + 1e-12).all()
    # Of the surface 2 * (8 + 12 + 24), the side z = 6 has 8: within four standard deviations of a random draw.
    share, expected = (scan.xyz[:, 2] > 5.999).mean(), 8 / 88
    assert abs(share - expected) < 4 * (expected * (1 - expected) / MESH_POINTS) ** 0.5
    assert (scan.mask == (scan.xyz[:, 2] > 3)).mean() > 0.95
    assert not np.array_equal(sample_mesh(path, 50, 1), sample_mesh(path, 50, 2))


def test_organised_scans(tmp_path):
    grid = np.random.default_rng(0).uniform(1, 2, (20, 30, 3)).astype(np.float32)
    grid[:4], grid[4, 4] = 0, np.nan
    flags = np.zeros((20, 30), bool)
    flags[10:13, 5:9] = True
    for folder in ("good", "cut", "hole"):
        (tmp_path / "p" / folder).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "p" / folder / f"{folder}.tiff", grid)
    (tmp_path / "p" / "masks").mkdir()
    Image.fromarray(flags.astype(np.uint8)).save(tmp_path / "p" / "masks" / "cut.png")
    np.save(tmp_path / "p" / "masks" / "hole.npy", flags)
    reader = open_reader("folder", tmp_path)
    for scan in (reader.load(sample) for sample in reader.samples("p") if sample.label):
        assert scan.grid == (20, 30) and scan.valid.sum() == 16 * 30 - 1
        np.testing.assert_array_equal(scan.mask.reshape(20, 30), flags)
        np.testing.assert_array_equal(scan.xyz[scan.valid], grid.reshape(-1, 3)[scan.valid])
        assert resample(scan, 100, 0).organised
    Image.new("L", (20, 30)).save(tmp_path / "p" / "masks" / "cut.png")
    with pytest.raises(DataError, match="20 x 30 pixels where 30 x 20"):
        reader.load(reader.samples("p")[0])


def says(root, message, path, category="bolt", which=0):
    reader = open_reader("folder", root)
    with pytest.raises(DataError, match=message) as error:
        reader.load(reader.samples(category)[which])
    assert str(path) in str(error.value) and "\n" not in str(error.value)


XYZ = cloud(1)[0].astype(np.float64)
ONES = np.ones(POINTS)
BAD_MARKS = {
    "few": (ONES[:9], "9 labels where the scan has 400 points"),
    "two columns": (np.ones((POINTS, 2)), "found 2 columns"),
    "no labels": (XYZ, "found 3 columns"),
    "scores": (ONES * 0.3, "whole numbers"),
    "nan": (ONES * np.nan, "whole numbers"),
    "elsewhere": (np.column_stack([XYZ + 500, ONES]), "lie apart from the scan"),
    "nowhere": (np.column_stack([XYZ * np.nan, ONES]), "NaN or infinite"),
    "none": (np.zeros(0), "expected numbers"),
    "words": (np.array(["a"] * POINTS), "expected numbers"),
    "block": (np.ones((2, 2, 2)), "expected numbers"),
}


@pytest.mark.parametrize("name", BAD_MARKS)
def test_broken_marks_are_named(root, name):
    values, message = BAD_MARKS[name]
    path = root / "bolt" / "bent pin" / "2_mask.npy"
    path.with_suffix(".txt").unlink()
    np.save(path, values)
    says(root, message, path)


def test_more_broken_marks(root):
    path = root / "bolt" / "bent pin" / "2_mask.txt"
    path.write_text("")
    says(root, "empty", path)
    path.write_text("1 2 3 0\n1 2")
    says(root, "not all numbers of one length", path)
    path.unlink()
    path = path.with_suffix(".npy")
    path.write_bytes(b"nothing")
    says(root, "not a readable array", path)
    path.unlink()
    path = path.with_suffix(".png")
    Image.new("L", (5, 5)).save(path)
    says(root, "a picture marks the pixels of a tiff", path)
    path.unlink()
    path = write_cloud(path.with_suffix(".ply"), XYZ)
    says(root, "no colours", path)
    path.write_bytes(path.read_bytes()[:200])
    says(root, "truncated", path)
    path.rename(path.with_suffix(".jpg"))
    with pytest.raises(DataError, match="2_mask.jpg: unknown mask format; use txt, xyz, csv"):
        open_reader("folder", root).samples("bolt")


def test_marks_that_could_be_of_several_scans(root):
    path = root / "bolt" / "bent pin" / "2_mask.npy"
    np.save(path, ONES)
    with pytest.raises(DataError, match=r"several masks .*2_mask.npy, 2_mask.txt"):
        open_reader("folder", root).samples("bolt")
    path.unlink()
    path.with_suffix(".txt").unlink()
    write_cloud(root / "bolt" / "defective" / "2.npy", XYZ)
    marks(root / "bolt" / "masks" / "2.npy", ONES)
    with pytest.raises(DataError, match="several defective scans are called 2; put masks into masks/<kind"):
        open_reader("folder", root).samples("bolt")
    (root / "bolt" / "masks" / "2.npy").unlink()
    write_cloud(root / "bolt" / "good" / "2.npy", XYZ)
    assert [s.id for s in open_reader("folder", root).samples("bolt")] == [
        "bent pin_2", "defective_2", "defective_7", "good_2.npy", "good_2.ply", "good_10"]


@pytest.mark.parametrize("name, content, message", [
    ("a.ply", b"", "empty"), ("a.pcd", b"nothing", "not a PCD"), ("a.txt", b"1 2 3\n4 5", "one length"),
    ("a.csv", b"1,2", "found 2"),
    ("a.npy", b"nothing", "not a readable array"), ("a.xyz", b"1 2 3\n" * 20, "at one place"), ("a.stl", b"", "truncated"),
    ("a.stl", b"\0" * 80 + b"\5\0\0\0" + b"\0" * 60, "truncated"), ("a.stl", b"solid x\nfacet normal 0 0 0\n", "truncated"),
    ("a.obj", b"v 1 2 3\n", "no triangles"), ("a.tiff", b"II*\0", "not a readable TIFF")])
def test_broken_scans_are_named(tmp_path, name, content, message):
    path = tmp_path / "p" / "good" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    says(tmp_path, message, path, "p")


def test_labels_alone_do_not_fit_a_mesh(tmp_path):
    box_stl(tmp_path / "p" / "defective" / "a.stl")
    marks(tmp_path / "p" / "masks" / "a.npy", np.ones(8))
    says(tmp_path, "labels alone do not fit a mesh", tmp_path / "p" / "masks" / "a.npy", "p")


def test_the_sample_scans(shared_data, tmp_path):
    """Scans of another data set, sorted into folders with their ground truth as marks."""
    source = shared_data / "real3d_ad" / "bunny"
    for folder, stems in (("good", ["113_good"]), ("bulge", ["175_bulge"])):
        (tmp_path / "bunny" / folder).mkdir(parents=True)
        for stem in stems:
            (tmp_path / "bunny" / folder / f"{stem}.pcd").symlink_to(source / "test" / f"{stem}.pcd")
    (tmp_path / "bunny" / "masks").symlink_to(source / "gt")
    reader = open_reader("folder", tmp_path)
    bulge, good = (reader.load(sample) for sample in reader.samples("bunny"))
    assert bulge.mask.sum() == 1333 and len(bulge.xyz) == len(good.xyz) == 20000 and not good.mask.any()
