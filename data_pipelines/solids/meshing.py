"""From a signed distance field to a triangle mesh, and from a mesh to evenly spread points. numpy and scipy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from data_pipelines.solids import exact
from data_pipelines.solids.fields import Field

_CORNERS = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
_EDGES = np.array([(a, b) for a in range(8) for b in range(a + 1, 8) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1])


class Mesh(NamedTuple):
    """vertices float64 [Q, 3]; faces int64 [F, 3], counter-clockwise seen from outside."""

    vertices: np.ndarray
    faces: np.ndarray


def pieces(mesh: Mesh) -> int:
    """Number of connected surfaces; a void inside is one of its own."""
    return connected_components(edge_graph(mesh), directed=False)[0]


def fitting_resolution(field: Field, half: np.ndarray, finest: int = 88) -> int:
    """Cells along the longest side for at most some 25 000 vertices: fewer than `finest` for bodies of much surface."""
    step = 8 * np.max(half) / finest
    blocks = np.ceil(2 * np.asarray(half) / step + 1).astype(int)
    crossed = len(_nonempty(np.indices(blocks).reshape(3, -1).T, field, -0.5 * step * blocks, step))
    return int(round(finest * min(1.0, np.sqrt(2600 / max(crossed, 1)))))


def mesh_field(field: Field, half: np.ndarray, resolution: int) -> Mesh:
    """Closed triangle mesh of {field = 0} in the box [-half, half], `resolution` cells along its longest side.

    Dual mesh ("surface nets", Gibson 1998) evaluated only in blocks near the surface, its vertices pulled onto the
    surface. Edges of the body come out rounded by about one cell. Raises ValueError when the field has no surface in
    the box.
    """
    half = np.asarray(half, np.float64)
    step = 2 * half.max() / resolution
    blocks = np.ceil((2 * half / step + 4) / 4).astype(int)
    cells = 4 * blocks
    low = -0.5 * step * cells
    near = _nonempty(np.indices(blocks).reshape(3, -1).T, field, low, 4 * step)
    near = _nonempty((2 * near[:, None] + _CORNERS).reshape(-1, 3), field, low, 2 * step)
    active = (2 * near[:, None] + _CORNERS).reshape(-1, 3)  # cells that may hold a piece of surface

    strides = np.array([(cells[1] + 1) * (cells[2] + 1), cells[2] + 1, 1])
    values = np.full(np.prod(cells + 1), np.nan, np.float32)
    known = np.zeros(len(values), bool)
    pending = active @ strides
    while len(pending):  # a second time only where a field was steeper than a distance and a piece was missed
        known[pending] = True
        wanted = np.zeros(len(values), bool)
        wanted[(pending[:, None] + _CORNERS @ strides).ravel()] = True
        fresh = np.flatnonzero(wanted & np.isnan(values))
        values[fresh] = field((low + step * np.stack(np.unravel_index(fresh, cells + 1), 1)).astype(np.float32))
        quads = _quads(values, cells, strides)
        pending = np.unique(quads[~known[quads]])
    if not len(quads):
        raise ValueError("the solid has no surface inside its box: check the generator's dimensions")

    active = np.unique(quads)
    of_cell = np.empty(len(values), np.int64)
    of_cell[active] = np.arange(len(active))
    at_corner = values[active[:, None] + _CORNERS @ strides]
    a, b = at_corner[:, _EDGES[:, 0]], at_corner[:, _EDGES[:, 1]]
    cut = (a < 0) != (b < 0)
    t = np.where(cut, a / np.where(cut, a - b, 1), 0)[..., None]
    where = (_CORNERS[_EDGES[:, 0]] * (1 - t) + _CORNERS[_EDGES[:, 1]] * t) * cut[..., None]
    local = exact.total(where.transpose(1, 0, 2)) / cut.sum(1)[:, None]
    start = low + step * (np.stack(np.unravel_index(active, cells + 1), 1) + local)
    vertices = _pull(start, field, at_corner, local, step)

    quad = of_cell[quads]
    corner_xyz = vertices[quad]
    shorter = (exact.norm(corner_xyz[:, 0] - corner_xyz[:, 2]) <= exact.norm(corner_xyz[:, 1] - corner_xyz[:, 3]))[:, None]
    first = np.where(shorter, quad[:, [0, 1, 2]], quad[:, [0, 1, 3]])
    return Mesh(vertices, np.concatenate([first, np.where(shorter, quad[:, [0, 2, 3]], quad[:, [1, 2, 3]])]))


def _quads(values: np.ndarray, cells: np.ndarray, strides: np.ndarray) -> np.ndarray:
    """For every grid edge the surface crosses, the four cells around it [n, 4], counter-clockwise seen from outside."""
    nodes = np.flatnonzero(~np.isnan(values))
    quads = []
    for axis in range(3):
        inner = nodes[nodes // strides[axis] % (cells[axis] + 1) < cells[axis]]
        first, second = values[inner] < 0, values[inner + strides[axis]]
        edge = (first != (second < 0)) & ~np.isnan(second)
        at, out = inner[edge], first[edge]
        u, v = strides[(axis + 1) % 3], strides[(axis + 2) % 3]
        ring = np.stack([at - u - v, at - v, at, at - u], 1)
        quads.append(np.where(out[:, None], ring, ring[:, ::-1]))
    return np.concatenate(quads)


def _nonempty(blocks: np.ndarray, field: Field, low: np.ndarray, side: float) -> np.ndarray:
    """The blocks [n, 3] of the given side that the surface may pass, judged by the distance at their centres."""
    distance = np.abs(field((low + side * (blocks + 0.5)).astype(np.float32)))
    return blocks[distance <= 1.2 * side * np.sqrt(3) / 2]


def _pull(vertices, field: Field, at_corner, local, step: float) -> np.ndarray:
    """Newton steps onto the surface along the gradient of the cell's trilinear interpolant."""
    weight = np.where(_CORNERS == 1, local[:, None], 1 - local[:, None])  # [n, 8, 3]
    slope = np.where(_CORNERS == 1, 1.0, -1.0)
    gradient = (
        np.stack(
            [
                exact.dot(at_corner, slope[:, i] * weight[:, :, (i + 1) % 3] * weight[:, :, (i + 2) % 3])
                for i in range(3)
            ],
            1,
        )
        / step
    )
    scale = np.maximum(exact.dot(gradient, gradient), 0.25)
    start = vertices
    for _ in range(2):
        vertices = vertices - (field(vertices.astype(np.float32)) / scale)[:, None] * gradient
        vertices = start + np.clip(vertices - start, -0.6 * step, 0.6 * step)
    return vertices


