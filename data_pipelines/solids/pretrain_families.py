"""Generators of the categories that the embedded weights are pretrained on. Each draws its dimensions from `rng`."""

from __future__ import annotations

import numpy as np

from data_pipelines.solids import exact
from data_pipelines.solids import fields as f
from data_pipelines.solids.fields import Solid


def soap(rng) -> Solid:
    a, b, c = rng.uniform(0.75, 1.0), rng.uniform(0.5, 0.75), rng.uniform(0.3, 0.5)
    body = f.superquadric((a, b, c), rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0))
    return f.solid(body, a, b, c)


def ring(rng) -> Solid:
    wide, tall, radius = rng.uniform(0.12, 0.24), rng.uniform(0.12, 0.34), rng.uniform(0.65, 0.78)
    t, power = np.linspace(0, 2 * np.pi, 48, endpoint=False), rng.uniform(0.5, 1.0)
    section = np.stack(
        [
            wide * np.sign(exact.cos(t)) * exact.power(np.abs(exact.cos(t)), power),
            tall * np.sign(exact.sin(t)) * exact.power(np.abs(exact.sin(t)), power),
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
        [[r * exact.cos(sector * (i + s)), r * exact.sin(sector * (i + s))] for i in range(teeth) for s, r in corners]
    )
    height, hub, bore = rng.uniform(0.14, 0.3), rng.uniform(0.32, 0.45), rng.uniform(0.14, 0.24)
    tall = height + rng.uniform(0.0, 0.2)
    body = f.union(f.extrude(polygon, height, 0.02), f.cylinder(hub, tall, 0.03), fillet=0.04)
    if rng.random() < 0.6:  # a recess on both faces
        pocket = f.intersect(f.cylinder(1 - depth - 0.12, 9), lambda p: hub + 0.06 - exact.hypot(p[:, 0], p[:, 1]))
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
        [radius * taper * exact.cos(2 * np.pi * t), radius * taper * exact.sin(2 * np.pi * t), half * (2 * t / turns - 1)], 1
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
    side = np.interp(z, [z[0], height], [base, top]) + 0.025 * (exact.sin(np.linspace(0, 2 * np.pi * bands, 40)) > 0.3) * (
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
        rng.uniform(0.1, 0.13),
    )
    straight, collar, lip = rng.uniform(0.15, 0.4), rng.uniform(0.1, 0.2), rng.uniform(0.05, 0.12)
    curve = f.arc(bend, 0, angle, 40)
    ahead = np.array([[0.0, -1.0], [-exact.sin(np.radians(angle)), exact.cos(np.radians(angle))]])  # out of the two openings
    ends = curve[[0, -1]] + straight * ahead
    path = np.concatenate([ends[:1] + 0.5 * ahead[:1], curve, ends[1:] + 0.5 * ahead[1:]])
    rod = f.tube(np.pad(path, ((0, 0), (0, 1))), radius)
    low, high = np.minimum(ends.min(0), curve.min(0)), np.maximum(ends.max(0), curve.max(0))

    def pipe(p):
        side = rod(p)
        past = (exact.times(p[:, :2], ahead.T) - exact.dot(ends, ahead)).max(1).astype(np.float32)  # beyond the nearer end plane
        outer = f.soft_min(side, np.maximum(side - lip, -collar - past), 0.03)
        return np.maximum(np.maximum(outer, -side - wall), past)

    middle = np.append((low + high) / 2, 0)
    return Solid(f.move(pipe, -middle), np.append((high - low) / 2, 0) + radius + lip)


def bowl(rng) -> Solid:
    height, foot, wide, wall = (
        rng.uniform(0.35, 0.6),
        rng.uniform(0.3, 0.45),
        rng.uniform(0.85, 1.0),
        rng.uniform(0.11, 0.15),
    )
    t, power = np.linspace(0, 1, 40), rng.uniform(0.35, 0.7)
    outer = np.stack([foot + (wide - foot) * exact.power(t, power), height * (2 * t - 1)], 1)
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
    cap = np.array([[head * np.sqrt(max(exact.cos(a), 0.0)), half + dome * exact.sin(a)] for a in np.linspace(0, np.pi / 2, 14)])
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
    polygon = np.where(np.arange(2 * points) % 2, inner, 1.0)[:, None] * np.stack([exact.cos(angle), exact.sin(angle)], 1)
    body, slope = f.extrude(polygon, thick, 0.04), rng.uniform(0.0, 0.25)
    lens = lambda p: np.abs(p[:, 2]) + slope * exact.hypot(p[:, 0], p[:, 1]) - (thick + 0.02)  # noqa: E731  (thinner tips)
    return f.solid(f.intersect(body, lens, fillet=0.03), 1.0, 1.0, thick)


# ---------------------------------------------------------------- families: hardly two of a kind look alike


def spindle(rng) -> Solid:
    """A turned rod: cylinders, cones, rounded beads and necks of any width, one after another."""
    parts, z, profile = int(rng.integers(3, 7)), -1.0, [[0.0, -1.0]]
    heights = rng.dirichlet(np.full(parts, 3.0)) * 2
    for height in heights:
        low, high = rng.uniform(0.14, 0.6, 2)
        style = rng.integers(3)
        if style == 0:
            piece = [[low, z], [low, z + height]]
        elif style == 1:
            piece = [[low, z], [high, z + height]]
        else:
            t = np.linspace(0, np.pi, 12)
            piece = np.stack([low + 0.3 * height * exact.sin(t), z + height * t / np.pi], 1).tolist()
        profile += piece
        z += height
    profile = np.array([*profile, [0.0, z]])
    wide = profile[:, 0].max() + 0.02
    return f.solid(f.revolve(profile), wide, wide, 1.0)


def funnel(rng) -> Solid:
    """A tube open at both ends, its width changing along the way."""
    knots = [(rng.uniform(0.25, 0.75), z) for z in np.linspace(-1, 1, int(rng.integers(3, 6)))]
    outer = f.smooth_curve(knots, 40) * [1, rng.uniform(0.6, 0.95)]
    outer[:, 0] = np.clip(outer[:, 0], 0.22, 0.85)
    wall = rng.uniform(0.1, 0.14)
    wide, tall = outer[:, 0].max() + 0.02, outer[:, 1].max()
    return f.solid(f.revolve(np.concatenate([outer, (outer - [wall, 0])[::-1]])), wide, wide, tall)


def cutout(rng) -> Solid:
    """A board of irregular outline with drillings and slots."""
    corners = int(rng.integers(5, 11))
    angle = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.25, 0.25, corners)) / corners
    radius = rng.uniform(0.5, 1.0, corners)
    stretch = np.array([1.0, rng.uniform(0.5, 1.0)])
    polygon = radius[:, None] * np.stack([exact.cos(angle), exact.sin(angle)], 1) * stretch
    if rng.random() < 0.5:
        polygon = f.smooth_curve(np.concatenate([polygon, polygon[:1]]), 64)[:-1]
    thick = rng.uniform(0.08, 0.25)
    holes = []
    for _ in range(int(rng.integers(0, 4))):
        at = rng.uniform(-0.4, 0.4, 2) * stretch
        size = rng.uniform(0.06, 0.14)
        tool = f.cylinder(size, 9) if rng.random() < 0.6 else f.box((2 * size, 0.8 * size, 9), 0.02)
        holes.append(f.move(f.turn(tool, f.about("z", rng.uniform(0, 180))), (*at, 0)))
    body = f.subtract(f.extrude(polygon, thick, rng.uniform(0.01, 0.06)), *holes, fillet=0.02)
    reach = np.abs(polygon).max(0) + 0.03
    return f.solid(body, *reach, thick)


