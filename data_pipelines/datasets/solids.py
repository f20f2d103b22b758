"""Procedural solids: one generator function a category, with dimensions, profiles and counts drawn anew for every object.

A generator takes a numpy Generator and returns a `Solid` of about unit half size, its axis along z. Categories of different
sets never share a generator; the bodies and joins of `fields.py` are common vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipelines.datasets import fields as f
from data_pipelines.datasets.meshing import Mesh, mesh_field


class Solid(NamedTuple):
    """Signed distance field and the half sides [3] of a box around the body."""

    field: f.Field
    half: np.ndarray


def _solid(field: f.Field, x: float, y: float, z: float) -> Solid:
    return Solid(field, np.array([x, y, z]))


# ---------------------------------------------------------------- pretraining


def soap(rng) -> Solid:
    a, b, c = rng.uniform(0.75, 1.0), rng.uniform(0.5, 0.75), rng.uniform(0.3, 0.5)
    body = f.superquadric((a, b, c), rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0))
    return _solid(body, a, b, c)


def ring(rng) -> Solid:
    wide, tall, radius = rng.uniform(0.12, 0.24), rng.uniform(0.12, 0.34), rng.uniform(0.65, 0.78)
    t, power = np.linspace(0, 2 * np.pi, 48, endpoint=False), rng.uniform(0.5, 1.0)
    section = np.stack([wide * np.sign(np.cos(t)) * np.abs(np.cos(t)) ** power, tall * np.sign(np.sin(t)) * np.abs(np.sin(t)) ** power], 1)
    return _solid(f.revolve(section + [radius, 0]), radius + wide, radius + wide, tall)


def gear(rng) -> Solid:
    teeth, depth = int(rng.integers(9, 19)), rng.uniform(0.12, 0.2)
    root, tip = rng.uniform(0.24, 0.3), rng.uniform(0.1, 0.16)  # half widths as shares of a tooth's sector
    corners = [(-root, 1 - depth), (-tip, 1.0), (tip, 1.0), (root, 1 - depth)]
    sector = 2 * np.pi / teeth
    polygon = np.array([[r * np.cos(sector * (i + s)), r * np.sin(sector * (i + s))] for i in range(teeth) for s, r in corners])
    height, hub, bore = rng.uniform(0.14, 0.3), rng.uniform(0.32, 0.45), rng.uniform(0.14, 0.24)
    tall = height + rng.uniform(0.0, 0.2)
    body = f.union(f.extrude(polygon, height, 0.02), f.cylinder(hub, tall, 0.03), fillet=0.04)
    if rng.random() < 0.6:  # a recess on both faces
        pocket = f.intersect(f.cylinder(1 - depth - 0.12, 9), lambda p: hub + 0.06 - np.hypot(p[:, 0], p[:, 1]))
        deep = rng.uniform(0.3, 0.6) * height
        body = f.subtract(body, f.intersect(pocket, lambda p: height - deep - np.abs(p[:, 2])), fillet=0.03)
    return _solid(f.subtract(body, f.cylinder(bore, 9), fillet=0.03), 1.0, 1.0, tall)


def spring(rng) -> Solid:
    turns, wire, radius, half = rng.uniform(3.5, 6), rng.uniform(0.08, 0.115), rng.uniform(0.38, 0.6), rng.uniform(0.75, 0.95)
    t = np.linspace(0, turns, int(turns * 40))
    taper = 1 - rng.uniform(0, 0.35) * t / turns
    curve = np.stack([radius * taper * np.cos(2 * np.pi * t), radius * taper * np.sin(2 * np.pi * t), half * (2 * t / turns - 1)], 1)
    return _solid(f.tube(curve, wire), radius + wire, radius + wire, half + wire)


def dice(rng) -> Solid:
    half = np.array([0.72, 0.72, 0.72]) * rng.uniform(0.92, 1.05, 3)
    pip, spread, deep = rng.uniform(0.1, 0.14), rng.uniform(0.3, 0.38), rng.uniform(0.35, 0.6)
    layout = {1: [(0, 0)], 2: [(-1, -1), (1, 1)], 3: [(-1, -1), (0, 0), (1, 1)], 4: [(-1, -1), (-1, 1), (1, -1), (1, 1)]}
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
    side = np.interp(z, [z[0], height], [base, top]) + 0.025 * (np.sin(np.linspace(0, 2 * np.pi * bands, 40)) > 0.3) * (bands > 0)
    wall = np.stack([side, z], 1)
    return _solid(f.revolve(np.concatenate([[[0, -height], [base + rim, -height], [base + rim, -height + foot]], wall, [[0, height]]])),
                  base + rim + 0.03, base + rim + 0.03, height)


def plate(rng) -> Solid:
    x, y, z = rng.uniform(0.85, 1.0), rng.uniform(0.5, 0.75), rng.uniform(0.07, 0.14)
    corner = rng.uniform(0.08, 0.3)
    sheet = f.intersect(f.box((x, y, 1.0), corner), lambda p: np.abs(p[:, 2]) - z, fillet=0.03)
    columns, rows, hole = int(rng.integers(2, 5)), int(rng.integers(1, 3)), rng.uniform(0.07, 0.13)
    u, v = np.linspace(-0.66 * x, 0.66 * x, columns), np.linspace(-0.55 * y, 0.55 * y, rows) if rows > 1 else [0.0]
    drills = [f.move(f.cylinder(hole, 9), (a, b, 0)) for a in u for b in v]
    return _solid(f.subtract(sheet, *drills, fillet=0.03), x, y, z)


def cross(rng) -> Solid:
    width = rng.uniform(0.18, 0.28)
    arms = rng.uniform(0.65, 0.85, 4)
    arms[rng.integers(4)] = rng.uniform(0.85, 1.0)
    flare, thick = rng.uniform(0.8, 1.35), rng.uniform(0.13, 0.26)
    east, north, west, south = arms
    w, e = width, width * flare
    polygon = np.array([[w, w], [e, north], [-e, north], [-w, w], [-west, e], [-west, -e], [-w, -w], [-e, -south], [e, -south], [w, -w],
                        [east, -e], [east, e]])
    return _solid(f.extrude(polygon, thick, rng.uniform(0.02, 0.08)), 1.0, 1.0, thick)


def elbow(rng) -> Solid:
    angle, bend, radius, wall = rng.uniform(75, 120), rng.uniform(0.5, 0.65), rng.uniform(0.22, 0.3), rng.uniform(0.06, 0.09)
    straight = rng.uniform(0.15, 0.4)
    curve = f.arc(bend, 0, angle, 40)
    first, last = np.array([0.0, -1.0]), np.array([-np.sin(np.radians(angle)), np.cos(np.radians(angle))])
    ends = curve[0] + straight * first, curve[-1] + straight * last
    path = np.concatenate([[ends[0]], curve, [ends[1]]])
    path = np.concatenate([path, np.zeros((len(path), 1))], 1)
    middle = (path.min(0) + path.max(0)) / 2
    longer = np.concatenate([path[:1] + 0.5 * np.append(first, 0), path, path[-1:] + 0.5 * np.append(last, 0)])
    trims = [lambda p, c=c, n=n: (p[:, :2] @ n.astype(np.float32)) - float(c @ n) for c, n in zip(ends, (first, last), strict=True)]
    collar, lip = rng.uniform(0.06, 0.1), rng.uniform(0.05, 0.12)
    collars = [f.tube(np.stack([np.append(c, 0), np.append(c - 2 * collar * n, 0)]), radius + lip) for c, n in zip(ends, (first, last), strict=True)]
    outer = f.union(f.tube(longer, radius), *[_short(c, e, n, 2 * collar) for c, e, n in zip(collars, ends, (first, last), strict=True)])
    body = f.intersect(f.subtract(outer, f.tube(longer, radius - wall)), *trims, fillet=0.02)
    half = (path.max(0) - path.min(0)) / 2 + radius + lip
    return Solid(f.move(body, -middle), half)


def _short(rod: f.Field, end: np.ndarray, normal: np.ndarray, length: float) -> f.Field:
    """The piece of a rod between a pipe's end plane and `length` before it."""
    n, at = normal.astype(np.float32), float(end @ normal)
    return f.intersect(rod, lambda p: at - length - p[:, :2] @ n, fillet=0.03)


