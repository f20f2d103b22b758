"""Reads other people's scans, in a process of its own that can be ended: `python -m gsclip_jax.service.reader`.

The first line on standard input says how scans are read; then a scan a line, answered by a line each. It has neither JAX nor a
model. A file that takes it down, or takes too long, costs one scan and a new process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from data_pipelines.clouds.declared import declared_points
from data_pipelines.clouds.loading import load_scan
from data_pipelines.records.objects import Recipe
from data_pipelines.scan import DataError
from gsclip_jax.inspection.prepare import Preparer, Reading, parts_of, reason
from gsclip_jax.service.parcel import pack

TOO_LARGE, NOT_A_SCAN = 413, 422
GRACE = 5  # seconds after which it ends itself, where nobody is left to end it


class TooLarge(DataError):
    """More points than are taken on."""


def prepared(preparer: Preparer, reading: Reading, scan: Path, shown: str, points: int, out: Path) -> dict[str, Any]:
    """Reads a scan and leaves its parts in `out` (`parcel`).

    Args:
      shown: the scan's name in messages.
      points: the most rows.

    Returns: {"parts", "rows"}, or {"status", "error"} with one line.
    """
    try:
        _within(declared_points(scan), points, "says it has", scan)
        loaded = load_scan(scan, reading.columns, reading.unit)
        _within(len(loaded.xyz), points, "has", scan)
        parts = parts_of(preparer, loaded, scan, reading)
        pack(parts, out)
        return {"parts": len(parts), "rows": len(loaded.xyz)}
    except (ValueError, OSError, MemoryError, RuntimeError, ArithmeticError) as error:
        status = TOO_LARGE if isinstance(error, TooLarge | MemoryError) else NOT_A_SCAN
        return {"status": status, "error": reason(error, scan).replace(str(scan), shown)}


def _within(count: int | None, most: int, what: str, scan: Path) -> None:
    if count is not None and count > most:
        raise TooLarge(f"{scan}: {what} {count:,} points, this service takes {most:,}; thin it out")


def _bound(memory: int) -> None:
    """Lets this process have so many bytes more than it has now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        there = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (there + memory, there + memory))


def serve(jobs, answers) -> None:
    """First {} or {"error"}, then the answer of every job."""
    def answer(said: dict) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    spec = json.loads(jobs.readline())
    columns = spec["reading"].pop("columns")
    reading = Reading(columns and tuple(columns), **spec["reading"])
    try:
        preparer = Preparer(Recipe(**spec["recipe"]), here=True)
    except DataError as error:
        return answer({"error": str(error)})
    with contextlib.suppress(OSError):  # no /proc: then without
        _bound(spec["memory"])
    answer({})
    for line in jobs:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, spec["seconds"] + GRACE)  # ends the process
        found = prepared(preparer, reading, Path(job["scan"]), job["shown"], spec["points"], Path(job["out"]))
        signal.setitimer(signal.ITIMER_REAL, 0)
        answer(found)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the service ends this one
    # Libraries print to standard output: keep it for answers, and send theirs to standard error.
    with os.fdopen(os.dup(1), "w") as private:
        os.dup2(2, 1)
        serve(sys.stdin, private)
