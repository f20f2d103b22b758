"""Grids of runs: their rows, one run of each, failures and reruns."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments import command_line, sweep
from gsclip_jax.parts import ConfigError

GRIDS = ["modules", "top_k", "prototypes", "views", "defect_tokens", "srm_tokens", "prototype_training", "losses", "zero_shot",
         "real_shapes", "align3d"]  # fmt: skip


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_has_rows_that_differ_and_can_be_built(name):
    rows = sweep.expand(f"sweeps/{name}.py", [], None, None)
    seeds = {row.config.seed for row in rows}
    assert seeds == {0, 1, 2} and [row.number for row in rows] == list(range(len(rows)))
    first = [row for row in rows if row.config.seed == 0]
    assert len(first) >= 2 and len({row.config.to_json_best_effort() for row in first}) == len(first)
    assert len({row.workdir for row in rows}) == len(rows)
    assert {path.stem for path in (command_line.CONFIGS / "sweeps").glob("*.py")} == {*GRIDS, "__init__"}


def test_the_modules_are_the_papers_six_rows():
    rows = {row.name: row.config.model for row in sweep.expand("sweeps/modules.py:mvtec3d", [], None, None)}
    shown = {name: (m.streams, m.shape_prompt, m.defect_prompt, m.consistency) for name, m in rows.items()}
    assert shown == {
        "prompt": ("render", False, False, 0.0), "srm": ("both", False, False, 0.0), "srm-shape": ("both", True, False, 0.0),
        "srm-defect": ("both", False, True, 0.0), "srm-both": ("both", True, True, 0.0), "full": ("both", True, True, 0.3),
    }  # fmt: skip


@pytest.mark.parametrize("preset", ["", ":mvtec3d", ":eyecandies"])
def test_the_ablation_of_align3d_is_of_that_method_on_coloured_views(preset):
    rows = [row for row in sweep.expand(f"sweeps/align3d.py{preset}", [], None, None) if row.name.startswith("full")]
    assert rows and all(row.config.method == "align3d" and row.config.data.rgb_render for row in rows)
    assert all((row.config.stage1.epochs, row.config.stage2.epochs) == (250, 15) for row in rows)


def test_a_preset_is_the_published_protocol_with_its_own_seed():
    rows = sweep.expand("sweeps/top_k.py:mvtec3d", [("model.prototypes", "16")], None, None)
    assert {row.config.seed for row in rows} == {111} and {row.config.task for row in rows} == {"protocol"}
    assert {row.config.model.prototypes for row in rows} == {16} and [row.config.model.top_k for row in rows][:2] == [1, 4]
    assert rows[0].workdir == Path("runs/sweep-top_k-mvtec3d/k1-s111")


def write_sweep(folder: Path, rows: str) -> str:
    path = folder / "mine.py"
    path.write_text(
        "from experiments.configs import stage2\n\ndef get_config(preset=None):\n    return stage2.get_config(preset)\n\n"
        f"def rows(config):\n    return {rows}\n"
    )
    return str(path)


@pytest.mark.parametrize("arguments, said", [
    (["--config", "sweeps/modlues.py"], "did you mean 'sweeps/modules.py'"),
    (["--config", "stage2.py"], "is no sweep"),
    (["--config", "sweeps/top_k.py", "--row", "18"], "rows 0 to 17"),
    (["--config", "sweeps/top_k.py", "--row=-1"], "rows 0 to 17"),
    (["--config", "sweeps/top_k.py", "--seeds", "0,a"], "whole numbers"),
    (["--config", "sweeps/top_k.py", "--seeds", "1,1"], "name each once"),
    (["--config", "sweeps/top_k.py", "--jobs", "0"], "one at least"),
    (["--config", "sweeps/top_k.py", "--config.model.topk=3"], "did you mean 'top_k'"),
    (["--config", "sweeps/top_k.py", "--slurm", "partition"], "key=value"),
    (["--config", "sweeps/top_k.py", "--bogus"], "unknown option"),
    (["--config", "sweeps/zero_shot.py:mvtec3d"], "no presets"),
])  # fmt: skip
def test_a_wrong_command_is_one_line(capsys, arguments, said):
    assert sweep.main(arguments) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_a_row_with_an_unknown_key_is_refused_before_anything_runs(tmp_path):
    name = write_sweep(tmp_path, '{"a": {"model.topk": 3}}')
    with pytest.raises(ConfigError, match="did you mean 'top_k'"):
        sweep.expand(name, [], None, tmp_path)
    name = write_sweep(tmp_path, '{"a": {"modle.top_k": 3}}')
    with pytest.raises(ConfigError, match="no key"):
        sweep.expand(name, [], None, tmp_path)


CHILD = """
import json, sys
from pathlib import Path
row = int(sys.argv[sys.argv.index("--row") + 1])
folder = Path({folder!r}) / ("a-s0", "b-s0", "c-s0")[row]
with (folder / "starts").open("a") as file:
    file.write("x")
if row == 1 and not (folder / "mended").exists():
    print("first\\nerror: no luck")
    sys.exit(3)
