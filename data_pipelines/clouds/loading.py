"""Scans as engineers have them: points, other attributes and colours of a file in any of the formats in `LOADERS`.

`files.read_cloud` reads the formats that data sets come in, points alone; this adds meshes, surveyors' formats and packed tables,
and keeps what else a row says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.clouds import meshes, survey
from data_pipelines.clouds.columns import AXES, axes, bare, chosen, listed, running, unnamed_xyz
from data_pipelines.clouds.files import TEXT, array_of, array_xyz
from data_pipelines.clouds.kinds import contents
from data_pipelines.clouds.pcd import read_pcd
from data_pipelines.clouds.ply import has_faces, read_ply
from data_pipelines.clouds.tables import read_points, read_table
from data_pipelines.clouds.tiff import TIFF, read_xyz
from data_pipelines.scan import DataError, did_you_mean

UNITS = ("m", "mm", "cm", "um", "in", "ft")
METRES_BELOW = 2.0  # a longest side less than this many units is taken for metres, more for millimetres

Columns = Sequence[str]  # names or numbers, counted from 1, of the columns x, y and z


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A scan as its file has it.

    Fields:
      xyz: [S,3] float64, every row in file order, as stored; NaN where the scanner saw nothing.
      attributes: what else is said of every row, name -> [S] of the file's own type; colours among them.
      colours: uint8 [S,3], where there are any.
      what: the format in words: 'PLY file', 'mesh (STL), sampled at 60000 points'.
      columns: the names of the columns, where the file names any.
      unit: where the format or the user says it; "" where nothing does.
    """

    xyz: np.ndarray
    attributes: Mapping[str, np.ndarray]
    colours: np.ndarray | None
    what: str
    columns: tuple[str, ...] = ()
    unit: str = ""

    def understood(self, valid: np.ndarray) -> str:
        """What was understood of the file, in a line.

        Args:
          valid: [S] bool, the rows that are points (`sampling.clean`).
        """
        side = float(np.ptp(self.xyz[valid], axis=0).max())
        unit = f"unit {self.unit}" if self.unit else f"unit guessed: {'m' if side < METRES_BELOW else 'mm'}"
        columns = f"columns {listed(self.columns)}" if self.columns else "columns not named"
        colours = "with colours" if self.colours is not None else "no colours"
        rows = f"{valid.sum()} of {len(valid)} rows are points"
        return f"{self.what}; {columns}; {rows}; {unit} (longest side {side:.4g}); {colours}"


def load_scan(path: str | Path, columns: Columns | None = None, unit: str = "") -> Loaded:
    """The scan in a file, its format told by its ending (`LOADERS`; `.gz` after those of text).

    Args:
      columns: which columns are x, y and z, by name or by number from 1; None to find out. Of tables, PLY, PCD and NPY files.
      unit: of the coordinates, where the user knows it; scores do not depend on it.

    Raises:
      DataError: one line: missing, empty, truncated, damaged or unknown file, one that is something else, columns of which nobody
        can say which are x, y and z, or a format whose library is not installed.
    """
    path = Path(path)
    kind = ending(path)
    if kind not in LOADERS:
        known = " ".join(LOADERS)
        raise DataError(f"{path}: unknown scan format {kind!r}{did_you_mean(kind, LOADERS)}; use one of {known}")
    if columns is not None and (kind not in TABLES or len(columns) != 3):
        raise DataError(f"{path}: three columns x, y and z can be chosen of {' '.join(TABLES)} alone; leave --columns out")
    if unit and unit not in UNITS:
        raise DataError(f"unknown unit {unit!r}; use one of {', '.join(UNITS)}")
    found = LOADERS[kind](path, columns) if kind in TABLES else LOADERS[kind](path)
    return dataclasses.replace(found, unit=unit) if unit else found


def ending(path: str | Path) -> str:
    """The ending that tells a file's format, in small letters: of `part.csv.gz` it is `.csv`."""
    path = Path(path)
    inner = Path(path.stem).suffix.lower()
    return inner if path.suffix.lower() == ".gz" and inner in TEXT + MORE_TEXT else path.suffix.lower()


def _named(names: Sequence[str], values: Sequence[np.ndarray], what: str, path: Path, columns: Columns | None) -> Loaded:
    """Of columns with names [S] each."""
    picked = chosen(columns, names, path) if columns else axes(names, path)
    if picked is None:
        raise DataError(f"{path}: has no fields x, y and z (found: {listed(names)}); export the coordinates, or say which they "
                        "are with --columns")
    xyz = np.stack([np.asarray(values[at], np.float64) for at in picked], 1)
    attributes = {name: np.asarray(values[at]) for at, name in enumerate(names) if at not in picked}
    return Loaded(xyz, attributes, colours_in(attributes), what, tuple(names))


def _fields(read: Callable, what: str) -> Callable[[Path, Columns | None], Loaded]:
    def load(path: Path, columns: Columns | None) -> Loaded:
        content = contents(path)
        if what == "PLY file" and has_faces(content, path):
            return _mesh(path)
        fields = read(content, path)
        names = [field.name for field in fields]
        values = [np.asarray(field.values).astype(field.dtype.newbyteorder("="), copy=False) for field in fields]
        return _named(names, values, what, path, columns)

    return load


