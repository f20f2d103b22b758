"""Seeded damage to files: of bytes, of JSON documents, of the members of zip archives, of named arrays."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile

import numpy as np

ODD = (None, True, -1, 0, 1, 2**31, 2**63, 10**30, 1e308, -0.5, float("nan"), "", "x", "0", "\n\x1b[31m", "../..", [], [[]],
       {}, {"": 0}, [1, 2], ["a", 2, None], [0.5] * 3, [0.0] * 3, "é" * 300)  # fmt: skip
NUMBERS = tuple(struct.pack(code, value) for code, value in (
    ("<Q", 2**63), ("<Q", 2**40), ("<I", 2**32 - 1), ("<I", 0), ("<H", 65535), ("<q", -1), (">I", 2**31), ("<I", 2**30)))


def of_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four changes: flipped, overwritten, cut, repeated, swapped, inserted."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        if not found:
            break
        # most of a weight file is numbers: half of the changes go to its two ends, where its structure is
        at = int(rng.integers(len(found)))
        if rng.random() < 0.5:
            near = rng.integers(1200) if rng.random() < 0.6 else len(found) - rng.integers(1, 600)
            at = int(np.clip(near, 0, len(found) - 1))
        kind, length = rng.integers(7), int(rng.integers(1, 200))
        if kind == 0:
            found[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            found[at] = rng.integers(256)
        elif kind == 2:
            number = NUMBERS[rng.integers(len(NUMBERS))]
            found[at : at + len(number)] = number
        elif kind == 3:
            del found[at : len(found) if rng.random() < 0.3 else at + length]
        elif kind == 4:
            found[at:at] = found[at : at + length] * int(rng.integers(1, 30))
        elif kind == 5:
            found[at:at] = rng.integers(0, 256, length, np.uint8).tobytes()
        else:
            other = int(rng.integers(len(found)))
            found[at], found[other] = found[other], found[at]
    return bytes(found)


def of_json(document, rng: np.random.Generator):
    """A copy with one to three places replaced, removed, renamed or nested without end."""
    document = copy.deepcopy(document)
    for _ in range(rng.integers(1, 4)):
        node, parent, key = document, None, None
        while isinstance(node, dict | list) and len(node) and (parent is None or rng.random() < 0.8):
            parent, key = node, list(node)[rng.integers(len(node))] if isinstance(node, dict) else int(rng.integers(len(node)))
            node = parent[key]
        if parent is None:
            return copy.deepcopy(ODD[rng.integers(len(ODD))])
        kind = rng.integers(5)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            parent["<script>" if rng.random() < 0.5 else key + "_"] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(ODD[rng.integers(len(ODD))])
    return document


def of_json_text(data: bytes, rng: np.random.Generator) -> bytes:
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    if rng.random() < 0.05:
        return b"[" * 100_000 if rng.random() < 0.5 else b'{"a":' * 100_000
    return json.dumps(of_json(json.loads(data), rng)).encode()


def of_zip(data: bytes, rng: np.random.Generator) -> bytes:
    """The archive written again with one member damaged, dropped, doubled, renamed or packed; or damaged as bytes."""
    if rng.random() < 0.4:
        return of_bytes(data, rng)
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        members = [(name, old.read(name)) for name in old.namelist()]
    at = rng.integers(len(members))
    if rng.random() < 0.7:
        at = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
    name, content = members[at]
    kind = rng.integers(6)
    if kind < 3:
        members[at] = name, of_bytes(content, rng)
    elif kind == 3:
        del members[at]
    elif kind == 4:
        members.append(("../" + name if rng.random() < 0.5 else name, content))
    packed = zipfile.ZIP_DEFLATED if kind == 5 else zipfile.ZIP_STORED
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", packed) as new:
        for name, content in members:
            new.writestr(name, content)
    return out.getvalue()


def of_safetensors(data: bytes, rng: np.random.Generator) -> bytes:
    """The header, as JSON, damaged with its length put right; or damaged as bytes."""
    if rng.random() < 0.4:
        return of_bytes(data, rng)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(of_json(json.loads(data[8 : 8 + length]), rng)).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def of_arrays(arrays: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One to three arrays dropped, renamed, or of another shape or kind."""
    arrays = dict(arrays)
    for _ in range(rng.integers(1, 4)):
        name = list(arrays)[rng.integers(len(arrays))]
        array, kind = arrays.pop(name), rng.integers(8)
        if kind == 1:
            arrays["".join(c if not c.isdigit() else "999999999999" for c in name) if rng.random() < 0.6 else name[1:]] = array
        elif kind == 2:
            arrays[name] = array[..., None]
        elif kind == 3:
            arrays[name] = np.float32(1)
        elif kind == 4:
            arrays[name] = np.zeros((0, *array.shape[1:]), np.float32)
        elif kind == 5:
            arrays[name] = array.reshape(-1)[:1]
        elif kind == 6:
            arrays[name] = np.concatenate([array, array]) if array.ndim else array
        elif kind == 7:
            arrays[name] = np.full(array.shape, True) if rng.random() < 0.5 else np.full(array.shape, np.nan, np.float32)
        if not arrays:
            break
    return arrays
