"""PointAD (Zhou et al., NeurIPS 2024): GS-CLIP without geometry in its prompts and without a depth stream.

Learned contexts and deep prompts in front of the fixed words 'object' and 'damaged object', render stream alone, one stage of
training on the losses of views and lifted points. Everything else is GS-CLIP's code.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, Params, Scores, Stage, Stats
from gsclip_jax.methods.gsclip.model import GsClip, GsClipConfig
from gsclip_jax.methods.gsclip.prompts import deep_prompts, init_prompts, prompts, special_embeddings
from gsclip_jax.models.clip import clip_module, embed_tokens, encode_text
from gsclip_jax.models.layers import normalise

WORDS = ("object", "damaged object")


class PointAd(GsClip):
    """Method of one stage. Parameters: {clip, prompts}; the CLIP is loaded by whoever builds it."""

    def __init__(self, cfg: GsClipConfig, stage: Stage, words: tuple[list[int], list[int]]):
        """words: token ids of WORDS; stage: trains prompts, the CLIP frozen."""
        bare = replace(cfg, streams="render", use_shape_prompt=False, use_defect_prompt=False)
        super().__init__(replace(bare, prompts=replace(cfg.prompts, shape_dim=0)), (stage,), name="pointad")
        self.words = words

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        return {"prompts": init_prompts(key, self.cfg.prompts, self.cfg.clip)}, {}

    def text(self, params: Params, stats: Stats, cloud: jax.Array, *, train: bool):
        """(T_N, T_A), the same for every object: cloud [B,N,3] gives B alone -> [B,2,E], statistics, {}."""
        clip = clip_module(self.cfg.clip, {k: v for k, v in params["clip"].items() if k != "visual"})
        words = tuple(embed_tokens(clip, jnp.asarray(ids)) for ids in self.words)
        embeds, eot = prompts(params["prompts"], None, None, special_embeddings(clip), length=None, words=words)
        deep = deep_prompts(params["prompts"], rounded=self.cfg.switches.round_deep_prompts)
        text = normalise(encode_text(clip, embeds, eot, deep))
        return jnp.broadcast_to(text, (cloud.shape[0], *text.shape[1:])), stats, {}

    def predict(self, params: Params, stats: Stats, batch: Arrays, *, stage: str = "stage1") -> Scores:
        return super().predict(params, stats, batch, stage=stage)
