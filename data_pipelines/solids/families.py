"""More generators for pretraining: families whose bodies have little in common.

What a tower learns from few shapes stays with them: with 24 generators new bodies of the same categories were scored as well as
those trained on, those of other categories far worse (benchmarks/tried.md).
"""

from __future__ import annotations

import numpy as np

from data_pipelines.solids import exact
from data_pipelines.solids import fields as f
from data_pipelines.solids.fields import Solid


def _direction(rng) -> np.ndarray:
    v = rng.normal(size=3)
    return v / exact.norm(v)


def crystal(rng) -> Solid:
    """A convex body of flat faces."""
    faces = int(rng.integers(7, 19))
    normals = np.array([*np.eye(3), *-np.eye(3), *[_direction(rng) for _ in range(faces - 6)]], np.float32)
    stretch = rng.uniform(0.5, 1.0, 3)
    offset = exact.norm(normals * stretch) * rng.uniform(0.75, 1.0, len(normals))
    offset = offset.astype(np.float32)
    soft = rng.uniform(0.0, 0.06)

    def body(p):
        d = exact.times(p, normals[0]) - offset[0]
        for normal, distance in zip(normals[1:], offset[1:], strict=True):
            d = -f.soft_min(-d, distance - exact.times(p, normal), soft)
        return d.astype(np.float32)

    return Solid(body, np.maximum(offset[:3], offset[3:6]).astype(np.float64))


def truss(rng) -> Solid:
    """Rods between a few joints, with or without balls on them."""
    count = int(rng.integers(4, 7))
    joints = rng.uniform(-0.8, 0.8, (count, 3)) * [1, rng.uniform(0.5, 1.0), rng.uniform(0.4, 1.0)]
    thick = rng.uniform(0.08, 0.14)
    pairs = [(i, int(rng.integers(i))) for i in range(1, count)] + [tuple(rng.choice(count, 2, replace=False)) for _ in range(3)]
    rods = [f.tube(joints[[a, b]], thick * rng.uniform(0.8, 1.2)) for a, b in {tuple(sorted(map(int, p))) for p in pairs}]
    if rng.random() < 0.6:
        rods.append(f.balls(thick * rng.uniform(1.3, 2.0), joints))
    return Solid(f.union(*rods, fillet=rng.uniform(0.0, 0.08)), np.abs(joints).max(0) + 2 * thick + 0.02)


def hub(rng) -> Solid:
    """A middle with arms of one kind round it."""
    arms, middle = int(rng.integers(3, 9)), rng.uniform(0.18, 0.36)
    tall, reach = rng.uniform(0.1, 0.35), rng.uniform(0.7, 0.95)
    style = rng.integers(3)
    broad = min(rng.uniform(0.09, 0.2), np.pi * middle / arms)
    long = reach / 2
    arm = (
        f.box((long, broad, tall * rng.uniform(0.3, 1.0)), 0.03), f.turn(f.cylinder(broad, long, 0.04), f.about("y", 90)),
        f.superquadric((long, broad, max(broad * 0.6, 0.09)), rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0)),
    )[style]  # fmt: skip
    arm = f.move(arm, (long, 0, 0))
    centre = f.cylinder(middle, tall, 0.03) if rng.random() < 0.6 else f.ball(middle)
    body = f.union(centre, f.polar(arm, arms), fillet=rng.uniform(0.02, 0.1))
    if rng.random() < 0.4:
        body = f.subtract(body, f.cylinder(middle * rng.uniform(0.3, 0.6), 9), fillet=0.02)
    return f.solid(body, reach + 0.04, reach + 0.04, max(tall, middle, 1.2 * broad) + 0.05)


