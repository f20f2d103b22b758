"""Colour at test time: the colour picture of an organised scan is one more view for both streams (docs/method.md, Scores).

Axes: B objects, H W pixels, g side of the grid of an organised scan (M = g x g points).
"""

from __future__ import annotations

from typing import Any

import jax

from gsclip_jax.method import Arrays, Params, Scores, Stats
from gsclip_jax.models import views
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.lift import upsample
from gsclip_jax.models.smoothing import smooth_grid
from gsclip_jax.models.views import Evidence


def predict_rgb(method, params: Params, stats: Stats, batch: Arrays) -> dict[str, Any]:
    """Scores of a batch with batch["rgb"] uint8 [B,H,W,3].

    Returns: colour_map, joint_map [B,g,g], colour, joint, colour_probability [B] and the scores without colour, "geometry".
    """
    found, text = method.evidence(params, stats, batch)
    geometry = method.score(found, batch)
    joined = join_rgb(colour_evidence(method, params, text, batch), geometry, method.smoothing.sigma)
    return {"geometry": geometry, **joined}


def colour_evidence(method, params: Params, text: jax.Array, batch: Arrays) -> Evidence:
    """What the colour picture says as a single view that passes both streams."""
    images = views.images(method.clip, batch["rgb"])[:, None]
    render = normalise(views.encode_render(method.clip, params["clip"], images))
    return method.compare(method.fused_tokens(params, render, method.depth_tokens(params, images)), text)


def join_rgb(found: Evidence, geometry: Scores, sigma: float) -> dict[str, jax.Array]:
    """Colour and joint maps and scores from the colour view's evidence and the geometry's scores.

    Args:
      sigma: of the smoothing, in grid cells.
    """
    side = round(geometry.points.shape[1] ** 0.5)
    colour_map = smooth_grid(upsample(found.cells[..., 1:], side)[:, 0, ..., 0], sigma=sigma)
    colour_probability = views.view_probability(found)[:, 0]
    joint_map = smooth_grid((colour_map + geometry.points.reshape(-1, side, side)) / 2, sigma=sigma)
    # No surface stream here: a half of the object score is the largest point.
    view_part = (geometry.object - 0.5 * geometry.points.max(-1)) * 2
    return {
        "colour_map": colour_map,
        "colour_probability": colour_probability,
        "colour": colour_map.max((1, 2)) + colour_probability,
        "joint_map": joint_map,
        "joint": joint_map.max((1, 2)) + (view_part + colour_probability) / 2,
    }
