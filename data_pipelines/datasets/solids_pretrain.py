"""Generators of the categories that the embedded weights are pretrained on. Each draws its dimensions from `rng`."""

from __future__ import annotations

import numpy as np

from data_pipelines.datasets import fields as f
from data_pipelines.datasets.fields import Solid


def soap(rng) -> Solid:
    a, b, c = rng.uniform(0.75, 1.0), rng.uniform(0.5, 0.75), rng.uniform(0.3, 0.5)
    body = f.superquadric((a, b, c), rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0))
    return f.solid(body, a, b, c)


def ring(rng) -> Solid:
    wide, tall, radius = rng.uniform(0.12, 0.24), rng.uniform(0.12, 0.34), rng.uniform(0.65, 0.78)
    t, power = np.linspace(0, 2 * np.pi, 48, endpoint=False), rng.uniform(0.5, 1.0)
    section = np.stack(
        [
            wide * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** power,
            tall * np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power,
        ],
        1,
    )
    return f.solid(f.revolve(section + [radius, 0]), radius + wide, radius + wide, tall)


def gear(rng) -> Solid:
    teeth, depth = int(rng.integers(9, 19)), rng.uniform(0.12, 0.2)
    root, tip = rng.uniform(0.24, 0.3), rng.uniform(0.1, 0.16)  # half widths as shares of a tooth's sector
    corners = [(-root, 1 - depth), (-tip, 1.0), (tip, 1.0), (root, 1 - depth)]
    sector = 2 * np.pi / teeth
    polygon = np.array(
        [[r * np.cos(sector * (i + s)), r * np.sin(sector * (i + s))] for i in range(teeth) for s, r in corners]
    )
    height, hub, bore = rng.uniform(0.14, 0.3), rng.uniform(0.32, 0.45), rng.uniform(0.14, 0.24)
    tall = height + rng.uniform(0.0, 0.2)
    body = f.union(f.extrude(polygon, height, 0.02), f.cylinder(hub, tall, 0.03), fillet=0.04)
    if rng.random() < 0.6:  # a recess on both faces
        pocket = f.intersect(f.cylinder(1 - depth - 0.12, 9), lambda p: hub + 0.06 - np.hypot(p[:, 0], p[:, 1]))
        deep = rng.uniform(0.3, 0.6) * height
        body = f.subtract(body, f.intersect(pocket, lambda p: height - deep - np.abs(p[:, 2])), fillet=0.03)
    return f.solid(f.subtract(body, f.cylinder(bore, 9), fillet=0.03), 1.0, 1.0, tall)


def spring(rng) -> Solid:
    turns, wire, radius, half = (
        rng.uniform(3.5, 6),
        rng.uniform(0.08, 0.115),
        rng.uniform(0.38, 0.6),
        rng.uniform(0.75, 0.95),
    )
    t = np.linspace(0, turns, int(turns * 40))
    taper = 1 - rng.uniform(0, 0.35) * t / turns
    curve = np.stack(
        [radius * taper * np.cos(2 * np.pi * t), radius * taper * np.sin(2 * np.pi * t), half * (2 * t / turns - 1)], 1
    )
    return f.solid(f.tube(curve, wire), radius + wire, radius + wire, half + wire)


def dice(rng) -> Solid:
    half = np.array([0.72, 0.72, 0.72]) * rng.uniform(0.92, 1.05, 3)
    pip, spread, deep = rng.uniform(0.1, 0.14), rng.uniform(0.3, 0.38), rng.uniform(0.35, 0.6)
    layout = {
        1: [(0, 0)],
        2: [(-1, -1), (1, 1)],
        3: [(-1, -1), (0, 0), (1, 1)],
        4: [(-1, -1), (-1, 1), (1, -1), (1, 1)],
    }
    layout[5] = layout[4] + [(0, 0)]
    layout[6] = layout[4] + [(-1, 0), (1, 0)]
    faces, sides = [(1, 6), (2, 5), (3, 4)], rng.permutation(3)
    centres = []
    for axis in range(3):
        for sign, number in zip((-1, 1), faces[sides[axis]], strict=True):
            for u, v in layout[number]:
                at = np.zeros(3)
                at[axis] = sign * (half[axis] + pip * (1 - deep) - 0.03)
                at[(axis + 1) % 3], at[(axis + 2) % 3] = spread * u, spread * v
                centres.append(at)
    return Solid(f.subtract(f.box(half, rng.uniform(0.08, 0.2)), f.balls(pip, np.array(centres)), fillet=0.02), half)


