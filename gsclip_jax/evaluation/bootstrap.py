"""How far a metric would scatter with other objects of the same kind: percentile bootstrap over objects (Efron 1979).

Objects are drawn anew with replacement, sound and defective ones apart, category by category; points of one object stay together,
as they are anything but independent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gsclip_jax.evaluation import metrics

BINS = 4096


def draws(labels: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of the objects, labels int [N], is drawn: int [resamples, N], both classes as many as there are."""
    counts = np.zeros((resamples, len(labels)), np.int64)
    for kind in np.unique(labels):
        rows = np.flatnonzero(labels == kind)
        counts[:, rows] = rng.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    return counts


def object_auroc(labels: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """O-AUROC [R] of every resample: labels int [N], scores [N], counts int [R, N] of `draws`. NaN with one class alone."""
    good, bad = scores[labels == 0], scores[labels == 1]
    if not len(good) or not len(bad):
        return np.full(len(counts), np.nan)
    wins = (bad[:, None] > good) + 0.5 * (bad[:, None] == good)
    over_good, over_bad = counts[:, labels == 0], counts[:, labels == 1]
    return np.einsum("rb,bg,rg->r", over_bad, wins, over_good) / (over_bad.sum(1) * over_good.sum(1))


def point_auroc(found: Sequence[Mapping], counts: np.ndarray) -> np.ndarray:
    """P-AUROC [R] of every resample, points pooled: `found` as `score.py` keeps the objects, counts int [R, N].

    Scores are sorted into BINS bins of equal numbers of points; points of one bin count as ties.
    """
    pooled = np.concatenate([f["points"][f["valid"]] for f in found])
    edges = np.unique(np.quantile(pooled, np.linspace(0, 1, BINS + 1)[1:-1]))
    tables = np.zeros((2, len(found), len(edges) + 1))
    for row, f in enumerate(found):
        bins = np.searchsorted(edges, f["points"][f["valid"]], side="right")
        mask = f["point_mask"][f["valid"]]
        for kind in (0, 1):
            tables[kind, row] = np.bincount(bins[mask == kind], minlength=len(edges) + 1)
    good, bad = counts @ tables[0], counts @ tables[1]  # [R, bins]
    below = np.cumsum(good, 1) - 0.5 * good
    with np.errstate(invalid="ignore"):
        return (bad * below).sum(1) / (bad.sum(1) * good.sum(1))


def intervals(
    categories: Mapping[str, Sequence[Mapping]], resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float, float]]:
    """{"o_auroc", "p_auroc"} -> (value, low, high): the mean over categories, as measured and its bootstrap interval.

    Args:
      categories: name -> objects {points, valid, point_mask [M], object, label}.
    """
    rng = np.random.default_rng(seed)
    columns: dict[str, list[tuple[float, np.ndarray]]] = {"o_auroc": [], "p_auroc": []}
    for found in categories.values():
        labels = np.array([int(f["label"]) for f in found])
        scores = np.array([float(f["object"]) for f in found])
        counts = draws(labels, resamples, rng)
        columns["o_auroc"].append((metrics.roc_auc(labels.astype(bool), scores), object_auroc(labels, scores, counts)))
        mask = np.concatenate([f["point_mask"][f["valid"]] for f in found])
        points = np.concatenate([f["points"][f["valid"]] for f in found])
        columns["p_auroc"].append((metrics.roc_auc(mask, points), point_auroc(found, counts)))
    tails = 50 * (1 - level), 50 * (1 + level)
    out = {}
    for name, rows in columns.items():
        low, high = np.percentile(np.nanmean([sample for _, sample in rows], axis=0), tails)
        out[name] = (float(np.nanmean([value for value, _ in rows])), float(low), float(high))
    return out
