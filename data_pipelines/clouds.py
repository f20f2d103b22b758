"""Point clouds: checking, bringing to a number of points, normals, neighbours. Lengths are in the scan's own unit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from .datasets.base import DataError, Scan

MIN_POINTS = 10


def seed_of(*words: object) -> int:
    """A 63-bit seed from words (data seed, category, id): the same object always draws the same numbers."""
    text = "\x1f".join(str(word) for word in words).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def clean(xyz: np.ndarray, path: str | Path) -> np.ndarray:
    """The points as float32 [S, 3], once they are fit for use.

    Raises:
      DataError: naming `path`, for NaN or infinite coordinates, fewer than ten points, or points all at one place.
    """
    if len(xyz) < MIN_POINTS:
        raise DataError(f"{path}: only {len(xyz)} points; a cloud needs at least {MIN_POINTS}")
    bad = int((~np.isfinite(xyz).all(1)).sum())
    if bad:
        raise DataError(f"{path}: {bad} of {len(xyz)} points are NaN or infinite; remove them or export the scan again")
    if not np.ptp(xyz, axis=0).max() > 0:
        raise DataError(f"{path}: all {len(xyz)} points are at one place; export the scan again")
    points = np.ascontiguousarray(xyz, np.float32)
    if not np.isfinite(points).all() or np.abs(points).max() > 1e18:
        raise DataError(f"{path}: coordinates up to {np.abs(xyz).max():.3g} are too large; check the unit of the export")
    return points


# ---- number of points ----


class Resampled(NamedTuple):
    """M scored points of a scan."""

    xyz: np.ndarray  # [M, 3] float32
    mask: np.ndarray  # [M] bool
    valid: np.ndarray  # [M] bool
    source: np.ndarray  # [M] int32, the scan's point each one is, or is nearest to
    organised: bool


def resample(scan: Scan, count: int, seed: int) -> Resampled:
    """Brings a scan to exactly `count` points: the nearest pixels of organised scans, farthest points of larger clouds, and
    points between near neighbours added to smaller ones (ratios 1/4, 1/2, 3/4; label of the nearer end).

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
        xyz, valid = scan.xyz[source], scan.valid[source]
        return Resampled(xyz, scan.mask[source] & valid, valid, source.astype(np.int32), True)
    source = np.flatnonzero(scan.valid)
    xyz, mask = scan.xyz[source], scan.mask[source]
    if count <= len(xyz):
        picked = farthest_points(xyz, count, seed)
        xyz, mask, source = xyz[picked], mask[picked], source[picked]
    else:
        added, nearer = _between(xyz, count - len(xyz), seed)
        nearer = np.concatenate([np.arange(len(xyz)), nearer])
        xyz, mask, source = np.concatenate([xyz, added]), mask[nearer], source[nearer]
    return Resampled(xyz.astype(np.float32), mask, np.ones(count, bool), source.astype(np.int32), False)