def face_normals(mesh: Mesh) -> np.ndarray:
    """Normals [F, 3], twice as long as the faces' areas."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def vertex_normals(mesh: Mesh) -> np.ndarray:
    """Unit normals [Q, 3], area-weighted over the faces around."""
    normal = face_normals(mesh)
    total = np.stack(
        [np.bincount(mesh.faces.ravel(), np.repeat(normal[:, i], 3), len(mesh.vertices)) for i in range(3)], 1
    )
    return total / np.maximum(exact.norm(total), 1e-12)[:, None]


def edge_graph(mesh: Mesh) -> csr_matrix:
    """Symmetric sparse [Q, Q] matrix of edge lengths."""
    i = mesh.faces.ravel()
    j = mesh.faces[:, [1, 2, 0]].ravel()
    rows, columns = np.concatenate([i, j]), np.concatenate([j, i])
    graph = csr_matrix(
        (np.ones(len(rows)), (rows, columns)), (len(mesh.vertices),) * 2
    )  # repeats of an edge are summed here,
    columns = graph.indices
    rows = np.repeat(np.arange(len(mesh.vertices)), np.diff(graph.indptr))
    graph.data = np.maximum(
        exact.norm(mesh.vertices[rows] - mesh.vertices[columns]), 1e-9
    )  # so lengths are put in afterwards
    return graph


def refine(mesh: Mesh, near: np.ndarray, levels: int) -> tuple[Mesh, np.ndarray]:
    """Splits faces with all corners in `near` bool [Q] into four, `levels` times.

    Returns the mesh and, for every vertex, the two vertices of the *previous* numbering it lies between, as rows of a
    sparse [Q', Q] matrix that interpolates any per-vertex quantity. Faces outside `near` are left alone: their
    neighbours' midpoints lie on their edges, so the surface stays closed as long as nothing moves there.
    """
    spread = csr_matrix((np.ones(len(near)), (np.arange(len(near)), np.arange(len(near)))))
    for _ in range(levels):
        chosen = near[mesh.faces].all(1)
        split, kept = mesh.faces[chosen], mesh.faces[~chosen]
        edges = np.sort(np.concatenate([split[:, [0, 1]], split[:, [1, 2]], split[:, [2, 0]]]), 1)
        known, which = np.unique(edges[:, 0] * len(near) + edges[:, 1], return_inverse=True)
        ends = np.stack([known // len(near), known % len(near)], 1)
        middle = (len(near) + which).reshape(3, -1)
        a, b, c = split.T
        ab, bc, ca = middle
        four = [np.stack(corner, 1) for corner in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        rows = np.concatenate([np.arange(len(near)), np.repeat(np.arange(len(ends)), 2) + len(near)])
        columns = np.concatenate([np.arange(len(near)), ends.ravel()])
        weights = np.concatenate([np.ones(len(near)), np.full(2 * len(ends), 0.5)])
        lift = csr_matrix((weights, (rows, columns)), (len(near) + len(ends), len(near)))
        mesh = Mesh(lift @ mesh.vertices, np.concatenate([kept, *four]))
        spread = lift @ spread
        near = np.concatenate([near, np.ones(len(ends), bool)])
    return mesh, spread


def on_faces(values: np.ndarray, corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values [Q, ...] per vertex between the corners [N, 3] of faces, by barycentric weights [N, 3]: [N, ...]."""
    weights = weights.reshape(weights.shape + (1,) * (values.ndim - 1))
    first, second, third = (weights[:, i] * values[corners[:, i]] for i in range(3))
    return first + second + third


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Blue-noise samples of a mesh in random order: faces int64 [count], barycentric weights float64 [count, 3].

    Draws four times as many points uniformly by area and keeps a random maximal set of those at least a radius apart
    (points of opposite normals, the two sides of a thin wall, do not exclude each other). The density follows the
    area only.
    """
    normal = face_normals(mesh)
    area = exact.norm(normal)
    cumulative = np.cumsum(area)
    total = 4 * count
    face = np.searchsorted(cumulative, rng.random(total) * cumulative[-1]).clip(max=len(area) - 1)
    root, other = np.sqrt(rng.random(total)), rng.random(total)
    weights = np.stack([1 - root, root * (1 - other), root * other], 1)
    points = on_faces(mesh.vertices, mesh.faces[face], weights)
    facing = normal[face] / np.maximum(area[face], 1e-15)[:, None]
    apart = _PACKING * np.sqrt(0.5 * cumulative[-1] / count)
    pairs = cKDTree(points).query_pairs(apart, output_type="ndarray")
    pairs = pairs[exact.dot(facing[pairs[:, 0]], facing[pairs[:, 1]]) > -0.2]
    kept = np.flatnonzero(_independent(total, pairs))
    if len(kept) < count:  # rare: fill up with points that were excluded
        rest = np.setdiff1d(np.arange(total), kept)
        kept = np.concatenate([kept, rng.choice(rest, count - len(kept), replace=False)])
    kept = rng.permutation(kept)[:count]
    return face[kept], weights[kept]


# Radius of the discs over sqrt(area / count) at which four-fold crowding leaves some 5% more points than wanted
# (measured).
_PACKING = 0.645


def _independent(count: int, pairs: np.ndarray) -> np.ndarray:
    """Greedy independent set bool [count] in index order (the draws are exchangeable, so this order is random).

    All points with no undecided earlier neighbour are accepted at once and their neighbours dropped, until all are
    decided.
    """
    first, second = pairs.min(1), pairs.max(1)
    accepted, open_ = np.zeros(count, bool), np.ones(count, bool)
    while open_.any():
        blocked = np.zeros(count, bool)
        blocked[second] = True
        chosen = open_ & ~blocked
        accepted |= chosen
        open_ &= ~chosen
        drop = np.zeros(count, bool)
        drop[second[chosen[first]]] = True
        open_ &= ~drop
        live = open_[first] & open_[second]
        first, second = first[live], second[live]
    return accepted
