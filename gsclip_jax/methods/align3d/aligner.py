"""The aligner, and the losses that are Align3D-AD's own. Pure functions.

Axes: B objects, V views, T local tokens, E embedding, ... any axes, 2 = (normal, abnormal). All in float32.
Source: the released `train_v12.py` (the equations of the paper are not public).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gsclip_jax.models.layers import init_linear, linear, normalise
from gsclip_jax.models.precision import product

LAYERS = ("input", "projection", "output")


def init_aligner(key: jax.Array, width: int) -> dict[str, Any]:
    """{global, local: {input, projection, output: {kernel [E,E], bias [E]}}} in torch's default ranges."""
    keys = iter(jax.random.split(key, 2 * len(LAYERS)))
    return {part: {name: init_linear(next(keys), width, width) for name in LAYERS} for part in ("global", "local")}


def mlp(params: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """Three linear layers with exact GELUs between: [...,E] -> [...,E], not normalised."""
    for name in LAYERS[:-1]:
        x = jax.nn.gelu(linear(params[name], x), approximate=False)
    return linear(params[LAYERS[-1]], x)


def align(params: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
    """Tokens [...,1+T,E] of grey views, normalised, CLS first -> what those of the coloured views would be, normalised."""
    parts = (mlp(params["global"], tokens[..., :1, :]), mlp(params["local"], tokens[..., 1:, :]))
    return normalise(jnp.concatenate(parts, axis=-2))


def similarities(grey: jax.Array, colour: jax.Array) -> jax.Array:
    """s of semantic consistency reweighting: for every local token of a grey view [...,T,E] its mean cosine with all local tokens
    of the coloured view [...,T,E], both normalised: [...,T]. By the mean vector: no T x T products."""
    return product("...te,...e->...t", grey, colour.mean(-2))


def consistency_weights(s: jax.Array, strength: jax.Array | float, scale: float = 1.0) -> jax.Array:
    """1 + strength * sigmoid(scale * s), constants for the gradient; not divided by their sum."""
    return jax.lax.stop_gradient(1 + strength * jax.nn.sigmoid(scale * s))


def alignment(aligned: jax.Array, colour: jax.Array, weights: jax.Array | float = 1.0) -> dict[str, jax.Array]:
    """L_global, L_local of aligned and coloured tokens [...,1+T,E], normalised, CLS first; weights [...,T] of the local ones."""
    apart = 1 - product("...e,...e->...", aligned, colour)
    return {"global": apart[..., 0].mean(), "local": (weights * apart[..., 1:]).mean()}


def contrast(anchor: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Mean over the rows [...,E] of -log(e^cos(a,p) / (e^cos(a,p) + e^cos(a,n))). No temperature; the positive is detached."""
    anchor, positive, negative = normalise(anchor), normalise(jax.lax.stop_gradient(positive)), normalise(negative)
    towards, away = (product("...e,...e->...", anchor, other) for other in (positive, negative))
    return jax.nn.softplus(away - towards).mean()


def branch_contrast(own: jax.Array, other: jax.Array) -> jax.Array:
    """The contrastive term of one branch (DpCA): its texts [...,2,E] keep to the other branch's text of the same class, and away
    from their own of the other class."""
    return contrast(own, other, own[..., ::-1, :])