def bowl(rng) -> Solid:
    height, foot, wide, wall = rng.uniform(0.35, 0.6), rng.uniform(0.3, 0.45), rng.uniform(0.85, 1.0), rng.uniform(0.06, 0.09)
    t, power = np.linspace(0, 1, 40), rng.uniform(0.35, 0.7)
    outer = np.stack([foot + (wide - foot) * t**power, height * (2 * t - 1)], 1)
    return _solid(f.revolve(f.shell(outer, wall)), wide, wide, height)


def knob(rng) -> Solid:
    head, half, stem, flutes = rng.uniform(0.7, 0.9), rng.uniform(0.25, 0.4), rng.uniform(0.3, 0.45), int(rng.integers(6, 15))
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
    bend, rod, shank, sweep = rng.uniform(0.34, 0.46), rng.uniform(0.11, 0.15), rng.uniform(0.55, 0.8), rng.uniform(190, 240)
    curve = f.arc(bend, 180, 180 + sweep, 40) + [bend, 0]  # hangs below the shank, in the x z plane
    path = np.concatenate([[[0, shank]], [[0, shank / 2]], curve])
    radii = rod * np.interp(np.arange(len(path)), [0, len(path) // 2, len(path) - 1], [1.0, 1.15, rng.uniform(0.45, 0.7)])
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
    return _solid(f.intersect(body, lens, fillet=0.03), 1.0, 1.0, thick)


# ---------------------------------------------------------------- train (auxiliary)


def bottle(rng) -> Solid:
    belly, neck, half = rng.uniform(0.34, 0.46), rng.uniform(0.13, 0.19), rng.uniform(0.88, 1.0)
    shoulder, mouth = rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.75)
    waist = belly * rng.uniform(0.86, 1.0)
    knots = [(belly, -half + 0.06), (waist, -half * 0.4), (belly, -half * 0.05), (neck * 1.05, shoulder + 0.12), (neck, mouth)]
    wall = f.smooth_curve(knots, 48)
    cap = rng.uniform(0.03, 0.06)
    top = np.array([[neck + cap, mouth + 0.02], [neck + cap, half - 0.03], [neck + cap - 0.03, half], [0, half]])
    body = f.revolve(np.concatenate([[[0, -half], [belly - 0.06, -half]], wall, top]))
    flat = rng.uniform(0.65, 1.0)  # oval bottles

    def squeezed(p):
        return flat * body(p * np.float32([1, 1 / flat, 1]))

    return _solid(squeezed, belly + 0.03, belly + 0.03, half)


def bracket(rng) -> Solid:
    long, tall, wide, thick = rng.uniform(0.75, 1.0), rng.uniform(0.6, 0.9), rng.uniform(0.4, 0.6), rng.uniform(0.09, 0.14)
    base = f.move(f.box((long, wide, thick), 0.03), (0, 0, -tall + thick))
    back = f.move(f.box((thick, wide, tall), 0.03), (-long + thick, 0, 0))
    hole = rng.uniform(0.09, 0.14)
    spread = wide * rng.uniform(0.4, 0.55)
    drills = [f.move(f.cylinder(hole, 9), (long * x, s * spread, 0)) for x in (0.15, 0.65) for s in (-1, 1)]
    drills = drills[:: int(rng.integers(1, 3))]
    side = f.turn(f.cylinder(hole * rng.uniform(0.9, 1.5), 2 * thick), f.about("y", 90))
    drills.append(f.move(side, (-long + thick, 0, tall * rng.uniform(0.3, 0.5))))
    parts, rib = [base, back], rng.uniform(0.4, 0.8)
    if rng.random() < 0.7:  # a gusset in the corner
        triangle = np.array([[0, 0], [long * rib, 0], [0, tall * rib]]) + [-long + thick, -tall + thick]
        parts.append(f.turn(f.extrude(triangle, rng.uniform(0.06, 0.1), 0.02), f.about("x", 90)))
    return _solid(f.subtract(f.union(*parts, fillet=0.06), *drills, fillet=0.03), long, wide, tall)


def nut(rng) -> Solid:
    sides = int(rng.choice([4, 6, 6, 6, 8]))
    angle = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    height, bore, chamfer = rng.uniform(0.3, 0.55), rng.uniform(0.42, 0.56), rng.uniform(0.05, 0.2)
    prism = f.extrude(0.95 / np.cos(np.pi / sides) * np.stack([np.cos(angle), np.sin(angle)], 1) * np.cos(np.pi / 6), height, 0.02)
    slope = rng.uniform(0.4, 0.7)
    bevel = lambda p: 0.8 * (slope * (np.hypot(p[:, 0], p[:, 1]) - (1 - chamfer)) + np.abs(p[:, 2]) - height)  # noqa: E731
    pitch, deep, flange = rng.uniform(0.1, 0.14), rng.uniform(0.02, 0.035), rng.uniform(0.0, 0.12)

    def thread(p):
        phase = np.arctan2(p[:, 1], p[:, 0]) + 2 * np.pi / pitch * p[:, 2]
        return 0.6 * (np.hypot(p[:, 0], p[:, 1]) - np.float32(bore) + np.float32(deep) * np.sin(phase))

    body = f.intersect(prism, bevel, fillet=0.03)
    if flange > 0.05:
        body = f.union(body, f.move(f.cylinder(0.95, flange, 0.03), (0, 0, -height + flange)), fillet=0.04)
    return _solid(f.subtract(body, thread), 1.17, 1.17, height)


# ---------------------------------------------------------------- development


def cup(rng) -> Solid:
    radius, half, wall = rng.uniform(0.5, 0.65), rng.uniform(0.6, 0.8), rng.uniform(0.06, 0.09)
    taper, belly = rng.uniform(0.75, 1.05), rng.uniform(-0.04, 0.1)
    t = np.linspace(0, 1, 36)
    outer = np.stack([radius * (taper + (1 - taper) * t) + belly * np.sin(np.pi * t), half * (2 * t - 1)], 1)
    vessel, profile = f.revolve(f.shell(outer, wall)), outer
    low, high, reach = rng.uniform(-0.6, -0.3) * half, rng.uniform(0.4, 0.7) * half, rng.uniform(0.28, 0.42)
    at = lambda z: float(np.interp(z, profile[:, 1], profile[:, 0])) - wall / 2  # noqa: E731
    knots = [(at(high), 0, high), (at(high) + reach, 0, high + 0.02), (at(0) + reach * 1.15, 0, (low + high) / 2),
             (at(low) + reach * 0.85, 0, low), (at(low), 0, low + 0.05)]
    handle = f.tube(f.smooth_curve(knots, 40), rng.uniform(0.065, 0.09))
    outside = lambda p: profile[:, 0].min() - wall - np.hypot(p[:, 0], p[:, 1])  # noqa: E731  (no stub inside the vessel)
    wide = radius + belly + 0.05
    body = f.union(vessel, f.intersect(handle, outside), fillet=0.04)
    return Solid(f.move(body, (-reach / 2, 0, 0)), np.array([wide + reach / 2 + 0.15, wide, half]))


def wheel(rng) -> Solid:
    spokes, rim, wide = int(rng.integers(3, 8)), rng.uniform(0.1, 0.16), rng.uniform(0.12, 0.26)
    tyre = rng.uniform(0.02, 0.06)
    section = np.array([[1 - rim, -wide], [0.97, -wide], [1, -wide + 0.05], [1 - tyre, 0], [1, wide - 0.05], [0.97, wide], [1 - rim, wide]])
    hub, bore = rng.uniform(0.2, 0.3), rng.uniform(0.07, 0.13)
    arm = f.move(f.box((0.5, rng.uniform(0.06, 0.1), rng.uniform(0.06, 0.1)), 0.04), (0.45, 0, 0))
    body = f.union(f.revolve(section), f.polar(arm, spokes), f.cylinder(hub, wide * rng.uniform(0.9, 1.3), 0.03), fillet=0.06)
    return _solid(f.subtract(body, f.cylinder(bore, 9), fillet=0.03), 1.0, 1.0, 1.3 * wide)


def dumbbell(rng) -> Solid:
    half, grip, head, thick = rng.uniform(0.85, 1.0), rng.uniform(0.11, 0.16), rng.uniform(0.36, 0.5), rng.uniform(0.18, 0.28)
    sides = int(rng.choice([6, 8, 24]))
    angle = 2 * np.pi * np.arange(sides) / sides
    weight = f.move(f.extrude(head * np.stack([np.cos(angle), np.sin(angle)], 1), thick, rng.uniform(0.04, 0.1)), (0, 0, half - thick))
    swell = rng.uniform(0.0, 0.05)
    z = np.linspace(-half + thick, half - thick, 30)
    bar = f.tube(np.stack([0 * z, 0 * z, z], 1), grip + swell * np.cos(np.pi * z / (2 * half)) ** 2)
    return _solid(f.union(f.mirror(weight, 2), bar, fillet=rng.uniform(0.03, 0.1)), head, head, half)


# ---------------------------------------------------------------- test


def vase(rng) -> Solid:
    half, foot, belly = rng.uniform(0.85, 1.0), rng.uniform(0.26, 0.36), rng.uniform(0.48, 0.62)
    neck, lip, wall = rng.uniform(0.24, 0.34), rng.uniform(0.36, 0.5), rng.uniform(0.06, 0.08)
    at = rng.uniform(-0.35, 0.1)
    outer = f.smooth_curve([(foot, -half), (belly, half * at), (neck, half * rng.uniform(0.5, 0.65)), (lip, half)], 44)
    body, lobes, swing = f.revolve(f.shell(outer, wall)), int(rng.integers(5, 12)), rng.uniform(0.0, 0.05)
    twist = rng.uniform(-1.5, 1.5)

    def fluted(p):
        wave = 1 + swing * np.cos(lobes * np.arctan2(p[:, 1], p[:, 0]) + twist * p[:, 2])
        return 0.85 * body(np.float32(p / np.stack([wave, wave, np.ones_like(wave)], 1)))

    wide = outer[:, 0].max() * (1 + swing)
    return _solid(fluted, wide, wide, half)


def pawn(rng) -> Solid:
    half, base, waist = rng.uniform(0.88, 1.0), rng.uniform(0.42, 0.52), rng.uniform(0.15, 0.2)
    head, collar = rng.uniform(0.22, 0.29), rng.uniform(0.24, 0.32)
    shoulder = half - 1.75 * head
    body = f.smooth_curve([(base * 0.72, -half + 0.22), (waist * 1.35, -half * 0.35), (waist, shoulder - 0.1)], 24)
    foot = np.array([[0, -half], [base, -half], [base, -half + 0.12], [base * 0.9, -half + 0.16], [base * 0.9, -half + 0.2]])
    ring_ = np.array([[collar, shoulder - 0.06], [collar, shoulder], [waist, shoulder + 0.04], [0, shoulder + 0.04]])
    return _solid(f.union(f.revolve(np.concatenate([foot, body, ring_])), f.ball(head, (0, 0, half - head)), fillet=0.03), base, base, half)


def bolt(rng) -> Solid:
    half, shaft, head = rng.uniform(0.85, 1.0), rng.uniform(0.2, 0.27), rng.uniform(0.4, 0.52)
    tall, plain, pitch, deep = rng.uniform(0.13, 0.2), rng.uniform(0.1, 0.6), rng.uniform(0.11, 0.16), rng.uniform(0.025, 0.04)
    sides = int(rng.choice([4, 6, 6, 6]))
    angle = 2 * np.pi * np.arange(sides) / sides
    cap = f.move(f.extrude(head * np.stack([np.cos(angle), np.sin(angle)], 1), tall, 0.04), (0, 0, half - tall))
    start = half - 2 * tall - plain * 0.6

    def threaded(p):
        phase = np.arctan2(p[:, 1], p[:, 0]) + 2 * np.pi / pitch * p[:, 2]
        depth = np.float32(deep) * np.clip((start - p[:, 2]) / 0.08, 0, 1)
        side = np.hypot(p[:, 0], p[:, 1]) - np.float32(shaft) + depth * (1 + np.sin(phase))
        tip = side + 0.7 * (-half + 0.08 - p[:, 2])
        return 0.6 * np.maximum(np.maximum(side, tip), np.maximum(-half - p[:, 2], p[:, 2] - half + tall))

    parts = [cap, threaded]
    if rng.random() < 0.5:
        parts.append(f.move(f.cylinder(head * 1.05, 0.05, 0.02), (0, 0, half - 2 * tall)))
    return _solid(f.union(*parts, fillet=0.04), head * 1.06, head * 1.06, half)


def wrench(rng) -> Solid:
    half, wide, thick = rng.uniform(0.9, 1.0), rng.uniform(0.1, 0.14), rng.uniform(0.07, 0.12)
    jaw, eye = rng.uniform(0.25, 0.32), rng.uniform(0.2, 0.26)
    ends = half - jaw, -half + eye
    handle = f.move(f.box(((ends[0] - ends[1]) / 2, wide, thick), 0.05), (sum(ends) / 2, 0, 0))
    heads = [f.move(f.cylinder(r, thick * s, 0.04), (x, 0, 0)) for r, x, s in ((jaw, ends[0], 1.3), (eye, ends[1], rng.uniform(1.2, 1.7)))]
    tilt = f.about("z", rng.uniform(0, 25))
    slot = f.move(f.turn(f.move(f.box((jaw, jaw * rng.uniform(0.42, 0.52), 9)), (jaw * 0.85, 0, 0)), tilt), (ends[0], 0, 0))
    angle = 2 * np.pi * np.arange(6) / 6
    socket = f.extrude(eye * rng.uniform(0.55, 0.66) * np.stack([np.cos(angle), np.sin(angle)], 1), 9)
    body = f.subtract(f.union(handle, *heads, fillet=0.08), slot, f.move(socket, (ends[1], 0, 0)), fillet=0.03)
    return _solid(body, half, jaw, thick * 1.7)


def propeller(rng) -> Solid:
    blades, hub, tall = int(rng.integers(3, 6)), rng.uniform(0.16, 0.22), rng.uniform(0.16, 0.26)
    wide, thick, pitch = rng.uniform(0.22, 0.32), rng.uniform(0.05, 0.07), np.radians(rng.uniform(20, 40)) * rng.choice([-1, 1])
    blunt = rng.uniform(0.6, 0.9)

    def blade(p):
        angle = pitch * (1.35 - 0.7 * p[:, 0])  # steeper at the root
        c, s = np.cos(angle), np.sin(angle)
        q = np.stack([p[:, 0] - np.float32(0.52), c * p[:, 1] + s * p[:, 2], c * p[:, 2] - s * p[:, 1]], 1)
        level = np.sqrt((q[:, 0] / 0.48) ** 2 * blunt + (np.abs(q[:, 0]) / 0.48) ** 4 * (1 - blunt) + (q[:, 1] / wide) ** 2)
        return 0.75 * (-f.soft_min(-(level - 1) * np.float32(wide), thick - np.abs(q[:, 2]), 0.05))

    nose = f.move(f.ball(hub, (0, 0, 0)), (0, 0, tall))
    body = f.union(f.polar(blade, blades), f.cylinder(hub, tall, 0.03), nose, fillet=0.06)
    bore = f.intersect(f.cylinder(hub * rng.uniform(0.35, 0.5), 9), lambda p: p[:, 2] - tall * 0.3)
    return _solid(f.subtract(body, bore, fillet=0.02), 1.05, 1.05, tall + hub)


GENERATORS: dict[str, Callable[[np.random.Generator], Solid]] = {
    g.__name__: g
    for g in (soap, ring, gear, spring, dice, cone, plate, cross, elbow, bowl, knob, hook, star, bottle, bracket, nut, cup, wheel,
              dumbbell, vase, pawn, bolt, wrench, propeller)
}


def solid(category: str, rng: np.random.Generator) -> Solid:
    """Draws one object of a category. Raises ValueError for an unknown category."""
    if category not in GENERATORS:
        raise ValueError(f"unknown synthetic category '{category}': choose from {', '.join(GENERATORS)}")
    return GENERATORS[category](rng)


def make_solid(category: str, rng: np.random.Generator, resolution: int = 88) -> Mesh:
    """A closed triangle mesh (vertices float64 [Q, 3], faces int64 [F, 3]) of one object of about unit half size."""
    return mesh_field(*solid(category, rng), resolution)
