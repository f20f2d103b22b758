"""How many points a file says it has, by its header alone: before memory is taken for them."""

from __future__ import annotations

import contextlib
import io
import json
import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.clouds.loading import ending
from data_pipelines.clouds.meshes import is_binary_stl
from data_pipelines.clouds.pcd import stated_points
from data_pipelines.clouds.ply import stated_rows
from data_pipelines.clouds.tiff import TIFF

HEAD = 1 << 16  # bytes that are looked at


def declared_points(path: str | Path) -> int | None:
    """Points, corners, faces or pixels, whichever the file says are most; None where its format has no such count, or where
    the header is not understood: reading the file then says what is wrong with it.

    Raises:
      OSError: it cannot be read.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(HEAD)
    if path.suffix.lower() == ".gz":
        with contextlib.suppress(zlib.error):
            head = zlib.decompressobj(wbits=31).decompress(head, HEAD)
    count = COUNTS.get(ending(path))
    try:
        return None if count is None else count(head, path)
    except Exception:  # of a broken header, which is not this function's to tell
        return None


def _npy(head: bytes, path: Path) -> int:
    stream = io.BytesIO(head)
    major = np.lib.format.read_magic(stream)[0]
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return math.prod(shape if dtype.names else shape[:-1])


def _las(head: bytes, path: Path) -> int:
    return struct.unpack_from("<Q", head, 247)[0] if head[25] >= 4 else struct.unpack_from("<I", head, 107)[0]


def _ptx(head: bytes, path: Path) -> int:
    columns, rows = head.split()[:2]
    return int(columns) * int(rows)


def _first_line(head: bytes, path: Path) -> int | None:
    words = head.lstrip(b"\xef\xbb\xbf").partition(b"\n")[0].split()
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else None


def _stl(head: bytes, path: Path) -> int | None:
    return struct.unpack_from("<I", head, 80)[0] if is_binary_stl(head) else None


def _off(head: bytes, path: Path) -> int:
    words = [word for line in head.splitlines() for word in line.partition(b"#")[0].split()]
    return max(map(int, words[1:3] if words[0].isalpha() else words[:2]))


def _glb(head: bytes, path: Path) -> int:
    size = struct.unpack_from("<I", head, 12)[0]
    with path.open("rb") as file:
        file.seek(20)
        told = json.loads(file.read(min(size, path.stat().st_size)))
    return max(int(one.get("count", 0)) for one in told["accessors"])


def _tiff(head: bytes, path: Path) -> int:
    import tifffile  # only where there are TIFFs

    with tifffile.TiffFile(path, is_ome=False) as file:
        return int(file.pages[0].imagelength) * int(file.pages[0].imagewidth)


def _e57(head: bytes, path: Path) -> int:
    import pye57  # not installed everywhere

    with pye57.E57(str(path)) as file:
        return sum(file.get_header(number).point_count for number in range(file.scan_count))


COUNTS: dict[str, Callable[[bytes, Path], int | None]] = {
    ".ply": stated_rows, ".pcd": stated_points, ".npy": _npy, ".las": _las, ".laz": _las, ".ptx": _ptx, ".stl": _stl,
    ".off": _off, ".glb": _glb, ".e57": _e57, **dict.fromkeys(TIFF, _tiff),
    **dict.fromkeys((".pts", ".xyz", ".txt", ".asc"), _first_line),
}  # fmt: skip
