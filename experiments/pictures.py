"""Heat maps over views: pictures of what a model scored, from records and score files alone."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from data_pipelines.files import write_atomic
from data_pipelines.records.objects import Recipe
from data_pipelines.rendering import lettering
from data_pipelines.rendering.views import shown_points

GAP = 6
TRUTH = (214, 39, 40)
TEXT = 17  # pixels
LABEL = 260  # widest label, pixels


def heat_colours(values: np.ndarray) -> np.ndarray:
    """[...] in [0, 1] -> uint8 [...,3], blue to red."""
    from matplotlib import colormaps

    return (colormaps["turbo"](np.clip(values, 0, 1))[..., :3] * 255).astype(np.uint8)


def front(fields: dict, recipe: Recipe, view: int, category: str = "") -> np.ndarray:
    """Which scored point every pixel of a view shows, [H,W] int, -1 where none; of records this project rendered.

    Args:
      fields: one row of a batch (no leading axis), made by the recipe.
    """
    size = fields["render"].shape[-1]
    return shown_points(
        fields["xyz"], fields["valid"], recipe.camera_list(), view, size, recipe.splat(category) * size / recipe.window,
        zoom=recipe.zoom, fill_gaps=recipe.fill_gaps,
    )  # fmt: skip


def spread(values: np.ndarray, pixel: np.ndarray, visible: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Point values [M] of one view painted on its pixels, every other pixel taking its nearest painted one.

    Returns: map float32 [size,size], distance in pixels to the nearest painted pixel.
    """
    image = np.full((size, size), -np.inf, np.float32)
    x, y = pixel[visible, 0], pixel[visible, 1]
    np.maximum.at(image, (y, x), values[visible].astype(np.float32))
    return _filled(image)


def _filled(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel that is -inf takes the nearest other one's value; and the distance to it."""
    painted = np.isfinite(image)
    if not painted.any():
        return np.zeros_like(image), np.full(image.shape, np.inf)
    distance, (rows, columns) = distance_transform_edt(~painted, return_indices=True)
    return image[rows, columns], distance


def heat(values: np.ndarray, fields: dict, view: int, shown: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores [M] on the pixels that show their points: map float32 [H,W], and bool [H,W] where it means something.

    Args:
      shown: of `front`. Without it (pictures that came with the data) points are painted where `pixel` has them, but for those
        that no view sees: they hold another point's pixels, which is then theirs no more than its.
    """
    solid = fields["render"][view] < 250
    if shown is not None:
        found, distance = _filled(np.where(shown >= 0, values[shown], -np.inf).astype(np.float32))
        return found, solid & (distance <= 2)
    size, pixel, visible = len(solid), fields["pixel"], fields["visible"]
    found, distance = spread(values, pixel[view], visible[view] & ~shared(pixel, visible), size)
    apart = (solid.sum() / max((distance == 0).sum(), 1)) ** 0.5
    return found, solid & (distance <= 2 * apart + 1)


def shared(pixel: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Bool [M]: points that have the pixels [V,M,2] of another one in every view, and are visible [V,M] in the same."""
    columns = np.concatenate([np.where(visible[..., None], pixel, -1).transpose(1, 0, 2).reshape(visible.shape[1], -1)], axis=1)
    _, group, count = np.unique(columns, axis=0, return_inverse=True, return_counts=True)
    return (count > 1)[group.reshape(-1)] & visible.any(0)


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
