"""Marks on the points of a cloud: colours, and labels with or without coordinates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from ..cloud_files import point_count, read_cloud
from ..tables import read_table
from .base import DataError
from .pictures import read_flags

MARKS = (".txt", ".csv", ".xyz", ".npy", ".ply", ".pcd", ".png")
NEAR = 0.02  # of the scan's size: marks whose points lie further from it, half of them, belong to something else


def read_colours(path: str | Path) -> np.ndarray:
    """[S] bool: the points of a PCD or PLY file coloured brighter than half in all channels, as the authors mark defects.

    Raises:
      DataError: missing, truncated or unreadable file, or one without colours.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    count = point_count(path)
    import open3d as o3d

    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        cloud = o3d.io.read_point_cloud(str(path))
    if len(cloud.points) != count:
        raise DataError(f"{path}: damaged, {len(cloud.points)} of {count} points could be read; copy or convert it again")
    if not cloud.has_colors():
        raise DataError(f"{path}: the points have no colours to mark defects with; white is defective, black is not")
    return (np.asarray(cloud.colors) > 0.5).all(1)


def read_marks(path: str | Path, xyz: np.ndarray, grid: tuple[int, int] | None = None, ordered: bool = True) -> np.ndarray:
    """Which points of a scan are defective, [S] bool, from any of: one label a point, in the scan's order; rows `x y z label` or
    coloured points, in any order and number, each point of the scan taking the nearest one's; a picture for organised scans.

    Args:
      xyz: [S, 3] points of the scan.  grid: (H, W) of organised scans.
      ordered: false where the scan's points have no order that labels could be in (sampled meshes).

    Raises:
      DataError: naming `path`, for another number of labels, another place, labels that are no whole numbers, or a damaged file.
    """
    path, kind = Path(path), Path(path).suffix.lower()
    if kind == ".png":
        if grid is None:
            raise DataError(f"{path}: a picture marks the pixels of a tiff; give a label for each point, or rows 'x y z label'")
        return read_flags(path, grid).ravel()
    if kind in (".ply", ".pcd"):
        return _nearest(read_colours(path), read_cloud(path), xyz, path)
    rows = _numbers(path) if kind == ".npy" else read_table(path, least=1)
    if grid is not None and rows.shape == tuple(grid):
        rows = rows.reshape(-1, 1)
    if rows.shape[1] in (2, 3):
        raise DataError(f"{path}: expected one column of labels or rows 'x y z label', found {rows.shape[1]} columns")
    labels = rows[:, min(3, rows.shape[1] - 1)]
    if not np.isfinite(labels).all() or (labels != np.rint(labels)).any():
        raise DataError(f"{path}: labels have to be whole numbers, 0 where the point is good")
    if rows.shape[1] > 3:
        return _nearest(labels != 0, rows[:, :3], xyz, path)
    if not ordered:
        raise DataError(f"{path}: labels alone do not fit a mesh, whose points are sampled; give rows 'x y z label'")
    if len(labels) != len(xyz):
        raise DataError(f"{path}: {len(labels)} labels where the scan has {len(xyz)} points; restore the matching files")
    return labels != 0


def _nearest(labels: np.ndarray, at: np.ndarray, xyz: np.ndarray, path: Path) -> np.ndarray:
    """The labels [S] of the nearest marked points; in order where they are the very points (some may be at one place)."""
    if not np.isfinite(at).all():
        raise DataError(f"{path}: coordinates that are NaN or infinite; export the marks again")
    size = float(np.ptp(xyz, axis=0).max())
    if len(at) == len(xyz) and np.abs(at - xyz).max() <= 1e-6 * size:
        return labels
    gap, nearest = cKDTree(at).query(xyz)
    if np.median(gap) > NEAR * size:
        raise DataError(f"{path}: the marked points lie apart from the scan's; export both in one frame and unit")
    return labels[nearest]


def _numbers(path: Path) -> np.ndarray:
    """An array [rows, columns] float64 from an NPY file. Raises DataError when it is none."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable array ({' '.join(str(error).split())}); write it again") from error
    if found.dtype.kind not in "bfiu" or found.ndim not in (1, 2) or not found.size:
        raise DataError(f"{path}: expected numbers, one or four a point, found {found.shape} {found.dtype}")
    return found.reshape(len(found), -1).astype(np.float64)
