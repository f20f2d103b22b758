"""How a step is computed, with one result: whether encoders' blocks are kept or computed again, and how many objects at once.

A plan is chosen by what its compiled step needs of the memory (runtime/memory.py), and is no part of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, Params, Stage, Stats


@dataclass(frozen=True)
class StepPlan:
    """Of a training step: a stage whose blocks are kept or computed again (`saving`), and objects whose gradients are taken at
    once."""

    stage: Stage
    saving: bool
    rows: int

    @property
    def kind(self) -> bool:
        return self.saving

    def __str__(self) -> str:
        blocks = "each block is computed again in the backward pass" if self.saving else "nothing is computed twice"
        count = self.stage.batch_size
        return blocks + (f", gradients of {self.rows} of {count} objects at once" if self.rows < count else "")


def step_plans(stage: Stage, devices: int) -> list[StepPlan]:
    """The plans of a stage, those that compute the least first.

    Parts of a batch cost no work; computing each block again costs a third of a step.

    Args:
      devices: of the mesh's `data` axis; parts that leave a device no fewer objects save nothing.
    """
    rows, sizes = [], set()
    for count in range(stage.batch_size, 0, -1):
        a_device = -(-count // devices)
        if stage.batch_size % count == 0 and a_device not in sizes:
            rows.append(count)
            sizes.add(a_device)
    rows = [stage.micro_batch] if stage.micro_batch else rows if stage.alone else rows[:1]
    versions = [(stage, False), *([(stage.saving, True)] if stage.saving else [])]
    return [StepPlan(version, saving, count) for version, saving in versions for count in rows]


def gradient(stage: Stage, rows: int) -> Callable:
    """(trainable, frozen, stats, batch, key, **when) -> ((loss, (stats, metrics)), gradient) of the stage's loss, taken of `rows`
    objects at a time and averaged: the same up to the order of the sums. `rows` divides the batch; 0: all."""
    whole = jax.value_and_grad(stage.loss, argnums=0, has_aux=True)

    def in_parts(trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key: jax.Array | None, **when: jax.Array):
        count = len(next(iter(batch.values())))
        if not rows or rows == count:
            return whole(trainable, frozen, stats, batch, key, **when)
        parts = split({**batch, "place": jnp.arange(count)}, rows)

        def of(part: Arrays) -> Any:
            (loss, (_, metrics)), grads = whole(trainable, frozen, stats, part, key, **when)
            return loss, metrics, grads

        def add(total: Any, part: Arrays) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of(part)), None

        first = jax.tree.map(lambda leaf: leaf[0], parts)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(of, first))
        total, _ = jax.lax.scan(add, nothing, parts)
        loss, metrics, grads = jax.tree.map(lambda leaf: leaf * (rows / count), total)
        return (loss, (stats, metrics)), grads

    return in_parts


def split(batch: Arrays, rows: int) -> dict[str, jax.Array]:
    """Fields [B,...] -> [B / rows, rows, ...]. Where the mesh splits rows evenly, every device cuts its own: nothing moves."""
    devices = jax.sharding.get_abstract_mesh().shape.get("data", 1)

    def parts(value: jax.Array) -> jax.Array:
        count, rest = len(value), value.shape[1:]
        if rows % devices or count % devices:
            return value.reshape(count // rows, rows, *rest)
        own = value.reshape(devices, count // rows, rows // devices, *rest)
        return jnp.moveaxis(own, 1, 0).reshape(count // rows, rows, *rest)

    return {name: parts(value) for name, value in batch.items()}
