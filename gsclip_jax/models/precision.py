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


def widened(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x[...,I] of any floating dtype times a float32 kernel [I,O] -> float32 [...,O]; so are the sums of both gradients.

    x goes in as it is: for the backward pass nothing wider than x is kept.
    """
    return lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision=EXACT, preferred_element_type=jnp.float32)
