"""From a configuration to what is trained on and evaluated: scans, records, categories, batches."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import jax
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.datasets import RECIPES, joined_sizes, recipe
from data_pipelines.files import locked
from data_pipelines.records.store import RecordSet, prepare
from data_pipelines.scan import did_you_mean
from data_pipelines.solids import synthetic
from experiments.configs.common import embedded
from gsclip_jax.methods import METHODS
from gsclip_jax.parts import ConfigError


def data_config(config: ConfigDict) -> dict:
    """config.data in the terms of data_pipelines.records.store."""
    data = config.data
    keys = ("name", "root", "train_category", "points", "image_size", "views", "cameras", "window", "back_off", "zoom",
            "cavity", "depth_relief", "fill_gaps", "rasteriser", "rgb_render", "cloud_points", "neighbours", "sample_seed",
            "point_size", "point_sizes")  # fmt: skip
    return {**joined_sizes({key: data[key] for key in keys}), "reader": dict(data.reader)}


def wanted(config: ConfigDict) -> tuple[dict, list[str] | None]:
    """What `records.store` prepares for a configuration: the data in its terms, the categories (None: all found)."""
    data = data_config(config)
    if not config.data.categories:
        return data, None
    return data, list(dict.fromkeys([*filter(None, [data["train_category"]]), *config.data.categories]))


def load_records(config: ConfigDict, progress=print) -> RecordSet:
    """Finds or makes the records of the configuration (and, for the embedded data set, its scans).

    Raises:
      DataError or ConfigError, one line each.
    """
    workers = config.workers or os.cpu_count() or 1
    cache = storage.opened(config.cache)
    data, categories = wanted(config)
    if is_embedded(config):
        data["root"], categories = write_synthetic(config, cache, workers, progress)
    return prepare(data, cache, workers=workers, progress=progress, categories=categories)


def is_embedded(config: ConfigDict) -> bool:
    """Whether the scans are the embedded data set's, written when they are asked for."""
    return config.data.name == "synthetic" and not config.data.root


def synthetic_parts(config: ConfigDict) -> list[tuple[list[str], synthetic.Settings, str]]:
    """The embedded data set in parts, as the auxiliary category is larger than the others: categories, what they are made by,
    name of the folder.

    Raises:
      ConfigError: unknown set, category or kind of defect. ValueError: what the writer of the scans refuses.
    """
    made, train = config.data.synthetic, config.data.train_category
    if made["set"] not in synthetic.SETS:
        raise ConfigError(
            f"config.data.synthetic.set {made['set']!r}{did_you_mean(made['set'], synthetic.SETS)} "
            f"Known: {', '.join(synthetic.SETS)}"
        )
    everything = [name for names in synthetic.SETS.values() for name in names]
    for name in [*filter(None, [train]), *config.data.categories]:
        if name not in everything:
            raise ConfigError(f"no embedded category {name!r}{did_you_mean(name, everything)} Known: {', '.join(everything)}")
    names = [name for name in (config.data.categories or synthetic.SETS[made["set"]]) if name != train]
    shown = tuple(kind for kind in synthetic.ALL_DEFECTS if kind not in made.held_out)
    if len(shown) + len(set(made.held_out)) != len(synthetic.ALL_DEFECTS) or not shown:
        known = ", ".join(synthetic.ALL_DEFECTS)
        raise ConfigError(f"config.data.synthetic.held_out {tuple(made.held_out)}: choose some of {known}")
    common = {"seed": made.seed, "points": made.scan_points, "difficulty": made.difficulty, "relief": made.relief,
              "grafts": made.grafts}  # fmt: skip
    tested = synthetic.ALL_DEFECTS if made["set"] != "pretrain" else shown
    parts = [(names, synthetic.Settings(**common, defects=tested, good=made.good, defective=made.defective))]
    if train:
        parts.append(
            ([train], synthetic.Settings(**common, defects=shown, good=made.train_good, defective=made.train_defective))
        )
    for part, settings in parts:
        if part:
            synthetic.check(part, settings)
    return [(part, settings, _folder(settings)) for part, settings in parts]


def _folder(made: synthetic.Settings) -> str:
    """Name of the folder of scans made by these settings."""
    name = f"solids-{synthetic.FORMAT}-{made.difficulty}-{made.points}-{made.seed}-{made.good}-{made.defective}"
    name += f"-relief{made.relief:g}" if made.relief else ""
    name += f"-grafts{made.grafts:g}" if made.grafts else ""
    return name + ("-" + "+".join(made.defects) if made.defects != synthetic.ALL_DEFECTS else "")


