"""python -m experiments.predict SCAN... --out DIR [--workdir RUN]

Scores scans of any object: DIR/NAME.ply is the scan coloured by its point scores, DIR/NAME.png shows the views and where the
scores are high, DIR/NAME.npy holds one score a point in the scan's own order, DIR/scores.json the object scores. Without
--workdir the embedded model is used.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

FORMATS = ".pcd .ply .xyz .txt .csv .npy"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 when a scan could not be scored (the others are)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.predict", description=__doc__.split("\n\n")[1])
    parser.add_argument("scans", nargs="+", metavar="SCAN", type=Path, help=f"point clouds ({FORMATS})")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--workdir", type=Path, metavar="RUN", help="a work directory of experiments.run (default: embedded model)"
    )
    args = parser.parse_args(arguments)
    try:
        failures = predict(args.scans, args.out, args.workdir)
    except (ValueError, OSError) as error:
        if os.environ.get("GSCLIP_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 1 if failures else 0


def predict(scans: list[Path], out: Path, workdir: Path | None = None) -> list[str]:
    """Scores the scans and writes DIR; returns the lines that say which scans could not be scored."""
    import jax

    from data_pipelines.cloud_files import read_cloud
    from data_pipelines.clouds import clean
    from data_pipelines.datasets import DataError, Scan
    from data_pipelines.objects import make_object, recipe_of, to_batch
    from experiments.build import data_config
    from experiments.export import EMBEDDED, load_model
    from gsclip_jax.evaluate import write_json

    method, params, stats, config = load_model((workdir / "model") if workdir else EMBEDDED)
    recipe = recipe_of(data_config(config))
    score = jax.jit(method.predict)
    out.mkdir(parents=True, exist_ok=True)
    names = _names(scans)
    table, failures = {}, []
    for path, name in zip(scans, names, strict=True):
        try:
            xyz = clean(read_cloud(path), path)
        except DataError as error:
            failures.append(str(error))
            print(f"error: {error}", file=sys.stderr)
            continue
        everything = np.ones(len(xyz), bool)
        # Drawn by one seed for every scan: the same scan scores the same, whatever it is called.
        made = make_object(Scan(xyz=xyz, mask=~everything, valid=everything), recipe, "", "")
        scores = jax.device_get(score(params, stats, to_batch([made])))
        points = to_scan(scores.points[0], made["xyz"], made["valid"], xyz)
        write(out, name, made, scores.points[0], xyz, points)
        table[name] = {
            "scan": str(path),
            "score": round(float(scores.object[0]), 6),
            "max_point_score": round(float(points.max()), 6),
        }
        print(f"{path}: object score {scores.object[0]:.3f}, highest point score {points.max():.3f}")
    write_json(out / "scores.json", table)
    return failures


def _names(scans: list[Path]) -> list[str]:
    """File names without ending; those that meet get a number."""
    names: list[str] = []
    for path in scans:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}_{number}", number + 1
        names.append(name)
    return names


def to_scan(points: np.ndarray, scored_xyz: np.ndarray, valid: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Scores of the scored points [M] -> one for every point of the scan [S], the nearest scored point's."""
    from scipy.spatial import cKDTree

    nearest = cKDTree(scored_xyz[valid]).query(xyz)[1]
    return points[valid][nearest].astype(np.float32)


def write(out: Path, name: str, made: dict, scored: np.ndarray, xyz: np.ndarray, points: np.ndarray) -> None:
    """NAME.npy, NAME.ply and NAME.png. Colours run from the scan's median score to its top."""
    import open3d as o3d

    from experiments import pictures

    low, high = (float(v) for v in np.quantile(points, [0.5, 0.999]))
    np.save(out / f"{name}.npy", points)
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(xyz.astype(np.float64)))
    colours = pictures.heat_colours((points - low) / max(high - low, 1e-12)) / 255.0
    cloud.colors = o3d.utility.Vector3dVector(colours)
    if not o3d.io.write_point_cloud(str(out / f"{name}.ply"), cloud):
        raise OSError(f"could not write {out / name}.ply")
    # The views in which the highest scores are seen best.
    hot = scored >= np.quantile(scored[made["valid"]], 0.99)
    order = np.argsort(-(made["seen"] & hot).sum(1), kind="stable")[:3]
    rows = [[p for i, p in enumerate(pictures.panels(made, scored, low, high, int(view))) if i != 2] for view in order]
    labels = [f"{name}\nview {int(view) + 1}" for view in order]
    pictures.save(pictures.sheet(rows, ["rendered view", "depth view", "point scores"], labels), out / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
