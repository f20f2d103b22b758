"""The data sets: one file each, and one row here. Readers turn files into `Scan`s and know nothing of models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipelines.datasets import anomaly_shapenet, eyecandies, folder, mvtec3d, prerendered, real3d, solids
from data_pipelines.datasets.data_set import DataSet
from data_pipelines.datasets.listing import Reader
from data_pipelines.scan import DataError, did_you_mean

DATA_SETS: dict[str, DataSet] = {
    "mvtec3d": mvtec3d.DATA_SET,
    "eyecandies": eyecandies.DATA_SET,
    "real3d": real3d.DATA_SET,
    "anomaly_shapenet": anomaly_shapenet.DATA_SET,
    "prerendered": prerendered.DATA_SET,
    "folder": folder.DATA_SET,  # your own scans
    "synthetic": DataSet(solids.Solids),  # the embedded data set
}
RECIPES = {name: row.recipe for name, row in DATA_SETS.items() if row.recipe}
AUXILIARY = {name: row.auxiliary for name, row in DATA_SETS.items() if row.auxiliary}

__all__ = ["AUXILIARY", "DATA_SETS", "DataSet", "RECIPES", "data_config", "joined_sizes", "open_reader", "recipe"]


def _known(name: str, among: Mapping[str, Any]) -> None:
    if name not in among:
        raise DataError(f"unknown data set {name!r}{did_you_mean(name, among)}; known: {', '.join(sorted(among))}")


def open_reader(name: str, root: str | Path, **options) -> Reader:
    """The reader of data set `name` over the files under `root`.

    `root` is the folder that holds the category folders, or up to three levels above it.

    Raises:
      DataError: unknown name (with the nearest known one) or option, or no such data under `root`.
    """
    _known(name, DATA_SETS)
    row = DATA_SETS[name]
    for key in options:
        if key not in (known := row.options()):
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            hint = did_you_mean(key, known)
            raise DataError(f"config.data.reader: the reader of {name!r} has no option {key!r}{hint}; {takes}")
    return row.reader(root, name=name, **options)


def recipe(name: str) -> dict[str, Any]:
    """A copy of the published settings of data set `name`. Raises DataError for an unknown one, with the nearest."""
    _known(name, RECIPES)
    return copy.deepcopy(dict(RECIPES[name]))


def data_config(name: str, root: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `records.store.prepare` takes, from the settings of `name` with some of them changed."""
    return {"name": name, "root": root, **joined_sizes(recipe(name) | dict(changes))}


def joined_sizes(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with `point_sizes` (category -> size) joined to `point_size`, as records have them."""
    data = dict(data)
    sizes = dict(data.pop("point_sizes"))
    return data | {"point_size": {**sizes, "default": data["point_size"]} if sizes else data["point_size"]}
