"""Smoothing of point scores: over the grid of organised scans, over neighbours in space of others.

Axes: B objects, M scored points, K neighbours, S side of a square grid.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gsclip_jax.method import Arrays
from gsclip_jax.models.precision import EXACT


@dataclass(frozen=True)
class Smoothing:
    """How far scores are smoothed.

    Fields:
      sigma: organised scans, in grid cells.
      width: unorganised scans, in mean distances to the K-th neighbour.
      rounds: times the latter is applied.
    """

    sigma: float = 4.0
    width: float = 0.5
    rounds: int = 1


def smooth(points: jax.Array, batch: Arrays, cfg: Smoothing, *, storage: bool = False, padding: bool = False) -> jax.Array:
    """Organised scans: Gaussian over the grid; others: over 3D neighbours. [B,M] -> [B,M], 0 where not valid.

    Args:
      storage: released: the Gaussian over the storage order of unorganised scans too.
      padding: released: empty cells keep what the Gaussian spills into them.
    """
    near = smooth_neighbours(
        points, batch["xyz"], batch["neighbours"], batch["valid"], width=cfg.width, rounds=cfg.rounds
    )
    side = round(points.shape[1] ** 0.5)
    if side * side != points.shape[1]:
        return near * batch["valid"]
    on_grid = jnp.ones_like(batch["organised"]) if storage else batch["organised"]
    kept = 1 if padding else batch["valid"]
    return jnp.where(on_grid[:, None], smooth_grid(points, sigma=cfg.sigma), near) * kept


@functools.lru_cache(maxsize=32)
def _gaussian_matrix(size: int, sigma: float, truncate: float) -> np.ndarray:
    """[size, size] one-dimensional Gaussian with mirrored borders (d c b a | a b c d | d c b a)."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    folded = (np.arange(size)[:, None] + offsets) % (2 * size)
    source = np.where(folded < size, folded, 2 * size - 1 - folded)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.repeat(np.arange(size), offsets.size), source.ravel()), np.tile(weights, size))
    return matrix


def _smooth_rows(grid: jax.Array, matrix: np.ndarray) -> jax.Array:
    """matrix [S,S] (float64, rows summing to one) @ grid [n,S,S], right to the last float32 digit.

    Rankings of pooled points feel the round-off of a plain float32 sum. So both factors are split into a coarse
    fixed-point part, whose products and sums fit float32 without rounding, and a small rest.
    """
    coarse_matrix = np.round(matrix * 2.0**12) / 2.0**12
    rest_matrix = (matrix - coarse_matrix).astype(np.float32)
    exponent = jnp.frexp(jnp.abs(grid).max((1, 2), keepdims=True))[1]  # per map: no dependence on the batch
    step = jnp.ldexp(jnp.float32(1), exponent - 11)
    coarse = lax.stop_gradient(jnp.round(grid / step) * step)

    def times(rows: np.ndarray, values: jax.Array) -> jax.Array:
        return jnp.einsum("yh,nhw->nyw", rows, values, precision=EXACT)

    coarse_matrix = coarse_matrix.astype(np.float32)
    return times(coarse_matrix, coarse) + (times(coarse_matrix, grid - coarse) + times(rest_matrix, grid))


def smooth_grid(points: jax.Array, *, sigma: float = 4.0, truncate: float = 4.0) -> jax.Array:
    """Gaussian over the square grid of an organised scan; equals scipy.ndimage.gaussian_filter (mode reflect).

    Args:
      points: [...,S,S], or [...,M] with M = S*S in row-major order. (On unorganised scans this is the released code's
        smoothing over the storage order, which means nothing; use `smooth_neighbours`.)
      sigma: in grid cells; truncate: radius in sigmas.
    Returns: float32 of the given shape.
    Raises: ValueError where the last axis of [...,M] is no square number.
    """
    shape = points.shape
    if len(shape) < 2 or shape[-1] != shape[-2]:
        side = int(round(shape[-1] ** 0.5))
        if side * side != shape[-1]:
            raise ValueError(f"smooth_grid: {shape[-1]} points are no square grid; use smooth_neighbours")
    else:
        side = shape[-1]
    matrix = _gaussian_matrix(side, float(sigma), float(truncate))
    grid = points.astype(jnp.float32).reshape(-1, side, side)
    for _ in range(2):  # one axis, then the other
        grid = jnp.swapaxes(_smooth_rows(grid, matrix), 1, 2)
    return grid.reshape(shape)


def smooth_neighbours(points: jax.Array, xyz: jax.Array, neighbours: jax.Array, valid: jax.Array, *,
                      width: float = 0.5, rounds: int = 1) -> jax.Array:
    """Gaussian mean over 3D neighbours, for unorganised scans.

    Args:
      points: [B,M] scores.
      xyz: [B,M,3], any unit.
      neighbours: int [B,M,K], nearest first, the point itself included.
      valid: bool [B,M]; invalid points neither give nor take (they keep their value).
      width: sigma in units of the object's mean distance to the K-th neighbour, so that the unit does not matter.
      rounds: times applied; the smoothing reaches sqrt(rounds) times as far.
    Returns: float32 [B,M].
    """
    take = jax.vmap(lambda values, at: values[at])
    gives = take(valid, neighbours) & valid[..., None]  # [B,M,K]
    squared = jnp.where(gives, jnp.square(take(xyz, neighbours) - xyz[:, :, None]).sum(-1), 0)  # empty cells may be NaN
    sigma = width * jnp.sqrt(squared.max(-1)).sum(-1) / jnp.maximum(valid.sum(-1), 1)
    spread = jnp.maximum(jnp.square(sigma), 1e-36)[:, None, None]  # coincident points only: a plain mean
    weight = jnp.where(gives, jnp.exp(-0.5 * squared / spread), 0)
    weight = weight / jnp.maximum(weight.sum(-1, keepdims=True), 1e-30)
    points = points.astype(jnp.float32)
    for _ in range(rounds):
        points = jnp.where(valid, (take(points, neighbours) * weight).sum(-1), points)
    return points
