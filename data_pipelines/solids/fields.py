"""Signed distance fields of simple bodies, and the operations that join them. numpy and scipy only.

A field maps points float32 [N, 3] to signed distances float32 [N], negative inside. Distances may be lower bounds
(joins) but hardly ever exceed the true distance, which is what the mesher in `meshing.py` relies on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from data_pipelines.solids import exact

Field = Callable[[np.ndarray], np.ndarray]


class Solid(NamedTuple):
    """A body: its field, and the half sides [3] of a box around it, centred at the origin."""

    field: Field
    half: np.ndarray


def solid(field: Field, x: float, y: float, z: float) -> Solid:
    return Solid(field, np.array([x, y, z]))


def _f32(values) -> np.ndarray:
    return np.asarray(values, np.float32)


# ---------------------------------------------------------------- joining


def union(*fields: Field, fillet: float = 0.0) -> Field:
    """All of the bodies; `fillet` > 0 rounds the inner corners where they meet."""

    def field(p):
        d = fields[0](p)
        for other in fields[1:]:
            d = soft_min(d, other(p), fillet)
        return d

    return field


def intersect(first: Field, *others: Field, fillet: float = 0.0) -> Field:
    """What all bodies have in common."""

    def field(p):
        d = first(p)
        for other in others:
            d = -soft_min(-d, -other(p), fillet)
        return d

    return field


def subtract(body: Field, *tools: Field, fillet: float = 0.0) -> Field:
    """`body` without the tools (drillings, pockets)."""

    def field(p):
        d = body(p)
        for tool in tools:
            d = -soft_min(-d, tool(p), fillet)
        return d

    return field


def soft_min(a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
    """Minimum of two fields with a quadratic blend where they differ by less than `width`."""
    if width <= 0:
        return np.minimum(a, b)
    blend = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - blend * blend * np.float32(width * 0.25)


# ---------------------------------------------------------------- placing


def move(body: Field, offset: Sequence[float]) -> Field:
    shift = _f32(offset)
    return lambda p: body(p - shift)


def turn(body: Field, rotation: np.ndarray) -> Field:
    """`body` turned by a rotation matrix [3, 3] (column vectors: x -> rotation @ x)."""
    matrix = _f32(rotation)
    return lambda p: body(exact.times(p, matrix))


def grow(body: Field, scale: float) -> Field:
    """`body` made `scale` times as large."""
    return lambda p: np.float32(scale) * body(p / np.float32(scale))


def attitude(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix [3, 3], all equally likely."""
    first, second = rng.normal(size=(2, 3))
    first /= exact.norm(first)
    second -= exact.dot(first, second) * first
    second /= exact.norm(second)
    return np.stack([first, second, np.cross(first, second)], 1)


def about(axis: str, degrees: float) -> np.ndarray:
    """Rotation matrix [3, 3] about a coordinate axis."""
    c, s = exact.cos(np.radians(degrees)), exact.sin(np.radians(degrees))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def polar(body: Field, count: int) -> Field:
    """`count` copies of a body around the x axis, evenly about z; it may reach into the neighbouring sectors only."""
    sector = 2 * np.pi / count

    def field(p):
        angle = exact.arctan2(p[:, 1], p[:, 0])
        angle = angle - sector * np.round(angle / sector)
        radius = exact.hypot(p[:, 0], p[:, 1])
        beside = angle - sector * np.where(angle < 0, -1, 1)  # as seen by the nearer neighbour
        near, far = (_f32(np.stack([radius * exact.cos(a), radius * exact.sin(a), p[:, 2]], 1)) for a in (angle, beside))
        return np.minimum(body(near), body(far))

    return field


def mirror(body: Field, axis: int) -> Field:
    """The half of a body at positive coordinates and its reflection."""

    def field(p):
        q = p.copy()
        q[:, axis] = np.abs(q[:, axis])
        return body(q)

    return field


# ---------------------------------------------------------------- bodies


