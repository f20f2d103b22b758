"""Weight files of any kind to a flat state dict of numpy arrays, with the hash of what was read."""

from __future__ import annotations

import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from gsclip_jax.convert.machine import Module, Tensor
from gsclip_jax.convert.store import UNREADABLE
from gsclip_jax.convert.unpickle import read_torch
from gsclip_jax.runtime.documents import part, read_json
from gsclip_jax.runtime.keys import WeightsError, listed, plain

# File names and SHA-256 as in the download addresses of OpenAI's `clip/clip.py`.
KNOWN_FILES = {
    "ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14.pt": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "ViT-L-14-336px.pt": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101.pt": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4.pt": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16.pt": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "RN50x64.pt": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
}
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
INDEX = ".index.json"  # of Hugging Face's sharded weights
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
DEEPEST, MOST = 64, 1_000_000  # nested containers of a file that is still taken for weights
LONGEST_NAME = 512  # characters of a tensor's dotted name
# Bytes of arrays that a file may fill for each of its own: eight-bit numbers widened to float32, twice (weights tied together).
# Views that overlap or repeat could ask for any amount.
WIDEST, SLACK = 8, 1 << 20

Progress = Callable[[str, int, int], None]  # (what, bytes done, bytes in all)


@dataclass
class State:
    """What a file holds. Floating tensors are float32 (half precision widened), integers and bools as stored.

    Fields: tensors: name -> array in the file's layout, nested dicts joined by dots; format: 'torch', 'torchscript',
    'torch-legacy' or 'safetensors'; sha256: of each file read, by file name; known: the published name of the file with
    this hash, or None; notes: what the user should be told; skipped: groups left unread (optimiser states).
    """

    path: Path
    format: str
    tensors: dict[str, np.ndarray]
    sha256: dict[str, str]
    known: str | None = None
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def source(self) -> dict[str, Any]:
        """For config.json: where the weights came from."""
        return {"file": self.path.name, "format": self.format, "sha256": self.sha256, "known": self.known}


