"""Scans as engineers have them: every format, what else its rows say, and what is wrong with a file in one line."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.clouds import kinds
from data_pipelines.clouds.loading import LOADERS, colours_in, load_scan
from data_pipelines.clouds.sampling import clean
from data_pipelines.scan import DataError
from tests.cloud_writers import pcd, ply
from tests.scans import ellipsoid

XYZ = np.round(ellipsoid(60, 0)[0] * 10, 3)
FAR = XYZ + [4_512_345.25, 5_398_765.5, 320.125]
COLOURS = np.random.default_rng(0).integers(0, 256, (60, 3)).astype(np.uint8)


def columns(xyz=XYZ, dtype="f8"):
    return [(name, xyz[:, at].astype(dtype)) for at, name in enumerate("xyz")]


def tinted():
    return [(name, COLOURS[:, at]) for at, name in enumerate(("red", "green", "blue"))]


def refused(path: Path, content: bytes, said: str, **options) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        load_scan(path, **options)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_attributes_and_colours_of_ply_and_pcd(tmp_path):
    quality = ("quality", np.linspace(0, 1, 60).astype("f4"))
    for name, write in (("a.ply", ply), ("a.pcd", pcd)):
        (tmp_path / name).write_bytes(write([*columns(FAR), *tinted(), quality]))
        found = load_scan(tmp_path / name)
        np.testing.assert_array_equal(found.xyz, FAR)
        np.testing.assert_array_equal(found.colours, COLOURS)
        assert list(found.attributes) == ["red", "green", "blue", "quality"] and found.attributes["quality"].dtype == np.float32
        assert found.attributes["red"].dtype == np.uint8
        line = found.understood(clean(found.xyz, name).valid)
        assert "60 of 60 rows" in line and "with colours" in line and "x, y, z, red" in line and "\n" not in line


def test_colours_however_they_are_written():
    red, green, blue = COLOURS.T
    packed = (red.astype("u4") << 16 | green.astype("u4") << 8 | blue).view("f4")
    for given in ({"rgb": packed}, {"R": red / 255, "G": green / 255, "B": blue / 255},
                  {"red": red, "green": green, "blue": blue},
                  {"red": red.astype("u2") * 257, "green": green.astype("u2") * 257, "blue": blue.astype("u2") * 257},
                  {"r": red.astype(float), "g": green.astype(float), "b": blue.astype(float)}):  # fmt: skip
        np.testing.assert_array_equal(colours_in(given), COLOURS)
    assert colours_in({"red": red, "green": green}) is None


def test_text_keeps_its_other_columns(tmp_path):
    rows = np.column_stack([XYZ, COLOURS, np.arange(60) / 7])
    path = tmp_path / "a.csv"
    np.savetxt(path, rows, delimiter=";", header="X;Y;Z;R;G;B;deviation", comments="", fmt="%.6f")
    found = load_scan(path)
    np.testing.assert_array_equal(found.xyz, XYZ)
    np.testing.assert_array_equal(found.colours, COLOURS)
    np.testing.assert_allclose(found.attributes["deviation"], np.arange(60) / 7, atol=1e-6)
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    np.testing.assert_array_equal(load_scan(packed).attributes["deviation"], found.attributes["deviation"])
    np.savetxt(tmp_path / "a.pts", np.column_stack([XYZ, np.zeros(60), COLOURS]), header="60", comments="")
    np.testing.assert_array_equal(load_scan(tmp_path / "a.pts").colours, COLOURS)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0] + ";operator", *(f"{line};Ann B" for line in lines[1:])]) + "\n")
    np.testing.assert_array_equal(load_scan(path).xyz, XYZ)  # words in other columns


def test_columns_that_the_user_chooses(tmp_path):
    path = tmp_path / "a.txt"
    np.savetxt(path, np.column_stack([np.arange(60) * 3, XYZ]))
    with pytest.raises(DataError, match="growing whole numbers"):
        load_scan(path)
    np.testing.assert_array_equal(load_scan(path, columns=("2", "3", "4")).xyz, XYZ)
    refused(path, path.read_bytes(), "the rows have 4 columns", columns=("2", "3", "9"))
    refused(path, path.read_bytes(), "no line names columns a, b, c", columns=("a", "b", "c"))
    np.savetxt(path, np.column_stack([XYZ, XYZ + 1]), header="px py pz qx qy qz", comments="")
    np.testing.assert_array_equal(load_scan(path, columns=("qx", "qy", "qz")).xyz, XYZ + 1)
    (tmp_path / "a.ply").write_bytes(ply([("u", XYZ[:, 0]), ("v", XYZ[:, 1]), ("w", XYZ[:, 2])]))
    np.testing.assert_array_equal(load_scan(tmp_path / "a.ply", columns=("u", "v", "3")).xyz, XYZ)
    np.save(tmp_path / "a.npy", np.column_stack([np.ones(60), XYZ]))
    np.testing.assert_array_equal(load_scan(tmp_path / "a.npy", columns=("2", "3", "4")).xyz, XYZ)
    refused(tmp_path / "a.stl", b"x", "can be chosen of .ply", columns=("1", "2", "3"))


def ptx(xyz, colours=None, shift=(0, 0, 0), height=6):
    lines = [f"{len(xyz) // height}", f"{height}", "0 0 0", "1 0 0", "0 1 0", "0 0 1"]
    lines += ["0 1 0 0", "-1 0 0 0", "0 0 1 0", f"{shift[0]} {shift[1]} {shift[2]} 1"]  # a quarter turn about z
    for at, (x, y, z) in enumerate(xyz):
        lines.append(f"{x} {y} {z} 0.5" + ("" if colours is None else " " + " ".join(map(str, colours[at]))))
    return "\n".join(lines) + "\n"


def test_ptx_of_two_scans_each_at_its_place(tmp_path):
    lost = XYZ.copy()
    lost[5] = 0
    path = tmp_path / "a.ptx"
    path.write_text(ptx(lost, COLOURS, (100, 0, 0)) + ptx(XYZ, COLOURS))
    found = load_scan(path)
    turned = np.column_stack([-XYZ[:, 1], XYZ[:, 0], XYZ[:, 2]])
    np.testing.assert_allclose(found.xyz[60:], turned, atol=1e-12)
    assert np.isnan(found.xyz[5]).all() and "of 2 scans" in found.what
    np.testing.assert_allclose(np.delete(found.xyz[:60], 5, 0), np.delete(turned, 5, 0) + [100, 0, 0], atol=1e-12)
    np.testing.assert_array_equal(found.colours, np.concatenate([COLOURS, COLOURS]))
    text = ptx(XYZ)
    for wrong, said in ((text.replace("10\n6\n", "10\n7\n", 1), "says 10 x 7 points, 60 lines are left"),
                        (text[:-30], "truncated|one length"), (text.replace("1 0 0\n", "1 0\n", 1), "line 1: no PTX header"),
                        (text.replace("0.5", "half", 1), "line 11"), ("x y z\n" + text, "line 1: no PTX")):  # fmt: skip
        refused(path, wrong.encode(), said)


@pytest.mark.parametrize("kind", ["las", "laz"])
def test_las_and_laz(tmp_path, kind):
    laspy = pytest.importorskip("laspy", reason="the extra [las] is not installed")
    header = laspy.LasHeader(point_format=3, version="1.2")
    header.scales, header.offsets = [1e-3] * 3, FAR[0]
    header.add_extra_dim(laspy.ExtraBytesParams("deviation", np.float64))
    made = laspy.LasData(header)
    made.x, made.y, made.z = FAR.T
    made.red, made.green, made.blue = (COLOURS.astype("u2") * 257).T
    made.deviation = np.arange(60) / 7
    path = tmp_path / f"a.{kind}"
    made.write(path)
    found = load_scan(path)
    np.testing.assert_allclose(found.xyz, FAR, atol=1e-6)
    np.testing.assert_array_equal(found.colours, COLOURS)
    np.testing.assert_array_equal(found.attributes["deviation"], np.arange(60) / 7)
    content = path.read_bytes()
    refused(path, content[:-200], "truncated|damaged")
    refused(path, content[:50], "damaged")
    refused(path, b"not a scan at all" * 9, "by its content")
    refused(tmp_path / "a.txt", content, "rename it to end in .las")


def test_e57_of_two_scans_each_at_its_place(tmp_path):
    pye57 = pytest.importorskip("pye57", reason="the extra [e57] is not installed")
    path = tmp_path / "a.e57"
    data = {f"cartesian{axis}": XYZ[:, at].copy() for at, axis in enumerate("XYZ")}
    data |= {f"color{name}": COLOURS[:, at].copy() for at, name in enumerate(("Red", "Green", "Blue"))}
    with pye57.E57(str(path), mode="w") as file:
        file.write_scan_raw(data)
        file.write_scan_raw(data, translation=np.array([100.0, 0, 0]))
    found = load_scan(path)
    np.testing.assert_allclose(found.xyz[:60], XYZ, atol=1e-6)
    np.testing.assert_allclose(found.xyz[60:], XYZ + [100, 0, 0], atol=1e-6)
    assert found.unit == "m" and "2 scans" in found.what
    np.testing.assert_array_equal(found.colours[60:], COLOURS)
    content = path.read_bytes()
    refused(path, content[:-100], "damaged")
    refused(path, b"ASTM-E57" + b"\0" * 500, "damaged")


CORNERS = np.array([[0, 0, 0], [4, 0, 0], [4, 2, 0], [0, 2, 0], [0, 0, 1], [4, 0, 1], [4, 2, 1], [0, 2, 1]], float)
SQUARES = [[0, 3, 2, 1], [4, 5, 6, 7], [0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7]]
FACES = np.array([corner for a, b, c, d in SQUARES for corner in ([a, b, c], [a, c, d])])


def mesh_file(kind: str, corners: np.ndarray) -> bytes:
    if kind == ".stl":
        body = b"".join(struct.pack("<12fH", 0, 0, 0, *corners[face].ravel(), 0) for face in FACES)
        return b"\0" * 80 + struct.pack("<I", len(FACES)) + body
    if kind == ".obj":
        return ("".join(f"v {x} {y} {z}\n" for x, y, z in corners) + "mtllib ../secret.mtl\n"
                + "".join(f"f {a + 1} {b + 1} {c + 1}\n" for a, b, c in FACES)).encode()  # fmt: skip
    if kind == ".off":
        return (f"OFF\n{len(corners)} {len(FACES)} 0\n" + "".join(f"{x} {y} {z}\n" for x, y, z in corners)
                + "".join(f"3 {a} {b} {c}\n" for a, b, c in FACES)).encode()  # fmt: skip
    import trimesh

    made = trimesh.Trimesh(corners, FACES, process=False)
    return made.export(file_type=kind[1:])


@pytest.mark.parametrize("kind", [".stl", ".obj", ".off", ".glb", ".ply"])
def test_meshes_are_sampled_evenly_and_the_same_every_time(tmp_path, kind):
    far = np.zeros(3) if kind in (".stl", ".glb") else np.array([4_000_000.0, 0, 0])  # formats of single precision
    path = tmp_path / f"a{kind}"
    path.write_bytes(mesh_file(kind, CORNERS + far))
    found = load_scan(path)
    points = found.xyz - far
    assert "12 faces" in found.what and len(points) == 60_000
    np.testing.assert_array_equal(load_scan(path).xyz, found.xyz)
    on = (np.abs(points[:, :, None] - np.stack([CORNERS.min(0), CORNERS.max(0)], 1)) < 1e-6).any((1, 2))
    assert on.all()
    top = points[points[:, 2] > 1 - 1e-6]
    assert abs(len(top) / len(points) - 8 / 28) < 0.02  # by area: eight of 28
    assert abs((top[:, 0] < 1).mean() - 0.25) < 0.02
    if kind != ".obj":  # whose text says nowhere how much of it there is
        refused(path, path.read_bytes()[: len(path.read_bytes()) // 2], "again")


def test_organised_tiff_without_points_at_its_empty_pixels(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    image = XYZ.reshape(6, 10, 3).astype("f8").copy()
    image[0, 0] = 0
    tifffile.imwrite(tmp_path / "a.tiff", image)
    found = load_scan(tmp_path / "a.tiff")
    assert np.isnan(found.xyz[0]).all() and "6 x 10" in found.what
    np.testing.assert_array_equal(found.xyz[1:], XYZ[1:])


def test_packed_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(kinds, "UNPACKED", 1000)
    refused(tmp_path / "a.csv.gz", gzip.compress(b"1,2,3\n" * 500), "when unpacked")
    refused(tmp_path / "a.xyz.gz", gzip.compress(b"1 2 3\n" * 20)[:-12], "truncated")
    refused(tmp_path / "a.xyz.gz", b"\x1f\x8b" + b"x" * 40, "damaged")
    refused(tmp_path / "a.ply.gz", gzip.compress(b"x"), "unknown scan format '.gz'")


def test_units(tmp_path):
    np.savetxt(tmp_path / "a.xyz", XYZ)
    valid = np.ones(60, bool)
    assert "unit guessed: mm" in load_scan(tmp_path / "a.xyz").understood(valid)
    assert "unit in (" in load_scan(tmp_path / "a.xyz", unit="in").understood(valid)
    np.savetxt(tmp_path / "a.xyz", XYZ / 1000)
    assert "unit guessed: m " in load_scan(tmp_path / "a.xyz").understood(valid)
    with pytest.raises(DataError, match="unknown unit"):
        load_scan(tmp_path / "a.xyz", unit="furlong")


def test_an_ending_that_nobody_knows_says_which_are_known(tmp_path):
    refused(tmp_path / "a.lass", b"x", "did you mean '.las'.; use one of .ply")
    asked = ".ply .pcd .xyz .xyzn .txt .asc .csv .npy .pts .ptx .las .laz .e57 .stl .obj .off .glb .tif .tiff"
    assert set(asked.split()) <= set(LOADERS)


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases" / "engineer_formats"


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no shared cases beside the project ({CASES})")
def test_engineer_formats_hold_the_same_points():
    truth = load_scan(CASES / "header.csv").xyz
    for name in ("cloudcompare_count.txt", "decimal_comma.csv", "index_first.txt", "semicolon.csv", "scanner.pts", "leica.ptx"):
        np.testing.assert_array_equal(load_scan(CASES / name).xyz, truth, err_msg=name)
    for name, extra in (("scan.las", "laspy"), ("scan.laz", "laspy"), ("scan.e57", "pye57")):
        pytest.importorskip(extra)
        np.testing.assert_allclose(load_scan(CASES / name).xyz, truth, atol=1e-6, err_msg=name)
    assert load_scan(CASES / "scanner.pts").colours is not None and "799 faces" in load_scan(CASES / "mesh_800_faces.ply").what