def pebble(rng) -> Solid:
    """A rounded lump with gentle waves."""
    half = rng.uniform(0.5, 0.9, 3)
    body = f.superquadric(half, rng.uniform(0.5, 1.2), rng.uniform(0.5, 1.2))
    wave = rng.normal(size=(4, 3))
    wave *= (rng.uniform(1.5, 4.5, 4) / exact.norm(wave))[:, None]
    phase, height = rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.01, 0.05)
    waves = lambda p: exact.times(exact.sin(exact.times(p, wave.T) + phase), np.full(4, height)).astype(np.float32)  # noqa: E731
    return Solid(lambda p: 0.8 * (body(p) + waves(p)), half * 1.1 + 4 * height)


def cluster(rng) -> Solid:
    """A few simple bodies grown together at random angles."""
    bodies, reach = [], np.zeros(3)
    at = np.zeros(3)
    for _ in range(int(rng.integers(2, 6))):
        size = rng.uniform(0.15, 0.45, 3)
        style = rng.integers(4)
        body = (
            f.box(size, rng.uniform(0.02, 0.1)), f.cylinder(size[0], 1.3 * size[1], 0.03), f.ball(size[0]),
            f.superquadric(size, rng.uniform(0.4, 1.0), rng.uniform(0.4, 1.0)),
        )[style]  # fmt: skip
        rotation = exact.times(f.about("x", rng.uniform(0, 180)), f.about("z", rng.uniform(0, 180)))
        bodies.append(f.move(f.turn(body, rotation), at))
        reach = np.maximum(reach, np.abs(at) + 1.05 * exact.norm(size * [1, 1.3, 1]))
        step = rng.normal(size=3)
        at = np.clip(at + step / exact.norm(step) * rng.uniform(0.25, 0.55), -0.7, 0.7)
    return Solid(f.union(*bodies, fillet=rng.uniform(0.0, 0.08)), reach)


