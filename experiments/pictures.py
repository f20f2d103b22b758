"""Heat maps over views: pictures of what a model scored, from records and score files alone."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.files import write_atomic
from data_pipelines.rendering import lettering
from gsclip_jax.inspection.heat import heat

GAP = 6
TRUTH = (214, 39, 40)
TEXT = 17  # pixels
LABEL = 260  # widest label, pixels


def heat_colours(values: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> uint8 [...,3], blue to red."""
    from matplotlib import colormaps

    return (colormaps["turbo"](np.clip(values, 0, 1))[..., :3] * 255).astype(np.uint8)


def best_view(fields: dict) -> int:
    """The view that shows most of the defect, of a sound object the one that shows most points."""
    visible = fields["view_mask"].sum((1, 2))
    return int(visible.argmax()) if visible.any() else int(fields["visible"].sum(1).argmax())


def panels(fields: dict, points: np.ndarray, low: float, high: float, view: int | None = None,
           shown: np.ndarray | None = None) -> list[np.ndarray]:  # fmt: skip
    """[render, depth, truth, heat map] uint8 [H,W,3] of one object, in its best view.

    Args:
      fields: one row of a batch (no leading axis).
      points: scores [M]; low and high are the ends of the colour scale.
      shown: of `front`, for that view.
    """
    view = best_view(fields) if view is None else view
    render = np.repeat(fields["render"][view][..., None], 3, -1)
    depth = np.repeat(fields["depth"][view][..., None], 3, -1)
    truth = render.copy()
    truth[fields["view_mask"][view]] = TRUTH
    scores, painted = heat(points, fields, view, shown)
    colours = heat_colours((scores - low) / max(high - low, 1e-12)).astype(np.float32)
    shade = render.astype(np.float32)
    mixed = np.where(painted[..., None], 0.75 * colours + 0.25 * shade, shade).astype(np.uint8)
    return [render, depth, truth, mixed]


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], labels: Sequence[str], scale: int = 2) -> Image.Image:
    """A contact sheet: one row an object, its label on the left, in any language (`lettering`)."""
    size, line = rows[0][0].shape[0] * scale, round(lettering.LEADING * TEXT)
    wrapped = [[part for given in label.split("\n") for part in lettering.wrapped(given, TEXT, LABEL)] for label in labels]
    left, top = round(max(lettering.width(part, TEXT) for label in wrapped for part in label)) + 16, line + 8
    size = max(size, *(round(lettering.width(title, TEXT)) + 8 for title in titles))
    tall = max(size, *(line * len(label) for label in wrapped)) + GAP
    picture = Image.new("RGB", (left + len(rows[0]) * (size + GAP), top + len(rows) * tall), "white")
    pen = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        lettering.draw(pen, (left + column * (size + GAP) + 4, TEXT + 3), title, TEXT)
    for number, (row, label) in enumerate(zip(rows, wrapped, strict=True)):
        y = top + number * tall
        for place, part in enumerate(label):
            lettering.draw(pen, (6, y + (size - line * len(label)) // 2 + place * line + TEXT), part, TEXT)
        for column, image in enumerate(row):
            picture.paste(enlarged(image, size), (left + column * (size + GAP), y))
    return picture


def enlarged(image: np.ndarray, size: int) -> Image.Image:
    return Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save(picture: Image.Image, path: str | os.PathLike) -> None:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png(picture))
