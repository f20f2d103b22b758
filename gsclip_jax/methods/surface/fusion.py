"""The surface stream beside the views of any method: a third opinion on every point of an unorganised scan.

Ours, not the paper's (docs/fidelity.md). The wrapped method compares views with two texts; the surface tokens of the points
(descriptor.py) are compared with the same texts. It needs the method's `evidence`, `score`, `smoothing` and `smooth_points`.

Axes: B objects, M scored points, E embedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, Params, Scores, Stats, Tokens
from gsclip_jax.methods.surface.descriptor import describe, encode_surface
from gsclip_jax.models import views
from gsclip_jax.models.similarity import TEMPERATURE, text_logits
from gsclip_jax.models.views import Evidence

GROUP = "surface"  # of the parameters, which are loaded with the CLIP


class SurfaceEvidence(NamedTuple):
    """What views and surface say of a batch, float32."""

    views: Evidence
    logits: jax.Array  # [B,M,2], cosines / tau
    tokens: jax.Array | None = None  # [B,M,E], unit, that they are of


class WithSurface:
    """The same Method with the surface stream's `share` in the points' evidence.

    Args:
      share: from 0 (views alone) to 1 (surface alone), of unorganised scans; organised ones are scored by the views.
    """

    def __init__(self, method: Any, share: float):
        self.method, self.share = method, share
        self.stages = tuple(replace(stage, frozen=(*stage.frozen, GROUP)) for stage in method.stages)
        self.loads, self.scores_only = (*method.loads, GROUP), (*method.scores_only, GROUP)

    def __getattr__(self, name: str) -> Any:
        """What the stream does not change is the wrapped method's."""
        return getattr(self.method, name)

    def with_remat(self, remat: bool) -> WithSurface:
        return WithSurface(self.method.with_remat(remat), self.share)

    def for_inference(self) -> WithSurface:
        return self.with_remat(False)

    def evidence(self, params: Params, stats: Stats, batch: Arrays) -> tuple[SurfaceEvidence, jax.Array]:
        """What views and surface say, and the texts [B,2,E] that they were compared with."""
        found, text = self.method.evidence(params, stats, batch)
        tokens = encode_surface(params[GROUP], describe(batch["xyz"], batch["neighbours"], batch["valid"]))
        return SurfaceEvidence(found, text_logits(tokens, text, tau=TEMPERATURE, normalised=True), tokens), text

    def predict(self, params: Params, stats: Stats, batch: Arrays) -> Scores:
        return self.score(self.evidence(params, stats, batch)[0], batch)

    def predict_with_tokens(self, params: Params, stats: Stats, batch: Arrays) -> tuple[Scores, Tokens]:
        """Tokens of the surface, and of the views where they add to these (benchmarks/references.md): of their depth."""
        found, _ = self.evidence(params, stats, batch)
        _, tokens = self.method.predict_with_tokens(params, stats, batch)
        beside = {"depth": tokens["depth"]} if "depth" in tokens else {}
        return self.score(found, batch), {"surface": found.tokens, **beside}

    def score(self, found: SurfaceEvidence, batch: Arrays) -> Scores:
        """The views' scores with the surface's evidence joined to the points'; what of the points' evidence is the surface's, the
        views' half of the object score gives up."""
        alone = self.method.score(found.views, batch)
        share = jnp.where(batch["organised"], 0.0, self.share)  # [B]
        points = self.joined(alone.points, found.logits, share, batch)
        points_share = 1 - 0.5 * (1 - share)
        return alone._replace(
            object=views.object_score(points, views.view_probability(found.views), points_share), points=points
        )

    def surface_scores(self, found: SurfaceEvidence, batch: Arrays) -> jax.Array:
        """The stream's own log odds of a defect, smoothed like the points [B,M]."""
        logits = found.logits[..., 1] - found.logits[..., 0]
        return self.method.smooth_points(logits, batch, self.method.smoothing)

    def joined(self, alone: jax.Array, logits: jax.Array, share: jax.Array, batch: Arrays) -> jax.Array:
        """Weighted mean, as log odds, of the views' smoothed point scores [B,M] and the surface stream's; 0 where not valid.

        Not of probabilities: a confident stream would be held back by half of what the other cannot see.
        """
        surface = self.surface_scores(SurfaceEvidence(None, logits), batch)
        odds = jnp.log(jnp.clip(alone, 1e-6, 1)) - jnp.log(jnp.clip(1 - alone, 1e-6, 1))
        both = jax.nn.sigmoid((1 - share)[:, None] * odds + share[:, None] * surface) * batch["valid"]
        return jnp.where(share[:, None] > 0, both, alone)


def with_surface(method: Any, share: float) -> Any:
    """`method` itself where the share is 0."""
    return WithSurface(method, share) if share else method
