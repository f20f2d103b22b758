"""Camera lists: from which sides an object is looked at.

A view is a rotation of the cloud; the camera then looks along -z at the rotated cloud's box (`render.Camera`). Angles of the
presets: `multi_view/` of PointAD, whose renderings GS-CLIP uses; other counts of views: the ablation lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.scan import did_you_mean

Steps = Sequence[tuple[str, float]]  # rotations about fixed axes, first to last: (('x', 180), ('y', -30))

_COUNTS = (3, 5, 7, 9, 11)
_MVTEC_X = {3: (-45, 0, 45), 5: (-45, -15, 0, 15, 45)}
_EYE_X = {3: (-30, 0, 20), 5: (-30, -15, 0, 10, 20)}
_SIDE_Y = {3: (), 5: (), 7: (-30, 30), 9: (-30, -15, 15, 30), 11: (-45, -30, -15, 15, 30, 45)}


@dataclasses.dataclass(frozen=True)
class Cameras:
    """V rotations, and whether a camera is drawn back until the whole cloud is in its picture."""

    rotations: np.ndarray  # [V, 3, 3] float64, rotated = points @ rotation.T
    back_off: bool = False

    def __len__(self) -> int:
        return len(self.rotations)


def rotation(steps: Steps) -> np.ndarray:
    """The [3, 3] matrix of right-handed rotations about fixed axes in degrees, applied first to last."""
    matrix = np.eye(3)
    for axis, degrees in steps:
        if axis not in ("x", "y", "z"):
            raise ValueError(f"unknown axis {axis!r} in a camera list; use 'x', 'y' or 'z'")
        angle = np.deg2rad(float(degrees))
        turn = np.eye(3)
        i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _ring(count: int) -> list[Steps]:
    step = 360 / (count + 1)  # nine views: -144 to 144 in steps of 36
    return [(("x", 180.0), ("x", step * (i - (count - 1) / 2))) for i in range(count)]


def _cross(count: int, turn: float, about_x: dict[int, tuple]) -> list[Steps]:
    if count not in _COUNTS:
        raise ValueError(f"no camera list of {count} views; choose one of {_COUNTS} or give a list of rotations")
    steps: list[Steps] = [(("x", turn), ("x", a)) for a in about_x[min(count, 5)]]
    return steps + [(("x", turn), ("y", a)) for a in _SIDE_Y[count]]


PRESETS = {
    "ring": (lambda count: _ring(count), False),
    "mvtec3d": (lambda count: _cross(count, 180.0, _MVTEC_X), False),
    "eyecandies": (lambda count: _cross(count, 45.0, _EYE_X), True),
    # From the sensor's side in the frame of the Eyecandies reader, where 45 degrees shows its scans from behind and below.
    "eyecandies_front": (lambda count: _cross(count, 135.0, {n: tuple(-a for a in xs) for n, xs in _EYE_X.items()}), True),
}


def views(cameras: str | Sequence[Steps], count: int | None = None, back_off: bool | None = None) -> Cameras:
    """The camera list of a preset (a name in `PRESETS`), or of explicit rotations, one sequence per view.

    Args:
      cameras: preset name, or a list of views, each a sequence of (axis, degrees), applied first to last.
      count: number of views (presets: default 9); with an explicit list it has to agree.
      back_off: overrides the preset's choice.

    Raises:
      ValueError: unknown preset, axis or number of views.
    """
    if isinstance(cameras, str):
        if cameras not in PRESETS:
            raise ValueError(f"unknown camera list {cameras!r}{did_you_mean(cameras, PRESETS)}; known: {', '.join(PRESETS)}")
        build, default = PRESETS[cameras]
        if count is not None and count < 1:
            raise ValueError(f"a camera list needs at least one view, not {count}")
        steps = build(9 if count is None else int(count))
    else:
        steps, default = [tuple(view) for view in cameras], False
        if not steps or (count is not None and count != len(steps)):
            raise ValueError(f"{len(steps)} cameras listed, but {count} views asked for")
    return Cameras(np.stack([rotation(view) for view in steps]), default if back_off is None else bool(back_off))
