"""Items f, g: PointNet++ with its indices and running statistics; GDDM on given features and on a network's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.convert import pointnet2_names
from gsclip_jax.methods.gsclip.gddm import gddm
from gsclip_jax.models.pointnet2 import pointnet2
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.recording import Entry, Model


@partial(jax.jit, static_argnames=("cfg", "train"))
def _network(cfg, params, stats, cloud, train):
    return pointnet2(params, stats, cloud, train=train, cfg=cfg)


_gddm = jax.jit(gddm, static_argnames="cfg")


def features(model: Model, source: str, train: bool = False) -> tuple:
    """(points [B,N,C], shape [B,512], new statistics, named intermediates) of recorded clouds."""
    learner, stats = model.learner
    (points, shape), after, named = _network(model.net, learner["pointnet2"], stats["pointnet2"],
                                             model.recording.value(source), train)  # fmt: skip
    return points, shape, after, named


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    yield from (_network_arrays if entries[0].item == "f" else _gddm_arrays)(model, entries)


def _cloud_of(model: Model, entry: Entry) -> str:
    return (model.recording.sources(entry) or [model.recording.source(entry, "in_cloudsA", "f")])[0]


def _network_arrays(model: Model, entries: list[Entry]) -> Iterator[Found]:
    runs: dict[tuple[str, bool], tuple] = {}
    for entry in entries:
        train = entry.key.startswith("train_") or entry.key.endswith("_train")
        where = _cloud_of(model, entry), train
        if where not in runs:
            runs[where] = features(model, *where)
        points, shape, after, named = runs[where]
        key = entry.key.removesuffix("_train")
        if match := re.fullmatch(r"(fps|ball)_l(\d+)", key):
            yield Found(entry, named[f"{match[1]}{match[2]}"])
        elif match := re.fullmatch(r"(?:sa(\d+)|l(\d+))_points", key):
            yield Found(entry, jnp.swapaxes(named[f"sa{match[1] or match[2]}"], 1, 2))
        elif key == "points_feat":
            yield Found(entry, points)
        elif key == "global":
            yield Found(entry, shape)
        elif train:
            state = pointnet2_names.to_torch(model.learner[0]["pointnet2"], after, model.net)
            if key.removeprefix("train_") in state:
                yield Found(entry, state[key.removeprefix("train_")])


def _gddm_arrays(model: Model, entries: list[Entry]) -> Iterator[Found]:
    params, runs = model.learner[0]["gddm"], {}
    for entry in entries:
        chain = entry.key.startswith("chain_")
        if chain:
            source = _cloud_of(model, entry)
        else:
            source = (model.recording.sources(entry) or [model.recording.source(entry, "features_before_relu")])[0]
        if source not in runs:
            points = features(model, source)[0] if chain else np.maximum(model.recording.value(source), 0)
            # all tokens at once: the defect tokens are the first of them
            runs[source] = _gddm(params, points, cfg=replace(model.method().gddm, defect_tokens=model.cfg.model.top_k))
        tokens, scores, topk = runs[source]
        values = {"outlier_scores": scores[..., None], "scores": scores[..., None], "topk": topk, "all_tokens": tokens,
                  "defect_token": tokens[:, : model.cfg.model.defect_tokens]}  # fmt: skip
        if entry.key.removeprefix("chain_") in values:
            yield Found(entry, values[entry.key.removeprefix("chain_")])
