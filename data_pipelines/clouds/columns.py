"""Which columns of a table, or fields of a file, are coordinates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.scan import DataError

AXES = ("x", "y", "z")
# Words that may stand beside an axis: what it is, and its unit. Others (n, normal, ref, scan_2) name something else.
_BESIDE = {"", "coord", "coords", "coordinate", "coordinates", "koord", "koordinate", "pos", "position", "point", "points", "pt",
           "axis", "achse", "val", "value", "wert", "loc", "location", "cartesian", "micron", "microns",
           "nm", "um", "µm", "μm", "mm", "cm", "dm", "m", "km", "in", "inch", "inches", "ft", "feet", "mil", "pixel", "px",
           "meter", "meters", "metre", "metres", "millimeter", "millimeters", "millimetre", "millimetres"}


class Field(NamedTuple):
    """One field of all points of a PCD or PLY file."""

    name: str
    dtype: np.dtype  # as declared
    values: np.ndarray  # [S]; of text files float64 whatever is declared


def listed(names: Sequence[str]) -> str:
    """Names out of a file for a message of one line: no control characters, not too many."""
    text = ", ".join("".join(c if c.isprintable() else "?" for c in str(name)[:40]) for name in names[:20])
    return text + (", ..." if len(names) > 20 else "") or "none"


def bare(name: str) -> str:
    """A column's name in small letters, without quotes and units in brackets."""
    return re.sub(r"[\[({<][^\])}>]*[\])}>]", " ", name).strip().strip("\"'`*").strip().lower()


def _axis(name: str) -> tuple[str, str] | None:
    """('x', what stands beside it) where a name is that of a coordinate."""
    name = bare(name)
    paraview = re.fullmatch(r"(?:points|coordinates)[:_]([012])", name)
    if paraview:
        return AXES[int(paraview[1])], "points"
    # posX, xcoord, "x mm", x-coordinate
    split = re.fullmatch(r"([xyz])[\W_]*([^\W\d_]*)|([^\W\d_]*?)[\W_]*([xyz])(?:[\W_]+([^\W\d_]*))?", name)
    if not split:
        return None
    axis, beside = split[1] or split[4], (split[2] or "", split[3] or "", split[5] or "")
    return (axis, " ".join(beside).strip()) if all(word in _BESIDE for word in beside) else None


def axes(names: Sequence[str], path: str | Path) -> list[int] | None:
    """Which of the names are x, y and z, in this order; None where they are not named.

    Raises:
      DataError: naming `path`, where several columns could be meant.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for column, name in enumerate(names):
        axis = _axis(name)
        if axis:
            found.setdefault(axis[1], {}).setdefault(axis[0], []).append(column)
    whole = {beside: by_axis for beside, by_axis in found.items() if len(by_axis) == 3}
    if "" in whole:  # plain x, y, z go before x_mm, y_mm, z_mm
        whole = {"": whole[""]}
    if not whole:
        return None
    (by_axis, *others) = whole.values()
    if others or any(len(columns) > 1 for columns in by_axis.values()):
        raise DataError(f"{path}: several columns could be x, y and z ({listed(names)}); name one of each so")
    return [by_axis[axis][0] for axis in AXES]


def chosen(columns: Sequence[str], names: Sequence[str], path: str | Path, missing: type[Exception] | None = DataError
           ) -> list[int] | None:
    """Which of the names are the columns that the user names as x, y and z, or counts from 1.

    Raises:
      DataError: naming `path`, where one is not there; where `missing` is None, None is returned instead.
    """
    plain, found = [bare(name) for name in names], []
    for word in map(str, columns):
        at = plain.index(bare(word)) if bare(word) in plain else int(word) - 1 if word.isdecimal() else -1
        if not 0 <= at < len(names):
            if missing is None:
                return None
            raise missing(f"{path}: no column {listed([word])} (found: {listed(names)}); name or count three of them")
        found.append(at)
    return found


def running(column: np.ndarray) -> bool:
    """Whether a column [S] counts the rows: 0, 1, ... or 1, 2, ..."""
    first = column[0] if len(column) else -1
    return first in (0, 1) and bool((column == first + np.arange(len(column))).all())


def unnamed_xyz(values: np.ndarray, path: str | Path) -> np.ndarray:
    """Points [S, 3] of a table [S, columns >= 3] without names: its first three columns, those after a running number.

    Raises:
      DataError: naming `path`, where a whole number that only grows stands first: a number of some other kind.
    """
    if values.shape[1] == 3:
        return values
    first = values[:, 0]
    if running(first):
        return values[:, 1:4]
    if len(first) > 2 and (np.diff(first) > 0).all() and (first == np.rint(first)).all():
        raise DataError(f"{path}: the first of {values.shape[1]} columns only holds growing whole numbers and may be no "
                        "coordinate; name the columns in a first line, or keep x y z alone")
    return values[:, :3]


def fields_xyz(fields: Sequence[Field], path: str | Path) -> np.ndarray:
    """Points [S, 3] float64 of the fields of a file.

    Raises:
      DataError: naming `path`, without fields x, y and z.
    """
    names = [field.name for field in fields]
    picked = axes(names, path)
    if picked is None:
        raise DataError(f"{path}: has no fields x, y and z (found: {listed(names)}); export the coordinates")
    return np.stack([fields[column].values.astype(np.float64) for column in picked], axis=1)
