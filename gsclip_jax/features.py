"""Encode what a stage leaves frozen once, keep it on disk, train from it.

The published training encodes the same frozen views again every epoch; here each object passes the frozen parts once a stage.
Rows are kept by `object_index`, in memory-mapped .npy files under a folder named by the hash of what made them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from gsclip_jax.method import Method, Params, Stats
from gsclip_jax.sharding import put_batch
from gsclip_jax.writer import Progress


class FeatureStore:
    """Features by object: {name: array [objects, ...]}, read-only memory maps."""

    def __init__(self, folder: Path):
        meta = json.loads((folder / "meta.json").read_text())
        self._row = {index: row for row, index in enumerate(meta["objects"])}
        self._arrays = {}
        for name, dtype in meta["dtypes"].items():
            array = np.load(folder / f"{name}.npy", mmap_mode="r")
            self._arrays[name] = array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array

    def join(self, batches: Iterable[dict]) -> Iterator[dict]:
        """The batches with the stored features of their objects as further fields."""
        for batch in batches:
            rows = [self._row[int(index)] for index in batch["object_index"]]
            yield {**batch, **{name: np.asarray(array[rows]) for name, array in self._arrays.items()}}


def store_features(
    method: Method,
    stage: str,
    params: Params,
    stats: Stats,
    batches: Callable[[], Iterator[dict]],
    count: int,
    folder: str | Path,
    *,
    mesh: jax.sharding.Mesh,
) -> FeatureStore | None:
    """Computes (or finds) the stage's features of all objects in one pass over them.

    Args:
      batches: a fresh iterator over every object once, the last batch padded (`real` false).
      count: how many objects that is.
      folder: where they live; complete or absent, as it is renamed into place.

    Returns:
      None where the method has none for the stage, or where several processes share the work (each would hold a part only).
    """
    folder = Path(folder)
    if (folder / "meta.json").exists():
        return FeatureStore(folder)
    if jax.process_count() > 1:
        return None
    encode = jax.jit(lambda params, stats, batch: method.features(stage, params, stats, batch))
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    arrays, dtypes, objects = {}, {}, []
    progress = Progress(f"{stage}: encoding frozen parts", count)
    for batch in batches():
        features = jax.device_get(encode(params, stats, put_batch(batch, mesh)))
        if not features:
            shutil.rmtree(unfinished)
            return None
        for name, value in features.items():
            if name not in arrays:
                dtypes[name] = str(value.dtype)
                stored = np.uint16 if dtypes[name] == "bfloat16" else value.dtype
                arrays[name] = np.lib.format.open_memmap(
                    unfinished / f"{name}.npy", mode="w+", dtype=stored, shape=(count, *value.shape[1:])
                )
            rows = value[batch["real"]]
            arrays[name][len(objects) : len(objects) + len(rows)] = rows.view(arrays[name].dtype)
        objects += [int(i) for i in batch["object_index"][batch["real"]]]
        progress.update(len(objects))
    for array in arrays.values():
        array.flush()
    (unfinished / "meta.json").write_text(json.dumps({"objects": objects, "dtypes": dtypes}))
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
    return FeatureStore(folder)