def write_synthetic(config: ConfigDict, cache: Path, workers: int, progress) -> tuple[str, list[str]]:
    """The embedded data set's scans on disk, in Real3D-AD's layout."""
    train, parts = config.data.train_category, synthetic_parts(config)
    progress(f"embedded data set: {sum(len(part[0]) for part in parts)} categories of procedural solids")
    folders = {}
    scans = cache.absolute() / "scans"
    scans.mkdir(parents=True, exist_ok=True)
    with locked(scans / ".lock", lambda: progress("another process is writing the embedded data set; waiting for it")):
        for names, settings, folder in parts:
            how = {"workers": workers, "colour": config.data.rgb_render}
            other = synthetic.write(scans / folder, categories=names, **how, **vars(settings))
            if other:
                progress(f"{', '.join(other)}: this machine makes other scans than those the published figures were measured on")
            folders.update({name: scans / folder / name for name in names})
        # One root of links, as the counts differ between the auxiliary category and the others.
        order = ([train] if train else []) + parts[0][0]
        made_of = hashlib.sha256(json.dumps([str(folders[name]) for name in order]).encode()).hexdigest()[:12]
        root = cache / "scans" / f"set-{made_of}"
        root.mkdir(parents=True, exist_ok=True)
        for name in order:
            if not (root / name).exists():
                (root / name).symlink_to(folders[name], target_is_directory=True)
    return str(root), order


TARGETS = ("synthetic", *RECIPES)  # data sets that a model trained elsewhere can be evaluated on
GIVEN = ("points", "image_size", "window", "views")  # what pictures that come with the data have already


def target(config: ConfigDict) -> ConfigDict:
    """The configuration whose data are evaluated in a cross-data-set run: the target's own recipe, at the size trained at;
    config.target.data changes single values of it.

    Raises:
      ConfigError: unknown name or key.
    """
    name = config.target.name
    if name not in TARGETS:
        raise ConfigError(f"config.target.name: no data set {name!r}{did_you_mean(name, TARGETS)} Known: {', '.join(TARGETS)}")
    other, base = config.copy_and_resolve_references(), embedded()
    if name != "synthetic":
        base.data.update({"name": name, **recipe(name)})
        base.data.synthetic = ConfigDict()
    other.data = base.data
    kept = (*GIVEN, "cloud_points", "neighbours", "sample_seed", "rasteriser")
    if not config.preset:  # the embedded CLIP has learned from pictures that look like this
        kept += ("cameras", "back_off", "zoom", "cavity", "depth_relief", "fill_gaps", "point_size", "point_sizes")
    other.data.update({key: config.data[key] for key in kept if name != "prerendered" or key not in GIVEN})
    for key, value in config.target.get("data", {}).items():
        if key not in other.data:
            raise ConfigError(f"config.target.data: no key {key!r}{did_you_mean(key, other.data)} Known: {', '.join(other.data)}")
        with other.data.ignore_type():
            other.data[key] = value
    other.data.update({"root": config.target.root, "train_category": ""})
    with other.data.ignore_type():
        other.data.categories = config.target.categories
    return other


def of_target(error: Exception) -> ConfigError:
    """What is wrong with the data of a target, in the keys with which they are given."""
    text = re.sub(r"config\.data\.(root|categories)", r"config.target.\1", str(error))
    return ConfigError(re.sub(r"config\.data\.", "config.target.data.", text))


def test_categories(config: ConfigDict, records: RecordSet) -> list[str]:
    """The categories a run is evaluated on: the configured ones, else all but the auxiliary one of the same data set.

    Raises:
      ConfigError: there is none.
    """
    if config.target.name:
        return list(dict.fromkeys(config.target.categories or records.categories()))
    found = [name for name in config.data.categories or records.categories() if name != config.data.train_category]
    if not found:
        raise ConfigError(f"nothing to evaluate: {config.data.train_category!r} is the only category under {config.data.root}")
    return found


def wants_rgb(config: ConfigDict) -> bool:
    """Whether colour scores are wanted and the method has any: baselines that run alongside have none."""
    return bool(config.eval.rgb) and METHODS[config.method].colour


def shares_statistics(config: ConfigDict) -> bool:
    """Whether the objects of a batch are normalised together at test time."""
    switches = config.get("model", {}).get("switches", {})
    return bool(switches.get("test_in_train_mode", config.variant == "released"))


def batch_size(config: ConfigDict, mesh: jax.sharding.Mesh) -> int:
    """Objects scored together: as configured, filled up to what the devices share evenly. Where the objects of a batch share
    their statistics, as in the released code, they stay those of the configured batch."""
    size, devices = config.eval.batch_size, mesh.shape["data"]
    return size if shares_statistics(config) else size + -size % devices


def index_rows(records: RecordSet, categories: list[str]) -> list[dict]:
    """Rows of the index with their number, as `gsclip_jax.evaluation.score` takes them."""
    return [{**records.index[i], "object_index": int(i)} for i in records.rows(categories)]
