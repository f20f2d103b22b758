"""Generators of the categories to train on (auxiliary), to choose on (development) and to report on (test)."""

from __future__ import annotations

import numpy as np

from data_pipelines.solids import exact
from data_pipelines.solids import fields as f
from data_pipelines.solids.fields import Solid

# ---------------------------------------------------------------- train (auxiliary)


def bottle(rng) -> Solid:
    belly, neck, half = rng.uniform(0.34, 0.46), rng.uniform(0.13, 0.19), rng.uniform(0.88, 1.0)
    shoulder, mouth = rng.uniform(0.15, 0.4), rng.uniform(0.6, 0.75)
    waist = belly * rng.uniform(0.86, 1.0)
    knots = [
        (belly, -half + 0.06),
        (waist, -half * 0.4),
        (belly, -half * 0.05),
        (neck * 1.05, shoulder + 0.12),
        (neck, mouth),
    ]
    wall = f.smooth_curve(knots, 48)
    cap = rng.uniform(0.03, 0.06)
    top = np.array([[neck + cap, mouth + 0.02], [neck + cap, half - 0.03], [neck + cap - 0.03, half], [0, half]])
    body = f.revolve(np.concatenate([[[0, -half], [belly - 0.06, -half]], wall, top]))
    flat = rng.uniform(0.65, 1.0)  # oval bottles

    def squeezed(p):
        return flat * body(p * np.float32([1, 1 / flat, 1]))

    return f.solid(squeezed, belly + 0.03, belly + 0.03, half)


def bracket(rng) -> Solid:
    long, tall, wide, thick = (
        rng.uniform(0.75, 1.0),
        rng.uniform(0.6, 0.9),
        rng.uniform(0.4, 0.6),
        rng.uniform(0.09, 0.14),
    )
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
    return f.solid(f.subtract(f.union(*parts, fillet=0.06), *drills, fillet=0.03), long, wide, tall)


def nut(rng) -> Solid:
    sides = int(rng.choice([4, 6, 6, 6, 8]))
    angle = 2 * np.pi * (np.arange(sides) + 0.5) / sides
    height, bore, chamfer = rng.uniform(0.3, 0.55), rng.uniform(0.42, 0.56), rng.uniform(0.05, 0.2)
    prism = f.extrude(
        0.95 / exact.cos(np.pi / sides) * np.stack([exact.cos(angle), exact.sin(angle)], 1) * exact.cos(np.pi / 6), height, 0.02
    )
    slope = rng.uniform(0.4, 0.7)
    bevel = lambda p: 0.8 * (slope * (exact.hypot(p[:, 0], p[:, 1]) - (1 - chamfer)) + np.abs(p[:, 2]) - height)  # noqa: E731
    pitch, deep, flange = rng.uniform(0.1, 0.14), rng.uniform(0.02, 0.035), rng.uniform(0.0, 0.12)

    def thread(p):
        phase = exact.arctan2(p[:, 1], p[:, 0]) + 2 * np.pi / pitch * p[:, 2]
        return 0.6 * (exact.hypot(p[:, 0], p[:, 1]) - np.float32(bore) + np.float32(deep) * exact.sin(phase))

    body = f.intersect(prism, bevel, fillet=0.03)
    if flange > 0.05:
        body = f.union(body, f.move(f.cylinder(0.95, flange, 0.03), (0, 0, -height + flange)), fillet=0.04)
    return f.solid(f.subtract(body, thread), 1.17, 1.17, height)


# ---------------------------------------------------------------- development


def cup(rng) -> Solid:
    radius, half, wall = rng.uniform(0.5, 0.65), rng.uniform(0.6, 0.8), rng.uniform(0.11, 0.15)
    taper, belly = rng.uniform(0.75, 1.05), rng.uniform(-0.04, 0.1)
    t = np.linspace(0, 1, 36)
    outer = np.stack([radius * (taper + (1 - taper) * t) + belly * exact.sin(np.pi * t), half * (2 * t - 1)], 1)
    vessel, profile = f.revolve(f.shell(outer, wall)), outer
    low, high, reach = rng.uniform(-0.6, -0.3) * half, rng.uniform(0.4, 0.7) * half, rng.uniform(0.28, 0.42)
    at = lambda z: float(np.interp(z, profile[:, 1], profile[:, 0])) - wall / 2  # noqa: E731
    knots = [
        (at(high), 0, high),
        (at(high) + reach, 0, high + 0.02),
        (at(0) + reach * 1.15, 0, (low + high) / 2),
        (at(low) + reach * 0.85, 0, low),
        (at(low), 0, low + 0.05),
    ]
    handle = f.tube(f.smooth_curve(knots, 40), rng.uniform(0.065, 0.09))
    outside = lambda p: profile[:, 0].min() - wall - exact.hypot(p[:, 0], p[:, 1])  # noqa: E731  (no stub inside the vessel)
    wide = radius + belly + 0.05
    body = f.union(vessel, f.intersect(handle, outside), fillet=0.04)
    return Solid(f.move(body, (-reach / 2, 0, 0)), np.array([wide + reach / 2 + 0.15, wide, half]))


