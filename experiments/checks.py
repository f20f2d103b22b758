"""What can be refused is refused here, before the first scan is rendered: names, numbers, weights, data, devices, disk space."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.records.objects import recipe_of
from data_pipelines.records.store import Plan, check_plan
from data_pipelines.scan import DataError, NoColour, no_colour
from experiments import data, evaluations, identity, protocol, scans
from experiments.compared import compared_with
from experiments.export import is_trained
from experiments.programs import batch_shapes, bytes_of
from experiments.published import METHODS as TITLES
from gsclip_jax import build
from gsclip_jax.convert.load import load_clip, load_pointnet2, load_surface
from gsclip_jax.method import Method
from gsclip_jax.methods import METHODS, entry_of, trains_on
from gsclip_jax.models.clip import ClipConfig, clip_shapes
from gsclip_jax.parts import ConfigError, check_known
from gsclip_jax.runtime.metric_writer import LOGGERS, missing
from gsclip_jax.runtime.sharding import make_mesh
from gsclip_jax.training.train import partition

TASKS = ("stage1", "stage2", "eval", "protocol", "pretrain")
CHOICES = {
    "task": TASKS, "model.streams": ("both", "render", "depth"),
}  # fmt: skip
MANY = float("inf")
RANGES = {
    "workers": (0, MANY), "mesh.model": (1, MANY), "mesh.view": (1, MANY), "save_every_s": (0, MANY),
    "eval.batch_size": (1, MANY), "stage1.micro_batch": (0, MANY), "stage2.micro_batch": (0, MANY),
    "eval.pictures": (0, MANY), "stage1.epochs": (0, MANY), "stage2.epochs": (0, MANY), "stage1.batch_size": (1, MANY),
    "stage2.batch_size": (1, MANY), "stage1.learning_rate": (0, 10), "stage1.pointnet2_rate": (0, 10),
    "stage2.learning_rate": (0, 10), "stage2.lora_factor": (0, MANY), "model.n_ctx": (1, MANY), "model.deep_depth": (0, MANY),
    "model.n_deep": (1, MANY), "model.prototypes": (1, MANY), "model.top_k": (1, MANY), "model.lora_rank": (1, MANY),
    "model.lora_dropout": (0, 0.99), "model.render_share": (0, 1), "model.surface_share": (0, 1), "model.consistency": (0, MANY),
    "model.smooth_sigma": (1e-6, MANY), "model.smooth_width": (1e-6, MANY), "model.smooth_rounds": (0, MANY),
}  # fmt: skip


class Seen:
    """What was looked at already: the rows of a sweep have most of it in common."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}

    def once(self, what: Iterable[Any], look: Callable[[], Any]) -> Any:
        key = json.dumps(list(what), sort_keys=True, default=str)
        if key not in self._found:
            self._found[key] = look()
        return self._found[key]


def check_all(config: ConfigDict, workdir: Path, seen: Seen | None = None, devices: bool = True) -> None:
    """Refuses what cannot run before any of it does: every run of a protocol, every method put beside a run.

    Args and errors: as `check_before`.
    """
    seen = seen or Seen()
    if config.task == "protocol":
        identity.check_claim(config, workdir)
        for one, folder in protocol.rows(config, workdir):
            check_all(one, folder, seen, devices)
        return
    for one, folder in ((config, workdir), *compared_with(config, workdir).values()):
        if one.task == "stage1" or evaluations.find(folder, one) is None:
            check_before(one, folder, seen, devices)


def check_before(config: ConfigDict, workdir: Path, seen: Seen | None = None, devices: bool = True) -> None:
    """Looks at everything that a run needs and renders, trains and writes nothing.

    Args:
      seen: shared by several runs, so that their common data and weights are looked at once.
      devices: whether the run is to happen on the devices of this process.

    Raises:
      ConfigError, DataError, WeightsError or ValueError, one line: what is wrong, where, what to set.
    """
    seen = seen or Seen()
    check_values(config)
    row = entry_of(config.method)
    identity.check_claim(config, workdir)
    trains = row.trains and not is_trained(config, workdir)
    if config.task == "eval" and trains:
        raise ConfigError(f"{workdir} holds no trained model; run stage2.py with this --workdir first")
    values = identity.flat(config)
    if devices:  # refuses axes that do not use all of them
        make_mesh(config.mesh.data, config.mesh.model, config.mesh.view)
    tests = config.task != "stage1"
    kept = ("data", "target", "cache", "eval.rgb", "method", "preset")
    about_data = [(k, v) for k, v in values.items() if k.startswith(kept)]
    counts = seen.once([about_data, trains, tests, workdir if not trains else ""], lambda: _data(config, workdir, trains, tests))
    kept = ("method", "clip", "pointnet2", "data.name", *(field.name for field in dataclasses.fields(row.config)))
    about_model = [(k, v) for k, v in values.items() if k.startswith(kept)]
    method, each, weights = seen.once([about_model, batch_shapes(config, 1)], lambda: _model(config, seen))
    _space(storage.opened(config.cache), each * counts["train"] if trains else 0, "stored features")
    _space(workdir, (weights if trains else 0) + counts["test"] * 8 * config.data.points, "checkpoints and scores")


def check_values(config: ConfigDict) -> None:
    """Raises ConfigError for a number out of its range or an unknown name, with the key."""
    values = identity.flat(config)
    if "clip" in config:
        build.remat_of(config)
    for key, known in CHOICES.items():
        if key in values:
            check_known(key, values[key], known)
    for name in values.get("loggers", ()):
        check_known("loggers", name, LOGGERS)
        if how := missing(name):
            raise ConfigError(f"config.loggers: {name!r} is not installed here: {how}, or leave it out")
    for key, (low, high) in RANGES.items():
        value = values.get(key, low)
        if not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(f"config.{key} is {value!r}; it has to be {'at least' if high == MANY else 'between'} {low:g}"
                              + ("" if high == MANY else f" and {high:g}"))  # fmt: skip


