"""Objects per second from records on disk to batches in memory, on one core; beside it the authors' files with PIL and numpy.

    python benchmarks/input.py [--objects 6] [--points 112896] [--epochs 5] [--out FILE]

Two kinds of scans, both at the paper's sizes by default: clouds (Real3D-AD's recipe) and organised ones (MVTec 3D-AD's). The peer
reads the same objects as the authors keep them: three PNGs a view, an array of pixel and visibility a view, and the points; it
does not batch. Medians over the epochs, one run, each measurement in a process of its own that holds one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
VIEWS, BATCH = 9, 2


def write_scans(root: Path, kind: str, objects: int, points: int) -> None:
    """Scans of the embedded data set: as clouds, or as seen by a sensor above them, a square of x, y, z."""
    from data_pipelines.solids.synthetic import make_object

    for number in range(objects):
        at = root / "part" / ("good" if number else "defective")  # training batches want one
        at.mkdir(parents=True, exist_ok=True)
        xyz, _, _ = make_object("pawn", 3, number, "good", points=round(1.2 * points), difficulty="wide")
        if kind == "clouds":
            np.save(at / f"{number}.npy", xyz.astype(np.float32))
            continue
        import tifffile

        side = round(points**0.5)
        low, high = xyz.min(0), xyz.max(0)
        column, row = ((xyz[:, :2] - low[:2]) / (high - low)[:2] * (side - 1)).round().astype(int).T
        grid, order = np.zeros((side, side, 3), np.float32), np.argsort(xyz[:, 2])
        grid[row[order], column[order]] = xyz[order] + [0, 0, 100]  # the nearest to the sensor last
        tifffile.imwrite(at / f"{number}.tiff", grid)


def make_records(folder: Path, kind: str, objects: int, points: int):
    from data_pipelines.datasets import data_config
    from data_pipelines.records.store import prepare

    write_scans(folder / kind, kind, objects, points)
    side = round(points**0.5)
    sizes = {} if side == 336 else {"points": points, "image_size": side, "window": 2 * side}
    config = data_config("folder", str(folder / kind), sizes)
    return prepare(config, folder / "cache", workers=os.cpu_count(), progress=lambda line: print(line, file=sys.stderr))


def write_published(records, folder: Path) -> None:
    """The same objects as the authors keep them."""
    from PIL import Image

    from data_pipelines.input import eval_batches

    for number, batch in enumerate(eval_batches(records, batch_size=1)):
        at = folder / str(number)
        at.mkdir(parents=True)
        for view in range(VIEWS):
            for name in ("render", "depth", "view_mask"):
                pixels = batch[name][0, view].astype(np.uint8) * (255 if name == "view_mask" else 1)
                Image.fromarray(pixels).convert("RGB" if name == "render" else "L").save(at / f"{view}_{name}.png")
            seen = batch["visible"][0, view].astype(np.int64)
            np.save(at / f"{view}_cor.npy", np.column_stack([batch["pixel"][0, view].astype(np.int64), seen]))
        np.save(at / "points.npy", batch["xyz"][0].astype(np.float64))


def read_records(folder: Path, epochs: int) -> list[float]:
    """Seconds of each epoch of the stream that training reads."""
    from data_pipelines.input import train_batches
    from data_pipelines.records.store import open_records

    records, seconds = open_records(folder), []
    batches = train_batches(records, batch_size=BATCH, seed=0)
    for _ in range(epochs + 1):
        began = time.perf_counter()
        for _ in range(len(records.index) // BATCH):
            assert next(batches)["render"].shape[:2] == (BATCH, VIEWS)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]  # the first builds the pipeline and warms the disk's cache


def read_published(folder: Path, epochs: int) -> list[float]:
    from PIL import Image

    seconds = []
    for _ in range(epochs + 1):
        began = time.perf_counter()
        for at in sorted(folder.iterdir()):
            for view in range(VIEWS):
                for name in ("render", "depth", "view_mask"):
                    np.asarray(Image.open(at / f"{view}_{name}.png"))
                np.load(at / f"{view}_cor.npy")
            np.load(at / "points.npy")
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def child(which: str, folder: Path, epochs: int) -> float:
    """Median seconds an epoch, measured by a process on one core."""
    command = [sys.executable, __file__, "--child", which, "--folder", str(folder), "--epochs", str(epochs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--objects", type=int, default=6)
    parser.add_argument("--points", type=int, default=336 * 336)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "input.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(json.dumps({"records": read_records, "published": read_published}[args.child](args.folder, args.epochs)))
        return
    if args.objects % BATCH or round(args.points**0.5) ** 2 != args.points:
        raise SystemExit(f"error: --objects has to be a multiple of {BATCH}, --points a square")
    result: dict = {"objects": args.objects, "points": args.points}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("clouds", "organised"):
            records = make_records(Path(folder), kind, args.objects, args.points)
            write_published(records, Path(folder) / "published" / kind)
            ours = args.objects / child("records", records.dir, args.epochs)
            theirs = args.objects / child("published", Path(folder) / "published" / kind, args.epochs)
            size = sum(path.stat().st_size for path in records.dir.rglob("*.tfrecord*"))
            result[kind] = {
                "objects_per_second": round(ours, 1), "published_layout": round(theirs, 1), "ratio": round(ours / theirs, 1),
                "megabytes_per_object": round(size / args.objects / 1e6, 2),
            }  # fmt: skip
    result["machine"] = f"one core of {os.cpu_count()}, {platform.machine()}, Python {platform.python_version()}"
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
