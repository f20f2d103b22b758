"""Prompt assembly against the authors' recorded prompts and text features, and its layouts by hand."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.convert.openai_names import clip_config_from_state_dict, clip_from_state_dict, prompts_from_state_dict
from gsclip_jax.methods.gsclip.prompts import PromptConfig, deep_prompts, init_prompts, prompts, shape_prompt, special_embeddings
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_text, init_clip
from gsclip_jax.models.layers import normalise
from tests.recorded import Recorded

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SPECIAL = {name: np.full(3, value, np.float32) for name, value in (("sos", 90), ("dot", 91), ("eos", 92), ("pad", 99))}
PARAMS = {"ctx_normal": np.full((2, 3), 1.0), "ctx_abnormal": np.full((2, 3), 2.0)}


@pytest.fixture(scope="module")
def recorded(shared_reference) -> Recorded:
    return Recorded(shared_reference)


def rows(embeds) -> list:
    assert np.all(np.asarray(embeds) == np.asarray(embeds)[..., :1])
    return np.asarray(embeds)[..., 0].tolist()


def test_text_pair_as_recorded(recorded):
    cfg = clip_config_from_state_dict(recorded.clip_state)
    params = prompts_from_state_dict(recorded.state("ctx_", "compound_", "pointnet.", "point_feature"))
    # t_s and t_d stand at positions 13 and 14 of the recorded abnormal prompts; the modules that make them have their own tests.
    theirs = recorded.array("e/prompts")
    batch = theirs.shape[0] // 2
    shape_tokens, defect_tokens = theirs[batch:, 13], theirs[batch:, 14:15]

    @partial(jit, static_argnames=("length", "rounded"))
    def encode(clip_params, shape_tokens, defect_tokens, length, rounded=False):
        clip = clip_module(cfg, clip_params)
        embeds, eot = prompts(params, shape_tokens, defect_tokens, special_embeddings(clip), length=length)
        text = encode_text(clip, embeds, eot, deep_prompts(params, rounded=rounded))
        return embeds, eot, text, normalise(text)

    def in_their_order(x):
        return np.concatenate([x[:, 0], x[:, 1]])

    clip_params = clip_from_state_dict(recorded.clip_state, cfg)
    embeds, eot, text, normalised = encode(clip_params, shape_tokens, defect_tokens, 77)
    assert eot.tolist() == [15, 16]
    np.testing.assert_array_equal(in_their_order(embeds), theirs)
    recorded.check("e/text_features", in_their_order(text))
    recorded.check("e/text_features_b2d", normalised)

    short, eot, text, _ = encode(clip_params, shape_tokens, defect_tokens, None, rounded=True)
    assert short.shape == (batch, 2, 17, 128) and eot.tolist() == [15, 16]
    recorded.check("e/text_features_fp16_deep", in_their_order(text))


def test_shape_prompt_equals_torch():
    torch = pytest.importorskip("torch", reason="torch is not installed: a test oracle only")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    linear, norm = torch.nn.Linear(10, 6), torch.nn.LayerNorm(6)
    with torch.no_grad():
        norm.weight.add_(torch.randn(6))
        norm.bias.add_(torch.randn(6))
    layer = {"kernel": linear.weight.detach().numpy().T, "bias": linear.bias.detach().numpy(),
             "ln": {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}}  # fmt: skip
    x = 3 * rng.standard_normal((4, 10)).astype(np.float32)
    with torch.no_grad():
        expected = norm(torch.nn.functional.gelu(linear(torch.from_numpy(x))))
    # Over a thousand seeds two float32 results part by up to 1.1e-5.
    np.testing.assert_allclose(jit(shape_prompt)({"shape": layer}, x), expected, atol=2e-5)


def test_released_names_of_the_shape_prompt(recorded):
    state = recorded.state("ctx_", "compound_prompts", "point_feature_to_prompt_pos")
    params = prompts_from_state_dict(state)
    assert np.array_equal(params["shape"]["kernel"], state["point_feature_to_prompt_pos.0.weight"].T)
    assert np.array_equal(params["shape"]["ln"]["scale"], state["point_feature_to_prompt_pos.2.weight"])
    assert np.array_equal(params["ctx_abnormal"], state["ctx_neg"][0, 0])
    assert np.array_equal(params["deep"][1], state["compound_prompts_text.1"])


def test_layout_with_shape_and_two_defect_tokens():
    shape, defect = np.full((2, 3), [[5.0], [6.0]]), np.full((2, 2, 3), [[[7.0], [8.0]], [[-7.0], [-8.0]]])
    embeds, eot = prompts(PARAMS, shape, defect, SPECIAL, length=9)
    assert rows(embeds) == [
        [[90, 1, 1, 5, 91, 92, 99, 99, 99], [90, 2, 2, 5, 7, 8, 91, 92, 99]],
        [[90, 1, 1, 6, 91, 92, 99, 99, 99], [90, 2, 2, 6, -7, -8, 91, 92, 99]],
    ]
    assert eot.tolist() == [5, 7]


def test_layouts_without_shape_or_defect_and_with_words():
    defect = np.full((1, 1, 3), 7.0)
    embeds, eot = prompts(PARAMS, None, None, SPECIAL, length=None)
    assert rows(embeds) == [[[90, 1, 1, 91, 92], [90, 2, 2, 91, 92]]] and eot.tolist() == [4, 4]
    embeds, eot = prompts(PARAMS, None, defect, SPECIAL, length=None)
    assert rows(embeds) == [[[90, 1, 1, 91, 92, 99], [90, 2, 2, 7, 91, 92]]] and eot.tolist() == [4, 5]
    embeds, eot = prompts(PARAMS, np.full((1, 3), 5.0), None, SPECIAL, length=6)
    assert rows(embeds) == [[[90, 1, 1, 5, 91, 92], [90, 2, 2, 5, 91, 92]]]
    words = np.full((1, 3), 30.0), np.full((2, 3), [[31.0], [30.0]])
    embeds, eot = prompts(PARAMS, None, None, SPECIAL, length=None, words=words)
    assert rows(embeds) == [[[90, 1, 1, 30, 91, 92, 99], [90, 2, 2, 31, 30, 91, 92]]] and eot.tolist() == [5, 6]


def test_prompts_too_long_are_refused():
    with pytest.raises(ValueError, match="prompts of 6 tokens, 5 fit"):
        prompts(PARAMS, np.zeros((1, 3)), None, SPECIAL, length=5)


def test_special_tokens_come_from_the_configuration():
    cfg = ClipConfig(
        image_size=8, patch=8, vision_width=8, vision_layers=1, vision_heads=1, embed_dim=4, text_width=8, text_layers=3,
        text_heads=1, vocab=10, context=12, vv_blocks=0, sos=3, eos=7, dot=5, pad=1,
    )  # fmt: skip
    params = init_clip(jax.random.key(0), cfg)
    special = special_embeddings(clip_module(cfg, params))
    for name, token in (("sos", 3), ("eos", 7), ("dot", 5), ("pad", 1)):
        np.testing.assert_array_equal(special[name], params["text"]["token_embedding"][token])

    made = init_prompts(jax.random.key(1), PromptConfig(context_tokens=4, deep_depth=9, shape_dim=6), cfg)
    assert jax.tree.map(jnp.shape, made) == {
        "ctx_normal": (4, 8), "ctx_abnormal": (4, 8), "deep": (2, 4, 8),
        "shape": {"kernel": (6, 8), "bias": (8,), "ln": {"scale": (8,), "bias": (8,)}},
    }  # fmt: skip
    assert np.abs(np.asarray(made["ctx_normal"]) - np.asarray(made["ctx_abnormal"])).max() > 0.01
    one_block = dataclasses.replace(cfg, text_layers=1)
    bare = init_prompts(jax.random.key(1), PromptConfig(shape_dim=0), one_block)
    assert "shape" not in bare and deep_prompts(bare) is None


def test_rounding_of_deep_prompts_is_float16():
    deep = np.array([[[0.1, 1.0, 1e-4]]], np.float32)
    np.testing.assert_array_equal(deep_prompts({"deep": deep}), deep)
    rounded = np.asarray(deep_prompts({"deep": jnp.asarray(deep)}, rounded=True))
    np.testing.assert_array_equal(rounded, deep.astype(np.float16).astype(np.float32))
    assert rounded[0, 0, 0] != deep[0, 0, 0]
