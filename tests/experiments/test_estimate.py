"""What a run would cost, told before it: counts by hand, of every method and preset, and nothing is written."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from data_pipelines.datasets import AUXILIARY
from experiments import estimate, rates
from experiments.configs.common import embedded, paper, preset, with_method
from experiments.configs.protocol import get_config as protocol
from experiments.data import data_config, target
from experiments.estimated_page import memory_line, text
from experiments.planned import scans_of
from experiments.programs import Programs, batch_shapes
from experiments.run import main
from gsclip_jax.methods import METHODS
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime.devices import H100, MACHINES, V5E, V5P, V6E, chip_of
from tests.scans import write_set

SEEN = {}  # operations that were counted already


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(rates, "WORTH", 0.05)
    monkeypatch.setattr(rates, "SHORT", 0.0)


def asked(capsys, *words: str) -> dict:
    assert main(["--config", *words, "--estimate=json,quick"]) == 0
    return json.loads(capsys.readouterr().out)


SMALL = ["--config.data.points=256", "--config.data.views=2", "--config.data.window=160",
         "--config.data.synthetic.scan_points=600", "--config.model.smooth_rounds=0"]  # fmt: skip


def test_as_a_user_asks_for_it(tmp_path, capsys):
    places = ["--workdir", str(tmp_path / "run"), f"--config.cache={tmp_path / 'cache'}"]
    words = ["stage2.py", "--config.method=pointad", *SMALL, *places, "--config.compare=plain_clip", "--config.stage1.epochs=3"]
    found = asked(capsys, *words)
    assert not list(tmp_path.iterdir())
    (objects,) = found["objects"]
    assert (objects["records"], objects["train"], objects["categories"]) == (140, [40], 6)
    counts = {row["phase"]: row["objects"] for row in found["phases"]}
    assert counts == {"encode for stage1": 40, "stage1": 3 * 40, "evaluation": 100, "methods compared with": 100}
    assert all(row["products"] > 0 and row["bytes"] > 0 for row in found["phases"])
    assert found["disk"]["records"] == 140 * found["record"]["bytes"] > 0
    assert list(found["machines"]) == ["this machine", *(one.name for one in MACHINES)]
    for machine in found["machines"].values():
        assert machine["total"] == pytest.approx(sum(machine["seconds"].values())) and min(machine["seconds"].values()) > 0
    assert found["memory"] == []
    shown = text(found)
    assert "140 of 6 categories, 40 of them to train on" in shown
    assert "estimates from published peak rates, no measurements" in shown
    assert all(name in shown for name in ("v5e-256", "H100", "2 cores", "chip hours", "disk: records"))


@pytest.mark.parametrize("method", [pytest.param(name, marks=[pytest.mark.slow] * (name == "gsclip")) for name in METHODS])
def test_of_every_method(method):
    config = with_method(embedded(), method)
    config.data.update({"points": 256, "views": 2})
    found = estimate.work(config, train=10, tested=7, seen=SEEN)
    stages = Programs(config).method.stages
    phases = {phase.name: phase for phase in found.phases}
    assert [name for name in phases if name.startswith("stage")] == [stage.name for stage in stages]
    for stage in stages:
        assert phases[stage.name].objects == stage.epochs * math.ceil(10 / stage.batch_size) * stage.batch_size
    assert phases["evaluation"].objects == 7 and min(phase.flops.all for phase in found.phases) > 0
    assert (found.features > 0) == any(name.startswith("encode") for name in phases)


def test_operations_are_those_of_the_programs():
    config = with_method(embedded(), "pointad")
    config.data.update({"points": 256, "views": 2})
    encode, train, predict = estimate.work(config, train=10, tested=7).phases
    programs = {name: Programs(config).program(name) for name in ("features1", "stage1", "predict")}
    calls = {encode: 10 / programs["features1"].rows, predict: 7 / programs["predict"].rows,
             train: config.stage1.epochs * math.ceil(10 / config.stage1.batch_size)}  # fmt: skip
    for phase, program in zip((encode, train, predict), programs.values(), strict=True):
        assert phase.flops.products == pytest.approx(calls[phase] * program.flops().products, abs=1)


def test_what_both_stages_encode_is_encoded_and_stored_once():
    config = embedded()
    config.data.update({"points": 256, "views": 2})
    both = estimate.work(config, 8, 0, SEEN)
    tokens = Programs(config).program("stage1").arguments[2]["render_tokens"]
    once, again = (phase.flops.products for phase in both.phases if phase.name.startswith("encode"))
    alone = 8 * tokens.size // tokens.shape[0] * tokens.dtype.itemsize
    assert alone < both.features < 1.5 * alone
    whole = Programs(config).program("features2")
    assert once + again == pytest.approx(8 / whole.rows * whole.flops().products, rel=0.01)


def test_published_numbers_stand_for_data_that_is_not_here():
    counted = {name: scans_of(paper(name)) for name in AUXILIARY}
    assert {name: (one.total, one.categories, one.train) for name, one in counted.items()} == {
        "mvtec3d": (1197, 10, 159), "eyecandies": (500, 10, 50), "real3d": (1206, 12, 100), "anomaly_shapenet": (1312, 40, 29),
    }  # fmt: skip
    assert all("not here" in one.said for one in counted.values())
    some = paper("real3d")
    some.data.categories = ("chicken", "seahorse", "duck")
    assert (scans_of(some).total, scans_of(some).train) == (306, 100)
    across = paper("mvtec3d")
    across.target.name = "eyecandies"
    assert (scans_of(target(across)).total, scans_of(target(across)).train) == (500, 0)


@pytest.mark.parametrize("name", ["real3d", "mvtec3d"])
def test_a_record_of_a_made_up_scan(name):
    config = paper(name)
    config.data.update({"points": 64 * 64, "image_size": 64, "window": 96, "views": 3, "rasteriser": "numpy"})
    scans = scans_of(config)
    scan, category, _ = scans.one()
    made = rates.rendering(scans.recipe, scan, category, scans.what)
    assert made.seconds > 0 and 1e4 < made.bytes < 1e6 and made.scan == scans.what
    assert data_config(config)["points"] == 4096


def test_scans_that_are_here_are_counted(tmp_path, capsys):
    write_set(tmp_path / "set", points=600, good=3, defective=4)
    found = asked(capsys, "stage2.py", *SMALL, "--config.data.name=real3d", f"--config.data.root={tmp_path / 'set'}",
                  "--config.data.train_category=egg", "--config.compare=", "--config.method=plain_clip",
                  f"--config.cache={tmp_path / 'cache'}")  # fmt: skip
    (objects,) = found["objects"]
    assert (objects["records"], objects["categories"]) == (14, 2) and str(tmp_path) in objects["counted"]
    assert found["record"]["made_of"].endswith(".pcd") and not (tmp_path / "cache").exists()
    assert {row["phase"]: row["objects"] for row in found["phases"]} == {"evaluation": 7}


def test_a_protocol_counts_its_runs_and_its_records_once(monkeypatch):
    monkeypatch.setattr(estimate, "rendering", lambda *_: rates.Rendered(2.0, 10**6, "x"))
    config = with_method(protocol("real3d"), "plain_clip")
    found = estimate.estimate(config, Path("runs"))
    assert found["config"]["runs"] == 3 and [one["records"] for one in found["objects"]] == [1206]
    assert found["machines"]["H100"]["seconds"]["records"] == pytest.approx(1206 * 2 / 26)
    assert [row["objects"] for row in found["phases"]] == [3 * 1106]


def test_the_memory_is_told_by_compiling(tmp_path):
    config = with_method(embedded(), "surface_variation")
    config.data.update({"points": 256, "views": 2})
    config.eval.batch_size = jax.device_count()
    (row,) = estimate.memory_plans(config)
    assert (row["program"], row["fits"], row["plan"]) == ("predict", True, "whole batches")
    read = estimate.bytes_of(batch_shapes(config, 1))  # each device has one object
    assert 0 < row["arguments"] <= read and 0 < row["more"] < row["free"]
    assert "predict: whole batches" in memory_line(row)


def test_chips_that_have_nothing_to_do():
    assert estimate.busy(1, 4, 9) == (1, 1) and estimate.busy(2, 4, 9) == (2, 1) and estimate.busy(4, 4, 9) == (4, 1)
    assert estimate.busy(8, 4, 9) == (36 / 5, 2)  # 36 views over eight chips: five each
    assert estimate.busy(256, 4, 9) == (36, 2)


def test_devices_by_the_names_that_jax_gives_them():
    names = {"TPU v5 lite": V5E, "TPU v5": V5P, "TPU v6 lite": V6E, "NVIDIA H100 80GB HBM3": H100, "cpu": None}
    assert {name: chip_of(name) for name in names} == names


def test_what_cannot_be_estimated_is_one_line(capsys):
    for words, said in (
        (["pretrain.py", "--estimate"], "docs/running.md"),
        (["stage2.py", "--estimate=jsn"], "did you mean 'json'"),
        (["stage2.py", "--config.data.name=folder", "--estimate"], "not known beforehand"),
        (["stage2.py:real3d", "--config.data.root=/nowhere", "--estimate"], "/nowhere"),
        (["stage2.py:real3d", "--config.clip.name=/nowhere/clip", "--estimate"], "/nowhere/clip"),
    ):
        assert main(["--config", *words]) == 1
        assert said in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(ConfigError, match="no scan to train on"):
        config = preset("real3d")
        config.data.train_category = ""
        estimate.estimate(config, Path("runs"))


def test_bytes_of_a_batch():
    config = embedded()
    fields = batch_shapes(config, 1)
    assert estimate.bytes_of(fields) == sum(math.prod(one.shape) * one.dtype.itemsize for one in fields.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", AUXILIARY)
def test_the_paper_presets_without_weights(tmp_path, name):
    how = "json" if name == "real3d" else "json,quick"  # the presets are of one size: one is compiled
    command = [sys.executable, "-m", "experiments.run", "--config", f"stage2.py:{name}", f"--estimate={how}", "--workdir",
               str(tmp_path / "run"), f"--config.cache={tmp_path / 'cache'}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    rows = {row["phase"]: row for row in found["phases"]}
    assert 7.2e12 < rows["evaluation"]["products"] / rows["evaluation"]["objects"] < 7.4e12  # benchmarks/flops.md
    assert 0.9 < rows["evaluation"]["bfloat16"] / rows["evaluation"]["products"] < 1
    assert len(found["memory"]) == (5 if name == "real3d" else 0) and not list(tmp_path.iterdir())
