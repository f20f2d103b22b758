"""What a method is: training stages and a prediction. Training, evaluation and viewers see nothing else.

A new method is a file or folder under `methods/` and one line of its registry (docs/add_a_method.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax

if TYPE_CHECKING:
    import optax  # a program that predicts needs none

Params = dict[str, Any]  # group -> nested dict of arrays
Stats = dict[str, Any]  # running statistics, group -> nested dict of arrays
Arrays = Mapping[str, jax.Array]  # a batch on the device, with the stage's stored features where there are any
Tokens = dict[str, jax.Array]  # stream -> [B,V,P,E] of the patches of views, or [B,M,E] of the scored points; of any length
Loss = Callable[..., tuple[jax.Array, tuple[Stats, dict[str, jax.Array]]]]  # of Stage.loss
Features = Callable[[Params, Stats, Arrays], dict[str, jax.Array]]


class Scores(NamedTuple):
    """What a method says of a batch; higher is more anomalous. All float32."""

    object: jax.Array  # [B]
    points: jax.Array  # [B, M], 0 where the point is not valid
    views: jax.Array  # [B, V, H, W]


class Optimiser(Protocol):
    """How the groups of a stage are updated (training/optim.py)."""

    def build(self, rates: Mapping[str, float], steps: int) -> optax.GradientTransformation:
        """The transformation for {group: learning rate} over so many steps."""


def no_features(params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
    """Of a stage in which nothing stays the same from epoch to epoch."""
    return {}


@dataclass(frozen=True)
class Stage:
    """One stage of training: which groups train and how, by which loss, and which stay as they are.

    Every group of the method's parameters must be named once, in `train` or in `frozen`; else train.partition raises.

    Fields:
      train: group -> learning rate.
      loss: (trainable, frozen, stats, batch, key) -> (scalar, (new statistics, scalars to log)), differentiated in the first;
        without a key nothing is dropped.
      alone: the loss, and what it logs, are means over objects that do not see each other, and statistics stay as they are; then
        gradients can be taken of a few objects at a time (`micro_batch`) and are the same. The loss then gets their rows in the
        batch, `place` int32 [B].
      micro_batch: objects whose gradients are taken at once; 0: as many as the memory holds.
      saving: the same stage for less memory and more time, where there is a choice.
      by_epoch: the loss takes `epoch` as well, int32 [], counted from 0: terms that join late, in one compiled step and with the
        optimiser's state kept.
      features: (params, stats, batch) -> what of a batch does not change while the stage trains ([B, ...] each); it is computed
        once an object and handed to `loss` as further fields of the batch.
      depends_on: stages that have to be trained before.
      optimiser: None for Adam as the authors set it.
    """

    name: str
    train: Mapping[str, float]
    frozen: tuple[str, ...]
    epochs: int
    batch_size: int
    loss: Loss = field(repr=False)
    features: Features = field(default=no_features, repr=False)
    depends_on: tuple[str, ...] = ()
    optimiser: Optimiser | None = None
    by_epoch: bool = False
    alone: bool = False
    micro_batch: int = 0
    saving: Stage | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raises ValueError: a micro-batch that would change the result, or that the batch is no multiple of."""
        if self.micro_batch and not self.alone:
            raise ValueError(
                f"config.{self.name}.micro_batch is {self.micro_batch}, but the objects of a batch share statistics or terms in "
                "this stage: a part of them has another gradient; set it to 0"
            )
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(
                f"config.{self.name}.micro_batch is {self.micro_batch}, which does not divide the batch of {self.batch_size} "
                "objects"
            )


class Method(Protocol):
    """A zero-shot anomaly detector. `MethodBase` has what most methods leave as it is."""

    name: str
    stages: tuple[Stage, ...]
    loads: tuple[str, ...]  # groups of parameters that are loaded, not initialised: "clip", "clip_depth", "surface"
    scores_only: tuple[str, ...]  # groups that no stage's loss reads: scores change with them, training does not
    begins_with: Mapping[str, Any]  # name -> tree of arrays that the parameters start from, beside weights

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        """Fresh parameters and statistics of all groups that are not loaded."""

    def start(self, params: Params) -> Params:
        """The parameters training begins with, once everything is loaded."""

    def with_remat(self, remat: bool) -> Method:
        """The same method; its encoders' blocks are computed again in the backward pass, or kept."""

    def for_inference(self) -> Method:
        """The same method with nothing computed twice: where no gradient is taken, rematerialisation saves nothing."""

    def folded(self, params: Params) -> Params:
        """Parameters for `predict` alone, with what was learned beside a weight added to it where that changes no score."""

    def predict(self, params: Params, stats: Stats, batch: Arrays) -> Scores:
        """Scores of a batch, in inference mode."""

    def predict_with_tokens(self, params: Params, stats: Stats, batch: Arrays) -> tuple[Scores, Tokens]:
        """The same scores, and the tokens by which a part can be compared with good ones; {} where a method has none."""


class MethodBase:
    """Members of a Method that most leave as they are: no stages, nothing loaded, parameters used as they were initialised."""

    stages: tuple[Stage, ...] = ()
    loads: tuple[str, ...] = ()
    scores_only: tuple[str, ...] = ()
    begins_with: Mapping[str, Any] = {}

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        return {}, {}

    def start(self, params: Params) -> Params:
        return params

    def with_remat(self, remat: bool) -> MethodBase:
        return self

    def for_inference(self) -> MethodBase:
        return self.with_remat(False)

    def folded(self, params: Params) -> Params:
        return params

    def predict_with_tokens(self, params: Params, stats: Stats, batch: Arrays) -> tuple[Scores, Tokens]:
        return self.predict(params, stats, batch), {}
