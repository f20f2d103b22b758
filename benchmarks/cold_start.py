"""Seconds from the start of `gsclip inspect` to the first score, and of every part after it, with its page.

    python benchmarks/cold_start.py [--parts 12] [--points 20000] [--runs 3] [--out benchmarks/cold_start.md]

Twelve text tables of made solids are inspected by the embedded model, and by the same as a StableHLO program: once where JAX has
nothing compiled, then as often as --runs says where it has. Every run is a new process with a new folder of results; what is
said is timed as it comes out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

COMMAND = [sys.executable, "-m", "experiments.cli"]


class Run(NamedTuple):
    """Seconds to the first score, seconds a part after it, and to the end."""

    first: float
    part: float
    whole: float


def write_parts(folder: Path, parts: int, points: int) -> None:
    """Ellipsoids as text tables, each another."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(parts):
        xyz = rng.standard_normal((points, 3))
        xyz = xyz / np.linalg.norm(xyz, axis=1, keepdims=True) * [30, 20, 15 + number]
        np.savetxt(folder / f"part{number:03d}.csv", xyz, delimiter=",", fmt="%.4f", header="x,y,z", comments="")


def inspected(folder: Path, out: Path, compiled: Path, *more: str) -> Run:
    """One run of the command, with what JAX has compiled in `compiled`."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(compiled), "PYTHONUNBUFFERED": "1"}
    start, times = time.monotonic(), []
    child = subprocess.Popen([*COMMAND, "inspect", str(folder), "--out", str(out), *more], env=env, cwd=folder.parent,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
    said = []
    for line in child.stdout:
        said.append(line)
        times += [time.monotonic() - start] * (": score " in line)
    if child.wait() or len(times) < 2:
        raise SystemExit(f"error: the command failed: {''.join(said[-3:])}")
    return Run(times[0], (times[-1] - times[0]) / (len(times) - 1), time.monotonic() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=12)
    parser.add_argument("--points", type=int, default=20000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_parts(root / "parts", options.parts, options.points)
        export = [*COMMAND, "export", "--out", str(root / "model"), "--format", "stablehlo"]
        subprocess.run(export, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
        rows, load = [], os.getloadavg()[0]
        for kind, more in (("the embedded model", ()), ("the same, exported as StableHLO", ("--model", str(root / "model")))):
            found = [inspected(root / "parts", root / f"{len(rows)}-{run}", root / f"xla{len(more)}", *more)
                     for run in range(options.runs + 1)]  # fmt: skip
            medians = Run(*(statistics.median(values) for values in zip(*found[1:], strict=True)))
            rows.append(f"| {kind} | {found[0].first:.1f} | {medians.first:.1f} | {medians.part:.2f} | {medians.whole:.1f} |")
    from gsclip_jax.inspection.batch import cores

    command = f"python benchmarks/cold_start.py --parts {options.parts} --points {options.points} --runs {options.runs}"
    text = f"""# From the command to the first score

Made by `{command}` (see there) on {cores()} cores (load at its start: {load:.1f}).
Seconds from the start of the process; medians of {options.runs} runs, but the first column is of one.

| model | first score, nothing compiled yet | first score | a part after it, with its page | {options.parts} parts in all |
|---|---|---|---|---|
""" + "\n".join(rows) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
