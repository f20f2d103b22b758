"""Encode what a stage leaves frozen once, keep it on disk, train from it.

The published training encodes the same frozen views again every epoch; here each object passes the frozen parts once.
Rows are kept by `object_index`, in memory-mapped .npy files. A feature lies in a folder named by the content of all that made
it: the objects, the parameters it is computed from, and the computation itself. Whoever trained other prompts, on another machine
or with other code, gets other text, whatever the configuration says; who changes what a feature does not depend on finds it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from data_pipelines import storage
from data_pipelines.leases import locked
from data_pipelines.progress import Progress
from gsclip_jax.method import Params, Stage, Stats
from gsclip_jax.runtime.sharding import pad_batch, path_name, put_batch


class FeatureStore:
    """Features by object: {name: array [objects, ...]}, read-only memory maps, from one folder or several."""

    def __init__(self, *folders: Path):
        self._arrays: dict[str, tuple[dict[int, int], np.ndarray]] = {}
        for folder in folders:
            meta = json.loads((folder / "meta.json").read_text())
            row = {index: row for row, index in enumerate(meta["objects"])}
            for name, dtype in meta["dtypes"].items():
                array = np.load(folder / f"{name}.npy", mmap_mode="r")
                self._arrays[name] = row, array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array

    def join(self, batches: Iterable[dict]) -> Iterator[dict]:
        """The batches with the stored features of their objects as further fields."""
        for batch in batches:
            numbers = [int(index) for index in batch["object_index"]]
            yield {**batch, **{name: np.asarray(array[[row[n] for n in numbers]]) for name, (row, array) in self._arrays.items()}}


@dataclass(frozen=True)
class Source:
    """What features are computed from: the stage's function, the parameters it reads, and the objects.

    Fields:
      batches: a fresh iterator over every object once, the last batch padded (`real` false).
      count: how many objects that is.
      content: names the objects' content.
    """

    stage: Stage
    params: Params
    stats: Stats
    batches: Callable[[], Iterator[dict]]
    count: int
    content: str
    mesh: jax.sharding.Mesh


def feature_keys(source: Source) -> dict[str, str]:
    """For every feature of the stage, the hash of what its values follow from: {} where it has none.

    The same on any device, mesh and batch size, and for every stage and configuration that computes the same from the same.
    """
    batch = next(iter(source.batches()))
    one = {name: jax.ShapeDtypeStruct((1, *value.shape[1:]), value.dtype) for name, value in batch.items()}
    given = (source.params, source.stats, one)
    traced, out = jax.make_jaxpr(source.stage.features, return_shape=True)(*given)
    leaves, keys = jax.tree_util.tree_leaves_with_path(given), {}
    for number, name in enumerate(sorted(out)):  # dictionaries are flattened in the order of their keys
        jaxpr, used = dce_jaxpr(traced.jaxpr, [i == number for i in range(len(out))])
        read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
        constants = [pair for pair in zip(jaxpr.constvars, traced.consts, strict=True) if id(pair[0]) in read]
        program = str(jaxpr.replace(constvars=[variable for variable, _ in constants]))
        # Addresses of Python objects in the printed program are no part of it.
        found = hashlib.sha256(json.dumps([source.content, name, re.sub(r"0x[0-9a-f]+", "", program)]).encode())
        needed = [((), constant) for _, constant in constants]
        needed += [leaf for leaf, wanted in zip(leaves, used, strict=True) if wanted]
        for path, leaf in needed:
            found.update(json.dumps([path_name(path), str(leaf.dtype), leaf.shape]).encode())
            if not isinstance(leaf, jax.ShapeDtypeStruct):
                found.update(np.ascontiguousarray(jax.device_get(leaf)).reshape(-1).view(np.uint8).data)
        keys[name] = found.hexdigest()[:16]
    return keys


def find_features(source: Source, root: str | Path) -> FeatureStore | None:
    """The stage's features of all objects, each from root/KEY (`feature_keys`) or computed into it, all that are missing in one
    pass over the objects.

    Returns:
      None where the stage has none, or where several processes share the work (each would hold a part only).
    """
    if jax.process_count() > 1:
        return None
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    folders = {name: root / key for name, key in feature_keys(source).items()}
    with ExitStack() as locks:  # runs of one sweep share what they have in common, and lock it in one order: none waits for ever
        for folder in sorted(_missing(folders).values()):
            locks.enter_context(locked(folder.with_name(f"{folder.name}.lock")))
        if missing := _missing(folders):
            store_features(source, missing)
        for folder in folders.values():
            storage.publish(folder)
    return FeatureStore(*folders.values()) if folders else None


def _missing(folders: Mapping[str, Path]) -> dict[str, Path]:
    return {name: folder for name, folder in folders.items()
            if not (folder / "meta.json").exists() and not storage.fetch(folder)}  # fmt: skip


def store_features(source: Source, folders: Mapping[str, Path]) -> None:
    """Computes features of all objects in one pass over them.

    Args:
      folders: name -> where it is to live; complete or absent, as it is renamed into place.
    """
    stage, unfinished = source.stage, {}

    @jax.jit
    def encode(params, stats, batch):
        return {name: value for name, value in stage.features(params, stats, batch).items() if name in folders}

    for name, folder in folders.items():
        unfinished[name] = folder.with_name(folder.name + ".unfinished")
        shutil.rmtree(unfinished[name], ignore_errors=True)
        unfinished[name].mkdir(parents=True)
    arrays, dtypes, objects = {}, {}, []
    progress = Progress(f"{stage.name}: encoding frozen parts ({', '.join(folders)})", source.count)
    for batch in source.batches():
        batch = pad_batch(batch, source.mesh)
        with jax.set_mesh(source.mesh):  # the views are split over it
            features = jax.device_get(encode(source.params, source.stats, put_batch(batch, source.mesh)))
        for name, value in features.items():
            if name not in arrays:
                dtypes[name] = str(value.dtype)
                stored = np.uint16 if dtypes[name] == "bfloat16" else value.dtype
                arrays[name] = np.lib.format.open_memmap(
                    unfinished[name] / f"{name}.npy", mode="w+", dtype=stored, shape=(source.count, *value.shape[1:])
                )
            rows = value[batch["real"]]
            arrays[name][len(objects) : len(objects) + len(rows)] = rows.view(arrays[name].dtype)
        objects += [int(i) for i in batch["object_index"][batch["real"]]]
        progress.update(len(objects))
    for name, array in arrays.items():
        array.flush()
        (unfinished[name] / "meta.json").write_text(json.dumps({"objects": objects, "dtypes": {name: dtypes[name]}}))
        shutil.rmtree(folders[name], ignore_errors=True)
        unfinished[name].rename(folders[name])
