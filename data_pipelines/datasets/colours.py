"""The colours of a scan's points, where coloured views are asked for (`batch.FIELDS`: rgb_render)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines.clouds.files import read_array
from data_pipelines.datasets.listing import Partners
from data_pipelines.datasets.pictures import read_rgb
from data_pipelines.scan import DataError, Scan, no_colour


def coloured(scan: Scan, path: Path | None, data_set: str) -> Scan:
    """The scan with the colours of its points or, of pictures that come with it, with coloured ones.

    Args:
      path: what the reader's `colour` says: a folder of pictures view_0.png, view_1.png, ...; an array [S, 3] of colours; or the
        photograph that the scan has in `rgb`, of which every cell of the grid takes its own pixel.
      data_set: its name, for the error.

    Raises:
      DataError: no colour, or a file that is missing, unreadable or of another size than the scan.
    """
    if path is None:
        raise no_colour(data_set)
    if scan.views is not None:
        return dataclasses.replace(scan, views=dataclasses.replace(scan.views, rgb_render=_given(path, scan.views.render.shape)))
    if path.suffix == ".npy":
        colours = read_array(path)
        if colours.shape != (len(scan.xyz), 3) or colours.dtype != np.uint8:
            raise DataError(f"{path}: expected the colours of {len(scan.xyz)} points, found {colours.shape} {colours.dtype}; "
                            "remove it and run again")
    elif scan.rgb is None or scan.rgb.shape[:2] != scan.grid:
        raise DataError(f"{path}: the photograph does not lie on the scan's pixels; restore the matching files")
    else:
        colours = scan.rgb.reshape(-1, 3)
    return dataclasses.replace(scan, colours=colours)


def _given(folder: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The coloured pictures [V, H, W, 3] of a folder, as many and as large as the grey ones [V, H, W]."""
    there = Partners(folder)
    paths = [there.find(f"view_{view}", ".png") for view in range(shape[0])]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file, one of {shape[0]} coloured views; restore it from the archive")
    return np.stack([read_rgb(path, shape[1:]) for path in paths])
