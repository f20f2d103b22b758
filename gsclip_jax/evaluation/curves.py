"""ROC and PRO curves of a category with bootstrap bands over its objects, and how well each kind of defect is found.

Curves are read at fixed false-positive rates and averaged there over categories ("vertical averaging", Fawcett 2006): the area
under the mean curve is the mean of the areas. Points are sorted into bins of equal numbers of them; objects are drawn as in
`bootstrap.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gsclip_jax.evaluation import metrics
from gsclip_jax.evaluation.bootstrap import draws

BINS = 2048
RATES = np.linspace(0, 1, 101)  # false-positive rates of both ROC curves
PRO_RATES = np.linspace(0, metrics.FPR_LIMIT, 61)


class Sample(NamedTuple):
    """Curves of one category: the measured one in row 0, then one for every resample."""

    object_roc: np.ndarray  # [1+R, 101] share of the defective objects found at RATES
    point_roc: np.ndarray  # [1+R, 101] share of the defective points
    pro: np.ndarray  # [1+R, 61] mean found share of the defective regions at PRO_RATES


def sample(found: Sequence[Mapping], resamples: int, rng: np.random.Generator) -> Sample:
    """The curves of a category; NaN where there are not both classes.

    Args:
      found: objects {points [M], valid [M], regions [M] (0 = normal), object, label}; `labelled` False: nobody marked where.
    """
    labels = np.array([int(f["label"]) for f in found])
    scores = np.array([float(f["object"]) for f in found])
    counts = np.concatenate([np.ones((1, len(found)), np.int64), draws(labels, resamples, rng)])
    bad, good = _columns(scores, labels == 1), _columns(scores, labels == 0)
    objects = _at(RATES, counts @ good, counts @ bad)
    marked = np.array([bool(f.get("labelled", True)) for f in found])
    normal, defective, overlap = _points([f for f, use in zip(found, marked, strict=True) if use])
    counts = counts[:, marked]
    return Sample(objects, _at(RATES, counts @ normal, counts @ defective), _at(PRO_RATES, counts @ normal, counts @ overlap))


def band(samples: Sequence[np.ndarray], level: float = 0.95) -> np.ndarray:
    """The mean over categories of one curve and its bootstrap band: [3, rates], measured, low, high; NaN where undefined.

    Args:
      samples: a field of `Sample` for each category, [1+R, rates].
    """
    defined = [s for s in samples if np.isfinite(s[0]).all()]
    if not defined:
        return np.full((3, samples[0].shape[1] if samples else 0), np.nan)
    mean = np.mean(defined, axis=0)
    low, high = np.quantile(mean[1:], [(1 - level) / 2, (1 + level) / 2], axis=0) if len(mean) > 1 else (mean[0], mean[0])
    return np.stack([mean[0], low, high])


def kinds(categories: Mapping[str, Sequence[Mapping]]) -> list[dict]:
    """How well each kind of defect is found, over all categories: {kind, count, o_auroc, p_auroc}, None where undefined.

    Its objects are compared with the sound ones of their own category, its points with the normal ones of their own object; both
    are means over the objects of the kind.

    Args:
      categories: name -> objects as in `sample`, with `defect`, the name of the kind.
    """
    rows: dict[str, list[tuple[float, float]]] = {}
    for found in categories.values():
        sound = np.array([float(f["object"]) for f in found if not f["label"]])
        for f in found:
            if f["label"]:
                score, valid = float(f["object"]), f["valid"]
                wins = np.mean((score > sound) + 0.5 * (score == sound)) if len(sound) else np.nan
                marked = f.get("labelled", True)
                rows.setdefault(str(f["defect"]), []).append(
                    (float(wins), metrics.roc_auc(f["regions"][valid] > 0, f["points"][valid]) if marked else np.nan)
                )
    return [{"kind": kind, "count": len(pairs), "o_auroc": _mean([o for o, _ in pairs]), "p_auroc": _mean([p for _, p in pairs])}
            for kind, pairs in sorted(rows.items())]  # fmt: skip


def _mean(values: list[float]) -> float | None:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None


def _columns(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """One column for every distinct score, the highest first: [N, columns], 1 where the object has it and the mask."""
    distinct = np.unique(-scores)
    return ((-scores)[:, None] == distinct) & mask[:, None]


def _points(found: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per object and bin, the highest scores first: normal points, defective points, found shares of regions; [N, bins] each."""
    if not found:
        return (np.zeros((0, 1)),) * 3
    edges = np.unique(np.quantile(np.concatenate([f["points"][f["valid"]] for f in found]), np.linspace(0, 1, BINS + 1)[1:-1]))
    normal, defective, overlap = (np.zeros((len(found), len(edges) + 1)) for _ in range(3))
    for row, f in enumerate(found):
        bins = np.searchsorted(edges, f["points"][f["valid"]], side="right")
        regions = f["regions"][f["valid"]].astype(np.int64)
        size = np.bincount(regions)
        share = np.divide(1.0, size, out=np.zeros(len(size)), where=size > 0)
        where = regions > 0
        normal[row] = np.bincount(bins[~where], minlength=len(edges) + 1)
        defective[row] = np.bincount(bins[where], minlength=len(edges) + 1)
        overlap[row] = np.bincount(bins[where], share[regions[where]], minlength=len(edges) + 1)
    return normal[:, ::-1], defective[:, ::-1], overlap[:, ::-1]


def _at(rates: np.ndarray, wrong: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Curves [R, rates] of what is wrongly and rightly found in every bin [R, bins], the highest scores first.

    Straight between the operating points; at a rate where the curve rises straight up, its upper end.
    """
    made = np.full((len(wrong), len(rates)), np.nan)
    for row, (x, y) in enumerate(zip(np.cumsum(wrong, 1, dtype=float), np.cumsum(right, 1, dtype=float), strict=True)):
        if x.size and x[-1] > 0 and y[-1] > 0:
            x, y = np.append(0.0, x / x[-1]), np.append(0.0, y / y[-1])
            made[row] = np.interp(rates, x, y)  # of operating points with the same rate it takes the last, the highest
    return made