def wheel(rng) -> Solid:
    spokes, rim, wide = int(rng.integers(3, 8)), rng.uniform(0.1, 0.16), rng.uniform(0.12, 0.26)
    tyre = rng.uniform(0.02, 0.06)
    section = np.array(
        [
            [1 - rim, -wide],
            [0.97, -wide],
            [1, -wide + 0.05],
            [1 - tyre, 0],
            [1, wide - 0.05],
            [0.97, wide],
            [1 - rim, wide],
        ]
    )
    hub, bore = rng.uniform(0.2, 0.3), rng.uniform(0.07, 0.13)
    arm = f.move(f.box((0.5, rng.uniform(0.06, 0.1), rng.uniform(0.06, 0.1)), 0.04), (0.45, 0, 0))
    body = f.union(
        f.revolve(section), f.polar(arm, spokes), f.cylinder(hub, wide * rng.uniform(0.9, 1.3), 0.03), fillet=0.06
    )
    return f.solid(f.subtract(body, f.cylinder(bore, 9), fillet=0.03), 1.0, 1.0, 1.3 * wide)


def dumbbell(rng) -> Solid:
    half, grip, head, thick = (
        rng.uniform(0.85, 1.0),
        rng.uniform(0.11, 0.16),
        rng.uniform(0.36, 0.5),
        rng.uniform(0.18, 0.28),
    )
    sides = int(rng.choice([6, 8, 24]))
    angle = 2 * np.pi * np.arange(sides) / sides
    weight = f.move(
        f.extrude(head * np.stack([exact.cos(angle), exact.sin(angle)], 1), thick, rng.uniform(0.04, 0.1)),
        (0, 0, half - thick),
    )
    swell = rng.uniform(0.0, 0.05)
    z = np.linspace(-half + thick, half - thick, 30)
    bar = f.tube(np.stack([0 * z, 0 * z, z], 1), grip + swell * np.square(exact.cos(np.pi * z / (2 * half))))
    return f.solid(f.union(f.mirror(weight, 2), bar, fillet=rng.uniform(0.03, 0.1)), head, head, half)


# ---------------------------------------------------------------- test


def vase(rng) -> Solid:
    half, foot, belly = rng.uniform(0.85, 1.0), rng.uniform(0.26, 0.36), rng.uniform(0.48, 0.62)
    neck, lip, wall = rng.uniform(0.24, 0.34), rng.uniform(0.36, 0.5), rng.uniform(0.11, 0.14)
    at = rng.uniform(-0.35, 0.1)
    outer = f.smooth_curve([(foot, -half), (belly, half * at), (neck, half * rng.uniform(0.5, 0.65)), (lip, half)], 44)
    body, lobes, swing = f.revolve(f.shell(outer, wall)), int(rng.integers(5, 12)), rng.uniform(0.0, 0.05)
    twist = rng.uniform(-1.5, 1.5)

    def fluted(p):
        wave = 1 + swing * exact.cos(lobes * exact.arctan2(p[:, 1], p[:, 0]) + twist * p[:, 2])
        return 0.7 * body(np.float32(p / np.stack([wave, wave, np.ones_like(wave)], 1)))

    wide = outer[:, 0].max() * (1 + swing)
    return f.solid(fluted, wide, wide, half)


def pawn(rng) -> Solid:
    half, base, waist = rng.uniform(0.88, 1.0), rng.uniform(0.42, 0.52), rng.uniform(0.15, 0.2)
    head, collar = rng.uniform(0.22, 0.29), rng.uniform(0.24, 0.32)
    shoulder = half - 1.75 * head
    body = f.smooth_curve([(base * 0.72, -half + 0.22), (waist * 1.35, -half * 0.35), (waist, shoulder - 0.1)], 24)
    foot = np.array(
        [[0, -half], [base, -half], [base, -half + 0.12], [base * 0.9, -half + 0.16], [base * 0.9, -half + 0.2]]
    )
    ring_ = np.array([[collar, shoulder - 0.06], [collar, shoulder], [waist, shoulder + 0.04], [0, shoulder + 0.04]])
    return f.solid(
        f.union(f.revolve(np.concatenate([foot, body, ring_])), f.ball(head, (0, 0, half - head)), fillet=0.03),
        base,
        base,
        half,
    )


