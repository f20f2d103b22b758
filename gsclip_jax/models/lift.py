"""From view maps to points, and smoothing over the points.

Axes: B objects, V views, h w cells of a map, M scored points, K neighbours, S side of a square grid, C channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gsclip_jax.models.precision import EXACT


@functools.lru_cache(maxsize=32)
def _bilinear_matrix(source: int, target: int) -> np.ndarray:
    """[target, source] weights of bilinear upsampling with align_corners=False."""
    position = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    low = np.minimum(position.astype(np.int64), source - 1)
    high = np.minimum(low + 1, source - 1)
    part = position - low
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target), low), 1 - part)
    np.add.at(matrix, (np.arange(target), high), part)
    return matrix.astype(np.float32)


def upsample(maps: jax.Array, size: int) -> jax.Array:
    """Bilinear (align_corners=False) upsampling: [...,h,w,C] -> [...,size,size,C], float32."""
    height, width = maps.shape[-3:-1]
    rows, columns = _bilinear_matrix(height, size), _bilinear_matrix(width, size)
    return jnp.einsum("yh,...hwc,xw->...yxc", rows, maps.astype(jnp.float32), columns, precision=EXACT)


def _corner(position: jax.Array, cells: int, image_size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pixel coordinate -> (lower cell, upper cell, weight of the upper one)."""
    place = jnp.maximum((position.astype(jnp.float32) + 0.5) * (cells / image_size) - 0.5, 0)
    low = jnp.minimum(place.astype(jnp.int32), cells - 1)
    return low, jnp.minimum(low + 1, cells - 1), place - low


def read_pixels(maps: jax.Array, pix: jax.Array, image_size: int) -> jax.Array:
    """Map values at pixels, as if upsampled to image_size first: maps [B,V,h,w,C], pix [B,V,M,2] -> [B,V,M,C]."""
    batch, views, height, width, channels = maps.shape
    flat = maps.astype(jnp.float32).reshape(batch, views, height * width, channels)

    def read(row: jax.Array, column: jax.Array) -> jax.Array:
        return jnp.take_along_axis(flat, (row * width + column)[..., None], axis=2)

    if height == width == image_size:
        pix = jnp.clip(pix.astype(jnp.int32), 0, image_size - 1)
        return read(pix[..., 1], pix[..., 0])
    left, right, across = _corner(pix[..., 0], width, image_size)
    top, bottom, down = _corner(pix[..., 1], height, image_size)
    across, down = across[..., None], down[..., None]
    upper = read(top, left) * (1 - across) + read(top, right) * across
    lower = read(bottom, left) * (1 - across) + read(bottom, right) * across
    return upper * (1 - down) + lower * down


def lift(maps: jax.Array, pix: jax.Array, seen: jax.Array, valid: jax.Array, image_size: int) -> jax.Array:
    """Mean over the views that see a point of the map's value at the point's pixel.

    Args:
      maps: [B,V,h,w,C] or [B,V,h,w]; h, w may be the patch grid: interpolating there at the pixel equals upsampling to
        image_size and reading the pixel.
      pix: int [B,V,M,2], x (column) and y (row) in the image_size picture.
      seen: bool [B,V,M]; points that no view sees should hold their nearest seen neighbour's views and pixels.
      valid: bool [B,M].
    Returns: float32 [B,M,C] or [B,M]; 0 for invalid points and for points without any view (released: NaN).
    """
    single = maps.ndim == 4
    values = read_pixels(maps[..., None] if single else maps, pix, image_size)
    weight = (seen & valid[:, None]).astype(jnp.float32)
    total = jnp.einsum("bvmc,bvm->bmc", values, weight, precision=EXACT)
    points = total / jnp.maximum(weight.sum(1), 1)[..., None]
    return points[..., 0] if single else points


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