def cone(rng) -> Solid:
    base, top, height = rng.uniform(0.5, 0.65), rng.uniform(0.08, 0.2), rng.uniform(0.75, 1.0)
    foot, rim = rng.uniform(0.05, 0.12), rng.uniform(0.05, 0.2)
    bands = int(rng.integers(0, 4))
    z = np.linspace(-height + foot, height, 40)
    side = np.interp(z, [z[0], height], [base, top]) + 0.025 * (np.sin(np.linspace(0, 2 * np.pi * bands, 40)) > 0.3) * (
        bands > 0
    )
    wall = np.stack([side, z], 1)
    return f.solid(
        f.revolve(
            np.concatenate([[[0, -height], [base + rim, -height], [base + rim, -height + foot]], wall, [[0, height]]])
        ),
        base + rim + 0.03,
        base + rim + 0.03,
        height,
    )


def plate(rng) -> Solid:
    x, y, z = rng.uniform(0.85, 1.0), rng.uniform(0.5, 0.75), rng.uniform(0.07, 0.14)
    corner = rng.uniform(0.08, 0.3)
    sheet = f.intersect(f.box((x, y, 1.0), corner), lambda p: np.abs(p[:, 2]) - z, fillet=0.03)
    columns, rows, hole = int(rng.integers(2, 5)), int(rng.integers(1, 3)), rng.uniform(0.07, 0.13)
    u, v = np.linspace(-0.66 * x, 0.66 * x, columns), np.linspace(-0.55 * y, 0.55 * y, rows) if rows > 1 else [0.0]
    drills = [f.move(f.cylinder(hole, 9), (a, b, 0)) for a in u for b in v]
    return f.solid(f.subtract(sheet, *drills, fillet=0.03), x, y, z)


def cross(rng) -> Solid:
    width = rng.uniform(0.18, 0.28)
    arms = rng.uniform(0.65, 0.85, 4)
    arms[rng.integers(4)] = rng.uniform(0.85, 1.0)
    flare, thick = rng.uniform(0.8, 1.35), rng.uniform(0.13, 0.26)
    east, north, west, south = arms
    w, e = width, width * flare
    polygon = np.array(
        [
            [w, w],
            [e, north],
            [-e, north],
            [-w, w],
            [-west, e],
            [-west, -e],
            [-w, -w],
            [-e, -south],
            [e, -south],
            [w, -w],
            [east, -e],
            [east, e],
        ]
    )
    return f.solid(f.extrude(polygon, thick, rng.uniform(0.02, 0.08)), 1.0, 1.0, thick)


def elbow(rng) -> Solid:
    angle, bend, radius, wall = (
        rng.uniform(75, 120),
        rng.uniform(0.5, 0.65),
        rng.uniform(0.22, 0.3),
        rng.uniform(0.06, 0.09),
    )
    straight, collar, lip = rng.uniform(0.15, 0.4), rng.uniform(0.1, 0.2), rng.uniform(0.05, 0.12)
    curve = f.arc(bend, 0, angle, 40)
    ahead = np.array([[0.0, -1.0], [-np.sin(np.radians(angle)), np.cos(np.radians(angle))]])  # out of the two openings
    ends = curve[[0, -1]] + straight * ahead
    path = np.concatenate([ends[:1] + 0.5 * ahead[:1], curve, ends[1:] + 0.5 * ahead[1:]])
    rod = f.tube(np.pad(path, ((0, 0), (0, 1))), radius)
    low, high = np.minimum(ends.min(0), curve.min(0)), np.maximum(ends.max(0), curve.max(0))

    def pipe(p):
        side = rod(p)
        past = (p[:, :2] @ ahead.T - (ends * ahead).sum(1)).max(1).astype(np.float32)  # beyond the nearer end plane
        outer = f.soft_min(side, np.maximum(side - lip, -collar - past), 0.03)
        return np.maximum(np.maximum(outer, -side - wall), past)

    middle = np.append((low + high) / 2, 0)
    return Solid(f.move(pipe, -middle), np.append((high - low) / 2, 0) + radius + lip)