def column(rng) -> Solid:
    """A rod of polygonal, fluted or ribbed section, straight or tapering, with or without a bore."""
    lobes, deep = int(rng.integers(3, 15)), rng.uniform(0.03, 0.12)
    t = np.linspace(0, 2 * np.pi, 160, endpoint=False)
    shape = exact.cos(lobes * t)
    shape = np.clip(2.5 * shape, -1, 1) if rng.random() < 0.4 else shape
    radius, half = rng.uniform(0.3, 0.55), rng.uniform(0.5, 1.0)
    section = (radius + deep * shape)[:, None] * np.stack([exact.cos(t), exact.sin(t)], 1)
    prism, taper = f.extrude(section, half, 0.03), rng.uniform(0.0, 0.35)
    twist = rng.uniform(-1.0, 1.0) * (rng.random() < 0.4)

    def body(p):
        z = p[:, 2]
        c, s = exact.cos(twist * z), exact.sin(twist * z)
        scale = 1 + taper * (z / half + 1) / 2
        q = np.stack([(c * p[:, 0] - s * p[:, 1]) * scale, (s * p[:, 0] + c * p[:, 1]) * scale, z], 1)
        return np.float32(0.7) * prism(q.astype(np.float32))

    wide = radius + deep + 0.02
    if rng.random() < 0.4:
        return f.solid(f.subtract(body, f.cylinder(rng.uniform(0.3, 0.6) * (radius - deep) / (1 + taper), 9), fillet=0.03),
                       wide, wide, half)  # fmt: skip
    return f.solid(body, wide, wide, half)


def wire(rng) -> Solid:
    """A rod bent at random."""
    knots = np.cumsum(rng.normal(size=(int(rng.integers(4, 7)), 3)) * [0.5, 0.5, 0.3], 0)
    curve = f.smooth_curve(knots, 80)
    curve = curve - (curve.max(0) + curve.min(0)) / 2
    curve = 0.85 * curve / np.abs(curve).max()
    rod = rng.uniform(0.1, 0.18) * np.linspace(1, rng.uniform(0.6, 1.0), len(curve))
    return Solid(f.tube(curve, rod), np.abs(curve).max(0) + rod.max() + 0.02)


def frame(rng) -> Solid:
    """A block with windows through its sides."""
    half = rng.uniform(0.45, 0.95, 3)
    bar = rng.uniform(0.1, 0.2)
    tools = []
    for axis in np.flatnonzero(rng.random(3) < 0.7):
        window = np.maximum(half - bar * rng.uniform(1.0, 2.0, 3), 0.1)
        window[axis] = 9
        tools.append(f.box(window, 0.03))
    block = f.box(half, rng.uniform(0.02, 0.08))
    return Solid(f.subtract(block, *tools, fillet=0.02) if tools else block, half)


def saddle(rng) -> Solid:
    """A curved sheet."""
    x, y, thick = rng.uniform(0.7, 1.0), rng.uniform(0.5, 0.95), rng.uniform(0.06, 0.11)
    a, b, c = rng.uniform(-0.35, 0.35, 3)
    rise = lambda p: a * np.square(p[:, 0]) + b * np.square(p[:, 1]) + c * p[:, 0] * p[:, 1]  # noqa: E731
    sheet = lambda p: (0.8 * (np.abs(p[:, 2] - rise(p)) - thick)).astype(np.float32)  # noqa: E731
    edge = f.cylinder(1.0, 9) if rng.random() < 0.3 else f.box((1.0, 1.0, 9), rng.uniform(0.05, 0.4))
    scale = np.float32([1 / x, 1 / y, 1])
    body = f.intersect(sheet, lambda p: np.float32(min(x, y)) * edge(p * scale), fillet=0.03)
    return f.solid(body, x, y, 0.35 * (x * x + y * y + x * y) + thick + 0.02)


def auger(rng) -> Solid:
    """A rod with a ridge wound round it, and perhaps a collar."""
    core, half, turns = rng.uniform(0.14, 0.3), rng.uniform(0.8, 1.0), rng.uniform(2.0, 6.0)
    t = np.linspace(0, turns, int(turns * 36))
    reach = core + rng.uniform(0.0, 0.2)
    helix = np.stack([reach * exact.cos(2 * np.pi * t), reach * exact.sin(2 * np.pi * t), 0.9 * half * (2 * t / turns - 1)], 1)
    ridge = rng.uniform(0.06, 0.1)
    parts = [f.cylinder(core, half, 0.04), f.tube(helix, ridge)]
    wide = reach + ridge
    if rng.random() < 0.5:
        wide = max(wide, wide + rng.uniform(-0.1, 0.2))
        parts.append(f.move(f.cylinder(wide, 0.12, 0.03), (0, 0, rng.choice([-1, 0, 1]) * (half - 0.12))))
    return f.solid(f.union(*parts, fillet=0.04), wide + 0.02, wide + 0.02, half)


def stack(rng) -> Solid:
    """Blocks and discs of different sizes, one on another."""
    layers = int(rng.integers(2, 5))
    heights, z, parts, wide = rng.dirichlet(np.full(layers, 4.0)) * 0.8, -0.8, [], 0.0
    for height in heights:
        size = rng.uniform(0.3, 0.85, 2)
        tool = f.cylinder(size[0], height + 0.02, 0.03) if rng.random() < 0.4 else f.box((*size, height + 0.02), 0.04)
        shift = rng.uniform(-0.15, 0.15, 2)
        parts.append(f.move(tool, (*shift, z + height)))
        wide, z = max(wide, size.max() + 0.15), z + 2 * height
    return f.solid(f.union(*parts, fillet=rng.uniform(0, 0.06)), wide, wide, 0.84)
