"""Files as torch.save writes them, of float16 arrays, made without torch."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np

from gsclip_jax.convert.unpickle import LEGACY_MAGIC


def pickled(arrays: dict[str, np.ndarray], wrap: str = "") -> bytes:
    """The pickle torch writes for a dict of float16 tensors, storage '0', '1', ... each."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def integers(values) -> bytes:
        return b"(" + b"".join(b"J" + struct.pack("<i", value) for value in values) + b"t"

    out = b"\x80\x02" + (b"}" + text(wrap) if wrap else b"") + b"ccollections\nOrderedDict\n)Rq\x00("
    for number, (name, array) in enumerate(arrays.items()):
        storage = b"(" + text("storage") + b"ctorch\nHalfStorage\n" + text(str(number)) + text("cpu")
        storage += b"J" + struct.pack("<i", array.size) + b"tQ"
        strides = np.array(array.strides) // array.itemsize
        out += text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00"
        out += integers(array.shape) + integers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"
    return out + b"u" + (b"s" if wrap else b"") + b"."


def torch_zip(arrays: dict[str, np.ndarray], wrap: str = "", script: bool = False) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("w/data.pkl", pickled(arrays, wrap))
        for number, array in enumerate(arrays.values()):
            archive.writestr(f"w/data/{number}", array.tobytes())
        archive.writestr("w/version", "3\n")
        if script:
            archive.writestr("w/constants.pkl", b"\x80\x02).")
    return out.getvalue()


def torch_legacy(arrays: dict[str, np.ndarray], wrap: str = "") -> bytes:
    head = b"".join(pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, {"little_endian": True}))
    keys = [str(number) for number in range(len(arrays))]
    tail = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in arrays.values())
    return head + pickled(arrays, wrap) + pickle.dumps(keys, 2) + tail
