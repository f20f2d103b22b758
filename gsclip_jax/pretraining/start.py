"""What the embedded CLIP's vision tower starts as, instead of noise: patches that are told apart, heads that look around."""

from __future__ import annotations

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from gsclip_jax.method import Params
from gsclip_jax.models.clip import ClipConfig

OFFSETS = (  # (row, column) a head looks at, block by block: neighbours first, then farther
    ((0, 1), (1, 0), (0, -1), (-1, 0)),
    ((1, 1), (1, -1), (-1, 1), (-1, -1)),
    ((0, 2), (2, 0), (0, -2), (-2, 0)),
    ((0, 3), (3, 0), (0, -3), (-3, 0)),
)


def whitening(views: dict[str, Any], cfg: ClipConfig, seed: int = 0, floor: float = 3e-3) -> np.ndarray:
    """A patch embedding [P,P,3,W] that whitens the patches of the views, under a random rotation.

    Most of a patch's variance is its mean grey; defects are in the small rest. From random kernels a tower needs thousands of
    steps to look past the mean.
    """
    rng, p = np.random.default_rng(seed), cfg.patch
    rows, count, size = views["render"].shape[:3]
    side, patches = size // p, []
    for name in ("render", "depth"):
        for row in rng.integers(rows, size=400):
            view = views[name][row, rng.integers(count)]
            cells = view.reshape(side, p, side, p).transpose(0, 2, 1, 3).reshape(-1, p * p)
            patches.append(cells[(cells < 255).mean(1) > 0.5])
    x = (np.concatenate(patches) / 255 - cfg.mean[0]) / cfg.std[0]
    variance, axes = np.linalg.eigh(np.cov(x.T))
    kept = min(cfg.vision_width, p * p)
    variance, axes = variance[::-1][:kept], axes[:, ::-1][:, :kept]
    turn = np.linalg.qr(rng.standard_normal((cfg.vision_width, kept)))[0]
    kernel = (axes / np.sqrt(variance + floor * variance.sum() / len(variance))) @ turn.T
    return np.repeat(kernel.reshape(p, p, 1, -1) / 3, 3, axis=2).astype(np.float32)


def look_around(visual: Params, cfg: ClipConfig, seed: int = 0, sharp: float = 1.0) -> Params:
    """The vision tower's parameters with positions that are waves across the grid and heads that each look at one neighbour.

    A small tower that starts from random positions needs long to find out which patches lie side by side. Sines and cosines of
    row and column take the first 4F axes of the width and the patch embedding what is left; a query is its own position moved by
    the head's offset, which a turn of every sine-cosine pair does exactly: the neighbour is where a head looks most. After
    Cordonnier et al. 2020 (attention can convolve) and d'Ascoli et al. 2021 (it helps to start there).

    Args:
      visual: of `init_clip`, with the patch embedding of `whitening`.
      sharp: how much more. On a grid of 16 x 16 the neighbour has 2 per cent of a head's attention with 1, 11 with 2; an even
        share is 0.4.
    """
    grid, width, heads = cfg.grid, cfg.vision_width, cfg.vision_heads
    depth = width // heads
    waves = min(8, depth // 4)
    taken = 4 * waves
    rate = np.pi / grid * np.arange(1, 2 * waves, 2)
    phase = np.arange(grid)[:, None] * rate
    line = np.concatenate([np.sin(phase), np.cos(phase)], 1)  # [G, 2F]
    rows, columns = np.repeat(line[:, None], grid, 1), np.repeat(line[None], grid, 0)
    positions = np.zeros((1 + grid**2, width), np.float32)
    positions[1:, :taken] = np.concatenate([rows, columns], -1).reshape(grid**2, taken)

    kernel = np.asarray(visual["patch_embed"], np.float64).reshape(-1, width)
    left, size, _ = np.linalg.svd(kernel, full_matrices=False)
    kept = min(width - taken, int((size > 1e-6 * size[0]).sum()))
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((width - taken, kept)))[0]
    patch_embed = np.zeros_like(kernel)
    patch_embed[:, taken:] = (left[:, :kept] * size[:kept]) @ turn.T

    qkv = np.array(visual["blocks"]["attn"]["qkv_kernel"])  # [L,W,3,H,D]
    qkv[:, :, :2] *= 0.3  # what a patch shows has its say, but less
    strength = np.sqrt(sharp * np.sqrt(depth) / (1 - np.cos(rate)).sum())
    for block, offsets in zip(range(cfg.vision_layers), itertools.cycle(OFFSETS)):
        for head in range(heads):
            query, key = np.zeros((taken, depth)), np.zeros((taken, depth))
            for axis, step in enumerate(offsets[head % len(offsets)]):
                sine = 2 * waves * axis + np.arange(waves)
                cosine, c, s = sine + waves, np.cos(rate * step), np.sin(rate * step)
                query[sine, sine], query[cosine, sine] = c, s
                query[sine, cosine], query[cosine, cosine] = -s, c
                key[sine, sine] = key[cosine, cosine] = 1
            qkv[block, :taken, 0, head], qkv[block, :taken, 1, head] = strength * query, strength * key
    class_embedding = np.array(visual["class_embedding"])
    class_embedding[:taken] = 0  # looks nowhere in particular
    attention = {**visual["blocks"]["attn"], "qkv_kernel": jnp.asarray(qkv, jnp.float32)}
    return {
        **visual,
        "patch_embed": jnp.asarray(patch_embed.reshape(visual["patch_embed"].shape), jnp.float32),
        "pos_embedding": jnp.asarray(positions),
        "class_embedding": jnp.asarray(class_embedding),
        "blocks": {**visual["blocks"], "attn": attention},
    }