def bolt(rng) -> Solid:
    half, shaft, head = rng.uniform(0.85, 1.0), rng.uniform(0.2, 0.27), rng.uniform(0.4, 0.52)
    tall, plain, pitch, deep = (
        rng.uniform(0.13, 0.2),
        rng.uniform(0.1, 0.6),
        rng.uniform(0.11, 0.16),
        rng.uniform(0.025, 0.04),
    )
    sides = int(rng.choice([4, 6, 6, 6]))
    angle = 2 * np.pi * np.arange(sides) / sides
    cap = f.move(f.extrude(head * np.stack([exact.cos(angle), exact.sin(angle)], 1), tall, 0.04), (0, 0, half - tall))
    start = half - 2 * tall - plain * 0.6

    def threaded(p):
        phase = exact.arctan2(p[:, 1], p[:, 0]) + 2 * np.pi / pitch * p[:, 2]
        depth = np.float32(deep) * np.clip((start - p[:, 2]) / 0.08, 0, 1)
        side = exact.hypot(p[:, 0], p[:, 1]) - np.float32(shaft) + depth * (1 + exact.sin(phase))
        tip = side + 0.7 * (-half + 0.08 - p[:, 2])
        return 0.6 * np.maximum(np.maximum(side, tip), np.maximum(-half - p[:, 2], p[:, 2] - half + tall))

    parts = [cap, threaded]
    if rng.random() < 0.5:
        parts.append(f.move(f.cylinder(head * 1.05, 0.05, 0.02), (0, 0, half - 2 * tall)))
    return f.solid(f.union(*parts, fillet=0.04), head * 1.06, head * 1.06, half)


def wrench(rng) -> Solid:
    half, wide, thick = rng.uniform(0.9, 1.0), rng.uniform(0.1, 0.14), rng.uniform(0.07, 0.12)
    jaw, eye = rng.uniform(0.25, 0.32), rng.uniform(0.2, 0.26)
    ends = half - jaw, -half + eye
    handle = f.move(f.box(((ends[0] - ends[1]) / 2, wide, thick), 0.05), (sum(ends) / 2, 0, 0))
    heads = [
        f.move(f.cylinder(r, thick * s, 0.04), (x, 0, 0))
        for r, x, s in ((jaw, ends[0], 1.3), (eye, ends[1], rng.uniform(1.2, 1.7)))
    ]
    tilt = f.about("z", rng.uniform(0, 25))
    slot = f.move(
        f.turn(f.move(f.box((jaw, jaw * rng.uniform(0.42, 0.52), 9)), (jaw * 0.85, 0, 0)), tilt), (ends[0], 0, 0)
    )
    angle = 2 * np.pi * np.arange(6) / 6
    socket = f.extrude(eye * rng.uniform(0.55, 0.66) * np.stack([exact.cos(angle), exact.sin(angle)], 1), 9)
    body = f.subtract(f.union(handle, *heads, fillet=0.08), slot, f.move(socket, (ends[1], 0, 0)), fillet=0.03)
    return f.solid(body, half, jaw, thick * 1.7)


def propeller(rng) -> Solid:
    blades, hub, tall = int(rng.integers(3, 6)), rng.uniform(0.16, 0.22), rng.uniform(0.16, 0.26)
    wide, thick, pitch = (
        rng.uniform(0.22, 0.32),
        rng.uniform(0.05, 0.07),
        np.radians(rng.uniform(20, 40)) * rng.choice([-1, 1]),
    )
    blunt = rng.uniform(0.6, 0.9)

    def blade(p):
        angle = pitch * (1.35 - 0.7 * p[:, 0])  # steeper at the root
        c, s = exact.cos(angle), exact.sin(angle)
        q = np.stack([p[:, 0] - np.float32(0.52), c * p[:, 1] + s * p[:, 2], c * p[:, 2] - s * p[:, 1]], 1)
        along = np.square(q[:, 0] / 0.48)
        level = np.sqrt(
            along * blunt + np.square(along) * (1 - blunt) + np.square(q[:, 1] / wide)
        )
        return 0.75 * (-f.soft_min(-(level - 1) * np.float32(wide), thick - np.abs(q[:, 2]), 0.05))

    nose = f.move(f.ball(hub, (0, 0, 0)), (0, 0, tall))
    body = f.union(f.polar(blade, blades), f.cylinder(hub, tall, 0.03), nose, fillet=0.06)
    bore = f.intersect(f.cylinder(hub * rng.uniform(0.35, 0.5), 9), lambda p: p[:, 2] - tall * 0.3)
    return f.solid(f.subtract(body, bore, fillet=0.02), 1.05, 1.05, tall + hub)
