"""`gsclip inspect` as a user calls it, on the embedded model: what it writes, goes on with, and says of what it cannot use."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gsclip_jax
from data_pipelines.clouds.loading import load_scan
from gsclip_jax.inspection import command
from gsclip_jax.inspection.inputs import scans_of
from tests.cloud_writers import ply
from tests.parts import light_model


def part(path: Path, seed: int = 0, points: int = 1200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    xyz = np.random.default_rng(seed).standard_normal((points, 3))
    xyz = xyz * [3, 1, 1] / np.linalg.norm(xyz, axis=1, keepdims=True) + [4_512_345.678901, 5_398_765.432109, 320.1]
    if path.suffix == ".ply":
        deviation = ("deviation", np.arange(points, dtype="f4"))
        path.write_bytes(ply([*[(name, xyz[:, at]) for at, name in enumerate("xyz")], deviation]))
    else:
        np.savetxt(path, xyz)
    return path


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def test_a_folder_with_wrong_scans_among_good_ones(tmp_path, capsys):
    part(tmp_path / "in" / "one.ply"), part(tmp_path / "in" / "=deep" / "<b>two.xyz", 1)
    (tmp_path / "in" / "bad.csv").write_text("x,y,z\n1,2\n")
    (tmp_path / "in" / "empty.pcd").touch()
    (tmp_path / "in" / "notes.md").write_text("no scan")
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.*")}
    arguments = [str(tmp_path / "in"), "-r", "--out", str(tmp_path / "in" / "out"), "--unit", "mm"]
    assert command.main(arguments) == 1
    told = capsys.readouterr()
    assert [line for line in told.err.splitlines() if line.startswith("error: ")] == [
        f"error: {line.strip()}" for line in told.err.splitlines() if line.startswith("  ")]  # fmt: skip
    assert "2 could not be inspected" in told.err and "bad.csv: " in told.err and "empty.pcd: the file is empty" in told.err
    assert "without good parts no verdict" in told.out
    assert "columns x, y, z, deviation; 1200 of 1200 rows are points; unit mm" in told.out
    out = tmp_path / "in" / "out"
    assert {row["name"] for row in rows(out)} == {"one", "<b>two"} and len((out / "failures.txt").read_text().splitlines()) == 2
    assert "<b>two" not in (out / "index.html").read_text()
    assert {path: path.read_bytes() for path in before} == before
    found, given = load_scan(out / "parts" / "one.ply"), load_scan(tmp_path / "in" / "one.ply")
    np.testing.assert_array_equal(found.xyz, given.xyz)
    np.testing.assert_array_equal(found.attributes["deviation"], given.attributes["deviation"])
    by_hand = gsclip_jax.load()(given.xyz)
    np.testing.assert_array_equal(found.attributes["score"], by_hand.points)
    (row,) = [row for row in rows(out) if row["name"] == "one"]
    assert row["score"] == by_hand.score and json.loads((out / "parts" / "one.json").read_text())["score"] == by_hand.score
    lines = (out / "results.jsonl").read_bytes()
    assert command.main(arguments) == 1 and "2 of 4 scans are inspected already" in capsys.readouterr().out
    assert (out / "results.jsonl").read_bytes() == lines


def test_verdicts_by_good_parts_and_a_calibration_that_is_kept(tmp_path, capsys):
    for seed in range(4):
        part(tmp_path / "good" / f"{seed}.xyz", seed)
    part(tmp_path / "in" / "a.xyz", 9)
    model = ["--model", str(light_model(tmp_path / "model"))]
    given = [*model, "--good", str(tmp_path / "good"), "--rate", "0.2"]
    assert command.main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), *given]) == 0
    (row,) = rows(tmp_path / "out")
    assert row["verdict"]["kind"] in ("sound", "defective", "cannot tell") and 0 < row["verdict"]["p_value"] <= 1
    assert row["verdict"]["threshold"] == max(json.loads((tmp_path / "out" / "calibration.json").read_text())["scores"])
    assert "4 good parts: defective above" in capsys.readouterr().out
    assert command.calibrate_main([str(tmp_path / "good"), "--out", str(tmp_path / "c.json"), *model, "--rate", "0.2"]) == 0
    known = json.loads((tmp_path / "c.json").read_text())
    assert known == json.loads((tmp_path / "out" / "calibration.json").read_text())
    (tmp_path / "c.json").write_text(json.dumps({**known, "model": "0" * 64}))
    of_another = [*model, "--calibration", str(tmp_path / "c.json")]
    assert command.main([str(tmp_path / "in"), "--out", str(tmp_path / "o2"), *of_another]) == 1
    assert "made with model 000000000000" in capsys.readouterr().err and not (tmp_path / "o2").exists()
    assert command.main([str(tmp_path / "in"), "--out", str(tmp_path / "o3"), *given[:-1], "0.05"]) == 0
    assert rows(tmp_path / "o3")[0]["verdict"]["kind"] == "cannot tell"
    capsys.readouterr()
    assert command.main([str(tmp_path / "in"), "--out", str(tmp_path / "out"), *model]) == 1
    assert "other settings (good, rate differ)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_stopped_call_loses_nothing_and_goes_on(tmp_path, number):
    scans, out = [part(tmp_path / "in" / f"part{i}.xyz", i) for i in range(8)], tmp_path / "out"
    words = [sys.executable, "-m", "experiments.predict", *map(str, scans), "--out", str(out),
             "--model", str(light_model(tmp_path / "model"))]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    next(line for line in process.stdout if "part1.xyz: score" in line)
    time.sleep(0.1)
    os.killpg(process.pid, number)
    error = process.communicate(timeout=120)[1]
    before = rows(out)
    assert 1 <= len(before) < 8 and process.returncode == (130 if number == signal.SIGINT else -number), error
    if number == signal.SIGINT:
        assert f"stopped: {len(before)} of 8 scans are inspected" in error
    assert command.main(words[3:]) == 0
    assert [row["name"] for row in rows(out)] == [f"part{i}" for i in range(8)] and rows(out)[: len(before)] == before


def test_which_scans_words_mean(tmp_path):
    names = ["a.ply", "b c.xyz", "deep/c.csv.gz", ".hidden.ply", "notes.md", "out/parts/a.ply"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()

    def named(*words, **options):
        return [str(path.relative_to(tmp_path)) for path in scans_of([str(tmp_path / word) for word in words], **options)]

    assert named("") == ["a.ply", "b c.xyz"] and named("notes.md", "a.ply", "") == ["notes.md", "a.ply", "b c.xyz"]
    assert named("", recursive=True, below=tmp_path / "out") == ["a.ply", "b c.xyz", "deep/c.csv.gz"]
    assert named("**/*.*", below=tmp_path / "out") == ["a.ply", "b c.xyz", "deep/c.csv.gz"]
    listed = scans_of(["-"], stdin=[f"{tmp_path / 'a.ply'}\n", "\n", f"{tmp_path / 'b c.xyz'}"])
    assert [path.name for path in listed] == ["a.ply", "b c.xyz"]
    for words, said in (("*.las", "fits this pattern"), ("none", None)):
        if said is None:
            assert named(words) == ["none"]  # said when its turn comes
            continue
        with pytest.raises(ValueError, match=said):
            named(words)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="no scan in this folder"):
        named("bare")


@pytest.mark.parametrize("arguments, said", [
    (["x.ply", "--rate", "2"], "--rate 2.0: a share"), (["x.ply", "--good", "g.ply", "--calibration", "c"], "give one of them"),
    ([], "see gsclip inspect --help"), (["x.ply", "--goood", "x"], "--goood"), (["x.ply", "--model", "none"], "no trained model"),
])  # fmt: skip
def test_wrong_options_are_one_line_and_write_nothing(tmp_path, capsys, arguments, said):
    try:
        status = command.main([*arguments, "--out", str(tmp_path / "out")])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status in (1, 2) and said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
