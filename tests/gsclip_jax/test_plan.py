"""Plans of a step: parts of a batch and blocks computed again change nothing, the cheapest that fits is taken, compiled once."""

import dataclasses
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32
from jax.sharding import AxisType, Mesh

from gsclip_jax.method import Stage
from gsclip_jax.methods.gsclip import RELEASED
from gsclip_jax.models.lora import kept_of
from gsclip_jax.runtime import memory
from gsclip_jax.runtime.sharding import put_batch
from gsclip_jax.training.plan import StepPlan, gradient, step_plans
from gsclip_jax.training.train import FitConfig, fit, partition
from tests import tiny


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def same(ours, theirs, **tolerance):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **tolerance)


def test_what_is_dropped_of_an_image_does_not_follow_from_the_batch():
    key, shape = jax.random.key(3), (5, 7)
    whole = jax.random.bernoulli(key, 0.9, (40, *shape))
    np.testing.assert_array_equal(kept_of(key, 0.9, jnp.array([37, 2, 39]), shape), whole[jnp.array([37, 2, 39])])
    # Numbers of elements past 2^32, which no test draws: against whole words of 64 bits.
    images, each = np.array([65_535, 61_357, 3], np.uint64), 70_001
    number = images[:, None] * np.uint64(each) + np.arange(each, dtype=np.uint64)
    words = np.concatenate([(number >> np.uint64(32)).ravel(), (number & np.uint64(0xFFFFFFFF)).ravel()]).astype(np.uint32)
    drawn = np.asarray(threefry_2x32(jax.random.key_data(key), jnp.asarray(words)))
    uniform = (((drawn[: number.size] ^ drawn[number.size :]) >> 9) | 0x3F800000).view(np.float32) - 1
    np.testing.assert_array_equal(kept_of(key, 0.5, jnp.asarray(images.astype(int)), (each,)).ravel(), uniform < np.float32(0.5))


@pytest.fixture(scope="module")
def whole():
    """Stage 2 with factors that matter and dropout: its parameters, a batch of four, the gradient of all at once."""
    gsclip = tiny.method(lora_dropout=0.3)
    params, stats = tiny.params(gsclip)
    params["lora"] = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params["lora"])
    given = (*partition(params, tiny.STAGE2), stats)
    return given, jax.jit(gradient(gsclip.stages[1], 0))(*given, tiny.batch(4), jax.random.key(1))


@pytest.mark.slow
@pytest.mark.parametrize("devices, rows, remat", [(1, 1, True), (2, 2, False), (2, 1, False)])
def test_parts_of_a_batch_have_the_same_gradient(whole, devices, rows, remat):
    given, wanted = whole
    mesh, stage = mesh_of(devices), tiny.method(lora_dropout=0.3).with_remat(remat).stages[1]
    with jax.set_mesh(mesh):
        found = jax.jit(gradient(stage, rows))(*given, put_batch(tiny.batch(4), mesh), jax.random.key(1))
    same(found, wanted, rtol=2e-4, atol=2e-6)


def test_a_loss_whose_objects_see_each_other_is_not_taken_in_parts():
    for gsclip, number in ((tiny.method(), 0), (tiny.method(RELEASED), 1)):
        assert not gsclip.stages[number].alone and [plan.rows for plan in step_plans(gsclip.stages[number], 1)] == [4]
        with pytest.raises(ValueError, match=rf"config.stage{number + 1}.micro_batch is 2, but the objects of a batch share"):
            dataclasses.replace(gsclip.stages[number], micro_batch=2)
    with pytest.raises(ValueError, match="micro_batch is 3, which does not divide the batch of 4"):
        dataclasses.replace(tiny.STAGE2, micro_batch=3)


def test_a_line_says_of_how_many_devices():
    assert memory.each(1) == "the device" and memory.each(2) == "each of 2 devices"


def test_plans_go_from_the_cheapest_to_the_smallest():
    stage = dataclasses.replace(tiny.STAGE2, saving=tiny.STAGE1)
    assert [(plan.saving, plan.rows) for plan in step_plans(stage, 1)] == [(s, r) for s in (False, True) for r in (4, 2, 1)]
    assert [plan.rows for plan in step_plans(tiny.STAGE2, 2)] == [4, 2]  # one object would leave a device without work
    assert [plan.rows for plan in step_plans(dataclasses.replace(stage, micro_batch=2), 1)] == [2, 2]