mean = dict(o_auroc=0.5 + row / 10, p_auroc=0.25, p_pro=None)
(folder / "results.json").write_text(json.dumps(dict(mean=mean)))
"""


def test_failed_rows_are_told_and_run_again_and_complete_ones_are_not(tmp_path, capsys):
    """The launcher alone: its children are a script that stands for experiments.sweep --row."""
    name = write_sweep(tmp_path, '{"a": {}, "b": {"model.top_k": 3}, "c": {"model.top_k": 4}}')
    rows = sweep.expand(name, [], [0], tmp_path)
    command = [sys.executable, "-c", CHILD.format(folder=str(tmp_path))]
    assert [row.name for row in sweep.run_rows(rows, command, jobs=2)] == ["b"]
    out = capsys.readouterr().out
    assert "a-s0: O-AUROC 50.0  P-AUROC 25.0  P-PRO -" in out and "b-s0: FAILED, status 3: error: no luck" in out
    (tmp_path / "b-s0" / "mended").touch()
    assert sweep.run_rows(rows, command, jobs=1) == []
    assert capsys.readouterr().out.count("(was there)") == 2
    assert [(tmp_path / f"{n}-s0" / "starts").read_text() for n in "abc"] == ["x", "xx", "x"]


def test_rows_that_start_together_all_note_their_order(tmp_path):
    rows = [sweep.Row(i, f"r{i}", None, tmp_path / f"r{i}-s0") for i in range(60)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(sweep.note_order, [[row] for row in rows]))
    assert sorted(json.loads((tmp_path / "rows.json").read_text())) == sorted(row.label for row in rows)


def test_a_work_directory_cleared_while_its_row_ran_is_a_failed_row_and_no_more(tmp_path, capsys):
    rows = sweep.expand(write_sweep(tmp_path, '{"a": {}}'), [], [0], tmp_path)
    child = f"import shutil; shutil.rmtree({str(tmp_path / 'a-s0')!r})"
    assert [row.name for row in sweep.run_rows(rows, [sys.executable, "-c", child], jobs=1)] == ["a"]
    assert "a-s0: FAILED, status 0: " in (out := capsys.readouterr().out) and "log.txt is gone" in out


def test_submitit_runs_the_rows_that_are_missing(tmp_path):
    submitit = pytest.importorskip("submitit")
    name = write_sweep(tmp_path, '{"a": {}, "b": {"model.top_k": 3}, "c": {"model.top_k": 4}}')
    rows = sweep.expand(name, [], [0], tmp_path)
    for row in rows:
        row.workdir.mkdir()
    (tmp_path / "b-s0" / "mended").touch()
    (tmp_path / "a-s0" / "results.json").write_text('{"mean": {}}')
    command = [sys.executable, "-c", CHILD.format(folder=str(tmp_path))]
    ids = sweep.submit(rows, command, {"cluster": "local", "timeout_min": 2}, tmp_path)
    assert len(ids) == 2
    for job in ids:
        submitit.local.local.LocalJob(tmp_path / "slurm", job).result()
    assert not (tmp_path / "a-s0" / "starts").exists()
    assert json.loads((tmp_path / "c-s0" / "results.json").read_text())["mean"]["o_auroc"] == pytest.approx(0.7)
    with pytest.raises(ConfigError, match="--slurm"):
        sweep.submit(rows, command, {"cluster": "local", "timeout_min": "long"}, tmp_path)


@pytest.mark.slow
def test_the_command_runs_its_rows_in_processes_of_their_own(tmp_path):
    """The real children on a method without learning: from scans to the table, and a second time from what is there."""
    name = write_sweep(tmp_path, '''{
        "flat": {"method": "surface_variation"}, "twin": {"method": "broken_symmetry"},
        "bad": {"data.categories": ("vse",)}}''')
    small = ["data.synthetic.train_good=1", "data.synthetic.train_defective=1", "data.synthetic.good=2", "data.points=1024",
             "data.synthetic.defective=2", "data.synthetic.scan_points=1500", "data.cloud_points=64", "data.views=3",
             "data.categories=vase", "eval.pictures=0", f"cache={tmp_path / 'cache'}"]  # fmt: skip
    command = [sys.executable, "-m", "experiments.sweep", "--config", name, "--workdir", str(tmp_path / "w"), "--seeds", "4",
               "--jobs", "3", *(f"--config.{change}" for change in small)]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    first = subprocess.run(command, capture_output=True, text=True, env=env)
    assert first.returncode == 1 and "1 of 3 rows failed: bad-s4" in first.stderr, first.stderr
    assert "did you mean 'vase'" in first.stdout and "flat-s4: O-AUROC" in first.stdout
    assert "twin-s4: O-AUROC" in first.stdout  # both needed the same scans and records at the same time
    results = json.loads((tmp_path / "w" / "flat-s4" / "results.json").read_text())
    assert results["method"] == "surface_variation" and results["seed"] == 4
    again = subprocess.run([*command, "--list"], capture_output=True, text=True, env=env)
    assert "flat-s4: O-AUROC" in again.stdout and "bad-s4: missing" in again.stdout
