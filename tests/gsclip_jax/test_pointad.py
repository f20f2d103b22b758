"""PointAD: its prompts, what trains, and what it does not look at."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import common
from gsclip_jax.build import build_model
from gsclip_jax.methods.pointad import Config, Model, PointAd, Stage1
from gsclip_jax.models.clip import clip_module, embed_tokens, encode_tokens
from gsclip_jax.training.train import FitConfig, fit
from tests import tiny

WORDS = ([5, 6], [7, 5, 6])


@pytest.fixture(scope="module")
def made():
    cfg = Config(Model(n_ctx=4, deep_depth=2, n_deep=2), Stage1(epochs=1, learning_rate=2e-2))
    method = PointAd(cfg, tiny.CLIP, WORDS)
    params, stats = method.init(jax.random.key(3))
    return method, {**params, "clip": tiny.params(tiny.method())[0]["clip"]}, stats


def test_contexts_that_are_words_make_the_sentence(made):
    """With word embeddings for contexts and no deep prompts the text is that of the sentence, context and word and full stop."""
    method, params, stats = made
    clip = clip_module(tiny.CLIP, params["clip"])
    context = jnp.asarray([8, 9, 10, 11])
    embedded = embed_tokens(clip, context)
    prompts = {"ctx_normal": embedded, "ctx_abnormal": embedded, "deep": params["prompts"]["deep"][:0]}
    found = {**params, "prompts": prompts}
    text = jax.jit(method.text)(found)
    text = jnp.concatenate([text, jax.jit(method.evidence)(found, stats, tiny.batch(2))[1][1:]])
    encode = jax.jit(lambda ids: encode_tokens(clip, ids))
    for row, word in enumerate(WORDS):
        ids = np.array([[tiny.CLIP.sos, *context, *word, tiny.CLIP.dot, tiny.CLIP.eos]])
        want = np.asarray(encode(jnp.asarray(ids)))[0]
        np.testing.assert_allclose(text[0, row], want / np.linalg.norm(want), atol=2e-6)
        np.testing.assert_array_equal(text[0, row], text[1, row])


def test_it_sees_renders_alone(made):
    method, params, stats = made
    batch = tiny.batch(2)
    scores = jax.jit(method.predict)(params, stats, batch)
    other = {**batch, "depth": 255 - batch["depth"], "cloud": -batch["cloud"]}
    for one, two in zip(scores, jax.jit(method.predict)(params, stats, other), strict=True):
        np.testing.assert_array_equal(one, two)
    turned = jax.jit(method.predict)(params, stats, {**batch, "render": 255 - batch["render"]})
    assert np.abs(np.asarray(turned.points - scores.points)).max() > 1e-4


@pytest.mark.slow
def test_only_its_prompts_train_and_the_loss_falls(made, tmp_path):
    method, params, stats = made
    mesh = jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1],
                         axis_types=(jax.sharding.AxisType.Auto,) * 2)  # fmt: skip
    batch = tiny.batch(4)
    value = jax.jit(lambda p: method.loss(p, {}, stats, batch, None)[0])

    def feed(first):
        while True:
            yield batch

    trained, _ = fit(method.stages[0], params, stats, feed, 25, FitConfig(tmp_path, mesh, 0))
    assert value(trained) < value(params) - 0.01
    jax.tree.map(np.testing.assert_array_equal, trained["clip"], params["clip"])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), trained["prompts"], dict(params["prompts"]))
    assert all(change > 0 for change in jax.tree.leaves(moved))


def test_the_configuration_builds_it_around_the_embedded_clip():
    config = common.embedded()
    config.method = "pointad"
    method, params, stats, weights = build_model(config)
    assert set(params) == {"prompts", "clip"} and "shape" not in params["prompts"] and stats == {}
    assert [stage.name for stage in method.stages] == ["stage1"] and set(weights) == {"clip"}
    assert [len(ids) for ids in method.words] == [1, 2]
    assert dataclasses.replace(method.stages[0], train={}).frozen == ("clip",)