def ball(radius: float, centre: Sequence[float] = (0, 0, 0)) -> Field:
    middle = _f32(centre)
    return lambda p: exact.norm(p - middle) - np.float32(radius)


def balls(radius: float, centres: np.ndarray) -> Field:
    """Equal balls around many centres [K, 3]."""
    tree = cKDTree(centres)

    def field(p):  # searching no farther than three radii is faster, and a lower bound is enough out there
        distance = _f32(tree.query(p, distance_upper_bound=3 * radius)[0])
        return np.minimum(distance, np.float32(3 * radius)) - np.float32(radius)

    return field


def box(half: Sequence[float], round: float = 0.0) -> Field:
    """Box of half sides `half` [3] with edges rounded by `round` (inside the given sides)."""
    inner = _f32(half) - np.float32(round)

    def field(p):
        q = np.abs(p) - inner
        return exact.norm(np.maximum(q, 0)) + np.minimum(q.max(1), 0) - np.float32(round)

    return field


def cylinder(radius: float, half_height: float, round: float = 0.0) -> Field:
    """Cylinder about z."""

    def field(p):
        return _corner(
            exact.hypot(p[:, 0], p[:, 1]) - np.float32(radius), np.abs(p[:, 2]) - np.float32(half_height), round
        )

    return field


def _corner(side: np.ndarray, end: np.ndarray, round: float) -> np.ndarray:
    """Distance to the body bounded by two orthogonal distances, its edge rounded."""
    a, b = side + np.float32(round), end + np.float32(round)
    return exact.hypot(np.maximum(a, 0), np.maximum(b, 0)) + np.minimum(np.maximum(a, b), 0) - np.float32(round)


def tube(curve: np.ndarray, radius) -> Field:
    """Round rod along a polyline [K, 3]; `radius` is a number or one per vertex [K]."""
    curve = np.asarray(curve, np.float64)
    along = np.concatenate([[0], np.cumsum(exact.norm(np.diff(curve, axis=0)))])
    radii = np.broadcast_to(np.asarray(radius, np.float64), (len(curve),))
    at = np.linspace(0, along[-1], max(int(along[-1] / (0.12 * radii.min())), 2) + 1)
    points = np.stack([np.interp(at, along, curve[:, i]) for i in range(3)], 1)
    tree, rod = cKDTree(points), _f32(np.interp(at, along, radii))

    def field(p):
        distance, nearest = tree.query(p)
        return _f32(distance) - rod[nearest]

    return field


