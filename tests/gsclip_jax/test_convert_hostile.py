"""Hostile, damaged and foreign files: refused in one line, with nothing of them run."""

import os
import pickle
import struct
import subprocess
import zipfile

import numpy as np
import pytest

from gsclip_jax.convert.files import load_state
from gsclip_jax.convert.machine import Storage, Tensor
from gsclip_jax.convert.unpickle import LEGACY_MAGIC, UnsafePickle, read_torch
from gsclip_jax.runtime.keys import WeightsError


def torch_or_skip():
    return pytest.importorskip("torch", reason="torch writes the files that are read here")


def archive(path, pickled, script=False):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", np.zeros(4, np.float32).tobytes())
        if script:
            file.writestr("archive/constants.pkl", pickle.dumps(()))
    return path


def legacy(path, pickled):
    head = (pickle.dumps(value, 2) for value in (LEGACY_MAGIC, 1001, {"little_endian": True}))
    path.write_bytes(b"".join(head) + pickled + pickle.dumps([], 2))
    return path


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


def running(marker):
    """Objects whose pickles run something in Python's own unpickler: they make the file `marker`."""
    mark = f"open({str(marker)!r}, 'w').close()"
    return {
        "posix.system": Call(os.system, f"touch {marker}"),
        "builtins.eval": Call(eval, mark),
        "builtins.exec": Call(exec, mark),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(marker)]),
    }


