"""One training loop for every method and stage: state, partition, step, fit."""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.command import holding, stopping
from data_pipelines.progress import Progress
from gsclip_jax.method import Params, Stage, Stats
from gsclip_jax.runtime.distributed import SAVE, STOP, Votes, agreed, is_first
from gsclip_jax.runtime.memory import choose
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import path_name, place, put_batch, replicated, specs
from gsclip_jax.training.checkpoint import CheckpointError, Checkpoints
from gsclip_jax.training.optim import Adam
from gsclip_jax.training.plan import StepPlan, gradient, step_plans


@partial(jax.tree_util.register_dataclass, data_fields=["step", "trainable", "opt_state", "stats"], meta_fields=[])
@dataclass
class State:
    """What changes while training, and all that a checkpoint holds. `step` int32 [], the next step's number."""

    step: jax.Array
    trainable: Params
    opt_state: Any
    stats: Stats


def partition(params: Params, stage: Stage) -> tuple[Params, Params]:
    """Splits the groups of `params` into (trainable, frozen) by the stage's row.

    Raises:
      ValueError: a group that the row does not name, names twice, or names but does not exist.
    """
    named = list(stage.train) + list(stage.frozen)
    unclaimed = sorted(params.keys() - set(named))
    absent = sorted(set(named) - params.keys())
    twice = sorted({group for group in named if named.count(group) > 1})
    if unclaimed or absent or twice:
        raise ValueError(
            f"stage {stage.name}: every parameter group must be claimed once; "
            f"unclaimed {unclaimed}, named but absent {absent}, named twice {twice}"
        )
    return {g: params[g] for g in stage.train}, {g: params[g] for g in stage.frozen}


def make_optimiser(stage: Stage, steps: int) -> optax.GradientTransformation:
    """The stage's optimiser over so many steps; the authors' Adam where it names none."""
    return (stage.optimiser or Adam()).build(stage.train, steps)


def make_step(stage: Stage, optimiser: optax.GradientTransformation, steps_per_epoch: int = 1, rows: int = 0,
              places: Any = None) -> Callable:  # fmt: skip
    """step(state, frozen, batch, key) -> (state, metrics), compiled once; `state` is donated.

    Args:
      rows: objects whose gradients are taken at once (`plan.gradient`); 0: all of them.
      places: shardings of the new state; None: as the compiler finds it good.

    A batch that was filled up for the devices is cut to `stage.batch_size` rows again: the repeats take no part, and the result
    is the same on any number of devices. The epoch follows from the state's step, so that a run that goes on from a checkpoint
    is in the epoch it was stopped in.
    """

    def step(state: State, frozen: Params, batch: dict[str, jax.Array], key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        if "real" in batch:
            batch = {name: value[: stage.batch_size] for name, value in batch.items()}
        grad_of = gradient(stage, rows)
        when = {"epoch": state.step // steps_per_epoch} if stage.by_epoch else {}
        (loss, (stats, metrics)), grads = grad_of(state.trainable, frozen, state.stats, batch, key, **when)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss, **metrics, "grad_norm": optax.global_norm(grads)}
        return State(state.step + 1, trainable, opt_state, stats), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=None if places is None else (places, None))


@dataclass(frozen=True)
class FitConfig:
    """Where and how a stage runs; of it, only the seed changes what is learned.

    Fields:
      workdir: checkpoints lie in workdir/checkpoints.
      save_every_s: a checkpoint at most this often by the clock of the first process, one where a signal stops the run, and one
        at the end.
      log_every: steps between two logged ones.
    """

    workdir: Path
    mesh: jax.sharding.Mesh
    seed: int
    save_every_s: float = 60.0
    log_every: int = 10


