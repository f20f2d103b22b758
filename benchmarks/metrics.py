"""Our metrics against sklearn and a plain reference: the same numbers, ratios of medians in one run, memory.

    pip install scikit-learn
    python benchmarks/metrics.py --points 2000000 --json benchmarks/metrics.json

AUROC and average precision are compared with sklearn's; PRO with the definition written down plainly (one threshold at a time,
every region by itself). Memory is the most that numpy held at once beside the inputs (tracemalloc).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import ndimage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def plain_pro(maps: list[np.ndarray], masks: list[np.ndarray], fpr_limit: float = 0.3, thresholds: int = 2000) -> float:
    """Area under mean region overlap against false-positive rate up to `fpr_limit`, over it; trapezoids between thresholds."""
    regions = [(score, label == i) for score, mask in zip(maps, masks, strict=True)
               for label, count in [ndimage.label(mask, np.ones((3, 3)))] for i in range(1, count + 1)]  # fmt: skip
    sound = np.concatenate([score[~mask] for score, mask in zip(maps, masks, strict=True)])
    limits = np.quantile(sound, np.linspace(1, 1 - 1.02 * fpr_limit, thresholds))
    rates = [0.0, *((sound >= limit).mean() for limit in limits)]
    overlap = [0.0, *(np.mean([(score[region] >= limit).mean() for score, region in regions]) for limit in limits)]
    grid = np.linspace(0, fpr_limit, 20001)
    return float(np.trapezoid(np.interp(grid, rates, overlap), grid) / fpr_limit)


def figures(work: Callable[[], float], repeats: int) -> dict[str, float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = work()
        times.append(time.perf_counter() - start)
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"value": float(value), "seconds": statistics.median(times), "megabytes": most / 1e6}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--points", type=int, default=2_000_000, help="scored points of AUROC and AP (default: %(default)s)")
    parser.add_argument("--maps", type=int, default=20, help="maps of 336 x 336 for PRO (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="of every figure; the median is given (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    from sklearn.metrics import average_precision_score, roc_auc_score

    from gsclip_jax.evaluation import metrics

    rng = np.random.default_rng(0)
    labels = rng.random(options.points) < 0.03
    scores = (rng.standard_normal(options.points) + labels).astype(np.float32)
    masks = [np.zeros((336, 336), bool) for _ in range(options.maps)]
    for mask in masks:
        for _ in range(3):
            y, x, side = *rng.integers(0, 300, 2), rng.integers(6, 36)
            mask[y : y + side, x : x + side] = True
    maps = [ndimage.gaussian_filter(rng.standard_normal((336, 336)) + 0.5 * mask, 2).astype(np.float32) for mask in masks]

    def our_pro() -> float:
        regions = metrics.join_regions([metrics.regions_grid(mask).ravel() for mask in masks])
        return metrics.p_pro(regions, np.concatenate([score.ravel() for score in maps]))

    pairs = {
        "auroc": (lambda: metrics.roc_auc(labels, scores), lambda: roc_auc_score(labels, scores)),
        "average precision": (lambda: metrics.average_precision(labels, scores), lambda: average_precision_score(labels, scores)),
        "pro": (our_pro, lambda: plain_pro(maps, masks)),
    }  # fmt: skip
    rows = {}
    for name, (ours, other) in pairs.items():
        mine, theirs = figures(ours, options.repeats), figures(other, 1 if name == "pro" else options.repeats)
        apart = abs(mine["value"] - theirs["value"])
        if not apart < (2e-4 if name == "pro" else 1e-6):
            raise SystemExit(f"{name}: ours {mine['value']}, reference {theirs['value']}; nothing is measured")
        rows[name] = {"ours": mine, "reference": theirs, "apart": apart, "ratio": theirs["seconds"] / mine["seconds"]}
    about = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "load": round(os.getloadavg()[0], 1)}
    found = about | {"points": options.points, "maps": options.maps, "rows": rows}
    print(json.dumps(found, indent=1))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
