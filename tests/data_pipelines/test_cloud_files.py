"""PCD, PLY and NPY files: any mix of types, names and layouts; doubles stay doubles; what is broken is said in one line."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.clouds.files import read_array, read_cloud
from data_pipelines.datasets.truth import read_colours
from data_pipelines.scan import DataError
from tests.cloud_writers import pcd, ply
from tests.scans import ellipsoid

FAR = np.array([4_512_345.678901, 5_398_765.432109, 320.123456789])  # survey coordinates: float32 keeps half a metre
XYZ = ellipsoid(60, 0)[0] + FAR
SMALL = ellipsoid(60, 1)[0]


def refused(path, content, message):
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_cloud(path)
    assert message in str(caught.value) and str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def columns(xyz, dtype, names="xyz"):
    return [(name, xyz[:, at].astype(dtype)) for at, name in enumerate(names)]


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_pcd_of_any_types_names_and_order(tmp_path, data):
    rng, path = np.random.default_rng(0), tmp_path / "a.pcd"
    others = [("intensity", rng.integers(0, 9, 60).astype("u2")), ("_", np.zeros((60, 5), "u1")),
              ("fpfh", rng.normal(size=(60, 3))), ("label", rng.integers(-5, 5, 60).astype("i8")),
              ("ring", rng.integers(0, 200, 60).astype("u1"))]
    path.write_bytes(pcd([("rgb", np.zeros(60, "f4")), *columns(XYZ, "f8", "XYZ"), *others], data))
    read = read_cloud(path)
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, XYZ)
    for kinds in itertools.product(("f4", "f8", "i2"), ("f8", "i4", "u1"), ("i8", "u4", "i1")):
        whole = np.rint(SMALL + [0, 90, 0]).clip(-120, 250)
        axis = dict(zip("xyz", (whole[:, at].astype(kind) for at, kind in enumerate(kinds))))
        mixed = [others[0], ("z", axis["z"]), others[1], ("X", axis["x"]), others[2], ("y", axis["y"])]
        path.write_bytes(pcd(mixed, data))
        np.testing.assert_array_equal(read_cloud(path), np.stack([axis["x"], axis["y"], axis["z"]], 1).astype(float))


def test_pcd_as_other_programs_write_it(tmp_path):
    import open3d as o3d

    path = tmp_path / "a.PCD"
    for compressed, text in ((True, False), (False, False), (False, True)):
        o3d.io.write_point_cloud(str(tmp_path / "a.pcd"), o3d.geometry.PointCloud(o3d.utility.Vector3dVector(SMALL)),
                                 write_ascii=text, compressed=compressed)
        path.write_bytes((tmp_path / "a.pcd").read_bytes())
        np.testing.assert_allclose(read_cloud(path), SMALL, rtol=1e-6)
    content = pcd(columns(SMALL, "f8"))
    old = content.replace(b"COUNT 1 1 1\n", b"").replace(b"FIELDS", b"# a comment\r\nFIELDS").replace(b"HEIGHT 1\n", b"")
    path.write_bytes(old)
    np.testing.assert_array_equal(read_cloud(path), SMALL)
    path.write_bytes(content.split(b"DATA")[0].replace(b"\n", b"\r\n") + b"DATA binary\r\n" + content.split(b"DATA binary\n")[1])
    np.testing.assert_array_equal(read_cloud(path), SMALL)
    with_nan = SMALL.copy()
    with_nan[3], with_nan[7, 1] = np.nan, np.nan
    for data in ("ascii", "binary", "binary_compressed"):
        path.write_bytes(pcd(columns(with_nan, "f4"), data))
        np.testing.assert_array_equal(read_cloud(path), with_nan.astype(np.float32))


@pytest.mark.parametrize("data", ["ascii", "binary", "binary_compressed"])
def test_broken_pcd(tmp_path, data):
    good, path = pcd(columns(SMALL, "f4"), data), tmp_path / "a.pcd"
    for old, new, message in (
        (b"WIDTH 60", b"WIDTH 61", "says 60 points and 61 x 1"), (b"POINTS 60", b"POINTS 4294967295", "4294967295 points"),
        (b"SIZE 4 4 4", b"SIZE 4 4", "2 sizes"), (b"SIZE 4 4 4", b"SIZE 4294967295 4 4", "F of 4294967295 bytes"),
        (b"SIZE 4 4 4", b"SIZE -4 4 4", "SIZE is '-4 4 4'"), (b"TYPE F F F", b"TYPE Q F F", "Q of 4 bytes"),
        (b"COUNT 1 1 1", b"COUNT 0 1 1", "fields of no numbers"), (b"x y z", b"x y q", "no fields x, y and z (found: x, y, q)"),
        (b"x y z", b"x y X", "no fields x, y and z"), (b"DATA " + data.encode(), b"DATA elsewhere", "unknown kind of PCD data"),
        (b"DATA", b"DATEN", "no complete header"), (b"FIELDS x y z", b"FIELDS", "names 0 fields"),
    ):
        refused(path, good.replace(old, new), message)
    refused(path, pcd([*columns(SMALL, "f4"), ("X", SMALL[:, 0])], data), "several columns could be x, y and z")
    refused(path, good.replace(b"H 60", b"H 61").replace(b"S 60", b"S 61"), str(path))
    refused(path, good.replace(b"H 60", b"H 30").replace(b"S 60", b"S 30"), str(path))  # more points than said
    refused(path, good[:-20], str(path))
    huge = good.replace(b"H 60", b"H 999999999999").replace(b"S 60", b"S 999999999999")
    refused(path, huge, "999999999999")
    refused(path, good.replace(b"COUNT 1 1 1", b"COUNT 999999999999 1 1"), str(path))
    refused(path, good.replace(b"H 60", b"H 0").replace(b"S 60", b"S 0"), "holds no points")
    if data == "binary_compressed":
        start = good.index(b"compressed\n") + 19
        refused(path, good[: start - 4] + b"\xff\xff\xff\xff" + good[start:], "damaged")
        refused(path, good[:start] + b"\xff\xff\xff" + good[start + 3 :], "damaged")


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_ply_of_any_types_and_elements(tmp_path, form, end):
    path, rng = tmp_path / "a.ply", np.random.default_rng(0)
    colour = ("red", rng.integers(0, 255, 60).astype("u1"))
    order = ">" if "big" in form else "<"

    def face(corners):
        row = np.array(corners, order + "i4")
        text = " ".join(map(str, [len(row), *row])) + end
        return text.encode() if form == "ascii" else bytes([len(row)]) + row.tobytes()

    faces = {"lines": ["element face 2", "property list uchar int vertex_indices"], "body": face([0, 1, 2]) + face([1, 2, 3, 4])}
    camera = {"lines": ["element camera 1", "property double view_px"],
              "body": (b"1.5" + end.encode()) if form == "ascii" else np.array(1.5, order + "f8").tobytes()}
    ragged = [list(range(i % 4)) for i in range(60)]
    expected = [*columns(XYZ, "f8")]
    for layout in (expected, [colour, *expected[::-1]], [*columns(XYZ, "f8", "XYZ"), colour]):
        for options in ({}, {"lists": ragged}, {"before_lines": camera["lines"], "before": camera["body"]},
                        {"before_lines": faces["lines"], "before": faces["body"]},
                        {"after_lines": faces["lines"], "after": faces["body"], "lists": ragged}):
            path.write_bytes(ply(layout, form, end=end, **options))
            read = read_cloud(path)
            assert read.dtype == np.float64
            np.testing.assert_array_equal(read, XYZ)
    whole = np.rint(SMALL - SMALL.min(0))
    for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "f4"):
        path.write_bytes(ply(columns(whole, kind), form, end=end))
        np.testing.assert_array_equal(read_cloud(path), whole)


def test_ply_of_old_macs_whose_body_begins_like_a_line_end(tmp_path):
    xyz = SMALL.copy()
    xyz[0, 0] = np.frombuffer(b"\n\n\x00\x00\x00\x00\xf0?", "<f8")[0]
    for end in ("\r", "\n", "\r\n"):
        (tmp_path / "a.ply").write_bytes(ply(columns(xyz, "f8"), end=end))
        np.testing.assert_array_equal(read_cloud(tmp_path / "a.ply"), xyz)


@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_broken_ply(tmp_path, form):
    path, good = tmp_path / "a.ply", ply(columns(SMALL, "f4"), form)
    for old, new, message in (
        (b"vertex 60", b"vertex 999999999999", "truncated"), (b"vertex 60", b"vertex 61", "truncated"),
        (b"vertex 60", b"vertex 59", "59"), (b"vertex 60", b"vertex -1", "not understood"),
        (b"vertex 60", b"vertex 0", "no points"),
        (b"element vertex", b"element face", "without vertices"),
        (b"property float x", b"property floot x", "'property floot x' is not understood"),
        (b"float z", b"float nz", "no fields x, y and z (found: x, y, nz)"), (b"end_header", b"no_header", "no complete header"),
        (b"format " + form.encode(), b"format strange", "not understood"),
        (b"format " + form.encode() + b" 1.0\n", b"", "format"),
        (b"element vertex", b"element vertex 1\nproperty float q\nelement vertex", "names an element twice"),
        (b"property float z", b"property float z\nproperty list uchar int view", "line" if form == "ascii" else str(path)),
        (b"property float z", b"property float z\nproperty list float int view", "not understood"),
    ):
        refused(path, good.replace(old, new, 1), message)
    refused(path, good[:-20], str(path))
    refused(path, good[:30], "no complete header")


def test_npy_arrays(tmp_path):
    path = tmp_path / "a.npy"
    for array, expected in (
        (XYZ, XYZ), (np.asfortranarray(XYZ), XYZ), (XYZ.astype(">f8"), XYZ), (SMALL.astype("f4"), SMALL.astype("f4")),
        (np.rint(SMALL).astype("i2"), np.rint(SMALL)), (np.c_[SMALL, SMALL], SMALL), (np.c_[np.arange(60), SMALL], SMALL),
        (SMALL.reshape(6, 10, 3), SMALL), (np.float16(SMALL), np.float16(SMALL)),
        (np.rec.fromarrays([SMALL[:, 2], SMALL[:, 0], SMALL[:, 1]], names="z,X,y"), SMALL),
    ):
        np.save(path, array)
        read = read_cloud(path)
        assert read.dtype == np.float64
        np.testing.assert_array_equal(read, expected)
    for array, message in ((np.array([{}], object), "Python objects"), (XYZ.T, "write its transpose"), (XYZ[:, :2], "shape"),
                           (XYZ[:0], "empty"), (XYZ.astype(complex), "complex"), (np.array(3.0), "shape (points")):
        np.save(path, array, allow_pickle=True)
        refused(path, path.read_bytes(), message)
    np.save(path, XYZ)
    good = path.read_bytes()
    for old, new, message in ((b"(60, 3)", b"(4294967295, 3)", "damaged"), (b"(60, 3)", b"(-1, 3)", "shape"),
                              (b"'<f8'", b"'<f4'", "damaged"), (b"), }", b"), \xaa", "header"), (b"(60, 3)", b"((((((", "header"),
                              (b"\x93NUMPY\x01", b"\x93NUMPY\x09", "header"), (b"\x93NUMPY", b"\x93NUMPi", "header")):
        refused(path, good.replace(old, new), message)
    refused(path, good[:-8], "damaged")
    with pytest.raises(DataError, match="no such file"):
        read_array(tmp_path / "b.npy")


def test_colours_of_every_layout(tmp_path):
    marked = np.arange(60) % 3 == 0
    byte = np.where(marked, 255, 40).astype("u1")
    bits = byte.astype("u4") * 0x010101
    for name, content in [
        *((f"{data}.pcd", pcd([*columns(SMALL, "f4"), ("rgb", packed)], data))
          for data in ("ascii", "binary", "binary_compressed") for packed in (bits, bits.view("f4"))),
        ("rgba.pcd", pcd([("rgba", bits | 0xFF000000), *columns(SMALL, "f8")])),
        *((f"{form}.ply", ply([*columns(SMALL, "f4"), ("red", c), ("green", c), ("blue", c)], form))
          for form in ("ascii", "binary_big_endian") for c in (byte, (byte / 255).astype("f4"), (byte.astype("u2") * 257))),
    ]:
        (tmp_path / name).write_bytes(content)
        np.testing.assert_array_equal(read_colours(tmp_path / name), marked)
    (tmp_path / "none.ply").write_bytes(ply(columns(SMALL, "f4")))
    with pytest.raises(DataError, match="no colours to mark defects with"):
        read_colours(tmp_path / "none.ply")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4812311\n"
NOT_CLOUDS = {
    "git-lfs pointer": POINTER,
    "web page": b"<!DOCTYPE html><html><body>Quota exceeded</body></html>",
    "a web page, not": b"\xef\xbb\xbf\n <HTML><head>",
    "the file is empty": b"",
    "zip archive": b"PK\x03\x04\x14\0\0\0",
    "gzip": b"\x1f\x8b\x08\0\0",
    "PNG": b"\x89PNG\r\n",
    "JPEG": b"\xff\xd8\xff\xe0\0",
    "TIFF": b"II*\0\x08\0\0\0",
    "PDF": b"%PDF-1.7\n",
    "JSON": b'{"points": [[1, 2, 3]]}',
    "JSON file": b"[[1, 2, 3], [4, 5, 6]]",
    "XML": b'<?xml version="1.0"?><a/>',
    "zero bytes": b"\0" * 900,
    "LAS": b"LASF\0\0",
    "E57": b"ASTM-E57\1",
    "tar archive": b"a".ljust(257, b"\0") + b"ustar\0",
    "STL mesh": b"solid a\n facet normal 0 0 1\n",
    "Office": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "conflict": b"<<<<<<< HEAD\n1 2 3\n",
}


@pytest.mark.parametrize("kind", [".pcd", ".ply", ".npy", ".txt", ".xyz", ".csv", ".PLY"])
def test_says_what_a_file_is(tmp_path, kind):
    for what, content in NOT_CLOUDS.items():
        refused(tmp_path / f"scan{kind}", content, what)
    other = tmp_path / ("scan.ply" if kind.lower() != ".ply" else "scan.pcd")
    other.write_bytes(ply(columns(SMALL, "f4")) if other.suffix == ".ply" else pcd(columns(SMALL, "f4")))
    refused(tmp_path / f"scan{kind}", other.read_bytes(), f"rename it to end in {other.suffix}")
    (tmp_path / f"folder{kind}").mkdir()
    (tmp_path / f"link{kind}").symlink_to(tmp_path / "nowhere")
    for name, message in ((f"folder{kind}", "a folder"), (f"none{kind}", "no such file"), (f"link{kind}", "a link to nothing")):
        with pytest.raises(DataError, match=message):
            read_cloud(tmp_path / name)


def test_formats_that_are_not_read(tmp_path):
    for kind, message in ((".ptx", "Leica PTX"), (".stl", "STL mesh"), (".obj", "OBJ mesh"), (".abc", "unknown cloud format")):
        refused(tmp_path / f"a{kind}", b"1 2 3\n" * 20, message)


CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no shared cases beside the project ({CASES})")
class TestCases:
    """The files that failed for others."""

    @pytest.mark.parametrize("folder", ["not_a_cloud", "mutated"])
    def test_refused(self, folder):
        for path in sorted((CASES / folder).iterdir()):
            with pytest.raises(DataError) as caught:
                read_cloud(path)
            assert "\n" not in str(caught.value) and "write it again" not in str(caught.value).split(";")[0]

    def test_all_exports_hold_the_same_points(self):
        folder = CASES / "text_exports"
        plain = np.loadtxt(folder / "plain.xyz")
        for path in sorted(folder.glob("*.*")):
            np.testing.assert_array_equal(read_cloud(path), plain, err_msg=path.name)

    def test_engineer_formats(self):
        folder = CASES / "engineer_formats"
        truth = np.loadtxt(folder / "header.csv", skiprows=1, delimiter=",")
        same = ("cloudcompare_count.txt", "decimal_comma.csv", "index_first.txt", "semicolon.csv", "scanner.pts")
        for name in same:
            np.testing.assert_array_equal(read_cloud(folder / name), truth, err_msg=name)
        for name, rows in (("bom.csv", 2000), ("cloudcompare_head.txt", 399)):
            np.testing.assert_array_equal(read_cloud(folder / name), truth[:rows], err_msg=name)
        organised = read_cloud(folder / "organised_nan.pcd")
        seen = np.isfinite(organised).all(1)
        assert len(organised) == 20000 and 0 < (~seen).sum() < 2000
        far = read_cloud(folder / "utm_double.ply")
        assert len(np.unique(far, axis=0)) == len(np.unique(truth, axis=0))
        assert len(read_cloud(folder / "mesh_800_faces.ply")) == 414
        for name, what in (("leica.ptx", "PTX"), ("scan.las", "LAS"), ("scan.laz", "LAZ"), ("scan.e57", "E57")):
            with pytest.raises(DataError, match=what):
                read_cloud(folder / name)

    def test_doubles_and_names(self):
        folder = CASES / "pcd_doubles_and_names"
        double, single = (read_cloud(folder / name) for name in ("double_binary.pcd", "upper_case_fields.pcd"))
        np.testing.assert_allclose(double, single, rtol=1e-6)
        assert (double != single).any()  # all digits of the doubles

    def test_fine(self):
        import open3d as o3d

        for path in sorted((CASES / "fine_today").glob("*.*")):
            points = np.asarray(o3d.io.read_point_cloud(str(path)).points)
            np.testing.assert_array_equal(read_cloud(path), points, err_msg=path.name)
