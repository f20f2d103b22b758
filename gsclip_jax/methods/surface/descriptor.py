"""The surface stream: every scored point's neighbourhood as a token that is compared with the CLIP's sentences.

Ours, not the paper's (docs/fidelity.md): nine views of a few hundred pixels show a crack as a pixel or two, the cloud holds
dozens of points of it. A neighbourhood is described at four sizes, next to its surroundings and to the whole object, and by how
far the point is out of place under the body's own symmetries (symmetry.py), as dents and bends are smooth nearby; a small network
that was trained with the embedded CLIP puts it into the joint embedding, where T_N and T_A say how defective it is.
Unorganised scans alone: records of organised ones keep no neighbours. How far a neighbourhood reaches depends on the number of
scored points and of neighbours: the embedded network knows those of the embedded default.

Axes: B objects, M points, K neighbours, F numbers of a description, E embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from gsclip_jax.methods.surface.symmetry import residuals
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.precision import EXACT

ROUNDS = (1, 2, 4, 8)  # of averaging over the K nearest; the reach grows with their square root
AROUND = 24  # rounds that make a point's surroundings, over every fourth neighbour
FIRST, LATER = 4, 6  # numbers of the smallest neighbourhood and of each larger one
SMOOTHED = (0, 4)  # rounds of averaging over what the body's own symmetries leave
SYMMETRY = 5  # numbers of each
DESCRIPTION = 3 * (FIRST + LATER * (len(ROUNDS) - 1) + SYMMETRY * len(SMOOTHED))
WIDTHS = (128, 128)
FLOOR = 1e-4  # of shares, under their logarithm: what float32 resolves
LEFT = 3e-3  # of what a symmetry leaves, likewise: what sampling and noise leave of a good one
_SIX = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))  # places of a symmetric 3 x 3 matrix
Params = dict[str, Any]


def describe(xyz: jax.Array, neighbours: jax.Array, valid: jax.Array) -> jax.Array:
    """What the neighbourhood of every point looks like, whatever the unit, place and attitude of the scan.

    Shares of the smallest and the middle eigenvalue of the neighbours' covariance, how far the point lies off their plane and
    off their middle, and how much the plane turns from one size to the next; what the body's nearest symmetries leave there; all
    of it as it is, less the surroundings', and in standard deviations over the object. Only shapes, no densities: how close the
    points lie says how it was scanned.

    Args:
      xyz: float [B,M,3].
      neighbours: int [B,M,K], nearest first, the point itself included.
      valid: bool [B,M]; others get zeros and have no say.

    Returns: float32 [B,M,DESCRIPTION].
    """
    return jax.vmap(_describe)(xyz.astype(jnp.float32), neighbours, valid)


def _describe(xyz: jax.Array, near: jax.Array, valid: jax.Array) -> jax.Array:
    kept = valid[:, None].astype(jnp.float32)
    total = jnp.maximum(kept.sum(), 1)
    xyz = jnp.where(valid[:, None], xyz, 0)  # empty cells may be NaN
    xyz = (xyz - xyz.sum(0) / total) * kept
    xyz = xyz / jnp.maximum(jnp.abs(xyz).max(), 1e-30)
    weight = kept[near, 0]  # [M,K]
    weight = weight / jnp.maximum(weight.sum(1, keepdims=True), 1)

    def average(values, share=weight, near=near):
        """Means [M,C] of values [M,C] over the neighbours."""
        return jnp.einsum("mk,mkc->mc", share, values[near], precision=EXACT)

    def wider(_, state):
        """Means and covariances of the neighbours' neighbourhoods together: only differences of near places, so float32 holds."""
        mean, spread = state[near, :3], state[near, 3:]  # [M,K,3], [M,K,6]
        middle = jnp.einsum("mk,mki->mi", weight, mean, precision=EXACT)
        off = mean - middle[:, None]
        between = jnp.stack([off[..., i] * off[..., j] for i, j in _SIX], -1)
        return jnp.concatenate([middle, jnp.einsum("mk,mkc->mc", weight, spread + between, precision=EXACT)], 1)

    state, done = jnp.concatenate([xyz, jnp.zeros((len(xyz), 6))], 1), 0
    found, normals = [], []
    for rounds in ROUNDS:
        state, done = jax.lax.fori_loop(done, rounds, wider, state), rounds
        size = jnp.maximum(state[:, 3] + state[:, 6] + state[:, 8], 1e-20)
        matrix = jnp.stack([state[:, 3 + _SIX.index((min(i, j), max(i, j)))] for i in range(3) for j in range(3)], -1)
        least, middle, normal = principal(matrix.reshape(-1, 3, 3) / size[:, None, None])
        off = (xyz - state[:, :3]) / jnp.sqrt(size)[:, None]
        above = jnp.abs((off * normal).sum(-1))
        beside = jnp.sqrt(jnp.maximum(jnp.square(off).sum(-1) - jnp.square(above), 0))
        found += [jnp.log(x + FLOOR) for x in (least, middle)] + [jnp.log(x + 1e-3) for x in (above, beside)]
        if normals:
            found += [jnp.log(1.01 - jnp.abs((normal * other).sum(-1))) for other in (normals[-1], normals[0])]
        normals.append(normal)

    left = jnp.concatenate(residuals(xyz, normals[0], valid)).T  # [M,2T]
    done = 0
    for rounds in SMOOTHED:
        left = jax.lax.fori_loop(done, rounds, lambda _, x: average(x), left)
        off, turned = jnp.split(left, 2, axis=1)
        numbers = off[:, 0], off.min(1), jnp.median(off, 1), turned.min(1), jnp.median(turned, 1)
        found, done = found + [jnp.log(x + LEFT) for x in numbers], rounds

    own = average(jnp.stack(found, -1))
    far, share = (near[:, 3::4], weight[:, 3::4]) if near.shape[1] > 3 else (near, weight)
    share = share / jnp.maximum(share.sum(1, keepdims=True), 1e-6)
    around = jax.lax.fori_loop(0, AROUND, lambda _, x: average(x, share, far), own)
    middle = (own * kept).sum(0) / total
    scatter = jnp.sqrt((jnp.square(own - middle) * kept).sum(0) / total)
    return jnp.concatenate([own, own - around, (own - middle) / (scatter + 0.1)], 1) * kept


