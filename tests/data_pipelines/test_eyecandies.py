"""The Eyecandies reader: labels, points against the documented formula, the conveyor, broken input, and the sample scans."""

import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from data_pipelines.datasets import open_reader
from data_pipelines.datasets.eyecandies import Eyecandies
from data_pipelines.scan import DataError

SIDE, FOCAL = 512, 711.11
KINDS = ("bumps", "dents", "colors", "normals")


def about_x(degrees):
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def scene(tilt=0.0):
    """Depths [H, W] in metres of a ball half sunk into a conveyor, the camera's pose, and the ball's pixels above 2 cm.

    The camera is 2 m above the conveyor and looks down at 45 degrees; `tilt` turns the whole world about x, in degrees.
    """
    turn, eye = about_x(-45).T, np.array([0, -2.0, -1.0])
    v, u = np.mgrid[:SIDE, :SIDE]
    rays = np.stack([(u - 256) / FOCAL, (v - 256) / FOCAL, np.ones(u.shape)], -1) @ turn
    depth = -eye[1] / rays[..., 1]
    towards = eye - [0.1, 0, 1.0]
    a, b, c = (rays**2).sum(-1), rays @ towards, towards @ towards - 0.3**2
    with np.errstate(invalid="ignore"):
        ball = (-b - np.sqrt(b**2 - a * c)) / a
    hit = ball < depth
    depth = np.where(hit, ball, depth)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn @ about_x(tilt).T, -turn @ eye
    return depth, pose, hit & ((eye + rays * depth[..., None])[..., 1] <= -0.02)


def write_scan(data, name, defects=(), meta=True, tilt=0.0, private=False):
    data.mkdir(parents=True, exist_ok=True)
    depth, pose, _ = scene(tilt)
    low, high = float(depth.min()), float(depth.max())
    Image.fromarray(np.rint((depth - low) / (high - low) * 65535).astype(np.uint16)).save(data / f"{name}_depth.png")
    (data / f"{name}_info_depth.yaml").write_text(yaml.safe_dump({"normalization": {"min": low, "max": high}}))
    np.savetxt(data / f"{name}_pose.txt", pose)
    for k in range(6):
        Image.new("RGB", (SIDE, SIDE), (40 * k, 9, 9)).save(data / f"{name}_image_{k}.png")
    if private:
        return
    for kind in (*KINDS, None):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        if kind in defects or (kind is None and defects):
            mask[250:260, 256:271] = 255
        Image.fromarray(mask).save(data / f"{name}_{kind}_mask.png" if kind else data / f"{name}_mask.png")
    if meta:
        (data / f"{name}_metadata.yaml").write_text(f"anomalous: {int(bool(defects))}\n")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("Süße Daten") / "Eyecandies"
    test = root / "Candy Cane" / "test_public" / "data"
    write_scan(test, "00", ("dents",))
    write_scan(test, "01")
    write_scan(test, "7", ("bumps", "colors"), meta=False, tilt=20)
    write_scan(test, "100", meta=False)
    write_scan(root / "Candy Cane" / "train" / "data", "000")
    write_scan(root / "Candy Cane" / "val" / "data", "00")
    write_scan(root / "Candy Cane" / "test_private" / "data", "000", private=True)
    return root


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / made.name)


def test_finds_scans_and_labels(made):
    reader = open_reader("eyecandies", made.parent)
    assert reader.categories() == ["Candy Cane"]
    samples = reader.samples("Candy Cane")
    assert [(s.id, s.defect, s.label, s.mask_path is None) for s in samples] == [
        ("00", "dents", 1, False), ("01", "good", 0, True), ("7", "bumps+colors", 1, False), ("100", "good", 0, True)]
    assert [(s.id, s.label) for s in reader.samples("Candy Cane", "train")] == [("000", 0)]
    assert [s.id for s in reader.samples("Candy Cane", "validation")] == ["00"]
    assert reader.samples("Candy Cane", "test_private") == []
    with pytest.raises(DataError, match="did you mean 'Candy Cane'"):
        reader.samples("CandyCane")


