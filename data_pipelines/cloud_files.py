"""Files of points: their coordinates as stored, in doubles."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from .datasets.base import DataError
from .tables import read_table

_HEADER_BYTES = 1 << 16


def read_cloud(path: str | Path) -> np.ndarray:
    """Points [S, 3] float64 of a PCD, PLY, XYZ, text or NPY file, in file order.

    Raises:
      DataError: missing, empty, truncated or unreadable file, or unknown format.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    kind = path.suffix.lower()
    if kind in (".txt", ".xyz", ".csv"):
        return read_table(path)[:, :3]
    if kind == ".npy":
        try:
            points = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{path}: not a readable array ({error}); write it again") from error
        if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
            raise DataError(f"{path}: expected an array of shape (points, 3), found {points.shape} {points.dtype}")
        return points[:, :3].astype(np.float64)
    if kind not in (".pcd", ".ply"):
        raise DataError(f"{path}: unknown cloud format {kind!r}; use pcd, ply, xyz, txt, csv or npy")
    count = point_count(path)
    import open3d as o3d  # half a second to import, and text files do without it

    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        points = np.asarray(o3d.io.read_point_cloud(str(path)).points)
    if len(points) != count:
        raise DataError(f"{path}: damaged, {len(points)} of {count} points could be read; copy or convert it again")
    return points


def point_count(path: str | Path) -> int:
    """Number of points a PCD or PLY header promises, after a check that the file is long enough to hold them.

    Raises:
      DataError: no or broken header, or a file cut short.
    """
    path = Path(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if size == 0:
        raise DataError(f"{path}: the file is empty")
    count, start, each, unit = _pcd_layout(path, head) if path.suffix.lower() == ".pcd" else _ply_layout(path, head)
    if unit == "numbers":
        with path.open("rb") as file:
            file.seek(start)
            there = len(file.read().split())
    else:
        there = size - start
    if there < each:
        raise DataError(f"{path}: truncated, {there} {unit} where {count} points need at least {each}; copy it again")
    return count


def _pcd_layout(path: Path, head: bytes) -> tuple[int, int, int, str]:
    """(points, where they start, how many bytes or numbers they take, 'bytes' or 'numbers') of a PCD file."""
    match = re.search(rb"^DATA[ \t]+(\w+)[^\n]*\n", head, re.MULTILINE)
    lines = [line.split() for line in head[: match.start()].splitlines()] if match else []
    fields = {words[0].upper(): words[1:] for words in lines if words}
    try:
        if b"POINTS" in fields:
            count = int(fields[b"POINTS"][0])
        else:
            count = int(fields[b"WIDTH"][0]) * int(fields[b"HEIGHT"][0])
        sizes = [int(s) for s in fields[b"SIZE"]]
        counts = [int(c) for c in fields.get(b"COUNT", [b"1"] * len(sizes))]
    except (KeyError, IndexError, ValueError) as error:
        raise DataError(f"{path}: not a PCD file (no complete header); write it again") from error
    start, data = match.end(), match.group(1)
    if data == b"binary":
        return count, start, count * sum(s * c for s, c in zip(sizes, counts, strict=True)), "bytes"
    if data == b"binary_compressed":  # two uint32: packed and unpacked bytes
        return count, start, 8 + int.from_bytes(head[start : start + 4], "little"), "bytes"
    return count, start, count * sum(counts), "numbers"


_PLY_BYTES = {"char": 1, "uchar": 1, "int8": 1, "uint8": 1, "short": 2, "ushort": 2, "int16": 2, "uint16": 2, "int": 4, "uint": 4,
              "int32": 4, "uint32": 4, "float": 4, "float32": 4, "double": 8, "float64": 8}


def _ply_layout(path: Path, head: bytes) -> tuple[int, int, int, str]:
    """As `_pcd_layout`, of a PLY file, counting its vertices alone."""
    end = re.search(rb"end_header\r?\n", head)
    lines = [line.split() for line in head[: end.start()].decode("ascii", "replace").splitlines()] if end else []
    count, width, inside, text = None, 0, False, False
    for words in lines:
        if words[:1] == ["format"]:
            text = words[1:2] == ["ascii"]
        elif words[:2] == ["element", "vertex"] and words[2:3] and words[2].isdigit():
            count, inside = int(words[2]), True
        elif words[:1] == ["element"]:
            inside = False
        elif words[:1] == ["property"] and inside:
            width += 1 if text else _PLY_BYTES.get(words[1], 1)
    if not head.startswith(b"ply") or count is None or end is None:
        raise DataError(f"{path}: not a PLY file of points (no complete header); write it again")
    return count, end.end(), count * width, "numbers" if text else "bytes"