def fit(
    stage: Stage, params: Params, stats: Stats, batches: Callable[[int], Iterator[dict]], steps_per_epoch: int, run: FitConfig,
    writer: MetricWriter | None = None,
) -> tuple[Params, Stats]:  # fmt: skip
    """Trains one stage, continuing from the newest checkpoint.

    Args:
      batches: first step -> endless iterator of host batches from that step on.
      steps_per_epoch: the stage runs `stage.epochs` times as many steps.

    Returns:
      All parameters (trained and frozen) and the statistics, on the mesh.

    Raises:
      ValueError: a group unclaimed (partition), no checkpoint that can be gone on from (CheckpointError), or no way to compute a
        step within the memory (DoesNotFit).
      FloatingPointError: the loss, the gradient or the state is not finite. Such a state is never saved: the last checkpoint
        stays as it is, and a second call goes on from it.
    """
    steps = stage.epochs * steps_per_epoch
    optimiser = make_optimiser(stage, steps)
    trainable, frozen = partition(params, stage)
    trainable = place(trainable, run.mesh)
    frozen = jax.device_put(frozen, specs(frozen, run.mesh))  # nothing of it is donated: what lies there already is not copied
    stats = jax.device_put(stats, replicated(run.mesh))
    opt_state = jax.jit(optimiser.init)(trainable)
    state = State(jax.device_put(jnp.zeros((), jnp.int32), replicated(run.mesh)), trainable, opt_state, stats)
    state = place(state, run.mesh)

    with Checkpoints(Path(run.workdir) / "checkpoints") as checkpoints:
        state, first = restore(checkpoints, state, stage.name)
        if first < steps:
            if writer:
                writer.rewind(stage.name, first)
            key, coming = jax.random.key(run.seed), (put_batch(batch, run.mesh) for batch in batches(first))
            batch = next(coming)
            step = planned_step(stage, optimiser, steps_per_epoch, run.mesh, (state, frozen, batch, key))
            coming = itertools.chain([batch], coming)
            del batch
            watch = Watch(stage.name, first, writer, Progress(stage.name, steps), run.log_every, steps)
            saved, votes = time.monotonic(), Votes(run.mesh)
            with holding():
                for number in range(first + 1, steps + 1):
                    state, metrics = step(state, frozen, next(coming), key)
                    watch.add(number, metrics)
                    due = is_first() and time.monotonic() - saved > run.save_every_s
                    decided = votes.cast(STOP if stopping() else SAVE * due)
                    if decided and number < steps:
                        watch.save(checkpoints, number, state)
                        saved = time.monotonic()
                        if decided == STOP:
                            raise KeyboardInterrupt
                watch.save(checkpoints, steps, state)
            if stopping():
                raise KeyboardInterrupt
    return {**frozen, **state.trainable}, state.stats


def planned_step(
    stage: Stage, optimiser: optax.GradientTransformation, steps_per_epoch: int, mesh: jax.sharding.Mesh, given: tuple,
) -> Callable:  # fmt: skip
    """The compiled step of the cheapest plan that fits the memory; it takes arguments of the shapes and places of `given`.

    Args:
      given: (state, frozen, batch, key), as the first step takes them.

    Raises:
      DoesNotFit: no plan does.
    """
    places = jax.tree.map(lambda leaf: leaf.sharding, given[0])

    def compiled(plan: StepPlan) -> jax.stages.Compiled:
        step = make_step(plan.stage, optimiser, steps_per_epoch, plan.rows if plan.rows < stage.batch_size else 0, places)
        with jax.set_mesh(mesh):
            return step.lower(*given).compile()

    return choose(stage.name, step_plans(stage, mesh.shape["data"]), compiled, mesh).program