def bowl(rng) -> Solid:
    height, foot, wide, wall = (
        rng.uniform(0.35, 0.6),
        rng.uniform(0.3, 0.45),
        rng.uniform(0.85, 1.0),
        rng.uniform(0.06, 0.09),
    )
    t, power = np.linspace(0, 1, 40), rng.uniform(0.35, 0.7)
    outer = np.stack([foot + (wide - foot) * t**power, height * (2 * t - 1)], 1)
    return f.solid(f.revolve(f.shell(outer, wall)), wide, wide, height)


def knob(rng) -> Solid:
    head, half, stem, flutes = (
        rng.uniform(0.7, 0.9),
        rng.uniform(0.25, 0.4),
        rng.uniform(0.3, 0.45),
        int(rng.integers(6, 15)),
    )
    dome, base = rng.uniform(0.02, 0.2), rng.uniform(0.3, 0.5)
    profile = np.array([[0, -half - base], [stem, -half - base], [stem * 0.9, -half], [head, -half]])
    cap = np.array([[head * np.cos(a) ** 0.5, half + dome * np.sin(a)] for a in np.linspace(0, np.pi / 2, 14)])
    body = f.revolve(np.concatenate([profile, cap]))
    groove = np.pi * head / flutes * rng.uniform(0.4, 0.6)
    cutter = f.move(f.cylinder(groove, 9), (head + groove * rng.uniform(0.2, 0.6), 0, 0))
    grip = f.intersect(f.polar(cutter, flutes), lambda p: -half - 0.01 - p[:, 2])
    body = f.subtract(body, grip, fillet=0.04)
    return Solid(f.move(body, (0, 0, (base - dome) / 2)), np.array([head, head, half + (base + dome) / 2]))


def hook(rng) -> Solid:
    bend, rod, shank, sweep = (
        rng.uniform(0.34, 0.46),
        rng.uniform(0.11, 0.15),
        rng.uniform(0.55, 0.8),
        rng.uniform(190, 240),
    )
    curve = f.arc(bend, 180, 180 + sweep, 40) + [bend, 0]  # hangs below the shank, in the x z plane
    path = np.concatenate([[[0, shank]], [[0, shank / 2]], curve])
    radii = rod * np.interp(
        np.arange(len(path)), [0, len(path) // 2, len(path) - 1], [1.0, 1.15, rng.uniform(0.45, 0.7)]
    )
    eye = rng.uniform(0.17, 0.23)
    loop = f.arc(eye, 0, 360, 40) + [0, shank + eye]
    place = lambda c: np.stack([c[:, 0], np.zeros(len(c)), c[:, 1]], 1)  # noqa: E731
    body = f.union(f.tube(place(path), radii), f.tube(place(loop), rod * rng.uniform(0.65, 0.85)), fillet=0.05)
    top, bottom = shank + 2 * eye + rod, -bend - 1.2 * rod
    middle = np.array([bend * 0.75, 0, (top + bottom) / 2])
    return Solid(f.move(body, -middle), np.array([bend * 1.3 + 1.3 * rod, 1.3 * rod, (top - bottom) / 2]))


def star(rng) -> Solid:
    points, inner, thick = int(rng.integers(5, 9)), rng.uniform(0.48, 0.66), rng.uniform(0.15, 0.28)
    angle = np.pi * np.arange(2 * points) / points
    polygon = np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    body, slope = f.extrude(polygon, thick, 0.04), rng.uniform(0.0, 0.25)
    lens = lambda p: np.abs(p[:, 2]) + slope * np.hypot(p[:, 0], p[:, 1]) - (thick + 0.02)  # noqa: E731  (thinner tips)
    return f.solid(f.intersect(body, lens, fillet=0.03), 1.0, 1.0, thick)
