"""The object of an organised scan in metres: without the plane it lies on and without stray points. The same scan always gives
the same pixels, and a scan that went through this before stays as it is.

Source: PointAD `multi_view/preprocess_mvtec3d.py` (the field's common preprocessing), which overwrites the data set, draws
unseeded, takes a plane out of scans that have none left, and keeps the points of no cluster where these are the most.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

BORDER = 10  # rows and columns at each edge of the picture, where the plane is looked for
FIT_WITHIN, REMOVE_WITHIN = 0.004, 0.005  # metres
# Points a plane -> how many planes. 50 points, as published, never are all of the plane where a fifth of the border is not.
SAMPLES = {50: 1000, 3: 200}
EPS, LEAST = 0.006, 30  # of the clusters: metres, points
# What tells a plane from an object that reaches the edge: it is most of the border and is seen on three sides of the picture.
MOST, SIDES, OF_SIDE = 0.5, 3, 0.1


def object_pixels(xyz: np.ndarray) -> np.ndarray:
    """[H, W] bool: the object's pixels in a scan [H, W, 3], 0, 0, 0 being no data; all false if there is no cluster."""
    valid = xyz.any(-1)
    plane = border_plane(xyz, valid)
    if plane is not None:
        normal, offset = plane
        valid &= np.abs(xyz.astype(np.float64) @ normal - offset) > REMOVE_WITHIN
    out = np.zeros_like(valid)
    out[valid] = largest_cluster(xyz[valid])
    return out


def border_plane(xyz: np.ndarray, valid: np.ndarray, seed: int = 0) -> tuple[np.ndarray, float] | None:
    """The plane at the edges of the picture as (unit normal [3], offset), or None where there is none. Points p on it have
    normal @ p = offset.

    RANSAC: planes of least squares through random samples, then through all points near the best one.
    """
    edge = np.ones(valid.shape, bool)
    edge[BORDER:-BORDER, BORDER:-BORDER] = False
    index = np.flatnonzero(edge & valid)
    if len(index) < max(SAMPLES):
        return None
    points = xyz.reshape(-1, 3)[index].astype(np.float64)
    centre = points.mean(0)
    points -= centre
    rng = np.random.default_rng(seed)
    planes = [_planes(points[rng.integers(len(points), size=(rounds, size))]) for size, rounds in SAMPLES.items()]
    normals, offsets = (np.concatenate(parts) for parts in zip(*planes, strict=True))
    counts = np.concatenate([(np.abs(points @ normals[i : i + 50].T - offsets[i : i + 50]) <= FIT_WITHIN).sum(0)
                             for i in range(0, len(normals), 50)])
    best = int(counts.argmax())
    near = np.abs(points @ normals[best] - offsets[best]) <= FIT_WITHIN
    normal, offset = (found[0] for found in _planes(points[near][None]))
    on_plane = np.zeros(valid.shape, bool)
    on_plane.ravel()[index] = np.abs(points @ normal - offset) <= REMOVE_WITHIN
    sides = [on_plane[:BORDER], on_plane[-BORDER:], on_plane[:, :BORDER], on_plane[:, -BORDER:]]
    if on_plane.sum() < MOST * len(index) or sum(side.mean() >= OF_SIDE for side in sides) < SIDES:
        return None
    return normal, float(offset + normal @ centre)


def _planes(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit normals [R, 3] and offsets [R] of the planes of least squares through R samples [R, S, 3]."""
    centres = samples.mean(1)
    apart = samples - centres[:, None]
    normals = np.linalg.eigh(np.einsum("rsi,rsj->rij", apart, apart))[1][:, :, 0]
    return normals, np.einsum("ri,ri->r", normals, centres)


def largest_cluster(points: np.ndarray, eps: float = EPS, least: int = LEAST) -> np.ndarray:
    """[S] bool: the largest DBSCAN cluster of points [S, 3] with all points that touch it; all false if there is none.

    DBSCAN leaves open to which of two clusters a point between them goes; given to the largest, the result no longer depends on
    the order of points, and clustering it again changes nothing. Points of no cluster are dropped even where they are the most.
    """
    out = np.zeros(len(points), bool)
    points = points.astype(np.float64)
    core, cells = _core(points, eps, least)
    if not len(core):
        return out
    labels = _linked(points[core], cells, eps)
    gap, nearest = cKDTree(points[core]).query(points, distance_upper_bound=eps * 1.001)
    near = gap <= eps
    largest = np.bincount(labels[nearest[near]]).argmax()
    gap, _ = cKDTree(points[core[labels == largest]]).query(points, distance_upper_bound=eps * 1.001)
    return gap <= eps


def _core(points: np.ndarray, eps: float, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices [K] of the points with at least `least` points (themselves too) within `eps`, and the cell [K] each is in.

    Cells are small enough for all points in one to be neighbours: full cells need no search, which dense scans have in millions.
    """
    if not len(points):
        return np.zeros(0, int), np.zeros(0, int)
    grid = np.floor((points - points.min(0)) / (0.999 * eps / 3**0.5))
    _, cell, count = np.unique(grid, axis=0, return_inverse=True, return_counts=True)
    cell = cell.ravel()
    core = count[cell] >= least
    rest = np.flatnonzero(~core)
    core[rest] = cKDTree(points).query_ball_point(points[rest], eps, return_length=True) >= least
    return np.flatnonzero(core), cell[core]


def _linked(points: np.ndarray, cells: np.ndarray, eps: float) -> np.ndarray:
    """Cluster [K] of each core point: those within `eps` of each other are in one."""
    _, first, cell = np.unique(cells, return_index=True, return_inverse=True)
    links = cKDTree(points[first]).query_pairs(eps, output_type="ndarray")  # one point a cell: most of what there is to link
    group = _components(links, len(first))[cell]
    # Then exactly, group by group: a link of any point with a later, smaller group.
    sizes = np.bincount(group)
    rank = np.empty(len(sizes), int)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(len(sizes))
    group = rank[group]
    links = [np.zeros((0, 2), int)]
    for one in range(len(sizes) - 1):
        later = np.flatnonzero(group > one)
        gap, _ = cKDTree(points[group == one]).query(points[later], distance_upper_bound=eps * 1.001)
        met = np.unique(group[later[gap <= eps]])
        links.append(np.stack([np.full_like(met, one), met], 1))
    return _components(np.concatenate(links), len(sizes))[group]


def _components(links: np.ndarray, count: int) -> np.ndarray:
    graph = coo_array((np.ones(len(links), bool), (links[:, 0], links[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1]
