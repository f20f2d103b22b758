"""The published settings of every data set, as data: what a record of it is made with, and its reader's options.

`data_pipelines.prepare` and the presets of `experiments` both read them here, so that what one prepared the other finds.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from data_pipelines.scan import DataError, did_you_mean

_COMMON = {
    "points": 336 * 336,  # scored points M
    "image_size": 336,
    "views": 9,
    "cameras": "ring",
    "window": 1024,  # pixels drawn before the picture is reduced to image_size
    "point_size": 12.0,
    "point_sizes": {},  # category -> size, where they differ
    "cloud_points": 3000,  # N, PointNet++ input
    "neighbours": 16,
    "sample_seed": 0,
    "back_off": None,  # as the camera list has it
    "zoom": 0.7,
    "cavity": 0.0,  # the published views have none of the three
    "depth_relief": 0.0,
    "fill_gaps": False,
    "reader": {},
}  # fmt: skip
_MVTEC = _COMMON | {
    "cameras": "mvtec3d",
    "point_sizes": {
        "bagel": 7.0, "cable_gland": 12.0, "carrot": 7.0, "cookie": 6.0, "dowel": 10.0, "rope": 5.0, "peach": 7.0,
        "foam": 8.0, "potato": 8.0, "tire": 8.0,
    },
}  # fmt: skip
_CLOUDS = _COMMON | {"window": 1036}

RECIPES: dict[str, dict[str, Any]] = {
    "mvtec3d": _MVTEC,
    "eyecandies": _COMMON | {"cameras": "eyecandies", "point_size": 10.0, "window": 1036, "reader": {"image": 4}},
    "real3d": _CLOUDS,
    "anomaly_shapenet": _CLOUDS,
    "prerendered": _MVTEC,  # brings its own pictures, of these sizes
    "folder": _CLOUDS,
}


def recipe(name: str) -> dict[str, Any]:
    """A copy of the settings of data set `name`. Raises DataError for an unknown one, with the nearest."""
    if name not in RECIPES:
        raise DataError(f"unknown data set {name!r}{did_you_mean(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return copy.deepcopy(RECIPES[name])


def data_config(name: str, root: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What `records.prepare` takes, from the settings of `name` with some of them changed."""
    data = recipe(name) | dict(changes)
    sizes = data.pop("point_sizes")
    if sizes:
        data["point_size"] = {**sizes, "default": data["point_size"]}
    return {"name": name, "root": root, **data}
