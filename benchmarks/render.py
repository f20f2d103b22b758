"""Objects per second from raw scan to record, against the published way of doing it; the same scans, one run, the ratio.

    python benchmarks/render.py [--objects 3] [--points 112896] [--scan-points 150000] [--workers N] [--out FILE]

The published way, as the authors' preparation scripts work (written anew here from their description): plain farthest point
sampling, one point at a time; a new Open3D window for every view and modality (colour, ground truth, depth); the pixel of every
point and its visibility in Python loops; three pictures a view written as PNG. One process.

Ours: `data_pipelines.records.objects.make_object` in one process a core, one window each, and the packed part written to disk.

Both start from scans in memory. Reported: each step's median, objects per second, the ratio with and without the sampling.
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
WINDOW, SIZE, VIEWS, SPLAT = 1024, 336, 9, 12.0


def scan(number: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """A scan xyz [S, 3] in millimetres with a bulge, and its labels [S]."""
    from data_pipelines.solids.synthetic import make_object

    names = ("vase", "wrench", "bolt", "pawn", "propeller")
    xyz, mask, _ = make_object(names[number % len(names)], 3, number, "bulge", points=points, difficulty="wide")
    return xyz, mask


# ---- the published way


def plain_farthest_points(xyz: np.ndarray, count: int, seed: int) -> np.ndarray:
    """One farthest point after another: count * S distances."""
    distance = np.full(len(xyz), np.inf)
    chosen = np.empty(count, np.int64)
    at = int(np.random.default_rng(seed).integers(len(xyz)))
    for i in range(count):
        chosen[i] = at
        distance = np.minimum(distance, ((xyz - xyz[at]) ** 2).sum(1))
        at = int(distance.argmax())
    return chosen


def published_views(xyz: np.ndarray, mask: np.ndarray, rotations: np.ndarray, folder: Path) -> None:
    """Pictures and point maps of one object."""
    import open3d as o3d
    from PIL import Image

    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz))
    cloud.estimate_normals(o3d.geometry.KDTreeSearchParamHybrid(radius=0.8, max_nn=30))
    for number, turn in enumerate(rotations):
        turned = o3d.geometry.PointCloud(cloud)
        turned.rotate(turn, center=turned.get_center())
        for modality in ("colour", "truth", "depth"):
            view = o3d.visualization.Visualizer()
            view.create_window(width=WINDOW, height=WINDOW, visible=False)
            grey = np.full((len(xyz), 3), 0.7)
            turned.colors = o3d.utility.Vector3dVector(np.repeat(mask[:, None], 3, 1) * 1.0 if modality == "truth" else grey)
            view.add_geometry(turned)
            option = view.get_render_option()
            option.point_size = SPLAT
            option.light_on = modality != "truth"
            option.background_color = np.zeros(3) if modality == "truth" else np.ones(3)
            if modality == "depth":
                depth = np.asarray(view.capture_depth_float_buffer(do_render=True)).copy()
                shown = depth > 0
                near, far = depth[shown].min(), depth[shown].max()
                picture = np.where(shown, 255 * (far - depth) / (far - near), 255)
            else:
                picture = np.asarray(view.capture_screen_float_buffer(do_render=True)) * 255
            if modality == "colour":
                camera = view.get_view_control().convert_to_pinhole_camera_parameters()
                k, pose = camera.intrinsic.intrinsic_matrix, camera.extrinsic
            view.destroy_window()
            image = Image.fromarray(picture.astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            image.save(folder / f"view_{number}_{modality}.png")
        points = np.asarray(turned.points)
        pixels = []
        for point in points:  # one by one
            seen_by_camera = pose[:3, :3] @ point + pose[:3, 3]
            u, v, w = k @ seen_by_camera
            pixels.append((min(max(int(u / w * SIZE / WINDOW), 0), SIZE - 1), min(max(int(v / w * SIZE / WINDOW), 0), SIZE - 1)))
        nearest: dict[tuple[int, int], int] = {}
        for i, pixel in enumerate(pixels):
            if pixel not in nearest or points[i, 2] > points[nearest[pixel], 2]:
                nearest[pixel] = i
        visible = np.zeros(len(points), np.int64)
        for i in nearest.values():
            visible[i] = 1
        np.save(folder / f"view_{number}_cor.npy", np.column_stack([np.array(pixels), visible]))


def published(objects: int, points: int, scan_points: int) -> list[dict]:
    from data_pipelines.rendering.cameras import views

    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        os.environ.pop(name, None)
    rows = []
    for number in range(objects):
        xyz, mask = scan(number, scan_points)
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            picked = plain_farthest_points(xyz, points, number)
            sampled = time.perf_counter()
            published_views(xyz[picked], mask[picked], views("ring").rotations, Path(folder))
            rows.append({"sampling": sampled - began, "rest": time.perf_counter() - sampled})
    return rows


# ---- ours


def ours(objects: list[int], points: int, scan_points: int) -> list[dict]:
    from data_pipelines.clouds import sampling as clouds
    from data_pipelines.records.objects import Recipe, make_object, write_part
    from data_pipelines.rendering.views import rasteriser
    from data_pipelines.scan import Scan

    recipe = Recipe(points, SIZE, VIEWS, "ring", WINDOW, SPLAT, 3000, 16, 0)
    draw = rasteriser(WINDOW, here=True)
    rows, sampling = [], []
    plain = clouds.farthest_points

    def timed(*args):
        began = time.perf_counter()
        found = plain(*args)
        sampling.append(time.perf_counter() - began)
        return found

    clouds.farthest_points = timed
    for number in objects:
        xyz, mask = scan(number, scan_points)
        made_of = Scan(xyz.astype(np.float32), mask, np.ones(len(xyz), bool))
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            write_part(Path(folder) / "0.npz", make_object(made_of, recipe, "bench", str(number), draw))
            whole = time.perf_counter() - began
            size = (Path(folder) / "0.npz").stat().st_size
            rows.append({"sampling": sampling[-1], "rest": whole - sampling[-1], "bytes": size})
    return rows


def child(which: str, objects: list[int], args) -> subprocess.Popen:
    """A process of its own: nothing is warm, and neither way's libraries get in the other's way."""
    command = [sys.executable, __file__, "--child", which, "--numbers", ",".join(map(str, objects))]
    command += ["--points", str(args.points), "--scan-points", str(args.scan_points)]
    env = os.environ | {"OMP_NUM_THREADS": "1" if which == "ours" else str(os.cpu_count()), "LP_NUM_THREADS": "0"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)


def rows_of(processes: list[subprocess.Popen]) -> list[dict]:
    rows = []
    for process in processes:
        out = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"error: a benchmark process ended with status {process.returncode}")
        rows += json.loads(out.splitlines()[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--points", type=int, default=SIZE * SIZE)
    parser.add_argument("--scan-points", type=int, default=150_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "render.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--numbers", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        numbers = [int(n) for n in args.numbers.split(",")]
        rows = published(len(numbers), args.points, args.scan_points) if args.child == "published" else ours(
            numbers, args.points, args.scan_points
        )
        print(json.dumps(rows))
        return
    mine = list(range(args.objects * args.workers))
    theirs = rows_of([child("published", list(range(args.objects)), args)])
    fast = rows_of([child("ours", mine[i :: args.workers], args) for i in range(args.workers)])
    median = lambda rows, key: statistics.median(row[key] for row in rows)  # noqa: E731
    result = {
        "objects": args.objects, "points": args.points, "scan_points": args.scan_points, "workers": args.workers,
        "published_seconds": {key: round(median(theirs, key), 2) for key in ("sampling", "rest")},
        "ours_seconds": {key: round(median(fast, key), 2) for key in ("sampling", "rest")},
        "bytes_per_object": int(median(fast, "bytes")),
    }  # fmt: skip
    slow, quick = result["published_seconds"], result["ours_seconds"]
    result["objects_per_second"] = {
        "published": round(1 / sum(slow.values()), 4), "ours": round(args.workers / sum(quick.values()), 3)
    }  # fmt: skip
    result["ratio"] = round(args.workers * sum(slow.values()) / sum(quick.values()), 1)
    result["ratio_without_sampling"] = round(args.workers * slow["rest"] / quick["rest"], 1)
    result["machine"] = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
