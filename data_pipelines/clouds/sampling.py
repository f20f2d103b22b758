"""Point clouds: checking, bringing to a number of points, normals, neighbours. Lengths are in the scan's own unit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from data_pipelines.clouds.canonical import GRID, Frame, distinct, frame_of, shuffled
from data_pipelines.scan import DataError, Scan

MIN_POINTS = 10
CLEAR = 256  # GRID steps that make two lengths different ones, not one length twice with round-off


def seed_of(*words: object) -> int:
    """A 63-bit seed from words (data seed, category, id): the same object always draws the same numbers."""
    text = "\x1f".join(str(word) for word in words).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


class Points(NamedTuple):
    """The rows of a scan, and which of them are points."""

    xyz: np.ndarray  # [S, 3] float64, every row, in the scan's own unit and frame
    valid: np.ndarray  # [S] bool, false for rows that hold no point
    note: str  # one line: what was left out and why, or nothing


def clean(xyz: np.ndarray, path: str | Path) -> Points:
    """A scan's rows [S, 3], once they are fit for use. Rows with NaN are no points. Nor are rows at exactly 0, 0, 0, with which
    scanners mark what they did not see: where there are several, or where the one lies apart from all others.

    Raises:
      DataError: naming `path`, for infinite coordinates, fewer than ten points, or points all at one place.
    """
    xyz = np.ascontiguousarray(xyz, np.float64)
    lost = np.isnan(xyz).any(1)
    endless = int(np.isinf(xyz[~lost]).any(1).sum())
    if endless:
        raise DataError(f"{path}: {endless} of {len(xyz)} points are infinite; remove them or export the scan again")
    zero = ~xyz.any(1) & ~lost
    others = xyz[~(lost | zero)]
    if zero.sum() == 1 and len(others):  # a part may begin at the origin
        low, high = others.min(0), others.max(0)
        beside = 0.1 * (high - low).max()
        zero &= not ((low <= beside) & (high >= -beside)).all()
    valid = ~(lost | zero)
    left_out = [f"{int(rows.sum())} {what}" for rows, what in ((lost, "are NaN"), (zero, "lie at exactly 0, 0, 0")) if rows.any()]
    note = f"{' and '.join(left_out)} of {len(xyz)} rows: no points, left out" if left_out else ""
    points = xyz[valid]
    if len(points) < MIN_POINTS:
        raise DataError(f"{path}: only {len(points)} points{f' ({note})' if note else ''}; a cloud needs at least {MIN_POINTS}")
    if not np.ptp(points, axis=0).max() > 0:
        raise DataError(f"{path}: all {len(points)} points are at one place; export the scan again")
    if np.abs(points).max() > 1e18:
        raise DataError(f"{path}: coordinates up to {np.abs(points).max():.3g} are too large; check the unit of the export")
    return Points(xyz, valid, note)


# ---- number of points ----


class Resampled(NamedTuple):
    """M scored points of a scan."""

    xyz: np.ndarray  # [M, 3] float32, centred and in radii, in the scan's own attitude (`Frame.unit`)
    mask: np.ndarray  # [M] bool
    valid: np.ndarray  # [M] bool
    source: np.ndarray  # [M] int32, the scan's point each one is, or is nearest to
    organised: bool
    copies: int  # of the scan's points, that lie where another does: they took no part
    frame: Frame


def resample(scan: Scan, count: int, seed: int) -> Resampled:
    """Brings a scan to exactly `count` points: the nearest pixels of organised scans, farthest points of larger clouds, and
    points between near neighbours added to smaller ones (ratios 1/4, 1/2, 3/4; label of the nearer end).

    Points of unorganised scans come in an order that looks drawn at random. Which points and which order depend on where the
    points lie, not on their order in the scan, its unit or its place (`canonical`).

    Source: `multi_view/multiview_real3d.py` and `multiview_mvtec.py` of PointAD, seeded here.

    Raises:
      ValueError: an organised scan and a `count` that is no square number.
    """
    if scan.grid is not None:
        side = int(round(count**0.5))
        if side * side != count:
            raise ValueError(f"organised scans need a square number of points, not {count} (nearest: {side * side})")
        height, width = scan.grid
        rows, columns = (np.arange(side) * height) // side, (np.arange(side) * width) // side
        source = (rows[:, None] * width + columns[None]).ravel()
        valid, frame = scan.valid[source], frame_of(scan.xyz[scan.valid])
        xyz = np.where(valid[:, None], frame.unit(scan.xyz[source]), np.float32(0))
        return Resampled(xyz, scan.mask[source] & valid, valid, source.astype(np.int32), True, 0, frame)
    source = np.flatnonzero(scan.valid)
    if scan.views is not None:  # its pictures name its points one by one
        frame = frame_of(scan.xyz[source])
        return Resampled(frame.unit(scan.xyz[source]), scan.mask[source], np.ones(len(source), bool), source.astype(np.int32),
                         False, 0, frame)
    first, _ = distinct(scan.xyz[source])
    frame = frame_of(scan.xyz[source[first]])
    first, place = distinct(frame.steps(scan.xyz[source]))
    mask = np.bincount(place, scan.mask[source]) > 0  # a copy marked defective marks the place
    copies, source = len(source) - len(first), source[first]
    steps, turned = (frame.steps(scan.xyz[source], turned=turned) for turned in (False, True))
    order = shuffled(turned, seed)
    steps, turned, mask, source = steps[order], turned[order], mask[order], source[order]
    if count <= len(steps):
        picked = farthest_points(turned, count)
        steps, mask, source = steps[picked], mask[picked], source[picked]
    else:
        start, end, ratio = _between(steps, turned, count - len(steps), seed)
        more = [np.rint(points[start] + ratio[:, None] * (points[end] - points[start])) for points in (steps, turned)]
        nearer = np.concatenate([np.arange(len(steps)), np.where(ratio <= 0.5, start, end)])
        order = shuffled(np.concatenate([turned, more[1]]), seed)
        nearer = nearer[order]
        steps, mask, source = np.concatenate([steps, more[0]])[order], mask[nearer], source[nearer]
    xyz = (steps / GRID).astype(np.float32)
    return Resampled(xyz, mask, np.ones(count, bool), source.astype(np.int32), False, copies, frame)


def _between(steps: np.ndarray, turned: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, end, ratio) [count] of points on the edges to the three nearest neighbours: the first of all, `shuffled`."""
    near = knn(steps / GRID, 4)[:, 1:]
    edges = np.stack([np.repeat(np.arange(len(steps)), near.shape[1]), near.ravel()], 1)
    edges = np.unique(np.sort(edges, 1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    each = max(3, -(-count // len(edges)))
    (start, end), ratio = np.repeat(edges, each, axis=0).T, np.tile(np.arange(1, each + 1) / (each + 1), len(edges))
    picked = shuffled(np.rint(turned[start] + ratio[:, None] * (turned[end] - turned[start])), seed)[:count]
    return start[picked], end[picked], ratio[picked]


def farthest_points(steps: np.ndarray, count: int) -> np.ndarray:
    """Indices [count], ascending, of evenly spread points: farthest point sampling up to a tolerance, in near linear time.

    Instead of one farthest point at a time it takes, for a falling ladder of radii, a largest set of points that keep that radius
    from each other and from all chosen before, the first in order winning. As with exact sampling every point lies within
    (1 / 0.9 times) the spacing of a chosen one, or a third of it more where points crowd; the exact method needs count * S
    distances, minutes for large scans.

    Args:
      steps: [S, 3] whole numbers, all different (`Frame.steps`), in an order as if drawn at random (`shuffled`).
    """
    if count >= len(steps):
        return np.arange(len(steps))
    side = _cell_side(steps, count)
    # Of points that crowd, one a cell: every point keeps few others in reach, however uneven the scan.
    pool = np.sort(_first_of_cells(steps, max(side / 4, _cell_side(steps, 4 * count)) if len(steps) > 6 * count else side / 4))
    points = steps[pool]
    radius = 0.9 * side
    pairs, length = _pairs(points, radius)
    chosen = _independent(pairs, np.ones(len(points), bool))
    while chosen.sum() > count:  # the guess was too fine
        radius *= 1.25
        pairs, length = _pairs(points, radius)
        chosen = _independent(pairs, np.ones(len(points), bool))
    while chosen.sum() < count:
        radius = _between_lengths(length, min(0.95 * radius, float(length.max(initial=0))))
        keep = length >= radius
        pairs, length = pairs[~keep], length[~keep]
        free = ~chosen
        free[pairs[chosen[pairs[:, 0]], 1]] = False
        free[pairs[chosen[pairs[:, 1]], 0]] = False
        inner = pairs[free[pairs].all(1)]
        new = _independent(inner, free)
        room = count - int(chosen.sum())
        new[np.flatnonzero(new)[room:]] = False  # the last rung; all of it lies about as far from what is chosen
        chosen |= new
    return pool[chosen]


def _pairs(points: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Pairs [P, 2] of points that lie within `radius` of each other, and their distances [P]."""
    pairs = cKDTree(points).query_pairs(radius, output_type="ndarray")
    gap = points[pairs[:, 0]] - points[pairs[:, 1]]
    return pairs, np.sqrt(np.square(gap[:, 0]) + np.square(gap[:, 1]) + np.square(gap[:, 2]))


def _between_lengths(length: np.ndarray, radius: float) -> float:
    """A radius just below `radius` that no length lies close to, if there is one: of a scan whose coordinates have few digits
    many pairs are as long as each other, and round-off is not to part them."""
    near = np.sort(length[(length <= 1.01 * radius) & (length >= 0.98 * radius)])
    middle = (near[1:] + near[:-1]) / 2
    clear = np.flatnonzero((np.diff(near) >= CLEAR) & (middle <= radius))
    return float(middle[clear[-1]]) if len(clear) else radius


def _level(length: np.ndarray) -> np.ndarray:
    """Lengths as whole numbers that rise with them and are the same for lengths less than a hundredth apart, most of them."""
    part, exponent = np.frexp(length)  # part: 0.5 to 1
    return np.where(length > 0, np.rint((part - 0.5) * 128).astype(np.int64) + 64 * exponent.astype(np.int64), np.int64(-1) << 24)


def _cell_side(steps: np.ndarray, count: int) -> float:
    """Side of the largest cells, by quarters of a power of two, of which at least `count` hold a point; 1 where none do."""
    fine, coarse = 0, 4 * 25  # 2^25: the whole scan
    while coarse - fine > 1:
        middle = (fine + coarse) // 2
        fine, coarse = (middle, coarse) if len(_first_of_cells(steps, 2 ** (middle / 4))) >= count else (fine, middle)
    return 2 ** (fine / 4)


def _first_of_cells(steps: np.ndarray, side: float) -> np.ndarray:
    """Index of the first point in every cell of that side that holds one."""
    cell = np.floor((steps + GRID) / side).astype(np.int64)
    if side < 32:  # too many cells for one number
        return np.unique(cell, axis=0, return_index=True)[1]
    return np.unique((cell[:, 0] << 42) + (cell[:, 1] << 21) + cell[:, 2], return_index=True)[1]


def _independent(pairs: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """A maximal set [S] bool of `alive` points no two of which are a pair: rounds of local winners by their order (Luby)."""
    alive, chosen = alive.copy(), np.zeros(len(alive), bool)
    while alive.any():
        beaten = np.zeros(len(alive), bool)
        beaten[pairs[:, 1]] = True  # of a pair the first comes first
        winners = alive & ~beaten
        chosen |= winners
        alive &= ~winners
        alive[pairs[winners[pairs[:, 0]], 1]] = False
        alive[pairs[winners[pairs[:, 1]], 0]] = False
        pairs = pairs[alive[pairs].all(1)]
    return chosen


# ---- what models and baselines read ----


def unit_sphere(xyz: np.ndarray) -> np.ndarray:
    """Points [S, 3] centred on their mean and divided by the largest radius, float32. Source: `pc_normalize`."""
    centred = xyz.astype(np.float64) - xyz.mean(0, dtype=np.float64)
    return (centred / max(float(np.linalg.norm(centred, axis=1).max()), np.finfo(np.float64).tiny)).astype(np.float32)


def cloud_points(xyz: np.ndarray, count: int, seed: int) -> np.ndarray:
    """PointNet++'s input [count, 3] float32: points of the unit-sphere cloud as if drawn at random (`shuffled`); all of them,
    some twice, if fewer."""
    steps = frame_of(xyz).steps(xyz)
    order = shuffled(steps, seed)
    return unit_sphere(xyz)[np.resize(order, count)]


def knn(xyz: np.ndarray, k: int) -> np.ndarray:
    """The k nearest points of every point [S, k] int32, itself first; the last one repeats where S < k.

    Of points about as near (`_level`) the first in order comes first: of a scan whose coordinates have few digits many are as
    near as each other, and round-off is not to choose among them.
    """
    points = np.asarray(xyz, np.float64)
    tree, total = cKDTree(points), len(points)
    near, level = _in_order(points, tree.query(points, k=min(k + 4, total))[1].reshape(total, -1), points)
    tied = np.flatnonzero(level[:, min(k, total) - 1] == level[:, -1]) if k + 4 < total else []
    near = near[:, :k].astype(np.int32)
    if len(tied):
        near[tied] = _in_order(points, tree.query(points[tied], k=min(k + 16, total))[1], points[tied])[0][:, :k]
    own = np.arange(total, dtype=np.int32)
    # Copies of a point are as near as itself: put the point itself first wherever it is not.
    column = np.argmax(near == own[:, None], axis=1)
    near[own, column] = np.where((near == own[:, None]).any(1), near[:, 0], near[own, column])
    near[:, 0] = own
    return np.concatenate([near, np.repeat(near[:, -1:], max(0, k - near.shape[1]), axis=1)], axis=1)


def nearest(reference: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Index [S] of the nearest of reference [R, 3] to each of points [S, 3]; among equals as in `knn`."""
    near = cKDTree(reference).query(xyz, k=min(4, len(reference)))[1].reshape(len(xyz), -1)
    return _in_order(np.asarray(reference, np.float64), near, np.asarray(xyz, np.float64))[0][:, 0]


def _in_order(points: np.ndarray, near: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices `near` [R, k] into points [S, 3] by rising distance from `at` [R, 3], in levels, and by index; and that level
    [R, k]."""
    squared = np.zeros(near.shape)
    for axis in range(3):
        squared += np.square(points[near, axis] - at[:, axis, None])
    level = _level(np.sqrt(squared))
    order = np.lexsort((near, level), axis=1)
    return np.take_along_axis(near, order, 1), np.take_along_axis(level, order, 1)


def planes(xyz: np.ndarray, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The plane through the points `near` [S, k] (`knn`): unit normals [S, 3] float64, of either sign, and surface variation [S]
    float32.

    Surface variation is lambda_0 / (lambda_0 + lambda_1 + lambda_2) of their covariance: 0 on a plane, at most 1/3.
    Source: Pauly et al., Efficient simplification of point-sampled surfaces (2002).
    """
    points = xyz.astype(np.float64)
    values, vectors = np.empty((len(xyz), 3)), np.empty((len(xyz), 3, 3))
    for start in range(0, len(xyz), 16384):  # in blocks: memory
        part = slice(start, start + 16384)
        patch = points[near[part]]
        patch = patch - patch.mean(1, keepdims=True)
        values[part], vectors[part] = np.linalg.eigh(np.einsum("ski,skj->sij", patch, patch) / patch.shape[1])
    values = np.maximum(values, 0)
    share = values[:, 0] / np.maximum(values.sum(1), np.finfo(np.float64).tiny)
    return vectors[:, :, 0], share.astype(np.float32)
