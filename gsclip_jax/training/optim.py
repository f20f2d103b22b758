"""Optimisers as objects: settings, and how optax is put together from them. A stage names one (method.Stage)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib


@dataclass(frozen=True)
class Adam:
    """Adam with one learning rate a group; the defaults are the authors' (no schedule).

    Fields:
      cosine: warm up over `warmup_steps`, then decay to zero over the stage.
      weight_decay: of matrices, decoupled.
      clip_norm: of the whole gradient; 0 = no clipping.
    """

    betas: tuple[float, float] = (0.5, 0.999)
    warmup_steps: int = 0
    cosine: bool = False
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    def build(self, rates: Mapping[str, float], steps: int) -> optax.GradientTransformation:
        """The transformation for {group: learning rate} over so many steps."""
        grouped = optax.partition({group: self.of_group(rate, steps) for group, rate in rates.items()}, {g: g for g in rates})
        return optax.chain(optax.clip_by_global_norm(self.clip_norm), grouped) if self.clip_norm else grouped

    def over_steps(self, rate: float, steps: int) -> float | optax.Schedule:
        """The learning rate, or its schedule."""
        if not self.cosine:
            return rate
        return optax.warmup_cosine_decay_schedule(0.0, rate, max(self.warmup_steps, 1), max(steps, self.warmup_steps + 2))

    def of_group(self, rate: float, steps: int) -> optax.GradientTransformation:
        """The transformation of one group."""
        rate, (b1, b2) = self.over_steps(rate, steps), self.betas
        decay = [optax.add_decayed_weights(self.weight_decay, _matrices)] if self.weight_decay else []
        return optax.chain(scale_by_adam(b1, b2), *decay, optax.scale_by_learning_rate(rate))


def scale_by_adam(b1: float, b2: float) -> optax.GradientTransformation:
    """optax's, with the bias corrections 1 - b**t in full: taken from float32 powers they are off by 1e-5 in the first steps, and
    torch takes them in doubles. The epsilon is 1e-8, outside the root."""
    inner, logs = optax.scale_by_adam(b1, b2), [math.log(b) if b else -math.inf for b in (b1, b2)]

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        _, state = inner.update(grads, state, params)
        first, second = (-jnp.expm1(state.count * log) for log in logs)
        return jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v / second) + 1e-8), state.mu, state.nu), state

    return optax.GradientTransformation(inner.init, update)


@dataclass(frozen=True)
class Muon(Adam):
    """Muon for the matrices that `matrices` names, Adam for everything else.

    Fields:
      rate: learning rate of those matrices.
      matrices: parameters -> optax.contrib.MuonDimensionNumbers of the kernels, None for the others.
    """

    rate: float = 0.0
    matrices: Callable[[Any], Any] | None = None

    def of_group(self, rate: float, steps: int) -> optax.GradientTransformation:
        b1, b2 = self.betas
        return optax.contrib.muon(
            self.over_steps(self.rate, steps), weight_decay=self.weight_decay, consistent_rms=0.2, adam_b1=b1, adam_b2=b2,
            adam_learning_rate=self.over_steps(rate, steps), muon_weight_dimension_numbers=self.matrices,
        )  # fmt: skip


def _matrices(params: Any) -> Any:
    return jax.tree.map(lambda x: x.ndim >= 2, params)
