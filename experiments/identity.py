"""What a key of the configuration is part of: the trained model, one evaluation of it, or neither. One table for all of them.

A work directory holds one trained model; what trained it cannot be changed there. Everything else can: the same model goes on
with other settings of the machine, and is evaluated on whatever data there are, each evaluation apart (`evaluations.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.files import write_json
from data_pipelines.records.objects import BEFORE
from experiments.configs.common import preset, with_method
from gsclip_jax.convert.store import is_stored
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.distributed import is_first

TRAINING = "training"  # changes the trained parameters
EVALUATION = "evaluation"  # changes scores of a trained model
PLACE = "place"  # where something lies, whose content is what counts
SHOWN = "shown"  # what is drawn or put beside the results
RUNNING = "running"  # how and where it runs; results differ by round-off at most

# (key or its beginning, what it is part of, why). The longest that fits claims a key.
KEYS: tuple[tuple[str, str, str], ...] = (
    ("task", RUNNING, "which part of a run is asked for"),
    ("preset", TRAINING, "names the settings, and with which recipe a target is rendered"),
    ("seed", TRAINING, "start of the parameters, order of the objects"),
    ("variant", TRAINING, "the paper's losses or the released code's"),
    ("method", TRAINING, "what is trained"),
    ("workers", RUNNING, "processes that render"),
    ("cache", RUNNING, "where records and stored features lie; both are found by content"),
    ("data", TRAINING, "data set, auxiliary category and how a scan becomes a record"),
    ("data.root", PLACE, "the scans' content is in the records' key"),
    ("data.categories", EVALUATION, "what is evaluated; training sees the auxiliary category alone"),
    ("data.synthetic.set", EVALUATION, "which categories are evaluated"),
    ("data.synthetic.good", EVALUATION, "how many scans are evaluated"),
    ("data.synthetic.defective", EVALUATION, "how many scans are evaluated"),
    ("data.rgb_render", RUNNING, "adds coloured views to records; a method that trains on them has it on"),
    ("target", EVALUATION, "the data set that is evaluated"),
    ("target.root", PLACE, "the scans' content is in the records' key"),
    ("clip", TRAINING, "the frozen encoders"),
    ("clip.name", PLACE, "the hash of the weights is kept (weights.json)"),
    ("clip.tokenizer", PLACE, "the hash of its words is kept (weights.json)"),
    ("clip.remat", RUNNING, "memory against time; the same gradients"),
    ("pointnet2", TRAINING, "the point network"),
    ("pointnet2.weights", PLACE, "the hash of the weights is kept (weights.json)"),
    ("model", TRAINING, "sizes, start and losses"),
    ("model.surface_share", EVALUATION, "the surface stream joins at test time; nothing of it is trained here"),
    ("model.smooth_sigma", EVALUATION, "point scores are smoothed at test time"),
    ("model.smooth_width", EVALUATION, "point scores are smoothed at test time"),
    ("model.smooth_rounds", EVALUATION, "point scores are smoothed at test time"),
    ("model.image_weight", EVALUATION, "shares of two branches, each trained alone"),
    ("model.point_weight", EVALUATION, "shares of two branches, each trained alone"),
    ("model.second_blur", EVALUATION, "point scores are smoothed at test time"),
    ("model.score_padding", EVALUATION, "empty cells at test time"),
    ("model.smooth_storage", EVALUATION, "point scores are smoothed at test time"),
    ("stage1", TRAINING, "how long, how fast and with which batches"),
    ("stage1.micro_batch", RUNNING, "memory against time; the same gradients"),
    ("stage2", TRAINING, "how long, how fast and with which batches"),
    ("stage2.micro_batch", RUNNING, "memory against time; the same gradients"),
    ("eval.batch_size", RUNNING, "objects are scored one by one (but see `settings`)"),
    ("eval.rgb", EVALUATION, "adds scores of the colour pictures"),
    ("eval.pictures", SHOWN, "how many objects are drawn"),
    ("compare", SHOWN, "runs of their own in compare/"),
    ("mesh", RUNNING, "devices"),
    ("save_every_s", RUNNING, "how often a checkpoint is written"),
    ("loggers", RUNNING, "where the numbers of the training are shown beside metrics.jsonl"),
    ("auxiliary", EVALUATION, "the runs of a protocol whose means are taken; each has a folder of its own"),
    ("out", RUNNING, "where a pretraining writes its weights"),
    ("start", TRAINING, "the weights that a pretraining goes on from"),
    ("mini", TRAINING, "sizes of the CLIP that is pretrained"),
    ("clip_stage", TRAINING, "how it is pretrained"),
    ("vision", TRAINING, "how it is pretrained"),
    ("contrastive", TRAINING, "how it is pretrained"),
    ("surface_stage", TRAINING, "how its surface stream is trained"),
    ("point_stage", TRAINING, "how the point network's start is trained"),
)
# Keys of earlier versions, and the folders of their stages.
RENAMED = {"sight": "vision", "words": "contrastive"}
# A pretraining trains on all it renders: for it these change the result.
ALL_IS_TRAINED_ON = ("data.categories", "data.synthetic")
# What a directory may hold of a run that made nothing yet.
NOTHING_MADE = frozenset(("config.json", "seconds.json", "metrics.jsonl", "weights.json", "objects.json", "log.txt"))


def row_of(key: str) -> tuple[str, str, str] | None:
    """The row of KEYS that claims a key."""
    fitting = [row for row in KEYS if key == row[0] or key.startswith(row[0] + ".")]
    return max(fitting, key=lambda row: len(row[0]), default=None)


def part_of(key: str) -> str:
    """TRAINING, EVALUATION, PLACE, SHOWN or RUNNING; a key that nobody claims may well train."""
    row = row_of(key)
    return TRAINING if row is None else row[1]


def flat(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": value} of a configuration, values as JSON has them."""
    tree = json.loads(config.to_json_best_effort()) if isinstance(config, ConfigDict) else config
    found = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{below}": v for below, v in flat(value).items()}
        else:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def settings(config: ConfigDict | Mapping[str, Any], places: bool = True) -> dict[str, Any]:
    """What one evaluation of a trained model depends on; with the folders it reads (`places`), or for what they hold alone."""
    values = flat(config)
    own = not values.get("target.name")
    kept = {key: value for key, value in values.items() if part_of(key) == EVALUATION}
    if places:
        kept |= {key: values[key] for key in ("data.root", "target.root") if key in values}
    kept = {key: value for key, value in kept.items() if not key.startswith("data." if not own else "target.")}
    released = values.get("variant") == "released"
    if values.get("model.switches.test_in_train_mode", released):  # the objects of a batch share their statistics
        kept["eval.batch_size"] = values.get("eval.batch_size")
    return kept


