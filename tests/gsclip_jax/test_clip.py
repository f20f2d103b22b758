"""CLIP's towers against the authors' recorded arrays and by their own properties (torch oracle: test_clip_transformers.py)."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.convert.openai_names import (
    clip_config_from_state_dict,
    clip_from_state_dict,
    prompts_from_state_dict,
    vision_from_state_dict,
)
from gsclip_jax.models.clip import (
    ClipConfig,
    clip_module,
    clip_shapes,
    embed_tokens,
    encode_image,
    encode_text,
    encode_tokens,
    init_clip,
    preprocess_views,
)
from gsclip_jax.models.lift import upsample
from gsclip_jax.models.lora import Dropout, init_lora, lora_delta, merge_lora
from gsclip_jax.models.similarity import patch_grid, probabilities, similarity_grid, text_logits, view_probability
from gsclip_jax.runtime.flops import flops
from tests.recorded import Recorded, nhwc

TINY = ClipConfig(
    image_size=24, patch=8, vision_width=32, vision_layers=4, vision_heads=2, embed_dim=16, text_width=24, text_layers=3,
    text_heads=2, vocab=50, context=20, vv_blocks=2, sos=1, eos=2, dot=3, pad=0,
)  # fmt: skip


# Compiled once per shape and configuration for all tests, and without optimising: most of the time here is compilation.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@partial(jit, static_argnames=("cfg", "vv", "layers", "lora_dropout"))
def images_with(cfg, params, x, *, lora=None, vv=False, layers=None, key=None, lora_scale=2.0, lora_dropout=0.1):
    return encode_image(clip_module(cfg, params), x, lora=lora, vv=vv, layers=layers, lora_scale=lora_scale,
                        dropout=None if key is None else Dropout(key, lora_dropout))  # fmt: skip


@partial(jit, static_argnames="cfg")
def text_with(cfg, params, embeds, eot, deep=None):
    return encode_text(clip_module(cfg, params), embeds, eot, deep)


@partial(jit, static_argnames="cfg")
def tokens_with(cfg, params, ids):
    return encode_tokens(clip_module(cfg, params), ids)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def recorded(shared_reference) -> Recorded:
    return Recorded(shared_reference)


@pytest.fixture(scope="module")
def small(recorded):
    cfg = clip_config_from_state_dict(recorded.clip_state, vv_blocks=recorded.manifest["configs"]["SMALL"]["DPAM_layer"] - 1)
    return cfg, clip_from_state_dict(recorded.clip_state, cfg)


@pytest.fixture(scope="module")
def tiny():
    """Parameters of the tiny configuration with nothing at its initial zero or one, images, LoRA factors that matter."""
    rng = np.random.default_rng(0)
    moved = lambda x, by: np.asarray(x) + by * rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(lambda x: moved(x, 0.05), init_clip(jax.random.key(0), TINY))
    sizes = {"fc": (32, 128), "proj": (128, 32)}
    lora = {k: {"a": 0.1 * normal(2, 4, i, 4), "b": 0.1 * normal(3, 4, 4, o)} for k, (i, o) in sizes.items()}
    return params, normal(1, 2, 3, 24, 24, 3), lora


# ---- the authors' code


def test_plain_tower_as_recorded(recorded, small):
    found = images_with(*small, nhwc(recorded.input("a/image")), layers=(2, 4, 6))
    recorded.check("a/cls", found.cls)
    for row, layer in enumerate((2, 4, 6)):
        recorded.check(f"a/patch_l{layer}", found.tokens[row])


def test_positions_are_interpolated_for_another_size_as_recorded(recorded, small):
    found = images_with(*small, nhwc(recorded.input("a/image64")))
    recorded.check("a/cls_64", found.cls)
    recorded.check("a/patch_l6_64", found.tokens[0])


def test_vv_path_as_recorded(recorded, small):
    found = images_with(*small, nhwc(recorded.input("b/image")), layers=(2, 4, 6), vv=True)
    recorded.check("b/cls", found.cls)
    for row, layer in enumerate((2, 4, 6)):
        recorded.check(f"b/patch_l{layer}", found.tokens[row])


def test_depth_tower_with_lora_as_recorded(recorded, small):
    params, lora = vision_from_state_dict(recorded.state("visual_depth."), small[0])
    found = images_with(small[0], params, nhwc(recorded.input("c/depth")), lora=lora)
    recorded.check("c/cls", found.cls)
    recorded.check("c/patch_l6", found.tokens[0])


def test_plain_text_as_recorded(recorded, small):
    recorded.check("d/text_features", tokens_with(*small, recorded.array("d/tokens")))


def test_text_with_deep_prompts_as_recorded(recorded, small):
    deep = prompts_from_state_dict(recorded.state("ctx_", "compound_", "pointnet.", "point_feature"))["deep"]
    eot = (recorded.array("e/tokenized") == small[0].eos).argmax(-1)
    recorded.check("e/text_features", text_with(*small, recorded.array("e/prompts"), eot, deep))
    rounded = deep.astype(np.float16).astype(np.float32)
    recorded.check("e/text_features_fp16_deep", text_with(*small, recorded.array("e/prompts"), eot, rounded))


def test_similarity_maps_as_recorded(recorded):
    tokens, text = recorded.input("i/tokens"), recorded.input("i/text")
    similarity, maps, views = jit(lambda tokens, text: (
        probabilities(text_logits(tokens, text)), upsample(similarity_grid(tokens[:, 1:], text), 48),
        view_probability(tokens, text),
    ))(tokens, text)  # fmt: skip
    recorded.check("i/similarity", similarity)
    recorded.check("i/map", maps)
    np.testing.assert_allclose(views, recorded.array("i/similarity")[..., 1], atol=2e-6)


# ---- names


def test_wrong_state_dicts_are_told_with_every_key(recorded):
    state = dict(recorded.clip_state)
    cfg = clip_config_from_state_dict(state)
    state["visual.proj"] = state["visual.proj"][:, :5]
    state["surplus"] = state.pop("ln_final.bias")
    with pytest.raises(ValueError) as caught:
        clip_from_state_dict(state, cfg, "some.pt")
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in ("some.pt", "ln_final.bias", "surplus", "visual.proj"))
    with pytest.raises(ValueError, match=r"visual_depth\.ln_post\.bias"):
        vision_from_state_dict(recorded.state("visual_depth.", without=("visual_depth.ln_post.bias",)), cfg)
    with pytest.raises(ValueError, match="ctx_neg"):
        prompts_from_state_dict(recorded.state("ctx_pos", "compound_prompts", "point_feature_to_prompt_pos"))
    with pytest.raises(ValueError, match=r"missing visual\.conv1\.weight"):
        clip_config_from_state_dict(recorded.state("transformer."))


def test_sizes_beside_the_weights_and_half_precision_are_accepted(recorded):
    cfg = clip_config_from_state_dict(recorded.clip_state)
    state = {name: value.astype(np.float16) for name, value in recorded.clip_state.items()}
    state |= {"input_resolution": np.array(48), "context_length": np.array(77), "vocab_size": np.array(49408)}
    params = clip_from_state_dict(state, cfg)
    shapes = jax.tree.map(lambda leaf: (leaf.shape, np.dtype(leaf.dtype)), clip_shapes(cfg))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == shapes
    assert (cfg.sos, cfg.eos, cfg.dot) == (49406, 49407, 269)


# ---- properties


def test_leading_axes_do_not_matter(tiny):
    params, images, lora = tiny
    whole = images_with(TINY, params, images, vv=True, lora=lora, layers=(3, 4))
    assert whole.cls.shape == (2, 3, 16) and whole.tokens.shape == (2, 2, 3, 10, 16)
    one = images_with(TINY, params, images[1, 2], vv=True, lora=lora, layers=(3, 4))
    np.testing.assert_allclose(one.cls, whole.cls[1, 2], atol=1e-5)
    np.testing.assert_allclose(one.tokens, whole.tokens[:, 1, 2], atol=1e-5)

    embeds = normal(2, 2, 2, 10, 24)
    text = text_with(TINY, params, embeds, np.array([5, 8]))
    np.testing.assert_allclose(text_with(TINY, params, embeds[1, 1], np.array(8)), text[1, 1], atol=1e-5)


def test_what_follows_the_end_of_text_does_not_matter(tiny):
    params = tiny[0]
    ids = np.array([[1, 7, 9, 3, 2, 0, 0, 0], [1, 7, 9, 3, 2, 8, 8, 2], [1, 7, 10, 3, 2, 0, 0, 0]])
    text = tokens_with(TINY, params, ids)
    np.testing.assert_allclose(text[0], text[1], atol=1e-6)
    assert np.abs(text[2] - text[0]).max() > 1e-2
    np.testing.assert_allclose(tokens_with(TINY, params, ids[0, :5]), text[0], atol=1e-6)
    embeds = embed_tokens(clip_module(TINY, params), ids)
    np.testing.assert_allclose(text_with(TINY, params, embeds, np.array([4, 4, 4])), text, atol=1e-6)


def test_deep_prompts_replace_the_context_in_every_block_but_the_first(tiny):
    params, embeds, deep, eot = tiny[0], normal(3, 10, 24), normal(4, 2, 4, 24), np.array(8)
    slopes = jit(jax.grad(lambda d: jnp.sin(encode_text(clip_module(TINY, params), embeds, eot, d)).sum()))(deep)
    assert np.all(np.abs(slopes).max(-1) > 1e-4), "every deep token of every block takes part"
    text = text_with(TINY, params, embeds, eot, deep)
    moved = embeds.copy()
    moved[1:5] += 1  # read by block 1 alone, so still of influence ...
    assert 0 < np.abs(text_with(TINY, params, moved, eot, deep) - text).max()
    short = text_with(TINY, params, embeds, eot, deep[:1])
    assert np.abs(short - text).max() > 1e-3
    with pytest.raises(ValueError, match="deep prompts for 3 blocks"):
        text_with(TINY, params, embeds, eot, np.zeros((3, 4, 24)))


def test_lora_starts_at_the_plain_tower_and_merges(tiny):
    params, images, lora = tiny
    plain = images_with(TINY, params, images)
    fresh = init_lora(jax.random.key(3), TINY, 4)
    assert fresh["fc"]["a"].shape == (4, 32, 4) and fresh["proj"]["b"].shape == (4, 4, 32)
    assert np.abs(fresh["proj"]["a"]).max() > 0
    np.testing.assert_allclose(images_with(TINY, params, images, lora=fresh).tokens, plain.tokens, atol=1e-6)

    with_lora = images_with(TINY, params, images, lora=lora, lora_scale=1.5)
    visual = {**params["visual"], "blocks": merge_lora(params["visual"]["blocks"], lora, 1.5)}
    merged = images_with(TINY, {**params, "visual": visual}, images)
    assert np.abs(with_lora.cls - plain.cls).max() > 1e-2
    np.testing.assert_allclose(merged.cls, with_lora.cls, atol=2e-5)
    np.testing.assert_allclose(merged.tokens, with_lora.tokens, atol=2e-5)


def test_lora_dropout_is_drawn_by_key_and_right_on_average(tiny):
    params, images, lora = tiny
    keys = jax.random.split(jax.random.key(0))
    first, again, second = (images_with(TINY, params, images, lora=lora, key=k).cls for k in (keys[0], keys[0], keys[1]))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-3
    factors = jax.tree.map(lambda x: x[0], lora["fc"])
    x = np.broadcast_to(normal(5, 32), (20000, 32))
    delta = jit(lambda *given: lora_delta(*given, scale=2.0, dropout=Dropout(keys[0], 0.3)))(factors, x)
    exact = 2 * x[0] @ factors["a"] @ factors["b"]
    np.testing.assert_allclose(delta.mean(0), exact, atol=0.03)
    assert np.std(delta, axis=0).min() > 0.01


def test_vv_path_without_blocks_is_the_plain_tower(tiny):
    params, images, _ = tiny
    every = (1, 2, 3, 4)
    plain = images_with(TINY, params, images, layers=every)
    none = images_with(dataclasses.replace(TINY, vv_blocks=0), params, images, vv=True, layers=every)
    np.testing.assert_array_equal(none.tokens, plain.tokens)
    some = images_with(TINY, params, images, vv=True, layers=every)
    np.testing.assert_allclose(some.tokens[:2], plain.tokens[:2], atol=1e-5)
    np.testing.assert_allclose(some.cls, plain.cls, atol=1e-5)
    assert np.abs(some.tokens[2:] - plain.tokens[2:]).max((1, 2, 3, 4)).min() > 1e-2
    last = images_with(TINY, params, images, vv=True)
    np.testing.assert_allclose(last.tokens[0], some.tokens[3], atol=1e-5)


def test_remat_changes_neither_values_nor_gradients(tiny):
    params, images, lora = tiny

    def loss(lora, cfg):
        found = encode_image(clip_module(cfg, params), images[0], lora=lora, vv=True)
        return jnp.square(found.cls).sum() + jnp.square(found.tokens).sum()

    step = jit(jax.value_and_grad(loss), static_argnums=1)
    remat = dataclasses.replace(TINY, remat=True)
    (value, grads), (value_r, grads_r) = step(lora, TINY), step(lora, remat)
    np.testing.assert_allclose(value_r, value, rtol=1e-6)
    for ours, other in zip(jax.tree.leaves(grads_r), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4 * np.abs(other).max())
        assert np.abs(ours).max((1, 2)).min() > 0, "gradients in every layer"
    plain, again = (flops(jax.grad(partial(loss, cfg=cfg)), lora).products for cfg in (TINY, remat))
    assert again > 1.2 * plain, "whole blocks, not their attention alone"


def test_bfloat16_stays_near_float32(tiny):
    params, images, _ = tiny
    exact = np.asarray(images_with(TINY, params, images, vv=True).tokens)
    rough = images_with(dataclasses.replace(TINY, dtype="bfloat16"), params, images, vv=True).tokens
    assert rough.dtype == jnp.bfloat16
    rough = np.asarray(rough, np.float32)
    cosines = (exact * rough).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rough, axis=-1)
    assert cosines.min() > 0.99


def test_preprocessing_by_hand():
    cfg = dataclasses.replace(TINY, image_size=2, patch=1, mean=(0.5, 0.0, 1.0), std=(0.5, 1.0, 2.0))
    views = np.array([[[0, 255], [51, 102]]], np.uint8)
    expected = [[[[-1, 0, -0.5], [1, 1, 0]], [[-0.6, 0.2, -0.4], [-0.2, 0.4, -0.3]]]]
    np.testing.assert_allclose(preprocess_views(cfg, jnp.asarray(views)), expected, atol=1e-6)
    with pytest.raises(ValueError, match="uint8"):
        preprocess_views(cfg, jnp.zeros((2, 2)))
    # No whole number of patches: to the size of training. Grey ramps stay ramps.
    cfg = dataclasses.replace(cfg, image_size=8, patch=4, mean=(0.0,) * 3, std=(1.0,) * 3)
    ramp = np.tile(np.arange(6, dtype=np.uint8) * 20, (6, 1))
    resized = np.asarray(preprocess_views(cfg, ramp)) * 255
    assert resized.shape == (8, 8, 3)
    np.testing.assert_allclose(resized[4, 1:-1, 0], ((np.arange(1, 7) + 0.5) * 6 / 8 - 0.5) * 20, atol=1e-3)
    assert preprocess_views(cfg, np.zeros((3, 12, 12), np.uint8)).shape == (3, 12, 12, 3)  # three patches a side: as it is


def test_configuration_round_trip_and_errors():
    assert ClipConfig.from_json(json.loads(json.dumps(TINY.to_json()))) == TINY
    assert ClipConfig.preset("ViT-L/14@336").grid == 24 and ClipConfig.preset("ViT-B/16").grid == 14
    with pytest.raises(ValueError, match="depth"):
        ClipConfig.from_json({"depth": 3})
    with pytest.raises(ValueError, match=r"ViT-B/32"):
        ClipConfig.preset("ViT-B32")
    with pytest.raises(ValueError) as caught:
        ClipConfig(image_size=337, vv_blocks=25, dtype="float64")
    assert all(word in str(caught.value) for word in ("image_size 337", "vv_blocks 25", "float64"))


def test_bad_arguments_are_told(tiny):
    params, images, _ = tiny
    clip = clip_module(TINY, params)
    with pytest.raises(ValueError, match="multiples of 8"):
        encode_image(clip, images[..., :23, :])
    with pytest.raises(ValueError, match="from 1 to 4"):
        encode_image(clip, images, layers=(0,))
    with pytest.raises(ValueError, match=r"patch_embed.*\(8, 8, 3, 32\)"):
        clip_module(dataclasses.replace(TINY, image_size=16, patch=4, vision_width=32), params)
    with pytest.raises(ValueError, match="tokens; the text tower holds 20"):
        encode_text(clip, jnp.zeros((21, 24)), jnp.array(3))
    with pytest.raises(ValueError, match="without the class token"):
        patch_grid(jnp.zeros((10, 2)))


def test_initial_scales_and_shapes():
    params = init_clip(jax.random.key(0), TINY)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, clip_shapes(TINY))
    blocks = params["visual"]["blocks"]
    assert np.std(blocks["attn"]["qkv_kernel"]) == pytest.approx(32**-0.5, rel=0.05)
    assert np.std(blocks["mlp"]["proj_kernel"]) == pytest.approx((2 * 4 * 32) ** -0.5, rel=0.05)
    assert np.std(params["text"]["token_embedding"]) == pytest.approx(0.02, rel=0.1)
    layers = np.asarray(blocks["attn"]["qkv_kernel"]).reshape(4, -1)
    assert np.abs(np.corrcoef(layers) - np.eye(4)).max() < 0.1, "layers are drawn by themselves"
