"""The programs that a configuration runs, by their shapes alone: no weights, no data, nothing allocated.

What compiles them, counts their operations or their memory starts here (`benchmarks/flops.py`, `memory.py`, `tpu_aot.py`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.batch import FIELDS, OPTIONAL
from data_pipelines.records.objects import recipe_of
from experiments.data import data_config, shares_statistics
from gsclip_jax.build import clip_changes, make_method, remat_of
from gsclip_jax.convert.load import load_clip, surface_shapes
from gsclip_jax.evaluation.score import ScorePlan, score_plans
from gsclip_jax.method import Method, Stage
from gsclip_jax.methods import entry_of, trains_on
from gsclip_jax.models.clip import ClipConfig, clip_shapes
from gsclip_jax.runtime.flops import Flops, flops
from gsclip_jax.runtime.sharding import replicated, specs, split_rows
from gsclip_jax.training.plan import StepPlan, step_plans
from gsclip_jax.training.train import State, make_optimiser, make_step, partition

PROGRAMS = ("features1", "stage1", "features2", "stage2", "predict")
STEPS = 10  # of an epoch, where a schedule asks for them; no program's size follows from it
RELEASED = {"ViT-L-14-336px.pt": "ViT-L/14@336"}  # weights whose shape is known without them


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function and the shapes that it is called with.

    Fields:
      name: of PROGRAMS.
      rows: objects of a call, those included that fill it up for the devices.
      counted: objects of a call that are not repeats.
    """

    name: str
    run: Callable
    arguments: tuple[Any, ...]
    rows: int
    counted: int
    mesh: Mesh | None = None

    def lower(self) -> jax.stages.Lowered:
        with jax.set_mesh(self.mesh) if self.mesh else nullcontext():  # views and parts of a batch are split over it
            return self.run.lower(*self.arguments)

    def placed(self) -> int:
        """Bytes of the arguments on each device: they lie there before the program starts."""

        def shape(leaf: jax.ShapeDtypeStruct) -> tuple[int, ...]:
            return leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape

        leaves = [leaf for leaf in jax.tree.leaves(self.arguments) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
        return sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in leaves)

    def flops(self) -> Flops:
        """Of one call, on all devices together."""
        return flops(self.run, *self.arguments)


class ByWords:
    """Instead of a tokenizer that is not there: as many ids as words. CLIP's vocabulary has one for each of the fixed words."""

    def __init__(self, context: int):
        self.context = context

    def encode(self, text: str) -> list[int]:
        return [0] * len(text.split())

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.zeros((len(texts), self.context), np.int32)


def shape_of_method(config: ConfigDict) -> tuple[Method, ClipConfig | None]:
    """The method, and the shape of its CLIP as the weights say it; for the released weights, they need not be here.

    Raises:
      ConfigError, WeightsError: as `build.build_model`.
    """
    if not entry_of(config.method).clip:
        return make_method(config, None), None
    if (name := Path(config.clip.name).name) in RELEASED and not Path(config.clip.name).exists():
        clip = dataclasses.replace(ClipConfig.preset(RELEASED[name]), **clip_changes(config))
        return make_method(config, clip, lambda: ByWords(clip.context)), clip
    clip, _, tokenizer, _ = load_clip(config.clip.name, **clip_changes(config))
    return make_method(config, clip, tokenizer), clip


