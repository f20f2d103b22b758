"""docs/add_a_method.md: its example, a method with a stage of its own, from the command line to results, touching no package."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import command_line, run
from gsclip_jax.methods import METHODS
from tests.experiments.conftest import SMALL

SMALLER = [change for change in SMALL if not change.startswith("--config.stage")]
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "probe.py"


@pytest.fixture()
def probe():
    return ["--config", str(EXAMPLE)]


@pytest.mark.slow
def test_the_example_trains_and_is_evaluated(probe, tmp_path, capsys):
    assert len(EXAMPLE.read_text().splitlines()) < 60
    command = [*probe, *SMALLER, "--workdir", str(tmp_path / "w"), f"--config.cache={tmp_path / 'cache'}"]
    command.append("--config.fit.epochs=3")
    assert run.main(command) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    assert results["method"] == "probe" and np.isfinite(results["mean"]["p_auroc"])
    logged = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    assert logged[-1]["stage"] == "fit" and logged[-1]["loss"] < np.log(2) * 1.5
    assert (tmp_path / "w" / "model" / "params.safetensors").exists() and (tmp_path / "w" / "fit" / "checkpoints").is_dir()
    assert run.main(command) == 0  # reuses what is there
    assert run.main([*command, "--config.fit.epoch=3"]) == 1 and "did you mean 'epochs'" in capsys.readouterr().err


def test_a_group_that_no_stage_claims_is_refused_before_rendering(probe, tmp_path, capsys, monkeypatch):
    load = command_line.load_config
    load(str(EXAMPLE))
    entry = METHODS["probe"]

    def unclaimed(cfg, parts):
        method = entry.build(cfg, parts)
        method.init = lambda key: ({"probe": {"weight": np.zeros(2), "bias": np.zeros(())}, "other": {"w": np.zeros(1)}}, {})
        return method

    monkeypatch.setattr(command_line, "load_config", lambda name: _with(load(name), unclaimed, entry))
    assert run.main([*probe, *SMALLER, "--workdir", str(tmp_path / "w"), f"--config.cache={tmp_path / 'cache'}"]) == 1
    assert "unclaimed ['other']" in capsys.readouterr().err and not (tmp_path / "cache" / "scans").exists()


def _with(config, build, entry):
    METHODS["probe"] = entry._replace(build=build)
    return config