def documented(data, name, pixels):
    """Points by the data set's own formula, pixel by pixel: inv(K @ pose) @ (u, v, 1, 1 / d) * d, then the published turn."""
    levels = np.asarray(Image.open(data / f"{name}_depth.png"))
    span = yaml.safe_load((data / f"{name}_info_depth.yaml").read_text())["normalization"]
    intrinsics = np.diag([FOCAL, FOCAL, 1, 1])
    intrinsics[0, 2] = intrinsics[1, 2] = 256
    back = np.linalg.inv(intrinsics @ np.loadtxt(data / f"{name}_pose.txt"))
    points = []
    for v, u in pixels:
        d = levels[v, u] / 65535.0 * (span["max"] - span["min"]) + span["min"]
        x, y, z, _ = back @ [u, v, 1, 1 / d] * d
        points.append([0.1 * x, -0.1 * z, 0.1 * y])
    return np.array(points)


@pytest.mark.parametrize("which", [0, 2])
def test_points_and_foreground(made, which):
    """The third scan is the first in a world turned by 20 degrees."""
    reader = open_reader("eyecandies", made)
    sample = reader.samples("Candy Cane")[which]
    scan = reader.load(sample)
    assert scan.grid == (512, 512) and scan.xyz.shape == (SIDE * SIDE, 3) and scan.xyz.dtype == np.float64
    ball = scene()[2]
    assert (scan.valid.reshape(SIDE, SIDE) != ball).sum() <= 10 and 10_000 < ball.sum() < 40_000
    assert scan.mask.sum() == 150 and scan.mask.reshape(SIDE, SIDE)[250:260, 256:271].all()
    pixels = np.argwhere(scan.valid.reshape(SIDE, SIDE))[::500]
    expected = documented(made / "Candy Cane" / "test_public" / "data", sample.id, pixels)
    np.testing.assert_allclose(scan.xyz.reshape(SIDE, SIDE, 3)[tuple(pixels.T)], expected, rtol=0, atol=2e-8)
    assert not scan.xyz[~scan.valid].any()
    radius = np.linalg.norm(scan.xyz[scan.valid] - np.array([0.1, 0, 1.0]) @ about_x([0, 0, 20][which]).T
                            @ np.array([[0.1, 0, 0], [0, 0, 0.1], [0, -0.1, 0]]), axis=1)
    np.testing.assert_allclose(radius, 0.03, atol=1e-5)


def test_the_light_is_a_choice(made):
    sample = Eyecandies(made).samples("Candy Cane")[1]
    assert (Eyecandies(made).load(sample).rgb[0, 0] == [160, 9, 9]).all()
    assert (open_reader("eyecandies", made, image=5).load(sample).rgb[0, 0] == [200, 9, 9]).all()
    with pytest.raises(DataError, match="images 0 to 5, not 6"):
        open_reader("eyecandies", made, image=6)


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _text(text):
    return lambda path: path.write_text(text)


