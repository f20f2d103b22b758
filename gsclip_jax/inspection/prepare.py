"""From a file, or from rows of numbers, to parts that the model can score: the half of the work that needs no model, and no JAX.

A process that reads other people's files (`gsclip_jax/service/reader.py`) has this half alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.clouds.cleaning import cleaned
from data_pipelines.clouds.loading import Loaded, load_scan
from data_pipelines.clouds.sampling import clean
from data_pipelines.records.objects import Recipe, make_object
from data_pipelines.rendering.views import Rasteriser, rasteriser
from data_pipelines.scan import DataError, Scan


class Prepared(NamedTuple):
    """A scan as the model reads it, and what becomes part of the result."""

    name: str
    source: str
    xyz: np.ndarray
    valid: np.ndarray
    colours: np.ndarray | None
    removed: np.ndarray
    notes: tuple[str, ...]
    made: dict[str, Any]  # of `make_object`


class Preparer:
    """Brings scans to what a model reads. May be used by several threads; as many scans are drawn at a time, each in a process
    of its own.

    Args:
      recipe: how a scan becomes what the model reads, with what draws.
      here: Open3D draws in this very process instead of one of its own (`rendering.views.rasteriser`).

    Raises:
      DataError: Open3D cannot draw on this machine.
    """

    def __init__(self, recipe: Recipe, here: bool = False):
        self.recipe, self._here = recipe, here
        self._idle = [rasteriser(recipe.window, recipe.rasteriser, here)]  # refuses now where it cannot draw

    def prepare(self, points: np.ndarray, name: str = "scan", source: str = "", colours: np.ndarray | None = None,
                removed: np.ndarray | None = None, notes: tuple[str, ...] = ()) -> Prepared:  # fmt: skip
        """The first half of the work, without the model.

        Args:
          points: [N,3] numbers in any unit; rows with NaN and, where there are several, rows at exactly 0, 0, 0 are no points.
          colours: uint8 [N,3], handed on.
          removed: bool [N], rows that were taken away before.
          notes: what was understood of the file, handed on.

        Raises:
          DataError: not [N,3], infinite coordinates, fewer than ten points or all at one place; the line names the scan.
        """
        points = np.asarray(points)
        if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "fiu":
            raise DataError(f"{source or name}: expected numbers of shape (points, 3), found {points.shape} {points.dtype}")
        if colours is not None and (np.shape(colours) != points.shape or np.asarray(colours).dtype != np.uint8):
            raise DataError(f"{source or name}: expected colours uint8 of shape {points.shape}, found {np.shape(colours)} "
                            f"{np.asarray(colours).dtype}")  # fmt: skip
        removed = np.zeros(len(points), bool) if removed is None else removed
        xyz, valid, left_out = clean(np.where(removed[:, None], np.nan, points) if removed.any() else points, source or name)
        left_out = "" if removed.any() else left_out
        self.before_drawing()
        # Drawn by one seed for every scan: the same scan scores the same, whatever it is called.
        try:
            with self._rasteriser() as draw:
                made = make_object(Scan(xyz, np.zeros(len(xyz), bool), valid, note=left_out), self.recipe, "", "", draw)
        except RuntimeError as error:  # the drawing process went down
            raise DataError(f"{source or name}: could not be drawn ({error})") from error
        notes = (*notes, made["note"]) if made["note"] else notes
        return Prepared(name, source or name, np.array(points, np.float64), valid, colours, removed, notes, made)

    @contextlib.contextmanager
    def _rasteriser(self) -> Iterator[Rasteriser]:
        """One that draws nothing else meanwhile. After an error the next scan gets another: a process may have gone down."""
        try:
            draw = self._idle.pop()
        except IndexError:
            draw = rasteriser.__wrapped__(self.recipe.window, self.recipe.rasteriser, self._here)
        yield draw
        self._idle.append(draw)

    def before_drawing(self) -> None:
        """Is called for every scan that can be used; others may have work that goes on while it is drawn."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """How scans are read and cleaned; what of it scores depend on is part of the settings of results and calibrations."""

    columns: tuple[str, ...] | None = None
    unit: str = ""
    remove_plane: bool = False
    clean: bool = False
    split: bool = False

    def settings(self) -> dict[str, Any]:
        """As JSON; the unit is only handed on."""
        known = {key: value for key, value in dataclasses.asdict(self).items() if key != "unit" and value}
        return known | ({"columns": list(self.columns)} if self.columns else {})


class Ready(NamedTuple):
    """A part that the model can score, and what else its scan said of its rows."""

    prepared: Prepared
    attributes: Mapping[str, np.ndarray]


def ready_parts(preparer: Preparer, scan: Path, reading: Reading) -> list[Ready]:
    """The parts of a scan, one but for `reading.split`; their names are the scan's.

    Raises:
      DataError: the file cannot be read or holds no part; one line that names it.
    """
    try:
        return parts_of(preparer, load_scan(scan, reading.columns, reading.unit), scan, reading)
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        raise DataError(reason(error, scan)) from error


def parts_of(preparer: Preparer, loaded: Loaded, scan: Path, reading: Reading) -> list[Ready]:
    """As `ready_parts`, of a scan that is loaded; errors as they come."""
    _, valid, note = clean(loaded.xyz, scan)
    told = tuple(filter(None, (loaded.understood(valid), note)))
    if not (reading.remove_plane or reading.clean or reading.split):
        found = preparer.prepare(loaded.xyz, scan.name, str(scan), loaded.colours, notes=told[:1])
        return [Ready(found, loaded.attributes)]
    apart = cleaned(loaded.xyz, valid, reading.remove_plane, reading.clean, reading.split)
    parts = []
    for number in range(apart.parts):
        # Rows that were taken away, and those that hold no point, stay with the first part.
        rows = (apart.part == number) | ((apart.part < 0) if number == 0 else False)
        colours = None if loaded.colours is None else loaded.colours[rows]
        source = f"{scan} part {number + 1}" if apart.parts > 1 else str(scan)
        parts.append(Ready(
            preparer.prepare(loaded.xyz[rows], scan.name, source, colours, apart.removed[rows], (*told, *apart.notes)),
            {name: values[rows] for name, values in loaded.attributes.items()},
        ))  # fmt: skip
    if not parts:
        raise DataError(f"{scan}: nothing is left after cleaning; leave out --remove-plane, --clean or --split")
    return parts


def reason(error: Exception, scan: Path) -> str:
    """One line, naming the scan."""
    if isinstance(error, MemoryError):
        return f"{scan}: not enough memory for a scan of this size; thin it out"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or scan}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if str(scan) in text else f"{scan}: {text}"