def _text(path: Path, columns: Columns | None) -> Loaded:
    what = f"text table ({path.suffix[1:]})" if path.suffix.lower() != ".gz" else "packed text table"
    if columns and all(str(word).isdecimal() for word in columns):
        table = read_table(path, lambda names: list(range(len(names))) if axes(names, path) else None, least=3)
        at = [int(word) - 1 for word in columns]
        if max(at) >= table.values.shape[1] or min(at) < 0:
            raise DataError(f"{path}: --columns {','.join(columns)}: the rows have {table.values.shape[1]} columns")
        return Loaded(table.values[:, at], {}, None, what, table.names or ())
    pick = (lambda names: chosen(columns, names, path, missing=None)) if columns else (lambda names: axes(names, path))
    try:  # every column, where all of them are numbers
        table = read_table(path, lambda names: list(range(len(names))) if pick(names) else None, least=3)
        if table.names:
            return _named(_apart(table.names), list(table.values.T), what, path, columns)
        if columns:
            raise DataError("")  # said below
        xyz = unnamed_xyz(table.values, path)
        rest = _rest(table.values)
        names = PTS.get(rest.shape[1], ()) if ending(path) == ".pts" else ()
        attributes = dict(zip(names, rest.T, strict=True)) if names else _numbered(rest)
        return Loaded(xyz, attributes, colours_in(attributes), what)
    except DataError:
        if columns:
            table = read_table(path, lambda names: chosen(columns, names, path, missing=None), least=3)
            if not table.names:
                raise DataError(f"{path}: no line names columns {listed(columns)}; give their numbers") from None
            return Loaded(table.values[:, :3], {}, None, what, table.names)
        return Loaded(read_points(path), {}, None, what)


def _apart(names: Sequence[str]) -> list[str]:
    """Names that differ, for columns of which several have one or none."""
    found: list[str] = []
    for at, name in enumerate(names):
        name = name or f"column_{at + 1}"
        found.append(name if name not in found else f"{name}_{at + 1}")
    return found


def _array(path: Path, columns: Columns | None) -> Loaded:
    found = array_of(contents(path), path)
    if found.dtype.names:
        flat = found.ravel()
        numbers = [name for name in found.dtype.names if flat[name].dtype.kind in "fiu" and flat[name].ndim == 1]
        return _named(numbers, [flat[name] for name in numbers], "numpy array", path, columns)
    xyz = array_xyz(found, path)
    table = found.reshape(-1, found.shape[-1])
    if columns:
        at = chosen(columns, [str(number) for number in range(1, table.shape[1] + 1)], path)
        return Loaded(table[:, at].astype(np.float64), {}, None, "numpy array")
    return Loaded(xyz, _numbered(_rest(table)), None, "numpy array")


def _rest(table: np.ndarray) -> np.ndarray:
    """The columns beside those that `unnamed_xyz` takes."""
    return table[:, 4 if table.shape[1] > 3 and running(table[:, 0]) else 3 :]


def _numbered(columns: np.ndarray) -> dict[str, np.ndarray]:
    return {f"column_{at + 1}": column for at, column in enumerate(columns.T)}


def _organised(path: Path) -> Loaded:
    image = read_xyz(path)
    xyz = image.reshape(-1, 3)
    xyz[~xyz.any(1)] = np.nan  # of an organised scan a single pixel at 0, 0, 0 is none as well
    return Loaded(xyz, {}, None, f"organised scan (TIFF) of {image.shape[0]} x {image.shape[1]} pixels", AXES)


def _mesh(path: Path) -> Loaded:
    xyz, about = meshes.load_mesh(path, ending(path))
    return Loaded(xyz, {}, None, about, AXES, "m" if ending(path) == ".glb" else "")


def _survey(read: Callable, what: str, unit: str) -> Callable[[Path], Loaded]:
    def load(path: Path) -> Loaded:
        xyz, attributes, scans = read(path)
        said = f"{what} of {scans} scans" if scans > 1 else what
        return Loaded(xyz, attributes, colours_in(attributes), said, (*AXES, *attributes), unit)

    return load


def colours_in(attributes: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Colours uint8 [S,3] among the attributes of rows: red, green and blue (r, g, b; diffuse_red ...) of bytes, of 16 bits or of
    shares, or PCL's packed rgb; None where there are none."""
    by_name = {bare(name).replace("diffuse_", "").replace("color", ""): values for name, values in attributes.items()}
    for names in (("red", "green", "blue"), ("r", "g", "b")):
        if all(name in by_name for name in names):
            values = np.stack([by_name[name] for name in names], 1)
            values = np.nan_to_num(values.astype(np.float64))
            most = values.max(initial=0)
            is_share = all(by_name[name].dtype.kind == "f" for name in names) and most <= 1
            scale = 255 if is_share else 1 / 257 if most > 255 else 1
            return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
    for name in ("rgb", "rgba"):
        if name in by_name and by_name[name].dtype.itemsize == 4:
            packed = np.ascontiguousarray(by_name[name]).view(np.uint32)
            return np.stack([packed >> 16 & 255, packed >> 8 & 255, packed & 255], 1).astype(np.uint8)
    return None


MORE_TEXT = (".xyzn",)
PTS = {1: ("intensity",), 3: ("red", "green", "blue"), 4: ("intensity", "red", "green", "blue")}  # beside x y z, as Leica has it
TABLES: dict[str, Callable[[Path, Columns | None], Loaded]] = {
    ".ply": _fields(read_ply, "PLY file"), ".pcd": _fields(read_pcd, "PCD file"), ".npy": _array,
    **dict.fromkeys(TEXT + MORE_TEXT, _text),
}  # fmt: skip
LOADERS: dict[str, Callable[..., Loaded]] = {
    **TABLES,
    ".ptx": _survey(survey.read_ptx, "Leica PTX file", ""),
    ".las": _survey(survey.read_las, "LAS file", ""), ".laz": _survey(survey.read_las, "LAZ file", ""),
    ".e57": _survey(survey.read_e57, "E57 file", "m"),
    **dict.fromkeys(meshes.MESHES, _mesh), **dict.fromkeys(TIFF, _organised),
}  # fmt: skip
