"""Learned prompts: contexts, deep prompts, and the shape prompt made of a cloud's global feature. Pure functions.

normal    [SOS] ctx*12 (words) t_s     . [EOS] padding
abnormal  [SOS] ctx*12 (words) t_s t_d . [EOS] padding

Axes: B objects, T tokens, K defect tokens, W text width, S width of the cloud's global feature. Source: GS-CLIP stage 1
and the released `prompt_ensemble.py`; with words and without t_s, t_d these are PointAD's prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gsclip_jax.models.clip import Clip, ClipConfig, embed_tokens
from gsclip_jax.models.layers import layer_norm
from gsclip_jax.models.precision import EXACT


@dataclasses.dataclass(frozen=True)
class PromptConfig:
    """Number of context tokens; the deep prompts enter blocks 2..`deep_depth`, `deep_tokens` each; `shape_dim` is the
    width of the cloud's feature, 0 for no shape prompt."""

    context_tokens: int = 12
    deep_depth: int = 9
    deep_tokens: int = 4
    shape_dim: int = 512


def init_prompts(key: jax.Array, cfg: PromptConfig, clip_cfg: ClipConfig) -> dict[str, Any]:
    """{ctx_normal [n,W], ctx_abnormal [n,W], deep [depth-1,k,W], shape {kernel [S,W], bias [W], ln {scale, bias [W]}}}.

    float32. Contexts and deep prompts are normal with deviation 0.02, the linear as torch's default. A text tower of
    fewer blocks than the depth gets deep prompts in all blocks but its first. Without a shape prompt, no `shape`.
    """
    width, n = clip_cfg.text_width, cfg.context_tokens
    blocks = max(min(cfg.deep_depth, clip_cfg.text_layers) - 1, 0)
    normal_key, uniform_key = jax.random.split(key)
    learned = 0.02 * jax.random.normal(normal_key, (2 * n + blocks * cfg.deep_tokens, width))
    params: dict[str, Any] = {
        "ctx_normal": learned[:n],
        "ctx_abnormal": learned[n : 2 * n],
        "deep": learned[2 * n :].reshape(blocks, cfg.deep_tokens, width),
    }
    if cfg.shape_dim:
        bound = cfg.shape_dim**-0.5
        linear = jax.random.uniform(uniform_key, (cfg.shape_dim + 1, width), minval=-bound, maxval=bound)
        layer_norm = {"scale": jnp.ones(width), "bias": jnp.zeros(width)}
        params["shape"] = {"kernel": linear[:-1], "bias": linear[-1], "ln": layer_norm}
    return params


def shape_prompt(params: Mapping[str, Any], shape: jax.Array) -> jax.Array:
    """t_s = LayerNorm(GELU(Linear(F_e))): the cloud's global feature [B,S] -> [B,W], float32. The GELU is exact."""
    layer = params["shape"]
    x = jnp.matmul(shape.astype(jnp.float32), layer["kernel"], precision=EXACT) + layer["bias"]
    x = jax.nn.gelu(x, approximate=False)
    return layer_norm(layer["ln"], x)


def deep_prompts(params: Mapping[str, Any], *, rounded: bool = False) -> jax.Array | None:
    """Deep prompts [depth-1,k,W] for `encode_text`, None where there are none; `rounded` to float16 as released."""
    deep = params["deep"]
    if not deep.shape[0]:
        return None
    return deep.astype(jnp.float16).astype(jnp.float32) if rounded else deep


def special_embeddings(clip: Clip) -> dict[str, jax.Array]:
    """Token embeddings [W] of the special tokens that the configuration names: {sos, dot, eos, pad}."""
    cfg = clip.cfg
    return {name: embed_tokens(clip, jnp.asarray(getattr(cfg, name))) for name in ("sos", "dot", "eos", "pad")}


def prompts(
    params: Mapping[str, Any],
    shape_tokens: jax.Array | None,
    defect_tokens: jax.Array | None,
    special: Mapping[str, jax.Array],
    *,
    length: int | None = 77,
    words: tuple[jax.Array | None, jax.Array | None] = (None, None),
) -> tuple[jax.Array, jax.Array]:
    """Embedded prompts [B,2,T,W] (normal, abnormal) and the positions int32 [2] of their end-of-text tokens.

    Args:
      shape_tokens: t_s of `shape_prompt`, [B,W]; None for prompts without it.
      defect_tokens: t_d of GDDM, [B,K,W]; None for prompts without it.
      special: of `special_embeddings`.
      length: T; None for no padding behind the longer prompt (the text tower is causal: the features are the same).
      words: fixed embeddings, normal [n,W] and abnormal [n,W], behind the context: of 'object', 'damaged object'.

    B is 1 where nothing in the prompts depends on the object.

    Raises:
      ValueError: the prompts do not fit into `length`.
    """
    rows = []
    for ctx, word, defects in (
        (params["ctx_normal"], words[0], None),
        (params["ctx_abnormal"], words[1], defect_tokens),
    ):
        parts = [special["sos"], ctx, word, None if shape_tokens is None else shape_tokens[:, None], defects]
        rows.append([part for part in (*parts, special["dot"], special["eos"]) if part is not None])
    lengths = [sum(1 if part.ndim == 1 else part.shape[-2] for part in row) for row in rows]
    total = max(lengths) if length is None else length
    if max(lengths) > total:
        raise ValueError(f"prompts of {max(lengths)} tokens, {total} fit; use fewer context or defect tokens")

    batch = next((part.shape[0] for row in rows for part in row if part.ndim == 3 and part.shape[0] != 1), 1)
    width = special["sos"].shape[-1]
    embeds = []
    for row, used in zip(rows, lengths, strict=True):
        padding = jnp.broadcast_to(special["pad"], (total - used, width))
        parts = [jnp.atleast_2d(part) for part in (*row, padding)]
        embeds.append(jnp.concatenate([jnp.broadcast_to(p, (batch, *p.shape[-2:])) for p in parts], axis=1))
    return jnp.stack(embeds, axis=1), jnp.asarray(lengths, jnp.int32) - 1
