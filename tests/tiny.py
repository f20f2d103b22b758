"""A GS-CLIP and batches small enough to train in a test."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np

from gsclip_jax.methods.gsclip import GsClip, Switched, Switches
from gsclip_jax.methods.gsclip.config import Config, Model, Stage1, Stage2
from gsclip_jax.models.clip import ClipConfig, init_clip
from gsclip_jax.models.pointnet2 import PointNet2Config

CLIP = ClipConfig(
    image_size=32, patch=8, vision_width=32, vision_layers=2, vision_heads=2, embed_dim=16, text_width=16, text_layers=2,
    text_heads=2, vocab=16, context=24, vv_blocks=1, sos=1, eos=2, dot=3,
)  # fmt: skip
NET = PointNet2Config(
    centroids=(16, 8), radii=(0.4, 0.8), neighbours=8, down=((16, 16), (16, 32)), up=((16,), (16,)), head=16, dropout=0.0
)
MODEL = Model(n_ctx=4, deep_depth=2, n_deep=2, prototypes=4, top_k=4, gddm_heads=2, lora_rank=2, render_share=0.5)
CONFIG = Config(
    model=MODEL, stage1=Stage1(epochs=2, pointnet2_rate=2e-3), stage2=Stage2(epochs=2, learning_rate=5e-3, lora_factor=1.0)
)


STAGE1, STAGE2 = GsClip(CONFIG, CLIP, NET).stages


def method(switches: Switches | None = None, clip: ClipConfig = CLIP, **changes) -> GsClip:
    """The released code's departures where `switches` are given (those of the paper are none); `changes` of the model's keys."""
    given = (dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, **changes)), clip, NET)
    return Switched(switches, *given) if switches else GsClip(*given)


@functools.cache
def _start(own_depth_tower: bool, seed: int):
    """Initialising compiles for seconds; all tests share it."""
    first, second, third = jax.random.split(jax.random.key(seed), 3)
    found, stats = jax.jit(method().init)(first)
    found["clip"] = init_clip(second, CLIP)
    if own_depth_tower:
        found["clip_depth"] = {"visual": init_clip(third, CLIP)["visual"]}
    return found, stats


def params(gsclip: GsClip, seed: int = 0):
    """Parameters and statistics in fresh dictionaries (the arrays are shared)."""
    return jax.tree.map(lambda x: x, _start("clip_depth" in gsclip.loads, seed))


def batch(count: int = 4, seed: int = 0, views: int = 3, points: int = 64, organised: bool = False) -> dict[str, np.ndarray]:
    """Random fields that keep the contract; every second object is defective."""
    rng = np.random.default_rng(seed)
    size = CLIP.image_size
    label = np.arange(count) % 2
    mask = np.zeros((count, points), bool)
    mask[label == 1, : points // 8] = True
    view_mask = np.zeros((count, views, size, size), bool)
    view_mask[label == 1, 0, :8, :8] = True
    xyz = rng.standard_normal((count, points, 3)).astype(np.float32)
    distance = np.linalg.norm(xyz[:, :, None] - xyz[:, None], axis=-1)
    return {
        "render": rng.integers(0, 256, (count, views, size, size), dtype=np.uint8),
        "depth": rng.integers(0, 256, (count, views, size, size), dtype=np.uint8),
        "cloud": (rng.standard_normal((count, 32, 3)) / 3).astype(np.float32),
        "pixel": rng.integers(0, size, (count, views, points, 2)).astype(np.int16),
        "visible": rng.random((count, views, points)) < 0.6,
        "xyz": xyz,
        "neighbours": np.argsort(distance, -1)[:, :, :4].astype(np.int32),
        "valid": np.ones((count, points), bool),
        "point_mask": mask,
        "organised": np.full(count, organised),
        "view_mask": view_mask,
        "view_label": view_mask.any((2, 3)).astype(np.int32),
        "label": label.astype(np.int32),
        "object_index": np.arange(count, dtype=np.int32),
        "real": np.ones(count, bool),
    }


def batches(first: int, size: int = 4):
    """Endless; step s depends on s alone."""
    step = first
    while True:
        yield batch(size, seed=step)
        step += 1
