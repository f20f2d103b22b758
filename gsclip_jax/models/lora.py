"""LoRA on both linears of every MLP of a vision tower: pure functions over a dict of arrays.

Axes: L layers, W width, R rank. Source: GS-CLIP, depth stream (rank 8, alpha 16, dropout 0.1). The factor
alpha / rank = 2 is an argument of the functions that apply the factors, not stored with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gsclip_jax.models.clip_config import ClipConfig
from gsclip_jax.models.precision import product, widened


def init_lora(key: jax.Array, cfg: ClipConfig, rank: int = 8) -> dict[str, dict[str, jax.Array]]:
    """Factors for the vision tower of `cfg`, float32: {fc: {a [L,W,R], b [L,R,4W]}, proj: {a [L,4W,R], b [L,R,W]}}.

    `a` is uniform as a torch linear's default (bound 1/sqrt(fan in)), `b` zero: training starts at the plain tower.

    Raises:
      ValueError: rank below 1.
    """
    if rank < 1:
        raise ValueError(f"LoRA rank is {rank}; give at least 1")
    layers, width = cfg.vision_layers, cfg.vision_width
    params = {}
    for name, d_in, d_out in (("fc", width, 4 * width), ("proj", 4 * width, width)):
        key, sub = jax.random.split(key)
        bound = 1 / math.sqrt(d_in)
        params[name] = {
            "a": jax.random.uniform(sub, (layers, d_in, rank), minval=-bound, maxval=bound),
            "b": jnp.zeros((layers, rank, d_out)),
        }
    return params


def lora_delta(
    factors: Mapping[str, jax.Array], x: jax.Array, *, scale: float, dropout: float = 0.0, key: jax.Array | None = None
) -> jax.Array:
    """scale * (dropout(x) a) b for one layer: x[...,I] in the tower's dtype, a[I,R], b[R,O] float32 -> float32 [...,O].

    The factors are never rounded, and their gradients are summed in float32, whatever the tower computes in. No key, no dropout.
    """
    if key is not None and dropout > 0:
        keep = jax.random.bernoulli(key, 1 - dropout, x.shape)
        x, scale = jnp.where(keep, x, 0), scale / (1 - dropout)  # dividing x itself would round it
    return widened(widened(x, factors["a"]) * scale, factors["b"])


def merge_lora(blocks: Mapping[str, Any], lora: Mapping[str, Any], scale: float = 2.0) -> dict[str, Any]:
    """Blocks of a tower with the low-rank products added to the MLP kernels; the inputs stay as they are."""
    products = {name: scale * product("lir,lro->lio", lora[name]["a"], lora[name]["b"]) for name in ("fc", "proj")}
    mlp = dict(blocks["mlp"])
    for name, delta in products.items():
        mlp[f"{name}_kernel"] = mlp[f"{name}_kernel"] + delta
    return {**blocks, "mlp": mlp}
