"""float32 stays float32: every product of float32 arrays names its precision, and bfloat16 towers round nothing that is learned.

TPUs take float32 products in bfloat16 and GPUs in TF32 unless told otherwise; on CPUs, where the tests run, only the program
shows it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.lax import Precision

from gsclip_jax.methods.gsclip import GsClip
from gsclip_jax.methods.gsclip.prompts import shape_prompt
from gsclip_jax.methods.gsclip.sentences import start_from_sentences
from gsclip_jax.methods.gsclip.srm import SrmConfig, init_srm, srm
from gsclip_jax.methods.surface import with_surface
from gsclip_jax.methods.surface.descriptor import describe, encode_surface, init_surface
from gsclip_jax.models.clip import clip_module, encode_text
from gsclip_jax.models.lift import lift, upsample
from gsclip_jax.models.lora import Dropout, lora_delta, merge_lora
from gsclip_jax.models.pointnet2 import pointnet2
from gsclip_jax.models.precision import widened
from gsclip_jax.models.similarity import text_logits
from gsclip_jax.models.smoothing import smooth_grid
from gsclip_jax.pretraining.vision import PointPretraining
from gsclip_jax.runtime.sharding import place, put_batch
from gsclip_jax.training.train import partition
from tests import tiny

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # most of the time here is compilation


def products(jaxpr) -> Iterator:
    """The matrix products and convolutions of a program and of all programs inside it."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in ("dot_general", "conv_general_dilated"):
            yield eqn
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def unnamed(function, *args) -> tuple[int, list[str]]:
    """How many products with a float32 factor `function` has, and those of them that leave their precision to the device."""
    found = [eqn for eqn in products(jax.make_jaxpr(function)(*args).jaxpr)
             if any(x.aval.dtype == jnp.float32 for x in eqn.invars)]  # fmt: skip
    return len(found), [str(eqn) for eqn in found if eqn.params["precision"] != (Precision.HIGHEST, Precision.HIGHEST)]


def assert_exact(function, *args):
    count, bad = unnamed(function, *args)
    assert count and not bad, "\n".join(bad)


def with_gradients(function):
    """The gradients of the sum of what `function` gives, in all its arguments: the backward products are products, too."""
    total = lambda *args: sum(x.astype(jnp.float32).sum() for x in jax.tree.leaves(function(*args)))  # noqa: E731
    return lambda *args: jax.grad(total, tuple(range(len(args))))(*args)


def method(dtype: str = "float32", **changes) -> GsClip:
    return tiny.method(clip=dataclasses.replace(tiny.CLIP, dtype=dtype), **changes)


@pytest.fixture(scope="module")
def made():
    """Parameters with LoRA factors that matter, statistics, a batch."""
    params, stats = tiny.params(tiny.method())
    moved = iter(jax.random.split(jax.random.key(5), 8))
    params["lora"] = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(moved), x.shape), params["lora"])
    return params, stats, {name: jnp.asarray(x) for name, x in tiny.batch().items()}


def lora_gradients(gsclip, params, stats, batch, key=None):
    trainable, frozen = partition(params, tiny.STAGE2)
    loss = lambda trainable, frozen, batch: gsclip.stage2_loss(trainable, frozen, stats, batch, key)[0]  # noqa: E731
    return jit(jax.grad(loss))(trainable, frozen, batch)


def shown_by_bfloat16(tree) -> float:
    """Share of the nonzero numbers that bfloat16 can show exactly; one in thousands of those computed in float32."""
    flat = np.concatenate([np.asarray(x, np.float32).ravel() for x in jax.tree.leaves(tree)])
    flat = flat[flat != 0]
    return float((flat == flat.astype(jnp.bfloat16).astype(np.float32)).mean())


# ---- products name their precision


def test_the_walk_sees_what_is_not_named():
    x = jnp.ones((3, 3))
    assert unnamed(lambda x: jax.lax.scan(lambda c, _: (c @ x, None), x, length=2), x)[1]
    assert unnamed(jax.checkpoint(lambda x: jnp.einsum("ab,bc", x, x)), x)[1]
    assert unnamed(with_gradients(jax.jit(lambda x: jnp.dot(x.astype(jnp.bfloat16), x))), x)[1]
    assert unnamed(lambda x: x.astype(jnp.bfloat16) @ x.astype(jnp.bfloat16), x) == (0, [])
    assert unnamed(with_gradients(lambda x: jnp.matmul(x, x, precision="highest")), x) == (3, [])


