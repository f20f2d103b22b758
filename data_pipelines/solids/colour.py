"""What a solid is made of: colour as a function of the place in the sound body, the same on every processor.

A category has two colours and a pattern of its own, as the products of a maker have; every object has its own shade of them and
its own course of the pattern. The pattern goes through the body like the grain of wood: a fracture shows what lies inside, and
nothing depends on where a defect is. So a view's colours follow from the body's form in part, and no defect from its colours.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from data_pipelines.solids import exact
from data_pipelines.solids.defects import waves

PATTERNS = ("plain", "bands", "grain", "marble", "speckles")


def material(category: str, unit: float, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """The colours of an object: a function of points [N, 3] of its sound body to uint8 [N, 3].

    Args:
      unit: half the diagonal of the body's box.
      rng: the object's own; its good and its defective form have the same.
    """
    common = np.random.default_rng(zlib.crc32(category.encode()))
    hues, pattern = _two_hues(common), PATTERNS[int(common.integers(len(PATTERNS)))]
    first, second = (_rgb(hue + rng.normal(0, 0.02), rng.uniform(*tone), rng.uniform(*light)) for hue, tone, light in hues)
    share = _share(pattern, unit, common, rng)
    cloudy = waves(rng, 6, (0.3 * unit, 0.9 * unit))  # no real surface is of one colour throughout

    def colours(points: np.ndarray) -> np.ndarray:
        part = share(points)[:, None]
        mixed = (part * second + (1 - part) * first) * (1 + 0.05 * np.clip(cloudy(points), -2, 2))[:, None]
        return np.rint(255 * np.clip(mixed, 0, 1)).astype(np.uint8)

    return colours


def _two_hues(rng: np.random.Generator) -> list[tuple[float, tuple[float, float], tuple[float, float]]]:
    """Hue, and the ranges of saturation and brightness, of a category's two colours: the second darker or paler."""
    hue = rng.uniform()
    other = hue + rng.uniform(0.08, 0.3) * (1 if rng.uniform() < 0.5 else -1)
    dark = rng.uniform() < 0.5
    return [(hue, (0.45, 0.75), (0.7, 0.95)), (other, (0.5, 0.8), (0.35, 0.55)) if dark else (other, (0.1, 0.3), (0.85, 1.0))]


def _share(pattern: str, unit: float, common: np.random.Generator, rng: np.random.Generator):
    """How much of the second colour is at points [N, 3]: a function to [N] of 0 to 1."""
    period, phase = unit * common.uniform(0.25, 0.5), rng.uniform(0, 2 * np.pi)
    wobble = waves(rng, 5, (0.5 * unit, 1.2 * unit))
    fine = waves(rng, 12, (0.12 * unit, 0.25 * unit))
    axis = int(common.integers(3))

    def along(points):
        return exact.sin(points[:, axis] * (2 * np.pi / period) + phase + 0.6 * wobble(points))

    def around(points):
        away = exact.hypot(points[:, (axis + 1) % 3], points[:, (axis + 2) % 3])
        return exact.sin(away * (4 * np.pi / period) + phase + 1.2 * wobble(points))

    return {
        "plain": lambda points: 0.15 * _step(wobble(points)),
        "bands": lambda points: _step(3 * along(points)),
        "grain": lambda points: 0.7 * _step(around(points) + 0.3 * fine(points)),
        "marble": lambda points: 1 - np.minimum(np.abs(1.6 * wobble(points) + 0.5 * fine(points)), 1),
        "speckles": lambda points: _step(4 * (fine(points) - 1.1)),
    }[pattern]


def _step(x: np.ndarray) -> np.ndarray:
    """From 0 to 1 between -1 and 1, smoothly."""
    x = np.clip(0.5 * x + 0.5, 0, 1)
    return x * x * (3 - 2 * x)


def _rgb(hue: float, saturation: float, brightness: float) -> np.ndarray:
    """Red, green and blue [3] of 0 to 1; hues go round once from 0 to 1."""
    wheel = np.array([hue, hue - 1 / 3, hue - 2 / 3])
    away = np.abs(wheel - np.rint(wheel))  # 0 at the channel's own hue, 1/2 opposite it
    pure = np.clip(2 - 6 * away, 0, 1)
    return brightness * (1 - saturation * (1 - pure))