def casting(rng) -> Solid:
    """A base with ribs, bosses, pins and pockets."""
    x, y, z = rng.uniform(0.7, 1.0), rng.uniform(0.45, 0.9), rng.uniform(0.08, 0.2)
    base = f.cylinder(x, z, 0.04) if rng.random() < 0.25 else f.box((x, y, z), rng.uniform(0.02, 0.07))
    parts, cuts, top = [base], [], z
    for _ in range(int(rng.integers(1, 6))):
        at = rng.uniform(-0.6, 0.6, 2) * [x, y]
        high, style = rng.uniform(0.08, 0.4), rng.integers(4)
        if style == 0:
            part = f.cylinder(rng.uniform(0.1, 0.28), z + high, 0.03)
        elif style == 1:
            rib = f.box((rng.uniform(0.3, 0.8), rng.uniform(0.06, 0.12), z + high), 0.03)
            part = f.turn(rib, f.about("z", rng.uniform(0, 180)))
        elif style == 2:
            part = f.superquadric((rng.uniform(0.15, 0.4), rng.uniform(0.15, 0.4), z + high), 0.8, 0.7)
        else:
            cuts.append(f.move(f.cylinder(rng.uniform(0.08, 0.2), 9 if rng.random() < 0.5 else rng.uniform(0.1, 0.3)),
                               (*at, 0 if rng.random() < 0.5 else z + 0.1)))
            continue
        parts.append(f.intersect(f.move(part, (*at, 0)), lambda p: -z - p[:, 2]))
        top = max(top, z + high)
    body = f.union(*parts, fillet=rng.uniform(0.02, 0.1))
    body = f.subtract(body, *cuts, fillet=0.03) if cuts else body
    lift = (top - z) / 2
    return f.solid(f.move(body, (0, 0, -lift)), x + 0.45, (x if y < x else y) + 0.45, (top + z) / 2 + 0.04)


def blob(rng) -> Solid:
    """Soft lumps run together."""
    count = int(rng.integers(3, 8))
    centres, radii = [np.zeros(3)], [rng.uniform(0.25, 0.45)]
    for _ in range(count - 1):
        mother = int(rng.integers(len(centres)))
        radius = rng.uniform(0.15, 0.4)
        centres.append(centres[mother] + _direction(rng) * (radii[mother] + radius) * rng.uniform(0.6, 0.85))
        radii.append(radius)
    centres = np.array(centres)
    centres -= (centres.max(0) + centres.min(0)) / 2
    bodies = [f.ball(r, c) for r, c in zip(radii, centres, strict=True)]
    reach = (np.abs(centres) + np.array(radii)[:, None]).max(0)
    return Solid(f.union(*bodies, fillet=rng.uniform(0.12, 0.3)), reach + 0.08)


def profile(rng) -> Solid:
    """A rolled bar: a U, L, T, Z or H in section, some with drillings."""
    wide, tall, wall = rng.uniform(0.3, 0.6), rng.uniform(0.3, 0.6), rng.uniform(0.06, 0.11)
    half = rng.uniform(0.6, 1.0)
    web = (0.0, 0.0, wide, wall)  # middle and half sides of the section's pieces
    left, right = (-wide + wall, 0.0, wall, tall), (wide - wall, 0.0, wall, tall)
    foot = lambda x, w: (x, -tall + wall, w, wall)  # noqa: E731
    head = lambda x, w: (x, tall - wall, w, wall)  # noqa: E731
    pieces = (
        (left, right, foot(0, wide)), (left, foot(0, wide)), (head(0, wide), (0.0, 0.0, wall, tall)),
        (head(-wide / 2, wide / 2 + wall), (0.0, 0.0, wall, tall), foot(wide / 2, wide / 2 + wall)), (left, right, web),
    )[rng.integers(5)]  # fmt: skip
    body = f.union(*[f.move(f.box((w, h, half), 0.02), (x, y, 0)) for x, y, w, h in pieces], fillet=rng.uniform(0, 0.06))
    drills = [f.move(f.turn(f.cylinder(rng.uniform(0.06, 0.12), 9), f.about(rng.choice(["x", "y"]), 90)), (0, 0, z))
              for z in rng.uniform(-0.7 * half, 0.7 * half, int(rng.integers(0, 4)))]
    body = f.subtract(body, *drills, fillet=0.02) if drills else body
    return f.solid(body, wide + 0.1, tall + 0.1, half + 0.02)


