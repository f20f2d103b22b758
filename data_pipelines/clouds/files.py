"""Files of points: their coordinates as stored, in doubles."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from data_pipelines.clouds.columns import axes, fields_xyz, listed, unnamed_xyz
from data_pipelines.clouds.kinds import OTHERS, SAVE_AS, contents
from data_pipelines.clouds.pcd import read_pcd
from data_pipelines.clouds.ply import read_ply
from data_pipelines.clouds.tables import read_points
from data_pipelines.scan import DataError

TEXT = (".txt", ".xyz", ".csv", ".tsv", ".asc", ".pts")


def read_cloud(path: str | Path) -> np.ndarray:
    """Points [S, 3] float64 of a PCD, PLY, NPY or text file (`tables.read_points`): every row, in file order, as stored. A row
    with a NaN is one that the scanner did not see.

    Raises:
      DataError: missing, empty, truncated, damaged or unknown file, one that is something else, or columns of which nobody can
        say which are x, y and z.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind in TEXT:
        return read_points(path)
    content = contents(path)
    if kind == ".npy":
        return array_xyz(array_of(content, path), path)
    if kind in (".pcd", ".ply"):
        return fields_xyz((read_pcd if kind == ".pcd" else read_ply)(content, path), path)
    if kind in OTHERS:
        raise DataError(f"{path}: unknown cloud format {kind!r} ({OTHERS[kind]}); {SAVE_AS}")
    raise DataError(f"{path}: unknown cloud format {kind!r}; use pcd, ply, npy, xyz, txt or csv")


def read_array(path: str | Path) -> np.ndarray:
    """The array of an NPY file.

    Raises:
      DataError: as `contents`, for a damaged header, objects instead of numbers, or another size than the header says.
    """
    return array_of(contents(path), path)


def array_of(content: bytes, path: str | Path) -> np.ndarray:
    """As `read_array`, of a file with the bytes `content`."""
    stream = io.BytesIO(content)
    try:
        major = np.lib.format.read_magic(stream)[0]
        read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except Exception as error:  # the header is a piece of Python; damaged ones raise whatever its parser does
        raise DataError(f"{path}: not a readable array (no NPY file, or its header is damaged); write it again with "
                        "numpy.save") from error
    if dtype.hasobject:
        raise DataError(f"{path}: holds Python objects, not numbers; write it again with numpy.save of an array of numbers")
    if not all(0 <= length < 1 << 48 for length in shape):
        raise DataError(f"{path}: says its shape is {str(shape)[:60]}; write it again with numpy.save")
    count, start = int(np.prod(shape, dtype=object)), stream.tell()
    if count * dtype.itemsize != len(content) - start:
        raise DataError(f"{path}: not a readable array (damaged: {len(content) - start} bytes where {str(shape)[:60]} "
                        f"{dtype.name[:20]} takes {count * dtype.itemsize}); copy or write it again")
    if not count or not dtype.itemsize:
        raise DataError(f"{path}: expected numbers, the array is empty; export it again")
    return np.frombuffer(content, dtype, count, start).reshape(shape, order="F" if fortran else "C")


def array_xyz(found: np.ndarray, path: Path) -> np.ndarray:
    """Points [S, 3] float64 of an array: of fields x, y and z, of rows, or of the pixels of a grid.

    Raises:
      DataError: naming `path`, where it is none of these.
    """
    if found.dtype.names:
        picked = axes(found.dtype.names, path)
        columns = [found[found.dtype.names[at]] for at in picked or ()]
        if not columns or any(column.dtype.kind not in "fiu" or column.ndim != found.ndim for column in columns):
            raise DataError(f"{path}: has no numbers x, y and z (found: {listed(found.dtype.names)}); name the fields so")
        return np.stack([column.ravel().astype(np.float64) for column in columns], axis=1)
    rows, grid = found.ndim == 2 and found.shape[1] >= 3, found.ndim == 3 and found.shape[2] == 3
    if found.dtype.kind not in "fiu" or not (rows or grid):
        raise DataError(f"{path}: expected an array of shape (points, 3), found {found.shape} {found.dtype}")
    if rows and found.shape[0] in (3, 4) and found.shape[1] > 4:
        raise DataError(f"{path}: an array of {found.shape}; points go in rows, write its transpose")
    return unnamed_xyz(found.reshape(-1, found.shape[-1]).astype(np.float64), path)
