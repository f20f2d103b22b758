"""One training loop for every method and stage: state, partition, step, fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from gsclip_jax.checkpoint import Checkpoints
from gsclip_jax.method import Method, Params, Stage, Stats
from gsclip_jax.sharding import place, put_batch, replicated
from gsclip_jax.writer import MetricWriter, Progress


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
    """Adam with one learning rate a group (the authors' Adam(0.5, 0.999), no schedule, unless the stage says otherwise)."""

    def over_steps(rate: float):
        if not stage.cosine:
            return rate
        return optax.warmup_cosine_decay_schedule(0.0, rate, max(stage.warmup_steps, 1), max(steps, stage.warmup_steps + 2))

    def adam(rate: float) -> optax.GradientTransformation:
        rate, (b1, b2) = over_steps(rate), stage.betas
        if stage.muon:
            return optax.contrib.muon(
                over_steps(stage.muon), weight_decay=stage.weight_decay, consistent_rms=0.2, adam_b1=b1, adam_b2=b2,
                adam_learning_rate=rate, muon_weight_dimension_numbers=_block_matrices,
            )  # fmt: skip
        if stage.weight_decay:
            return optax.adamw(rate, b1=b1, b2=b2, weight_decay=stage.weight_decay, mask=_matrices)
        return optax.adam(rate, b1=b1, b2=b2)

    grouped = optax.partition({group: adam(rate) for group, rate in stage.train.items()}, {g: g for g in stage.train})
    return optax.chain(optax.clip_by_global_norm(stage.clip_norm), grouped) if stage.clip_norm else grouped


# Which axes of a block's kernels (clip_blocks; the first counts the layers) a matrix product sums over, and which it makes.
_AXES = {"qkv_kernel": ((1,), (3, 4)), "out_kernel": ((1, 2), (3,)), "fc_kernel": ((1,), (2,)), "proj_kernel": ((1,), (2,))}


def _block_matrices(params: Any) -> Any:
    """MuonDimensionNumbers of the transformer blocks' kernels, None for everything else."""

    def axes(path, _):
        *above, last = (part.key for part in path)
        return optax.contrib.MuonDimensionNumbers(*_AXES[last]) if "blocks" in above and last in _AXES else None

    return jax.tree_util.tree_map_with_path(axes, params)


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def make_step(method: Method, stage: Stage, optimiser: optax.GradientTransformation) -> Callable:
    """step(state, frozen, batch, key) -> (state, metrics), compiled once; `state` is donated."""

    def step(state: State, frozen: Params, batch: dict[str, jax.Array], key: jax.Array):
        key = jax.random.fold_in(key, state.step)
        loss_of = partial(method.loss, stage.name)
        grad_of = jax.value_and_grad(loss_of, argnums=0, has_aux=True)
        (loss, (stats, metrics)), grads = grad_of(state.trainable, frozen, state.stats, batch, key)
        updates, opt_state = optimiser.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss, **metrics, "grad_norm": optax.global_norm(grads)}
        return State(state.step + 1, trainable, opt_state, stats), metrics

    return jax.jit(step, donate_argnums=0)


def fit(
    method: Method,
    stage: Stage,
    params: Params,
    stats: Stats,
    batches: Callable[[int], Iterator[dict]],
    steps_per_epoch: int,
    workdir: str | Path,
    *,
    mesh: jax.sharding.Mesh,
    seed: int,
    writer: MetricWriter | None = None,
    save_every_s: float = 60.0,
    log_every: int = 10,
) -> tuple[Params, Stats]:
    """Trains one stage, continuing from the newest checkpoint under `workdir`/checkpoints.

    Args:
      batches: first step -> endless iterator of host batches from that step on.
      steps_per_epoch: the stage runs `stage.epochs` times as many steps.
      save_every_s: a checkpoint at most this often, and one at the end.

    Returns:
      All parameters (trained and frozen) and the statistics, on the mesh.

    Raises:
      ValueError: a group unclaimed (partition); FloatingPointError: the loss is not finite (the last checkpoint stays).
    """
    steps = stage.epochs * steps_per_epoch
    optimiser = make_optimiser(stage, steps)
    trainable, frozen = (place(part, mesh) for part in partition(params, stage))
    stats = jax.device_put(stats, replicated(mesh))
    opt_state = jax.jit(optimiser.init)(trainable)
    state = State(jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh)), trainable, opt_state, stats)
    state = place(state, mesh)

    with Checkpoints(Path(workdir) / "checkpoints") as checkpoints:
        if checkpoints.latest_step() is not None:
            state = checkpoints.restore(state)
        first = int(state.step)
        if first < steps:
            if writer:
                writer.rewind(stage.name, first)
            step, key = make_step(method, stage, optimiser), jax.random.key(seed)
            state = _loop(step, state, frozen, batches(first), key, first, steps, stage, mesh, checkpoints, writer,
                          save_every_s, log_every)  # fmt: skip
    return {**frozen, **state.trainable}, state.stats


def _loop(step, state, frozen, batches, key, first, steps, stage, mesh, checkpoints, writer, save_every_s, log_every):
    progress, saved, waiting = Progress(stage.name, steps, first), time.monotonic(), None
    for number in range(first, steps):
        state, metrics = step(state, frozen, put_batch(next(batches), mesh), key)
        # The numbers of the logged step before are fetched now, when they are long finished: the device never waits for the host.
        if waiting:
            _report(*waiting, stage, writer, progress)
            waiting = None
        if (number + 1) % log_every == 0 or number + 1 == steps:
            waiting = (number + 1, metrics)
        if time.monotonic() - saved > save_every_s and number + 1 < steps:
            checkpoints.save(number + 1, state)
            saved = time.monotonic()
    if waiting:
        _report(*waiting, stage, writer, progress)
    checkpoints.save(steps, state)
    return state


def _report(number, metrics, stage, writer, progress):
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not all(jnp.isfinite(v) for v in values.values()):
        raise FloatingPointError(
            f"{stage.name} step {number}: the loss is not finite ({values}); lower the learning rate, or look at the data"
        )
    if writer:
        writer.write(stage.name, number, values)
    progress.update(number, f"loss {values['loss']:.3f}")
