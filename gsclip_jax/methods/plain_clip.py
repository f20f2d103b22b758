"""Plain CLIP on renderings, nothing learned: what GS-CLIP has to beat.

Views of the render stream (V-V patch tokens, as GS-CLIP's) against the mean of many sentences about a sound and about a damaged
object; the ensemble of states and templates follows WinCLIP (Jeong et al. 2023). Lifting and scores are GS-CLIP's.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.method import Scores
from gsclip_jax.methods.gsclip.model import GsClip, GsClipConfig
from gsclip_jax.models.clip import clip_module, encode_tokens
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.tokenizer import Tokenizer

SOUND = ("{}", "flawless {}", "perfect {}", "undamaged {}", "{} without flaw", "{} without defect", "{} without damage")
DAMAGED = (
    "damaged {}", "broken {}", "defective {}", "{} with a flaw", "{} with a defect", "{} with a damage", "{} with an anomaly",
)  # fmt: skip
TEMPLATES = ("a photo of a {}", "a picture of a {}", "a rendering of a {}", "a view of a {}")


def ensemble(tokenizer: Tokenizer, thing: str = "object") -> np.ndarray:
    """Token ids int32 [2,S,T] of the S sentences that say sound and the S that say damaged, T the tokenizer's context."""
    return np.stack([
        tokenizer([template.format(state.format(thing)) + " ." for template in TEMPLATES for state in states])
        for states in (SOUND, DAMAGED)
    ])  # fmt: skip


class PlainClip:
    """Method without stages. Parameters: {clip}, loaded by whoever builds it."""

    name = "plain_clip"
    stages = ()

    def __init__(self, cfg: GsClipConfig, sentences: np.ndarray):
        """sentences: of `ensemble`."""
        self.gsclip, self.sentences = GsClip(replace(cfg, streams="render")), sentences

    def init(self, key):
        return {}, {}

    def features(self, stage, params, stats, batch):
        return {}

    def loss(self, stage, trainable, frozen, stats, batch, key):
        raise NotImplementedError("plain CLIP has nothing to train")

    def text(self, params) -> jax.Array:
        """Normalised means of the sentences' features [1,2,E]."""
        clip = clip_module(self.gsclip.cfg.clip, params["clip"])
        kinds, count, length = self.sentences.shape
        found = normalise(encode_tokens(clip, jnp.asarray(self.sentences.reshape(-1, length))))
        return normalise(found.reshape(kinds, count, -1).mean(1))[None]

    def predict(self, params, stats, batch) -> Scores:
        tokens = self.gsclip.render_tokens(params, batch)
        return self.gsclip.score(self.gsclip.compare(tokens, self.text(params)), batch)
