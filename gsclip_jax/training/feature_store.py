"""Encode what a stage leaves frozen once, keep it on disk, train from it.

The published training encodes the same frozen views again every epoch; here each object passes the frozen parts once.
Rows are kept by `object_index`, in memory-mapped .npy files, one of every process that encoded. A feature lies in a folder named
by the content of all that made it: the objects, the parameters it is computed from, and the computation itself. Whoever trained
other prompts, on another machine or with other code, gets other text, whatever the configuration says; who changes what a feature
does not depend on finds it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from data_pipelines import storage
from data_pipelines.files import write_json
from data_pipelines.leases import locked
from data_pipelines.progress import Progress
from gsclip_jax.method import Params, Stage, Stats
from gsclip_jax.runtime.distributed import is_first, shared, wait, whole
from gsclip_jax.runtime.sharding import local_rows, pad_batch, path_name, put_batch, split_rows


class FeatureStore:
    """Features by object: {name: array [objects, ...]}, read-only memory maps, from one folder or several."""

    def __init__(self, *folders: Path):
        self._rows: dict[str, dict[int, np.ndarray]] = {}  # name -> object_index -> its row
        for folder in folders:
            meta = json.loads((folder / "meta.json").read_text())
            for name, dtype in meta["dtypes"].items():
                # (without `files`: of earlier versions)
                arrays = [np.load(folder / file, mmap_mode="r") for file in meta.get("files", [f"{name}.npy"])]
                rows = [row for array in arrays for row in (array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array)]
                self._rows[name] = dict(zip(meta["objects"], rows, strict=True))

    def join(self, batches: Iterable[dict]) -> Iterator[dict]:
        """The batches with the stored features of their objects as further fields."""
        for batch in batches:
            numbers = [int(index) for index in batch["object_index"]]
            yield {**batch, **{name: np.stack([rows[n] for n in numbers]) for name, rows in self._rows.items()}}


@dataclass(frozen=True)
class Source:
    """What features are computed from: the stage's function, the parameters it reads, and the objects.

    Fields:
      batches: a fresh iterator over this process's rows of all objects once, the last batch padded (`real` false).
      count: how many objects there are, over all processes.
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
                found.update(np.ascontiguousarray(jax.device_get(whole(leaf, source.mesh))).reshape(-1).view(np.uint8).data)
        keys[name] = found.hexdigest()[:16]
    return keys


def find_features(source: Source, root: str | Path) -> FeatureStore | None:
    """The stage's features of all objects, each from root/KEY (`feature_keys`) or computed into it, all that are missing in one
    pass over the objects.

    Returns:
      None where the stage has none.
    """
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    keys = feature_keys(source)
    folders = {name: root / key for name, key in shared("features", lambda: keys).items()}
    with ExitStack() as locks:

        def missing() -> list[str]:
            # Runs of one sweep share what they have in common, and lock it in one order: none waits for ever.
            for folder in sorted(_missing(folders).values()):
                locks.enter_context(locked(folder.with_name(f"{folder.name}.lock")))
            return list(_missing(folders))

        if names := shared("missing features", missing):
            store_features(source, {name: folders[name] for name in names})
        for folder in folders.values() if is_first() else ():
            storage.publish(folder)
    return FeatureStore(*folders.values()) if folders else None


def _missing(folders: Mapping[str, Path]) -> dict[str, Path]:
    return {name: folder for name, folder in folders.items()
            if not (folder / "meta.json").exists() and not storage.fetch(folder)}  # fmt: skip


def store_features(source: Source, folders: Mapping[str, Path]) -> None:
    """Computes features of all objects in one pass over them; every process keeps the rows that it has, and process 0 puts
    together which those are.

    Args:
      folders: name -> where it is to live; complete or absent, as it is renamed into place.
    """
    stage, process = source.stage, jax.process_index()

    def encode(params, stats, batch):
        return {name: value for name, value in stage.features(params, stats, batch).items() if name in folders}

    encode = jax.jit(encode, out_shardings=split_rows(source.mesh))
    unfinished = {name: Path(path) for name, path in shared("folders", lambda: _unfinished(folders)).items()}
    progress = Progress(f"{stage.name}: encoding frozen parts ({', '.join(folders)})", source.count)
    done, objects = 0, []
    with ExitStack() as files:
        parts = {name: files.enter_context(Rows(folder / f"{process}.npy")) for name, folder in unfinished.items()}
        for batch in source.batches():
            batch = pad_batch(batch, source.mesh)
            with jax.set_mesh(source.mesh):  # the views are split over it
                features = encode(source.params, source.stats, put_batch(batch, source.mesh))
            for name, value in features.items():
                rows, mine = local_rows(value)
                mine &= batch["real"]
                parts[name].append(rows[mine])
            objects += batch["object_index"][mine].tolist()
            done += int(mine.sum()) * jax.process_count()
            progress.update(min(done, source.count))
    for name, folder in unfinished.items():
        write_json(folder / f"{process}.json", {"objects": objects, "dtype": parts[name].dtype})
    wait("encoded")
    for name in folders if is_first() else ():
        _finish(unfinished[name], folders[name], name)
    wait("stored")


def _unfinished(folders: Mapping[str, Path]) -> dict[str, str]:
    """A new folder for each that is to be written; what a killed run left is removed."""
    made = {}
    for name, folder in folders.items():
        for left in folder.parent.glob(f"{folder.name}*.unfinished"):
            shutil.rmtree(left, ignore_errors=True)
        made[name] = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:12]}.unfinished")
        made[name].mkdir(parents=True)
    return {name: str(folder) for name, folder in made.items()}


def _finish(unfinished: Path, folder: Path, name: str) -> None:
    """Notes which object's row lies where, and gives the folder its name."""
    parts = {}
    for path in sorted(unfinished.glob("*.json"), key=lambda path: int(path.stem)):
        about = json.loads(path.read_text())
        if about["objects"]:
            parts[f"{path.stem}.npy"] = about
    objects = [number for about in parts.values() for number in about["objects"]]
    dtype = next(about["dtype"] for about in parts.values())
    write_json(unfinished / "meta.json", {"objects": objects, "dtypes": {name: dtype}, "files": list(parts)})
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


class Rows:
    """An .npy file that grows: rows are appended, and its header says how many they are once it is closed."""

    def __init__(self, path: Path):
        self._file, self._count, self._shape = path.open("wb"), 0, None
        self.dtype = ""  # of the rows; bfloat16, which numpy does not know, is kept as uint16

    def append(self, rows: np.ndarray) -> None:
        """rows [R, ...], of one shape and dtype in all calls."""
        if self._shape is None:
            self.dtype, self._shape = str(rows.dtype), rows.shape[1:]
            self._header()
        self._file.write(np.ascontiguousarray(rows).tobytes())
        self._count += len(rows)

    def _header(self) -> None:
        dtype = np.dtype(np.uint16 if self.dtype == "bfloat16" else self.dtype)
        about = {"shape": (self._count, *self._shape), "fortran_order": False, "descr": np.lib.format.dtype_to_descr(dtype)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, about)  # as long for any number of rows

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *_) -> None:
        if self._shape is not None:
            self._header()
        self._file.close()
