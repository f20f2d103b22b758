"""What the project knows of a data set: its reader, how a record of it is made, and the published auxiliary categories."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from data_pipelines.datasets.listing import Reader


@dataclasses.dataclass(frozen=True)
class Published:
    """What is published of the size of a data set: to plan with where it is not here.

    Fields:
      scans: test scans of all categories.
      categories: how many there are.
      points: of a typical scan.
      grid: (H, W) of organised scans.
      of: test scans of single categories, where they are known.
    """

    scans: int
    categories: int
    points: int
    grid: tuple[int, int] | None = None
    of: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def count(self, category: str) -> int:
        """Test scans of a category; the mean, where nobody says."""
        return self.of.get(category, round(self.scans / self.categories))


@dataclasses.dataclass(frozen=True)
class DataSet:
    """One row of the registry (`datasets/__init__.py`)."""

    reader: Callable[..., Reader]
    recipe: Mapping[str, Any] | None = None  # the published settings of a record; None: the configuration has all of them
    auxiliary: tuple[str, ...] = ()  # categories that the published protocol trains on, one at a time
    published: Published | None = None

    def options(self) -> list[str]:
        """Names of the options that the reader takes (config.data.reader)."""
        return list(inspect.signature(self.reader).parameters)[2:]


# Of every published recipe, where a data set says nothing else.
COMMON: dict[str, Any] = {
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
    "rasteriser": "open3d",
    "rgb_render": False,  # coloured views: for methods that train on them
    "reader": {},
}  # fmt: skip
UNORGANISED = COMMON | {"window": 1036}  # of unorganised scans