# ---- data


def _data(config: ConfigDict, workdir: Path, trains: bool, tests: bool) -> dict[str, int]:
    """How many scans are trained and tested on, once they are known to be there with all that is asked of them."""
    counts = {"train": 0, "test": 0}
    if trains or not config.target.name:
        here = config
        if not trains and is_trained(config, workdir) and not scans.has_records(config):
            here = scans.without_training(config)
        found = _scans_to_train(here) if trains else _scans(here)
        counts["train"] = found.get(config.data.train_category, 0)
        if trains and not config.data.train_category:
            raise ConfigError("config.data.train_category is empty; name the category to train on")
        if not config.target.name and tests:
            if not set(found) - {config.data.train_category}:
                raise ConfigError(
                    f"nothing to evaluate: {config.data.train_category!r} is the only category under {config.data.root}"
                )
            counts["test"] = sum(found.values())
            _colour(config, here)
    if config.target.name and tests:
        other = data.target(config)
        try:
            counts["test"] = sum(_scans(other).values())
        except ValueError as error:
            raise data.of_target(error) from None
        _colour(config, other)
    return counts


def _scans(config: ConfigDict) -> dict[str, int]:
    """Scans of every category that the records of a configuration are made of."""
    if data.is_embedded(config):
        recipe_of(data.data_config(config))
        return {name: made.good + made.defective for names, made, _ in data.synthetic_parts(config) for name in names}
    plan = scans.plan_records(config)
    check_plan(plan)
    found: dict[str, int] = {}
    for sample in plan.samples:
        found[sample.category] = found.get(sample.category, 0) + 1
    return found


def _scans_to_train(config: ConfigDict) -> dict[str, int]:
    """`_scans`; for a method that trains on coloured views, saying so where the data set has none.

    Raises:
      ConfigError: they are switched off. DataError: there is no colour.
    """
    name, wanted = TITLES.get(config.method, config.method), "rgb_render" in trains_on(config)
    if wanted and not config.data.rgb_render:
        raise ConfigError(f"{name} trains on coloured renderings; set config.data.rgb_render=True")
    try:
        return _scans(config)
    except NoColour:
        if not wanted:
            raise
        others = [method for method, row in METHODS.items() if row.trains and not row.fields(row.config())]
        raise no_colour(config.data.name, name, f"use {' or '.join(others)}") from None


def _colour(config: ConfigDict, other: ConfigDict) -> None:
    """Where colour scores are wanted, one scan of every category has to have its colour picture."""
    if not data.wants_rgb(config):
        return
    plan: Plan | None = None if data.is_embedded(other) else scans.plan_records(other)
    first = {sample.category: sample for sample in reversed(plan.samples)} if plan else {"": None}
    for sample in first.values():
        scan = plan.reader.load(sample) if plan else None
        if scan is None or scan.rgb is None or scan.grid is None:
            raise ConfigError(
                f"config.eval.rgb needs organised scans with colour pictures, which {other.data.name!r} under "
                f"{other.data.root} has not{f' ({sample.path})' if sample else ''}; set config.eval.rgb=False"
            )


# ---- model


def _model(config: ConfigDict, seen: Seen) -> tuple[Method, int, int]:
    """The method, the bytes of its stored features an object, and those of its checkpoints; traced, never computed.

    Raises:
      ConfigError or ValueError: parts that do not fit each other or the batches; WeightsError: weights that cannot be used.
    """
    clip_cfg, tokenizer = None, None
    if entry_of(config.method).clip:
        changes = build.clip_changes(config)

        def clip() -> tuple[ClipConfig, Path | None]:
            cfg, _, tokenizer, _ = load_clip(config.clip.name, **changes)
            return cfg, tokenizer

        clip_cfg, tokenizer = seen.once(["clip", config.clip.name, changes], clip)
    method = build.make_method(config, clip_cfg, tokenizer)
    try:
        params, stats = jax.eval_shape(method.init, jax.random.key(0))
        for group in method.loads:
            if group in ("clip", "clip_depth"):
                params[group] = clip_shapes(clip_cfg) if group == "clip" else {"visual": clip_shapes(clip_cfg)["visual"]}
            else:
                params[group] = load_surface(config.clip.name, clip_cfg.embed_dim)[0]
        if "pointnet2" in params and config.pointnet2.weights:
            load_pointnet2(config.pointnet2.weights, build.net_config(config))
        batch = batch_shapes(config, 1)
        alone = method.for_inference()
        jax.eval_shape(alone.predict, params, stats, batch)
        stored, trained = {}, 0
        for stage in alone.stages:
            stored |= jax.eval_shape(stage.features, params, stats, batch)
            trained = max(trained, bytes_of(partition(params, stage)[0]))
    except (TypeError, IndexError, ZeroDivisionError, AssertionError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ConfigError(f"the model cannot be built with this configuration: {why}") from None
    return method, bytes_of(stored), 10 * trained  # parameters and two moments, in three checkpoints, and the model


# ---- disk


def _space(folder: Path, needed: int, what: str) -> None:
    """Raises DataError where the disk under `folder` cannot be written or has no room for `needed` bytes."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    if not os.access(there, os.W_OK):
        raise DataError(f"{there} cannot be written; choose another folder than {folder}")
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DataError(
            f"no disk space for {what}: about {needed / 1e6:.0f} MB needed under {folder}, {free / 1e6:.0f} MB free; free some, "
            "or choose another folder"
        )
