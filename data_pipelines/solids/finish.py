"""Sound detail that makers leave on a surface: turned grooves, knurled bands, grips of bars, fields of studs.

Without it a defect would be the only fine relief on most solids, and any measure of local roughness would find it. The detail
is part of the body: an object and its defective twin carry the same, and a break cuts through it.
"""

from __future__ import annotations

import numpy as np

from data_pipelines.solids import exact
from data_pipelines.solids.fields import Solid


def finish(body: Solid, share: float, rng: np.random.Generator) -> Solid:
    """The body with one or two kinds of regular relief, or as it was: a `share` of bodies gets some. Depths and widths are shares
    of half the diagonal of its box."""
    if rng.random() >= share:
        return body
    unit = float(exact.norm(body.half))
    for kind in rng.choice(len(KINDS), size=int(rng.integers(1, 3)), replace=False):
        body = KINDS[kind](body, unit, rng)
    return body


def _relief(body: Solid, height, depth: float, steep: float) -> Solid:
    """The surface moved outwards by depth * height(p), height [N] in 0..1 (or inwards: depth < 0). `steep`: the largest slope of
    depth * height; the field is scaled down by it, as the mesher wants no distance overestimated."""
    scale, lift = np.float32(1 / (1 + steep)), np.float32(depth * _slope(body))

    def field(p):
        return scale * (body.field(p) - lift * height(p))

    return Solid(field, body.half + 2 * max(depth, 0.0))


def _slope(body: Solid) -> float:
    """How fast the field grows across the surface: fields may be lower bounds of the distance."""
    rng, nudge = np.random.default_rng(0), 1e-2 * np.eye(3)
    points = rng.uniform(-1, 1, (6000, 3)) * body.half
    nearest = points[np.argsort(np.abs(body.field(points.astype(np.float32))), kind="stable")[:200]]
    change = [body.field((nearest + n).astype(np.float32)) - body.field((nearest - n).astype(np.float32)) for n in nudge]
    return float(np.median(exact.norm(np.stack(change, 1))) / 2e-2)


def _wave(x: np.ndarray, duty: float = 0.5) -> np.ndarray:
    """Periodic ridges of period 1 with flat tops and rounded flanks, `duty` of the period high."""
    t = np.abs(x - np.round(x))  # 0 on the ridge's middle line, 0.5 between two
    return _step((0.5 * duty - t) / 0.2 + 0.5)


def _step(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _numbers(unit: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Depth, period and largest slope of a relief: 1.5 steps' slope over a fifth of the period."""
    period, depth = unit * rng.uniform(0.07, 0.13), unit * rng.uniform(0.012, 0.028)
    return depth, period, 1.5 * depth / (0.2 * period)


def _grooves(body: Solid, unit: float, rng: np.random.Generator) -> Solid:
    """Two to six parallel grooves (or ridges) around the body, as turning leaves them."""
    depth, period, steep = _numbers(unit, rng)
    axis = 2 if rng.random() < 0.7 else int(rng.integers(2))
    count = int(rng.integers(2, 7))
    middle = rng.uniform(-0.7, 0.7) * body.half[axis]

    def height(p):
        along = (p[:, axis] - np.float32(middle)) / np.float32(period)
        return _wave(along + 0.5 * (count % 2 == 0)) * (np.abs(along) < 0.5 * count)

    return _relief(body, height, depth * rng.choice([-1, -1, 1]), steep)


def _knurl(body: Solid, unit: float, rng: np.random.Generator) -> Solid:
    """A band of flutes along the axis, all around it."""
    depth, period, steep = _numbers(unit, rng)
    radius = max(body.half[0], body.half[1])
    count = max(int(2 * np.pi * radius / period), 8)
    middle, wide = rng.uniform(-0.6, 0.6) * body.half[2], unit * rng.uniform(0.1, 0.25)

    def height(p):
        around = exact.arctan2(p[:, 1], p[:, 0]) * np.float32(count / (2 * np.pi))
        far = exact.hypot(p[:, 0], p[:, 1]) / np.float32(radius)  # near the axis the flutes run together: fade them
        band = _step((np.float32(wide) - np.abs(p[:, 2] - np.float32(middle))) / np.float32(0.2 * period))
        return _wave(around) * band * _step((far - 0.35) / 0.25)

    return _relief(body, height, depth * rng.choice([-1, 1]), 2 * steep)


def _window(body: Solid, unit: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre on the surface [3], a frame [3, 3] with the surface's normal last, half sides [2] of a rectangle there."""
    direction = rng.normal(size=3)
    direction /= exact.norm(direction)
    # From outside towards a point near the axis, until the field says inside.
    target = rng.uniform(-0.4, 0.4, 3) * body.half
    steps = target + direction * np.linspace(2.2 * unit, 0, 300)[:, None]
    inside = body.field(steps.astype(np.float32)) < 0
    at = steps[int(np.argmax(inside))] if inside.any() else target
    nudge = 0.01 * unit * np.concatenate([np.eye(3), -np.eye(3)])
    values = body.field((at + nudge).astype(np.float32))
    normal = values[:3] - values[3:]
    normal = normal / max(float(exact.norm(normal)), 1e-9) if inside.any() else direction
    first = np.cross(normal, rng.normal(size=3))
    first /= exact.norm(first)
    return at, np.stack([first, np.cross(normal, first), normal], 1), unit * rng.uniform([0.12, 0.08], [0.28, 0.2])


def _inside(q: np.ndarray, half: np.ndarray, soft: float, reach: float) -> np.ndarray:
    """1 inside the rectangle [-half, half] of local coordinates q [N, 3] and less than `reach` above or below it, 0 outside."""
    edge = np.minimum(half[0] - np.abs(q[:, 0]), half[1] - np.abs(q[:, 1])) / soft
    return _step(edge) * _step((reach - np.abs(q[:, 2])) / (0.3 * reach))


def _bars(body: Solid, unit: float, rng: np.random.Generator) -> Solid:
    """A grip: parallel bars in a rectangle."""
    depth, period, steep = _numbers(unit, rng)
    at, frame, half = _window(body, unit, rng)
    at, frame = at.astype(np.float32), frame.astype(np.float32)

    def height(p):
        q = exact.times(p - at, frame)
        return _wave(q[:, 0] / np.float32(period)) * _inside(q, half, 0.2 * period, 0.2 * unit)

    return _relief(body, height, depth * rng.choice([-1, 1]), 2 * steep)


def _studs(body: Solid, unit: float, rng: np.random.Generator) -> Solid:
    """A field of studs or dimples in a square grid."""
    depth, period, steep = _numbers(unit, rng)
    at, frame, half = _window(body, unit, rng)
    at, frame = at.astype(np.float32), frame.astype(np.float32)

    def height(p):
        q = exact.times(p - at, frame)
        both = _wave(q[:, 0] / np.float32(period), 0.6) * _wave(q[:, 1] / np.float32(period), 0.6)
        return both * _inside(q, half, 0.2 * period, 0.2 * unit)

    return _relief(body, height, depth * rng.choice([-1, 1]), 2 * steep)


KINDS = (_grooves, _knurl, _bars, _studs)
