"""The recorded runs' weights and inputs, made again from names and seeds; numpy only.

Each array depends on (name, shape, seed) alone: `numpy.random.default_rng([crc32(name), seed])`, drawn and scaled in
float64 in PyTorch's layout, rounded to float32 once. `RULES` says how, first match first.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _normal(scale: float = 1.0, around: float = 0.0) -> Draw:
    return lambda rng, shape: around + scale * rng.standard_normal(shape)


def _linear(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))


def _right_factor(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) / math.sqrt(shape[0])


def _centred(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of zero mean: the point network has no skips, and common means would make all clouds look alike."""
    rows = rng.standard_normal(shape)
    rows -= rows.mean(axis=tuple(range(1, rows.ndim)), keepdims=True)
    return rows * math.sqrt(2.5) / math.sqrt(math.prod(shape[1:]))


def _rule(name: str, shape: tuple[int, ...]) -> Draw:
    parts = name.split(".")
    last = parts[-1]
    if last == "num_batches_tracked":
        return lambda rng, shape: np.zeros(shape)
    if not shape:  # logit_scale
        return lambda rng, shape: np.full(shape, math.log(1 / 0.07))
    if last == "running_var":
        return lambda rng, shape: 0.5 + rng.random(shape)
    if last == "running_mean":
        return _normal(0.1)
    embeddings = ("positional_embedding", "class_embedding", "ctx_pos", "ctx_neg")
    if last in embeddings or name.endswith("token_embedding.weight") or "compound_prompts_text" in parts:
        return _normal(0.05)
    if last == "lora_B":
        return _normal(0.1)
    if len(shape) == 1:
        return _normal(0.1, around=1.0) if last == "weight" else _normal(0.02)
    if last in ("proj", "text_projection"):
        return _right_factor
    return _centred if parts[0] == "pointnet" else _linear


def weight(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """The float32 tensor of a state-dict entry, in PyTorch's layout."""
    shape = tuple(int(n) for n in shape)
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    return np.asarray(_rule(name, shape)(rng, shape), np.float32)


def normal_input(seed: int, shape: Sequence[int], unit: bool = False, scale: float = 1.0) -> np.ndarray:
    """A float32 input: standard normal, of length one over the last axis if `unit`, times `scale`."""
    x = np.random.default_rng(seed).standard_normal(tuple(shape))
    if unit:
        x /= np.sqrt(np.square(x).sum(-1, keepdims=True))
    return (x * scale).astype(np.float32)


def agrees(array: np.ndarray, fingerprint: Sequence[float]) -> bool:
    """Whether sum, sum of absolute values, first and last entry are the recorded ones (to 1e-9 of the second)."""
    flat = np.asarray(array, np.float64).ravel()
    ours = np.array([flat.sum(), np.abs(flat).sum(), flat[0], flat[-1]])
    return bool(np.all(np.abs(ours - fingerprint) <= 1e-9 * max(abs(fingerprint[1]), 1e-30)))
