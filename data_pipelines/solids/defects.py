"""Six kinds of defect made on a solid's mesh, each with its exact extent.

bulge, dent   smooth displacement of an irregular disc along the normal
hole          a disc removed and the rim around it pushed in
crack         tapering groove along a jittered path on the surface
break         a part cut off along a rough surface, which closes the body again
bend          a part turned about its root, the angle ramping up smoothly; anomalous is where it turns: what lies beyond is
              moved but sound

Every kind leaves a value per vertex, `amount`; the surface is anomalous where it exceeds `THRESHOLD`. For
displacements it is the share of the largest one. Lengths are in the solid's own unit; sizes and depths are drawn as
shares of half the diagonal of its bounding box.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from data_pipelines.solids import exact
from data_pipelines.solids.fields import Solid
from data_pipelines.solids.meshing import Mesh, edge_graph, fitting_resolution, mesh_field, refine, vertex_normals

THRESHOLD = 0.05
ALL_DEFECTS = ("bulge", "dent", "hole", "crack", "break", "bend")


class Range(NamedTuple):
    """Extremes of a defect's size and depth, from subtle to plain.

    break: share of the surface cut off, height of the roughness; bend: share of the surface bent, angle in degrees;
    else: radius (crack: half its length) and depth. Lengths over half the diagonal of the solid's bounding box.
    """

    size: tuple[float, float]
    depth: tuple[float, float]


DIFFICULTIES: dict[str, dict[str, Range]] = {
    "wide": {  # from subtle to what anybody sees
        "bulge": Range((0.13, 0.30), (0.04, 0.14)),
        "dent": Range((0.13, 0.30), (0.04, 0.14)),
        "hole": Range((0.09, 0.20), (0.04, 0.09)),
        "crack": Range((0.30, 0.70), (0.04, 0.10)),
        "break": Range((0.06, 0.20), (0.03, 0.06)),
        "bend": Range((0.15, 0.35), (14.0, 36.0)),
    },
    "easy": {
        "bulge": Range((0.16, 0.24), (0.06, 0.10)),
        "dent": Range((0.16, 0.24), (0.06, 0.10)),
        "hole": Range((0.11, 0.17), (0.05, 0.08)),
        "crack": Range((0.40, 0.60), (0.05, 0.08)),
        "break": Range((0.08, 0.16), (0.03, 0.05)),
        "bend": Range((0.15, 0.30), (18.0, 30.0)),
    },
    "middle": {
        "bulge": Range((0.11, 0.20), (0.03, 0.07)),
        "dent": Range((0.11, 0.20), (0.03, 0.07)),
        "hole": Range((0.07, 0.13), (0.03, 0.06)),
        "crack": Range((0.25, 0.45), (0.03, 0.06)),
        "break": Range((0.05, 0.11), (0.02, 0.04)),
        "bend": Range((0.12, 0.25), (11.0, 22.0)),
    },
    "hard": {
        "bulge": Range((0.08, 0.14), (0.015, 0.035)),
        "dent": Range((0.08, 0.14), (0.015, 0.035)),
        "hole": Range((0.05, 0.085), (0.02, 0.035)),
        "crack": Range((0.16, 0.30), (0.02, 0.035)),
        "break": Range((0.02, 0.06), (0.015, 0.03)),
        "bend": Range((0.10, 0.20), (6.0, 12.0)),
    },
}


class Defective(NamedTuple):
    """The deformed mesh, `amount` float64 [Q] per vertex, size and depth in the solid's unit, and where every vertex was
    before, [Q, 3]: on the sound body, or, on a fracture, inside it.

    bend: size is the part's length, depth the largest displacement; break: size is the radius of a disc of the
    fracture's area, depth the length that is missing.
    """

    mesh: Mesh
    amount: np.ndarray
    size: float
    depth: float
    before: np.ndarray


class NoPlace(ValueError):
    """The drawn place cannot hold the defect; draw again."""


def apply(
    kind: str, solid: Solid, mesh: Mesh, difficulty: str, severity: float, rng: np.random.Generator, frame: np.ndarray
) -> Defective:
    """Makes one defect.

    `severity` in [0, 1] runs from the subtle to the plain end of the difficulty's range; `frame` [3, 3] turns the solid
    into its final pose (defects are put where a ring of cameras about x sees them). Raises NoPlace.
    """
    ranges = DIFFICULTIES[difficulty][kind]
    size = ranges.size[0] + severity * (ranges.size[1] - ranges.size[0])
    depth = ranges.depth[0] + severity * (ranges.depth[1] - ranges.depth[0])
    unit = 0.5 * exact.norm(np.ptp(mesh.vertices, axis=0))
    if kind == "break":
        return _break(solid, mesh, size, depth * unit, rng)
    if kind == "bend":
        return _bend(mesh, size, np.radians(depth), rng)
    seed = _visible_vertex(solid, mesh, unit, rng, frame)
    make = {"bulge": _bulge, "dent": _dent, "hole": _hole, "crack": _crack}[kind]
    return make(solid, mesh, seed, size * unit, depth * unit, rng)


# ---------------------------------------------------------------- where


def _visible_vertex(solid: Solid, mesh: Mesh, unit: float, rng: np.random.Generator, frame: np.ndarray) -> int:
    """A vertex that some camera of a ring about x sees well: free line of sight, not too oblique."""
    angles = np.radians(np.arange(0, 360, 36))
    # Towards the cameras, in the solid's frame.
    sight = exact.times(np.stack([np.zeros(10), exact.sin(angles), exact.cos(angles)], 1), frame)
    candidates = rng.choice(len(mesh.vertices), 12, p=_vertex_area(mesh))
    normal = vertex_normals(mesh)[candidates]
    seen = exact.times(normal, sight.T)
    faces, cosines = seen.argmax(1), seen.max(1)
    steps = unit * np.linspace(0.06, 2.0, 40)
    rays = mesh.vertices[candidates][:, None] + normal[:, None] * 0.02 * unit + sight[faces][:, None] * steps[:, None]
    free = (solid.field(rays.reshape(-1, 3).astype(np.float32)).reshape(12, -1) > 0).all(1)
    good = candidates[free & (cosines > 0.6)]
    if not len(good):
        raise NoPlace("no drawn place can be seen from outside")
    return int(good[0])


def _vertex_area(mesh: Mesh) -> np.ndarray:
    """Share [Q] of the surface around every vertex; sums to one."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    area = exact.norm(np.cross(b - a, c - a))
    total = np.bincount(mesh.faces.ravel(), np.repeat(area, 3), len(mesh.vertices))
    return total / exact.total(total)