def _between(xyz: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` points on the edges to the three nearest neighbours [count, 3], and the index of the nearer end [count]."""
    near = cKDTree(xyz).query(xyz, k=4)[1][:, 1:]
    edges = np.stack([np.repeat(np.arange(len(xyz)), 3), near.ravel()], 1)
    edges = np.unique(np.sort(edges, 1), axis=0)
    edges = edges[edges[:, 0] != edges[:, 1]]
    steps = max(3, -(-count // len(edges)))
    ratios = np.arange(1, steps + 1) / (steps + 1)
    picked = np.random.default_rng(seed).permutation(len(edges) * steps)[:count]
    (start, end), ratio = edges[picked // steps].T, ratios[picked % steps]
    points = xyz[start] + ratio[:, None] * (xyz[end].astype(np.float64) - xyz[start])
    return points, np.where(ratio <= 0.5, start, end)


def farthest_points(xyz: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices [count], sorted, of evenly spread points: farthest point sampling up to a tolerance, in near linear time.

    Instead of one farthest point at a time it takes, for a falling ladder of radii, a largest random set of points that keep that
    radius from each other and from all chosen before. As with exact sampling every point lies within (1 / 0.95 times) the
    spacing of a chosen one; the exact method needs count * S distances, minutes for large scans.
    """
    total = len(xyz)
    if count >= total:
        return np.arange(total)
    rng = np.random.default_rng(seed)
    pool = _thin(xyz, count, rng) if total > 6 * count else np.arange(total)
    points = xyz[pool].astype(np.float64)
    rank = rng.permutation(len(points))
    probe = points[rng.choice(len(points), count, replace=False)]
    gaps = cKDTree(probe).query(probe[:20_000], k=2)[0][:, 1]
    radius = 2.0 * np.median(gaps[gaps > 0]) if gaps.any() else float(np.ptp(points, axis=0).max()) / count**0.5
    tree = cKDTree(points)
    while True:
        pairs = tree.query_pairs(radius, output_type="ndarray")
        length = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
        chosen = _independent(pairs, rank, np.ones(len(points), bool))
        if chosen.sum() <= count:
            break
        radius *= 1.25  # clustered scans: the first guess was too fine
    while chosen.sum() < count and length.any():
        radius *= 0.95
        keep = length >= radius
        pairs, length = pairs[~keep], length[~keep]
        free = ~chosen
        free[pairs[chosen[pairs[:, 0]], 1]] = False
        free[pairs[chosen[pairs[:, 1]], 0]] = False
        inner = pairs[free[pairs].all(1)]
        new = _independent(inner, rank, free)
        room = count - int(chosen.sum())
        if new.sum() > room:  # the last rung: the farthest from what is chosen come first
            index = np.flatnonzero(new)
            gap = cKDTree(points[chosen]).query(points[index])[0]
            new[:] = False
            new[index[np.argsort(-gap, kind="stable")[:room]]] = True
        chosen |= new
    if chosen.sum() < count:  # only copies of chosen points are left
        rest = np.flatnonzero(~chosen)
        chosen[rest[np.argsort(rank[rest])[: count - int(chosen.sum())]]] = True
    return np.sort(pool[chosen])


def _thin(xyz: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """One random point per cell of a grid fine enough to leave at least 4 * count: evens out very dense scans first."""
    order = rng.permutation(len(xyz))
    low, extent = xyz.min(0), float(np.ptp(xyz, axis=0).max())
    cells = 64
    while True:
        key = np.minimum(((xyz[order] - low) / extent * cells).astype(np.int64), cells - 1)
        first = np.unique((key[:, 0] * cells + key[:, 1]) * cells + key[:, 2], return_index=True)[1]
        if len(first) >= 4 * count or cells >= 1 << 20:
            return np.sort(order[first]) if len(first) >= count else np.arange(len(xyz))
        cells = int(cells * 1.4)


def _independent(pairs: np.ndarray, rank: np.ndarray, alive: np.ndarray) -> np.ndarray:
    """A maximal set [S] bool of `alive` points no two of which are a pair: rounds of local winners by random rank (Luby)."""
    alive, chosen = alive.copy(), np.zeros(len(rank), bool)
    while alive.any():
        first_wins = rank[pairs[:, 0]] < rank[pairs[:, 1]]
        beaten = np.zeros(len(rank), bool)
        beaten[np.where(first_wins, pairs[:, 1], pairs[:, 0])] = True
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
    """PointNet++'s input [count, 3] float32: random points of the unit-sphere cloud; all of them, some twice, if fewer."""
    rng = np.random.default_rng(seed)
    picked = rng.permutation(len(xyz))[:count]
    if len(picked) < count:
        picked = np.concatenate([picked, rng.integers(len(xyz), size=count - len(picked))])
    return unit_sphere(xyz)[picked]


def knn(xyz: np.ndarray, k: int) -> np.ndarray:
    """The k nearest points of every point [S, k] int32, itself first; the last one repeats where S < k."""
    found = cKDTree(xyz).query(xyz, k=min(k, len(xyz)))[1].reshape(len(xyz), -1).astype(np.int32)
    own = np.arange(len(xyz), dtype=np.int32)
    # Copies of a point are as near as itself: put the point itself first wherever the tree did not.
    column = np.argmax(found == own[:, None], axis=1)
    found[own, column] = np.where((found == own[:, None]).any(1), found[:, 0], found[own, column])
    found[:, 0] = own
    return np.concatenate([found, np.repeat(found[:, -1:], max(0, k - found.shape[1]), axis=1)], axis=1)


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
