"""Align3D-AD from the command line: trained on the embedded data, evaluated with other weights and on scans without colour."""

import json

import numpy as np
import pytest

from data_pipelines.clouds.loading import load_scan
from experiments import predict, run
from experiments.checks import check_before
from experiments.export import main as export
from experiments.run import parse
from gsclip_jax.inspection.saved import load_model
from gsclip_jax.parts import ConfigError
from tests.experiments.conftest import SMALL
from tests.experiments.test_run import refuse
from tests.scans import write_set

STAGES = [f"--config.stage1.{change}" for change in ("epochs=4", "scr_epochs=2")]
STAGES += [f"--config.stage2.{change}" for change in ("epochs=2", "contrast_epochs=1")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("align3d")
    small = [change for change in SMALL if not change.startswith(("--config.stage", "--config.compare"))]
    command = ["--config", "stage2.py", "--config.method=align3d", "--config.compare=()", *small, *STAGES,
               "--workdir", str(root / "w"), f"--config.cache={root / 'cache'}"]  # fmt: skip
    assert run.main(command) == 0
    return root, command


def test_the_embedded_default_has_the_methods_own_epochs_and_rates():
    for name in ("stage2.py", "stage2.py:mvtec3d"):
        config, _ = parse(["--config", name, "--config.method=align3d"])
        one, two = config.stage1, config.stage2
        assert (one.epochs, one.scr_epochs, one.learning_rate) == (250, 50, 1e-3)
        assert (two.epochs, two.contrast_epochs, two.learning_rate) == (15, 5, 1e-3)
        assert config.model.deep_depth == (9 if ":" in name else 3)  # the embedded text tower has few blocks
    pointad, _ = parse(["--config", "stage2.py", "--config.method=pointad"])
    assert pointad.stage1.epochs == 2  # the same stage, of the same default


@pytest.mark.slow
def test_both_stages_train_and_the_late_terms_join(finished):
    root, _ = finished
    rows = [json.loads(line) for line in (root / "w" / "metrics.jsonl").read_text().splitlines()]
    assert {row["stage"] for row in rows} == {"stage1", "stage2"}
    assert {"global", "local"} <= rows[0].keys() and rows[-1]["contrast"] > 0 and rows[-1]["rgb_contrast"] > 0
    results = json.loads((root / "w" / "results.json").read_text())
    assert results["method"] == "align3d" and np.isfinite(results["mean"]["p_auroc"])
    # Stage 2 reads what stage 1 stored of the grey views: nothing is stored twice.
    found = (json.loads(path.read_text()) for path in (root / "cache" / "features").glob("*/meta.json"))
    stored = sorted(name for meta in found for name in meta["dtypes"])
    assert stored == ["render_first", "render_tokens", "rgb_render_first", "rgb_render_tokens"]


@pytest.mark.slow
def test_other_weights_are_another_evaluation_of_the_same_model(finished):
    root, command = finished
    trained = {path: path.stat().st_mtime_ns for path in (root / "w").glob("*/checkpoints/*")}
    before = (root / "w" / "scores.csv").read_text()
    assert run.main([*command, "--config.model.image_weight=0", "--config.model.second_blur=object"]) == 0
    shown = json.loads((root / "w" / "results.json").read_text())
    assert shown["evaluation"]["settings"]["model.image_weight"] == 0 and (root / "w" / "scores.csv").read_text() != before
    assert {path: path.stat().st_mtime_ns for path in (root / "w").glob("*/checkpoints/*")} == trained


@pytest.mark.slow
def test_another_training_in_its_directory_is_refused(finished, capsys):
    assert "stage1.scr_weight 1.0 there, 0.5 now" in refuse(capsys, *finished[1], "--config.stage1.scr_weight=0.5")


@pytest.mark.slow
def test_an_exported_model_scores_scans_without_colour(finished, tmp_path):
    root, _ = finished
    assert export(["--workdir", str(root / "w"), "--out", str(tmp_path / "model")]) == 0
    method, params, *_ = load_model(tmp_path / "model")
    assert method.name == "align3d" and set(params) == {"clip", "aligner", "prompts", "rgb_prompts"}
    xyz = np.random.default_rng(0).standard_normal((1200, 3))
    np.savetxt(tmp_path / "part.xyz", xyz / np.linalg.norm(xyz, axis=1, keepdims=True) * [3, 1, 1])
    assert predict.main([str(tmp_path / "part.xyz"), "--workdir", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 0
    points = load_scan(tmp_path / "out" / "parts" / "part.ply").attributes["score"]
    assert points.shape == (1200,) and np.ptp(points) > 0


@pytest.mark.slow
def test_data_without_colour_are_evaluated_and_not_trained_on(finished, tmp_path, capsys):
    root, _ = finished
    clouds = write_set(tmp_path / "clouds")
    given = ["--config", "eval.py", "--workdir", str(root / "w"), f"--config.cache={root / 'cache'}"]
    assert run.main([*given, "--config.target.name=real3d", f"--config.target.root={clouds}"]) == 0
    found = [json.loads(path.read_text()) for path in (root / "w").rglob("results.json")]
    assert {"ball", "egg"} in [set(results["categories"]) for results in found]
    capsys.readouterr()
    line = refuse(
        capsys, "--config", "stage2.py", "--config.method=align3d", "--config.data.name=real3d", f"--config.data.root={clouds}",
        "--config.data.train_category=ball", "--workdir", str(tmp_path / "w"), f"--config.cache={tmp_path / 'cache'}",
    )  # fmt: skip
    assert line == ("error: Align3D-AD needs coloured renderings of the auxiliary category; real3d has no colour: train on "
                    "mvtec3d or eyecandies, or use gsclip or pointad")  # fmt: skip
    assert not (tmp_path / "w").exists() and not list((tmp_path / "cache").glob("*/parts"))


def test_the_branch_that_looks_at_grey_views_alone_needs_no_colour(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    given = ["--config=stage2.py", "--config.method=align3d", "--config.model.branches=render", "--config.data.name=real3d",
             f"--config.data.root={root}", "--config.data.train_category=ball", f"--config.cache={tmp_path / 'cache'}",
             "--workdir", str(tmp_path / "w")]  # fmt: skip
    assert refuse(capsys, *given).endswith("eyecandies, or set it to False")  # the key that the method switched on
    config, folder = parse([*given, "--config.data.rgb_render=False"])
    check_before(config, folder, devices=False)
    with pytest.raises(ConfigError, match="trains on coloured renderings"):
        config.model.branches = "both"
        check_before(config, folder, devices=False)
