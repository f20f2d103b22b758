"""GDDM: from per-point features to defect tokens (paper: geometric defect distillation; released: outlier aggregation).

Pure functions over a dict of arrays. Axes: B batch, N points, C point features, Q prototypes, k picked points, K defect
tokens, H heads, D width of a head, W text width (= H * D).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gsclip_jax.models.layers import layer_norm, normalise
from gsclip_jax.models.precision import product


@dataclass(frozen=True)
class GddmConfig:
    text_dim: int = 768
    point_dim: int = 128
    prototypes: int = 32
    top_k: int = 12
    defect_tokens: int = 1  # the paper's equation keeps all top_k, the released code one
    heads: int = 4
    norm_eps: float = 1e-5
    weight_by_score: bool = True  # False (released): scores only choose, so the prototypes never learn

    def __post_init__(self) -> None:
        if self.text_dim % self.heads:
            raise ValueError(f"GddmConfig: text_dim {self.text_dim} is not a multiple of heads {self.heads}")
        if not 1 <= self.defect_tokens <= self.top_k:
            raise ValueError(f"GddmConfig: defect_tokens {self.defect_tokens} must lie in 1..top_k = {self.top_k}")


DEFAULT = GddmConfig()


@functools.partial(jax.jit, static_argnames="cfg")
def init_gddm(key: jax.Array, cfg: GddmConfig = DEFAULT) -> dict:
    """{prototypes [Q,C], proj {kernel [C,W], bias}, attn {qkv_kernel [W,3,H,D], qkv_bias [3,H,D], out_kernel [H,D,W],
    out_bias [W]}, norm {scale, bias}, ffn {kernel [W,W], bias}}, float32."""
    width, heads = cfg.text_dim, cfg.heads
    parts = jax.random.split(key, 5)

    def linear(part: jax.Array, shape: tuple[int, ...], inputs: int) -> jax.Array:
        return jax.random.normal(part, shape, jnp.float32) / math.sqrt(inputs)

    return {
        "prototypes": jax.random.normal(parts[0], (cfg.prototypes, cfg.point_dim), jnp.float32),
        "proj": {"kernel": linear(parts[1], (cfg.point_dim, width), cfg.point_dim), "bias": jnp.zeros(width)},
        "attn": {"qkv_kernel": linear(parts[2], (width, 3, heads, width // heads), width),
                 "qkv_bias": jnp.zeros((3, heads, width // heads)),
                 "out_kernel": linear(parts[3], (heads, width // heads, width), width), "out_bias": jnp.zeros(width)},
        "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        "ffn": {"kernel": linear(parts[4], (width, width), width), "bias": jnp.zeros(width)},
    }


def outlier_scores(prototypes: jax.Array, points: jax.Array) -> jax.Array:
    """s = 1 - max_j cos(f, p_j): prototypes [Q,C], points [B,N,C] -> [B,N] in [0, 2]."""
    cosine = product("bnc,qc->bnq", normalise(points), normalise(prototypes))
    return 1 - cosine.max(-1)


def _attend(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Multi-head self-attention without mask: [B,k,W] -> [B,k,W]. A bias of the keys cancels in the softmax: without a gradient,
    since Adam would make steps of its round-off."""
    bias = jnp.where(jnp.arange(3)[:, None, None] == 1, lax.stop_gradient(params["qkv_bias"]), params["qkv_bias"])
    q, k, v = jnp.moveaxis(product("bkw,wthd->bkthd", x, params["qkv_kernel"]) + bias, 2, 0)
    weights = jax.nn.softmax(product("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1]), axis=-1)
    return product("bhqk,bkhd,hdw->bqw", weights, v, params["out_kernel"]) + params["out_bias"]


def aggregate(params: Mapping[str, Any], picked: jax.Array, cfg: GddmConfig) -> jax.Array:
    """Picked features [B,k,C] -> one token for each, [B,k,W]."""
    x = product("bkc,cw->bkw", picked, params["proj"]["kernel"]) + params["proj"]["bias"]
    x = layer_norm(params["norm"], x + _attend(params["attn"], x), cfg.norm_eps)
    return x + jax.nn.gelu(product("bkw,wv->bkv", x, params["ffn"]["kernel"]) + params["ffn"]["bias"], approximate=False)


def gddm(params: Mapping[str, Any], points: jax.Array, *, cfg: GddmConfig = DEFAULT,
         ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Defect tokens of the points that are least like the learned normal prototypes (method.md, stage 1, step 3).

    Args:
      params: see `init_gddm`.
      points: [B,N,C], per-point features.
      cfg: `weight_by_score` multiplies each picked feature by its score before the projection. Picking alone has no
        gradient; the factor lets the task loss reach the prototypes.
    Returns: tokens [B,K,W] (first = highest score), scores [B,N], topk int32 [B,k] by falling score; float32.
    Raises: ValueError where a cloud has fewer than `top_k` points.
    """
    if points.shape[1] < cfg.top_k:
        raise ValueError(f"gddm: {points.shape[1]} points are fewer than top_k = {cfg.top_k}")
    points = points.astype(jnp.float32)
    scores = outlier_scores(params["prototypes"], points)
    topk = lax.top_k(lax.stop_gradient(scores), cfg.top_k)[1]
    picked = jnp.take_along_axis(points, topk[..., None], axis=1)
    if cfg.weight_by_score:
        picked = picked * jnp.take_along_axis(scores, topk, axis=1)[..., None]
    return aggregate(params, picked, cfg)[:, : cfg.defect_tokens], scores, topk
