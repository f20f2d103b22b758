"""Views of a cloud: shaded picture, depth, ground-truth mask and point-to-pixel map, all from one camera.

The look is that of Open3D's legacy visualizer, as published: square splats, grey 0.7, a headlight, white background, camera
fitted to the rotated cloud's box. A rasteriser draws every view twice: shaded, and with each point's number as its colour; the
second picture says which point every pixel shows, so that depth, mask and visibility agree with the first one exactly.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, grey_closing
from scipy.spatial import cKDTree

from data_pipelines.clouds.sampling import knn, planes
from data_pipelines.rendering.cameras import Cameras
from data_pipelines.rendering.open3d_worker import Open3DRasteriser
from data_pipelines.rendering.projection import GREY, TAN, ZOOM, Camera, Shot, fit_camera
from data_pipelines.scan import DataError

SEEN = ("front", "surface")
FLAT, BROKEN = 1e-3, 0.1  # surface variation that is not darkened at all by `cavity`, and fully
RELIEF = 0.04  # height, in shares of the object's largest side, that spans half the greys of relief
FINE, COARSE = 0.006, 0.04  # relief is what lies between these two blurs, in shares of the view's side


class Rasteriser(Protocol):
    """Draws points as squares of `size` pixels."""

    def draw(self, shots: Sequence[Shot], size: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each shot: shade [W, W] float32 in 0..1, white where nothing is; the front point's number [W, W] int, or -1."""


class DrawingProcess:
    """Open3D's rasteriser in a process of its own.

    Next to TensorFlow the drawing crashes (two LLVMs in one process), and a crash of the GL library should be an error. Threads
    may share one; it draws one object after the other.
    """

    def __init__(self, window: int):
        self._process, self._said = _STARTED.pop() if _STARTED else _started()
        self._end = weakref.finalize(self, self._process.kill)
        self._window, self._alone = window, threading.Lock()
        with contextlib.suppress(BrokenPipeError):  # it is gone: its last words say why
            self._process.stdin.write(b"%d\n" % window)
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        error = json.loads(answer).get("error") if answer else self._last_words()
        if error:
            raise RuntimeError(error)

    def draw(self, shots: Sequence[Shot], size: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        cameras = [[*map(float, shot.camera.eye), shot.camera.zoom] for shot in shots]
        head = {"count": len(shots[0].points), "size": float(size), "cameras": cameras}
        pixels = self._window**2
        try:
            with self._alone:
                self._process.stdin.write(json.dumps(head).encode() + b"\n")
                for shot in shots:
                    self._process.stdin.write(np.stack([shot.points, shot.normals]).astype(np.float64).tobytes())
                self._process.stdin.flush()
                answer = self._process.stdout.read(len(shots) * pixels * 8)
        except BrokenPipeError:
            answer = b""
        if len(answer) != len(shots) * pixels * 8:
            rasteriser.cache_clear()
            raise RuntimeError(self._last_words())
        for start in range(0, len(answer), pixels * 8):
            shade, numbers = (np.frombuffer(answer, t, pixels, start + o) for t, o in ((np.float32, 0), (np.int32, pixels * 4)))
            yield shade.reshape(self._window, -1), numbers.reshape(self._window, -1)

    def _last_words(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").splitlines()
        return f"the drawing process went down, status {code}" + (f": {lines[-1]}" if lines else "")


_STARTED: list[tuple[subprocess.Popen, IO[bytes]]] = []


def start_drawing() -> None:
    """Starts the process of the first `DrawingProcess`: it loads Open3D while the caller has other work. Unused, it ends with
    this process."""
    with contextlib.suppress(OSError):  # said by whoever needs it
        if not _STARTED and not rasteriser.cache_info().currsize:
            _STARTED.append(_started())


def _started() -> tuple[subprocess.Popen, IO[bytes]]:
    """A process that waits for the size of its window, and the file of what it says."""
    env = dict(os.environ)
    env["LP_NUM_THREADS"] = "0"  # the software GL draws in the calling thread: no waiting for another's turn
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), env.get("PYTHONPATH")]))
    said = tempfile.TemporaryFile()
    process = subprocess.Popen([sys.executable, "-m", f"{__package__}.open3d_worker"], env=env, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=said)
    return process, said


