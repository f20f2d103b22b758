"""What methods that look at views share: the render stream, the comparison with two texts, and scores from it.

Axes: B objects, V views, H W pixels, P patches, E embedding, g side of the patch grid, M scored points.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, Scores
from gsclip_jax.models.clip import ClipConfig, Encoded, clip_module, encode_image, preprocess_rgb, preprocess_views
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.lift import lift, upsample
from gsclip_jax.models.similarity import TEMPERATURE, patch_grid, probabilities, text_logits
from gsclip_jax.models.smoothing import Smoothing, smooth


class Evidence(NamedTuple):
    """What the views of a batch say before losses or scores, float32; class 0 = normal, 1 = anomalous."""

    view_logits: jax.Array  # [B,V,2], cosines / tau
    cells: jax.Array  # [B,V,g,g,2] probabilities on the patch grid
    view_global: jax.Array  # [B,V,E] G_i, as L_con takes it


def images(cfg: ClipConfig, views: jax.Array) -> jax.Array:
    """Network input [...,H,W,3] of grey views uint8 [...,H,W] or colour ones uint8 [...,H,W,3]; floating arrays [...,H,W,3] are
    network input already."""
    if jnp.issubdtype(views.dtype, jnp.floating):
        return views
    return preprocess_rgb(cfg, views) if views.shape[-1] == 3 else preprocess_views(cfg, views)


def encode_vv(cfg: ClipConfig, clip: dict[str, Any], x: jax.Array) -> Encoded:
    """CLS of the plain path and all tokens of the V-V path of images [B,V,H,W,3], in the tower's own dtype, not normalised."""
    return encode_image(clip_module(cfg, {"visual": clip["visual"]}), x, vv=True)


def stream(encoded: Encoded) -> jax.Array:
    """The tokens that are compared with the texts: CLS of the plain path, then the V-V path's patch tokens, [B,V,1+P,E]."""
    return jnp.concatenate([encoded.cls[..., None, :], encoded.tokens[-1][..., 1:, :]], axis=-2)


def encode_render(cfg: ClipConfig, clip: dict[str, Any], x: jax.Array) -> jax.Array:
    """Render stream of images [B,V,H,W,3] in the tower's own dtype, not normalised, [B,V,1+P,E]."""
    return stream(encode_vv(cfg, clip, x))


def render_features(cfg: ClipConfig, clip: dict[str, Any], batch: Arrays) -> dict[str, jax.Array]:
    """What `render_tokens` reads instead of encoding again: in the tower's own dtype, so that storing rounds nothing."""
    return {"render_tokens": encode_render(cfg, clip, images(cfg, batch["render"]))}


def render_tokens(cfg: ClipConfig, clip: dict[str, Any], batch: Arrays) -> jax.Array:
    """Render stream of a batch, normalised [B,V,1+P,E]: the stored tokens where the batch has them."""
    if "render_tokens" in batch:
        return normalise(batch["render_tokens"])
    return normalise(render_features(cfg, clip, batch)["render_tokens"])


def compare(tokens: jax.Array, text: jax.Array, tau: float = TEMPERATURE) -> Evidence:
    """Cosines with the prompts: tokens [B,V,1+P,E], text [B,2,E]."""
    logits = text_logits(tokens, text, tau=tau, normalised=True)
    return Evidence(logits[:, :, 0], patch_grid(probabilities(logits[:, :, 1:])), tokens[:, :, 0])


def object_score(points: jax.Array, view_probability: jax.Array, points_share: jax.Array | float = 0.5) -> jax.Array:
    """`points_share` of the largest point score [B,M], the rest of the mean of the views' probabilities [B,V] -> [B]; halves in
    the paper."""
    return points_share * points.max(-1) + (1 - points_share) * view_probability.mean(-1)


def view_probability(found: Evidence) -> jax.Array:
    """[B,V]: how surely each view shows a defect."""
    return jax.nn.softmax(found.view_logits, axis=-1)[..., 1]


def score(found: Evidence, batch: Arrays, smoothing: Smoothing, smooth_points=smooth) -> Scores:
    """Scores of docs/method.md from the views' evidence; `smooth_points` stands in for `smoothing.smooth`."""
    image_size = batch["render"].shape[2]
    cells = found.cells[..., 1]
    points = smooth_points(lift(cells, batch["pixel"], batch["visible"], batch["valid"], image_size), batch, smoothing)
    return Scores(object_score(points, view_probability(found)), points, upsample(cells[..., None], image_size)[..., 0])
