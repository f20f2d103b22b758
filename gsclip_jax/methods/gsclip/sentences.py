"""Learned prompts that start as sentences, so that stage 1 begins with what plain CLIP knows already.

Ours, not the paper's: its contexts start as noise, and what a short training on one category finds from there may be worse on
other categories than the sentences themselves.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.method import Params
from gsclip_jax.models.clip import Clip, embed_tokens
from gsclip_jax.models.clip_blocks import run_blocks


def start_from_sentences(params: Params, clip: Clip, normal: list[int], abnormal: list[int]) -> Params:
    """GsClip's parameters with contexts that are the words of two sentences.

    The deep prompts start as what the tower makes of the words they replace (of both sentences, the mean), and the shape and
    defect prompts start no longer than a word: GS-CLIP then begins close to plain CLIP with these sentences.

    Args:
      params: with groups prompts and gddm.
      clip: its text tower.
      normal, abnormal: token ids, as many as the contexts have tokens, without start, end and full stop.

    Raises:
      ValueError: not as many tokens as the contexts hold.
    """
    prompts, gddm = dict(params["prompts"]), dict(params["gddm"])
    room = prompts["ctx_normal"].shape[0]
    for name, ids in (("normal", normal), ("abnormal", abnormal)):
        if len(ids) != room:
            raise ValueError(f"the {name} sentence has {len(ids)} tokens, the context {room}: make them equal (n_ctx)")
    words = embed_tokens(clip, jnp.asarray([normal, abnormal]))  # [2,n,W]
    prompts["ctx_normal"], prompts["ctx_abnormal"] = words

    blocks, count = prompts["deep"].shape[:2]
    if blocks:
        start = jnp.broadcast_to(embed_tokens(clip, jnp.asarray(clip.cfg.sos)), (2, 1, words.shape[-1]))
        x = jnp.concatenate([start, words], 1)
        x = x + clip.text.pos_embedding[: x.shape[1]]
        causal = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
        after = run_blocks(clip.text.blocks, x, remat=False, layers=tuple(range(1, blocks + 1)), mask=causal).tokens
        prompts["deep"] = after[:, :, 1 : 1 + count].mean(1)

    length = float(np.sqrt(jnp.square(words).mean()))
    if "shape" in prompts:
        prompts["shape"] = {**prompts["shape"], "ln": jax.tree.map(lambda x: length * x, prompts["shape"]["ln"])}
    gddm["norm"] = jax.tree.map(lambda x: length * x, gddm["norm"])
    return {**params, "prompts": prompts, "gddm": gddm}
