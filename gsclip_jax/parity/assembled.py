"""What items e, m, n, o share: recorded inputs as a batch, and compiled pieces of the assembled method."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.method import Arrays
from gsclip_jax.methods.gsclip.config import Config
from gsclip_jax.methods.gsclip.model import GsClip
from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.parity.recording import Entry, Model, recorded_method
from gsclip_jax.parity.towers import images


def batch(
    model: Model, entry: Entry, fields: tuple[str, ...], item: str | None = None, labels: bool = True
) -> dict[str, np.ndarray]:
    """The fields of data_pipelines.batch that losses and scores read, from the inputs recorded for the entry's item.

    `fields` are the images wanted of render, depth, rgb, rgb_render: floating network input, the objects that the entry names
    ('o/render[1]': the second one). `item`: another one whose inputs they are. `labels`: False where none are recorded."""
    recording = model.recording

    def stored(leaf: str) -> np.ndarray:
        return recording.value(recording.source(entry, leaf, item))

    where, real = stored("in_cor"), stored("in_nonzero")
    objects, _, points = where.shape[:3]
    truth = {} if not labels else {
        "view_mask": stored("in_render_gt") > 0,
        "point_mask": stored("in_gt").reshape(objects, points) > 0,
        "view_label": stored("in_view_label"),
        "label": stored("in_label"),
    }  # fmt: skip
    made = truth | {
        "pixel": where[..., :2],
        "visible": where[..., 2] > 0,
        "valid": real[..., 0] > 0,
        "organised": np.ones(objects, bool),
        # only unorganised scans are smoothed over neighbours in space
        "xyz": np.zeros((objects, points, 3), np.float32),
        "neighbours": np.broadcast_to(np.arange(points, dtype=np.int32)[None, :, None], (objects, points, 1)),
    }
    for field in fields:
        name = recording.source(entry, field, item)
        views = images(recording.value(name))
        if picked := re.search(rf"{re.escape(name)}\[(\d+)\]", str(entry.about.get("inputs", ""))):
            views = views[int(picked[1]) :][:1]
        made[field] = views
    return made


@functools.lru_cache(maxsize=8)
def _text_of(cfg: Config, clip: ClipConfig, net: PointNet2Config):
    method = recorded_method(cfg, clip, net)
    return jax.jit(lambda params, stats, cloud: method.text(params, stats, cloud, train=False)[0])


@functools.lru_cache(maxsize=8)
def _render_of(cfg: Config, clip: ClipConfig, net: PointNet2Config):
    return jax.jit(GsClip(cfg, clip, net).render_tokens)


def stage_text(model: Model, source: str) -> jax.Array:
    """Normalised text features [B,2,E] of recorded clouds, prompt learner in inference mode."""
    learner, stats = model.learner
    return _text_of(model.cfg, model.clip, model.net)({**learner, "clip": model.text}, stats, model.recording.value(source))


def render_tokens(model: Model, made: Arrays) -> jax.Array:
    """The frozen render stream's tokens [B,V,1+P,E], normalised, as training reads them."""
    return _render_of(model.cfg, model.clip, model.net)({"clip": model.visual}, {"render": made["render"]})


def on_grid(points: jax.Array) -> jax.Array:
    """[B,M] -> [B,side,side], [B,M,2] -> [B,2,side,side]."""
    side = round(points.shape[1] ** 0.5)
    grid = points.reshape(points.shape[0], side, side, *points.shape[2:])
    return grid if points.ndim == 2 else jnp.moveaxis(grid, -1, 1)
