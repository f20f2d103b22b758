"""Operations counted from a program, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from gsclip_jax.runtime.flops import flops
from tests import tiny

M, K, N = 3, 4, 5
x, w, square = jnp.ones((M, K)), jnp.ones((K, N)), jnp.ones((K, K))
PRODUCT = 2 * M * K * K  # of x with the square


def test_products_and_convolutions():
    assert flops(jnp.matmul, x, w).products == 2 * M * K * N
    assert flops(jnp.matmul, jnp.ones((7, M, K)), jnp.ones((7, K, N))).products == 7 * 2 * M * K * N
    # 6 x 6 places of a 3 x 3 kernel over 8 / 2 channels each, 10 results.
    image, kernel = jnp.ones((1, 8, 8, 8)), jnp.ones((3, 3, 4, 10))
    convolve = lambda a, b: jax.lax.conv_general_dilated(  # noqa: E731
        a, b, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )  # fmt: skip
    assert flops(convolve, image, kernel).products == 2 * 6 * 6 * 10 * 3 * 3 * 4


def test_products_of_half_precision_are_named():
    half, step = (jnp.ones((K, K), dtype) for dtype in (jnp.bfloat16, jnp.float32))
    turns = lambda x, b: jax.lax.scan(lambda c, _: (c @ b, None), x, None, 3)[0]  # noqa: E731
    found = flops(lambda a, b, c: ((a @ b).astype(jnp.float32) @ c, turns(a, b)), half, half, step)
    assert (found.half, found.products) == (4 * 2 * K**3, 5 * 2 * K**3)


def test_elementwise_work_is_apart_and_moving_is_none():
    found = flops(lambda a: (jnp.sin(a) + 1).sum() * a.T.reshape(-1)[:2], x)
    assert found.products == 0 and found.other == 3 * M * K + 2 and found.all == found.other
    assert flops(lambda a: jnp.concatenate([a.T.reshape(-1), a[0]]).astype(jnp.bfloat16), x).all == 0


def test_a_scan_counts_every_turn():
    turns = lambda a, b: jax.lax.scan(lambda c, _: (c @ b, None), a, None, length=6)[0]  # noqa: E731
    assert flops(turns, x, square).products == 6 * PRODUCT
    assert flops(lambda a, b: jax.lax.fori_loop(0, 6, lambda _, c: c @ b, a), x, square).products == 6 * PRODUCT


def with_branch(a, b, start=3):
    """Five turns, of which those from `start` on do the product."""
    step = lambda c, i: (jax.lax.cond(i >= start, lambda: c @ b, lambda: c), None)  # noqa: E731
    return jax.lax.scan(step, a, jnp.arange(5))[0]


@pytest.mark.parametrize("start", [0, 3, 5])
def test_a_branch_that_the_program_decides_counts_where_it_is_taken(start):
    taken = (5 - start) * PRODUCT
    assert flops(lambda a, b: with_branch(a, b, start), x, square).products == taken
    gradient = jax.grad(lambda a, b: with_branch(a, b, start).sum(), argnums=(0, 1))
    assert flops(gradient, x, square).products == 3 * taken  # forward, and one product for each of both arguments


def test_of_an_undecided_branch_the_dearest_counts():
    either = lambda i, a, b: jax.lax.cond(i > 0, lambda: a @ b, lambda: a @ (b @ b))  # noqa: E731
    assert flops(either, jnp.int32(1), x, square).products == PRODUCT + 2 * K**3


def test_what_is_computed_again_counts_again():
    loss = lambda a, b: (jnp.sin(a @ b) @ b).sum()  # noqa: E731
    plain = flops(jax.value_and_grad(loss, 1), x, square).products
    assert plain == 5 * PRODUCT  # two forward; backward one for the activation, two for the kernel
    again = flops(jax.value_and_grad(jax.checkpoint(loss), 1), x, square).products
    assert again == plain + PRODUCT  # the inner product; nothing reads the outer one again


def test_what_nothing_depends_on_does_not_count():
    assert flops(lambda a, b: (a @ b, a)[1], x, w).all == 0


def test_an_open_loop_is_said():
    found = flops(lambda a, b: jax.lax.while_loop(lambda c: c.sum() > 0, lambda c: c @ b, a), x, square)
    assert (found.products, found.open_loops) == (PRODUCT, 1)


def test_a_program_on_several_devices_counts_whole():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(jax.P("data"), jax.P()), out_specs=jax.P("data"))
    assert flops(each, jnp.ones((2 * M, K)), w).products == 2 * 2 * M * K * N


def test_the_vision_tower_by_hand():
    """Of the render stream: patches, two blocks of which the last has the V-V path, two projections."""
    c, images = tiny.CLIP, 6
    tokens, width = 1 + c.grid**2, c.vision_width
    block = tokens * (4 + 8) * width**2 * 2 + 2 * 2 * tokens**2 * width  # attention's products, MLP; q k, w v
    second = tokens * width**2 * 2 + 2 * 2 * tokens**2 * width  # v v, its sum and its projection out
    # Of the last block's own path token 0 alone is read: no queries, attention, projection and MLP of the others.
    unread = (tokens - 1) * (1 + 1 + 8) * width**2 * 2 + 2 * 2 * (tokens - 1) * tokens * width
    embed = c.grid**2 * 3 * c.patch**2 * width * 2
    project = (tokens + 1) * width * c.embed_dim * 2
    method = tiny.method()
    params, stats = jax.eval_shape(lambda: tiny.params(method))
    found = flops(method.stages[0].features, params, stats, tiny.batch(2))
    assert found.products == images * (embed + 2 * block - unread + second + project) and found.open_loops == 0
