"""From view maps to points. Axes: B objects, V views, h w cells of a map, M scored points, C channels."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

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


def read_pixels(maps: jax.Array, pixel: jax.Array, image_size: int) -> jax.Array:
    """Map values at pixels, as if upsampled to image_size first: maps [B,V,h,w,C], pixel [B,V,M,2] -> [B,V,M,C]."""
    batch, views, height, width, channels = maps.shape
    flat = maps.astype(jnp.float32).reshape(batch, views, height * width, channels)

    def read(row: jax.Array, column: jax.Array) -> jax.Array:
        return jnp.take_along_axis(flat, (row * width + column)[..., None], axis=2)

    if height == width == image_size:
        pixel = jnp.clip(pixel.astype(jnp.int32), 0, image_size - 1)
        return read(pixel[..., 1], pixel[..., 0])
    left, right, across = _corner(pixel[..., 0], width, image_size)
    top, bottom, down = _corner(pixel[..., 1], height, image_size)
    across, down = across[..., None], down[..., None]
    upper = read(top, left) * (1 - across) + read(top, right) * across
    lower = read(bottom, left) * (1 - across) + read(bottom, right) * across
    return upper * (1 - down) + lower * down


def lift(maps: jax.Array, pixel: jax.Array, visible: jax.Array, valid: jax.Array, image_size: int) -> jax.Array:
    """Mean over the views that see a point of the map's value at the point's pixel.

    Args:
      maps: [B,V,h,w,C] or [B,V,h,w]; h, w may be the patch grid: interpolating there at the pixel equals upsampling to
        image_size and reading the pixel.
      pixel: int [B,V,M,2], x (column) and y (row) in the image_size picture.
      visible: bool [B,V,M]; points that no view sees should hold their nearest visible neighbour's views and pixels.
      valid: bool [B,M].
    Returns: float32 [B,M,C] or [B,M]; 0 for invalid points and for points without any view (released: NaN).
    """
    single = maps.ndim == 4
    values = read_pixels(maps[..., None] if single else maps, pixel, image_size)
    weight = (visible & valid[:, None]).astype(jnp.float32)
    total = jnp.einsum("bvmc,bvm->bmc", values, weight, precision=EXACT)
    points = total / jnp.maximum(weight.sum(1), 1)[..., None]
    return points[..., 0] if single else points
