"""Marks on the points of a cloud: colours, and labels with or without coordinates."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..clouds import point_count
from .base import DataError


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
