"""Torch files without torch: equal to what torch wrote."""

import hashlib
import subprocess
import sys
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from gsclip_jax.convert.files import KNOWN_FILES, load_state
from gsclip_jax.convert.unpickle import read_torch


def torch_or_skip():
    return pytest.importorskip("torch", reason="torch writes the files that are read here")


def expected(tensor):
    value = tensor.detach()
    return (value.float() if value.is_floating_point() else value).numpy()


def agrees(state, wanted, prefix=""):
    assert list(state.tensors) == [prefix + name for name in wanted]
    for name, tensor in wanted.items():
        found, value = state.tensors[prefix + name], expected(tensor)
        assert found.dtype == value.dtype and found.shape == value.shape, name
        np.testing.assert_array_equal(found, value, err_msg=name)


def odd_tensors(torch):
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    return OrderedDict(
        whole=base,
        transposed=base.t(),
        part=base[1:3, 2:7:2],
        row=base[4],
        half=base.half(),
        bf16=base.bfloat16(),
        double=base.double(),
        long=torch.arange(5),
        small=torch.arange(5).to(torch.int8),
        flags=torch.tensor([True, False]),
        scalar=torch.tensor(3.5),
        empty=torch.empty(0, 4),
        expanded=torch.ones(1, 3).expand(4, 3),
        permuted=torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        parameter=torch.nn.Parameter(base.clone()),
    )


# --- equal to torch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_kind_of_tensor_is_read_bit_equal(tmp_path, zipped):
    torch = torch_or_skip()
    tensors = odd_tensors(torch)
    optimiser = torch.optim.Adam([tensors["parameter"]])
    tensors["parameter"].sum().backward()
    optimiser.step()
    saved = {
        "epoch": 3,
        "class_avg_iou": np.float64(0.53),
        "lr": 1e-3,
        "names": ["a", ("b", None, True)],
        "model_state_dict": tensors,
        "optimizer_state_dict": optimiser.state_dict(),
    }
    torch.save(saved, tmp_path / "best_model.pth", _use_new_zipfile_serialization=zipped)
    kind, content = read_torch(tmp_path / "best_model.pth")
    assert kind == ("torch" if zipped else "torch-legacy")
    assert {name: content[name] for name in ("epoch", "class_avg_iou", "lr", "names")} == {
        "epoch": 3,
        "class_avg_iou": 0.53,
        "lr": 1e-3,
        "names": ["a", ("b", None, True)],
    }
    state = load_state(tmp_path / "best_model.pth")
    agrees(state, tensors, "model_state_dict.")
    assert state.skipped == ["optimizer_state_dict"]


def test_views_of_one_storage_share_its_bytes(tmp_path):
    torch = torch_or_skip()
    base = torch.arange(12.0)
    torch.save({"a": base[:6].reshape(2, 3), "b": base[6:], "c": base}, tmp_path / "w.pt")
    _, content = read_torch(tmp_path / "w.pt")
    assert content["a"].storage is content["b"].storage is content["c"].storage
    agrees(load_state(tmp_path / "w.pt"), {"a": base[:6].reshape(2, 3), "b": base[6:], "c": base})


def test_newer_dtypes_and_state_dicts_with_metadata(tmp_path):
    torch = torch_or_skip()
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(model.state_dict(), tmp_path / "w.pt")
    agrees(load_state(tmp_path / "w.pt"), model.state_dict())
    torch.save({"u": torch.arange(4).to(torch.uint16)}, tmp_path / "u.pt")
    np.testing.assert_array_equal(load_state(tmp_path / "u.pt").tensors["u"], np.arange(4, dtype=np.uint16))


@pytest.mark.parametrize("how", ["script", "trace"])
def test_torchscript_archives(tmp_path, how):
    torch = torch_or_skip()

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.c_fc = torch.nn.Linear(4, 8)
            self.register_buffer("input_resolution", torch.tensor(336))
            self.scale = torch.nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.c_fc(x) * self.scale

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = torch.nn.ModuleList([Block(), Block()])
            self.sizes = [1, 2]
            self.half()

        def forward(self, x):
            return self.blocks[0](x) + self.blocks[1](x)

    net = Net()
    made = torch.jit.script(net) if how == "script" else torch.jit.trace(net, torch.ones(2, 4).half())
    made.save(str(tmp_path / "net.pt"))
    state = load_state(tmp_path / "net.pt")
    assert state.format == "torchscript" and set(state.tensors) == set(net.state_dict())
    for name, tensor in net.state_dict().items():
        np.testing.assert_array_equal(state.tensors[name], expected(tensor), err_msg=name)


def test_big_endian_files(tmp_path):
    torch = torch_or_skip()
    tensors = {"f": torch.randn(3), "h": torch.randn(3).half(), "b": torch.randn(3).bfloat16(), "i": torch.arange(3)}
    torch.save(tensors, tmp_path / "little.pt")
    with zipfile.ZipFile(tmp_path / "little.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for number, (name, width) in enumerate({"f": 4, "h": 2, "b": 2, "i": 8}.items()):
            assert tensors[name].element_size() == width
            data = np.frombuffer(old.read(f"little/data/{number}"), f"u{width}").byteswap().tobytes()
            new.writestr(f"little/data/{number}", data)
        new.writestr("little/data.pkl", old.read("little/data.pkl"))
        new.writestr("little/byteorder", "big")
    agrees(load_state(tmp_path / "big.pt"), tensors)


def test_reading_imports_no_torch(tmp_path):
    torch = torch_or_skip()
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    code = (
        "import sys\nfrom gsclip_jax.convert.files import load_state\n"
        f"print(load_state({str(tmp_path / 'w.pt')!r}).tensors['a'].sum(), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2.0", "False"]


def test_hash_is_recorded_and_a_public_name_with_other_content_is_noted(tmp_path):
    torch = torch_or_skip()
    torch.save({"a": torch.zeros(2)}, tmp_path / "ViT-L-14-336px.pt")
    state = load_state(tmp_path / "ViT-L-14-336px.pt")
    sha256 = hashlib.sha256((tmp_path / "ViT-L-14-336px.pt").read_bytes()).hexdigest()
    assert state.sha256 == {"ViT-L-14-336px.pt": sha256} and state.known is None
    assert KNOWN_FILES["ViT-L-14-336px.pt"][:12] in state.notes[0] and sha256[:12] in state.notes[0]


def test_a_known_hash_is_recognised_under_any_name(tmp_path, monkeypatch):
    torch = torch_or_skip()
    torch.save({"a": torch.zeros(2)}, tmp_path / "renamed.pt")
    sha256 = hashlib.sha256((tmp_path / "renamed.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(KNOWN_FILES, "ViT-B-32.pt", sha256)
    state = load_state(tmp_path / "renamed.pt")
    assert state.known == "ViT-B-32.pt" and not state.notes