def _thickness(solid: Solid, point: np.ndarray, normal: np.ndarray, unit: float) -> float:
    """Length of the body below a surface point, along the inward normal."""
    steps = unit * np.linspace(0.02, 0.6, 59)
    inside = solid.field((point - normal * steps[:, None]).astype(np.float32)) < 0
    return float(steps[-1] if inside.all() else steps[np.argmin(inside)])


def waves(rng: np.random.Generator, count: int, wavelength: tuple[float, float]):
    """Smooth random scalar function of position, of about unit deviation."""
    direction = rng.normal(size=(count, 3))
    direction *= (2 * np.pi / rng.uniform(*wavelength, count) / exact.norm(direction))[:, None]
    phase = rng.uniform(0, 2 * np.pi, count)
    return lambda p: exact.times(exact.sin(exact.times(p, direction.T) + phase), np.full(count, np.sqrt(2 / count)))


class _Patch(NamedTuple):
    """Refined mesh around a seed; q [Q]: distance from the seed over the irregular disc's radius; smoothed normals
    [Q, 3].
    """

    mesh: Mesh
    q: np.ndarray
    normal: np.ndarray


def _patch(mesh: Mesh, seed: int, radius: float, reach: float, edges: int, rng: np.random.Generator) -> _Patch:
    """The irregular disc around a seed, on a mesh refined to `edges` edges a radius up to `reach` radii away."""
    centre = mesh.vertices[seed]
    straight = exact.norm(mesh.vertices - centre)
    graph = edge_graph(mesh)
    path = csgraph.dijkstra(graph, indices=seed, limit=2.0 * reach * radius)
    # Paths along edges are up to a quarter too long; where they are longer still, the surface folds back (teeth,
    # thin walls).
    distance = np.where(np.isinf(path), 9 * reach * radius, np.maximum(straight, 0.8 * path))
    normal = vertex_normals(mesh)
    near = distance < 1.3 * reach * radius
    smooth = graph.copy()
    smooth.data = np.ones_like(smooth.data)
    for _ in range(6):
        normal = normal + 0.5 * (smooth @ normal)
        normal /= np.maximum(exact.norm(normal), 1e-9)[:, None]
    fine, spread = refine(mesh, near, _levels(mesh, near, radius / edges))
    distance = spread @ distance
    q = distance / (
        radius * (1 + 0.16 * np.clip(waves(rng, 5, (0.8 * radius, 2.5 * radius))(fine.vertices), -1.5, 1.5))
    )
    normal = spread @ normal
    return _Patch(fine, q, normal / np.maximum(exact.norm(normal), 1e-9)[:, None])


def _levels(mesh: Mesh, near: np.ndarray, edge: float) -> int:
    """How often the faces in `near` must be halved for edges of the given length."""
    faces = mesh.faces[near[mesh.faces].all(1)]
    if not len(faces):
        raise NoPlace("the defect is smaller than the mesh")
    length = exact.mean(exact.norm(mesh.vertices[faces[:, 0]] - mesh.vertices[faces[:, 1]]))
    return sum(length > edge * halved for halved in (1, 2, 4))


