"""Organised clouds from TIFF files, checked: a coordinate a channel."""

from __future__ import annotations

import io
import logging
import lzma
import zlib
from pathlib import Path

import numpy as np

from data_pipelines.clouds.kinds import said
from data_pipelines.scan import DataError

TIFF = (".tiff", ".tif")
MOST_PIXELS = 1 << 26
MOST_PACKED = 1100  # bytes of pixels that a byte of a file can stand for: what deflate reaches
LIMITED = (5, 32773)  # LZW, PackBits: they unpack to some hundred times their size at most
UNPACK = {8: zlib.decompressobj, 32946: zlib.decompressobj, 50013: zlib.decompressobj, 34925: lzma.LZMADecompressor}


def read_xyz(path: str | Path) -> np.ndarray:
    """An organised cloud [H, W, 3] float64 from a TIFF of float32 or float64; 0, 0, 0 where there is no data (also for NaN).

    Raises:
      DataError: missing, truncated or unreadable file, other type or shape, or one that claims more than it holds.
    """
    import tifffile  # only where there are TIFFs

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what is wrong is said once, below
    try:
        with tifffile.TiffFile(io.BytesIO(path.read_bytes()), is_ome=False) as file:  # OME's own text may name other files
            series = file.series[0]
            shape, kind = series.shape, np.dtype(series.dtype)
            if len(shape) != 3 or shape[2] != 3:
                raise DataError(f"{path}: expected an organised cloud of shape (height, width, 3), found {shape}")
            if kind.kind != "f" or kind.itemsize < 4:
                raise DataError(f"{path}: expected float32 or float64 coordinates, found {kind}; export them without scaling")
            check_pixels(path, shape[1], shape[0], 3 * kind.itemsize)
            for page in series.pages:
                _check_segments(path, page)
            xyz = file.asarray()
    except DataError:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"{path}: not a readable TIFF ({said(error)}); copy or export it again") from error
    if xyz.shape != shape:
        raise DataError(f"{path}: damaged, {xyz.shape} of {shape} could be read; copy or export it again")
    with np.errstate(over="ignore", invalid="ignore"):
        xyz = xyz.astype(np.float64)
    xyz[~np.isfinite(xyz).all(-1)] = 0
    return xyz


def check_pixels(path: Path, width: int, height: int, each: float) -> None:
    """Raises DataError for a picture that claims more pixels, of `each` bytes, than any scan has or its file can hold: before
    memory is asked for."""
    if width * height > MOST_PIXELS or width * height * each > MOST_PACKED * path.stat().st_size:
        raise DataError(f"{path}: damaged, or no picture of a scan (it claims {width} x {height} pixels in {path.stat().st_size} "
                        "bytes); copy or export it again")


def _check_segments(path: Path, page) -> None:
    """Holds what a page of a TIFF claims against the file.

    Raises:
      ValueError: segments past the end, which may come back as zeros and would pass for no data; fewer bytes than the pixels
        take; or more, once unpacked: a small file may unpack to any size.
    """
    sizes = list(page.databytecounts)
    if len(page.dataoffsets) != len(sizes) or len(sizes) < np.prod(page.chunked):
        raise ValueError(f"{len(page.dataoffsets)} places and {len(sizes)} sizes of {np.prod(page.chunked)} pieces")
    if max((start + size for start, size in zip(page.dataoffsets, sizes, strict=True)), default=0) > path.stat().st_size:
        raise ValueError("the file is truncated")
    claimed = page.size * np.dtype(page.dtype).itemsize
    packing = int(page.compression)
    if packing == 1:
        if sum(sizes) < claimed:
            raise ValueError(f"{sum(sizes)} bytes where its pixels take {claimed}")
        return
    if packing in LIMITED:
        return
    if packing not in UNPACK:
        raise ValueError(f"packed in a way that is not read (number {packing}); use deflate, LZW or none")
    length, width, depth = (max(page.tilelength, 1), page.tilewidth, page.tiledepth) if page.is_tiled else (
        min(page.rowsperstrip, page.imagelength), page.imagewidth, 1)  # fmt: skip
    most = length * width * depth * page.samplesperpixel * np.dtype(page.dtype).itemsize
    if most > 2 * claimed + (1 << 20):
        raise ValueError(f"pieces of {most} bytes where all its pixels take {claimed}")
    total = 0
    with path.open("rb") as file:
        for start, size in zip(page.dataoffsets, sizes, strict=True):
            file.seek(start)
            unpacked = len(UNPACK[packing]().decompress(file.read(size), most + 1))
            if unpacked > most:
                raise ValueError(f"more data than its pixels take, {most} bytes a piece")
            total += unpacked
    if total < claimed:
        raise ValueError(f"{total} bytes where its pixels take {claimed}")
