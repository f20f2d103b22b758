"""How far each point of a body is out of place under the body's own symmetries, found by iterative closest point.

Ours, not the paper's (docs/fidelity.md): nobody has seen the sound object, but most things are made symmetric, and a defect
seldom comes twice. What the body's nearest symmetries map elsewhere than onto its surface is out of place, wherever it lies; of a
body without any, everything is, alike. Unorganised scans alone.

Axes: M points, C candidates, T symmetries kept, Q queries, R points of the reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.models.precision import EXACT

KEPT = 4  # symmetries, the best first
ORDERS = (2, 3, 4, 5, 6)  # of the turns that are tried about each principal axis
PLANES = 12  # reflections that are tried through each principal axis
APART = 20.0  # degrees between two that are kept
REFERENCE, COARSE, FINE = 4096, 256, 1024  # points: of the reference, that choose among the candidates, that refine
ROUNDS = 8  # of refinement
TRIMMED = 0.8  # share of the points that refine: what is out of place has no say
BESIDE = 0.05  # share of the squared distance within the tangent plane, which is mere sampling, that counts
FAR = 0.3  # what is farther off counts no more when candidates are compared; over the root mean square radius
_BLOCK = 64


def residuals(xyz: jax.Array, normals: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What is left between a body and its images under its KEPT nearest symmetries, best first.

    Candidates are turns and reflections about the principal axes of the points; the best few, all different, are refined by
    iterative closest point (point to plane, the worst fifth left out).

    Args:
      xyz: float32 [M,3] of one object, finite, in an order as if drawn at random.
      normals: float32 [M,3], of either sign.
      valid: bool [M]; others have no say.

    Returns: (off [T,M], distance of a point's image from the surface over the root mean square radius; turned [T,M], one less the
      cosine between the image's normal and the surface's), float32.
    """
    kept = valid.astype(jnp.float32)[:, None]
    total = jnp.maximum(kept.sum(), 1)
    xyz = (xyz - (xyz * kept).sum(0) / total) * kept
    xyz = xyz / jnp.maximum(jnp.sqrt(jnp.square(xyz).sum() / total), 1e-30)
    # Records hold points in an order as if drawn at random (clouds/canonical.py): the first are evenly spread, and the same
    # ones in whatever order, unit or place the scan came.
    order = jnp.argsort(~valid, stable=True)[:REFERENCE]
    surface, planes, there = xyz[order], normals[order], valid[order]
    surface = jnp.where(there[:, None], surface, 1e3)

    def to_surface(points):
        """Image points [Q,3] -> distance, nearest reference, signed distance from its plane."""
        near = nearest(points, surface)
        gap = points - surface[near]
        above = (gap * planes[near]).sum(-1)
        return jnp.sqrt(jnp.square(above) + BESIDE * jnp.square(gap).sum(-1)), near, above

    def cost(turn):
        return (jnp.minimum(to_surface(_apply(turn, xyz[order[:COARSE]]))[0], FAR) * there[:COARSE]).sum()

    def refine(turn):
        """Iterative closest point: the turn and shift [3] that bring the image nearest to the surface."""
        points, counted = xyz[order[:FINE]], there[:FINE]

        def icp_step(_, state):
            turn, shift = state
            image = _apply(turn, points) + shift
            far, near, above = to_surface(image)
            use = counted & (far <= jnp.nanquantile(jnp.where(counted, far, jnp.nan), TRIMMED))
            lever = jnp.concatenate([jnp.cross(image, planes[near]), planes[near]], 1) * use[:, None]  # [Q,6]
            normal = jnp.matmul(lever.T, lever, precision=EXACT) + 1e-5 * len(points) * jnp.eye(6)
            step = -jnp.linalg.solve(normal, jnp.matmul(lever.T, above * use, precision=EXACT))
            step_turn = _turn(step[:3])
            return jnp.matmul(step_turn, turn, precision=EXACT), jnp.matmul(step_turn, shift, precision=EXACT) + step[3:]

        return jax.lax.fori_loop(0, ROUNDS, icp_step, (turn, jnp.zeros(3)))

    candidates = _candidates(xyz)
    best = _different(candidates, jax.lax.map(cost, candidates))
    turns, shifts = jax.lax.map(refine, candidates[best])

    def residual(both):
        turn, shift = both
        off, near, _ = to_surface(_apply(turn, xyz) + shift)
        return off * kept[:, 0], (1 - jnp.abs((_apply(turn, normals) * planes[near]).sum(-1))) * kept[:, 0]

    off, turned = jax.lax.map(residual, (turns, shifts))
    by_quality = jnp.argsort(jnp.nanmedian(jnp.where(valid, off, jnp.nan), axis=1))
    return off[by_quality], turned[by_quality]


