"""Detection metrics, exact over all thresholds: AUROC, average precision, F1-max, P-PRO; and the released P-PRO.

numpy and scipy only. Ties are handled as what they are: points of equal score enter together, and curves are straight
between the operating points that exist. A metric that its data do not define (a single class, no region, no normal
point) is `nan`, never 0; results.json turns that into null. One sort decides everything, so that a category of a
hundred objects with 112 896 points each takes seconds.

Axes: n scores (objects, or the valid points of all objects of a category in one row), R regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

FPR_LIMIT = 0.3


# ---------------------------------------------------------------- the curve all metrics share


class Curve(NamedTuple):
    """Operating points "score >= thresholds[i]", from the highest threshold down; one for each distinct score.

    positives, negatives: int64 [t], points of either class found so far.
    overlap: float64 [t], mean over the regions of the found share of a region (nan without regions).
    """

    thresholds: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray
    overlap: np.ndarray


def _checked(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores).ravel(), np.asarray(labels).ravel()
    if scores.shape != labels.shape:
        raise ValueError(f"metrics: {scores.size} scores but {labels.size} labels")
    if scores.dtype not in (np.float32, np.float64):
        scores = scores.astype(np.float64)
    wrong = scores.size - int(np.count_nonzero(np.isfinite(scores)))
    if wrong:
        raise ValueError(f"metrics: {wrong} of {scores.size} scores are NaN or infinite")
    return scores, labels


def _falling(scores: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and their marks (int, 0 <= mark < 2^32), both in order of falling score."""
    if scores.dtype != np.float32:
        order = np.argsort(-scores, kind="stable")
        return scores[order], marks[order]
    # One sort of 64-bit words (order-preserving code of the float above, mark below) beats argsort several times.
    bits = scores.view(np.uint32)  # -0.0 and 0.0 stay neighbours and compare equal
    code = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))  # ascending code = falling float
    words = (code.astype(np.uint64) << np.uint64(32)) | marks.astype(np.uint64)
    words.sort()
    code = (words >> np.uint64(32)).astype(np.uint32)
    bits = np.where(code >> 31, code, ~code & np.uint32(0x7FFFFFFF))
    return bits.view(np.float32), (words & np.uint64(0xFFFFFFFF)).astype(np.int64)


def curve(scores: np.ndarray, regions: np.ndarray) -> Curve:
    """The operating points of scores [n] with regions int [n]: 0 = normal, r >= 1 = defective, in region r.

    For metrics without regions pass labels 0/1. Region numbers must be distinct between objects: `join_regions`.
    Raises: ValueError on NaN or infinite scores, differing lengths, negative regions.
    """
    scores, regions = _checked(scores, regions)
    if regions.dtype == bool:
        regions = regions.astype(np.int64)
    if not np.issubdtype(regions.dtype, np.integer):
        raise ValueError(f"metrics: labels and regions must be bool or integer, are {regions.dtype}")
    if scores.size == 0:
        empty = np.zeros(0, np.int64)
        return Curve(scores, empty, empty, np.zeros(0))
    if regions.min() < 0:
        raise ValueError("metrics: negative labels or regions")
    scores, regions = _falling(scores, regions)
    last = np.append(np.flatnonzero(scores[1:] != scores[:-1]), scores.size - 1)  # of every run of equal scores
    positives = np.cumsum(regions > 0, dtype=np.int64)[last]
    sizes = np.bincount(regions)
    sizes[0] = 0
    count = np.count_nonzero(sizes)
    share = np.divide(1.0, sizes * count, out=np.zeros(sizes.size), where=sizes > 0)  # of one point in the mean
    overlap = np.cumsum(share[regions])[last] if count else np.full(last.size, np.nan)
    return Curve(scores[last], positives, last + 1 - positives, overlap)


def _auroc(c: Curve) -> float:
    if not c.positives.size or not c.positives[-1] or not c.negatives[-1]:
        return math.nan
    before = np.append(0, c.positives[:-1])
    steps = np.diff(c.negatives, prepend=0)
    # Twice the area in whole numbers of (negative, positive) pairs, so exact; float only beyond 2^53.
    twice = float(np.sum(steps.astype(np.float64) * (before + c.positives)))
    return twice / 2 / (float(c.positives[-1]) * float(c.negatives[-1]))