BROKEN = {
    "cut depth": ("depth.png", _cut, "not a readable picture"),
    "8 bits": ("depth.png", lambda p: Image.new("L", (512, 512)).save(p), "expected 16 bits a pixel, found mode L"),
    "size": ("depth.png", lambda p: Image.fromarray(np.ones((64, 512), np.uint16)).save(p), "512 x 64 pixels where 512 x 512"),
    "flat": ("depth.png", lambda p: Image.fromarray(np.full((512, 512), 9, np.uint16)).save(p), "262144 pixels are background"),
    "no info": ("info_depth.yaml", lambda p: p.unlink(), "no such file"),
    "odd info": ("info_depth.yaml", _text("normalization: 3"), "no 'normalization'"),
    "no min": ("info_depth.yaml", _text("normalization: {max: 3.0}"), "'min' should be a number, found None"),
    "no yaml": ("info_depth.yaml", _text("a: [1"), "not readable as yaml"),
    "a word": ("info_depth.yaml", _text("nothing"), "expected keys with values"),
    "falling": ("info_depth.yaml", _text("normalization: {max: 1.0, min: 2.0}"), "depths from 2.0 to 1.0 m"),
    "no pose": ("pose.txt", lambda p: p.unlink(), "no such file"),
    "cut pose": ("pose.txt", _text("1 0 0 0\n0 1 0 0\n"), "invertible 4 x 4"),
    "flat pose": ("pose.txt", _text("1 0 0 0\n" * 4), "invertible 4 x 4"),
    "pose of words": ("pose.txt", _text("one two"), "not a matrix of numbers"),
    "mask size": ("mask.png", lambda p: Image.new("L", (10, 10), 255).save(p), "10 x 10 pixels"),
    "no mask": ("mask.png", lambda p: p.unlink(), "without ground truth"),
    "cut mask": ("mask.png", _cut, "not a readable picture"),
    "no image": ("image_4.png", lambda p: p.unlink(), "no such file"),
    "wide image": ("image_4.png", lambda p: Image.fromarray(np.ones((512, 512), np.uint16)).save(p), "expected 8 bits"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named(root, kind):
    item, spoil, message = BROKEN[kind]
    reader = open_reader("eyecandies", root)
    sample = reader.samples("Candy Cane")[0]
    path = root / "Candy Cane" / "test_public" / "data" / f"00_{item}"
    spoil(path)
    with pytest.raises(DataError, match=message) as error:
        reader.load(sample)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_mask_costs_its_scan_alone(root):
    data = root / "Candy Cane" / "test_public" / "data"
    reader = open_reader("eyecandies", root)
    count = len(reader.samples("Candy Cane"))
    for kind in ("", "bumps_"):
        _cut(data / f"00_{kind}mask.png")
    samples = reader.samples("Candy Cane")
    assert len(samples) == count and samples[0].label == 1
    with pytest.raises(DataError, match="00_mask.png: not a readable picture"):
        reader.load(samples[0])
    reader.load(samples[1])
    _cut(data / "7_bumps_mask.png")  # names the defect alone: left out, saying so
    assert (scan := reader.samples("Candy Cane")[2]).defect == "colors" and reader.load(scan).mask.any()
    assert any("7_bumps_mask.png" in line for line in reader.listing.lines())
    (data / "00_metadata.yaml").unlink()
    with pytest.raises(DataError, match="00_mask.png: not a readable picture"):  # nothing else says what the scan is
        reader.samples("Candy Cane")


def test_broken_labels_are_named(root):
    data = root / "Candy Cane" / "test_public" / "data"
    reader = open_reader("eyecandies", root)
    (data / "00_metadata.yaml").write_text("anomalous: 0")
    with pytest.raises(DataError, match="00_metadata.yaml: says 'anomalous: 0', but 00_mask.png is not empty"):
        reader.samples("Candy Cane")
    (data / "00_metadata.yaml").write_text("bumps: 0")
    with pytest.raises(DataError, match="00_metadata.yaml: 'anomalous' should be a number"):
        reader.samples("Candy Cane")
    (data / "00_metadata.yaml").write_text("anomalous: 1")
    for kind in KINDS:
        (data / f"00_{kind}_mask.png").unlink()
    assert reader.samples("Candy Cane")[0].defect == "defect"
    (data / "100_mask.png").unlink()
    with pytest.raises(DataError, match="100_depth.png: test scan with neither 100_mask.png nor 100_metadata.yaml"):
        reader.samples("Candy Cane")


def test_the_sample_scans(shared_data):
    reader = open_reader("eyecandies", shared_data / "eyecandies")
    manifest = json.loads((shared_data / "manifest.json").read_text())["eyecandies"]
    folders = {"train": "train", "validation": "val", "test": "test_public"}
    kinds = {"good": "good", "dent": "dents", "bump": "bumps", "color": "colors", "normal": "normals"}
    assert reader.categories() == sorted(name.capitalize() for name in manifest)
    for name, rows in manifest.items():
        rows = {row["file"]: row for row in rows if not row["file"].startswith("test_private")}
        found = {f"{folder}/data/{sample.id}": sample for split, folder in folders.items()
                 for sample in reader.samples(name.capitalize(), split)}
        assert found.keys() == rows.keys()
        for file, row in rows.items():
            sample, scan = found[file], reader.load(found[file])
            assert (sample.label, sample.defect, scan.mask.sum()) == (row["label"], kinds[row["kind"]], row["anomalous_pixels"])
            # The published threshold, 2 cm above the conveyor, takes up to 4 pixels at the foot of an object.
            assert 0 <= row["object_pixels"] - scan.valid.sum() <= 4
            if file.endswith("0"):
                pixels = np.argwhere(scan.valid.reshape(SIDE, SIDE))[::400]
                data = reader.root / name.capitalize() / folders[sample.split] / "data"
                expected = documented(data, sample.id, pixels).astype(np.float32)
                np.testing.assert_allclose(scan.xyz.reshape(SIDE, SIDE, 3)[tuple(pixels.T)], expected, rtol=0, atol=2e-8)
