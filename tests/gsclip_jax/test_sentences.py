"""Prompts that start as sentences: GS-CLIP then begins as plain CLIP with those sentences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import common
from gsclip_jax.build import build_model
from gsclip_jax.methods.gsclip.sentences import start_from_sentences
from gsclip_jax.models.clip import clip_module, encode_tokens
from gsclip_jax.models.layers import normalise
from gsclip_jax.parts import ConfigError
from tests import tiny

NORMAL, ABNORMAL = [5, 6, 7, 8], [5, 6, 9, 10]  # tiny contexts hold four tokens, its deep prompts replace the first two


def started(normal=NORMAL, abnormal=ABNORMAL, **changes):
    gsclip = tiny.method(**changes)
    params, stats = tiny.params(gsclip)
    clip = clip_module(tiny.CLIP, params["clip"])
    return gsclip, start_from_sentences(params, clip, normal, abnormal), stats, clip


def plain(clip, *sentences):
    cfg = tiny.CLIP
    return normalise(encode_tokens(clip, jnp.asarray([[cfg.sos, *ids, cfg.dot, cfg.eos] for ids in sentences])))


def test_without_geometry_the_text_is_the_sentences():
    gsclip, params, stats, clip = started(shape_prompt=False, defect_prompt=False)
    text_of = jax.jit(lambda params: gsclip.text(params, stats, tiny.batch()["cloud"], train=False)[0])
    text = text_of(params)
    want = plain(clip, NORMAL, ABNORMAL)
    np.testing.assert_allclose(text, np.broadcast_to(want, text.shape), atol=2e-6)
    assert np.abs(np.asarray(want[0] - want[1])).max() > 1e-3
    unlike = text_of(tiny.params(gsclip)[0])
    assert np.abs(np.asarray(unlike - text)).max() > 1e-3


def test_sentences_that_begin_apart_share_the_mean_of_what_they_become():
    _, params, _, _ = started([5, 6, 7, 8], [9, 10, 11, 12])
    deep = [started(ids, ids)[1]["prompts"]["deep"] for ids in ([5, 6, 7, 8], [9, 10, 11, 12])]
    np.testing.assert_allclose(params["prompts"]["deep"], (deep[0] + deep[1]) / 2, atol=1e-6)


def test_geometry_starts_as_long_as_a_word():
    gsclip, params, _, clip = started()
    words = np.concatenate([params["prompts"][name] for name in ("ctx_normal", "ctx_abnormal")])
    length = np.sqrt(np.square(words).mean())
    for norm in (params["prompts"]["shape"]["ln"], params["gddm"]["norm"]):
        np.testing.assert_allclose(norm["scale"], length, rtol=1e-6)
        assert not np.any(norm["bias"])
    untouched = tiny.params(gsclip)[0]
    assert jax.tree.structure(untouched) == jax.tree.structure(params)
    for group in ("srm", "lora", "pointnet2", "clip"):
        jax.tree.map(np.testing.assert_array_equal, untouched[group], params[group])


def test_sentences_of_another_length_are_refused():
    with pytest.raises(ValueError, match="abnormal sentence has 3 tokens, the context 4"):
        started(NORMAL, [5, 6, 7])
    config = common.embedded()
    config.model.n_ctx = 8
    with pytest.raises(ConfigError, match=r"config.model.start: the normal sentence has 12 tokens, the context 8"):
        build_model(config)


def test_the_embedded_default_starts_as_its_sentences_and_the_presets_as_the_paper():
    config = common.embedded()
    _, params, _, _ = build_model(config)
    contexts = params["prompts"]["ctx_normal"], params["prompts"]["ctx_abnormal"]
    np.testing.assert_array_equal(contexts[0][:4], contexts[1][:4])  # "a picture of a"
    assert np.abs(np.asarray(contexts[0][4] - contexts[1][4])).max() > 0  # "sound", "damaged"
    for name in common.AUXILIARY:
        assert not common.paper(name).model.start
    config.model.start = ()
    drawn = build_model(config)[1]["prompts"]["ctx_normal"]
    assert np.std(drawn) == pytest.approx(0.02, rel=0.1)
