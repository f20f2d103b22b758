"""LoRA on both linears of every MLP of a vision tower: pure functions over a dict of arrays.

Axes: L layers, W width, R rank. Source: GS-CLIP, depth stream (rank 8, alpha 16, dropout 0.1). The factor
alpha / rank = 2 is an argument of the functions that apply the factors, not stored with them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

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


class Dropout(NamedTuple):
    """Dropout on the input of the factors: training only."""

    key: jax.Array
    rate: float = 0.1
    images: jax.Array | None = None  # int [N], numbers of the images in the whole batch; None: 0, 1, ...

    def kept(self, shape: tuple[int, ...]) -> jax.Array:
        """What is not dropped of an array [N,...], bool. Of a part of a batch it is the same as within the whole one."""
        if self.images is None:
            return jax.random.bernoulli(self.key, 1 - self.rate, shape)
        return kept_of(self.key, 1 - self.rate, self.images, shape[1:])


def kept_of(key: jax.Array, share: float, images: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`jax.random.bernoulli(key, share, (all, *shape))[images]` without drawing the others, bool [N,*shape]; up to 2^16 images.

    The bits of an element follow from the key and its number alone (`jax_threefry_partitionable`), a number of two words.
    """
    each, image = math.prod(shape), images.astype(jnp.uint32)[:, None]
    low, middle = image * (each & 0xFFFF), image * (each >> 16)
    first = low + (middle << 16)
    number = first + jnp.arange(each, dtype=jnp.uint32)
    high = (middle >> 16) + (first < low) + (number < first).astype(jnp.uint32)
    # Image by image, so that images on several devices stay where they are.
    words = jax.vmap(lambda *counts: threefry_2x32(jax.random.key_data(key), jnp.concatenate(counts)))(high, number)
    bits = words[:, :each] ^ words[:, each:]
    uniform = jax.lax.bitcast_convert_type((bits >> 9) | 0x3F800000, jnp.float32) - 1
    return (uniform < share).reshape(-1, *shape)


def lora_delta(
    factors: Mapping[str, jax.Array], x: jax.Array, *, scale: float, dropout: Dropout | None = None
) -> jax.Array:
    """scale * (dropout(x) a) b for one layer: x[N,...,I] in the tower's dtype, a[I,R], b[R,O] float32 -> float32 [N,...,O].

    The factors are never rounded, and their gradients are summed in float32, whatever the tower computes in.
    """
    if dropout is not None and dropout.rate > 0:
        x, scale = jnp.where(dropout.kept(x.shape), x, 0), scale / (1 - dropout.rate)  # dividing x itself would round it
    return widened(widened(x, factors["a"]) * scale, factors["b"])


def merge_lora(blocks: Mapping[str, Any], lora: Mapping[str, Any], scale: float = 2.0) -> dict[str, Any]:
    """Blocks of a tower with the low-rank products added to the MLP kernels; the inputs stay as they are."""
    products = {name: scale * product("lir,lro->lio", lora[name]["a"], lora[name]["b"]) for name in ("fc", "proj")}
    mlp = dict(blocks["mlp"])
    for name, delta in products.items():
        mlp[f"{name}_kernel"] = mlp[f"{name}_kernel"] + delta
    return {**blocks, "mlp": mlp}
