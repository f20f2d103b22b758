"""Hundreds of scans through `gsclip inspect`: what memory does, and what kills leave behind.

    python benchmarks/stream.py [--real ../shared/data/real3d_ad] [--parts 500] [--kills 10] [--workdir runs/stream]
        [--out benchmarks/stream.md]

Copies of real scans, thinned and with noise of their own, are inspected twice by the same command: once undisturbed, with the
memory of the command and of its drawing process read while it goes, and once killed (SIGKILL) at random moments and
started again. The second folder of results has to say what the first one says: every part once, the same scores, every file
there, and not one scan touched. The model is the embedded one with fewer scored points and fewer, smaller drawings, so that a
part takes less than a second. Fails where anything is lost, or where the last parts take a tenth more memory than the first.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

DRAWN = {"views": 3, "window": 160}  # window: pixels of the drawings
GROWTH = 1.1  # of the peak memory, last window of parts over first


def write_scans(real: Path, folder: Path, parts: int, points: int) -> list[Path]:
    """Copies of the scans below `real`, each with rows of its own and noise of a thousandth of its size."""
    from data_pipelines.clouds.files import read_cloud

    sources = sorted(real.rglob("*.pcd"))
    if not sources:
        raise ValueError(f"--real {real}: no .pcd file there")
    folder.mkdir(parents=True, exist_ok=True)
    clouds = [read_cloud(path) for path in sources[:parts]]
    scans = []
    for number in range(parts):
        rng, xyz = np.random.default_rng(number), clouds[number % len(clouds)]
        rows = rng.permutation(len(xyz))[:points]
        moved = xyz[rows] + rng.normal(0, 1e-3 * np.ptp(xyz, axis=0).max(), (len(rows), 3))
        scans.append(folder / f"{number:04d} {sources[number % len(clouds)].stem}.xyz")
        np.savetxt(scans[-1], moved, fmt="%.4f")
    return scans


def small_model(folder: Path, scored: int) -> Path:
    """The embedded model with fewer scored points and fewer, smaller drawings."""
    from gsclip_jax.inspection.model import EMBEDDED

    shutil.copytree(EMBEDDED, folder, dirs_exist_ok=True)
    about = json.loads((folder / "config.json").read_text())
    about["config"]["data"] |= {"points": scored, **DRAWN}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def start(scans: Path, model: Path, out: Path) -> subprocess.Popen:
    words = [sys.executable, "-m", "experiments.predict", str(scans), "--model", str(model), "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    log = (out.parent / f"{out.name}.log").open("a")
    return subprocess.Popen(words, stdout=log, stderr=log, env=env)


def resident(process: int) -> int:
    """Bytes that a process and those below it hold."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        main = psutil.Process(process)
        for each in (main, *main.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
    return total


def done(out: Path) -> int:
    path = out / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def undisturbed(scans: Path, model: Path, out: Path, window: int) -> dict[int, int]:
    """Runs the command to its end: peak bytes by window of so many parts; the pages come after the last part."""
    process, peaks = start(scans, model, out), {}
    while process.poll() is None:
        now = done(out) // window
        peaks[now] = max(peaks.get(now, 0), resident(process.pid))
        time.sleep(0.1)
    if process.returncode:
        raise RuntimeError(f"the undisturbed run ended with {process.returncode}; see {out}.log")
    return peaks


def killed(scans: Path, model: Path, out: Path, parts: int, kills: int, seed: int) -> list[str]:
    """Starts the command, kills it at a random moment, and so on; then lets it end. What was wrong, a line each."""
    rng, wrong = np.random.default_rng(seed), []
    for number in range(kills):
        before, process = done(out), start(scans, model, out)
        more = int(rng.integers(0, max(2 * (parts - before) // (kills + 1 - number), 1)))  # 0: while it starts
        began, patience = time.monotonic(), rng.uniform(0, 10 if not more else 1)
        while process.poll() is None and (done(out) < before + more if more else time.monotonic() - began < patience):
            time.sleep(0.02)
        time.sleep(patience if more else 0)
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
        if process.poll() is not None:
            wrong.append(f"kill {number + 1} came after the end")
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        lines = (out / "results.jsonl").read_bytes().splitlines() if (out / "results.jsonl").exists() else []
        print(f"kill {number + 1}: {len(lines)} parts were done", file=sys.stderr, flush=True)
        if len(lines) < before:
            wrong.append(f"kill {number + 1}: {before} parts were there before, {len(lines)} after")
        time.sleep(3)
        left = [each for each in below if each.is_running()]
        if left:
            wrong.append(f"kill {number + 1}: {len(left)} processes of it go on")
    process = start(scans, model, out)
    if process.wait():
        wrong.append(f"the last call ended with {process.returncode}; see {out}.log")
    return wrong


def compared(scans: list[Path], flat: Path, broken: Path) -> list[str]:
    """How the results of the killed calls differ from those of the undisturbed one, a line each."""
    wrong = []
    first, second = ([json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()] for out in (flat, broken))
    for rows, out in ((first, flat), (second, broken)):
        names = sorted(row["source"] for row in rows)
        if names != sorted(map(str, scans)):
            wrong.append(f"{out}: {len(rows)} lines of {len(set(names))} scans, {len(scans)} expected")
        with (out / "results.csv").open(newline="") as file:
            if sorted(row["source"] for row in csv.DictReader(file)) != names:
                wrong.append(f"{out}: results.csv and results.jsonl name other parts")
        files = {path.name for path in (out / "parts").iterdir()}
        expected = {row["name"] + ending for row in rows for ending in (".ply", ".json")}
        if files != expected:
            wrong.append(f"{out}: {len(expected - files)} files of parts are missing, {len(files - expected)} are no part's")
    scores = [{row["source"]: row["score"] for row in rows} for rows in (first, second)]
    if scores[0] != scores[1]:
        wrong.append("scores of the killed calls are not those of the undisturbed one")
    return wrong


def main() -> int:
    from data_pipelines.files import checksum

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", type=Path, default=Path("../shared/data/real3d_ad"), help="folder with scans as .pcd files")
    parser.add_argument("--workdir", type=Path, default=Path("runs/stream"), help="made anew")
    for name, default in (("parts", 500), ("kills", 10), ("points", 2000), ("scored", 1024), ("window", 100), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    options = parser.parse_args()
    home = options.workdir
    if home.exists():
        raise ValueError(f"--workdir {home} exists and stays as it is; name another folder, or remove it")
    scans = write_scans(options.real, home / "scans", options.parts, options.points)
    before = {path: (checksum(path), path.stat().st_mtime_ns) for path in scans}
    model = small_model(home / "model", options.scored)
    began = time.monotonic()
    peaks = undisturbed(home / "scans", model, home / "flat", options.window)
    took = time.monotonic() - began
    wrong = killed(home / "scans", model, home / "killed", options.parts, options.kills, options.seed)
    wrong += compared(scans, home / "flat", home / "killed")
    after = {path: (checksum(path), path.stat().st_mtime_ns) for path in (home / "scans").iterdir()}
    wrong += [] if before == after else ["scans have changed"]
    windows = sorted(peaks)
    last = max(number for number in windows if (number + 1) * options.window <= options.parts)
    if peaks[last] > GROWTH * peaks[windows[0]]:
        wrong.append(f"memory grew from {peaks[windows[0]] / 1e6:.0f} to {peaks[last] / 1e6:.0f} MB")
    text = "\n".join([
        "# Hundreds of scans in one call\n",
        f"Made by `python benchmarks/stream.py --parts {options.parts} --kills {options.kills}` (see there): {options.points} "
        f"points a scan, {options.scored} of them scored, {DRAWN['views']} views, {took:.0f} s undisturbed.\n",
        "| parts | peak memory of the command and its drawing process, MB |", "|---|---|",
        *(f"| {number * options.window + 1} to {min((number + 1) * options.window, options.parts)} | {peaks[number] / 1e6:.0f} |"
          for number in windows if number * options.window < options.parts),
        *(f"| the pages, at the end | {peaks[number] / 1e6:.0f} |" for number in windows[-1:]
          if number * options.window >= options.parts),
        "", f"Killed {options.kills} times at random moments and started again: " + (
            "every part is there once, with the score and the files of the undisturbed call; no scan was touched."
            if not wrong else "; ".join(wrong)), "",
    ])  # fmt: skip
    print(text)
    if options.out:
        options.out.write_text(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