class SplatRasteriser:
    """Nearly the same pictures in numpy, for machines on which Open3D cannot draw at all: slower, and its light is simpler."""

    def draw(self, shots: Sequence[Shot], size: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self._draw(*shot, size) for shot in shots)

    @staticmethod
    def _draw(points: np.ndarray, normals: np.ndarray, camera: Camera, size: float) -> tuple[np.ndarray, np.ndarray]:
        window = camera.window
        columns, rows, depth = camera.project(points)
        # A pixel belongs to a splat when its centre does: whole numbers in [centre - size/2, centre + size/2).
        offsets = np.arange(int(np.ceil(size)))
        numbers = np.full(window * window, -1, np.int64)
        far_to_near = np.argsort(-depth, kind="stable")
        for block in np.array_split(far_to_near, -(-len(points) * len(offsets) ** 2 // 4_000_000)):
            x = np.ceil(columns[block, None] - size / 2).astype(np.int64) + offsets
            y = np.ceil(rows[block, None] - size / 2).astype(np.int64) + offsets
            inside_x = (x >= 0) & (x < window) & (x < columns[block, None] + size / 2)
            inside_y = (y >= 0) & (y < window) & (y < rows[block, None] + size / 2)
            inside = inside_y[:, :, None] & inside_x[:, None, :]
            pixel = (y[:, :, None] * window + x[:, None, :])[inside]
            numbers[pixel] = np.broadcast_to(block[:, None, None], inside.shape)[inside]  # the last one written is the nearest
        towards = camera.eye - points
        facing = np.einsum("si,si->s", normals, towards) / np.maximum(np.linalg.norm(towards, axis=1), 1e-30)
        shade = np.append(GREY * (0.25 + 1.1 * np.clip(facing, 0, 1)), 1.0)
        return np.minimum(shade, 1)[numbers].astype(np.float32).reshape(window, window), numbers.reshape(window, window)


@functools.lru_cache(maxsize=4)
def rasteriser(window: int, kind: str = "open3d", here: bool = False) -> Rasteriser:
    """The rasteriser for windows of that size: Open3D's, or the one in numpy, whose pictures are not quite the same.

    `here`: Open3D in this very process, which must never import TensorFlow (`open3d_worker.py`), instead of one of its own.

    Raises:
      DataError: Open3D cannot draw here. The other one never stands in unasked: it would change scores without a word.
    """
    if kind == "numpy":
        return SplatRasteriser()
    try:
        return Open3DRasteriser(window) if here else DrawingProcess(window)
    except (RuntimeError, ImportError, OSError) as error:
        raise DataError(
            f"Open3D cannot draw here ({error}): install the system libraries it needs (sh setup_system.sh), or have numpy draw "
            "(--config.data.rasteriser=numpy; predict: --rasteriser numpy): slower, and its pictures differ a little"
        ) from error


def _resized(image: np.ndarray, size: int, how: Image.Resampling) -> np.ndarray:
    if image.shape == (size, size):
        return image.astype(np.float32)
    return np.asarray(Image.fromarray(image.astype(np.float32)).resize((size, size), how))


def _reduced(shade: np.ndarray, size: int) -> np.ndarray:
    """Light [W, W] of 0 to 1 as a view [size, size] of levels 0 to 255."""
    return np.clip(np.rint(_resized(shade, size, Image.Resampling.BICUBIC) * 255), 0, 255)


def _front_most(pixel: np.ndarray, depth: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """Bool [S]: the nearest candidate of every pixel, one per pixel."""
    index = np.flatnonzero(candidate)
    order = index[np.lexsort((depth[index], pixel[index]))]
    first = np.ones(len(order), bool)
    first[1:] = pixel[order[1:]] != pixel[order[:-1]]
    seen = np.zeros(len(pixel), bool)
    seen[order[first]] = True
    return seen


def fill_unseen(points: np.ndarray, pixel: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives points [S, 3] that no view sees the pixels [V, S, 2] and visibility [V, S] of their nearest visible neighbour."""
    lost = ~visible.any(0)
    if lost.any() and not lost.all():
        found = np.flatnonzero(~lost)
        nearest = found[cKDTree(points[found]).query(points[lost])[1]]
        pixel, visible = pixel.copy(), visible.copy()
        pixel[:, lost], visible[:, lost] = pixel[:, nearest], visible[:, nearest]
    return pixel, visible


@dataclasses.dataclass(frozen=True)
class Look:
    """How views are drawn.

    Fields:
      image_size: side of the results, pixels.
      window: side of the drawing, pixels, reduced to image_size (bicubic for shading, areas for the rest).
      point_size: side of a point's square in the window, pixels.
      seen: 'front', one point per occupied pixel, the front-most (the paper); 'surface', every point on the visible surface.
      zoom: of the camera (`fit_camera`).
      cavity: how much shading darkens where the surface is rough or sharp, 0 (published views) to 1: by the logarithm of the
        surface variation of a point's neighbours.
      depth_relief: share of the depth view's greys that shows height over the blurred surroundings instead of distance, 0
        (published views) to 1: eight bits of distance leave little to a shallow dent.
      fill_gaps: where less than a splat of the far side shows between splats of the near side, show the near side.
    """

    image_size: int
    window: int
    point_size: float
    seen: str = "front"
    zoom: float = ZOOM
    cavity: float = 0.0
    depth_relief: float = 0.0
    fill_gaps: bool = False


def render_object(xyz: np.ndarray, valid: np.ndarray, mask: np.ndarray, cameras: Cameras, look: Look, *,
                  colours: np.ndarray | None = None, draw: Rasteriser | None = None) -> dict[str, np.ndarray]:
    """All views of one object.

    Args:
      xyz: [M, 3] points, any unit.  valid: [M] bool; others are neither drawn nor seen.  mask: [M] bool, defective points.
      cameras: V rotations.
      colours: [M, 3] uint8, of the points, for coloured views: the same light on them instead of on grey.
      draw: rasteriser to use instead of this process's.

    Returns: render [V, H, W] uint8, depth [V, H, W] uint8 (per view: nearest 255, farthest 0, but for `depth_relief`; background
      255), view_mask [V, H, W] bool, pixel [V, M, 2] int16 (x, y), visible [V, M] bool (see `batch.FIELDS`), drawn [V, M] bool:
      visible before the points no view sees took over their nearest visible neighbour's views; with `colours` also rgb_render
      [V, H, W, 3] uint8.

    Raises:
      ValueError: unknown `look.seen`, no valid point.
    """
    if look.seen not in SEEN:
        raise ValueError(f"unknown visibility {look.seen!r}; use one of {SEEN}")
    index = np.flatnonzero(valid)
    if not len(index):
        raise ValueError("no valid point to render")
    draw = rasteriser(look.window) if draw is None else draw
    points = _framed(xyz[index])
    near = knn(points, 30)
    plane, variation = planes(points, near)
    labels = mask[index]
    lit = _lit(variation, near[:, :8], look.cavity) if look.cavity else None

    count, size, window, point_size = len(cameras), look.image_size, look.window, look.point_size
    out = {"render": np.empty((count, size, size), np.uint8), "depth": np.empty((count, size, size), np.uint8),
           "view_mask": np.empty((count, size, size), bool)}
    if colours is not None:
        out["rgb_render"] = np.empty((count, size, size, 3), np.uint8)
        # What grey makes of the light, undone; the last one is the background's, which stays white.
        dyes = np.append(colours[index] / (255 * GREY), [[1.0] * 3], 0).astype(np.float32)
    pixel = np.zeros((count, len(xyz), 2), np.int16)
    visible = np.zeros((count, len(xyz)), bool)
    shots = []
    for turn in cameras.rotations:
        turned = points @ turn.T
        camera = fit_camera(turned, window, cameras.back_off, look.zoom)
        facing = plane @ turn.T
        # Planes have no outside: turned towards the camera, so that no patch is dark for its sign alone.
        facing *= np.where(np.einsum("si,si->s", facing, camera.eye - turned) < 0, -1.0, 1.0)[:, None]
        shots.append(Shot(turned, facing, camera))
    for v, (shot, (shade, numbers)) in enumerate(zip(shots, draw.draw(shots, point_size), strict=True)):
        columns, rows, distance = shot.camera.project(shot.points)
        if look.fill_gaps:
            shade, numbers = _without_gaps(shade, numbers, distance, point_size)
        if lit is not None:
            shade = np.where(numbers >= 0, shade * lit[numbers], shade)
        out["render"][v] = _reduced(shade, size)
        if colours is not None:
            for channel in range(3):
                out["rgb_render"][v, ..., channel] = _reduced(np.minimum(shade * dyes[numbers, channel], 1), size)
        out["depth"][v], out["view_mask"][v] = _depth_and_mask(numbers, distance, labels, size, look.depth_relief)
        x, y = (np.floor((a + 0.5) * (size / window)).astype(np.int64) for a in (columns, rows))
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        x, y = np.clip(x, 0, size - 1), np.clip(y, 0, size - 1)
        pixel[v, index] = np.stack([x, y], 1)
        # A point further behind the drawn surface than a splat is wide shows through a gap between centres: hidden.
        column, row = (np.clip(np.rint(a).astype(np.int64), 0, window - 1) for a in (columns, rows))
        front = numbers[row, column]
        behind = np.where(front >= 0, distance - distance[front], 0)
        on_surface = inside & (behind <= point_size * distance * (2 * TAN / window))
        visible[v, index] = on_surface if look.seen == "surface" else _front_most(y * size + x, distance, on_surface)
    pixel[:, index], filled = fill_unseen(points, pixel[:, index], visible[:, index])
    out["drawn"] = visible.copy()
    visible[:, index] = filled
    return out | {"pixel": pixel, "visible": visible}


def _framed(points: np.ndarray) -> np.ndarray:
    """Points [S, 3] float64 about their mean, in their largest side: no picture depends on the unit, and GL has its range."""
    points = points.astype(np.float64)
    points -= points.mean(0)
    scale = np.ptp(points, axis=0).max()
    return points / (scale if scale > 0 else 1.0)


def shown_points(xyz: np.ndarray, valid: np.ndarray, cameras: Cameras, view: int, size: int, point_size: float, *,
                 zoom: float = ZOOM, fill_gaps: bool = False) -> np.ndarray:
    """Which point every pixel of a view of `render_object` shows, [size, size] int: a row of `xyz`, or -1 where nothing is.

    Drawn again, by numpy: records keep no such picture, and `pixel` and `visible` do not say it, for points hidden by others, or
    so flat to the view that they hide each other, lie on those others' pixels.

    Args: as of `render_object` and `Look`; point_size in pixels of this picture.

    Raises:
      ValueError: no valid point.
    """
    index = np.flatnonzero(valid)
    if not len(index):
        raise ValueError("no valid point to render")
    points = _framed(xyz[index]) @ cameras.rotations[view].T
    camera = fit_camera(points, size, cameras.back_off, zoom)
    shade, numbers = next(SplatRasteriser().draw([Shot(points, np.zeros_like(points), camera)], point_size))
    if fill_gaps:
        numbers = _without_gaps(shade, numbers, camera.project(points)[2], point_size)[1]
    return np.append(index, -1)[numbers]


def _lit(variation: np.ndarray, near: np.ndarray, cavity: float) -> np.ndarray:
    """What each point keeps of its light [S] float32, 1 - cavity to 1, by the surface variation [S] of points near it [S, k]."""
    rough = np.clip(np.log(np.maximum(variation, FLAT) / FLAT) / np.log(BROKEN / FLAT), 0, 1)
    return 1 - cavity * rough[near].mean(1)


def _without_gaps(shade: np.ndarray, numbers: np.ndarray, distance: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Shade and numbers [W, W] in which gaps narrower than a splat of `size` pixels show what lies beside them."""
    far = 4 * distance.max()  # of the background
    depth = np.where(numbers >= 0, distance[numbers], far)
    width = int(size) - (int(size) % 2 == 0)  # odd; a closing fills what is narrower
    closed = -grey_closing(-depth, (width, width)) if width > 1 else depth
    gap = depth - closed > 1.5 * size * closed * (2 * TAN / len(depth))
    if not gap.any():
        return shade, numbers
    row, column = distance_transform_edt(gap, return_distances=False, return_indices=True)
    return shade[row, column], numbers[row, column]


def _depth_and_mask(numbers: np.ndarray, distance: np.ndarray, labels: np.ndarray, size: int,
                    relief: float) -> tuple[np.ndarray, np.ndarray]:
    """Depth [H, W] uint8 and mask [H, W] bool of one view, over the pixels of which the object covers at least half."""
    shown = numbers >= 0
    parts = [np.where(shown, values, 0.0) for values in (1.0, distance[numbers], labels[numbers])]
    cover, depth, defect = (_resized(part, size, Image.Resampling.BOX) for part in parts)
    inside = cover >= 0.5
    depth, defect = (part / np.maximum(cover, 1e-6) for part in (depth, defect))
    image = np.full((size, size), 255, np.uint8)
    if inside.any():
        near, far = depth[inside].min(), depth[inside].max()
        grey = (far - depth[inside]) / (far - near) if far > near else np.full(inside.sum(), 128 / 255)
        if relief:
            grey = (1 - relief) * grey + relief * (0.5 + np.clip(_height(depth, inside)[inside] / (2 * RELIEF), -0.5, 0.5))
        image[inside] = np.rint(255 * grey)
    return image, inside & (defect >= 0.5)


def _height(depth: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """How much nearer than its surroundings each pixel is, [H, W], in the unit of `depth`; the background has no say."""
    def blurred(sigma: float) -> np.ndarray:
        weight = gaussian_filter(inside.astype(np.float64), sigma * len(depth))
        return gaussian_filter(np.where(inside, depth, 0.0), sigma * len(depth)) / np.maximum(weight, 1e-9)

    return blurred(COARSE) - blurred(FINE)
