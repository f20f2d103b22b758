"""Scans of parts on a table: what `--remove-plane` gives back.

    python benchmarks/table.py [--real ../shared/data/real3d_ad] [--each 2] [--workdir runs/table] [--out benchmarks/table.md]

Defective scans of real shapes are put onto a plane of points as dense as their own, which touches the lowest of them and has none
where the part hides it. `gsclip inspect` scores each bare, on the table, and on the table with --remove-plane; the AUROC over
the part's own points says how well the defect is found. Rows of the part that are taken away with the table count as the
soundest. Fails where the mean with --remove-plane is further than .03 below that of the bare parts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

BOUND = 0.03
WAYS = {"bare": (), "on the table": (), "on the table, --remove-plane": ("--remove-plane",)}


def on_a_table(xyz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The points [S,3] of a scan from above, and below them those of a table."""
    from scipy.spatial import cKDTree

    from data_pipelines.clouds.cleaning import spacing

    apart, (low, high) = spacing(xyz), (xyz.min(0), xyz.max(0))
    side = 1.5 * (high - low)[:2].max()
    # As many points an area as a scan that sees them from above has: its middle spacing is about half of one by area.
    grid = np.arange(-side / 2, side / 2, 2 * apart)
    flat = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2) + (low + high)[:2] / 2
    flat = flat + rng.uniform(-apart, apart, flat.shape)
    free = cKDTree(xyz[:, :2]).query(flat)[0] > 2 * apart
    table = np.column_stack([flat[free], np.full(free.sum(), low[2])])
    return np.concatenate([xyz, table + rng.normal(0, 0.1 * apart, table.shape)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", type=Path, default=Path("../shared/data/real3d_ad"))
    parser.add_argument("--each", type=int, default=2, help="defective scans of each shape")
    parser.add_argument("--workdir", type=Path, default=Path("runs/table"), help="stopped, the same command goes on")
    parser.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    options = parser.parse_args()
    from data_pipelines.clouds.loading import load_scan
    from data_pipelines.datasets.real3d import Real3D
    from gsclip_jax.evaluation.metrics import roc_auc
    from gsclip_jax.inspection import command

    reader, truths = Real3D(options.real), {}
    folders = {way: options.workdir / ("bare" if way == "bare" else "table") for way in WAYS}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for category in reader.categories():
        spoilt = [sample for sample in reader.samples(category) if sample.label]
        for sample in spoilt[:: max(1, len(spoilt) // options.each)][: options.each]:
            scan, name = reader.load(sample), f"{category} {sample.id}"
            truths[name] = scan.mask
            for way, folder in folders.items():
                xyz = scan.xyz if way == "bare" else on_a_table(scan.xyz, np.random.default_rng(0))
                if not (folder / f"{name}.npy").exists():  # a scan that stays as it is needs no second inspection
                    np.save(folder / f"{name}.npy", xyz)
    found: dict[str, dict[str, float]] = {}
    for way, words in WAYS.items():
        out = options.workdir / f"results {way}"
        if command.main([str(folders[way]), "--out", str(out), *words]):
            raise RuntimeError(f"not every scan could be inspected; see {out}")
        for name, mask in truths.items():
            scores = load_scan(out / "parts" / f"{name}.ply").attributes["score"][: len(mask)]
            scores = np.where(np.isnan(scores), -1, scores)
            found.setdefault(name, {})[way] = float(roc_auc(mask, scores))
    values = np.array([list(row.values()) for row in found.values()])
    mean = values.mean(0)
    lines = [f"| part | {' | '.join(WAYS)} |", "|---|" + "---|" * len(WAYS)]
    lines += [f"| {name} | {' | '.join(f'{value:.3f}' for value in row.values())} |" for name, row in found.items()]
    lines += [f"| mean of {len(found)} | {' | '.join(f'{value:.3f}' for value in mean)} |", "",
              f"Largest loss of one part with --remove-plane: {np.max(values[:, 0] - values[:, 2]):.3f}."]  # fmt: skip
    text = "\n".join(["# Parts on a table\n", "Made by `python benchmarks/table.py` (see there): P-AUROC over the part's own "
                      "points, embedded model, real shapes.\n", *lines, ""])  # fmt: skip
    print(text)
    if options.out:
        options.out.write_text(text)
    return int(mean[0] - mean[2] > BOUND)


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