# ---------------------------------------------------------------- the six kinds


def _bulge(solid, mesh, seed, radius, depth, rng, sign=1.0) -> Defective:
    patch = _patch(mesh, seed, radius, 1.4, 8, rng)
    amount = np.where(patch.q < 1, np.square(1 - np.square(np.minimum(patch.q, 1))), 0)
    moved = patch.mesh.vertices + (sign * depth) * amount[:, None] * patch.normal
    return Defective(Mesh(moved, patch.mesh.faces), amount / amount.max(), radius, depth, patch.mesh.vertices)


def _dent(solid, mesh, seed, radius, depth, rng) -> Defective:
    unit = 0.5 * exact.norm(np.ptp(mesh.vertices, axis=0))
    deepest = 0.6 * _thickness(solid, mesh.vertices[seed], vertex_normals(mesh)[seed], unit)
    if deepest < 0.4 * depth:
        raise NoPlace("the wall is too thin for a dent")
    return _bulge(solid, mesh, seed, radius, min(depth, deepest), rng, sign=-1.0)


def _hole(solid, mesh, seed, radius, depth, rng) -> Defective:
    unit = 0.5 * exact.norm(np.ptp(mesh.vertices, axis=0))
    depth = min(depth, 0.6 * _thickness(solid, mesh.vertices[seed], vertex_normals(mesh)[seed], unit))
    patch = _patch(mesh, seed, radius, 1.8, 24, rng)
    gone = patch.q < 1
    amount = np.where(gone, 1, np.square(np.clip((1.55 - patch.q) / 0.55, 0, 1)))
    moved = patch.mesh.vertices - depth * amount[:, None] * patch.normal
    kept = patch.mesh.faces[~gone[patch.mesh.faces].all(1)]
    return Defective(Mesh(moved, kept), amount, radius, depth, patch.mesh.vertices)


def _crack(solid, mesh, seed, length, depth, rng) -> Defective:
    """`length` is half the crack's; its width follows the depth."""
    unit = 0.5 * exact.norm(np.ptp(mesh.vertices, axis=0))
    normal = vertex_normals(mesh)
    depth = min(depth, 0.6 * _thickness(solid, mesh.vertices[seed], normal[seed], unit))
    width = np.clip(0.6 * depth, 0.015 * unit, 0.035 * unit)
    path, facing = _walk(mesh, normal, seed, length, 0.02 * unit, rng)
    share = np.linspace(-1, 1, len(path))
    widths = width * (0.25 + 0.75 * (1 - share * share))
    tree = cKDTree(path)

    def groove(vertices, normals):
        distance, nearest = tree.query(vertices, distance_upper_bound=width)
        nearest = np.minimum(nearest, len(path) - 1)  # farther ones: infinite distance
        q = distance / widths[nearest]
        return np.where((q < 1) & (exact.dot(normals, facing[nearest]) > 0), 1 - np.minimum(q, 1), 0) * (
            1 - 0.7 * np.square(share[nearest])
        )

    near = tree.query(mesh.vertices, distance_upper_bound=3 * width)[0] < 3 * width
    fine, spread = refine(mesh, near, _levels(mesh, near, width / 4))
    normals = spread @ normal
    normals /= np.maximum(exact.norm(normals), 1e-9)[:, None]
    amount = groove(fine.vertices, normals)
    if not (amount > THRESHOLD).any():
        raise NoPlace("the crack lies off the surface")
    moved = Mesh(fine.vertices - depth * amount[:, None] * normals, fine.faces)
    return Defective(moved, amount / amount.max(), length, depth, fine.vertices)


def _walk(mesh: Mesh, normal, seed: int, length: float, step: float, rng) -> tuple[np.ndarray, np.ndarray]:
    """Jittered path on the surface through the seed, `length` to either side: points [K, 3] and normals [K, 3],
    finely spaced.
    """
    tree = cKDTree(mesh.vertices)
    heading = np.cross(normal[seed], rng.normal(size=3))
    sides = []
    for sign in (-1, 1):
        at, up, ahead = mesh.vertices[seed], normal[seed], sign * heading
        points, ups = [at], [up]
        for _ in range(max(int(length / step), 3)):
            ahead = ahead - exact.dot(ahead, up) * up
            ahead = ahead / max(exact.norm(ahead), 1e-9)
            ahead = ahead + rng.normal(0, 0.45) * np.cross(up, ahead)
            target = at + step * ahead / exact.norm(ahead)
            nearest = tree.query(target)[1]
            up = normal[nearest]
            at = target - exact.dot(target - mesh.vertices[nearest], up) * up
            if exact.norm(at - points[-1]) < 0.3 * step or exact.dot(up, ups[-1]) < 0.2:  # an edge too sharp to cross
                break
            points.append(at)
            ups.append(up)
        sides.append((points, ups))
    points = np.array(sides[0][0][:0:-1] + sides[1][0])
    ups = np.array(sides[0][1][:0:-1] + sides[1][1])
    if len(points) < 0.5 * length / step:
        raise NoPlace("no room for the crack")
    at = np.linspace(0, len(points) - 1, 6 * len(points))
    fine = [np.stack([np.interp(at, np.arange(len(points)), x[:, i]) for i in range(3)], 1) for x in (points, ups)]
    return fine[0], fine[1]


