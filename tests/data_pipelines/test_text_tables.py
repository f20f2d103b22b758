"""Text tables as programs export them: all spellings of one table give its points; what could be read in two ways is refused."""

import numpy as np
import pytest

from data_pipelines.clouds.files import read_cloud
from data_pipelines.datasets.real3d import Real3D
from data_pipelines.datasets.truth import read_labels, read_marks
from data_pipelines.scan import DataError
from tests.scans import ellipsoid

XYZ = np.round(ellipsoid(150, 0)[0], 4)
LABELS = (XYZ[:, 2] > 3).astype(int)
ROWS = [[f"{v:.4f}" for v in row] for row in XYZ]


def lines(delimiter=" ", rows=ROWS, end="\n"):
    return end.join(delimiter.join(row) for row in rows) + end


def comma(text):
    return text.replace(".", ",")


def with_columns(*columns):
    """Rows with more columns: 'x', 'y', 'z', a number, or a function of the row's number."""
    def field(column, i):
        return ROWS[i]["xyz".index(column)] if column in ("x", "y", "z") else str(column(i) if callable(column) else column)

    return [[field(column, i) for column in columns] for i in range(len(ROWS))]


NUMBER = with_columns(lambda i: i, "x", "y", "z")
FROM_ONE = with_columns(lambda i: i + 1, "x", "y", "z", 200)
TEXT = with_columns(lambda i: "wall" if i % 3 else "floor 2", "z", "x", "y")
MANY = with_columns("x", "y", "z", 10, 20, lambda i: i % 256)
GOOD = {
    "spaces": lines(),
    "several spaces": lines("   "),
    "leading spaces": "  " + lines().replace("\n", " \n  "),
    "tabs": lines("\t"),
    "tabs and spaces": lines(" \t "),
    "comma": lines(","),
    "comma and space": lines(", "),
    "bar": lines("|"),
    "semicolon": lines(";"),
    "space before": lines(" ;"),
    "decimal comma;": comma(lines(";")),
    "decimal comma ws": comma(lines()),
    "decimal comma tab": comma(lines("\t")),
    "decimal comma bar": comma(lines(" | ")),
    "trailing comma": lines(",").replace("\n", ",\n"),
    "trailing tab": lines("\t").replace("\n", "\t\n"),
    "trailing semicolons": lines(";").replace("\n", ";;\n"),
    "crlf": lines(",", end="\r\n"),
    "old mac": lines(",", end="\r"),
    "blank lines": "\n\n" + lines().replace("\n", "\n\n"),
    "no last end": lines().rstrip(),
    "dos end": lines(end="\r\n") + "\x1a",
    "count": "150\n" + lines(),
    "count and comment": "# a scan\n150\n" + lines(","),
    "names count": "//X Y Z\n150\n" + lines(),
    "names": "x,y,z\n" + lines(","),
    "NAMES": "X;Y;Z\n" + lines(";"),
    "quoted names": '"x","y","z"\n' + lines(","),
    "names with trailing": "x,y,z,\n" + lines(","),
    "names and rows with trailing": "x,y,z,\n" + lines(",").replace("\n", ",\n"),
    "names above trailing": "x,y,z\n" + lines(",").replace("\n", ",\n"),
    "slashes": "//X Y Z R G B\n" + lines(" ", MANY),
    "hash names": "# x y z r g b\n" + lines(",", MANY),
    "unit": "X [mm],Y [mm],Z [mm]\n" + lines(","),
    "unit ws": "X [mm] Y [mm] Z [mm]\n" + lines(),
    "unit paren": "X(m);Y(m);Z(m)\n" + lines(";"),
    "x_coord": "x_coord,y_coord,z_coord\n" + lines(","),
    "coord x": "Coord. X\tCoord. Y\tCoord. Z\n" + lines("\t"),
    "posX": "PosX,PosY,PosZ\n" + lines(","),
    "x mm": "x mm;y mm;z mm\n" + lines(";"),
    "paraview": '"Points:0","Points:1","Points:2"\n' + lines(","),
    "units line": "x,y,z\n[mm],[mm],[mm]\n" + lines(","),
    "title": "Scan of part 7\nexported today\n\nx,y,z\n" + lines(","),
    "order": "intensity,z,y,x\n" + lines(",", with_columns(5, "z", "y", "x")),
    "normals": "nx ny nz x y z\n" + lines(" ", with_columns("0.0", "0.6", "0.8", "x", "y", "z")),
    "text columns": "class;z;x;y\n" + lines(";", TEXT),
    "quoted text": "class,z,x,y\n" + lines(",", [[f'"{row[0]}, a"', *row[1:]] for row in TEXT]),
    "pandas": ",x,y,z\n" + lines(",", NUMBER),
    "pandas;": ";x;y;z\n" + comma(lines(";", NUMBER)),
    "R": '"x" "y" "z"\n' + lines(" ", [[f'"{row[0]}"', *row[1:]] for row in with_columns(lambda i: i + 1, "x", "y", "z")]),
    "number first": lines(",", NUMBER),
    "from one": lines(" ", FROM_ONE),
    "number as float": lines(" ", with_columns(lambda i: f"{i:.4f}", "x", "y", "z")),
    "more columns": lines(" ", MANY),
    "comments": "# a\n" + lines().replace("\n", "\n// b\n", 2) + "% c\n; d\n",
    "comment behind": lines(",").replace("\n", " # the first\n", 1),
    "quoted numbers": lines('","').replace("\n", '"\n"').rjust(len(lines('","').replace("\n", '"\n"')) + 1, '"')[:-1],
    "exponents": "\n".join(" ".join(f"{v:.12e}" for v in row) for row in XYZ),
    "Fortran": "\n".join(" ".join(f"{v:.12E}" for v in row) for row in XYZ).replace("E", "D"),
    "plus": "\n".join(" ".join(f"{v:+.4f}" for v in row) for row in XYZ),
    "minus sign": lines().replace("-", "\u2212"),
    "hard space": lines("\u00a0"),
    "umlaut": "# Gehäuse 30°\n" + lines(),
}
QUOTED_COMMAS = "\n".join(",".join(f'"{comma(v)}"' for v in row) for row in ROWS)


