"""Pictures and organised clouds from files, checked: each reader says in one line which file is wrong and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from .base import DataError

TIFF = (".tiff", ".tif")


def read_xyz(path: str | Path) -> np.ndarray:
    """An organised cloud [H, W, 3] float64 from a TIFF of float32 or float64; 0, 0, 0 where there is no data (also for NaN).

    Raises:
      DataError: missing, truncated or unreadable file, other type or shape.
    """
    import tifffile  # only where there are TIFFs

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            # A segment that lies past the end may come back as zeros, which would pass for no data.
            ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if max(ends, default=0) > path.stat().st_size:
                raise ValueError("the file is truncated")
            xyz = file.asarray()
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"{path}: not a readable TIFF ({_line(error)}); copy or export it again") from error
    if xyz.ndim != 3 or xyz.shape[2] != 3:
        raise DataError(f"{path}: expected an organised cloud of shape (height, width, 3), found {xyz.shape}")
    if xyz.dtype.kind != "f" or xyz.dtype.itemsize < 4:
        raise DataError(f"{path}: expected float32 or float64 coordinates, found {xyz.dtype}; export them without scaling")
    xyz = xyz.astype(np.float64)
    xyz[~np.isfinite(xyz).all(-1)] = 0
    return xyz


def read_flags(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """[H, W] bool: the pixels of a mask that are not 0, whatever number marks them.

    Raises:
      DataError: missing or unreadable file, or another size than `shape`.
    """
    pixels = _pixels(path, shape)
    return pixels != 0 if pixels.ndim == 2 else pixels[..., : 1 if pixels.shape[2] == 2 else 3].any(-1)  # not the alpha channel


def read_rgb(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """[H, W, 3] uint8. Raises DataError as `read_flags`, and for pictures of more than 8 bits."""
    return _pixels(path, shape, "RGB")


def read_grey(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """[H, W] uint8. Raises DataError as `read_rgb`."""
    return _pixels(path, shape, "L")


def read_levels(path: str | Path, shape: tuple[int, int] | None = None) -> np.ndarray:
    """[H, W] float64, the levels 0 to 65535 of a 16-bit grey picture.

    Raises:
      DataError: as `read_flags`, and for pictures that are not 16-bit grey.
    """
    return _pixels(path, shape, "I;16").astype(np.float64)


def _pixels(path: str | Path, shape: tuple[int, int] | None, mode: str | None = None) -> np.ndarray:
    """A picture as it is, [H, W] of numbers or [H, W, C]; or as 'RGB' or 'L', or 16-bit grey 'I;16'."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with Image.open(path) as picture:
            picture.load()
            wide = picture.mode.startswith(("I", "F"))
            if mode is not None and wide != (mode == "I;16"):
                raise DataError(f"{path}: expected {'16' if mode == 'I;16' else '8'} bits a pixel, found mode {picture.mode}; "
                                "export it again")
            if mode in ("RGB", "L") or picture.mode in ("P", "PA"):
                picture = picture.convert(mode or "RGB")
            pixels = np.asarray(picture)
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable picture ({_line(error)}); copy it again") from error
    if shape is not None and pixels.shape[:2] != tuple(shape):
        raise DataError(f"{path}: {pixels.shape[1]} x {pixels.shape[0]} pixels where {shape[1]} x {shape[0]} are expected (width "
                        "x height of the scan); restore the matching files")
    return pixels


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