def chain(rng) -> Solid:
    """Beads, discs or bars strung on a bent rod."""
    knots = np.cumsum(rng.normal(size=(4, 3)) * [0.6, 0.35, 0.25], 0)
    curve = f.smooth_curve(knots, 60)
    curve -= (curve.max(0) + curve.min(0)) / 2
    curve *= 0.75 / np.abs(curve).max()
    rod = rng.uniform(0.08, 0.13)
    parts, size = [f.tube(curve, rod)], rng.uniform(0.16, 0.28)
    style, spread = rng.integers(3), rng.uniform(0.7, 1.3)
    for i in np.linspace(3, 56, int(rng.integers(3, 7))).astype(int):
        along = curve[i + 2] - curve[i - 2]
        along /= exact.norm(along)
        side = np.cross(along, [0.31, 0.73, 0.6])
        side /= exact.norm(side)
        frame = np.stack([side, np.cross(along, side), along], 1)
        big = size * rng.uniform(0.85, 1.15)
        bead = (f.ball(big), f.cylinder(big, 0.07 * spread, 0.03), f.box((big, 0.8 * big, 0.09), 0.03))[style]
        parts.append(f.move(f.turn(bead, frame), curve[i]))
    return Solid(f.union(*parts, fillet=rng.uniform(0.0, 0.06)), np.abs(curve).max(0) + 1.5 * size)


def cheese(rng) -> Solid:
    """A solid body with round bites and drillings through it."""
    half = rng.uniform(0.5, 0.95, 3)
    sharp, round_ = rng.uniform(0.03, 0.2), rng.uniform(0.4, 1.0, 2)
    body = f.box(half, sharp) if rng.random() < 0.5 else f.superquadric(half, *round_)
    tools = []
    for _ in range(int(rng.integers(1, 5))):
        outward = _direction(rng)
        if rng.random() < 0.5:
            ray = (np.linspace(0, 2, 400)[:, None] * outward).astype(np.float32)
            tools.append(f.ball(rng.uniform(0.12, 0.28), ray[np.argmax(body(ray) > 0)]))
        else:
            drill = f.turn(f.cylinder(rng.uniform(0.08, 0.15), 9), f.attitude(rng))
            tools.append(f.move(drill, rng.uniform(-0.3, 0.3, 3) * half))
    return Solid(f.subtract(body, *tools, fillet=rng.uniform(0.02, 0.06)), half)


def branch(rng) -> Solid:
    """A trunk with twigs that taper."""
    trunk = f.smooth_curve(np.array([[0, 0, -0.9], [0, 0, -0.3], [0, 0, 0.3], [0, 0, 0.9]]) + rng.normal(size=(4, 3)) * 0.12, 40)
    girth = rng.uniform(0.12, 0.2)
    parts = [f.tube(trunk, np.linspace(girth, girth * rng.uniform(0.6, 0.9), 40))]
    reach = np.abs(trunk).max(0)
    for _ in range(int(rng.integers(2, 6))):
        start = trunk[int(rng.integers(6, 34))]
        way = _direction(rng) * [1, 1, 0.6] * rng.uniform(0.4, 0.8)
        twig = f.smooth_curve([start, start + way / 2, start + way + rng.normal(size=3) * 0.12], 24)
        parts.append(f.tube(twig, np.linspace(0.8 * girth, 0.09, 24)))
        reach = np.maximum(reach, np.abs(twig).max(0))
    return Solid(f.union(*parts, fillet=rng.uniform(0.02, 0.12)), reach + girth + 0.03)


