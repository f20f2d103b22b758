"""PointAD (Zhou et al., NeurIPS 2024): learned prompts against the render stream, one stage of training.

Learned contexts and deep prompts in front of the fixed words 'object' and 'damaged object', no geometry in the prompts, no depth
stream; the losses of views and lifted points. The prompts, losses and scores are those GS-CLIP builds on.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, MethodBase, Params, Scores, Stage, Stats
from gsclip_jax.methods.gsclip import losses
from gsclip_jax.methods.gsclip.prompts import PromptConfig, deep_prompts, init_prompts, prompts, special_embeddings
from gsclip_jax.models import views
from gsclip_jax.models.clip import Clip, ClipConfig, clip_module, embed_tokens, encode_text
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.smoothing import Smoothing
from gsclip_jax.models.views import Evidence
from gsclip_jax.parts import Parts

WORDS = ("object", "damaged object")
Words = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Model:
    """What shapes the model."""

    n_ctx: int = 12  # learned context tokens of each prompt
    deep_depth: int = 9  # deep prompts enter the text tower's blocks 2 to this one
    n_deep: int = 4  # deep prompt tokens a block
    smooth_sigma: float = 4.0  # of point scores: organised scans, in grid cells
    smooth_width: float = 0.5  # unorganised scans, in mean distances to the K-th neighbour
    smooth_rounds: int = 1


@dataclass(frozen=True)
class Stage1:
    """Training of the prompts."""

    epochs: int = 15
    batch_size: int = 4
    learning_rate: float = 2e-3
    micro_batch: int = 0  # objects whose gradients are taken at once: the same sums; 0: as many as the memory holds


@dataclass(frozen=True)
class Config:
    """The sections of the configuration that are PointAD's."""

    model: Model = field(default_factory=Model)
    stage1: Stage1 = field(default_factory=Stage1)


def text_pair(cfg: ClipConfig, clip: Params, learned: Params, words: Words, *, rounded: bool = False) -> jax.Array:
    """(T_N, T_A) of learned prompts in front of fixed words, normalised, the same for every object: [1,2,E].

    Args:
      learned: of `init_prompts`.
      words: token ids of WORDS.
      rounded: released: deep prompts are rounded to float16, and so is the gradient that each of the two prompts gives them.
    """
    module = clip_module(cfg, {k: v for k, v in clip.items() if k != "visual"})
    embeds, eot = prompts(learned, None, None, special_embeddings(module), length=None, words=embed_words(module, words))
    if not rounded:
        return normalise(encode_text(module, embeds, eot, deep_prompts(learned)))
    rows = [encode_text(module, embeds[:, i], eot[i], deep_prompts(learned, rounded=True)) for i in range(2)]
    return normalise(jnp.stack(rows, axis=1))


def embed_words(module: Clip, words: Words) -> tuple[jax.Array, ...]:
    """Token embeddings [n,W] of the normal and of the abnormal words."""
    return tuple(embed_tokens(module, jnp.asarray(ids)) for ids in words)


class PointAd(MethodBase):
    """The Method. Parameters: {clip, prompts}.

    Args:
      words: token ids of WORDS.
    """

    name = "pointad"
    loads = ("clip",)

    def __init__(self, cfg: Config, clip: ClipConfig, words: Words):
        self.cfg, self.clip, self.words, m, one = cfg, clip, words, cfg.model, cfg.stage1
        self.prompts = PromptConfig(m.n_ctx, m.deep_depth, m.n_deep, shape_dim=0)
        self.smoothing = Smoothing(m.smooth_sigma, m.smooth_width, m.smooth_rounds)
        self.stages = (Stage("stage1", {"prompts": one.learning_rate}, ("clip",), one.epochs, one.batch_size, loss=self.loss,
                             features=self.features, alone=True, micro_batch=one.micro_batch),)  # fmt: skip

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        return {"prompts": init_prompts(key, self.prompts, self.clip)}, {}

    def with_remat(self, remat: bool) -> PointAd:
        return PointAd(self.cfg, replace(self.clip, remat=remat), self.words)

    def text(self, params: Params) -> jax.Array:
        """(T_N, T_A), normalised, the same for every object: [1,2,E]."""
        return text_pair(self.clip, params["clip"], params["prompts"], self.words)

    def evidence(self, params: Params, stats: Stats, batch: Arrays) -> tuple[Evidence, jax.Array]:
        """What the views say, and the texts [B,2,E] that they were compared with."""
        text = self.text(params)
        text = jnp.broadcast_to(text, (batch["valid"].shape[0], *text.shape[1:]))
        return views.compare(views.render_tokens(self.clip, params["clip"], batch), text), text

    def features(self, params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
        return views.render_features(self.clip, params["clip"], batch)

    def loss(self, trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key: jax.Array | None):
        found, _ = self.evidence({**frozen, **trainable}, stats, batch)
        terms = losses.supervised(found, batch)
        return sum(terms.values()), (stats, terms)

    def score(self, found: Evidence, batch: Arrays) -> Scores:
        return views.score(found, batch, self.smoothing)

    def predict(self, params: Params, stats: Stats, batch: Arrays) -> Scores:
        return self.score(self.evidence(params, stats, batch)[0], batch)


def build(cfg: Config, parts: Parts) -> PointAd:
    return PointAd(cfg, parts.clip, word_ids(parts))


def word_ids(parts: Parts) -> Words:
    """Token ids of WORDS. Errors: as `parts.tokenizer`."""
    tokenizer = parts.tokenizer()
    return tuple(tokenizer.encode(text) for text in WORDS)