def batch_shapes(config: ConfigDict, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Fields of a batch of so many objects, as the method's programs get them."""
    recipe = recipe_of(data_config(config))
    size = {"B": rows, "V": len(recipe.camera_list()), "H": recipe.image_size, "W": recipe.image_size, "N": recipe.cloud_points,
            "M": recipe.points, "K": recipe.neighbours}  # fmt: skip
    return {
        name: jax.ShapeDtypeStruct(tuple(size.get(axis, axis) for axis in axes), jnp.dtype(dtype))
        for name, (axes, dtype, _) in FIELDS.items() if name not in OPTIONAL - set(trains_on(config))
    }  # fmt: skip


def bytes_of(tree: Any) -> int:
    """Of a tree of arrays or shapes, keys of random numbers left out."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


class Programs:
    """Those of one configuration.

    Args:
      mesh: where they are to run; None: shapes without a place, to be counted.

    Raises:
      ConfigError, WeightsError: as `build.build_model`.
    """

    def __init__(self, config: ConfigDict, mesh: Mesh | None = None):
        config = config.copy_and_resolve_references()
        if "start" in config.get("model", {}):  # sentences choose where contexts start, not the program
            config.model.start = ()
        self.auto = remat_of(config) == "auto"
        if self.auto:  # where nothing is measured: of a paper preset, what a chip of 16 GB takes
            with config.clip.ignore_type():
                config.clip.remat = bool(config.preset)
        self.config, self.mesh = config, mesh
        self.method, clip = shape_of_method(config)
        self.params, self.stats = jax.eval_shape(self.method.init, jax.random.key(0))
        for group in self.method.loads:
            if group == "surface":
                self.params[group] = surface_shapes(clip.embed_dim)
            else:
                self.params[group] = clip_shapes(clip) if group == "clip" else {"visual": clip_shapes(clip)["visual"]}

    @property
    def names(self) -> list[str]:
        """Those of PROGRAMS that the method has."""
        stages = {stage.name[-1] for stage in self.method.stages}
        return [name for name in PROGRAMS if name == "predict" or name[-1] in stages]

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.method.stages if stage.name[-1] == name[-1])

    def plans(self, name: str, batch_size: int = 0) -> list[StepPlan] | list[ScorePlan]:
        """The ways to run the program `name`, in the order in which a run tries them."""
        counted, devices = self._counted(name, batch_size), self.mesh.shape["data"] if self.mesh else 1
        if name == "predict":
            rows = counted + -counted % devices
            return score_plans(rows, devices, shares_statistics(self.config))
        if name.startswith("features"):
            return [ScorePlan(counted, counted)]
        number = self.method.stages.index(self.stage(name))
        methods = (self.method, self.method.with_remat(False), self.method.with_remat(True))
        own, kept, saving = (dataclasses.replace(method.stages[number], batch_size=counted) for method in methods)
        return step_plans(dataclasses.replace(kept, saving=saving) if self.auto else own, devices)

    def program(self, name: str, batch_size: int = 0, plan: StepPlan | ScorePlan | None = None) -> Program:
        """The program `name`, for `batch_size` objects instead of the configuration's number; a step as one of its `plans`."""
        counted = self._counted(name, batch_size)
        if isinstance(plan, ScorePlan):
            counted = min(counted, plan.rows)
        rows = counted + (-counted % self.mesh.shape["data"] if self.mesh else 0)
        batch = batch_shapes(self.config, rows)
        params, stats = self._split(self.params), self._whole(self.stats)
        alone = self.method.for_inference()
        if name == "predict":
            return Program(name, jax.jit(alone.predict), (params, stats, self._rows(batch)), rows, counted, self.mesh)
        stage = self.stage(name)
        encode = alone.stages[self.method.stages.index(stage)].features
        if name.startswith("features"):
            encode = jax.jit(encode, out_shardings=split_rows(self.mesh) if self.mesh else None)
            return Program(name, encode, (params, stats, self._rows(batch)), rows, counted, self.mesh)
        stored = jax.eval_shape(encode, self.params, self.stats, batch)  # as a run does it: stored, not computed in the step
        if stored:
            batch = {field: value for field, value in batch.items() if field not in OPTIONAL}  # read by the features alone
        stage = dataclasses.replace(plan.stage if isinstance(plan, StepPlan) else stage, batch_size=counted)
        optimiser = make_optimiser(stage, STEPS)
        trainable, frozen = partition(self.params, stage)
        moments = jax.eval_shape(optimiser.init, trainable)
        number, key = (jax.eval_shape(make) for make in (lambda: jnp.zeros((), jnp.int32), lambda: jax.random.key(0)))
        state = State(self._whole(number), self._split(trainable), self._split(moments), stats)
        arguments = state, self._split(frozen), self._rows(batch | stored), self._whole(key)
        places = jax.tree.map(lambda leaf: leaf.sharding, state) if self.mesh else None
        at_once = plan.rows if isinstance(plan, StepPlan) and plan.rows < counted else 0
        return Program(name, make_step(stage, optimiser, STEPS, at_once, places), arguments, rows, counted, self.mesh)

    def _counted(self, name: str, batch_size: int) -> int:
        return batch_size or (self.config.eval.batch_size if name == "predict" else self.stage(name).batch_size)

    # ---- where the arguments lie: as `train.fit` and `score` put them

    def _split(self, tree: Any) -> Any:
        return _placed(tree, specs(tree, self.mesh)) if self.mesh else tree

    def _whole(self, tree: Any) -> Any:
        return _placed(tree, jax.tree.map(lambda _: replicated(self.mesh), tree)) if self.mesh else tree

    def _rows(self, tree: Any) -> Any:
        return _placed(tree, jax.tree.map(lambda _: split_rows(self.mesh), tree)) if self.mesh else tree


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree, shardings)
