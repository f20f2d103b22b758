"""Items a, b, c: the vision tower without and with V-V attention, and the depth tower with LoRA."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from gsclip_jax.models.clip import clip_module, encode_image
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.recording import Entry, Model


@partial(jax.jit, static_argnames=("cfg", "vv", "layers", "lora_scale"))
def _encode(cfg, params, x, *, lora=None, vv=False, layers=None, lora_scale=2.0):
    return encode_image(clip_module(cfg, params), x, lora=lora, vv=vv, layers=layers, lora_scale=lora_scale)


def images(recorded: np.ndarray) -> np.ndarray:
    """Recorded network input [...,3,H,W] -> [...,H,W,3]."""
    return np.ascontiguousarray(np.moveaxis(recorded, -3, -1))


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    """`cls`, and `patch_l<block>`: tokens after that block (1-based), projected."""
    cfg, item = model.clip, entries[0].item
    params, lora = model.depth if item == "c" else (model.visual, None)
    groups: dict[str, list[tuple[Entry, int | None]]] = {}
    for entry in entries:
        match = re.match(r"(cls|patch)(?:_l(\d+))?(?![a-z])", entry.key)
        if match:
            layer = None if match[1] == "cls" else int(match[2] or cfg.vision_layers)
            sources = model.recording.sources(entry) or [model.recording.source(entry, "depth" if item == "c" else "image")]
            groups.setdefault(sources[0], []).append((entry, layer))
    for source, group in groups.items():
        layers = tuple(sorted({layer for _, layer in group if layer})) or (cfg.vision_layers,)
        found = _encode(cfg, params, images(model.recording.value(source)), lora=lora, vv=item == "b", layers=layers,
                        lora_scale=model.cfg.model.lora_alpha / model.cfg.model.lora_rank)  # fmt: skip
        for entry, layer in group:
            yield Found(entry, found.tokens[layers.index(layer)] if layer else found.cls)
