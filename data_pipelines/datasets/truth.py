"""Marks on the points of a cloud: colours, and labels with or without coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from data_pipelines.clouds.columns import Field, axes, bare, fields_xyz, listed, running
from data_pipelines.clouds.files import TEXT, read_array
from data_pipelines.clouds.kinds import contents
from data_pipelines.clouds.pcd import read_pcd
from data_pipelines.clouds.ply import read_ply
from data_pipelines.clouds.tables import Table, read_table
from data_pipelines.datasets.pictures import read_flags
from data_pipelines.scan import DataError

MARKS = (*TEXT, ".npy", ".ply", ".pcd", ".png")
NEAR = 0.02  # of the scan's size: marks whose points lie further from it, half of them, belong to something else
LABEL_NAMES = {"label", "labels", "gt", "mask", "defect", "defective", "anomaly", "anomalous", "ground_truth", "groundtruth",
               "is_defect", "is_anomaly", "scalar_label", "class"}


def read_colours(path: str | Path) -> np.ndarray:
    """[S] bool: the points of a PCD or PLY file coloured brighter than half in all channels, as the authors mark defects.

    Raises:
      DataError: missing, truncated or unreadable file, or one without colours.
    """
    return _bright(_fields(path), path)


def _fields(path: str | Path) -> list[Field]:
    return (read_pcd if Path(path).suffix.lower() == ".pcd" else read_ply)(contents(path), path)


def _bright(fields: Sequence[Field], path: str | Path) -> np.ndarray:
    by_name = {field.name.lower(): field for field in fields}
    for names in (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue")):
        if all(name in by_name for name in names):
            return np.all([_share(by_name[name]) > 0.5 for name in names], axis=0)
    packed = by_name.get("rgb", by_name.get("rgba"))
    if packed is None or packed.dtype.itemsize != 4:
        raise DataError(f"{path}: the points have no colours to mark defects with; white is defective, black is not")
    text = packed.values.dtype == np.float64
    if packed.dtype.kind != "f" or (text and (packed.values == np.rint(packed.values)).all()):
        bits = np.nan_to_num(packed.values).clip(-(2**31), 2**32 - 1).astype(np.int64)
    else:  # the four bytes read as one float
        values = packed.values.clip(-3.4e38, 3.4e38) if text else packed.values
        bits = values.astype(np.float32).view(np.uint32)
    return np.all([(bits >> shift & 255) > 127 for shift in (0, 8, 16)], axis=0)


def _share(channel: Field) -> np.ndarray:
    """A colour [S] as a share of the brightest that its type holds: 1 of floats up to 1, 65535 of two bytes, else 255."""
    fraction = channel.dtype.kind == "f" and channel.values.max() <= 1
    return channel.values / (1 if fraction else 65535 if channel.dtype.itemsize == 2 else 255)


def read_labels(path: str | Path, grid: tuple[int, int] | None = None) -> tuple[np.ndarray | None, np.ndarray]:
    """Labels of a text file: (points [S, 3] float64, or None where there are labels alone; labels [S] float64). Names choose the
    columns; without names there are one (labels) or four (x y z label), and a running number may stand before them.

    Args:
      grid: (H, W) of an organised scan, whose labels may be written as such a table.

    Raises:
      DataError: as `tables.read_table`, and for columns of which nobody can say which is the label.
    """
    def named(names: Sequence[str]) -> list[int] | None:
        xyz = axes(names, path) or []
        label = [at for at, name in enumerate(names) if bare(name).replace(" ", "_") in LABEL_NAMES]
        if xyz and not label:
            rest = [at for at, name in enumerate(names) if at not in xyz and name.strip()]
            label = rest if len(rest) == 1 else []
        return [*xyz, *label] or None

    table = read_table(path, named)
    values = table.values
    if grid is not None and values.shape == tuple(grid):
        return None, values.ravel()
    if table.names is None and values.shape[1] in (2, 5) and running(values[:, 0]):
        values = values[:, 1:]
    return _columns(values, table, path)


def _columns(values: np.ndarray, table: Table, path: str | Path) -> tuple[np.ndarray | None, np.ndarray]:
    if values.shape[1] == 1:
        return None, values[:, 0]
    if values.shape[1] == 4:
        return values[:, :3], values[:, 3]
    found = f"the names {listed(table.names)}" if table.names else f"{values.shape[1]} columns"
    raise DataError(f"{path}: expected one column of labels or rows 'x y z label', found {found}; name one column label")


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
        fields = _fields(path)
        return _nearest(_bright(fields, path), fields_xyz(fields, path), xyz, path)
    at, labels = _array_labels(path, grid) if kind == ".npy" else read_labels(path, grid)
    if not np.isfinite(labels).all() or (labels != np.rint(labels)).any():
        raise DataError(f"{path}: labels have to be whole numbers, 0 where the point is good")
    if at is not None:
        return _nearest(labels != 0, at, xyz, path)
    if not ordered:
        raise DataError(f"{path}: labels alone do not fit a mesh, whose points are sampled; give rows 'x y z label'")
    if len(labels) != len(xyz):
        raise DataError(f"{path}: {len(labels)} labels where the scan has {len(xyz)} points; restore the matching files")
    return labels != 0


def _nearest(labels: np.ndarray, at: np.ndarray, xyz: np.ndarray, path: Path) -> np.ndarray:
    """The labels [S] of the nearest marked points; in order where they are the very points (some may be at one place). Rows with
    a NaN are no points, of the marks as of the scan."""
    there, seen = ~np.isnan(at).any(1), np.isfinite(xyz).all(1)
    if np.isinf(at).any() or not there.any() or not seen.any():
        raise DataError(f"{path}: coordinates that are NaN or infinite; export the marks again")
    size = float(np.ptp(xyz[seen], axis=0).max())
    if len(at) == len(xyz) and np.abs(at - xyz)[there & seen].max(initial=0) <= 1e-6 * size and (there | ~seen).all():
        return labels
    gap, nearest = cKDTree(at[there]).query(xyz[seen])
    if np.median(gap) > NEAR * size:
        raise DataError(f"{path}: the marked points lie apart from the scan's; export both in one frame and unit")
    marked = np.zeros(len(xyz), bool)
    marked[seen] = labels[there][nearest]
    return marked


def _array_labels(path: Path, grid: tuple[int, int] | None) -> tuple[np.ndarray | None, np.ndarray]:
    """As `read_labels`, of an NPY file."""
    found = read_array(path)
    if found.dtype.kind not in "bfiu" or found.ndim not in (1, 2):
        raise DataError(f"{path}: expected numbers, one or four a point, found {found.shape} {found.dtype}")
    values = found.reshape(len(found), -1).astype(np.float64)
    if grid is not None and values.shape == tuple(grid):
        return None, values.ravel()
    return _columns(values, Table(values, None), path)
