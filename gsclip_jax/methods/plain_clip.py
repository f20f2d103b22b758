"""Plain CLIP on renderings, nothing learned: what GS-CLIP has to beat.

Views of the render stream (V-V patch tokens, as GS-CLIP's) against the mean of many sentences about a sound and about a damaged
object; the ensemble of states and templates follows WinCLIP (Jeong et al. 2023). Lifting and scores are GS-CLIP's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.method import Arrays, MethodBase, Params, Scores, Stats
from gsclip_jax.models import views
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_tokens
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.smoothing import Smoothing
from gsclip_jax.models.tokenizer import Tokenizer
from gsclip_jax.parts import Parts

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


@dataclass(frozen=True)
class Model:
    """Smoothing of the point scores."""

    smooth_sigma: float = 4.0  # organised scans, in grid cells
    smooth_width: float = 0.5  # unorganised scans, in mean distances to the K-th neighbour
    smooth_rounds: int = 1


@dataclass(frozen=True)
class Config:
    """The section of the configuration that is plain CLIP's."""

    model: Model = field(default_factory=Model)


class PlainClip(MethodBase):
    """The Method. Parameters: {clip}.

    Args:
      sentences: of `ensemble`.
    """

    name = "plain_clip"
    loads = ("clip",)

    def __init__(self, cfg: Config, clip: ClipConfig, sentences: np.ndarray):
        m = cfg.model
        self.clip, self.sentences = clip, sentences
        self.smoothing = Smoothing(m.smooth_sigma, m.smooth_width, m.smooth_rounds)

    def text(self, params: Params) -> jax.Array:
        """Normalised means of the sentences' features [1,2,E]."""
        clip = clip_module(self.clip, params["clip"])
        kinds, count, length = self.sentences.shape
        found = normalise(encode_tokens(clip, jnp.asarray(self.sentences.reshape(-1, length))))
        return normalise(found.reshape(kinds, count, -1).mean(1))[None]

    def predict(self, params: Params, stats: Stats, batch: Arrays) -> Scores:
        tokens = views.render_tokens(self.clip, params["clip"], batch)
        return views.score(views.compare(tokens, self.text(params)), batch, self.smoothing)


def build(cfg: Config, parts: Parts) -> PlainClip:
    return PlainClip(cfg, parts.clip, ensemble(parts.tokenizer()))
