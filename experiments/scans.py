"""Which scans and records a configuration asks for, told before any of them is rendered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.datasets import open_reader
from data_pipelines.records.store import Plan, RecordSet, is_made, local_root, plan_of
from data_pipelines.scan import DataError
from experiments.data import data_config, is_embedded, load_records, of_target, synthetic_parts, target, wanted
from experiments.export import is_trained


def has_records(config: ConfigDict) -> bool:
    """Whether the records of the whole data set, auxiliary category included, are there or can be made without writing scans."""
    if is_embedded(config):
        return all((storage.opened(config.cache) / "scans" / folder / name).is_dir()
                   for names, *_, folder in synthetic_parts(config) for name in names)  # fmt: skip
    try:
        return is_made(plan_records(config).folder)
    except DataError:  # what is missing is said where it is needed
        return False


def without_training(config: ConfigDict) -> ConfigDict:
    """The same data without the auxiliary category: all that a trained model is evaluated on."""
    other, train = config.copy_and_resolve_references(), config.data.train_category
    if is_embedded(config):
        names = synthetic_parts(config)[0][0]
    else:
        names = config.data.categories or open_reader(config.data.name, config.data.root, **dict(config.data.reader)).categories()
    other.data.train_category, other.data.categories = "", tuple(name for name in names if name != train)
    other.data.rgb_render = False  # training alone reads coloured views
    return other


def records_to_evaluate(config: ConfigDict, workdir: Path, progress: Callable[[str], None]) -> RecordSet:
    """The same data set, or the target of a cross-data-set evaluation; a model that is trained already asks for no records of
    the auxiliary category.

    Raises:
      DataError or ConfigError, one line each.
    """
    if config.target.name:
        try:
            return load_records(target(config), progress=progress)
        except ValueError as error:
            raise of_target(error) from None
    trained = is_trained(config, workdir) and not has_records(config)
    return load_records(without_training(config) if trained else config, progress=progress)


def planned_key(config: ConfigDict) -> str | None:
    """The key of the records that would be evaluated, by the scans that are here; None where that cannot be told without writing
    or without scans."""
    wanted = target(config) if config.target.name else config
    try:
        return None if is_embedded(wanted) else plan_records(wanted).key
    except DataError:  # results are still there to be shown
        return None


def plan_records(config: ConfigDict) -> Plan:
    """Which records the configuration asks for; finds the scans, renders nothing. Not for the embedded data set, whose scans may
    not be written yet.

    Raises:
      DataError: as `data_pipelines.records.store.prepare`, where that can be told before rendering.
    """
    data, categories = wanted(config)
    if not data["root"]:
        raise DataError(f"data set {data['name']!r} needs config.data.root, the folder with its category folders")
    cache = storage.opened(config.cache).expanduser().absolute()
    return plan_of(data, local_root(data["root"]), cache, categories)


def training_key(config: ConfigDict, records: RecordSet) -> str:
    """Hash of the auxiliary category's scans and of how they become records, whatever else is evaluated; coloured views are made
    of the same."""
    data = data_config(config) | {"root": str(records.root), "rgb_render": False}
    return plan_of(data, records.root, storage.opened(config.cache), [config.data.train_category]).key
