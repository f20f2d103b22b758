"""Heat maps over views: pictures of what a model scored, from records and score files alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

GAP = 6
TRUTH = (214, 39, 40)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> uint8 [...,3], blue to red."""
    from matplotlib import colormaps

    return (colormaps["turbo"](np.clip(values, 0, 1))[..., :3] * 255).astype(np.uint8)


def spread(values: np.ndarray, pix: np.ndarray, seen: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Point values [M] of one view painted on its pixels, every other pixel taking its nearest painted one.

    Returns: map float32 [size,size], distance in pixels to the nearest painted pixel.
    """
    image = np.full((size, size), -np.inf, np.float32)
    x, y = pix[seen, 0], pix[seen, 1]
    np.maximum.at(image, (y, x), values[seen].astype(np.float32))
    if not len(x):
        return np.zeros((size, size), np.float32), np.full((size, size), np.inf)
    distance, (rows, columns) = distance_transform_edt(~np.isfinite(image), return_indices=True)
    return image[rows, columns], distance


def best_view(fields: dict) -> int:
    """The view that shows most of the defect, of a sound object the one that shows most points."""
    visible = fields["view_mask"].sum((1, 2))
    return int(visible.argmax()) if visible.any() else int(fields["seen"].sum(1).argmax())


def panels(fields: dict, points: np.ndarray, low: float, high: float, view: int | None = None) -> list[np.ndarray]:
    """[render, depth, truth, heat map] uint8 [H,W,3] of one object, in its best view.

    Args:
      fields: one row of a batch (no leading axis).
      points: scores [M]; low and high are the ends of the colour scale.
    """
    view = best_view(fields) if view is None else view
    render = np.repeat(fields["render"][view][..., None], 3, -1)
    depth = np.repeat(fields["depth"][view][..., None], 3, -1)
    size = render.shape[0]
    truth = render.copy()
    truth[fields["view_mask"][view]] = TRUTH
    heat, _ = spread(points, fields["pix"][view], fields["seen"][view], size)
    solid = fields["render"][view] < 250
    colours = heat_colours((heat - low) / max(high - low, 1e-12)).astype(np.float32)
    shade = render.astype(np.float32)
    mixed = np.where(solid[..., None], 0.75 * colours + 0.25 * shade, shade).astype(np.uint8)
    return [render, depth, truth, mixed]


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], labels: Sequence[str], scale: int = 2) -> Image.Image:
    """A contact sheet: one row an object, its label on the left."""
    size = rows[0][0].shape[0] * scale
    left, top = 150, 24
    width, height = left + len(rows[0]) * (size + GAP), top + len(rows) * (size + GAP)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        draw.text((left + column * (size + GAP) + 4, 6), title, fill="black")
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + number * (size + GAP)
        draw.multiline_text((6, y + size // 2 - 20), label, fill="black", spacing=3)
        for column, image in enumerate(row):
            resized = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
            picture.paste(resized, (left + column * (size + GAP), y))
    return picture


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    picture.save(temporary, "PNG", optimize=True)
    temporary.replace(path)