def outline(
    polygon: np.ndarray, cells: int = 128, start: float = -np.inf
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Signed distance to a closed polygon [K, 2] in the plane, read from a table of `cells` along its longer side.

    Only the part of the plane with first coordinate >= `start` is wanted.
    """
    polygon = np.asarray(polygon, np.float64)
    low, high = polygon.min(0), polygon.max(0)
    step = (high - low).max() / cells
    low[0] = max(low[0], start)
    low, shape = low - 6 * step, np.ceil((high - low) / step).astype(int) + 13
    x, y = (low[i] + step * np.arange(shape[i]) for i in range(2))
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    square, inside = np.full(len(grid), np.inf, np.float32), np.zeros(len(grid), bool)
    for a, b in zip(_f32(polygon), _f32(np.roll(polygon, -1, 0)), strict=True):
        edge, rel = b - a, grid - a
        t = np.clip(exact.times(rel, edge) / max(float(exact.dot(edge, edge)), 1e-12), 0, 1)
        square = np.minimum(square, np.square(rel[:, 0] - t * edge[0]) + np.square(rel[:, 1] - t * edge[1]))
        if a[1] != b[1]:
            crosses = (a[1] > grid[:, 1]) != (b[1] > grid[:, 1])
            inside ^= crosses & (rel[:, 0] < edge[0] * rel[:, 1] / edge[1])
    table = np.where(inside, -1, 1).reshape(shape) * np.sqrt(square).reshape(shape)

    def distance(u, v):
        at = np.stack([(u - low[0]) / step, (v - low[1]) / step])
        kept = np.clip(at, 0, (shape - 1)[:, None])
        beyond = step * exact.hypot(*(at - kept))  # outside of the table: a lower bound is enough
        return _f32(_between(table, *kept) + 0.7 * beyond)

    return distance


def _between(table: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of a table [A, B] at places [N] in units of its rows and columns, inside of it."""
    row, column = (np.minimum(at.astype(np.intp), size - 2) for at, size in zip((x, y), table.shape, strict=True))
    x, y, flat, at = x - row, y - column, table.ravel(), row * table.shape[1] + column
    near, far = (flat[i] + y * (flat[i + 1] - flat[i]) for i in (at, at + table.shape[1]))
    return near + x * (far - near)


def revolve(profile: np.ndarray) -> Field:
    """Surface of revolution about z of a closed polygon of (radius, z) [K, 2]; edges on the axis become interior."""
    profile = np.asarray(profile, np.float64)
    if (profile[:, 0] < 1e-6).any():  # continue solid bodies across the axis, so that the axis is no surface
        profile = np.concatenate([profile, (profile * [-1, 1])[::-1]])
    distance = outline(profile, start=0.0)
    return lambda p: distance(exact.hypot(p[:, 0], p[:, 1]), p[:, 2])


def extrude(polygon: np.ndarray, half_height: float, round: float = 0.0) -> Field:
    """Prism along z over a closed polygon [K, 2]."""
    distance = outline(polygon)
    return lambda p: _corner(distance(p[:, 0], p[:, 1]), np.abs(p[:, 2]) - np.float32(half_height), round)


def superquadric(half: Sequence[float], vertical: float, horizontal: float) -> Field:
    """Superellipsoid of half axes `half` with exponents (1, 1) = ellipsoid, towards 0 = box (Barr 1981)."""
    axes = _f32(half)

    def field(p):
        q = np.abs(p / axes) + np.float32(1e-6)
        level = exact.power(q[:, 0], 2 / horizontal) + exact.power(q[:, 1], 2 / horizontal)
        level = exact.power(level, horizontal / vertical) + exact.power(q[:, 2], 2 / vertical)
        level = exact.power(level, vertical / 2)
        length = exact.norm(p) + np.float32(1e-6)
        return np.float32(0.7) * (length - length / level)  # along the ray, which is longer than the true distance

    return field


# ---------------------------------------------------------------- curves


def smooth_curve(knots: Sequence[Sequence[float]], count: int = 40) -> np.ndarray:
    """Catmull-Rom curve [count, D] through the knots [K, D]."""
    knots = np.asarray(knots, np.float64)
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    t = np.linspace(0, len(knots) - 1, count)
    i = np.minimum(t.astype(int), len(knots) - 2)
    u = (t - i)[:, None]
    a, b, c, d = (padded[i + k] for k in range(4))
    return 0.5 * (2 * b + (c - a) * u + (2 * a - 5 * b + 4 * c - d) * u * u + (3 * b - a - 3 * c + d) * u * u * u)


def arc(radius: float, start: float, stop: float, count: int = 32) -> np.ndarray:
    """Points [count, 2] on a circle, angles in degrees."""
    t = np.radians(np.linspace(start, stop, count))
    return radius * np.stack([exact.cos(t), exact.sin(t)], 1)


def shell(outer: np.ndarray, wall: float) -> np.ndarray:
    """Closed profile [2K + 2, 2] of a vessel: an outer wall [K, 2] of (radius, z) from the bottom up, and a floor
    `wall` thick.
    """
    floor = outer[0, 1] + wall * 1.3
    inner = np.stack([outer[:, 0] - wall, np.maximum(outer[:, 1], floor)], 1)
    inner = inner[(inner[:, 0] > wall) & (outer[:, 1] >= floor)][::-1]
    return np.concatenate([[[0, outer[0, 1]]], outer, inner, [[0, floor]]])
