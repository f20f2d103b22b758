"""One reader per data set, found by name. Readers turn files into `Scan`s and know nothing of rendering or models."""

from __future__ import annotations

import importlib
from pathlib import Path

from data_pipelines.datasets.listing import Reader
from data_pipelines.scan import DataError, GivenViews, Sample, Scan, did_you_mean

# name -> (module, class). Modules are imported when asked for: a reader may need what another installation lacks.
READERS: dict[str, tuple[str, str]] = {
    "real3d": ("real3d", "Real3D"),
    "synthetic": ("real3d", "Real3D"),  # the synthetic writer keeps Real3D-AD's layout
    "anomaly_shapenet": ("anomaly_shapenet", "AnomalyShapeNet"),
    "mvtec3d": ("mvtec3d", "MVTec3D"),
    "eyecandies": ("eyecandies", "Eyecandies"),
    "prerendered": ("prerendered", "Prerendered"),
    "folder": ("folder", "Folder"),  # your own scans
}

__all__ = ["DataError", "GivenViews", "READERS", "Reader", "Sample", "Scan", "open_reader"]


def open_reader(name: str, root: str | Path, **options) -> Reader:
    """The reader of data set `name` over the files under `root`.

    `root` is the folder that holds the category folders, or up to three levels above it.

    Raises:
      DataError: unknown name (with the nearest known one), or no such data under `root`.
    """
    if name not in READERS:
        raise DataError(f"unknown data set {name!r}{did_you_mean(name, READERS)}; known: {', '.join(sorted(READERS))}")
    module, cls = READERS[name]
    return getattr(importlib.import_module(f"{__name__}.{module}"), cls)(root, name=name, **options)