def shown(config: ConfigDict) -> dict[str, Any]:
    """What decides how results are shown."""
    return {key: value for key, value in flat(config).items() if part_of(key) == SHOWN}


def held(workdir: Path) -> dict | None:
    """The configuration of what `workdir` holds, a run's or an exported model's; None where there is neither.

    Raises:
      ConfigError: a config.json that cannot be read.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        found = found["config"] if is_stored(workdir) else dict(found)
        return {RENAMED.get(key, key): value for key, value in found.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not the configuration of a run ({error!r:.80}); choose another --workdir") from None


def rename_stages(workdir: Path) -> None:
    """Gives the stages of a pretraining that an earlier version began the names of today, so that it goes on from them."""
    for old, new in RENAMED.items():
        if (workdir / old).is_dir() and not (workdir / new).exists():
            (workdir / old).rename(workdir / new)


def differing(config: ConfigDict, workdir: Path) -> list[str]:
    """The keys of another training in `workdir` than the configuration's, each with both values; [] where it is the same one,
    or none."""
    there = held(workdir)
    if there is None or not _made_something(workdir):
        return []
    ours, theirs = flat(config), flat(there)
    theirs = {key: value for key, value in _defaults(theirs).items() if key in ours} | theirs

    def trains(key: str) -> bool:
        everything = config.task == "pretrain" and key.startswith(ALL_IS_TRAINED_ON)
        return everything or part_of(key) == TRAINING

    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key) and trains(key))
    return [f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} now" for key in keys]


def _defaults(values: dict[str, Any]) -> dict[str, Any]:
    """What the keys were that came into being after a run: the defaults of its preset and method, of how it was drawn what stands
    for no key at all."""
    if values.get("task") == "pretrain" or not {"preset", "method"} <= values.keys():
        return {}
    try:
        found = flat(with_method(preset(values["preset"]), values["method"]))
    except ValueError:  # a preset or method that is no more: what differs is named
        return {}
    return found | {f"data.{key}": value for key, value in BEFORE.items()}


def check_claim(config: ConfigDict, workdir: Path) -> None:
    """Raises ConfigError where `workdir` holds another training, naming what differs, or cannot be a folder."""
    for folder in (workdir, *workdir.parents):
        if folder.exists():
            if not folder.is_dir():
                raise ConfigError(f"{folder} is no folder; choose another --workdir")
            break
    found = differing(config, workdir)
    if found:
        more = f" and {len(found) - 4} more" if len(found) > 4 else ""
        first = ", ".join(found[:4]) + more
        raise ConfigError(f"{workdir} holds a run with another configuration ({first}); choose another --workdir")


def of_all_processes(config: ConfigDict) -> dict[str, Any]:
    """The values that every process of a run has to be started with: all but those that are each host's own."""
    own = ("mesh.process", "mesh.coordinator", "workers", "cache", "data.root", "target.root", "clip.name", "clip.tokenizer",
           "pointnet2.weights")  # fmt: skip
    return {key: value for key, value in flat(config).items() if key not in own}


