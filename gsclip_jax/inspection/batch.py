"""Several files at a time, to prepared parts and to the scores of good parts. Memory is that of a few parts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.clouds.sampling import knn, planes
from data_pipelines.scan import DataError
from gsclip_jax.inspection.calibration import Calibration, dented
from gsclip_jax.inspection.detector import Detector
from gsclip_jax.inspection.prepare import Prepared, Reading, ready_parts
from gsclip_jax.inspection.references import LEAST, References, make_references


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
    scores, highest, middles, probes, failures = [], [], [], [], []
    for good, probe in _with_dents(detector, scans, reading, workers, failures, say):
        part = detector.finish(good)
        scores.append(part.score)
        highest.append(float(np.nanmax(part.points)))
        middles.append(float(np.nanmedian(part.points)))
        probes.append(detector.finish(probe).score)
    if not scores:
        raise DataError(f"none of the {len(scans)} good parts can be used; the first: {failures[0]}")
    made = Calibration(detector.model.digest, reading.settings(), rate, tuple(scores), tuple(highest), float(np.median(middles)),
                       tuple(probes))  # fmt: skip
    return made, failures


def refer(detector: Detector, scans: Sequence[Path], reading: Reading, workers: int,
          say: Callable[[int], None] = lambda done: None) -> tuple[References | None, list[str]]:  # fmt: skip
    """Good parts as references, and the lines of those that could not be read. None where the model gives no tokens to compare
    by, or fewer than `references.LEAST` can be used.

    Args:
      say: is told how many scans are done.
    """
    parts, failures = [], []
    if detector.model.described is None:
        return None, failures
    detector = detector.for_references()
    for good, probe in _with_dents(detector, scans, reading, workers, failures, say):
        parts.append((detector.described(good), detector.described(probe)))
        if not parts[0][0].tokens:
            return None, failures
    if len(parts) < LEAST:
        return None, failures
    return make_references(detector.model.digest, reading.settings(), *zip(*parts, strict=True)), failures


def _with_dents(detector: Detector, scans: Sequence[Path], reading: Reading, workers: int, failures: list[str],
                say: Callable[[int], None]) -> Iterator[tuple[Prepared, Prepared]]:  # fmt: skip
    """Every good part of the scans, and the same with a dent put into it. Scans that cannot be read give a line to `failures`."""
    def work(scan: Path) -> list[tuple[Prepared, Prepared]]:
        parts = [one.prepared for one in ready_parts(detector, scan, reading)]
        return [(part, with_dent(detector, part, at)) for at, part in enumerate(parts)]

    for done, (_, found) in enumerate(prepared_ahead(work, scans, workers), 1):
        if isinstance(found, DataError):
            failures.append(str(found))
        else:
            yield from found
        say(done)


def with_dent(detector: Detector, good: Prepared, number: int) -> Prepared:
    """A good part with a dent, always the same one."""
    rows = good.valid
    points = good.xyz[rows]
    normals, _ = planes(points - points.mean(0), knn(points - points.mean(0), 16))
    spoilt = dented(good.xyz, rows, normals, seed=number + len(points))
    return detector.prepare(spoilt, good.name, good.source, removed=good.removed)
