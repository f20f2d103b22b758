"""Items h, i, j: SRM on one token and on sequences, similarity maps, lifting from views to points."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.methods.gsclip.srm import srm
from gsclip_jax.models.lift import lift, upsample
from gsclip_jax.models.similarity import patch_grid, probabilities, text_logits
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.recording import Entry, Model, ParityError

HIDDEN = ("points that no view sees: the released 0/0 is NaN; the data pipeline gives them their nearest visible neighbour's "
          "pixels before lifting, and lifting alone gives 0; all other points are compared with the recorded ones")  # fmt: skip

_srm = jax.jit(partial(srm, normalise=False))  # the recorded block does not normalise
_lift = jax.jit(lift, static_argnames="image_size")


@partial(jax.jit, static_argnames=("tau", "size"))
def _maps(tokens, text, tau, size):
    similarity = probabilities(text_logits(tokens, text, tau=tau, normalised=True))
    return similarity, upsample(patch_grid(similarity[:, 1:]), size)


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    yield from {"h": _fused, "i": _similarity, "j": _lifted}[entries[0].item](model, entries)


def _fused(model: Model, entries: list[Entry]) -> Iterator[Found]:
    runs = {}
    for entry in entries:
        sources = tuple(model.recording.sources(entry))
        match = re.match(r"(?:seq_)?(fused|o1|o2)(?![a-z0-9])", entry.key)
        if not match or len(sources) != 2:
            continue
        if sources not in runs:
            render, depth = (model.recording.value(name) for name in sources)
            one = render.ndim == 2
            fused, named = _srm(model.srm, *((x[:, None] if one else x) for x in (render, depth)))
            named = {"fused": fused, "o2": named["enhanced_render"], "o1": named["enhanced_depth"]}
            runs[sources] = {name: x[:, 0] if one else x for name, x in named.items()}
        yield Found(entry, runs[sources][match[1]])


def _similarity(model: Model, entries: list[Entry]) -> Iterator[Found]:
    recording = model.recording
    for entry in entries:
        tokens, text = (recording.value(recording.source(entry, leaf)) for leaf in ("tokens", "text"))
        similarity, maps = _maps(tokens, text, model.cfg.model.tau, model.clip.image_size)
        if entry.key in ("similarity", "map"):
            yield Found(entry, similarity if entry.key == "similarity" else maps)


def lifted(model: Model, entry: Entry, suffix: str = "") -> jax.Array:
    """Recorded map logits [B*V,H,W,2] lifted to the recorded points, [B,side,side,2]."""
    recording = model.recording
    where, real, logits = (recording.value(recording.source(entry, leaf)) for leaf in
                           (f"in_cor{suffix}", f"in_nonzero{suffix}", "map_logits"))  # fmt: skip
    objects, views, points = where.shape[:3]
    size, side = logits.shape[1], round(points**0.5)
    maps = jax.nn.softmax(jnp.asarray(logits), axis=-1).reshape(objects, views, size, size, 2)
    return _lift(maps, where[..., :2], where[..., 2] > 0, real[..., 0] > 0, image_size=size).reshape(objects, side, side, 2)


def _lifted(model: Model, entries: list[Entry]) -> Iterator[Found]:
    for entry in entries:
        if entry.key == "points":
            yield Found(entry, lifted(model, entry))
        elif entry.key == "points_hidden":
            theirs = model.recording.array(entry.name)
            unseen = np.isnan(theirs)
            if unseen.sum() != entry.about.get("nan_count", unseen.sum()) or not unseen.any():
                raise ParityError(f"{entry.name}: {unseen.sum()} NaN, the manifest says {entry.about.get('nan_count')}")
            yield Found(entry, lifted(model, entry, "_hidden"), HIDDEN, np.where(unseen, 0, theirs))
