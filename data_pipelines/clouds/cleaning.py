"""What does not belong to a part is taken out of its scan, on request: the table under it, stray points, other parts.

Lengths follow from the scan's own spacing and size, so that no unit has to be known. Open3D's RANSAC and DBSCAN, seeded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

LEAST_PLANE = 0.1  # share of the points that a table has, at least
ONE_SIDE = 0.97  # share of what is no table that lies on one side of it, at least
PLANE_SPACINGS = 2.0  # how far from the plane the table reaches at most, in spacings of points
ROUGH = 4.0  # and in standard deviations of its own points
REACH = 5.0  # points less than so many spacings apart belong together
STRAY = 0.01  # of the largest cluster: smaller ones are stray points
PART = 0.1  # of the largest cluster: smaller ones are no parts of their own
_SAMPLE = 100_000  # points that a plane is sought among


class Cleaned(NamedTuple):
    """Which rows of a scan belong to which part.

    Fields:
      part: [S] int, 0 to parts - 1; -1 for rows that were taken away or hold no point.
      removed: [S] bool, the rows that were taken away.
      notes: a sentence each.
    """

    part: np.ndarray
    removed: np.ndarray
    notes: tuple[str, ...]

    @property
    def parts(self) -> int:
        return int(self.part.max(initial=-1)) + 1


def cleaned(xyz: np.ndarray, valid: np.ndarray, plane: bool = False, stray: bool = False, split: bool = False) -> Cleaned:
    """The parts of a scan [S,3] float64 whose rows `valid` [S] are points.

    Args:
      plane: the plane that most points lie on is taken away, where all else lies on one side of it.
      stray: points apart from all others are taken away.
      split: clusters that do not touch are parts of their own, the largest first; what is much smaller is taken away.
    """
    index, notes = np.flatnonzero(valid), []
    removed = np.zeros(len(xyz), bool)
    points = xyz[index] - np.median(xyz[index], axis=0)  # small numbers: the library's planes keep their digits
    if plane:
        table = _table(points)
        told = f"{int(table.sum())} points of the plane under the part are taken away"
        notes.append(told if table.any() else "no plane under the part is found; nothing is taken away")
        removed[index[table]] = True
        index, points = index[~table], points[~table]
    part = np.full(len(xyz), -1)
    part[index] = 0
    if stray or split:
        cluster = _clusters(points)
        sizes = np.bincount(cluster[cluster >= 0], minlength=1)
        kept = np.flatnonzero(sizes >= max((PART if split else STRAY) * sizes.max(), 1))
        order = kept[np.argsort(-sizes[kept], kind="stable")]
        number = np.full(len(sizes) + 1, -1)
        number[order] = np.arange(len(order)) if split else 0
        part[index] = number[cluster]
        gone = part[index] < 0
        removed[index[gone]] = True
        if gone.any():
            notes.append(f"{int(gone.sum())} stray points are taken away")
        if split:
            notes.append(f"{len(order)} parts in this scan" if len(order) > 1 else "one part in this scan")
    return Cleaned(part, removed, tuple(notes))


def spacing(points: np.ndarray) -> float:
    """The middle distance from a point to its nearest other one."""
    some = points[:: max(1, len(points) // 5000)]
    distance = cKDTree(points).query(some, k=min(2, len(points)))[0].reshape(len(some), -1)[:, -1]
    return float(np.median(distance[distance > 0])) if (distance > 0).any() else 0.0


def _cloud(points: np.ndarray):
    import open3d as o3d  # seconds, and few scans ask for it

    o3d.utility.random.seed(0)
    return o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points))


def _table(points: np.ndarray) -> np.ndarray:
    """Bool [S]: the points of the plane that most lie on; none where it is too small or points lie on both sides of it."""
    some = points[:: max(1, len(points) // _SAMPLE)]
    width = PLANE_SPACINGS * spacing(points)
    if not width > 0:
        return np.zeros(len(points), bool)
    found, _ = _cloud(some).segment_plane(width, 3, 2000)
    away = points @ np.array(found[:3]) + found[3]
    # Once more by least squares: three points of a rough table tilt the plane.
    near = points[np.abs(away) <= width]
    normal = np.linalg.svd(near - near.mean(0), full_matrices=False)[2][2]
    away = (points - near.mean(0)) @ normal
    rough = 1.4826 * np.median(np.abs(away[np.abs(away) <= width]))  # of the table: a flat one takes little of what stands on it
    table = np.abs(away) <= min(width, ROUGH * rough + width / 20)
    rest = away[~table]
    side = max((rest > 0).mean(), (rest < 0).mean()) if len(rest) else 0.0
    return table if table.mean() >= LEAST_PLANE and side >= ONE_SIDE else np.zeros(len(points), bool)


def _clusters(points: np.ndarray) -> np.ndarray:
    """The cluster [S] of every point, -1 for those in none."""
    reach = REACH * spacing(points)
    return np.asarray(_cloud(points).cluster_dbscan(reach, 8)) if reach > 0 else np.zeros(len(points), int)
