"""GDDM: the recorded arrays, a loop in float64, and who receives gradients."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.convert import fusion_names
from gsclip_jax.methods.gsclip import gddm as module
from gsclip_jax.methods.gsclip.gddm import GddmConfig, aggregate, outlier_scores
from gsclip_jax.runtime.keys import WeightsError
from tests.recorded import Recorded

SMALL = GddmConfig(text_dim=16, point_dim=8, prototypes=5, top_k=4, defect_tokens=2, heads=2)
RELEASED = dataclasses.replace(SMALL, weight_by_score=False)
gddm = jax.jit(module.gddm, static_argnames="cfg")


@pytest.fixture(scope="module")
def params():
    return module.init_gddm(jax.random.key(0), SMALL)


@pytest.fixture(scope="module")
def points():
    return jnp.asarray(np.maximum(np.random.default_rng(1).standard_normal((3, 20, 8)), 0) + 0.05, jnp.float32)


def test_recorded_arrays(shared_reference):
    recorded = Recorded(shared_reference)
    cfg = GddmConfig(text_dim=128, weight_by_score=False)
    state = recorded.state(fusion_names.GDDM_PREFIX)
    params = fusion_names.gddm_from_torch(state, cfg)
    features = np.maximum(recorded.input("g/features_before_relu"), 0)
    tokens, scores, topk = gddm(params, features, cfg=cfg)
    recorded.check("g/outlier_scores", scores[..., None])
    recorded.check("g/topk", topk)
    recorded.check("g/defect_token", tokens)
    tokens, _, _ = gddm(params, features, cfg=dataclasses.replace(cfg, defect_tokens=12))
    recorded.check("g/all_tokens", tokens)
    back = fusion_names.gddm_to_torch(params)
    assert back.keys() == state.keys() and all(np.array_equal(back[name], state[name]) for name in state)


def test_recorded_chain_from_the_points(shared_reference):
    recorded = Recorded(shared_reference)
    cfg = GddmConfig(text_dim=128, weight_by_score=False)
    params = fusion_names.gddm_from_torch(recorded.state(fusion_names.GDDM_PREFIX), cfg)
    tokens, scores, topk = gddm(params, recorded.array("f/points_feat"), cfg=cfg)
    recorded.check("g/chain_scores", scores[..., None])
    recorded.check("g/chain_topk", topk)
    recorded.check("g/chain_defect_token", tokens)


def test_wrong_keys_are_listed_together(params):
    state = fusion_names.gddm_to_torch(params)
    names = list(state)
    del state[names[0]]
    state[names[1]] = state[names[1]][:1]
    state[fusion_names.GDDM_PREFIX + "other"] = np.zeros(2)
    with pytest.raises(WeightsError) as error:
        fusion_names.gddm_from_torch(state, SMALL, where="epoch_15.pth")
    assert all(name in str(error.value) for name in ("epoch_15.pth", names[0], names[1], "other"))


@pytest.mark.parametrize("cfg", [SMALL, RELEASED])
def test_equals_loops_in_float64(params, points, cfg):
    tokens, scores, topk = gddm(params, points, cfg=cfg)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    erf = np.vectorize(math.erf)
    for b, cloud in enumerate(np.asarray(points, np.float64)):
        wanted = [1 - max(f @ q / np.linalg.norm(f) / np.linalg.norm(q) for q in p["prototypes"]) for f in cloud]
        np.testing.assert_allclose(scores[b], wanted, atol=1e-6)
        order = np.argsort(-np.array(wanted))[:4]
        assert np.asarray(topk[b]).tolist() == order.tolist()
        picked = cloud[order] * (np.array(wanted)[order][:, None] if cfg.weight_by_score else 1)
        x = picked @ p["proj"]["kernel"] + p["proj"]["bias"]
        attended = np.tile(p["attn"]["out_bias"], (4, 1))
        for head in range(2):
            q, k, v = (x @ p["attn"]["qkv_kernel"][:, i, head] + p["attn"]["qkv_bias"][i, head] for i in range(3))
            e = np.exp(q @ k.T / math.sqrt(8))
            attended += e / e.sum(-1, keepdims=True) @ v @ p["attn"]["out_kernel"][head]
        x = x + attended
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        hidden = x @ p["ffn"]["kernel"] + p["ffn"]["bias"]
        x = x + 0.5 * hidden * (1 + erf(hidden / math.sqrt(2)))
        np.testing.assert_allclose(tokens[b], x[:2], atol=2e-5)


def gradients(params, points, cfg):
    return jax.jit(jax.grad(lambda params: jnp.square(gddm(params, points, cfg=cfg)[0] + 1).sum()))(params)


def test_paper_gradient_reaches_everything(params, points):
    found = gradients(params, points, SMALL)
    for path, leaf in jax.tree_util.tree_flatten_with_path(found)[0]:
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    # A bias of the keys cancels in the softmax: no round-off of it that Adam would make steps of.
    bias = np.asarray(found["attn"]["qkv_bias"])
    assert not bias[1].any() and bias[0].any() and bias[2].any()


def test_released_gradient_of_the_prototypes_is_exactly_zero(params, points):
    found = gradients(params, points, RELEASED)
    assert not np.asarray(found.pop("prototypes")).any()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found))


def test_prototype_gradient_agrees_with_differences(params, points):
    @jax.jit
    def loss(prototypes):
        return jnp.square(gddm(params | {"prototypes": prototypes}, points, cfg=SMALL)[0] + 1).sum()

    prototypes = np.asarray(params["prototypes"])
    slope = np.asarray(jax.jit(jax.grad(loss))(prototypes))
    step = 1e-3 * slope / np.linalg.norm(slope)
    measured = (loss(prototypes + step) - loss(prototypes - step)) / 2e-3
    np.testing.assert_allclose(measured, np.linalg.norm(slope), rtol=2e-2)


def test_order_of_points_does_not_matter(params, points):
    order = np.random.default_rng(0).permutation(points.shape[1])
    tokens, scores, topk = gddm(params, points, cfg=SMALL)
    tokens2, scores2, topk2 = gddm(params, points[:, order], cfg=SMALL)
    np.testing.assert_allclose(tokens2, tokens, atol=1e-6)
    np.testing.assert_allclose(scores2, scores[:, order], atol=1e-6)
    assert np.array_equal(order[np.asarray(topk2)], topk)


def test_zero_features_are_harmless(params):
    empty = jnp.zeros((1, 6, 8))
    assert np.asarray(outlier_scores(params["prototypes"], empty)).tolist() == [[1.0] * 6]
    slope = jax.jit(jax.grad(lambda x: gddm(params, x, cfg=SMALL)[0].sum()))(empty)
    assert np.isfinite(slope).all()


def test_scores_span_from_equal_to_opposite():
    prototypes = jnp.array([[1.0, 0.0]])
    scores = outlier_scores(prototypes, jnp.array([[[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]]]))
    np.testing.assert_allclose(scores, [[0, 1, 2]], atol=1e-6)


def test_tokens_are_cut_after_all_have_met(params, points):
    """One defect token still has attended to all picked points."""
    one = dataclasses.replace(SMALL, defect_tokens=1)
    tokens, _, _ = gddm(params, points, cfg=one)
    np.testing.assert_array_equal(tokens, gddm(params, points, cfg=SMALL)[0][:, :1])
    picked = jnp.ones((1, 4, 8)).at[0, 3].set(-2.0)
    other = picked.at[0, 3].set(5.0)
    assert np.abs(aggregate(params, picked, one)[0, 0] - aggregate(params, other, one)[0, 0]).max() > 1e-4


def test_impossible_sizes(params):
    with pytest.raises(ValueError, match="3 points are fewer than top_k = 4"):
        gddm(params, jnp.zeros((1, 3, 8)), cfg=SMALL)
    with pytest.raises(ValueError, match="multiple of heads"):
        GddmConfig(text_dim=10, heads=4)
    with pytest.raises(ValueError, match="defect_tokens"):
        GddmConfig(top_k=3, defect_tokens=4)