def principal(matrices: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Smallest and middle eigenvalue [...] and unit eigenvector of the smallest [...,3] of symmetric [...,3,3] of trace one.

    In closed form (Smith 1961; the vector as the longest cross product of two rows of A - l_0): a solver for each of a hundred
    thousand small matrices takes minutes.
    """
    centred = matrices - jnp.eye(3) / 3
    spread = jnp.sqrt(jnp.square(centred).sum((-2, -1)) / 6)
    unit = centred / jnp.where(spread > 0, spread, 1.0)[..., None, None]
    a, b, c = (unit[..., row, :] for row in range(3))
    angle = jnp.arccos(jnp.clip((a * jnp.cross(b, c)).sum(-1) / 2, -1, 1)) / 3
    largest, least = (1 / 3 + 2 * spread * jnp.cos(angle + turn) for turn in (0.0, 2 * jnp.pi / 3))
    a, b, c = (matrices[..., row, :] - least[..., None] * jnp.eye(3)[row] for row in range(3))
    crossed = jnp.stack([jnp.cross(a, b), jnp.cross(b, c), jnp.cross(c, a)], -2)  # [...,3,3]
    length = jnp.square(crossed).sum(-1)
    longest = jnp.take_along_axis(crossed, length.argmax(-1)[..., None, None], -2)[..., 0, :]
    return jnp.maximum(least, 0), jnp.maximum(1 - largest - least, 0), normalise(longest)


def init_surface(key: jax.Array, embed_dim: int, widths: Sequence[int] = WIDTHS) -> Params:
    """{mean, scale [F] of descriptions; layers: {"0": {kernel, bias}, ...}}, the last one into the joint embedding."""
    sizes = (DESCRIPTION, *widths, embed_dim)
    layers = [
        {"kernel": jax.random.normal(k, (into, out)) * (2 / into) ** 0.5, "bias": jnp.zeros(out)}
        for k, into, out in zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
    ]
    named = {f"{number}": layer for number, layer in enumerate(layers)}
    return {"mean": jnp.zeros(DESCRIPTION), "scale": jnp.ones(DESCRIPTION), "layers": named}


def encode_surface(params: Params, description: jax.Array) -> jax.Array:
    """Descriptions [...,F] -> unit tokens [...,E], float32."""
    x = jnp.clip((description.astype(jnp.float32) - params["mean"]) / params["scale"], -4, 4)
    *hidden, last = (params["layers"][name] for name in sorted(params["layers"]))
    for layer in hidden:
        x = jax.nn.gelu(jnp.matmul(x, layer["kernel"], precision=EXACT) + layer["bias"])
    return normalise(jnp.matmul(x, last["kernel"], precision=EXACT) + last["bias"])
