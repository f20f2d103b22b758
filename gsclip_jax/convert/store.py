"""Our own weight format: a directory with one `.safetensors` file of the flattened tree ('a/b/c') and a `config.json`.

`config.json` is the caller's configuration plus one reserved entry, `weights` = {format, dtype, sha256}: the hash names
the content (not the file): a frozen CLIP can be referred to by it, and a damaged or mixed-up pair of files is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
from safetensors.numpy import save_file

from gsclip_jax.runtime.documents import read_json
from gsclip_jax.runtime.keys import WeightsError, check_keys, plain

FORMAT = "gsclip_jax-1"
RESERVED = "weights"  # the entry of config.json that this module writes
STORED = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
SMALLEST = "smallest"

# what the library raises on files that are damaged, or hold kinds of numbers that numpy does not know
UNREADABLE = (safetensors.SafetensorError, OSError, TypeError, KeyError, AttributeError, ValueError, OverflowError, MemoryError)

Tree = Mapping[str, Any]
PathLike = str | os.PathLike[str]


def flatten(tree: Tree) -> dict[str, Any]:
    """{'a': {'b': x}} -> {'a/b': x}, sorted by name. Empty dicts vanish. ValueError on anything but dicts of arrays."""
    flat: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            for name, child in node.items():
                if not isinstance(name, str) or not name or "/" in name:
                    raise ValueError(f"parameter tree: {name!r} under '{path}' is no text without '/'; rename it")
                walk(child, f"{path}/{name}" if path else name)
        elif path and hasattr(node, "shape") and hasattr(node, "dtype"):
            flat[path] = node
        else:
            raise ValueError(f"parameter tree: '{path}' holds a {type(node).__name__}; only dicts of arrays are stored")

    walk(tree, "")
    return dict(sorted(flat.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `flatten`. Raises WeightsError where one name is both an array and a group."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *groups, name = path.split("/")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise WeightsError(f"'{path}' lies under '{group}', which is itself an array")
        if name in node:
            raise WeightsError(f"'{path}' is both an array and a group")
        node[name] = leaf
    return tree


def content_hash(tree: Tree) -> str:
    """SHA-256 over names, dtypes, shapes and values of a tree of arrays, 64 hex digits; independent of order."""
    return _hash_flat(flatten(tree))


def _hash_flat(flat: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, leaf in sorted(flat.items()):
        array = np.asarray(leaf)
        digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _locate(path: PathLike) -> tuple[Path, Path]:
    """(weights file, config file) of a directory or a `.safetensors` file that exist."""
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise WeightsError(f"{path}: {len(found)} .safetensors files, expected one; convert weights with "
                               "`python -m gsclip_jax.convert FILE --to DIR` or name the file itself")
        path = found[0]
    if not path.is_file():
        raise WeightsError(f"{path}: no such file or directory; `python -m gsclip_jax.convert FILE --to DIR` makes one")
    return path, path.parent / "config.json"


def is_stored(path: PathLike) -> bool:
    """Whether `path` (directory or .safetensors file) is of this format, told by its config.json alone."""
    path = Path(path)
    config = (path if path.is_dir() else path.parent) / "config.json"
    if (path.is_file() and path.suffix.lower() != ".safetensors") or not config.is_file():
        return False
    try:
        entry = read_json(config).get(RESERVED)
    except WeightsError:
        return False
    return isinstance(entry, dict) and str(entry.get("format", "")).startswith("gsclip_jax-")


def save_params(path: PathLike, params: Tree, *, config: Mapping[str, Any], dtype: str = "float32") -> str:
    """Writes a parameter tree and its configuration; returns the content hash.

    Args:
        path: a directory (gets `params.safetensors`), or a file ending in `.safetensors`; `config.json` goes beside it.
            Files appear whole or not at all.
        params: nested dict of arrays, numpy or jax. Floating arrays are stored as `dtype`, all others as they are.
        config: anything JSON can hold; the entry `weights` is reserved.
        dtype: 'float32', 'float16', 'bfloat16', or 'smallest': float16 where that changes no value of an array, else float32.

    Raises:
        ValueError: a tree with lists or None in it, an unknown dtype, a config that JSON cannot hold, or values that
            are not finite, or no longer finite as `dtype`.
    """
    if dtype not in (*STORED, SMALLEST):
        raise ValueError(f"dtype {dtype!r}: choose one of {', '.join((*STORED, SMALLEST))}")
    if RESERVED in config:
        config = {name: value for name, value in config.items() if name != RESERVED}
    path = Path(path)
    is_file = path.suffix == ".safetensors"
    folder, name = (path.parent, path.name) if is_file else (path, "params.safetensors")
    flat = {}
    for key, leaf in flatten(params).items():
        array = np.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.floating):
            with np.errstate(over="ignore"):  # told below, by name
                array = _smallest(array) if dtype == SMALLEST else array.astype(STORED[dtype])
            if not np.isfinite(array).all():
                raise ValueError(f"parameter '{key}' is not finite as {dtype}; store it as float32 or repair it")
        flat[key] = np.ascontiguousarray(array).reshape(np.shape(leaf))
    sha256 = _hash_flat(flat)
    document = {**config, RESERVED: {"format": FORMAT, "dtype": dtype, "sha256": sha256}}
    text = json.dumps(document, indent=1, sort_keys=True) + "\n"

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        save_file(flat, Path(scratch) / name, metadata={"format": FORMAT, "sha256": sha256})
        (Path(scratch) / "config.json").write_text(text)
        for part in (name, "config.json"):  # the config last: it vouches for the weights by their hash
            os.chmod(Path(scratch) / part, 0o644)
            os.replace(Path(scratch) / part, folder / part)
    return sha256


def _smallest(array: np.ndarray) -> np.ndarray:
    whole = array.astype(np.float32)
    half = whole.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), whole) else whole


def load_params(path: PathLike, like: Tree | None = None, *, verify: bool = True) -> tuple[dict, dict]:
    """Reads what `save_params` wrote: (params, config). Floating arrays come back as float32 jax arrays.

    Args:
        path: the directory, or its `.safetensors` file.
        like: a tree of arrays or `jax.ShapeDtypeStruct`; every missing, unexpected and misshapen key is told at once.
        verify: compare the content with the hash in config.json (about a second per gigabyte).

    Raises:
        WeightsError: not this format, damaged, or not fitting `like`; one line naming the file.
    """
    file, config_file = _locate(path)
    try:
        config = read_json(config_file)
        entry = config.pop(RESERVED)
        stored_hash, stored_format = entry["sha256"], entry["format"]
    except (WeightsError, KeyError, TypeError) as error:
        raise WeightsError(f"{config_file}: not the configuration of converted weights ({type(error).__name__}); "
                           "convert with `python -m gsclip_jax.convert FILE --to DIR`") from error
    if stored_format != FORMAT:
        later = re.fullmatch(r"gsclip_jax-(\d{1,9})", str(stored_format))
        advice = "upgrade gsclip_jax" if later and int(later[1]) > int(FORMAT.rpartition("-")[2]) else "convert the weights again"
        raise WeightsError(f"{config_file}: format {plain(stored_format, 60)}, not {FORMAT!r}; {advice}")
    try:
        with safetensors.safe_open(file, "np") as reader:
            flat = {name: reader.get_tensor(name) for name in reader.keys()}
    except UNREADABLE as error:
        raise WeightsError(f"{file}: not a whole safetensors file ({error}); convert the weights again") from error
    if like is not None:
        check_keys({name: array.shape for name, array in flat.items()},
                   {name: tuple(leaf.shape) for name, leaf in flatten(like).items()}, str(file),
                   "The weights belong to another configuration")
    tree = unflatten(flat)
    if verify and _hash_flat(flat) != stored_hash:
        raise WeightsError(f"{file}: content differs from the hash in {config_file.name}; mixed up, convert again")
    # Widened by numpy and moved at once: JAX would compile a program for every shape, which takes longer than the reading.
    return jax.device_put(jax.tree.map(_widened, tree)), config


def _widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32, copy=False) if jnp.issubdtype(array.dtype, jnp.floating) else array


def copy_beside(source: PathLike, folder: PathLike, name: str | None = None) -> Path:
    """Copies a companion file (a tokenizer's vocabulary) into a weights directory, whole or not at all."""
    source, folder = Path(source), Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (name or source.name)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as scratch:
        shutil.copyfile(source, Path(scratch) / "part")
        os.replace(Path(scratch) / "part", target)
    return target