def _part(mesh: Mesh, share: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """A direction [3] and an offset that cut off about `share` of the surface: one of the slenderest of several
    drawn parts.
    """
    area = _vertex_area(mesh)
    principal = exact.principal_axes(mesh.vertices)
    axes = np.concatenate([rng.normal(size=(14, 3)), principal, -principal])
    axes /= exact.norm(axes)[:, None]
    options = []
    for axis in axes:
        height = exact.times(mesh.vertices, axis)
        order = np.argsort(height, kind="stable")
        offset = height[order][np.searchsorted(np.cumsum(area[order]), 1 - share).clip(max=len(order) - 1)]
        beyond = height > offset
        reach = height.max() - offset
        band = mesh.vertices[np.abs(height - offset) < 0.05 * np.ptp(height)]
        across = band - np.outer(exact.times(band, axis), axis)
        across = across - exact.mean(across)
        width = np.sqrt(exact.mean(exact.dot(across, across))) + 1e-6
        options.append((reach / width, axis, offset, beyond))
    options.sort(key=lambda option: -option[0])
    _, axis, offset, _ = options[int(rng.integers(4))]
    return axis, float(offset)


def _break(solid, mesh, share, rough, rng) -> Defective:
    axis, offset = _part(mesh, share, rng)
    unit = 0.5 * exact.norm(np.ptp(mesh.vertices, axis=0))
    coarse, fine = waves(rng, 6, (0.3 * unit, 0.8 * unit)), waves(rng, 8, (0.06 * unit, 0.16 * unit))

    def cut(p):
        along = exact.times(p, axis)
        across = p - np.outer(along, axis)
        return along - offset + rough * (0.8 * coarse(across) + 0.25 * fine(across))

    def field(p):
        return np.maximum(solid.field(p), (0.5 * cut(p)).astype(np.float32))

    height = exact.times(mesh.vertices, axis).max() - offset
    broken = mesh_field(field, solid.half, fitting_resolution(*solid))
    # On the fracture the cut's field is zero and the solid's negative, elsewhere the other way round: their difference
    # changes sign at the edge between the two.
    lead = 0.5 * cut(broken.vertices) - solid.field(broken.vertices.astype(np.float32))
    amount = np.clip(THRESHOLD + lead / unit, 0, 1)
    if (amount > THRESHOLD).sum() < 12:
        raise NoPlace("the cut misses the body")
    area = exact.total(_vertex_area(broken)[amount > THRESHOLD]) * _total_area(broken)
    return Defective(broken, amount, float(np.sqrt(area / np.pi)), float(height), broken.vertices)


def _total_area(mesh: Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return float(0.5 * exact.total(exact.norm(np.cross(b - a, c - a))))


def _bend(mesh, share, angle, rng) -> Defective:
    axis, offset = _part(mesh, share, rng)
    height = exact.times(mesh.vertices, axis) - offset
    beyond = height > 0
    graph = edge_graph(mesh)
    _, label = csgraph.connected_components(graph[beyond][:, beyond], directed=False)
    part = np.zeros(len(mesh.vertices), bool)
    part[np.flatnonzero(beyond)[label == np.bincount(label).argmax()]] = (
        True  # several parts may lie beyond the plane: the largest
    )
    reach = height[part].max()
    root = exact.mean(mesh.vertices[part & (height < 0.15 * reach)])
    across = np.cross(axis, rng.normal(size=3))
    across /= exact.norm(across)
    ramp = np.clip(height / (rng.uniform(0.3, 0.6) * reach), 0, 1)
    turn = np.where(part, angle * ramp * ramp * (3 - 2 * ramp), 0)[:, None]
    arm = mesh.vertices - root
    along = exact.times(arm, across)[:, None] * across
    turned = along + exact.cos(turn) * (arm - along) + exact.sin(turn) * np.cross(across, arm)
    shift = exact.norm(turned - arm)
    curving = np.where(part, 4 * ramp * (1 - ramp), 0)  # the rate at which the angle grows, over its largest
    if (curving > THRESHOLD).sum() < 12:
        raise NoPlace("the bend is smaller than the mesh")
    return Defective(Mesh(root + turned, mesh.faces), curving, float(reach), float(shift.max()), mesh.vertices)