def hood(rng) -> Solid:
    """A part of a hollow ball or egg, its rim straight or waved."""
    half, wall = rng.uniform(0.6, 0.95, 3), rng.uniform(0.1, 0.15)
    shape = rng.uniform(0.6, 1.0)
    outer, inner = f.superquadric(half, shape, shape), f.superquadric(half - wall, shape, shape)
    cut, wave, lobes = rng.uniform(-0.1, 0.5) * half[2], rng.uniform(0.0, 0.12) * (rng.random() < 0.5), rng.integers(2, 7)

    def rim(p):
        level = cut + wave * exact.sin(lobes * exact.arctan2(p[:, 1], p[:, 0]))
        return (0.8 * (p[:, 2] - level)).astype(np.float32)

    body = f.intersect(f.subtract(outer, inner), rim, fillet=0.03)
    if rng.random() < 0.4:
        body = f.subtract(body, f.cylinder(rng.uniform(0.1, 0.25), 9), fillet=0.02)
    lift = (cut + wave - half[2]) / 2
    return Solid(f.move(body, (0, 0, -lift)), np.array([half[0], half[1], (cut + wave + half[2]) / 2 + 0.02]))


def ribbon(rng) -> Solid:
    """A flat bar, twisted and bent."""
    wide, thick, half = rng.uniform(0.25, 0.45), rng.uniform(0.08, 0.16), 0.95
    twist, bow = rng.uniform(-2.2, 2.2), rng.uniform(-0.35, 0.35)
    section = f.box((wide, thick, 9), 0.04)

    def body(p):
        x = p[:, 0] - bow * (1 - np.square(p[:, 2] / half))
        angle = twist * p[:, 2]
        c, s = exact.cos(angle), exact.sin(angle)
        q = np.stack([c * x - s * p[:, 1], s * x + c * p[:, 1], np.zeros_like(x)], 1).astype(np.float32)
        return np.maximum(np.float32(0.6) * section(q), np.abs(p[:, 2]) - np.float32(half))

    field = body
    if rng.random() < 0.4:
        big = wide * 1.15
        feet = [f.move(f.box((big, big, 0.12), 0.04), (0, 0, s * (half - 0.12))) for s in (-1, 1)]
        field = f.union(body, *feet, fillet=0.05)
    return f.solid(field, wide * 1.3 + abs(bow) + 0.05, wide * 1.3 + 0.05, half + 0.02)


def vessel(rng) -> Solid:
    """A hollow body of rounded polygonal section, open at the top, its width changing along the way; some with lugs."""
    knots = [(rng.uniform(0.35, 0.7), z) for z in np.linspace(-1, 1, int(rng.integers(3, 5)))]
    outer = f.smooth_curve(knots, 40) * [1, rng.uniform(0.45, 0.95)]
    outer[:, 0] = np.clip(outer[:, 0], 0.32, 0.72)
    wall, tall = rng.uniform(0.13, 0.17), outer[:, 1].max()
    hollow, sector = f.revolve(f.shell(outer, wall)), 2 * np.pi / int(rng.integers(3, 7))

    def facets(p):  # the radius as a rounded polygon measures it
        angle = exact.arctan2(p[:, 1], p[:, 0])
        angle = angle - sector * np.round(angle / sector)
        scale = (1 + 0.6 * (exact.cos(angle) - 1)).astype(np.float32)
        return np.float32(0.8) * hollow(p * np.stack([scale, scale, np.ones_like(scale)], 1))

    body, wide = facets, outer[:, 0].max() / (0.4 + 0.6 * exact.cos(sector / 2))
    if rng.random() < 0.5:
        lug = f.move(f.box((0.14, 0.1, 0.12), 0.03), (outer[20, 0] + 0.05, 0, outer[20, 1]))
        body = f.union(body, f.polar(lug, round(2 * np.pi / sector)), fillet=0.04)
        wide = max(wide, outer[20, 0] + 0.2)
    return f.solid(body, wide + 0.02, wide + 0.02, tall)
