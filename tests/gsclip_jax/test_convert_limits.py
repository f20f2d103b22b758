"""Small files that ask for more than they hold, and command lines of any kind: one line, little memory, no traceback."""

import gzip
import io
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from gsclip_jax.convert.__main__ import main
from gsclip_jax.parity.__main__ import main as parity
from gsclip_jax.parity.recording import ParityError, Recording
from tests.torch_bytes import torch_zip

# Reads every file named, tells what it was told, and how much memory and time that took.
CHILD = """
import resource, sys, time
from gsclip_jax.convert.files import load_state
from gsclip_jax.runtime.keys import WeightsError
from gsclip_jax.convert.load import load_clip
from gsclip_jax.models.tokenizer import load_tokenizer
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    before, began = peak(), time.monotonic()
    read = load_tokenizer if "token" in path else load_state
    try:
        read(path)
        told = "read"
    except WeightsError as error:
        told = f"refused: {error}"
    print(f"{path.rpartition('/')[2]} {(peak() - before) // 1024} {time.monotonic() - began:.1f} {told}", flush=True)
"""


def archive(pickled: bytes, data: bytes = bytes(16)) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("w/data.pkl", pickled)
        file.writestr("w/data/0", data)
    return out.getvalue()


def views(count: int, size: int) -> bytes:
    """`count` tensors, each the whole of one storage of `size` numbers."""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ"
        + struct.pack("<i", size)
        + b"tQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00J" + struct.pack("<i", size) + b"\x85K\x01\x85\x89}tR"
    return archive(b"\x80\x02]q\x00(" + tensor * count + b"e.", bytes(4 * size))


def expanded(length: int) -> bytes:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    shape = b"J" + struct.pack("<i", length) + b"\x85"
    return archive(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + b"K\x00\x85\x89}tR.")


def claims(size: int) -> bytes:
    """An archive whose directory says that a stored member is far larger than the file."""
    data = bytearray(archive(b"\x80\x02}."))
    for at in range(len(data) - 4):
        if data[at : at + 4] == b"PK\x01\x02" and b"data.pkl" in data[at : at + 60]:
            data[at + 20 : at + 28] = struct.pack("<II", size, size)
    return bytes(data)


BOMBS = {
    "claimed_size.pt": claims(0xF0000000),
    "expanded.pt": expanded(2**31 - 1),
    "same_storage.pt": views(3000, 100_000),
    "copied_lists.pt": archive(
        b"\x80\x02](" + b"N" * 50_000 + b"eq\x000" + b"ctorch.jit._pickle\nbuild_intlist\nq\x01h\x00\x85R" * 20_000 + b"."
    ),
    "copied_text.pt": archive(
        b"\x80\x02X"
        + struct.pack("<I", 1 << 20)
        + b"x" * (1 << 20)
        + b"q\x000c_codecs\nencode\nq\x01"
        + b"h\x01h\x00\x85R" * 5000
        + b"."
    ),
    "deep_key.pt": archive(b"\x80\x02}K\x01" + b"\x85" * 500_000 + b"K\x01s."),
    "deep_set.pt": archive(b"\x80\x04\x8f(K\x01" + b"\x85" * 500_000 + b"\x90."),
    "deep_lists.pt": archive(b"\x80\x02" + b"]" * 1_000_000 + b"a" * 999_999 + b"."),
    "wide_laughs.pt": archive(
        b"\x80\x02]q\x00"
        + b"".join(b"](" + b"h" + bytes([n]) * 1 + (b"h" + bytes([n])) * 20_000 + b"eq" + bytes([n + 1]) for n in range(30))
        + b"."
    ),
    "long_names.pt": archive(b"\x80\x02}X" + struct.pack("<I", 1 << 20) + b"n" * (1 << 20) + b"](" + b"}" * 50_000 + b"es."),
    "memo.pt": archive(b"\x80\x04N" + b"\x94" * 6_000_000 + b"."),
    "huge_number.pt": archive(b"\x80\x02}\x8b" + struct.pack("<i", 1 << 20) + b"\x7f" * (1 << 20) + b"K\x01s."),
    "header.safetensors": struct.pack("<Q", 2**40) + b"{}",
    "shape.safetensors": (lambda head: struct.pack("<Q", len(head)) + head + bytes(8))(
        json.dumps({"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 8]}}).encode()
    ),
    "token_bomb.txt.gz": gzip.compress(b"a b\n" * (1 << 26), 9),
    "token_deep.json": b"[" * 2_000_000,
    "model.safetensors.index.json": b'{"weight_map":' * 500_000,
}


@pytest.mark.slow
def test_small_files_get_little_memory(tmp_path):
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *(str(tmp_path / name) for name in BOMBS)], capture_output=True, text=True
    )
    lines = {line.split(" ")[0]: line.split(" ", 3)[1:] for line in done.stdout.splitlines()}
    assert done.returncode == 0 and list(lines) == list(BOMBS), (done.returncode, done.stdout[-500:], done.stderr[-500:])
    for name, (grown, seconds, told) in lines.items():
        size = len(BOMBS[name]) >> 20
        assert int(grown) < 700 and float(seconds) < 60, (name, grown, seconds)
        assert int(grown) < 150 + 30 * size or name in ("memo.pt", "token_bomb.txt.gz"), (name, grown, seconds, size)
        assert told.startswith("refused") and name in told and len(told) < 1000, (name, told)


