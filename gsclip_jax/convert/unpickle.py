"""Torch files read without torch and without running anything from them (the machine is in `machine.py`).

Three containers are understood: zip archives of `torch.save`, TorchScript archives (`torch.jit.save`; module classes
become plain dicts of attributes), and the older stream of pickles that `torch.save` wrote before version 1.6.
"""

from __future__ import annotations

import io
import mmap
import reprlib
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

from gsclip_jax.convert.machine import Machine, Module, Storage, Tensor, UnsafePickle, _Global
from gsclip_jax.runtime.keys import WeightsError

__all__ = ["Module", "Tensor", "UnsafePickle", "read_torch"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of the stream format (torch/serialization.py)
LEGACY_PROTOCOL = 1001
# what the zip module raises on archives that are damaged or of kinds torch never writes
DAMAGED = (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, struct.error, zlib.error, ValueError,
           OverflowError, IndexError, MemoryError)


def read_torch(path: str | Path) -> tuple[str, Any]:
    """Reads a torch file of any of the three formats.

    Returns:
        (format, content): 'torch', 'torchscript' or 'torch-legacy', and nested dicts, lists, numbers, `Tensor`s and
        `Module`s. Tensors are read from the file when `array()` is called.

    Raises:
        UnsafePickle: the file names anything outside tensors and plain containers; the message says what.
        WeightsError: not a torch file, truncated or damaged.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(8)
    if head[:4] == b"PK\x03\x04":
        return _read_zip(path)
    if head[:1] == b"\x80":
        return "torch-legacy", _read_legacy(path)
    raise WeightsError(f"{path}: not a torch file (neither zip archive nor pickle); check that the download is whole")


def _read_zip(path: Path) -> tuple[str, Any]:
    try:
        archive = zipfile.ZipFile(path)  # kept open by the storages' `read`, closed with the last of them
    except DAMAGED as error:
        raise WeightsError(f"{path}: a truncated or damaged zip archive ({error}); fetch it again") from error
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    stored = [entry for entry in archive.infolist() if entry.compress_type == zipfile.ZIP_STORED]
    claimed = sum(max(entry.file_size, entry.compress_size) for entry in stored)
    if claimed > path.stat().st_size:  # before anything is read: memory is asked for as the directory claims
        raise WeightsError(f"{path}: the archive claims to hold {claimed} bytes, more than the file; damaged, fetch it again")
    roots = [name.removesuffix("data.pkl") for name in sizes if name.endswith("data.pkl") and name.count("/") <= 1]
    if len(roots) != 1:
        raise WeightsError(f"{path}: a zip archive without torch's data.pkl; not a weight file")
    root = roots[0]
    script = f"{root}constants.pkl" in sizes or any(name.startswith(f"{root}code/") for name in sizes)

    def read(name: str) -> bytes:
        try:
            if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # torch stores plainly; no zip bombs
                raise WeightsError(f"{path}: '{name}' is compressed, torch never does that; use the original file")
            return archive.read(name)
        except KeyError:
            raise WeightsError(f"{path}: the archive has no '{name}'; it is incomplete, fetch it again") from None
        except WeightsError:
            raise
        except DAMAGED as error:
            raise WeightsError(f"{path}: '{name}' cannot be read ({error}); damaged, fetch it again") from error

    order = read(f"{root}byteorder").strip() if f"{root}byteorder" in sizes else b"little"
    if order not in (b"little", b"big"):
        raise WeightsError(f"{path}: byte order {reprlib.repr(order)}; expected little or big")
    known: dict[str, Storage] = {}

    def persistent(kind: _Global, key: str, numel: int, view: Any) -> Storage:
        if key not in known:
            name = f"{root}data/{key}"
            known[key] = Storage(lambda: read(name), kind.value, numel, order == b"big", f"{path}: '{name}'")
        return known[key]

    content = Machine(path, persistent, script).run(io.BytesIO(read(f"{root}data.pkl")))
    return ("torchscript" if script else "torch"), content


def _read_legacy(path: Path) -> Any:
    with open(path, "rb") as file:
        stream = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    known: dict[str, Storage] = {}
    system: dict[str, Any] = {}

    def persistent(kind: _Global, key: str, numel: int, view: Any) -> Storage:
        if key not in known:
            known[key] = Storage(lambda: b"", kind.value, numel, not system["little_endian"], f"{path}: storage {key}")
        if view is None:
            return known[key]
        _, start, length = view
        part = Storage(known[key].read, kind.value, numel, known[key].big_endian, known[key].where, start)
        if not 0 <= start <= start + length <= numel:
            raise ValueError("part of a storage outside of it")
        parts.append((key, part))
        return part

    parts: list[tuple[str, Storage]] = []
    machine = Machine(path, persistent, script=False)
    if machine.run(stream) != LEGACY_MAGIC:
        raise WeightsError(f"{path}: a pickle, but not one of torch; save the state_dict with torch.save")
    protocol = machine.run(stream)
    if protocol != LEGACY_PROTOCOL:
        raise WeightsError(f"{path}: torch stream of protocol {reprlib.repr(protocol)}, not {LEGACY_PROTOCOL}; save it again")
    system.update(little_endian=True)
    described = machine.run(stream)
    if isinstance(described, dict):
        system.update(little_endian=bool(described.get("little_endian", True)))
    content = machine.run(stream)
    keys = machine.run(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(known):
        raise WeightsError(f"{path}: the list of storages does not fit the content; the file is damaged")
    position = stream.tell()
    whole = memoryview(stream)
    for key in keys:
        storage = known[key]
        if position + 8 > len(whole):
            raise WeightsError(f"{path}: storage {key} is missing; the file is truncated, fetch it again")
        (numel,) = struct.unpack_from("<q" if system["little_endian"] else ">q", whole, position)
        if numel != storage.numel:
            raise WeightsError(f"{path}: storage {key} has {numel} elements instead of {storage.numel}; damaged")
        data = whole[position + 8: position + 8 + numel * storage.dtype.itemsize]
        storage.read = lambda data=data: data
        position += 8 + numel * storage.dtype.itemsize
    for key, part in parts:
        part.read = known[key].read
    return content
