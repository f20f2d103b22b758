"""Attention by backend, and the last block computed for the rows that are read."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from gsclip_jax.models import attention
from gsclip_jax.models.attention import attend, flash
from gsclip_jax.models.clip import clip_module, init_clip
from gsclip_jax.models.clip_blocks import run_blocks
from tests import tiny

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def heads(seed=0, dtype=jnp.float32):
    return tuple(jax.random.normal(key, (2, 5, 2, 8), dtype) for key in jax.random.split(jax.random.key(seed), 3))


def test_attention_is_that_of_jax():
    q, k, v = heads()
    causal = jnp.tril(jnp.ones((5, 5), bool))
    for mask in (None, causal):
        wanted = jax.nn.dot_product_attention(q, k, v, mask=None if mask is None else mask[None, None], implementation="xla")
        np.testing.assert_allclose(attend(q, k, v, mask), wanted, atol=1e-6)
    last = attend(q[:, -1:], k, v, jnp.stack([causal[-1:], causal[-1:]]))
    np.testing.assert_allclose(last, attend(q, k, v, causal)[:, -1:], atol=1e-6)


def test_the_backward_pass_keeps_no_weights():
    q, k, v = (jax.random.normal(key, (2, 50, 2, 8)) for key in jax.random.split(jax.random.key(0), 3))
    _, back = jax.vjp(attend, q, k, v)
    assert max(leaf.size for leaf in jax.tree.leaves(back)) == q.size  # weights are [2,2,50,50]
    wanted = jax.vjp(partial(jax.nn.dot_product_attention, implementation="xla"), q, k, v)[1](v)
    for ours, theirs in zip(back(v), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.fixture
def gpu(monkeypatch):
    """As on a GPU; what cuDNN refuses is asked anew."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    flash.cache_clear()
    yield
    flash.cache_clear()


def test_without_cudnn_attention_is_plain(gpu):
    assert not flash(jnp.dtype("bfloat16"), 64)  # there is none here, and JAX says so
    np.testing.assert_array_equal(attend(*heads()).shape, (2, 5, 2, 8))


def test_half_precision_on_a_gpu_takes_the_flash_kernels(gpu, monkeypatch):
    """The program alone: nothing here could run it."""
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)
    half, mask = heads(dtype=jnp.bfloat16), jnp.ones((5, 5), bool)
    taken = "dot_product_attention"
    assert taken in str(jax.make_jaxpr(attend)(*half))
    for given in (heads(), (*half, mask)):
        assert taken not in str(jax.make_jaxpr(attend)(*given))
    assert not attention.flash(jnp.dtype("bfloat16"), 20)  # a width that the kernels do not take


@pytest.mark.parametrize("remat", [False, True])
def test_the_last_block_of_some_rows_is_that_of_all(remat):
    """Class tokens of images on both paths, ends of texts with deep prompts; and their gradients."""
    params = init_clip(jax.random.key(0), tiny.CLIP)
    clip = clip_module(tiny.CLIP, params)
    x, ends = jax.random.normal(jax.random.key(1), (3, 6, 32)), jnp.array([[2], [5], [4]])
    texts, deep = x[..., :16], jax.random.normal(jax.random.key(2), (1, 2, 16))
    causal = jnp.tril(jnp.ones((6, 6), bool))

    def images(x, only):
        found = run_blocks(clip.visual.blocks, x, remat=remat, layers=(1, 2), vv_start=1, only=only)
        return found.last[:, :1], found.tokens

    def ends_of(x, only):
        found = run_blocks(clip.text.blocks, x, remat=remat, layers=(), mask=causal, deep=deep, only=only)
        return found.last if only is not None else jnp.take_along_axis(found.last, ends[..., None], axis=1)

    for run, given, only in ((images, x, 1), (ends_of, texts, ends)):
        total = lambda x, only, run=run: sum(jnp.square(y).sum() for y in jax.tree.leaves(run(x, only)))  # noqa: E731
        for ours, whole in zip(*(jax.tree.leaves(jit(lambda x, only=only, run=run, total=total: (run(x, only), jax.grad(total)(
                x, only)))(given)) for only in (only, None)), strict=True):  # fmt: skip
            np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-5)