def _average_precision(c: Curve) -> float:
    if not c.positives.size or not c.positives[-1]:
        return math.nan
    precision = c.positives / (c.positives + c.negatives)
    return float(np.sum(np.diff(c.positives, prepend=0) * precision) / c.positives[-1])


def _f1_max(c: Curve) -> tuple[float, float]:
    if not c.positives.size or not c.positives[-1]:
        return math.nan, math.nan
    f1 = 2 * c.positives / (c.positives + c.negatives + c.positives[-1])
    best = int(np.argmax(f1))
    return float(f1[best]), float(c.thresholds[best])


def _p_pro(c: Curve, limit: float) -> float:
    if not 0 < limit <= 1:
        raise ValueError(f"metrics: false-positive limit {limit} must lie in (0, 1]")
    if not c.positives.size or not c.negatives[-1] or not c.positives[-1]:
        return math.nan
    rate = np.append(0.0, c.negatives / c.negatives[-1])
    overlap = np.append(0.0, c.overlap)
    end = int(np.searchsorted(rate, limit, side="left"))  # first operating point at or beyond the limit
    rate, overlap = rate[: end + 1].copy(), overlap[: end + 1].copy()
    if rate[-1] > limit:
        part = (limit - rate[-2]) / (rate[-1] - rate[-2])
        overlap[-1] = overlap[-2] + part * (overlap[-1] - overlap[-2])
        rate[-1] = limit
    return float(np.sum(np.diff(rate) * (overlap[1:] + overlap[:-1])) / 2 / limit)


# ---------------------------------------------------------------- metrics


def roc_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a defective one outscores a normal one, ties counting half.

    Args: labels [n] bool or int (non-zero = defective), scores [n]. Returns: nan with a single class.
    """
    return _auroc(curve(scores, np.asarray(labels).astype(bool)))


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Sum over the operating points of precision times gained recall, no interpolation; nan without a defective one."""
    return _average_precision(curve(scores, np.asarray(labels).astype(bool)))