class Watch:
    """Whether a stage's numbers are finite: those of every step, and of every state before it is saved.

    The numbers of a step are fetched together with those of the steps before it, one step after a logged one was started, when
    they are long finished: the device never waits for the host.
    """

    def __init__(self, stage: str, first: int, writer: MetricWriter | None, progress: Progress, log_every: int, steps: int):
        self.stage, self.writer, self.progress, self.log_every, self.steps = stage, writer, progress, log_every, steps
        self.saved = first  # step of the newest checkpoint; 0: none
        self._waiting: list[tuple[int, dict[str, jax.Array]]] = []  # steps that nobody has looked at yet

    def add(self, number: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of step `number`, just started.

        Raises:
          FloatingPointError: those of an earlier step are not finite.
        """
        if self._waiting and self._waiting[-1][0] % self.log_every == 0:
            self.look()
        elif not self._waiting:
            self.progress.update(number - 1)  # after the first call the program is compiled; from here on the time is the steps'
        self._waiting.append((number, metrics))

    def look(self) -> None:
        """Fetches the metrics of all steps so far; writes the logged ones.

        Raises:
          FloatingPointError: naming the first step whose numbers are not finite.
        """
        found = jax.device_get([metrics for _, metrics in self._waiting])
        numbers, self._waiting = [number for number, _ in self._waiting], []
        for number, row in zip(numbers, found, strict=True):
            values = {name: float(value) for name, value in row.items()}
            if not all(math.isfinite(value) for value in values.values()):
                shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                raise FloatingPointError(self._stopped(number, f"the loss or its gradient is not finite ({shown})"))
            if number % self.log_every == 0 or number == self.steps:
                if self.writer:
                    self.writer.write(self.stage, number, values)
                self.progress.update(number, f"loss {values['loss']:.3f}")

    def save(self, checkpoints: Checkpoints, number: int, state: State) -> None:
        """Saves the state after step `number`, all of it finite.

        Raises:
          FloatingPointError: it is not; what is on disk stays as it is.
        """
        self.look()
        if bad := not_finite(state):
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise FloatingPointError(self._stopped(number, f"the state is not finite ({bad[0]}{more})"))
        checkpoints.save(number, state)
        self.saved = number

    def _stopped(self, number: int, what: str) -> str:
        kept = (
            f"the checkpoint of step {self.saved} stays, and the same command goes on from there" if self.saved
            else "nothing of this stage was saved, and the same command starts it again"
        )  # fmt: skip
        return (
            f"{self.stage} step {number}: {what}; the last good step is {number - 1}; {kept}; where it ends here again, lower "
            "the learning rate (in another --workdir), or look at the data"
        )


def not_finite(tree: Any) -> list[str]:
    """Paths of the leaves that hold a NaN or an infinity."""
    leaves = {
        path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }  # fmt: skip
    if all(leaf.is_fully_addressable for leaf in leaves.values()):  # nothing to compile: a state is fetched when it is saved
        found = {name: np.isfinite(value).all() for name, value in jax.device_get(leaves).items()}
    else:  # several processes, which have to agree
        found = jax.device_get(_all_finite(leaves))
    return [name for name, good in found.items() if not good]


@jax.jit
def _all_finite(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.isfinite(leaf).all() for name, leaf in leaves.items()}


def restore(checkpoints: Checkpoints, start: State, stage: str) -> tuple[State, int]:
    """The newest checkpoint that can be gone on from, or `start` where there is none, and its step.

    Newer ones that are damaged are passed over, those that are not finite (earlier versions saved such) removed, with a line on
    standard error.

    Raises:
      CheckpointError: none of those that are there can be gone on from.
    """
    problems: list[str] = []
    empty: list[int] = []
    for number in reversed(checkpoints.steps()):
        try:
            state, problem = checkpoints.restore(start, number), ""
        except CheckpointError as error:
            problem = str(error)
        if not agreed(f"restored {number}", not problem):
            problems.append(problem or f"checkpoint {number} cannot be read by another process; remove it to train again")
            continue
        if bad := not_finite(state):
            problems.append(
                f"checkpoint {checkpoints.directory / str(number)} holds values that are not finite ({bad[0]}); "
                f"remove {checkpoints.directory} to train again"
            )
            empty.append(number)
            continue
        for problem in problems:
            print(f"{stage}: {problem.rpartition('; remove')[0]}; going on from step {number}", file=sys.stderr)
        for worthless in empty:
            checkpoints.delete(worthless)
        return state, int(state.step)
    if problems:
        raise CheckpointError(problems[0])
    return start, 0
