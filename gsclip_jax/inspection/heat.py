"""Scores of points on the pixels of the views that show them."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import distance_transform_edt

from data_pipelines.records.objects import Recipe
from data_pipelines.rendering.views import shown_points


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
        return found, (shown >= 0) | (solid & (distance <= 2))  # a white highlight is no background
    size, pixel, visible = len(solid), fields["pixel"], fields["visible"]
    found, distance = spread(values, pixel[view], visible[view] & ~shared(pixel, visible), size)
    apart = (solid.sum() / max((distance == 0).sum(), 1)) ** 0.5
    return found, solid & (distance <= 2 * apart + 1)


def heat_maps(values: np.ndarray, fields: dict, recipe: Recipe | None, category: str = "") -> np.ndarray:
    """Scores [M] of one object on the pixels of all its views, float32 [V,H,W]; NaN where a view shows no scored point.

    Args:
      recipe: of `front`; None for pictures that came with the data (`heat` without `shown`).
    """
    maps = np.full(fields["render"].shape, np.nan, np.float32)
    for view in range(len(maps)):
        found, painted = heat(values, fields, view, front(fields, recipe, view, category) if recipe else None)
        maps[view][painted] = found[painted]
    return maps


def shared(pixel: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Bool [M]: points that have the pixels [V,M,2] of another one in every view, and are visible [V,M] in the same."""
    columns = np.concatenate([np.where(visible[..., None], pixel, -1).transpose(1, 0, 2).reshape(visible.shape[1], -1)], axis=1)
    _, group, count = np.unique(columns, axis=0, return_inverse=True, return_counts=True)
    return (count > 1)[group.reshape(-1)] & visible.any(0)
