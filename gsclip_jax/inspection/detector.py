"""The Python interface: `detector = gsclip_jax.load(); result = detector(points)`. Numpy in, a dataclass out.

A detector is a `Model`, what a trained model is to inspection whatever file it came from, and the way from a scan's rows to a
`result.Part`: clean, sample, render, predict, and the scores back onto the rows.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np

from data_pipelines.clouds.sampling import nearest
from data_pipelines.records.objects import Recipe, to_batch
from data_pipelines.rendering.views import start_drawing
from data_pipelines.scan import DataError
from gsclip_jax.inspection.formats import drawn_by, found_model, read_model
from gsclip_jax.inspection.heat import heat_maps
from gsclip_jax.inspection.model import Model
from gsclip_jax.inspection.prepare import Prepared, Preparer
from gsclip_jax.inspection.references import References, Seen, seen
from gsclip_jax.inspection.result import Part
from gsclip_jax.method import Scores
from gsclip_jax.runtime.compiled import keep_compiled


def load(model: str | os.PathLike | None = None, draws: str | None = None) -> Detector:
    """A detector of defects on scans of any part, with the embedded model or another. Takes seconds; so does the first scan, or
    up to half a minute where the model is compiled for the first time on this machine.

    Args:
      model: a work directory of a training (`experiments.run`), what `gsclip export` wrote, a URL of either, 'owner/name' on the
        Hugging Face hub (downloaded once), or None for the embedded model.
      draws: what draws the views, 'open3d' or 'numpy'; None for what drew those that the model was trained on.

    Raises:
      ValueError: one line: no trained model there, a damaged one, or Open3D cannot draw here.
    """
    keep_compiled()
    return opened(model, draws)


def opened(place: str | os.PathLike | None, draws: str | None) -> Detector:
    """`load`, but that what was compiled is kept. Open3D loads in its process while the model does."""
    home, name = found_model(place)
    if (draws or drawn_by(home)) == "open3d":
        start_drawing()
    return Detector(read_model(home, name), draws)


class Detector(Preparer):
    """Scores scans, one or several at a time. May be used by several threads, which take turns.

    Args:
      model: of `formats.saved_model`.
      draws: 'open3d' or 'numpy'; None for what drew the views that the model was trained on.

    Raises:
      DataError: Open3D cannot draw on this machine.
    """

    def __init__(self, model: Model, draws: str | None = None):
        super().__init__(dataclasses.replace(model.recipe, rasteriser=draws or model.recipe.rasteriser))
        self.model, self._alone = model, threading.Lock()
        self.references: References | None = None
        self._ahead = _Ahead(model, tokens=False)

    @overload
    def __call__(self, points: np.ndarray, colours: np.ndarray | None = None) -> Part: ...

    @overload
    def __call__(self, points: Sequence[np.ndarray], colours: Sequence[np.ndarray | None] | None = None) -> list[Part]: ...

    def __call__(self, points, colours=None):
        """Scores a scan, or several.

        Args:
          points: [N,3] numbers in any unit, best float64: x y z of every point, in any order and place; rows with NaN and, where
            there are several, rows at exactly 0, 0, 0 are no points. Or a list of such arrays.
          colours: uint8 [N,3], handed on into the result; scores do not depend on them. Of a list of scans, a list.

        Returns: a `Part`, of a list of scans a list of them. `Part.score` is the score of the part, higher is more anomalous;
          `Part.points` float32 [N] has one score a row, NaN for rows that hold no point.

        Raises:
          DataError (a ValueError): not [N,3], infinite coordinates, fewer than ten points or all at one place; the line names the
            scan.
        """
        if isinstance(points, np.ndarray):
            return self.inspect(points, colours=colours)
        colours = [None] * len(points) if colours is None else colours
        if len(colours) != len(points):
            raise DataError(f"{len(points)} scans and colours of {len(colours)}; give one array of colours, or None, a scan")
        names = [f"scan {number}" for number in range(1, len(points) + 1)]
        return [self.inspect(np.asarray(one), name, colours=tint) for one, name, tint in zip(points, names, colours, strict=True)]

    def inspect(self, points: np.ndarray, name: str = "scan", source: str = "", colours: np.ndarray | None = None) -> Part:
        """As `__call__`, of one scan with its name and its file, for messages and the result."""
        return self.finish(self.prepare(points, name, source, colours))

    def with_references(self, references: References) -> Detector:
        """The same detector, whose scores have good parts' part in them (`references.make_references`)

        Raises:
          DataError: the model gives no tokens to compare by.
        """
        if self.model.described is None:
            raise DataError(f"{self.model.name} gives no tokens to compare with good parts; use the one it was exported from")
        found = self.for_references()
        found.references = references
        return found

    def for_references(self) -> Detector:
        """The same detector, of which `described` is asked and no scores."""
        found = copy.copy(self)
        found._ahead = _Ahead(self.model, tokens=True)
        return found

    def before_drawing(self) -> None:
        """The model is compiled while the first scan is drawn."""
        self._ahead.begin()

    def described(self, prepared: Prepared) -> Seen:
        """What `references.make_references` takes of a part."""
        batch = to_batch([prepared.made])
        with self._alone:
            self._ahead.wait()
            return seen(*self.model.described(batch), batch)

    def finish(self, prepared: Prepared) -> Part:
        """The second half: scores, and what is made of them."""
        batch = to_batch([prepared.made])
        with self._alone:
            self._ahead.wait()
            scores = self.references.join(*self.model.described(batch), batch) if self.references else self.model.score(batch)
        return finished(scores, prepared, self.recipe)


class _Ahead:
    """Compiles a model in a thread of its own, once, beside other work."""

    def __init__(self, model: Model, tokens: bool):
        self._compile, self._starting = functools.partial(model.ahead, tokens), threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="compiling")
                self._thread.start()

    def wait(self) -> None:
        with self._starting:  # nothing was prepared here: the call itself compiles
            thread = self._thread
        if thread:
            thread.join()

    def _run(self) -> None:
        with contextlib.suppress(Exception):  # what is wrong is said by the call that finds nothing compiled
            self._compile()


def finished(scores: Scores, prepared: Prepared, recipe: Recipe) -> Part:
    """The part with the scores of a batch of it alone."""
    made, scored = prepared.made, np.asarray(scores.points[0])
    return Part(
        name=prepared.name, source=prepared.source, score=float(scores.object[0]), xyz=prepared.xyz,
        points=to_rows(scored, made, prepared.xyz, prepared.valid), colours=prepared.colours, removed=prepared.removed,
        render=made["render"], depth=made["depth"], heat=heat_maps(scored, made, recipe), notes=prepared.notes,
    )  # fmt: skip


def to_rows(points: np.ndarray, made: Mapping[str, Any], xyz: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Scores of the scored points [M] of `make_object` -> one for every row of the scan [S], float32: the nearest scored point's,
    NaN for rows that hold no point.

    Args:
      xyz, valid: of the scan, [S,3] and [S].
    """
    scored = made["valid"]
    scores = np.full(len(xyz), np.nan, np.float32)
    scores[valid] = points[scored][nearest(made["xyz"][scored], made["frame"].unit(xyz[valid]))]
    return scores
