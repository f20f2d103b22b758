"""Protocols: several auxiliary categories and their means, and evaluation on another data set."""

import pytest

from experiments import data, protocol
from experiments.command_line import parse
from gsclip_jax.evaluation.score import METRICS
from gsclip_jax.parts import ConfigError


def row(value: float) -> dict:
    return {**{name: value for name in METRICS}, "n_good": 1, "n_defective": 1}


def test_means_are_over_runs_and_over_the_runs_that_evaluate_a_category():
    same = {"dataset": "d", "trained_on": "d", "method": "gsclip", "preset": "", "variant": "paper", "seed": 0, "versions": {}}
    runs = {
        "a": {**same, "categories": {"b": row(0.2), "c": row(0.4)}, "mean": row(0.3)},
        "b": {**same, "categories": {"a": row(0.9), "c": row(0.6)}, "mean": row(0.75)},
    }
    joined = protocol.join(runs)
    assert joined["mean"]["o_auroc"] == pytest.approx(0.525)
    found = {name: values["p_pro"] for name, values in joined["categories"].items()}
    assert found == pytest.approx({"a": 0.9, "b": 0.2, "c": 0.5})
    assert joined["auxiliary"] == ["a", "b"] and joined["runs"]["b"]["o_ap"] == 0.75


def test_presets_name_the_published_auxiliary_categories():
    config, _ = parse(["--config", "protocol.py:mvtec3d"])
    assert config.auxiliary == ("carrot", "cookie", "dowel") and config.task == "protocol"
    config, _ = parse(["--config", "protocol.py", "--config.auxiliary=nut"])
    assert config.auxiliary == ("nut",)


def test_a_target_brings_its_own_recipe_but_the_size_trained_at():
    config, _ = parse([
        "--config", "stage2.py:mvtec3d", "--config.target.name=eyecandies", "--config.target.root=/there",
        "--config.data.points=1024", "--config.target.categories=Confetto",
    ])  # fmt: skip
    found = data.target(config).data
    assert (found.name, found.root, found.cameras) == ("eyecandies", "/there", "eyecandies")
    assert found.points == 1024 and found.train_category == ""
    assert data.test_categories(config, None) == ["Confetto"]
    config.target.name = "eyecandy"
    with pytest.raises(ConfigError, match="did you mean 'eyecandies'"):
        data.target(config)
