"""The baseline without learning: its text, its scores, and how it is built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import common
from gsclip_jax.build import build_model
from gsclip_jax.convert.load import MINI
from gsclip_jax.methods.plain_clip import DAMAGED, SOUND, TEMPLATES, Config, PlainClip, ensemble
from gsclip_jax.models.clip import clip_module, encode_tokens
from gsclip_jax.models.tokenizer import load_tokenizer
from gsclip_jax.parts import ConfigError
from tests import tiny


def test_sentences_are_words_the_embedded_clip_knows():
    tokenizer = load_tokenizer(MINI / "tokenizer.json")
    ids = ensemble(tokenizer)
    assert ids.shape == (2, len(TEMPLATES) * len(SOUND), 77) and len(SOUND) == len(DAMAGED)
    unknown = tokenizer.encode("rhubarb")
    assert len(unknown) == 1 and not (ids == unknown[0]).any()
    assert len({tuple(row) for row in ids.reshape(-1, 77)}) == ids.shape[0] * ids.shape[1]


@pytest.mark.slow
def test_scores_are_those_of_the_render_stream_with_the_mean_sentence():
    gsclip = tiny.method(streams="render")
    params, stats = tiny.params(gsclip)
    rng = np.random.default_rng(0)
    sentences = rng.integers(4, 16, (2, 3, 6)).astype(np.int32)
    sentences[..., 0], sentences[..., -1] = tiny.CLIP.sos, tiny.CLIP.eos
    plain = PlainClip(Config(), tiny.CLIP, sentences)
    batch = tiny.batch(2)
    scores = jax.jit(plain.predict)({"clip": params["clip"]}, {}, batch)

    clip = clip_module(tiny.CLIP, params["clip"])
    text = []
    for kind in sentences:
        features = np.stack([np.asarray(encode_tokens(clip, jnp.asarray(row[None])))[0] for row in kind])
        mean = (features / np.linalg.norm(features, axis=1, keepdims=True)).mean(0)
        text.append(mean / np.linalg.norm(mean))
    want = gsclip.score(gsclip.compare(gsclip.render_tokens(params, batch), jnp.asarray(text)[None]), batch)
    for found, expected in zip(scores, want, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    other = {**batch, "depth": 255 - batch["depth"], "cloud": -batch["cloud"]}  # it looks at neither
    np.testing.assert_array_equal(jax.jit(plain.predict)({"clip": params["clip"]}, {}, other).points, scores.points)


def test_it_is_built_from_a_configuration(tmp_path):
    config = common.embedded()
    config.method = "plain_clip"
    method, params, stats, weights = build_model(config)
    assert method.name == "plain_clip" and not method.stages and set(params) == {"clip"} and set(weights) == {"clip"}
    config.clip.tokenizer = str(tmp_path / "words.json")
    with pytest.raises(ValueError, match="no such tokenizer file"):
        build_model(config)
    config.method = "plain_clop"
    with pytest.raises(ConfigError, match="did you mean 'plain_clip'"):
        build_model(config)
