"""SRM: the recorded arrays, loops in float64, gradients, and what must not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.convert import fusion_names
from gsclip_jax.methods.gsclip import srm as module
from gsclip_jax.methods.gsclip.srm import SrmConfig
from gsclip_jax.runtime.keys import WeightsError
from tests.recorded import Recorded

srm = jax.jit(module.srm, static_argnames=("normalise",))


def fused_of(*args, **options):
    return srm(*args, **options)[0]


@pytest.fixture(scope="module")
def params():
    return module.init_srm(jax.random.key(0), SrmConfig(6))


def tokens(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_recorded_arrays(shared_reference):
    recorded = Recorded(shared_reference)
    state = recorded.state(fusion_names.SRM_PREFIX)
    params = fusion_names.srm_from_torch(state, SrmConfig(96))
    one = fused_of(params, recorded.input("h/rgb")[:, None], recorded.input("h/depth")[:, None])
    recorded.check("h/fused", one[:, 0])
    for suffix in ("", "_x3"):
        render, depth = recorded.input(f"h/rgb_seq{suffix}"), recorded.input(f"h/depth_seq{suffix}")
        fused, named = srm(params, render, depth, normalise=False)
        recorded.check(f"h/seq_o2{suffix}", named["enhanced_render"])
        recorded.check(f"h/seq_o1{suffix}", named["enhanced_depth"])
        recorded.check(f"h/seq_fused{suffix}", fused)
    back = fusion_names.srm_to_torch(params)
    assert back.keys() == state.keys() and all(np.array_equal(back[name], state[name]) for name in state)


def test_wrong_keys_are_listed_together(params):
    state = fusion_names.srm_to_torch(params)
    del state["fusion.final_proj.bias"]
    state["fusion.more.weight"] = np.zeros(1)
    with pytest.raises(WeightsError) as error:
        fusion_names.srm_from_torch(state, SrmConfig(6))
    assert "fusion.final_proj.bias" in str(error.value) and "fusion.more.weight" in str(error.value)


def test_equals_loops_in_float64(params):
    render, depth = tokens(2, 5, 6, seed=1), tokens(2, 5, 6, seed=2)
    fused = fused_of(params, render, depth)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for b in range(2):
        r, d = (np.asarray(x[b], np.float64) for x in (render, depth))
        r, d = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (r, d))
        q, k = r @ p["render"]["kernel"] + p["render"]["bias"], d @ p["depth"]["kernel"] + p["depth"]["bias"]
        for t in range(5):
            e = np.exp([q[t] @ k[s] for s in range(5)])
            from_depth = sum(e[s] / e.sum() * d[s] for s in range(5))
            e = np.exp([q[s] @ k[t] for s in range(5)])
            from_render = sum(e[s] / e.sum() * r[s] for s in range(5))
            wanted = np.concatenate([from_depth, from_render]) @ p["out"]["kernel"] + p["out"]["bias"]
            np.testing.assert_allclose(fused[b, t], wanted, atol=1e-6)


def test_one_token_is_a_linear_map_of_both(params):
    """The released use: with a single token both softmaxes are the identity, f1 and f2 are without effect."""
    render, depth = tokens(3, 1, 6, seed=1), tokens(3, 1, 6, seed=2)
    fused = fused_of(params, render, depth, normalise=False)
    joined = jnp.concatenate([depth, render], axis=-1)
    np.testing.assert_allclose(fused, joined @ params["out"]["kernel"] + params["out"]["bias"], atol=1e-6)
    slopes = jax.jit(jax.grad(lambda p: fused_of(p, render, depth).sum()))(params)
    assert not np.asarray(slopes["render"]["kernel"]).any() and np.asarray(slopes["out"]["kernel"]).any()


def test_gradient_reaches_every_leaf(params):
    render, depth = tokens(2, 3, 5, 6, seed=1), tokens(2, 3, 5, 6, seed=2)
    slopes = jax.jit(jax.grad(lambda p: jnp.square(fused_of(p, render, depth) + 1).sum()))(params)
    for path, leaf in jax.tree_util.tree_flatten_with_path(slopes)[0]:
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6, jax.tree_util.keystr(path)


def test_input_length_matters_only_without_normalising(params):
    render, depth = tokens(1, 5, 6, seed=1), tokens(1, 5, 6, seed=2)
    np.testing.assert_allclose(fused_of(params, 3 * render, depth / 5), fused_of(params, render, depth), atol=1e-6)
    raw, scaled = (fused_of(params, factor * render, depth, normalise=False) for factor in (1, 3))
    assert np.abs(raw - scaled).max() > 1e-2


def test_views_and_patch_order_do_not_mix(params):
    render, depth = tokens(2, 3, 5, 6, seed=1), tokens(2, 3, 5, 6, seed=2)
    fused = fused_of(params, render, depth)
    np.testing.assert_allclose(fused[1, 2], fused_of(params, render[1, 2], depth[1, 2]), atol=1e-6)
    order = np.array([0, 3, 1, 4, 2])
    np.testing.assert_allclose(fused_of(params, render[..., order, :], depth[..., order, :]), fused[..., order, :], atol=1e-6)


def test_zero_token_has_finite_gradient(params):
    render = tokens(1, 4, 6).at[0, 2].set(0)
    slope = jax.jit(jax.grad(lambda x: fused_of(params, x, tokens(1, 4, 6, seed=3)).sum()))(render)
    assert np.isfinite(slope).all()


def test_unequal_shapes(params):
    with pytest.raises(ValueError, match="must have one shape"):
        srm(params, tokens(1, 4, 6), tokens(1, 5, 6))
