"""PointNet++: the recorded arrays, naive loops, and what must not matter (order of points, companions in the batch)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.convert import pointnet2_names
from gsclip_jax.models.pointnet2 import (
    PointNet2Config,
    ball_query,
    farthest_points,
    init_pointnet2,
    interpolate,
    layer_sizes,
    pointnet2,
)
from gsclip_jax.runtime.keys import WeightsError
from tests.recorded import Recorded

SMALL = PointNet2Config(centroids=(32, 8), radii=(0.3, 0.8), down=((16, 32), (32, 64)), up=((32, 32), (16,)), head=24)
TINY = PointNet2Config(centroids=(16,), radii=(0.5,), down=((8, 8),), up=((16,),), head=32)
forward = jax.jit(pointnet2, static_argnames=("train", "cfg"))


def run(params, stats, cloud, train=False, cfg=SMALL, start=0):
    """One compiled program for all tests of equal shapes."""
    return forward(params, stats, cloud, train=train, cfg=cfg, start=jnp.int32(start))


def sphere(*shape, seed=0):
    xyz = np.random.default_rng(seed).standard_normal((*shape, 3)).astype(np.float32)
    return xyz / np.linalg.norm(xyz, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def small():
    return init_pointnet2(jax.random.key(0), SMALL)


@pytest.fixture(scope="module")
def recorded(shared_reference):
    return Recorded(shared_reference)


# ---------------------------------------------------------------- recorded arrays


def test_recorded_inference_with_every_index(recorded):
    params, stats, _ = pointnet2_names.from_torch(recorded.state("pointnet."), prefix="pointnet.")
    cloud = recorded.array("f/in_cloudsA")
    (points, shape), same, named = run(params, stats, cloud, cfg=PointNet2Config())
    for level in range(1, 5):
        recorded.check(f"f/fps_l{level}", named[f"fps{level}"])
        recorded.check(f"f/ball_l{level}", named[f"ball{level}"])
    for level in (1, 2, 3):
        recorded.check(f"f/sa{level}_points", jnp.swapaxes(named[f"sa{level}"], 1, 2))
    recorded.check("f/l4_points", jnp.swapaxes(named["sa4"], 1, 2))
    recorded.check("f/global", shape)
    recorded.check("f/points_feat", points)
    assert jax.tree.all(jax.tree.map(np.array_equal, same, stats)), "inference changed the statistics"


def test_recorded_training_mode_and_running_statistics(recorded):
    params, stats, _ = pointnet2_names.from_torch(recorded.state("pointnet."), prefix="pointnet.")
    cloud = recorded.array("f/in_cloudsA")
    (points, _), new, named = run(params, stats, cloud, train=True, cfg=PointNet2Config())
    recorded.check("f/points_feat_train", points[:, ::16])
    recorded.check("f/l4_points_train", jnp.swapaxes(named["sa4"], 1, 2))
    after = pointnet2_names.to_torch(params, new)
    names = [name for name in recorded.manifest["arrays"] if name.startswith("f/train_")]
    assert names
    for name in names:
        recorded.check(name, after[name.removeprefix("f/train_")])


def test_names_round_trip_and_account_for_every_key(recorded):
    state = recorded.state("pointnet.")
    params, stats, unused = pointnet2_names.from_torch(state, prefix="pointnet.")
    back = pointnet2_names.to_torch(params, stats, prefix="pointnet.")
    assert set(state) - set(back) == set(unused)
    assert {name for name in unused if not name.endswith("num_batches_tracked")} == {
        "pointnet.conv2.weight", "pointnet.conv2.bias"}
    assert all(np.array_equal(back[name], state[name]) for name in back)


# ---------------------------------------------------------------- names without the recorded folder


def test_wrong_keys_are_listed_together():
    params, stats = init_pointnet2(jax.random.key(0))
    state = pointnet2_names.to_torch(params, stats)
    assert {name: value.shape for name, value in state.items()} == pointnet2_names.torch_shapes()
    del state["sa1.mlp_convs.0.weight"]
    state["bn1.weight"] = state["bn1.weight"][:-1]
    state["extra.weight"] = np.zeros(3, np.float32)
    with pytest.raises(WeightsError) as error:
        pointnet2_names.from_torch(state, where="best_model.pth")
    message = str(error.value)
    assert "\n" not in message and "best_model.pth" in message
    for name in ("sa1.mlp_convs.0.weight", "bn1.weight", "extra.weight"):
        assert name in message


def test_published_layer_sizes():
    sizes = layer_sizes(PointNet2Config())
    assert sizes["sa1"] == ((12, 32), (32, 32), (32, 64)) and sizes["sa4"] == ((259, 256), (256, 256), (256, 512))
    assert sizes["fp4"] == ((768, 256), (256, 256)) and sizes["fp1"] == ((128, 128),) * 3
    assert sizes["head"] == ((128, 128),)


# ---------------------------------------------------------------- naive loops


def naive_farthest(xyz, n, start):
    chosen, nearest = [start], np.full(len(xyz), np.inf)
    for _ in range(n - 1):
        nearest = np.minimum(nearest, ((xyz - xyz[chosen[-1]]) ** 2).sum(-1))
        chosen.append(int(nearest.argmax()))
    return chosen


@pytest.mark.parametrize("start", [0, 7])
def test_farthest_points_equal_a_loop(start):
    xyz = sphere(3, 200)
    got = np.asarray(farthest_points(xyz, 50, start))
    for row, cloud in zip(got, xyz, strict=True):
        assert row.tolist() == naive_farthest(cloud.astype(np.float64), 50, start)


def test_farthest_points_start_per_cloud_and_coincident_points():
    xyz = sphere(2, 40)
    got = np.asarray(farthest_points(xyz, 5, jnp.array([3, 9])))
    assert got[:, 0].tolist() == [3, 9]
    twins = np.repeat(np.eye(3, dtype=np.float32)[None], 4, axis=1)  # 12 points, 3 distinct
    got = np.asarray(farthest_points(twins, 6))[0]
    assert len({tuple(twins[0, i]) for i in got[:3]}) == 3 and got[3:].tolist() == [0, 0, 0]


def test_ball_query_equals_a_loop():
    xyz = sphere(2, 300)
    xyz[:, 100:200] = xyz[:, :1] + 0.05 * xyz[:, 100:200]  # crowded: more than fit
    centres = xyz[:, ::10]
    got = np.asarray(ball_query(centres, xyz, 0.3, 16))
    crowded = 0
    for b in range(2):
        for s, centre in enumerate(centres[b].astype(np.float64)):
            inside = [i for i, p in enumerate(xyz[b].astype(np.float64)) if ((p - centre) ** 2).sum() <= 0.09]
            crowded += len(inside) > 16
            assert got[b, s].tolist() == (inside + inside[:1] * 16)[:16]
    assert crowded, "the example must have a full ball"


def test_ball_query_edges():
    xyz = np.array([[[0, 0, 0], [0.5, 0, 0], [2, 0, 0]]], np.float32)
    assert np.asarray(ball_query(xyz[:, :1], xyz, 0.5, 5))[0, 0].tolist() == [0, 1, 0, 0, 0]  # the rim is inside
    assert np.asarray(ball_query(xyz[:, :1] + 9, xyz, 0.5, 5))[0, 0].tolist() == [0] * 5


def test_interpolation_equals_a_loop():
    sources, targets = sphere(2, 30, seed=1), sphere(2, 80, seed=2)
    targets[:, :5] = sources[:, :5]  # coinciding points take their source's value
    features = np.random.default_rng(3).standard_normal((2, 30, 4)).astype(np.float32)
    got = np.asarray(interpolate(targets, sources, features))
    for b in range(2):
        for r in range(80):
            distance = ((targets[b, r].astype(np.float64) - sources[b]) ** 2).sum(-1)
            near = np.argsort(distance)[:3]
            weight = 1 / (distance[near] + 1e-8)
            np.testing.assert_allclose(got[b, r], weight @ features[b, near] / weight.sum(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got[:, :5], features[:, :5], rtol=1e-5, atol=1e-5)


def test_interpolation_with_fewer_than_three_sources():
    target, source = np.zeros((1, 1, 3), np.float32), np.ones((1, 1, 3), np.float32)
    np.testing.assert_allclose(interpolate(target, source, np.full((1, 1, 2), 5, np.float32)), 5)


def test_batch_norm_statistics_by_hand():
    cfg = PointNet2Config(centroids=(1,), radii=(9.0,), neighbours=4, down=((1,),), up=((1,),), head=1)
    params, stats = init_pointnet2(jax.random.key(0), cfg)
    # passes x - x of the centre, plus 7
    layer = params["sa1"]["0"] | {"kernel": jnp.zeros((12, 1)).at[0].set(1.0), "bias": jnp.full(1, 7.0)}
    params = params | {"sa1": {"0": layer}}
    cloud = jnp.array([[[0, 0, 0], [1, 0, 0], [2, 0, 0], [5, 0, 0]]], jnp.float32)
    (_, shape), new, _ = run(params, stats, cloud, train=True, cfg=cfg)
    # values 7, 8, 9, 12: mean 9, biased variance 3.5, unbiased 14/3; momentum 0.1 from (0, 1)
    np.testing.assert_allclose(new["sa1"]["0"]["mean"], [0.9], rtol=1e-6)
    np.testing.assert_allclose(new["sa1"]["0"]["var"], [0.9 + 0.1 * 14 / 3], rtol=1e-6)
    np.testing.assert_allclose(shape, [[3 / np.sqrt(3.5 + 1e-5)]], rtol=1e-5)


def test_a_bias_before_a_batch_norm_has_no_gradient_in_training():
    """It cancels: what a sum would leave of it is round-off, another one on every number of devices, and a full step of Adam."""
    params, stats = init_pointnet2(jax.random.key(0), TINY)

    def loss(params):
        (points, shape), *_ = pointnet2(params, stats, sphere(2, 32), train=True, cfg=TINY)
        return (points**3).mean() + (shape**3).mean()

    found = jax.jit(jax.grad(loss))(params)["sa1"]["0"]
    assert not np.asarray(found["bias"]).any() and np.asarray(found["kernel"]).all() and np.asarray(found["bn"]["bias"]).all()


# ---------------------------------------------------------------- what must not matter


def test_order_of_points_does_not_matter(small):
    params, stats = small
    cloud = sphere(2, 128)
    order = np.random.default_rng(1).permutation(128)
    start = int(np.flatnonzero(order == 0)[0])  # the same first point
    # 32 neighbours "by index" depend on the order where a ball is full: none is at these sizes
    (points, shape), _, named = run(params, stats, cloud)
    assert all(int((np.diff(np.asarray(named[f"ball{level}"])) > 0).sum(-1).max()) < 31 for level in (1, 2))
    (shuffled, same_shape), *_ = run(params, stats, cloud[:, order], start=start)
    np.testing.assert_allclose(shuffled, np.asarray(points)[:, order], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(same_shape, shape, rtol=1e-4, atol=1e-5)


def test_companions_in_the_batch_do_not_matter_in_inference_but_do_in_training(small):
    params, stats = small
    first = sphere(2, 128) * np.array([0.7, 1], np.float32)[:, None, None]
    other = np.stack([first[0], 0.5 * sphere(128, seed=9)])  # the same cloud in other company
    (points, shape), *_ = run(params, stats, first)
    (points_other, shape_other), *_ = run(params, stats, other)
    np.testing.assert_allclose(points_other[0], points[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(shape_other[0], shape[0], rtol=1e-6, atol=1e-6)
    (trained, _), new, _ = run(params, stats, first, train=True)
    (trained_other, _), *_ = run(params, stats, other, train=True)
    assert np.abs(np.asarray(trained)[0] - np.asarray(trained_other)[0]).max() > 1e-3
    assert all(np.abs(np.asarray(leaf) - np.asarray(old)).max() > 0
               for leaf, old in zip(jax.tree.leaves(new), jax.tree.leaves(stats), strict=True))


def test_gradient_reaches_every_parameter(small):
    params, stats = small
    cloud = sphere(2, 128)

    def loss(params):
        (points, shape), *_ = pointnet2(params, stats, cloud, train=False, cfg=SMALL)
        return (points**2).mean() + (shape**2).mean()

    flat, _ = jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(params))
    alive = {jax.tree_util.keystr(path): np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for path, leaf in flat}
    assert all(alive.values()), [name for name, good in alive.items() if not good]


def test_one_trace_for_equal_shapes():
    params, stats = init_pointnet2(jax.random.key(0), TINY)
    traces = []

    @jax.jit
    def step(cloud):
        traces.append(1)
        return pointnet2(params, stats, cloud, train=True, cfg=TINY)

    for seed in range(3):
        step(sphere(2, 128, seed=seed))
    assert len(traces) == 1


def test_dropout_needs_a_key():
    params, stats = init_pointnet2(jax.random.key(0), TINY)
    (kept, _), *_ = forward(params, stats, sphere(1, 128), train=True, cfg=TINY)
    (dropped, _), *_ = forward(params, stats, sphere(1, 128), train=True, cfg=TINY, dropout_key=jax.random.key(1))
    kept, dropped = np.asarray(kept), np.asarray(dropped)
    gone = (dropped == 0) & (kept > 0)
    assert 0.4 < gone.sum() / (kept > 0).sum() < 0.6
    np.testing.assert_allclose(dropped[~gone], 2 * kept[~gone], rtol=1e-5)


def test_bfloat16_layers_stay_close():
    params, stats = init_pointnet2(jax.random.key(0), TINY)
    cloud = sphere(1, 128)
    (exact, _), *_ = forward(params, stats, cloud, train=False, cfg=TINY)
    half = dataclasses.replace(TINY, dtype="bfloat16")
    (rough, _), *_ = forward(params, stats, cloud, train=False, cfg=half)
    exact = np.asarray(exact)
    difference = np.abs(np.asarray(rough) - exact).max() / np.abs(exact).max()
    assert rough.dtype == jnp.float32 and 0 < difference < 0.1


@pytest.mark.parametrize("shape, message", [
    ((1, 20, 3), "20 points"), ((20, 3), "batch, points, 3"), ((1, 99, 2), r"\(1, 99, 2\)")])
def test_clouds_that_do_not_fit(small, shape, message):
    with pytest.raises(ValueError, match=message):
        pointnet2(*small, jnp.zeros(shape), train=False, cfg=SMALL)


def test_config_of_uneven_length():
    with pytest.raises(ValueError, match="same length"):
        PointNet2Config(centroids=(8, 4))