def nearest(points: jax.Array, reference: jax.Array) -> jax.Array:
    """Index int32 [Q] of the nearest of reference [R,3] to each of points [Q,3], lengths about 1; of squared distances that
    differ by less than one part in 2^(23 - log2 R), or by 1e-6, either may come.

    In blocks, and with the index in the last bits of the distance, so that one minimum does: an argmin takes seven times as long
    on a CPU.
    """
    low = (1 << max(len(reference) - 1, 1).bit_length()) - 1
    numbers = jnp.arange(len(reference), dtype=jnp.int32)

    def block(points):
        squared = sum(jnp.square(points[:, axis, None] - reference[None, :, axis]) for axis in range(3)) + 1e-6
        packed = (jax.lax.bitcast_convert_type(squared, jnp.int32) & ~low) | numbers
        return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(packed, jnp.float32).min(1), jnp.int32) & low

    padded = jnp.pad(points, ((0, -len(points) % _BLOCK), (0, 0))).reshape(-1, _BLOCK, 3)
    return jax.lax.map(block, padded).reshape(-1)[: len(points)]


def _apply(turn: jax.Array, points: jax.Array) -> jax.Array:
    return jnp.matmul(points, turn.T, precision=EXACT)


def _turn(vector: jax.Array) -> jax.Array:
    """Rotation [3,3] about `vector` by its length, in radians (Rodrigues)."""
    angle = jnp.sqrt(jnp.square(vector).sum() + 1e-24)
    x, y, z = vector / angle
    skew = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return jnp.eye(3) + jnp.sin(angle) * skew + (1 - jnp.cos(angle)) * jnp.matmul(skew, skew, precision=EXACT)


def _candidates(xyz: jax.Array) -> jax.Array:
    """Turns and reflections [C,3,3] about and through the principal axes of centred points."""
    axes = jnp.linalg.eigh(jnp.matmul(xyz.T, xyz, precision=EXACT))[1].T  # [3,3], one a row
    lean = (jnp.matmul(xyz, axes.T, precision=EXACT) ** 3).sum(0)  # an eigenvector's sign means nothing; the body's lean does
    axes = axes * jnp.where(lean < 0, -1.0, 1.0)[:, None]
    about = jnp.concatenate([axes * (2 * jnp.pi / order) for order in ORDERS])
    across = jnp.stack([axes * (jnp.pi * plane / PLANES) for plane in range(PLANES)])  # [P,3,3]
    aside = jnp.einsum("paij,aj->pai", jax.vmap(jax.vmap(_turn))(across), jnp.roll(axes, -1, 0), precision=EXACT)
    normals = jnp.concatenate([axes, aside.reshape(-1, 3)])
    mirrors = jnp.eye(3) - 2 * normals[:, :, None] * normals[:, None]
    return jnp.concatenate([jax.vmap(_turn)(about), mirrors])


def _different(candidates: jax.Array, cost: jax.Array) -> jax.Array:
    """Numbers [T] of the cheapest candidates that lie APART of each other, or turn where the other reflects."""
    sense = jnp.sign(jnp.linalg.det(candidates))
    between = jnp.einsum("aij,bij->ab", candidates, candidates, precision=EXACT)  # the trace of one times the other's inverse
    near = (between > 1 + 2 * np.cos(np.radians(APART))) & (sense[:, None] == sense)
    found = []
    for _ in range(KEPT):
        found.append(cost.argmin())
        cost = jnp.where(near[found[-1]], jnp.inf, cost)
    return jnp.stack(found)