@pytest.mark.parametrize("name", GOOD)
def test_spellings_of_one_table(tmp_path, name):
    path = tmp_path / "a.csv"
    path.write_bytes(GOOD[name].encode())
    read = read_cloud(path)
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, XYZ)


@pytest.mark.parametrize("text", [GOOD["spaces"], GOOD["NAMES"], GOOD["decimal comma;"], GOOD["crlf"], QUOTED_COMMAS],
                         ids=["spaces", "names", "decimal comma", "crlf", "quoted commas"])
def test_encodings(tmp_path, text):
    path = tmp_path / "a.txt"
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
        path.write_bytes(text.encode(encoding))
        np.testing.assert_array_equal(read_cloud(path), XYZ, err_msg=encoding)
    path.write_bytes(b"# Geh\xe4use\n" + text.encode())
    np.testing.assert_array_equal(read_cloud(path), XYZ)
    path.write_bytes(text.encode("utf-16")[:-1])
    with pytest.raises(DataError, match="UTF-16-LE text"):
        read_cloud(path)


@pytest.mark.parametrize("missing", ["nan", "NaN", "NA", "", "null", "-nan(ind)", "1.#QNAN", "#N/A", '""'])
def test_rows_without_a_value_are_nan_and_stay(tmp_path, missing):
    rows, expected = [list(row) for row in ROWS], XYZ.copy()
    rows[0][0], rows[5], rows[70][2], rows[149][1] = missing, [missing] * 3, missing, missing
    expected[0, 0], expected[5], expected[70, 2], expected[149, 1] = (np.nan,) * 4
    for delimiter in (",", ";", "\t") if missing in ("", '""') else (",", ";", "\t", " "):
        for head in ("", f"x{delimiter}y{delimiter}z\n"):
            (tmp_path / "a.csv").write_text(head + lines(delimiter, rows))
            np.testing.assert_array_equal(read_cloud(tmp_path / "a.csv"), expected, err_msg=repr(delimiter + head))


def cut(text, row, new):
    """The text with another row in place of one."""
    parts = text.split("\n")
    parts[row] = new
    return "\n".join(parts)