def f1_max(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """(best F1 over all thresholds, its threshold: defective where score >= it); nan both without a defective one."""
    return _f1_max(curve(scores, np.asarray(labels).astype(bool)))


def p_pro(regions: np.ndarray, scores: np.ndarray, *, limit: float = FPR_LIMIT) -> float:
    """Exact per-region overlap: mean found share of the regions over the false-positive rate, all thresholds.

    The curve joins (0, 0) and the operating points of every distinct score by straight lines, is integrated from rate 0
    to `limit` (interpolated there) and divided by `limit`: perfect scores give 1.

    Args: regions int [n] (0 = normal, r = in region r; pooled by `join_regions`), scores [n].
    Returns: [0, 1]; nan without a region or without a normal point. Raises: ValueError for a limit outside (0, 1].
    """
    return _p_pro(curve(scores, regions), limit)


def point_metrics(regions: np.ndarray, scores: np.ndarray, *, limit: float = FPR_LIMIT) -> dict[str, float]:
    """{p_auroc, p_ap, p_f1_max, p_pro} of pooled points with one sort. Arguments as `p_pro`."""
    c = curve(scores, regions)
    return {"p_auroc": _auroc(c), "p_ap": _average_precision(c), "p_f1_max": _f1_max(c)[0], "p_pro": _p_pro(c, limit)}


def object_metrics(labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """{o_auroc, o_ap, o_f1_max} of object scores."""
    c = curve(scores, np.asarray(labels).astype(bool))
    return {"o_auroc": _auroc(c), "o_ap": _average_precision(c), "o_f1_max": _f1_max(c)[0]}


def p_pro_released(regions: np.ndarray, scores: np.ndarray, *, steps: int = 200, limit: float = FPR_LIMIT) -> float:
    """P-PRO as the released code computes it, for comparison only: biased.

    About `steps` equally spaced thresholds from the lowest to the highest score ("found" = strictly above); of these
    the ones with a rate below `limit`, whose rates are stretched to [0, 1] by their own least and greatest value.
    Released runs pool all cells of the square grids, background at score 0 included.

    Args: as `p_pro`; all cells, not only valid ones.
    Returns: 0 for constant scores, as released; nan without a region, without a normal cell, or where fewer than two
    different rates lie below `limit`.
    """
    scores, regions = _checked(scores, regions)
    if scores.size == 0 or not np.any(regions > 0) or np.all(regions > 0):
        return math.nan
    low, high = scores.min(), scores.max()
    if low == high:
        return 0.0
    thresholds = np.arange(low, high, (high - low) / steps)  # in the scores' own precision, as released
    passed = np.searchsorted(thresholds, scores, side="left")  # thresholds strictly below the score
    regions = regions.astype(np.int64)
    sizes = np.bincount(regions)
    sizes[0] = 0
    share = np.divide(1.0, sizes * np.count_nonzero(sizes), out=np.zeros(sizes.size), where=sizes > 0)
    bins = thresholds.size + 1
    above = np.cumsum(np.bincount(passed, weights=share[regions], minlength=bins)[::-1])[::-1]
    wrong = np.cumsum(np.bincount(passed[regions == 0], minlength=bins)[::-1])[::-1]
    overlap, rate = above[1:], wrong[1:] / wrong[0]
    kept = rate < limit
    overlap, rate = overlap[kept], rate[kept]
    if rate.size < 2 or rate.max() == rate.min():
        return math.nan
    rate = (rate - rate.min()) / (rate.max() - rate.min())
    return float(np.sum((rate[:-1] - rate[1:]) * (overlap[1:] + overlap[:-1])) / 2)


# ---------------------------------------------------------------- regions


def regions_grid(mask: np.ndarray) -> np.ndarray:
    """8-connected components of a mask [H,W] -> int32 [H,W]: 0 = normal, 1..R."""
    return ndimage.label(np.asarray(mask, bool), structure=np.ones((3, 3), int))[0].astype(np.int32)


def regions_points(xyz: np.ndarray, mask: np.ndarray, *, neighbours: int = 8) -> np.ndarray:
    """Components of the symmetric nearest-neighbour graph of the defective points -> int32 [M]: 0 = normal, 1..R.

    Every defective point is joined with its `neighbours` nearest defective points (either direction joins). Regions of
    `neighbours` points or fewer therefore join the nearest other one.

    Args: xyz [M,3] finite where mask is true, mask bool [M].
    """
    mask = np.asarray(mask, bool)
    found = np.flatnonzero(mask)
    regions = np.zeros(mask.shape, np.int32)
    if not found.size:
        return regions
    points = np.asarray(xyz, np.float64)[found]
    count = min(neighbours + 1, found.size)
    near = np.asarray(cKDTree(points).query(points, k=count)[1]).reshape(found.size, count)
    # The point itself usually comes first; among coincident points it may not: then the last one is dropped instead.
    itself = near == np.arange(found.size)[:, None]
    itself[~itself.any(1), -1] = True
    start, column = np.nonzero(~itself)
    graph = coo_array((np.ones(start.size, np.int8), (start, near[start, column])), shape=(found.size, found.size))
    regions[found] = connected_components(graph, directed=False)[1] + 1
    return regions


def join_regions(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Region arrays of several objects -> one flat int64 row in which every region has a number of its own."""
    joined, used = [], 0
    for part in parts:
        flat = np.asarray(part, np.int64).ravel()
        joined.append(np.where(flat > 0, flat + used, 0))
        used += int(flat.max(initial=0))
    return np.concatenate(joined) if joined else np.zeros(0, np.int64)


# ---------------------------------------------------------------- uncertainty


def bootstrap_interval(metric: Callable[[np.ndarray], float], count: int, *, rounds: int = 1000, level: float = 0.95,
                       seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval over objects.

    Args:
      metric: indices int [count] (drawn with replacement) -> value; rounds where it is nan (one class) are left out.
      count: objects; rounds: draws; level: mass of the interval; seed: of the draws.
    Returns: (low, high), nan where no round was defined. Raises: ValueError where nothing can be drawn.
    """
    if count < 1 or rounds < 1 or not 0 < level < 1:
        raise ValueError(f"metrics: bootstrap of {count} objects, {rounds} rounds, level {level} is impossible")
    generator = np.random.default_rng(seed)
    values = np.array([metric(generator.integers(0, count, count)) for _ in range(rounds)], np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