def test_modules_name_their_products(made):
    params, stats, batch = made
    net_cfg, key = tiny.NET, jax.random.key(0)
    tokens = jax.random.normal(key, (2, 5, 16))
    assert_exact(with_gradients(partial(srm, normalise=True)), init_srm(key, SrmConfig(16)), tokens, tokens)
    assert_exact(with_gradients(text_logits), tokens, tokens[:, :2])
    assert_exact(with_gradients(shape_prompt), params["prompts"], jax.random.normal(key, (2, net_cfg.shape_dim)))
    net = partial(pointnet2, train=True, cfg=net_cfg)
    assert_exact(with_gradients(lambda net_params: net(net_params, stats["pointnet2"], batch["cloud"])[0]), params["pointnet2"])
    assert_exact(merge_lora, params["clip"]["visual"]["blocks"], params["lora"])
    assert_exact(with_gradients(lambda maps: upsample(maps, 32)), jnp.ones((2, 4, 4, 2)))
    assert_exact(lambda maps: lift(maps, batch["pixel"], batch["visible"], batch["valid"], 32), jnp.ones((4, 3, 4, 4, 2)))
    assert_exact(smooth_grid, jnp.ones((2, 64)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_training_names_every_product(made, stage, dtype):
    params, stats, batch = made
    gsclip = method(dtype)
    row = next(s for s in gsclip.stages if s.name == stage)
    trainable, frozen = partition(params, row)
    loss = lambda trainable: row.loss(trainable, frozen, stats, batch, jax.random.key(0))[0]  # noqa: E731
    assert_exact(jax.grad(loss), trainable)
    assert not unnamed(lambda params: row.features(params, stats, batch), params)[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prediction_names_every_product(made, dtype):
    params, stats, batch = made
    gsclip = with_surface(method(dtype), 0.5)
    params = {**params, "surface": init_surface(jax.random.key(1), 16)}
    assert_exact(gsclip.predict, params, stats, batch)
    colour = {**batch, "rgb": jnp.zeros((4, 32, 32, 3), jnp.uint8)}
    assert_exact(method(dtype).predict_rgb, params, stats, colour)
    assert_exact(lambda p: encode_surface(p, describe(batch["xyz"], batch["neighbours"], batch["valid"])), params["surface"])


def test_pretraining_names_every_product(made):
    _, _, batch = made
    points = PointPretraining(tiny.NET, categories=3)
    params, stats = points.init(jax.random.key(0))
    params["head"] = {"point": jnp.ones((tiny.NET.head, 2)), "object": jnp.ones((tiny.NET.shape_dim, 3))}
    defective, category = jnp.zeros(batch["cloud"].shape[:2], jnp.int32), jnp.zeros(4, jnp.int32)
    given = {"cloud": batch["cloud"], "defective": defective, "category": category}
    assert_exact(jax.grad(lambda params: points.loss(params, {}, stats, given, None)[0]), params)


# ---- bfloat16 towers round nothing that is learned


def test_the_text_is_the_same_whatever_the_vision_tower_computes_in(made):
    params, stats, batch = made
    texts = [jit(partial(method(dtype).text, train=False))(params, stats, batch["cloud"])[0] for dtype in
             ("float32", "bfloat16")]  # fmt: skip
    np.testing.assert_array_equal(*texts)
    assert texts[1].dtype == jnp.float32
    started = [start_from_sentences(params, clip_module(method(dtype).clip, params["clip"]), [5, 6, 7, 8], [5, 6, 9, 10])
               for dtype in ("float32", "bfloat16")]  # fmt: skip
    np.testing.assert_array_equal(*(x["prompts"]["deep"] for x in started))
    assert started[1]["prompts"]["deep"].dtype == jnp.float32


def test_deep_prompts_enter_the_text_tower_as_they_are(made):
    """A change far below bfloat16's resolution (2^-9) moves the text as much as it should."""
    params, _, _ = made
    clip = clip_module(method("bfloat16").clip, params["clip"])
    shapes = (2, 10, 16), (1, 2, 16), (1, 2, 16)
    embeds, deep, aside = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate(shapes))
    encode = lambda deep: encode_text(clip, embeds, jnp.array(9), deep)  # noqa: E731
    moves = [np.asarray(jit(encode)(deep + step * aside) - jit(encode)(deep)) / step for step in (2.0**-12, 2.0**-8)]
    assert np.abs(moves[1]).max() > 0
    np.testing.assert_allclose(*moves, atol=0.05 * np.abs(moves[1]).max())
    gradient = jit(jax.grad(lambda deep: jnp.square(encode(deep)).sum()))(deep)
    assert gradient.dtype == jnp.float32 and shown_by_bfloat16(gradient) < 0.2


def test_lora_multiplies_and_sums_its_gradients_in_float32():
    """Against float64 on inputs that bfloat16 shows exactly, with dropout: the factors, their product and their gradients."""
    rng, scale, rate = np.random.default_rng(0), 2.0, 0.1
    x = jnp.asarray(rng.standard_normal((3, 4, 50, 32)), jnp.bfloat16)
    factors = {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in (("a", (32, 8)), ("b", (8, 64)))}
    key, pull = jax.random.key(1), jnp.asarray(rng.standard_normal((3, 4, 50, 64)), jnp.bfloat16)
    delta = partial(lora_delta, scale=scale, dropout=Dropout(key, rate))
    value = jit(delta)(factors, x)
    grads, to_x = jit(jax.grad(lambda f, x: (delta(f, x) * pull.astype(jnp.float32)).sum(), (0, 1)))(factors, x)

    kept = np.asarray(jax.random.bernoulli(key, 1 - rate, x.shape))
    wide = np.where(kept, np.asarray(x, np.float64), 0) / (1 - rate) * scale
    a, b, pulled = (np.asarray(y, np.float64) for y in (factors["a"], factors["b"], pull))
    rows, pulled_rows = wide.reshape(-1, 32), pulled.reshape(-1, 64)
    wanted = wide @ a @ b, rows.T @ (pulled_rows @ b.T), (rows @ a).T @ pulled_rows
    for found, want in zip((value, grads["a"], grads["b"]), wanted, strict=True):
        assert found.dtype == jnp.float32
        assert np.abs(found - want).max() < 1e-6 * np.abs(want).max()
    assert to_x.dtype == jnp.bfloat16  # what goes back into the tower
    assert 0.05 < 1 - kept.mean() < 0.15


@pytest.mark.slow
def test_gradients_of_a_bfloat16_run_are_float32(made):
    """Numbers of float32, not of bfloat16 in a float32 array, on one device and summed over two."""
    params, stats, batch = made
    gsclip, key = method("bfloat16"), jax.random.key(0)
    one = lora_gradients(gsclip, params, stats, batch, key)
    mesh = jax.make_mesh((2, 1), ("data", "model"), devices=jax.devices()[:2], axis_types=(jax.sharding.AxisType.Auto,) * 2)
    two = lora_gradients(gsclip, place(params, mesh), stats, put_batch(tiny.batch(), mesh), key)
    for found in (one, two):
        for group in ("lora", "srm"):
            assert shown_by_bfloat16(found[group]) < 0.05
            assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found[group]))
    trainable, frozen = partition(params, tiny.STAGE1)
    loss = lambda trainable: gsclip.stage1_loss(trainable, frozen, stats, batch, None)[0]  # noqa: E731
    assert shown_by_bfloat16(jit(jax.grad(loss))(trainable)) < 0.05


