"""Open3D draws points off screen, in a process of its own: `python -m data_pipelines.rendering.open3d_worker`.

Keep TensorFlow out of this process: the GL library of machines without a graphics card and TensorFlow each bring an LLVM, and
drawing after an import of TensorFlow crashes (Mesa 22.3, TensorFlow 2.21).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence

import numpy as np

from data_pipelines.rendering.projection import GREY, ZOOM, Camera, Shot, fit_camera


class Open3DRasteriser:
    """One window of Open3D's legacy visualizer, drawn off screen (EGL where there is no display), used again for every view."""

    def __init__(self, window: int):
        self._o3d = o3d = _open3d()
        with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
            self._view = o3d.visualization.Visualizer()
            if not self._view.create_window(width=window, height=window, visible=False):
                raise RuntimeError("it could not open an off-screen window")
        self._view.get_render_option().background_color = np.ones(3)
        self._cloud = o3d.geometry.PointCloud()
        self._shown = False
        self._check(window)

    def _check(self, window: int) -> None:
        """One drawing, to find out now whether this machine's GL gives point numbers back."""
        points = np.array([[-1.0, -1, 0], [1, 1, 0], [0, 0, 0]])
        camera = fit_camera(points, window)
        numbers = self._draw(points, np.tile([0.0, 0, 1], (3, 1)), camera, 3)[1]
        columns, rows, _ = (np.rint(a).astype(int) for a in camera.project(points))
        if list(numbers[rows, columns]) != [0, 1, 2]:
            raise RuntimeError("its picture does not show the points where its camera puts them")

    def draw(self, shots: Sequence[Shot], size: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self._draw(*shot, size) for shot in shots)

    def _draw(self, points: np.ndarray, normals: np.ndarray, camera: Camera, size: float) -> tuple[np.ndarray, np.ndarray]:
        vectors = self._o3d.utility.Vector3dVector
        option, cloud = self._view.get_render_option(), self._cloud
        option.point_size = float(size)
        cloud.points = vectors(points)
        cloud.normals = vectors(normals)
        shade = self._capture(np.full((len(points), 3), GREY), True, camera)[..., 0]
        number = np.arange(len(points))
        colours = np.stack([number & 255, number >> 8 & 255, number >> 16], 1) / 255
        red, green, blue = np.moveaxis(np.rint(self._capture(colours, False, camera) * 255).astype(np.int64), -1, 0)
        numbers = red | green << 8 | blue << 16
        return shade, np.where(numbers < len(points), numbers, -1)

    def _capture(self, colours: np.ndarray, light: bool, camera: Camera) -> np.ndarray:
        self._view.get_render_option().light_on = light
        self._cloud.colors = self._o3d.utility.Vector3dVector(colours)
        if self._shown:
            self._view.update_geometry(self._cloud)
        else:
            self._view.add_geometry(self._cloud)
            self._shown = True
        self._view.reset_view_point(True)  # else the window keeps fitting the earlier clouds too
        if camera.zoom != ZOOM:
            self._view.get_view_control().set_zoom(camera.zoom)
        return np.array(self._view.capture_screen_float_buffer(do_render=True))


def _open3d():
    # The same software path everywhere: a window on somebody's display would smooth edges, which garbles point numbers.
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        os.environ.pop(name, None)
    os.environ.setdefault("XDG_RUNTIME_DIR", tempfile.gettempdir())  # the GL library complains without one
    import open3d

    return open3d


def _serve(jobs, answers) -> None:
    """Takes the window's side, a line; gives `{}` or `{"error": one line}`; then, for every cloud sent, its shade (float32) and
    numbers (int32)."""
    try:
        _open3d()  # takes a second, in which the other process may still be busy
        if not (line := jobs.readline()):
            return  # it has ended
        window = int(line)
        draw = Open3DRasteriser(window)
    except (RuntimeError, ImportError, OSError) as error:
        answers.write(json.dumps({"error": " ".join(str(error).split())}).encode() + b"\n")
        answers.flush()
        return
    answers.write(b"{}\n")
    answers.flush()
    for line in jobs:
        head = json.loads(line)
        stored = np.frombuffer(bytearray(jobs.read(len(head["cameras"]) * head["count"] * 48)), np.float64)
        stored = stored.reshape(-1, 2, head["count"], 3)
        cameras = [Camera(np.array(eye), zoom, window) for *eye, zoom in head["cameras"]]
        shots = [Shot(*pair, camera) for pair, camera in zip(stored, cameras, strict=True)]
        for shade, numbers in draw.draw(shots, head["size"]):
            answers.write(shade.astype(np.float32).tobytes() + numbers.astype(np.int32).tobytes())
        answers.flush()


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    # Libraries print to standard output: keep it for answers, and send theirs to standard error.
    with os.fdopen(os.dup(1), "wb") as private:
        os.dup2(2, 1)
        _serve(sys.stdin.buffer, private)