HOSTILE = {
    "getattr by REDUCE": (
        "builtins.getattr",
        b"\x80\x02cbuiltins\ngetattr\nccollections\nOrderedDict\nX\x03\x00\x00\x00pop\x86R.",
    ),
    "dotted name": (
        "torch._utils._rebuild_tensor_v2.__globals__",
        b"\x80\x04\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93.",
    ),
    "STACK_GLOBAL": ("os.system", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R."),
    "INST": ("os.system", b"\x80\x02(S'true'\nios\nsystem\n."),
    "OBJ": ("OBJ", b"\x80\x02(ccollections\nOrderedDict\no."),
    "EXT1": ("EXT1", b"\x80\x02\x82\x01."),
    "PERSID": ("PERSID", b"\x80\x02Pstorage\n."),
    "BUILD on an allowed function": (
        "torch._utils._rebuild_tensor_v2",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__Nsb.",
    ),
    "NEWOBJ of an allowed function": ("collections.OrderedDict", b"\x80\x02ccollections\nOrderedDict\n)\x81."),
    "call of a type": ("torch.FloatStorage", b"\x80\x02ctorch\nFloatStorage\nK\x04\x85R."),
    "call of a result": ("a dict", b"\x80\x02})R."),
    "another torch.load inside": (
        "torch.storage._load_from_bytes",
        b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01x\x85R.",
    ),
    "numpy arrays of objects": (
        "numpy.core.multiarray._reconstruct",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.",
    ),
    "a module class outside of TorchScript": ("__torch__.os.system", b"\x80\x02c__torch__.os\nsystem\n)\x81."),
    "persistent id that is no storage": (
        "module",
        b"\x80\x02(X\x06\x00\x00\x00modulectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x04tQ.",
    ),
}


@pytest.mark.parametrize("place", ["zip", "torchscript", "legacy"])
@pytest.mark.parametrize("case", HOSTILE)
def test_forged_pickles_are_refused_by_name(tmp_path, case, place):
    what, pickled = HOSTILE[case]
    if place == "legacy":
        path = legacy(tmp_path / "w.pth", pickled)
    else:
        path = archive(tmp_path / "w.pth", pickled, script=place == "torchscript")
    if case.startswith("a module class") and place == "torchscript":  # there it is a plain container, never the function
        assert read_torch(path)[1].name == "__torch__.os.system"
        return
    with pytest.raises(UnsafePickle) as info:
        read_torch(path)
    assert what in str(info.value) and str(path) in str(info.value) and "\n" not in str(info.value)


def test_setstate_smuggled_into_a_dict_is_never_called(tmp_path, marker):
    # OrderedDict().__dict__['__setstate__'] = ..., then BUILD again: Python's unpickler would call it
    pickled = b"\x80\x02ccollections\nOrderedDict\n)R}X\x0c\x00\x00\x00__setstate__ccollections\nCounter\nsb}b."
    _, content = read_torch(archive(tmp_path / "w.pt", pickled))
    assert content == {} and type(content) is dict


@pytest.mark.parametrize("nested", [False, True], ids=["top", "nested"])
@pytest.mark.parametrize("case", ["posix.system", "builtins.eval", "builtins.exec", "subprocess.Popen"])
def test_pickles_that_do_run_in_python_do_nothing_here(tmp_path, marker, case, nested):
    payload = running(marker)[case]
    content = {"model": {"layer": [1.0, payload]}, "epoch": 3} if nested else payload
    pickled = pickle.dumps(content, 4)
    for path in (
        archive(tmp_path / "z.pt", pickled),
        legacy(tmp_path / "l.pt", pickled),
        archive(tmp_path / "s.pt", pickled, script=True),
    ):
        with pytest.raises(UnsafePickle, match=case):
            load_state(path)
    assert not marker.exists()
    done = pickle.loads(pickled)  # the same bytes do run in Python's own unpickler
    if case == "subprocess.Popen":
        process = done["model"]["layer"][1] if nested else done
        process.wait()
    assert marker.exists()


def test_a_pickled_module_is_refused_with_its_class(tmp_path):
    torch = torch_or_skip()
    torch.save(torch.nn.Linear(2, 3), tmp_path / "model.pt")
    with pytest.raises(UnsafePickle, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict"):
        load_state(tmp_path / "model.pt")


def view(offset, shape, strides):
    """The pickle of a tensor on a storage of four floats."""

    def numbers(values):
        return b"(" + b"".join(f"I{value}\n".encode() for value in values) + b"t"

    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    arguments = b"(" + storage + f"I{offset}\n".encode() + numbers(shape) + numbers(strides) + b"\x89}t"
    return b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"R."


@pytest.mark.parametrize(
    "offset, shape, strides",
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (0, (2,), (4,)),
        (0, (3, 2), (2, 1)),
        (0, (2,), (-1,)),
        (-1, (2,), (1,)),
        (0, (-1,), (1,)),
        (0, (2**20, 2**20), (0, 0)),
        (0, (2, 2), (1,)),
        (0, ("01",), (1,)),
        (2**70, (1,), (1,)),
    ],
)
def test_views_outside_of_their_storage_are_refused(tmp_path, offset, shape, strides):
    with pytest.raises(WeightsError, match="damaged pickle.*(outside its storage|impossible shape)"):
        read_torch(archive(tmp_path / "w.pt", view(offset, shape, strides)))


@pytest.mark.parametrize(
    "offset, shape, strides",
    [(0, (4,), (1,)), (3, (1,), (7,)), (0, (3, 2), (1, 1)), (9, (0, 3), (3, 1)), (2, (5, 2), (0, 1)), (0, (), ())],
)
def test_views_inside_are_read(tmp_path, offset, shape, strides):
    path = archive(tmp_path / "w.pt", view(offset, shape, strides))
    assert read_torch(path)[1].array().shape == shape


def test_short_storage_is_told():
    storage = Storage(lambda: b"\0" * 7, np.dtype(np.float32), 2, False, "w.pt: 'data/0'")
    with pytest.raises(WeightsError, match="7 bytes instead of 8.*truncated"):
        Tensor(storage, np.dtype(np.float32), 0, (2,), (1,)).array()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_truncated_files_are_told_at_any_length(tmp_path, zipped):
    torch = torch_or_skip()
    torch.save({"a": torch.randn(64, 64), "b": torch.arange(9)}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "w.pt").read_bytes()
    for length in [*range(1, 400, 23), len(whole) // 2, len(whole) - 200, len(whole) - 30, len(whole) - 1]:
        (tmp_path / "w.pt").write_bytes(whole[:length])
        with pytest.raises(WeightsError) as info:
            load_state(tmp_path / "w.pt")
        assert "w.pt" in str(info.value) and "\n" not in str(info.value), length


def test_flipped_bytes_never_crash(tmp_path):
    torch = torch_or_skip()
    torch.save({"a": torch.randn(3, 3), "b": [1, 2, (3.0, "x")]}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    whole = bytearray((tmp_path / "w.pt").read_bytes())
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        broken = bytearray(whole)
        for position in rng.integers(0, len(whole), 3):
            broken[position] = rng.integers(256)
        (tmp_path / "w.pt").write_bytes(broken)
        try:
            load_state(tmp_path / "w.pt")
            outcomes.add("read")
        except WeightsError as error:
            outcomes.add(type(error).__name__)
            assert "w.pt" in str(error)
    assert outcomes == {"read", "WeightsError", "UnsafePickle"}


def test_files_that_are_something_else(tmp_path):
    path = tmp_path / "ViT-L-14-336px.pt"
    for content, what in (
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"hello, no weights here", "not a torch file"),
        (b"PK\x03\x04 and no more", "damaged zip"),
        (pickle.dumps({"a": 1}, 2), "not one of torch"),
        (pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(7, 2), "protocol 7"),
        (b"\x80\x02" + b"}" * 9, "damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=what) as info:
            load_state(path)
        assert str(path) in str(info.value)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("photo.txt", "x")
    with pytest.raises(WeightsError, match="without torch's data.pkl"):
        load_state(path)
    with pytest.raises(WeightsError, match="no such file"):
        load_state(tmp_path / "absent.pt")


def test_zip_bombs_and_lost_members(tmp_path):
    torch = torch_or_skip()
    torch.save({"a": torch.zeros(1000)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in members.items():
            new.writestr(name, data)
    with pytest.raises(WeightsError, match="compressed"):
        load_state(tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "lost.pt", "w") as new:
        for name, data in members.items():
            if not name.endswith("data/0"):
                new.writestr(name, data)
    with pytest.raises(WeightsError, match="no 'w/data/0'"):
        load_state(tmp_path / "lost.pt")


def test_self_containing_pickles_end(tmp_path):
    endless = b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."
    with pytest.raises(WeightsError, match="nested without end"):
        load_state(archive(tmp_path / "w.pt", endless))
    laughs = (
        b"\x80\x02]q\x00"
        + b"".join(
            b"](" + b"h" + struct.pack("B", n) + b"h" + struct.pack("B", n) + b"eq" + struct.pack("B", n + 1) for n in range(40)
        )
        + b"."
    )
    with pytest.raises(WeightsError, match="nested without end"):
        load_state(archive(tmp_path / "w.pt", laughs))