# --- command lines ---------------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path) -> Path:
    arrays = {f"prompt_learner.{name}": np.ones((1, 1, 3, 8), np.float16) for name in ("ctx_pos", "ctx_neg")}
    arrays["prompt_learner.compound_prompts_text.0"] = np.ones((2, 8), np.float16)
    (tmp_path / "w.pth").write_bytes(torch_zip(arrays))
    return tmp_path / "w.pth"


def status_of(command, arguments) -> int:
    try:
        return command([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize("command", [main, parity])
def test_help_is_no_error(command, capsys):
    assert status_of(command, ["--help"]) == 0
    assert "usage: python -m gsclip_jax." in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["w.pth"],
        ["--to", "out"],
        ["w.pth", "--to"],
        ["w.pth", "--to", ""],
        ["w.pth", "--to", "out", "--dtype", "float8"],
        ["w.pth", "--to", "out", "--heads", "16"],
        ["w.pth", "--to", "out", "--heads", "a,b"],
        ["w.pth", "--to", "out", "--heads", "0,1"],
        ["w.pth", "--to", "out", "--mean", "0.5"],
        ["w.pth", "--to", "out", "--std", "1,2,nan"],
        ["w.pth", "other", "--to", "out"],
        ["w.pth", "--to", "out", "--activation", "relu"],
        ["w.pth", "--to", "out", "--act", "gelu"],
        ["w.pth", "--to", "out", "--x\n"],
        ["w.pth", "--to", "out", "--config", ""],
    ],
)
def test_wrong_options_are_one_line(weights, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    assert status_of(main, arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and "--help" in told
    assert not (tmp_path / "out").exists()


def test_command_lines_of_any_kind(weights, tmp_path, monkeypatch, capsys):
    """Seeded: pieces of command lines in any order end in 0, 1 or 2, with one line where it is not 0; inputs stay as they are."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "manifest.json").write_text('{"arrays": [], "configs": 3, "inputs": {}, "weight_seed": null}')
    kept = {name: (tmp_path / name).read_bytes() for name in ("w.pth", "manifest.json")}
    pieces = [
        "w.pth",
        "folder",
        ".",
        "",
        "nowhere",
        "a/b\0c",
        "--to",
        "out",
        "w.pth/x",
        "--dtype",
        "float16",
        "bfloat16",
        "--sha256",
        "0" * 64,
        "--heads",
        "1,1",
        "--activation",
        "gelu",
        "--config",
        "manifest.json",
        "--only",
        "a,b",
        "z",
        "--json",
        "--",
        "-1",
        "--mean",
        "0,0,0",
        "--std",
        "<script>",
        "=cmd",
        "\udce9",
        "--to=out",
        "--to=w.pth",
        "--json=manifest.json",
    ]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rng, statuses = np.random.default_rng(0), set()
    for number in range(300):
        command = (main, parity)[number % 2]
        arguments = [pieces[i] for i in rng.integers(len(pieces), size=rng.integers(0, 7))]
        if command is main and rng.random() < 0.5:
            arguments = ["w.pth", "--to", "out", *arguments]
        status = status_of(command, arguments)
        statuses.add(status)
        told = capsys.readouterr().err
        assert status in (0, 1, 2) and (status == 0 or (told.startswith("error: ") and told.count("\n") == 1)), (
            arguments,
            status,
            told,
        )
        assert all((tmp_path / name).read_bytes() == data for name, data in kept.items()), arguments
    assert statuses == {0, 1, 2}


def test_the_report_of_parity_overwrites_nothing_else(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "mine.json").write_text('{"arrays": {"a": 1}}')
    (tmp_path / "link.json").symlink_to(tmp_path / "absent.json")
    for name in ("manifest.json", "mine.json", "link.json", "no/such.json", "."):
        assert parity([str(tmp_path), "--json", str(tmp_path / name)]) == 1
        assert "--json" in capsys.readouterr().err
    assert (tmp_path / "manifest.json").read_text() == "{}" and not (tmp_path / "absent.json").exists()


def test_arrays_that_claim_more_than_the_archive_holds(tmp_path):
    about = {"file": "p.npz", "key": "left", "config": "SMALL", "shape": [1], "dtype": "float32", "what": "", "inputs": ""}
    manifest = {"arrays": {"p/left": about}, "configs": {"SMALL": {}}, "inputs": {}, "weight_seed": {"SMALL": 0}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**36,)})
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as file:
        file.writestr("left.npy", head.getvalue() + bytes(64))
    with pytest.raises(ParityError, match="p.npz: cannot be read .left.npy claims to be"):
        Recording(tmp_path).array("p/left")


def test_a_closed_pipe_is_no_error(weights, tmp_path):
    command = f"{sys.executable} -m gsclip_jax.convert {weights} --to {tmp_path / 'out'} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "out" / "config.json").is_file()


def test_nothing_half_written_and_nothing_overwritten(weights, tmp_path, capsys):
    state = {f"prompt_learner.{name}": np.full((1, 1, 3, 8), 1e30, np.float32) for name in ("ctx_pos", "ctx_neg")}
    state["prompt_learner.compound_prompts_text.0"] = np.ones((2, 8), np.float32)
    save_file(state, tmp_path / "large.safetensors")
    assert main([str(tmp_path / "large.safetensors"), "--to", str(tmp_path / "out"), "--dtype", "float16"]) == 1
    assert "not finite as float16" in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "config.json").write_text("{}")
    assert main([str(weights), "--to", str(tmp_path)]) == 1
    assert "holds other files" in capsys.readouterr().err and (tmp_path / "config.json").read_text() == "{}"
