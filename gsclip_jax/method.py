"""What a method is: parameters, training stages, a loss and a prediction. Training, evaluation and viewers see nothing else.

A new method is one file with a class that has these members; `fit` (train.py) and `evaluate` (evaluate.py) do the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax

Params = dict[str, Any]  # group -> nested dict of arrays
Stats = dict[str, Any]  # running statistics, group -> nested dict of arrays
Arrays = Mapping[str, jax.Array]  # a batch on the device, with the stage's stored features where there are any


class Scores(NamedTuple):
    """What a method says of a batch; higher is more anomalous. All float32."""

    object: jax.Array  # [B]
    points: jax.Array  # [B, M], 0 where the point is not valid
    views: jax.Array  # [B, V, H, W]


@dataclass(frozen=True)
class Stage:
    """One stage of training: which groups train, at which learning rate, and which stay as they are.

    Every group of the method's parameters must be named once, in `train` or in `frozen`; else train.partition raises.
    """

    name: str
    train: Mapping[str, float]  # group -> learning rate
    frozen: tuple[str, ...]
    epochs: int
    batch_size: int
    betas: tuple[float, float] = (0.5, 0.999)
    warmup_steps: int = 0
    cosine: bool = False  # decay to zero over the stage; the paper keeps the rate constant
    weight_decay: float = 0.0
    clip_norm: float = 0.0  # 0 = no clipping
    muon: float = 0.0  # learning rate of the transformer blocks' matrices with Muon in place of Adam; 0 = Adam for all


class Method(Protocol):
    """A zero-shot anomaly detector."""

    name: str
    stages: tuple[Stage, ...]

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        """Fresh parameters and statistics; the frozen CLIP is part of the parameters."""

    def features(self, stage: str, params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
        """What of a batch does not change while `stage` trains ([B, ...] each); it is computed once an object and handed to
        `loss` as further fields of the batch. {} where there is nothing of the kind."""

    def loss(
        self, stage: str, trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key: jax.Array
    ) -> tuple[jax.Array, tuple[Stats, dict[str, jax.Array]]]:
        """Scalar loss, differentiated in `trainable`; new statistics and scalars to log."""

    def predict(self, params: Params, stats: Stats, batch: Arrays) -> Scores:
        """Scores of a batch, in inference mode."""
