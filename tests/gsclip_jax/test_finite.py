"""What is not finite is never saved, and never gone on from; the loop finds it without waiting for the device."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.method import Stage
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import place, replicated
from gsclip_jax.training.checkpoint import CheckpointError, Checkpoints
from gsclip_jax.training.train import FitConfig, State, fit, make_optimiser

STEPS, LOGGED = 8, 4


def line_loss(trainable, frozen, stats, batch, key):
    """w x near 1, and a running mean of x in its statistics: compiles in no time."""
    loss = jnp.square(batch["x"] @ trainable["line"]["w"] - 1).mean() + batch["poison"].mean()
    mean = 0.9 * stats["mean"] + 0.1 * batch["x"].mean() + batch["poison_stats"].mean()
    return loss, ({"mean": mean}, {"square": loss})


STAGE = Stage("fitting", {"line": 1e-2}, (), epochs=1, batch_size=2, loss=line_loss)


def batches(poison=None, stats=None, value=np.nan):
    """Endless; what enters the loss (or the statistics alone) at step number `poison` (`stats`) is not finite."""

    def endless(first):
        number = first + 1
        while True:
            x = np.random.default_rng(number).standard_normal((2, 3)).astype(np.float32)
            yield {
                "x": x,
                "poison": np.full(2, value if number == poison else 0, np.float32),
                "poison_stats": np.full(2, value if number == stats else 0, np.float32),
            }
            number += 1

    return endless


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 2)


def start():
    return {"line": {"w": np.zeros(3, np.float32)}}, {"mean": jnp.zeros(())}


def train(mesh, folder, endless, **options):
    writer = options.pop("writer", None)
    return fit(STAGE, *start(), endless, STEPS, FitConfig(folder, mesh, 0, log_every=LOGGED, **options), writer)


def saved(folder) -> dict[int, State]:
    params, stats = start()
    state = State(jnp.zeros((), jnp.int32), params, make_optimiser(STAGE, STEPS).init(params), stats)
    mesh = jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return {number: checkpoints.restore(place(state, mesh), number) for number in checkpoints.steps()}


def finite(tree) -> bool:
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


# First step, a logged one, the one behind it, the last; saved at every step or at the end alone.
@pytest.mark.parametrize("bad", [1, 4, 5, 8])
@pytest.mark.parametrize("often, value", [(True, np.nan), (False, np.nan), (False, np.inf)])
def test_nothing_of_a_step_that_is_not_finite_is_saved(mesh, tmp_path, bad, often, value):
    writer = MetricWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(FloatingPointError) as error:
        train(mesh, tmp_path, batches(bad, value=value), save_every_s=0 if often else 1e9, writer=writer)
    message = str(error.value)
    assert message.startswith(f"fitting step {bad}: ") and f"the last good step is {bad - 1};" in message
    kept = saved(tmp_path)
    assert all(finite(state) for state in kept.values())
    assert max(kept, default=0) == (bad - 1 if often else 0)
    assert (f"the checkpoint of step {bad - 1} stays" if often and bad > 1 else "nothing of this stage was saved") in message
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if (tmp_path / "metrics.jsonl").exists() else []:
        assert json.loads(line)["step"] < bad and "NaN" not in line


def test_a_stopped_run_goes_on_from_the_last_good_step(mesh, tmp_path):
    with pytest.raises(FloatingPointError):
        train(mesh, tmp_path, batches(6), save_every_s=0)
    again, whole = train(mesh, tmp_path, batches()), train(mesh, tmp_path / "whole", batches())
    np.testing.assert_array_equal(again[0]["line"]["w"], whole[0]["line"]["w"])


def test_a_state_that_is_not_finite_is_not_saved_though_every_loss_was(mesh, tmp_path):
    with pytest.raises(FloatingPointError, match=r"fitting step 8: the state is not finite \(stats/mean\)"):
        train(mesh, tmp_path, batches(stats=6), save_every_s=1e9)
    assert saved(tmp_path) == {}


def poisoned(folder, mesh, *numbers):
    """The checkpoints of those steps as an earlier version may have saved them."""
    found = saved(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        for number in numbers:
            broken = jax.tree.map(lambda x: x * np.nan if jnp.issubdtype(x.dtype, jnp.inexact) else x, found[number])
            checkpoints.save(number, jax.device_put(broken, replicated(mesh)))


def test_a_checkpoint_that_is_not_finite_is_not_gone_on_from(mesh, tmp_path, capsys):
    whole = train(mesh, tmp_path, batches(), save_every_s=0)
    poisoned(tmp_path, mesh, STEPS)
    again = train(mesh, tmp_path, batches())
    np.testing.assert_array_equal(again[0]["line"]["w"], whole[0]["line"]["w"])
    assert finite(saved(tmp_path)) and max(saved(tmp_path)) == STEPS
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "not finite" in line]
    assert re.search(rf"fitting: checkpoint .*{STEPS} holds values that are not finite .*going on from step {STEPS - 1}$", line)


def test_checkpoints_that_are_all_not_finite_are_refused(mesh, tmp_path):
    train(mesh, tmp_path, batches(), save_every_s=0)
    poisoned(tmp_path, mesh, STEPS - 1, STEPS)
    with pytest.raises(CheckpointError, match="not finite .*; remove .*checkpoints to train again"):
        train(mesh, tmp_path, batches())
    assert sorted(saved(tmp_path)) == [STEPS - 1, STEPS]


def test_a_damaged_checkpoint_is_passed_over(mesh, tmp_path, capsys):
    whole = train(mesh, tmp_path, batches(), save_every_s=0)
    for file in (tmp_path / "checkpoints" / str(STEPS)).rglob("*"):
        if file.is_file() and file.stat().st_size:
            file.write_bytes(b"")
    again = train(mesh, tmp_path, batches())
    np.testing.assert_array_equal(again[0]["line"]["w"], whole[0]["line"]["w"])
    assert f"going on from step {STEPS - 1}" in capsys.readouterr().err


def test_the_loop_runs_ahead_of_the_numbers(mesh, tmp_path, monkeypatch):
    """Between two logged steps nothing is fetched, and nothing that is fetched is of the newest step."""
    fetched, started = [], []
    get, endless = jax.device_get, batches()
    monkeypatch.setattr(jax, "device_get", lambda tree: (fetched.append((len(started), tree)), get(tree))[1])

    def counted(first):
        for batch in endless(first):
            started.append(1)
            yield batch

    train(mesh, tmp_path, counted)
    looks = [(at, len(tree)) for at, tree in fetched if isinstance(tree, list)]
    assert looks == [(5, 4), (8, 4)]  # step 5 was under way when steps 1 to 4 were looked at
