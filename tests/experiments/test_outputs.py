"""What `predict` writes, and what it never writes over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import command
from experiments import outputs, predict
from experiments.outputs import Outputs
from gsclip_jax.runtime.compiled import keep_compiled

FILES = {".ply": b"cloud", ".npy": b"scores", ".png": b"picture"}
ABOUT = {"score": 0.5, "max_point_score": 0.7}


def scan(path: Path, content: bytes = b"scan") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def kept(folder: Path, *scans: Path, files=FILES) -> list[str]:
    """One call."""
    found = Outputs(folder, scans)
    return [found.keep(path, ABOUT, files) for path in scans]


def state(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_into_the_folder_of_the_scans(tmp_path):
    scans = [scan(tmp_path / "part.ply"), scan(tmp_path / "other.npy"), scan(tmp_path / "photo.xyz")]
    scan(tmp_path / "photo.png", b"a photo")
    before = state(tmp_path)
    names = kept(tmp_path, *scans)
    assert names == ["part_2", "other_2", "photo_2"]
    after = state(tmp_path)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"scores.json", *(f"{name}{end}" for name in names for end in FILES)}
    assert kept(tmp_path, *scans, files=dict.fromkeys(FILES, b"new")) == names  # the same again replaces its own
    assert {name: state(tmp_path)[name] for name in before} == before and (tmp_path / "part_2.ply").read_bytes() == b"new"


def test_one_stem_in_two_folders_and_calls_that_add(tmp_path):
    a, b, out = scan(tmp_path / "a" / "part.ply"), scan(tmp_path / "b" / "part.ply"), tmp_path / "out"
    assert kept(out, a) == ["part"]
    assert kept(out, b, files=dict.fromkeys(FILES, b"b")) == ["part_2"] and (out / "part.ply").read_bytes() == b"cloud"
    assert kept(out, b) == ["part_2"] and kept(out, b, a) == ["part_2", "part"]
    table = json.loads((out / "scores.json").read_text())
    assert {name: entry["scan"] for name, entry in table.items()} == {"part": str(a), "part_2": str(b)}
    assert table["part"]["score"] == 0.5 and set(table["part"]["files"]) == {"part.ply", "part.npy", "part.png"}


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_links_to_scans_and_foreign_files_stay(tmp_path, link):
    one, out = scan(tmp_path / "in" / "one.ply"), tmp_path / "out"
    out.mkdir()
    link(one, out / "one.npy")
    assert kept(out, one) == ["one_2"] and one.read_bytes() == (out / "one.npy").read_bytes() == b"scan"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_result_that_became_a_scan_stays(tmp_path, link):
    one, out = scan(tmp_path / "one.ply"), tmp_path / "out"
    assert kept(out, one) == ["one"]
    link(out / "one.ply", tmp_path / "again.ply")
    assert kept(out, one, tmp_path / "again.ply", files=dict.fromkeys(FILES, b"new")) == ["one_2", "again"]
    assert (out / "one.ply").read_bytes() == b"cloud"


def test_a_result_the_user_changed_or_replaced_by_a_link_stays(tmp_path):
    one, out = scan(tmp_path / "one.ply"), tmp_path / "out"
    kept(out, one)
    (out / "one.npy").write_bytes(b"mine now")
    assert kept(out, one) == ["one_2"] and kept(out, one) == ["one_2"] and (out / "one.npy").read_bytes() == b"mine now"
    target = scan(tmp_path / "target", b"scores")
    (out / "one_2.npy").unlink()
    (out / "one_2.npy").symlink_to(target)
    assert kept(out, one, files=dict.fromkeys(FILES, b"x")) == ["one_3"] and target.read_bytes() == b"scores"


@pytest.mark.parametrize("content", [b"{}", b"[]", b'{"part": 0.5}', b'{"part": {"score": 1}}', b"not json", b"\xff\xfe", b""])
def test_a_foreign_table_is_refused_before_any_work(tmp_path, content):
    scan(tmp_path / "scores.json", content)
    with pytest.raises(ValueError, match="scores.json was not written by this command and stays as it is; choose another --out"):
        Outputs(tmp_path, [])
    assert state(tmp_path) == {"scores.json": content}


def test_a_linked_table_or_one_that_is_a_scan_is_refused(tmp_path):
    one = scan(tmp_path / "one.ply")
    kept(tmp_path / "out", one)
    with pytest.raises(ValueError, match="stays as it is"):
        Outputs(tmp_path / "out", [tmp_path / "out" / "scores.json"])
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "scores.json").symlink_to(tmp_path / "out" / "scores.json")
    with pytest.raises(ValueError, match="stays as it is"):
        Outputs(tmp_path / "linked", [])


def test_a_table_of_an_earlier_version_is_added_to_and_its_files_stay(tmp_path):
    one = scan(tmp_path / "one.ply")
    scan(tmp_path / "out" / "scores.json", json.dumps({"one": {"scan": str(one), **ABOUT}}).encode())
    scan(tmp_path / "out" / "one.npy", b"old")
    assert kept(tmp_path / "out", one) == ["one_2"] and (tmp_path / "out" / "one.npy").read_bytes() == b"old"
    assert set(json.loads((tmp_path / "out" / "scores.json").read_text())) == {"one", "one_2"}


def test_a_table_cannot_point_out_of_the_folder(tmp_path):
    one, out = scan(tmp_path / "one.ply"), tmp_path / "out"
    files = dict.fromkeys(("../up.ply", "../up.npy", "../up.png"), "0")
    scan(out / "scores.json", json.dumps({"../up": {"scan": "one.ply", "path": str(one), **ABOUT, "files": files}}).encode())
    assert kept(out, one) == ["one"] and not list(tmp_path.glob("up.*"))


@pytest.mark.parametrize("name", ["...ply", "=cmd.ply", "<b>.ply", "x" * 240 + ".ply", "тест 部品.ply", "a\\b.ply", ".hid.ply"])
def test_any_name_stays_in_the_folder(tmp_path, name):
    one, out = scan(tmp_path / "in" / name), tmp_path / "out"
    (written,) = kept(out, one)
    assert {path.name for path in out.iterdir()} == {"scores.json", *(f"{written}{end}" for end in FILES)}
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"} and kept(out, one) == [written]


def test_a_folder_that_is_none_or_not_ours_is_one_line(tmp_path, capsys):
    file = scan(tmp_path / "file")
    for out in (file, file / "below"):
        assert predict.main(["x.ply", "--out", str(out)]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: --out") and "is no folder" in line
    assert file.read_bytes() == b"scan"


def test_two_calls_at_once_both_count(tmp_path):
    scans = [scan(tmp_path / str(i) / "part.ply") for i in range(8)]
    threads = [threading.Thread(target=kept, args=(tmp_path / "out", path)) for path in scans]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    table = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert {entry["scan"] for entry in table.values()} == set(map(str, scans)) and len(table) == 8


def test_a_signal_waits_for_what_is_undivided():
    done = []
    with pytest.raises(KeyboardInterrupt), outputs.undivided():
        signal.raise_signal(signal.SIGINT)
        done.append("whole")
    assert done == ["whole"]
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)  # afterwards as before


def test_a_signal_that_was_swallowed_still_stops(capsys):
    def work():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            pass  # as it is lost in a callback of JAX
        assert command.stopping()
        raise RuntimeError("a process went down, which the signal reached too")

    before = signal.getsignal(signal.SIGTERM)
    assert command.guarded(work) == 130 and "stopped" in capsys.readouterr().err
    assert not command.stopping() and signal.getsignal(signal.SIGTERM) is before


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--help"])
    assert stopped.value.code == 0 and "scores.json" in capsys.readouterr().out


def test_the_cloud_keeps_its_doubles(tmp_path):
    import open3d as o3d

    xyz = np.random.default_rng(0).standard_normal((50, 3)) + [5e5, 4e6, 100.123456789]
    colours = np.random.default_rng(1).integers(0, 256, (50, 3)).astype(np.uint8)
    (tmp_path / "x.ply").write_bytes(predict.coloured_ply(xyz, colours))
    cloud = o3d.io.read_point_cloud(str(tmp_path / "x.ply"))
    np.testing.assert_array_equal(np.asarray(cloud.points), xyz)
    np.testing.assert_array_equal(np.rint(np.asarray(cloud.colors) * 255), colours)


def part(path: Path, seed: int) -> Path:
    xyz = np.random.default_rng(seed).standard_normal((1500, 3))
    np.savetxt(path, xyz * [3, 1, 1] / np.linalg.norm(xyz, axis=1, keepdims=True))
    return path


@pytest.mark.parametrize("number, moment", [(signal.SIGINT, "object score"), (signal.SIGTERM, "compiling the model")])
def test_a_stopped_call_keeps_what_is_done(tmp_path, number, moment):
    scans, out = [part(tmp_path / f"part{i}.xyz", i) for i in range(40)], tmp_path / "out"
    command = [sys.executable, "-m", "experiments.predict", *map(str, scans), "--out", str(out)]
    environment = dict(os.environ)
    if moment == "compiling the model":
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "xla")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    next(line for line in process.stdout if moment in line)
    time.sleep(2 if moment == "compiling the model" else 0.2)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    error = error[error.index("\nstopped: ") :]  # where it met a callback of JAX, Python says before that it was ignored there
    count = int(error.split()[1])
    scored = [path.stem for path in scans[:count]]
    assert error == f"\nstopped: {count} of 40 scans are scored, in {out}\n"
    assert (0 < count < 40) if moment == "object score" else not out.exists()
    if count:
        assert list(json.loads((out / "scores.json").read_text())) == scored
        assert {path.name for path in out.iterdir()} == {"scores.json", *(f"{name}{end}" for name in scored for end in FILES)}


def test_what_is_compiled_is_kept_where_the_user_wants_it_or_can_write(tmp_path, monkeypatch):
    import jax

    own = jax.config.jax_compilation_cache_dir
    assert own and own in keep_compiled() and jax.config.jax_compilation_cache_dir == own
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(scan(tmp_path / "file")))
        assert "every time" in keep_compiled() and jax.config.jax_compilation_cache_dir is None
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        kept_in = tmp_path / "cache" / "gsclip_jax" / "xla"
        assert keep_compiled() == f"compiling the model (once; kept in {kept_in})" and kept_in.is_dir()
        assert jax.config.jax_compilation_cache_dir == str(kept_in)
        scan(kept_in / "jit_predict-0-cache")
        assert "taking the compiled model" in keep_compiled()
    finally:
        jax.config.update("jax_compilation_cache_dir", own)
