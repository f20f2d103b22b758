"""SRM: fuses the render stream's and the depth stream's tokens of a view (paper: synergistic refinement; released:
co-attention fusion block). Pure functions over a dict of arrays. Axes: T tokens, E embedding.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gsclip_jax.models import layers
from gsclip_jax.models.precision import EXACT


@dataclass(frozen=True)
class SrmConfig:
    embed_dim: int = 768


DEFAULT = SrmConfig()


@functools.partial(jax.jit, static_argnames="cfg")
def init_srm(key: jax.Array, cfg: SrmConfig = DEFAULT) -> dict:
    """{render, depth: {kernel [E,E], bias [E]}, out: {kernel [2E,E], bias [E]}}, float32, in torch's default ranges."""
    width, (render, depth, out) = cfg.embed_dim, jax.random.split(key, 3)
    linear = layers.init_linear
    return {"render": linear(render, width, width), "depth": linear(depth, width, width), "out": linear(out, 2 * width, width)}


def srm(params: Mapping[str, Any], render: jax.Array, depth: jax.Array, *, normalise: bool = True,
        ) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Fused tokens: what each stream says about every token of the other, joined by one linear layer.

    S = f1(R) f2(D)^T; E_D = softmax_rows(S) D; E_R = softmax_rows(S^T) R; fused = Linear([E_D, E_R]); no 1/sqrt(E).
    On one token (the released use: CLS only) both softmaxes are the identity.

    Args:
      params: see `init_srm`.
      render, depth: [...,T,E], CLS first, of equal shape.
      normalise: L2-normalise every token first; False where they already are (or are not meant to be).
    Returns: fused [...,T,E] float32, NOT normalised; {enhanced_render = E_D, enhanced_depth = E_R, affinity = S [...,T,T]}.
    Raises: ValueError where the two shapes differ.
    """
    if render.shape != depth.shape:
        raise ValueError(f"srm: render tokens {render.shape} and depth tokens {depth.shape} must have one shape")
    render, depth = render.astype(jnp.float32), depth.astype(jnp.float32)
    if normalise:
        render, depth = layers.normalise(render), layers.normalise(depth)

    queries = layers.linear(params["render"], render)
    keys = layers.linear(params["depth"], depth)
    affinity = jnp.einsum("...te,...se->...ts", queries, keys, precision=EXACT)
    from_depth = jnp.einsum("...ts,...se->...te", jax.nn.softmax(affinity, axis=-1), depth, precision=EXACT)
    from_render = jnp.einsum("...ts,...te->...se", jax.nn.softmax(affinity, axis=-2), render, precision=EXACT)
    fused = layers.linear(params["out"], jnp.concatenate([from_depth, from_render], axis=-1))
    return fused, {"enhanced_render": from_depth, "enhanced_depth": from_render, "affinity": affinity}