def claim_workdir(config: ConfigDict, workdir: Path) -> None:
    """Makes the folder and writes config.json, or checks that what is there has the same training.

    Raises:
      ConfigError: as `check_claim`. OSError: the folder cannot be written.
    """
    check_claim(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    if is_first() and (held(workdir) is None or not _made_something(workdir)):
        write_json(workdir / "config.json", json.loads(config.to_json_best_effort()))


def check_weights(workdir: Path, weights: Mapping[str, str], scores_only: tuple[str, ...]) -> None:
    """Raises ConfigError where `workdir` was trained from others; those that no loss reads may differ. Notes them if none are."""
    path = workdir / "weights.json"
    ours = {name: value for name, value in weights.items() if name not in scores_only}
    if path.exists():
        theirs = {name: value for name, value in json.loads(path.read_text()).items() if name not in scores_only}
        if "sentences" not in theirs:  # earlier versions did not note them
            ours.pop("sentences", None)
        if ours != theirs:
            names = ", ".join(sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)))
            raise ConfigError(
                f"{workdir} was trained from other weights than those given ({names}; {path.name}); choose another --workdir"
            )
    elif ours and is_first():
        write_json(path, weights)


def check_objects(workdir: Path, key: str, begun: bool) -> None:
    """Raises ConfigError where a begun training saw other scans than those of `key` (`scans.training_key`), else notes them."""
    path = workdir / "objects.json"
    if is_first() and (not begun or not path.exists()):  # nothing is trained yet, or an earlier version began it
        write_json(path, {"key": key})
    elif json.loads(path.read_text())["key"] != key:
        raise ConfigError(
            f"{workdir} began its training on other scans of the auxiliary category, or on records that another version made "
            "of them; choose another --workdir, or remove this one"
        )


def _made_something(workdir: Path) -> bool:
    """Whether anything would be lost with another configuration: a run that was refused or died early leaves nothing."""
    return is_stored(workdir) or any(path.is_file() and path.name not in NOTHING_MADE for path in workdir.rglob("*"))
