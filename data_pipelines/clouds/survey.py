"""Surveyors' formats: LAS and LAZ (laspy), E57 (pye57), and Leica's PTX, which is text and has no library of its own."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np

from data_pipelines.clouds.kinds import contents, said
from data_pipelines.clouds.tables import numbers
from data_pipelines.scan import DataError

Rows = tuple[np.ndarray, dict[str, np.ndarray], int]  # [S,3] float64, attributes [S] by name, how many scans the file has
_PTX_HEAD = 10  # lines: columns, rows, four of the scanner's place, four of the matrix
_MOST_POINTS = 64  # that one byte of an E57 file can stand for: constant values take no bits, coordinates do


def _library(name: str, extra: str, path: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{path}: reading it takes {name}, which is not installed; `pip install gsclip-jax[{extra}]`, or save "
                        "the points as ply, pcd or csv") from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"{path}: damaged or truncated ({said(error)}); copy it again")


def read_las(path: Path) -> Rows:
    """Points of a LAS or LAZ file, in the unit of its coordinate system; attributes under LAS's own names.

    Raises:
      DataError: missing, damaged or truncated; no points; laspy is not installed.
    """
    contents(path, head=True, begins=b"LASF")
    laspy = _library("laspy", "las", path)
    try:
        with laspy.open(path) as file:
            stated = file.header.point_count
            parts = list(file.chunk_iterator(1_000_000))  # no memory for what is only said to be there
    except Exception as error:
        raise _damaged(path, error) from error
    there = sum(map(len, parts))
    if there != stated:
        raise DataError(f"{path}: truncated, {there} of {stated} points are there; copy it again")
    if not there:
        raise DataError(f"{path}: the file holds no points; export the scan again")
    xyz = np.concatenate([np.stack([part.x, part.y, part.z], 1) for part in parts]).astype(np.float64)
    names = [name for name in parts[0].point_format.dimension_names if name not in ("X", "Y", "Z")]
    attributes = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in names}
    return xyz, {name: values for name, values in attributes.items() if values.ndim == 1 and values.any()}, 1


def read_e57(path: Path) -> Rows:
    """Points of all scans of an E57 file, in metres, each brought to its place; those a scan marks as invalid are NaN.

    Raises:
      DataError: missing, damaged or truncated; no points; pye57 is not installed.
    """
    contents(path, head=True, begins=b"ASTM-E57")
    pye57 = _library("pye57", "e57", path)
    size, places, kept = path.stat().st_size, [], []
    try:
        with pye57.E57(str(path)) as file:
            for number in range(file.scan_count):
                header = file.get_header(number)
                if header.point_count > _MOST_POINTS * size:
                    raise ValueError(f"{header.point_count} points are said to be in {size} bytes")
                data = file.read_scan_raw(number, ignore_unsupported_fields=True)
                if "cartesianX" in data:
                    xyz = np.stack([np.asarray(data[f"cartesian{axis}"], np.float64) for axis in "XYZ"], 1)
                    lost = data.get("cartesianInvalidState")
                else:
                    distance, turn, rise = (np.asarray(data[f"spherical{name}"], np.float64)
                                            for name in ("Range", "Azimuth", "Elevation"))  # fmt: skip
                    flat = distance * np.cos(rise)
                    xyz = np.stack([flat * np.cos(turn), flat * np.sin(turn), distance * np.sin(rise)], 1)
                    lost = data.get("sphericalInvalidState")
                if header.has_pose():
                    xyz = file.to_global(xyz, header.rotation, header.translation)
                if lost is not None:
                    xyz[np.asarray(lost).astype(bool)] = np.nan
                places.append(xyz)
                kept.append({name: np.asarray(values) for name, values in data.items()
                             if not name.startswith(("cartesian", "spherical"))})  # fmt: skip
    except Exception as error:
        raise _damaged(path, error) from error
    if not sum(map(len, places)):
        raise DataError(f"{path}: the file holds no points; export the scan again")
    common = set.intersection(*map(set, kept))
    attributes = {name: np.concatenate([one[name] for one in kept]) for name in kept[0] if name in common}
    return np.concatenate(places), attributes, len(places)


def read_ptx(path: Path) -> Rows:
    """Points of all scans of a Leica PTX file, each brought to its place by its matrix; 0 0 0, which the scanner did not see, is
    NaN. Attributes: intensity, and red, green, blue.

    Source: Leica's description of the format: ten lines a scan, then columns * rows lines of x y z intensity [r g b]; points are
    rows that are multiplied by the matrix from the left.

    Raises:
      DataError: missing, damaged or truncated, naming the line.
    """
    lines = contents(path).decode("latin-1").replace("\r\n", "\n").replace("\r", "\n").rstrip().split("\n")
    at, places, kept = 0, [], []
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        head = [line.split() for line in lines[at : at + _PTX_HEAD]]
        widths = [len(words) for words in head]
        if widths != [1, 1, 3, 3, 3, 3, 4, 4, 4, 4] or not all(words[0].isdecimal() for words in head[:2]):
            raise DataError(f"{path}: line {at + 1}: no PTX header (columns, rows, four lines of three numbers, four of four); "
                            "export it again")
        count = int(head[0][0]) * int(head[1][0])
        first = at + _PTX_HEAD
        if count > len(lines) - first:
            raise DataError(f"{path}: truncated, line {at + 1} says {head[0][0]} x {head[1][0]} points, {len(lines) - first} "
                            "lines are left; copy it again")
        if not count:
            raise DataError(f"{path}: line {at + 1}: the header says there are no points; export it again")
        width = len(lines[first].split())
        if width not in (3, 4, 7):
            raise DataError(f"{path}: line {first + 1}: {width} numbers where x y z intensity and colours take 4 or 7; export "
                            "it again")
        matrix = numbers(lines[at + 6 : first], None, range(4), 4, path, at + 7)
        rows = numbers([*lines[first : first + count], ""], None, range(width), width, path, first + 1)
        if len(rows) != count:
            raise DataError(f"{path}: {len(rows)} rows where line {at + 1} says {count}; copy or export it again")
        xyz = rows[:, :3] @ matrix[:3, :3] + matrix[3, :3]
        xyz[~rows[:, :3].any(1)] = np.nan
        names = ("intensity", "red", "green", "blue")[: width - 3]
        columns = dict(zip(names, rows[:, 3:].T, strict=True))
        kept.append({name: values if name == "intensity" else values.clip(0, 255).astype(np.uint8)
                     for name, values in columns.items()})  # fmt: skip
        places.append(xyz)
        at = first + count
    if not places:
        raise DataError(f"{path}: the file is empty; copy or export it again")
    common = [name for name in kept[0] if all(name in one for one in kept)]
    return np.concatenate(places), {name: np.concatenate([one[name] for one in kept]) for name in common}, len(places)
