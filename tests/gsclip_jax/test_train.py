"""The loop: claims of groups, one compilation, resuming, devices, failures."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from gsclip_jax.method import Stage
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import batch_places, make_mesh, place, put_batch, specs
from gsclip_jax.training.checkpoint import CheckpointError, Checkpoints
from gsclip_jax.training.feature_store import Source, find_features
from gsclip_jax.training.train import FitConfig, State, fit, make_optimiser, make_step, partition
from tests import tiny


@pytest.fixture(scope="module")
def one_device():
    return jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 2)


def train(stage, mesh, workdir, seed=0, batches=tiny.batches, steps=2, **options):
    params, stats = tiny.params(tiny.method())
    writer = options.pop("writer", None)
    return fit(stage, params, stats, batches, steps, FitConfig(workdir, mesh, seed, **options), writer)


def same(a, b, **tolerance):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path), **tolerance)


def test_every_group_must_be_claimed_once():
    params = {"a": 1, "b": 2, "c": 3}
    stage = Stage("s", {"a": 1e-3, "x": 1e-3}, ("b", "b"), 1, 1, loss=None)
    with pytest.raises(ValueError, match=r"unclaimed \['c'\].*absent \['x'\].*twice \['b'\]"):
        partition(params, stage)
    trainable, frozen = partition(params, Stage("s", {"a": 1e-3}, ("b", "c"), 1, 1, loss=None))
    assert trainable == {"a": 1} and frozen == {"b": 2, "c": 3}


def test_learning_rates_are_per_group():
    stage = Stage("s", {"fast": 1e-1, "slow": 1e-3}, (), 1, 1, loss=None)
    params = {"fast": {"w": jnp.ones(3)}, "slow": {"w": jnp.ones(3)}}
    optimiser = make_optimiser(stage, 10)
    updates, _ = optimiser.update(jax.tree.map(jnp.ones_like, params), optimiser.init(params), params)
    np.testing.assert_allclose(updates["fast"]["w"], -0.1, rtol=1e-5)  # Adam's first step is the learning rate
    np.testing.assert_allclose(updates["slow"]["w"], -0.001, rtol=1e-5)


@pytest.mark.slow
def test_a_stage_moves_its_groups_and_nothing_else(one_device, tmp_path):
    gsclip = tiny.method()
    before, stats = tiny.params(gsclip)
    after, new_stats = train(tiny.STAGE1, one_device, tmp_path)
    for group in before:
        moved = any(
            np.abs(np.asarray(x) - np.asarray(y)).max() > 0
            for x, y in zip(jax.tree.leaves(before[group]), jax.tree.leaves(after[group]), strict=True)
        )
        assert moved == (group in tiny.STAGE1.train), group
    assert any(np.abs(np.asarray(x) - np.asarray(y)).max() > 0
               for x, y in zip(jax.tree.leaves(stats), jax.tree.leaves(new_stats), strict=True))  # fmt: skip


@pytest.mark.slow
def test_the_step_compiles_once_over_steps(one_device):
    gsclip = tiny.method()
    traced = []

    def counted(*args):
        traced.append(1)
        return gsclip.stages[1].loss(*args)

    params, stats = tiny.params(gsclip)
    trainable, frozen = (place(part, one_device) for part in partition(params, tiny.STAGE2))
    optimiser = make_optimiser(tiny.STAGE2, 10)
    state = place(State(jnp.zeros((), jnp.int32), trainable, optimiser.init(trainable), stats), one_device)
    step = make_step(dataclasses.replace(tiny.STAGE2, loss=counted), optimiser)
    for number in range(4):
        state, _ = step(state, frozen, put_batch(tiny.batch(seed=number), one_device), jax.random.key(0))
    assert len(traced) == 1 and int(state.step) == 4


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(one_device, tmp_path):
    class Killed(Exception):
        pass

    def interrupted(first):
        for number, batch in enumerate(tiny.batches(first), first):
            if number == 3:
                raise Killed
            yield batch

    writer = MetricWriter(tmp_path / "metrics.jsonl")
    whole = train(tiny.STAGE2, one_device, tmp_path / "whole", steps=3)
    with pytest.raises(Killed):
        train(tiny.STAGE2, one_device, tmp_path / "cut", steps=3, batches=interrupted, save_every_s=0, writer=writer, log_every=1)
    assert Checkpoints(tmp_path / "cut" / "checkpoints").latest_step() == 3
    started = []

    def resumed(first):
        started.append(first)
        return tiny.batches(first)

    again = train(tiny.STAGE2, one_device, tmp_path / "cut", steps=3, batches=resumed, writer=writer, log_every=1)
    assert started == [3]
    same(again, whole, atol=0, rtol=0)
    logged = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5, 6] or logged == [1, 2, 4, 5, 6]
    # A finished stage is not trained again.
    same(train(tiny.STAGE2, one_device, tmp_path / "cut", steps=3, batches=None), whole, atol=0, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 1), (2, 2)])
def test_devices_change_nothing(one_device, tmp_path, shape):
    """Batch split over `data`, encoders over `model`: the same losses and parameters up to summation order."""
    rows = {}
    for name, mesh in (("one", one_device), ("many", make_mesh(*shape))):
        writer = MetricWriter(tmp_path / name / "metrics.jsonl")
        rows[name] = train(tiny.STAGE1, mesh, tmp_path / name, writer=writer, log_every=1, steps=1)
        rows[name + " loss"] = [json.loads(x)["loss"] for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(rows["one loss"], rows["many loss"], rtol=2e-4)
    # Adam's first step turns round-off into whole steps where a gradient is nearly zero: 3e-4 seen, against changes of 0.1.
    same(rows["one"][1], rows["many"][1], atol=1.5e-3)


def test_the_rules_split_both_encoders():
    gsclip = tiny.method()
    params, _ = tiny.params(gsclip)
    found = specs(params, make_mesh(2, 2))
    for tower in ("visual", "text"):
        assert "model" in found["clip"][tower]["blocks"]["mlp"]["fc_kernel"].spec
        assert "model" in found["clip"][tower]["blocks"]["attn"]["qkv_kernel"].spec
    assert "model" not in found["srm"]["out"]["kernel"].spec


def test_placing_copies(one_device):
    kept = {"a": jnp.ones(4)}
    placed = place(kept, one_device)
    jax.jit(lambda x: x, donate_argnums=0)(placed)
    assert float(kept["a"].sum()) == 4


def test_a_loss_that_is_not_finite_stops_the_run(one_device, tmp_path):
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)
    params["srm"]["out"]["bias"] = params["srm"]["out"]["bias"] * np.nan
    with pytest.raises(FloatingPointError, match="stage2 step 1.*not finite"):
        fit(tiny.STAGE2, params, stats, tiny.batches, 2, FitConfig(tmp_path, one_device, 0, log_every=1))
    assert Checkpoints(tmp_path / "checkpoints").latest_step() is None


def test_a_checkpoint_of_other_shapes_is_refused(one_device, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, place({"w": jnp.ones((2, 3))}, one_device))
        with pytest.raises(CheckpointError, match="does not fit"):
            checkpoints.restore(place({"w": jnp.ones((4, 3))}, one_device))


@pytest.mark.parametrize("stage, data, model, objects", [
    (0, 2, 2, 3), pytest.param(0, 4, 1, 3, marks=pytest.mark.slow), pytest.param(1, 2, 2, 1, marks=pytest.mark.slow),
])
def test_any_batch_on_any_devices_trains_the_same(one_device, stage, data, model, objects):
    """Batches that do not divide, or are fewer than the devices: what fills them up takes no part, statistics included."""
    gsclip = tiny.method()
    row, (params, stats) = dataclasses.replace(gsclip.stages[stage], batch_size=objects), tiny.params(gsclip)
    optimiser = optax.sgd(1e-2)  # Adam would make full steps of what is 0 but for round-off

    def after_two_steps(mesh):
        trainable, frozen = (place(part, mesh) for part in partition(params, row))
        state = place(State(jnp.zeros((), jnp.int32), trainable, optimiser.init(trainable), stats), mesh)
        step = make_step(row, optimiser)
        for number in range(2):
            state, metrics = step(state, frozen, put_batch(tiny.batch(objects, seed=number), mesh), jax.random.key(0))
        return jax.device_get((state.trainable, state.stats, metrics))

    some = Mesh(np.array(jax.devices()[: data * model]).reshape(data, model), ("data", "model"))
    for ours, theirs in zip(*map(jax.tree.leaves, (after_two_steps(some), after_two_steps(one_device))), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)


def test_every_process_reads_the_rows_of_its_devices(monkeypatch):
    mesh = make_mesh(2, 2)
    assert batch_places(mesh, 3).tolist() == [0, 1, 2, 0] and batch_places(mesh, 1).tolist() == [0, 0]
    Device = dataclasses.make_dataclass("Device", ["id", "process_index"], frozen=True)

    def devices(owners):
        found = np.empty(owners.shape, object)
        for number, (at, owner) in enumerate(np.ndenumerate(owners)):
            found[at] = Device(number, int(owner))
        return found

    places = np.array([[0, 0], [1, 1]])  # two processes along `data`, then along `model`
    for owners, expected in ((places, [[0, 1], [2, 0]]), (places.T, [[0, 1, 2, 0]] * 2)):
        there = Mesh(devices(owners), ("data", "model"))
        for process, rows in enumerate(expected):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            assert batch_places(there, 3).tolist() == rows


def test_features_are_stored_once_and_joined_by_object(one_device, tmp_path):
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)
    seen = []

    def everything():
        for start in (0, 4):
            seen.append(start)
            rows = tiny.batch(4, seed=start)
            rows["object_index"] = np.arange(start, start + 4, dtype=np.int32)
            rows["real"] = np.arange(start, start + 4) < 6
            yield rows

    source = Source(gsclip.stages[1], params, stats, everything, 6, "objects", one_device)
    first, again = find_features(source, tmp_path / "f"), find_features(source, tmp_path / "f")
    assert seen.count(4) == 1  # one pass for both features; their keys are found from the first batch
    wanted = tiny.batch(4, seed=0)
    live = jax.jit(gsclip.stages[1].features)(params, stats, wanted)
    picked = {**wanted, "object_index": np.array([2, 0], np.int32)}
    for store in (first, again):
        joined = next(store.join([picked]))
        np.testing.assert_allclose(joined["render_tokens"], np.asarray(live["render_tokens"])[[2, 0]], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(joined["text"], np.asarray(live["text"])[[2, 0]], atol=1e-6)
