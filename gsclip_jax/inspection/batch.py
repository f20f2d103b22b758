"""From files to prepared parts, several at a time, and to the scores of good parts. Memory is that of a few parts."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.clouds.cleaning import cleaned
from data_pipelines.clouds.loading import load_scan
from data_pipelines.clouds.sampling import clean, knn, planes
from data_pipelines.scan import DataError
from gsclip_jax.inspection.calibration import Calibration, dented
from gsclip_jax.inspection.detector import Detector, Prepared


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


def ready_parts(detector: Detector, scan: Path, reading: Reading) -> list[Ready]:
    """The parts of a scan, one but for `reading.split`; their names are the scan's.

    Raises:
      DataError: the file cannot be read or holds no part; one line that names it.
    """
    try:
        loaded = load_scan(scan, reading.columns, reading.unit)
        _, valid, note = clean(loaded.xyz, scan)
        told = tuple(filter(None, (loaded.understood(valid), note)))
        if not (reading.remove_plane or reading.clean or reading.split):
            found = detector.prepare(loaded.xyz, scan.name, str(scan), loaded.colours, notes=told[:1])
            return [Ready(found, loaded.attributes)]
        apart = cleaned(loaded.xyz, valid, reading.remove_plane, reading.clean, reading.split)
        parts = []
        for number in range(apart.parts):
            # Rows that were taken away, and those that hold no point, stay with the first part.
            rows = (apart.part == number) | ((apart.part < 0) if number == 0 else False)
            colours = None if loaded.colours is None else loaded.colours[rows]
            source = f"{scan} part {number + 1}" if apart.parts > 1 else str(scan)
            parts.append(Ready(
                detector.prepare(loaded.xyz[rows], scan.name, source, colours, apart.removed[rows], (*told, *apart.notes)),
                {name: values[rows] for name, values in loaded.attributes.items()},
            ))  # fmt: skip
        if not parts:
            raise DataError(f"{scan}: nothing is left after cleaning; leave out --remove-plane, --clean or --split")
        return parts
    except (ValueError, OSError, MemoryError, RuntimeError) as error:
        raise DataError(reason(error, scan)) from error


def reason(error: Exception, scan: Path) -> str:
    """One line, naming the scan."""
    if isinstance(error, MemoryError):
        return f"{scan}: not enough memory for a scan of this size; thin it out"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or scan}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if str(scan) in text else f"{scan}: {text}"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepared_ahead(work: Callable[[Path], Any], scans: Sequence[Path], workers: int) -> Iterator[tuple[Path, Any]]:
    """`work` on the scans by so many threads, in order: each with its result, or with the DataError that it raised. Never more
    than `workers` + 1 results are waiting."""
    pool = ThreadPoolExecutor(max_workers=workers)
    waiting: deque[tuple[Path, Future]] = deque()
    coming = iter(scans)
    try:
        while True:
            while len(waiting) <= workers and (scan := next(coming, None)) is not None:
                waiting.append((scan, pool.submit(work, scan)))
            if not waiting:
                return
            scan, future = waiting.popleft()
            try:
                yield scan, future.result()
            except DataError as error:
                yield scan, error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def calibrate(detector: Detector, scans: Sequence[Path], reading: Reading, rate: float, workers: int,
              say: Callable[[int], None] = lambda done: None) -> tuple[Calibration, list[str]]:  # fmt: skip
    """A calibration by good parts, each also with a dent put into it: how many of these stand out says what a sound verdict is
    worth. And the lines of those that could not be read.

    Args:
      say: is told how many scans are done.

    Raises:
      DataError: none of them could be read.
    """
    def work(scan: Path) -> list[tuple[Prepared, Prepared]]:
        parts = [one.prepared for one in ready_parts(detector, scan, reading)]
        return [(part, with_dent(detector, part, at)) for at, part in enumerate(parts)]

    scores, highest, middles, probes, failures = [], [], [], [], []
    for done, (_, found) in enumerate(prepared_ahead(work, scans, workers), 1):
        if isinstance(found, DataError):
            failures.append(str(found))
            continue
        for good, probe in found:
            part = detector.finish(good)
            scores.append(part.score)
            highest.append(float(np.nanmax(part.points)))
            middles.append(float(np.nanmedian(part.points)))
            probes.append(detector.finish(probe).score)
        say(done)
    if not scores:
        raise DataError(f"none of the {len(scans)} good parts can be used; the first: {failures[0]}")
    made = Calibration(detector.model.digest, reading.settings(), rate, tuple(scores), tuple(highest), float(np.median(middles)),
                       tuple(probes))  # fmt: skip
    return made, failures


def with_dent(detector: Detector, good: Prepared, number: int) -> Prepared:
    """A good part with a dent, always the same one."""
    rows = good.valid
    points = good.xyz[rows]
    normals, _ = planes(points - points.mean(0), knn(points - points.mean(0), 16))
    spoilt = dented(good.xyz, rows, normals, seed=number + len(points))
    return detector.prepare(spoilt, good.name, good.source, removed=good.removed)
