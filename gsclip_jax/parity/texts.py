"""Items d, e: token ids and plain text features; learned prompts and the text features of clouds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.methods.gsclip.gddm import gddm
from gsclip_jax.methods.gsclip.prompts import deep_prompts, prompts, shape_prompt, special_embeddings
from gsclip_jax.models.clip import clip_module, encode_text, encode_tokens
from gsclip_jax.models.tokenizer import load_tokenizer
from gsclip_jax.parity.assembled import stage_text
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.points import features
from gsclip_jax.parity.recording import VOCABULARY, Entry, Model, ParityError, Recording


def vocabulary(recording: Recording) -> Path:
    """CLIP's vocabulary: in the directory, else in one beside it, else beside the project (see README, shared/reference)."""
    folder = recording.folder.resolve()
    beside = Path(__file__).resolve().parents[3] / "shared" / "reference"
    places = [folder, *sorted(path for path in folder.parent.iterdir() if path.is_dir()), beside]
    for place in places:
        if (place / VOCABULARY).is_file():
            return place / VOCABULARY
    raise ParityError(f"{recording.folder}: no {VOCABULARY} there or beside it; put OpenAI CLIP's vocabulary there")


@partial(jax.jit, static_argnames="cfg")
def _encode_tokens(cfg, params, ids):
    return encode_tokens(clip_module(cfg, params), ids)


@partial(jax.jit, static_argnames=("cfg", "gddm_cfg", "length"))
def _embed(cfg, gddm_cfg, clip, learner, points, shape, length):
    tokens, _, _ = gddm(learner["gddm"], points, cfg=gddm_cfg)
    special = special_embeddings(clip_module(cfg, clip))
    return prompts(learner["prompts"], shape_prompt(learner["prompts"], shape), tokens, special, length=length)


@partial(jax.jit, static_argnames="cfg")
def _encode(cfg, clip, embeds, eot, deep):
    return encode_text(clip_module(cfg, clip), embeds, eot, deep)


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    yield from (_plain if entries[0].item == "d" else _learned)(model, entries)


def _plain(model: Model, entries: list[Entry]) -> Iterator[Found]:
    recording = model.recording
    for entry in entries:
        if entry.key.startswith("tokens"):
            yield Found(entry, load_tokenizer(vocabulary(recording))(json.loads(entry.about["inputs"])))
        elif entry.key == "text_features":
            ids = recording.value((recording.sources(entry) or [recording.source(entry, "tokens")])[0])
            yield Found(entry, _encode_tokens(model.clip, model.text, ids))


def _learned(model: Model, entries: list[Entry]) -> Iterator[Found]:
    """Rows of prompts and features: all normal ones, then all abnormal ones."""
    clip, recording = model.clip, model.recording
    learner, _ = model.learner
    clouds = {(recording.sources(entry) or [recording.source(entry, "in_cloudsA", "f")])[0] for entry in entries}
    if len(clouds) != 1:
        raise ParityError(f"{recording.folder}: item e mixes inputs {sorted(clouds)}")
    (source,) = clouds
    points, shape = features(model, source)[:2]
    embeds, eot = _embed(clip, model.method().gddm, model.text, learner, points, shape, clip.context)

    def rows(pairs: jax.Array) -> jax.Array:
        return jnp.concatenate([pairs[:, 0], pairs[:, 1]])

    for entry in entries:
        if entry.key == "prompts":
            yield Found(entry, rows(embeds))
        elif entry.key == "tokenized":
            words = " ".join(["X"] * learner["prompts"]["ctx_normal"].shape[0])
            ids = load_tokenizer(vocabulary(recording))([f"{words} object.", f"{words} damaged object."])
            if not np.array_equal(ids.argmax(-1), eot):
                raise ValueError("the prompts' end-of-text tokens stand elsewhere than in the tokenised templates")
            yield Found(entry, np.repeat(ids, points.shape[0], axis=0))
        elif entry.key in ("text_features", "text_features_fp16_deep"):
            deep = deep_prompts(learner["prompts"], rounded=entry.key.endswith("_fp16_deep"))
            yield Found(entry, rows(_encode(clip, model.text, embeds, eot, deep)))
        elif entry.key == "text_features_b2d":
            yield Found(entry, stage_text(model, source))
