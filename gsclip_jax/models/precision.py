"""In which precision matrix products are taken: float32 stays float32 on every device.

TPUs take the products of float32 arrays in bfloat16 (8 bits of the mantissa), GPUs in TF32 (11 bits), unless a product names its
precision. What is computed in bfloat16 here is the vision tower, and only where `ClipConfig.dtype` says so; all else (learned
parameters, prompts, the text tower, GDDM, SRM, similarities, maps and points) names `EXACT`, whose gradients are taken likewise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

EXACT = lax.Precision.HIGHEST


def product(subscripts: str, *operands: jax.Array) -> jax.Array:
    """`jnp.einsum` of arrays of one dtype in that dtype: EXACT for float32, the device's own product for bfloat16."""
    return jnp.einsum(subscripts, *operands, precision=EXACT if operands[0].dtype == jnp.float32 else None)


@jax.custom_vjp
def widened(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x[...,I] of any floating dtype times a float32 kernel [I,O] -> float32 [...,O]; so are the sums of both gradients.

    x goes in as it is: for the backward pass nothing wider than x is kept.
    """
    return _wide(x, kernel, (x.ndim - 1,), (0,))


def _wide(x: jax.Array, y: jax.Array, over_x: tuple[int, ...], over_y: tuple[int, ...]) -> jax.Array:
    return lax.dot_general(x, y, ((over_x, over_y), ((), ())), precision=EXACT, preferred_element_type=jnp.float32)


def _widened_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return widened(x, kernel), (x, kernel)


def _widened_backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """JAX's own rule puts the gradient g[...,O] first in the kernel's product, which XLA turns on a CPU (a copy with its rows as
    columns): of LoRA's factors one side is R wide and the other thousands, and a third of a step went into that. Here the
    narrow one is first."""
    x, kernel = kept
    last = x.ndim - 1
    rows = tuple(range(last))
    narrow = kernel.shape[0] <= kernel.shape[1]
    of_kernel = _wide(x, g, rows, rows) if narrow else _wide(g, x, rows, rows).T
    return _wide(g, kernel, (last,), (1,)).astype(x.dtype), of_kernel.astype(kernel.dtype)


widened.defvjp(_widened_forward, _widened_backward)
