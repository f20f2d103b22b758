"""Layers that several parts share, as pure functions. Axes: ... any leading axes, W width, E embedding, I O width in and out."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from gsclip_jax.models.precision import EXACT

EPSILON = 1e-5  # of every LayerNorm in CLIP and GS-CLIP; the NNX default is 1e-6


def normalise(x: jax.Array) -> jax.Array:
    """x[...,E] divided by its L2 norm, float32; a zero vector stays zero, with a finite gradient."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def init_linear(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """{kernel [I,O], bias [O]}, float32, in torch's default ranges."""
    bound = inputs**-0.5
    kernel, bias = jax.random.split(key)
    return {"kernel": jax.random.uniform(kernel, (inputs, outputs), jnp.float32, -bound, bound),
            "bias": jax.random.uniform(bias, (outputs,), jnp.float32, -bound, bound)}  # fmt: skip


def linear(params: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """x[...,I] of float32 times the kernel, plus the bias: [...,O]."""
    return jnp.matmul(x, params["kernel"], precision=EXACT) + params["bias"]


def layer_norm(params: Mapping[str, jax.Array], x: jax.Array, eps: float = EPSILON) -> jax.Array:
    """LayerNorm of x[...,W] over its last axis: statistics in float32 whatever the input's dtype, result in that dtype.

    Args:
      params: {scale [W], bias [W]}.
    """
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    variance = jnp.square(y - mean).mean(-1, keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(variance + eps)
    return (y * params["scale"] + params["bias"]).astype(x.dtype)
