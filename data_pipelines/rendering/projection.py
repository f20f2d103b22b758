"""The camera of Open3D's legacy visualizer: where it stands, and on which pixel it puts a point."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RASTERISERS = ("open3d", "numpy")  # what can draw
GREY = 0.7  # of the material
TAN = np.tan(np.deg2rad(30))  # half the vertical field of view of Open3D's default camera
ZOOM = 0.7  # and its default zoom
MARGIN = 1.02  # of cameras that are drawn back until everything is inside


class Camera(NamedTuple):
    """Open3D's default camera: at `eye`, looking along -z, up = +y, 60 degrees, square window."""

    eye: np.ndarray  # [3]
    zoom: float  # distance from the box centre = zoom * largest side / tan 30
    window: int  # pixels

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Column, row (a pixel's centre has whole numbers) and distance along the axis, [S] each."""
        x, y, z = (points - self.eye).T
        focal, centre = self.window / 2 / TAN, self.window / 2 - 0.5
        return centre + focal * x / -z, centre - focal * y / -z, -z


def fit_camera(points: np.ndarray, window: int, back_off: bool = False, zoom: float = ZOOM) -> Camera:
    """The default camera of rotated points [S, 3]; with `back_off` as far away as it takes to see all of them.

    `zoom` less than the default's brings it nearer.
    """
    low, high = points.min(0), points.max(0)
    centre, side = (low + high) / 2, float((high - low).max())
    distance = zoom * side / TAN
    if back_off:
        x, y, z = np.abs(points - centre).T
        z = points[:, 2] - centre[2]
        distance = max(distance, MARGIN * float((np.maximum(x, y) / TAN + z).max()))
    return Camera(centre + [0, 0, distance], distance * TAN / side, window)


class Shot(NamedTuple):
    """One picture to draw."""

    points: np.ndarray  # [S, 3]
    normals: np.ndarray  # [S, 3], towards the camera
    camera: Camera