BAD = {
    "torn": (lines().rstrip()[:-8], "line 150: 2 fields where other rows have 3); the file may be truncated"),
    "torn number": (
        lines().rstrip()[:-2],
        "line 150: its last number has fewer decimals than all others); the file may be truncated",
    ),
    "torn point": (lines(",").rstrip()[:-4], "line 150"),
    "short row": (cut(lines(), 70, "1.0 2.0"), "line 71: 2 fields"),
    "long row": (cut(lines(","), 70, "1.0,2.0,3.0,4.0"), "line 71: 4 fields"),
    "word": (cut(lines(), 70, "1.0 two 3.0"), "line 71: 'two'"),
    "footer": (lines() + "Total 150 points\n", "line 151"),
    "second names": ("x,y,z\n" + cut(lines(","), 70, "x,y,z"), "line 72: 'x'"),
    "count": ("151\n" + lines(), "says it has 151 rows, 150 are there"),
    "names": ("easting,northing,up\n" + lines(","), "line 1: 'easting"),
    "no names": ("a title\n" + lines(), "line 1: 'a title'"),
    "too few names": ("x,y,z\n" + lines(",", MANY), "3 columns, rows have 6"),
    "two names": ("x,y,z,x\n" + lines(",", with_columns("x", "y", "z", "x")), "several columns could be x, y and z"),
    "two sets": ("x_m,y_m,z_m,x_in,y_in,z_in\n" + lines(",", MANY), "several columns could be x, y and z"),
    "two columns": (lines(" ", [row[:2] for row in ROWS]), "at least the columns x y z, found 2"),
    "empty": (" \n\n", "empty"),
    "mixed decimals": (cut(comma(lines(";")), 70, "1,234;0.5;2,5"), "line 71: a decimal point where"),
    "thousands": (lines(";").replace("1", "1.00", 40), "line"),
    "only names": ("x,y,z\n", "no rows of numbers"),
    "all commas": (comma(lines(",")).replace("-", ""), "commas seem to stand both between and within numbers"),
    "numbers with gaps": (lines(" ", with_columns(lambda i: 3 * i + 7, "x", "y", "z")), "growing whole numbers"),
    "binary": ("\0\1\2" * 50 + lines(), "binary data"),
    "ptx": ("10\n15\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n" + lines(), "line"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused_in_one_line(tmp_path, name):
    text, message = BAD[name]
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(DataError) as caught:
        read_cloud(tmp_path / "a.txt")
    said = str(caught.value)
    assert message in said and said.startswith(str(tmp_path / "a.txt")) and "\n" not in said


def test_whole_coordinates_and_colours_are_no_second_commas(tmp_path):
    rng = np.random.default_rng(0)
    rows = np.c_[rng.integers(-900, 900, (300, 3)), rng.integers(0, 256, (300, 3))]
    np.savetxt(tmp_path / "a.csv", rows, "%d", ",")
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.csv"), rows[:, :3])


def labelled(*columns):
    return with_columns(*(LABELS.__getitem__ if column == "label" else column for column in columns))


FOUR = labelled("x", "y", "z", "label")


@pytest.mark.parametrize("text", [
    lines(" ", FOUR), lines(",", FOUR), comma(lines(";", FOUR)), "x,y,z,label\n" + lines(",", FOUR), "150\n" + lines(" ", FOUR),
    "# x y z label\n" + lines(" ", FOUR), lines(",", labelled(lambda i: i, "x", "y", "z", "label")),
    lines(",", FOUR).replace("\n", ",\n"),
    "X;Y;Z;R;Label;B\n" + lines(";", labelled("x", "y", "z", 9, "label", 8)), "//X Y Z Scalar_field\n" + lines(" ", FOUR),
    "gt,z,y,x\n" + lines(",", labelled("label", "z", "y", "x")), "\ufeff" + lines(" ", FOUR, "\r\n"),
], ids=range(12))
def test_ground_truth_as_programs_export_it(tmp_path, text):
    for encoding in ("utf-8", "utf-16"):
        (tmp_path / "gt.txt").write_bytes(text.encode(encoding))
        xyz, labels = read_labels(tmp_path / "gt.txt")
        np.testing.assert_array_equal(xyz, XYZ)
        np.testing.assert_array_equal(labels, LABELS)
        np.testing.assert_array_equal(read_marks(tmp_path / "gt.txt", np.float32(XYZ)), LABELS == 1)
    folder = tmp_path / "set" / "part"
    (folder / "test").mkdir(parents=True)
    (folder / "gt").mkdir()
    (folder / "gt" / "1_dent.txt").write_bytes(text.encode())
    np.savetxt(tmp_path / "rows.xyz", XYZ)
    import open3d as o3d

    o3d.io.write_point_cloud(str(folder / "test" / "1_dent.pcd"), o3d.geometry.PointCloud(o3d.utility.Vector3dVector(XYZ)))
    reader = Real3D(tmp_path / "set")
    np.testing.assert_array_equal(reader.load(reader.samples("part")[0]).mask, LABELS == 1)


ONE = [[str(label)] for label in LABELS]


@pytest.mark.parametrize("text", [
    lines(" ", ONE), "label\n" + lines(" ", ONE), "150\n" + lines(" ", ONE), "# labels\n" + lines(" ", ONE),
    ",label\n" + lines(",", labelled(lambda i: i, "label")), lines(";", labelled(lambda i: i, "label")),
    lines(" ", [[f"{label}.000"] for label in LABELS]),
], ids=range(7))
def test_labels_alone(tmp_path, text):
    (tmp_path / "gt.txt").write_text(text)
    xyz, labels = read_labels(tmp_path / "gt.txt")
    assert xyz is None
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("text, message", [
    (lines(" ", labelled("x", "y", "z", 4, 5, "label")), "found 6 columns"), (lines(), "found 3 columns"),
    ("x,y,z,label,gt\n" + lines(",", labelled("x", "y", "z", "label", "label")), "found the names x, y, z, label, gt"),
    ("x,y,z,r,g\n" + lines(",", labelled("x", "y", "z", "label", "label")), "found the names x, y, z"),
    (lines(" ", FOUR).rstrip()[:-2], "line 150: 3 fields"), ("151\n" + lines(" ", FOUR), "says it has 151 rows, 150 are there"),
])
def test_ground_truth_that_nobody_can_tell(tmp_path, text, message):
    (tmp_path / "gt.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "gt.txt")


def test_marks_without_a_place_mark_nothing(tmp_path):
    rows = [list(row) for row in FOUR]
    rows[3][:3] = ["nan"] * 3
    (tmp_path / "a.txt").write_text(lines(" ", rows))
    marked = read_marks(tmp_path / "a.txt", XYZ)
    np.testing.assert_array_equal(np.delete(marked, 3), np.delete(LABELS == 1, 3))
