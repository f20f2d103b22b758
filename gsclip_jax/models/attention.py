"""Softmax attention by backend: cuDNN's flash kernels on NVIDIA GPUs in half precision, plain products elsewhere.

Two heads at a time take half the time on one CPU device (benchmarks/attention.md); that way does not hold yet for batches that
are split over devices, nor for programs that a CPU compiles or exports for others, so it is not taken.

The weights of plain products, T numbers for each of S, are computed again in the backward pass, as in flash kernels: kept, they
were half of what a training step holds.

Axes: B images or texts, T queries, S keys, H heads, D width of a head.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from gsclip_jax.models.precision import product


def attend(q_bthd: jax.Array, k_bshd: jax.Array, v_bshd: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """softmax(q k^T / sqrt(D)) v per head, [B,T,H,D]; softmax in float32.

    float32 arrays never take the flash kernels: those multiply in half precision.

    Args:
      mask: bool [T,S] or [B,T,S], false where attention is forbidden.
    """
    if mask is None and flash(q_bthd.dtype, q_bthd.shape[-1]):
        return jax.nn.dot_product_attention(q_bthd, k_bshd, v_bshd, implementation="cudnn")
    return _plain(q_bthd, k_bshd, v_bshd, mask)


@functools.partial(jax.checkpoint, prevent_cse=False)  # in the scan over layers the two passes can share nothing
def _plain(q_bthd: jax.Array, k_bshd: jax.Array, v_bshd: jax.Array, mask: jax.Array | None) -> jax.Array:
    scores = product("bthd,bshd->bhts", q_bthd * q_bthd.shape[-1] ** -0.5, k_bshd).astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask if mask.ndim == 2 else mask[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_bshd.dtype)
    return product("bhts,bshd->bthd", weights, v_bshd)


@functools.lru_cache(maxsize=32)
def flash(dtype: jnp.dtype, width: int) -> bool:
    """Whether cuDNN's kernels are here and take heads of that width in that type: asked once, in the place where they refuse."""
    if jax.default_backend() != "gpu" or dtype not in (jnp.bfloat16, jnp.float16):
        return False
    one = jax.ShapeDtypeStruct((1, 2, 1, width), dtype)
    try:
        jax.eval_shape(functools.partial(jax.nn.dot_product_attention, implementation="cudnn"), one, one, one)
    except (RuntimeError, NotImplementedError, ValueError):  # no cuDNN, an old one or an old GPU, or another width
        return False
    return True