def test_stored_tokens_are_what_the_tower_gives_now(made):
    """bfloat16 features are stored as the tower made them; a step from the store equals one without it."""
    params, stats, batch = made
    gsclip = method("bfloat16")
    stored = jit(lambda params: gsclip.stage2_features(params, stats, batch))(params)["render_tokens"]
    assert stored.dtype == jnp.bfloat16
    tokens = jit(lambda params, batch: gsclip.render_tokens(params, batch))
    live, read = tokens(params, batch), tokens(params, {**batch, "render_tokens": stored})
    np.testing.assert_array_equal(read, live)
    assert live.dtype == jnp.float32
    np.testing.assert_allclose(jnp.square(read).sum(-1), 1, atol=1e-6)


@pytest.mark.parametrize("into, out", [(96, 4), (4, 96)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_a_narrow_product(into, out, dtype):
    """They are those of the product, summed in float32, and only the narrow side is turned: a copy of the wide one takes longer
    than the product."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (3, 50, into)).astype(dtype)
    kernel, g = jax.random.normal(keys[1], (into, out)), jax.random.normal(keys[2], (3, 50, out))

    def gradients(product, x, kernel, g):
        return jax.vjp(product, x, kernel)[1](g)

    ours = gradients(widened, x, kernel, g)
    plain = lambda x, kernel: jnp.einsum("ntj,jo->nto", x.astype(jnp.float32), kernel, precision=Precision.HIGHEST)  # noqa: E731
    for one, other in zip(ours, gradients(plain, x, kernel, g), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one.astype(jnp.float32), other.astype(jnp.float32), rtol=1e-5, atol=1e-4)
    if dtype == jnp.float32:
        text = jax.jit(partial(gradients, widened)).lower(x, kernel, g).compile().as_text()
        assert "f32[150,96]" in text and "f32[96,150]" not in text
