"""Pictures from files, checked: each reader says in one line which file is wrong and how."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.clouds.kinds import said
from data_pipelines.clouds.tiff import check_pixels
from data_pipelines.scan import DataError

BYTES = {"1": 1 / 8, "P": 1 / 8, "L": 1 / 8, "I;16": 2}  # of a pixel, at least, by Pillow's mode
PICTURES = ("PNG", "JPEG", "BMP", "TIFF")  # by content; Pillow would hand other files to other programs


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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of sizes, among others: `check_pixels` refuses them
            # From memory: a file asked for the four gigabytes that a damaged piece claims would take them.
            with Image.open(io.BytesIO(path.read_bytes()), formats=PICTURES) as picture:
                check_pixels(path, *picture.size, BYTES.get(picture.mode, 1))
                _check_size(path, picture.size, shape)
                picture.load()
                wide = picture.mode.startswith(("I", "F"))
                if mode is not None and wide != (mode == "I;16"):
                    bits = 16 if mode == "I;16" else 8
                    raise DataError(f"{path}: expected {bits} bits a pixel, found mode {picture.mode}; export it again")
                if mode in ("RGB", "L") or picture.mode in ("P", "PA"):
                    picture = picture.convert(mode or "RGB")
                pixels = np.asarray(picture)
    except DataError:
        raise
    except Exception as error:  # as of a TIFF
        raise DataError(f"{path}: not a readable picture ({said(error)}); copy it again") from error
    _check_size(path, pixels.shape[1::-1], shape)
    return pixels


def _check_size(path: Path, size: tuple[int, int], shape: tuple[int, int] | None) -> None:
    if shape is not None and tuple(size) != (shape[1], shape[0]):
        raise DataError(f"{path}: {size[0]} x {size[1]} pixels where {shape[1]} x {shape[0]} are expected (width x height of "
                        "the scan); restore the matching files")