def sha256_file(path: str | Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file, read in pieces; `progress` is told the bytes done."""
    path = Path(path)
    total, done, digest = path.stat().st_size, 0, hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
            done += len(piece)
            if progress:
                progress(f"hash {path.name}", done, total)
    return digest.hexdigest()


def show_progress(what: str, done: int, total: int) -> None:
    """A percentage on standard error where that is a terminal."""
    if sys.stderr.isatty():
        end = "\n" if done >= total else ""
        print(f"\r{what}: {100 * done // max(total, 1)} %", end=end, file=sys.stderr, flush=True)


def load_state(path: str | Path, *, progress: Progress | None = None) -> State:
    """Reads `.pt .pth .bin .ckpt` (torch, without torch), `.safetensors`, a sharded index, or a directory with one.

    Raises:
        WeightsError: one line: which file and what is wrong. UnsafePickle (a subclass): it holds more than weights.
    """
    path = Path(path)
    if path.is_dir():
        path = _weights_in(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    if path.name.endswith(INDEX):
        return _load_sharded(path, progress)
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        raise WeightsError(f"{path}: an empty file; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path}: a git-lfs pointer, not the weights; run `git lfs pull` or fetch the file itself")
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path}: a web page, not weights; the download went wrong, fetch it again")
    sha256 = sha256_file(path, progress)
    if path.suffix.lower() == ".safetensors":
        state = State(path, "safetensors", _read_safetensors(path), {path.name: sha256})
    else:
        kind, content = read_torch(path)
        state = State(path, kind, {}, {path.name: sha256})
        left = WIDEST * path.stat().st_size + SLACK
        for name, tensor in _tensors(content, path, state.skipped):
            left -= 4 * math.prod(tensor.shape)
            if left < 0:
                raise WeightsError(f"{path}: its tensors hold far more numbers than the file (views of one another); save them "
                                   "as tensors of their own")
            state.tensors[name] = _widened(tensor.array())
    state.known = next((name for name, known in KNOWN_FILES.items() if known == sha256), None)
    published = KNOWN_FILES.get(path.name)
    if published and published != sha256:
        state.notes.append(f"{path.name} has the name of a public file but other content (sha256 {sha256[:12]}.., "
                           f"published {published[:12]}..)")
    if not state.tensors:
        raise WeightsError(f"{path}: holds no tensors; give the file with the weights")
    return state


def _weights_in(folder: Path) -> Path:
    # a repository with both configurations and no transformers model (timm's) keeps another network in model.safetensors
    ours, theirs = (folder / OPEN_CLIP_CONFIG).is_file(), (folder / "config.json").is_file()
    names = (*WEIGHTS, *OPEN_CLIP_WEIGHTS)
    if ours and not (theirs and "model_type" in read_json(folder / "config.json")):
        names = (*OPEN_CLIP_WEIGHTS, *WEIGHTS)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
    if len(found) != 1:
        raise WeightsError(f"{folder}: holds {len(found)} weight files and no model.safetensors or pytorch_model.bin; "
                           "name the file itself")
    return found[0]


def _load_sharded(index: Path, progress: Progress | None) -> State:
    places = part(read_json(index, "index of shards"), "weight_map", index)
    if not places:
        raise WeightsError(f"{index}: not an index of sharded weights (no weight_map)")
    if any(not isinstance(shard, str) or Path(shard).name != shard or shard.endswith(INDEX) for shard in places.values()):
        raise WeightsError(f"{index}: names a shard outside of its own directory")
    shards = sorted(set(places.values()))
    absent = [shard for shard in shards if not os.path.isfile(index.parent / shard)]  # False for impossible names, too
    if absent:
        raise WeightsError(f"{index}: shards are missing: {listed(absent)}; fetch the whole directory")
    whole = State(index, "", {}, {index.name: sha256_file(index)})
    for shard in shards:
        one = load_state(index.parent / shard, progress=progress)
        whole.format = one.format
        whole.tensors |= one.tensors
        whole.sha256 |= one.sha256
    lost = sorted(places.keys() - whole.tensors.keys())
    if lost:
        raise WeightsError(f"{index}: {len(lost)} tensors are not in their shards, first {plain(lost[0], 200)}; fetch them again")
    return whole


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, "np") as reader:
            return {name: _widened(reader.get_tensor(name)) for name in reader.keys()}
    except UNREADABLE as error:
        raise WeightsError(f"{path}: not a whole safetensors file of numbers ({error}); fetch it again") from error


def _widened(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind in "iub" else array.astype(np.float32, copy=False)


def _tensors(content: Any, path: Path, skipped: list[str]) -> Iterator[tuple[str, Tensor]]:
    """(dotted name, tensor) of nested dicts, lists and TorchScript modules. Optimiser states are passed over."""
    # Children are taken one at a time: lists that hold one another would fill any list of what is still to come.
    waiting: list[Iterator[tuple[str, Any]]] = [iter([("", content)])]
    seen = 0
    while waiting:
        name, node = next(waiting[-1], (None, None))
        if name is None:
            waiting.pop()
            continue
        seen += 1
        depth = len(waiting) - 1
        if depth > DEEPEST or seen > MOST:
            raise WeightsError(f"{path}: containers nested without end; not a weight file")
        if isinstance(node, Tensor):
            yield name or "tensor", node
        elif depth == 1 and name.startswith("optimizer"):
            skipped.append(name)
        elif isinstance(node, Module | dict | list | tuple):
            waiting.append(_children(name, node.attributes if isinstance(node, Module) else node, path))


def _children(name: str, node: dict | list | tuple, path: Path) -> Iterator[tuple[str, Any]]:
    for key, child in node.items() if isinstance(node, dict) else enumerate(node):
        if not isinstance(key, str):
            key = "..." if isinstance(key, int) and key.bit_length() > 64 else str(key)
        if len(name) + len(key) >= LONGEST_NAME:
            raise WeightsError(f"{path}: a tensor's name of {len(name) + len(key)} characters; not a weight file")
        yield (f"{name}.{key}" if name else key), child
