"""Cosine logits between image features and the object's pair of texts, and the maps made of them. All in float32.

Axes: ... any axes (V views), B objects, P patches, h w patch grid, H W pixels, E embedding, 2 = (normal, abnormal).
Source: GS-CLIP, scores (method section); the temperature is 0.07 in the paper and in the released code.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from gsclip_jax.models.layers import normalise
from gsclip_jax.models.precision import product

TEMPERATURE = 0.07


def text_logits(
    features: jax.Array, text: jax.Array, *, tau: float = TEMPERATURE, normalised: bool = False
) -> jax.Array:
    """Cosines over temperature: features [B,...,E] (global ones or tokens) and text [B,2,E] -> [B,...,2].

    `normalised=True` takes the features as they are (the released code does not normalise fused ones); text always is.
    A text pair [1,2,E] or [2,E] serves every object.
    """
    features = features.astype(jnp.float32) if normalised else normalise(features)
    text = normalise(text)
    text = jnp.broadcast_to(text, (features.shape[0], *text.shape[-2:]))
    return product("b...e,bce->b...c", features, text) / tau


def probabilities(logits: jax.Array) -> jax.Array:
    """Softmax over (normal, abnormal), float32: [...,2] -> [...,2]."""
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)


def view_probability(
    features: jax.Array, text: jax.Array, *, tau: float = TEMPERATURE, normalised: bool = False
) -> jax.Array:
    """Probability that a view shows a defect: global features [B,V,E], text [B,2,E] -> [B,V]."""
    return probabilities(text_logits(features, text, tau=tau, normalised=normalised))[..., 1]


def patch_grid(patches: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """[...,P,C] in row-major order -> [...,h,w,C]; a square grid unless (h, w) is given.

    Raises:
      ValueError: P does not fill the grid.
    """
    count = patches.shape[-2]
    h, w = grid or (math.isqrt(count), math.isqrt(count))
    if h * w != count:
        raise ValueError(f"{count} patches do not fill a grid of {h} x {w}; pass the patches without the class token")
    return patches.reshape(*patches.shape[:-2], h, w, patches.shape[-1])


def similarity_grid(
    patches: jax.Array,
    text: jax.Array,
    *,
    tau: float = TEMPERATURE,
    normalised: bool = False,
    grid: tuple[int, int] | None = None,
) -> jax.Array:
    """Local features [B,...,P,E] (no class token) and text [B,2,E] -> probabilities on the patch grid [B,...,h,w,2]."""
    return patch_grid(probabilities(text_logits(patches, text, tau=tau, normalised=normalised)), grid)