def stacked_loss(trainable, frozen, stats, batch, key, remat=False):
    """A mean over objects that holds a lot of each; with `remat` a quarter."""

    def block(x, _):
        for _ in range(4):
            x = jnp.tanh(x @ trainable["line"]["w"])
        return x, None

    x, _ = jax.lax.scan(jax.checkpoint(block, prevent_cse=False) if remat else block, batch["x"], length=6)
    return jnp.square(x).mean(), (stats, {})


STACKED = Stage("fitting", {"line": 1e-2}, (), epochs=1, batch_size=4, loss=stacked_loss, alone=True)
AGAIN = dataclasses.replace(STACKED, saving=dataclasses.replace(STACKED, loss=partial(stacked_loss, remat=True)))


def stacked_batches(first):
    number = first
    while True:
        yield {"x": np.random.default_rng(number).standard_normal((4, 2000, 16)).astype(np.float32)}
        number += 1


def trained(folder, stage, steps=3, **options):
    params = {"line": {"w": np.eye(16, dtype=np.float32)}}
    return fit(stage, params, {}, stacked_batches, steps, FitConfig(folder, mesh_of(1), 0, **options))[0]["line"]["w"]


def test_the_cheapest_plan_that_fits_is_taken_and_compiled_once(tmp_path, monkeypatch, capsys):
    traced = []

    def counted(*args):
        traced.append(1)
        return stacked_loss(*args)

    plain = trained(tmp_path / "a", dataclasses.replace(AGAIN, loss=counted))
    assert len(traced) == 1 and "fitting: nothing is computed twice; " in capsys.readouterr().err
    # Of a computer that has less, of which a third is taken (31 MB are needed, 7 with blocks computed again, a quarter of either
    # by single objects).
    again = "each block is computed again in the backward pass, gradients of"
    for there, said, takes in ((30e6, "nothing is computed twice, gradients of 1 of 4 objects", 0.008),
                               (12e6, f"{again} 2 of 4 objects", 0.0036), (3e6, f"{again} 1 of 4 objects", 0.002)):
        monkeypatch.setattr(memory, "least_free", lambda mesh, there=int(there): there)
        traced.clear()
        small = trained(tmp_path / f"{there:.0f}", dataclasses.replace(AGAIN, loss=counted))
        _, line, after = capsys.readouterr().err.partition(f"fitting: {said} at once; ")
        assert line and float(after.split(" GB of ")[0]) == pytest.approx(takes, abs=0.0005)  # by any setting of the compiler
        np.testing.assert_allclose(small, plain, atol=1e-6)
        # Half the batch is not even compiled where it cannot fit: the whole one and, where taken, the part and its shapes.
        assert len(traced) == (3 if there == 30e6 else 1)
    monkeypatch.setattr(memory, "least_free", lambda mesh: 1000)
    with pytest.raises(memory.DoesNotFit, match=r"^fitting: even the smallest plan \(each block .* 1 of 4 .*\) needs"):
        trained(tmp_path / "d", AGAIN)
    assert not list((tmp_path / "d").rglob("*.json"))


def test_a_run_goes_on_with_another_plan(tmp_path):
    plain = trained(tmp_path / "a", STACKED, steps=4)
    trained(tmp_path / "b", STACKED, steps=4, save_every_s=0)
    for number in (3, 4):  # as if it had died in the third step
        shutil.rmtree(tmp_path / "b" / "checkpoints" / str(number))
    other = trained(tmp_path / "b", dataclasses.replace(AGAIN, micro_batch=1, saving=None), steps=4)
    np.testing.assert_allclose(other, plain, atol=1e-6)


def test_the_devices_of_other_processes_count(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 7 if device.id else None)
    assert memory.least_free(mesh_of(2)) is None
    monkeypatch.setattr(memory, "free", lambda device: 7 + device.id)
    assert memory.least_free(mesh_of(2)) == 7
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(memory.multihost_utils, "process_allgather", lambda value: np.array([value, 3]))
    assert memory.least_free(mesh_of(2)) == 3


def test_a_plan_says_what_it_is():
    assert str(StepPlan(STACKED, True, 2)).endswith("gradients of 2 of 4 objects at once")
