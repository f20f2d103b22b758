"""The command line: what it refuses, and one small run from nothing to the table, twice."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.clouds.loading import load_scan
from data_pipelines.rendering.views import rasteriser
from data_pipelines.solids import synthetic
from experiments import data, predict, run
from experiments.command_line import parse
from gsclip_jax.inspection.model import EMBEDDED
from gsclip_jax.inspection.saved import load_model
from gsclip_jax.parts import ConfigError
from tests.browser import opened, picture, ready, warm
from tests.experiments.conftest import SMALL


def refuse(capsys, *arguments) -> str:
    """The one line of a refused command."""
    assert run.main(list(arguments)) == 1
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    return lines[0]


@pytest.mark.parametrize("arguments, said", [
    (["--config", "stage3.py"], "did you mean 'stage"),
    (["--config", "stage2.py:mvtec"], "did you mean 'mvtec3d'"),
    (["--config", "stage2.py", "--config.data.nmae=x"], "did you mean 'name'"),
    (["--config", "stage2.py", "--config.dta.name=x"], "did you mean 'data'"),
    (["--config", "stage2.py", "--config.seed=one"], "'one' is no int"),
    (["--config", "stage2.py", "--wrkdir", "x"], "did you mean '--workdir'"),
    (["--config"], "needs a value"),
    ([], "usage:"),
    (["--config", "stage2.py", "--config.seed.x=1"], "is a value"),
])  # fmt: skip
def test_a_wrong_command_is_one_line_with_the_near_word(capsys, arguments, said):
    assert said in refuse(capsys, *arguments)


@pytest.mark.parametrize("changes, said", [
    (["--config.data.train_category=bottel"], "did you mean 'bottle'"),
    (["--config.data.name=real3d"], "needs config.data.root"),
    (["--config.data.name=real3d", "--config.data.root=/nowhere"], "/nowhere"),
    (["--config.data.name=reel3d", "--config.data.root=/tmp"], "did you mean 'real3d'"),
    (["--config.data.synthetic.set=tets"], "did you mean 'test'"),
])  # fmt: skip
def test_wrong_data_is_one_line(capsys, tmp_path, changes, said):
    line = refuse(capsys, "--config", "stage2.py", "--workdir", str(tmp_path / "w"), f"--config.cache={tmp_path / 'c'}", *changes)
    assert said in line


def test_wrong_weights_are_one_line(capsys, tmp_path):
    from gsclip_jax.build import build_model

    config, _ = parse(["--config", "stage2.py", "--config.clip.name=/nowhere/clip.pt"])
    with pytest.raises(ValueError, match="/nowhere/clip.pt"):
        build_model(config)
    config, _ = parse(["--config", "stage2.py", "--config.variant=relaesed"])
    with pytest.raises(ValueError, match="did you mean 'released'"):
        build_model(config)


def test_values_keep_the_type_of_the_key():
    config, workdir = parse([
        "--config=stage2.py:real3d", "--config.stage2.learning_rate=1e-3", "--config.compare=random_clip",
        "--config.clip.random=true",
        "--config.data.categories", "shell,duck", "--config.model.switches.mixed_views=True", "--workdir", "w",
    ])  # fmt: skip
    assert config.stage2.learning_rate == 1e-3 and config.clip.random is True and config.compare == ("random_clip",)
    assert config.data.categories == ("shell", "duck") and config.model.switches.mixed_views is True and workdir == Path("w")
    assert config.data.points == 112896 and config.stage1.epochs == 15 and config.data.cameras == "ring"


def test_every_preset_holds_the_papers_settings():
    for name, rate in (("mvtec3d", 5e-4), ("eyecandies", 5e-4), ("real3d", 1e-4), ("anomaly_shapenet", 1e-4)):
        config, _ = parse(["--config", f"stage2.py:{name}"])
        assert config.stage2.learning_rate == rate and config.stage2.epochs == 10 and config.model.srm_residual is False
        assert config.data.image_size == 336 and config.data.cloud_points == 3000 and config.model.deep_depth == 9
        assert config.stage1.learning_rate == config.stage1.pointnet2_rate == 2e-3


@pytest.fixture(scope="module")
def finished(small_run, tmp_path_factory):
    """A small run from nothing, in a folder with a blank in its name."""
    return small_run(tmp_path_factory.mktemp("a run") / "w")


def test_a_run_leaves_its_work_directory_complete(finished):
    workdir, _ = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["dataset"] == "synthetic" and results["train_category"] == "bottle" and set(results["categories"]) == {"vase"}
    assert set(results["mean"]) == {"o_auroc", "o_ap", "p_auroc", "p_auroc_released", "p_pro", "p_pro_released"}
    assert set(results["seconds"]) == {"render", "stage1", "stage2", "eval"} and len(results["weights"]["clip"]) == 64
    assert results["categories"]["vase"]["n_good"] == results["categories"]["vase"]["n_defective"] == 2
    for name in ("config.json", "scores.csv", "metrics.jsonl", "report.html", "pictures/heatmaps.png", "model/config.json"):
        assert (workdir / name).stat().st_size > 0, name
    assert len(list((workdir / "eval" / "vase").glob("*.npz"))) == 4
    stages = {json.loads(line)["stage"] for line in (workdir / "metrics.jsonl").read_text().splitlines()}
    assert stages == {"stage1", "stage2"}
    page = (workdir / "report.html").read_text(encoding="utf-8")
    assert page.count('<script type="application/json" class="part"') == 4, "every object is in it"
    assert "surface variation, mean" in page and '"title":"stage2"' in page and '"title":"Regions: PRO, P-PRO' in page
    compared = json.loads((workdir / "compare" / "surface_variation" / "results.json").read_text())
    assert 0 <= compared["mean"]["p_auroc"] <= 1 and compared["weights"] == {}


@pytest.mark.slow
def test_every_object_is_one_click_away(finished):
    """In a browser: curves with bands, losses, an object that turns, its ground truth."""
    with opened(finished[0] / "report.html") as page:
        assert page.locator("[data-is=curves] svg[role=img]").count() == 3 == page.locator("[data-is=curves] .band").count()
        assert page.locator("[data-is=losses] svg[role=img]").count() == 2
        assert page.locator("[data-is=distributions] svg").count() == 1
        page.click("th:has-text('truth') button")
        page.click("th:has-text('truth') button")
        page.locator("tbody tr:first-child a[href^='#part']").click()
        ready(page)
        assert page.locator("[data-is=verdict]").inner_text().startswith("defective: ")
        page.select_option("[data-is=mode]", "2")
        page.wait_for_timeout(150)
        truth = picture(page)
        assert warm(truth) > 50, "the ground truth is red"
        page.focus("[data-is=canvas]")
        page.keyboard.press("ArrowLeft")
        page.wait_for_timeout(150)
        assert (picture(page) != truth).any(-1).mean() > 0.01


def test_the_same_command_again_reuses_everything(finished, capsys):
    workdir, command = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert run.main(command) == 0
    assert "vase" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()} == before


def test_lost_results_come_back_the_same(finished):
    workdir, command = finished
    first = (workdir / "results.json").read_text()
    (workdir / "results.json").unlink()
    next((workdir / "eval" / "vase").glob("*.npz")).unlink()
    assert run.main(command) == 0
    again = json.loads((workdir / "results.json").read_text())
    assert again["categories"] == json.loads(first)["categories"]


def test_a_work_directory_of_another_configuration_is_refused(finished, capsys):
    workdir, command = finished
    line = refuse(capsys, *command, "--config.stage2.epochs=3")
    assert "stage2.epochs 1 there, 3 now" in line and "another --workdir" in line


@pytest.mark.slow
def test_predict_scores_every_point_of_a_scan_in_its_order(finished, tmp_path, capsys, monkeypatch):
    workdir, _ = finished
    rng = np.random.default_rng(0)
    xyz = rng.standard_normal((1400, 3))
    xyz *= [[3, 1, 1]] / np.linalg.norm(xyz, axis=1, keepdims=True)
    xyz[:3] = xyz[1000:1003]  # the same places in another order must score the same
    scan = tmp_path / "my part.xyz"
    np.savetxt(scan, xyz)
    broken = tmp_path / "broken.pcd"
    broken.write_text("# .PCD v0.7\nVERSION 0.7\nFIELDS x y z\n")
    out = tmp_path / "out"
    assert predict.main([str(scan), str(broken), "--workdir", str(workdir), "--out", str(out)]) == 1
    assert "broken.pcd" in capsys.readouterr().err
    written = load_scan(out / "parts" / "my part.ply")
    points = written.attributes["score"]
    assert points.shape == (1400,) and points.dtype == np.float32 and np.ptp(points) > 0
    np.testing.assert_array_equal(points[:3], points[1000:1003])
    np.testing.assert_array_equal(written.xyz, np.loadtxt(scan))
    first = (out / "results.jsonl").read_text()
    assert json.loads(first)["name"] == "my part" and (out / "index.html").is_file()
    assert predict.main([str(scan), "--workdir", str(workdir), "--out", str(out)]) == 0
    for name in ("__EGL_VENDOR_LIBRARY_DIRS", "LIBGL_DRIVERS_PATH"):  # where the GL library looks for what draws
        monkeypatch.setenv(name, "/nowhere")
    rasteriser.cache_clear()
    assert predict.main([str(scan), "--workdir", str(workdir), "--out", str(tmp_path / "no")]) == 1
    assert "Open3D cannot draw here" in capsys.readouterr().err and not (tmp_path / "no").exists()
    drawn = [str(scan), "--workdir", str(workdir), "--out", str(tmp_path / "numpy"), "--rasteriser", "numpy"]
    assert predict.main(drawn) == 0
    assert (out / "results.jsonl").read_text() == first


def test_a_model_of_an_earlier_version_says_so(finished, tmp_path, capsys):
    shutil.copytree(finished[0] / "model", tmp_path / "old" / "model")
    path = tmp_path / "old" / "model" / "config.json"
    about = json.loads(path.read_text())
    del about["config"]["model"]["surface_share"]  # models had none and were scored without
    path.write_text(json.dumps(about))
    assert not hasattr(load_model(path.parent)[0], "share")
    del about["config"]["model"]["render_share"]  # an absent key takes its default
    path.write_text(json.dumps(about))
    assert load_model(path.parent)[0].cfg.model.render_share == 0.9
    del about["config"]["data"]["rasteriser"]
    path.write_text(json.dumps(about))
    assert load_model(path.parent)[3].data.rasteriser == "open3d"
    del about["config"]["data"]["zoom"]
    path.write_text(json.dumps(about))
    assert predict.main(["x.pcd", "--workdir", str(tmp_path / "old"), "--out", str(tmp_path / "o")]) == 1
    assert "has no data.zoom; train it again" in capsys.readouterr().err


def test_the_embedded_model_loads():
    method, params, _, config = load_model(EMBEDDED)
    assert method.name == "gsclip" and config.clip.name == "mini" and "surface" in params


def test_predict_without_a_trained_model_says_so(tmp_path, capsys):
    assert predict.main(["x.pcd", "--workdir", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    assert "no trained model" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_held_out_kinds_of_defect_are_tested_but_never_trained_on(tmp_path):
    more = ["held_out=dent,bend", "train_defective=8", "defective=6"]
    config, _ = parse(["--config", "stage2.py", *SMALL, *(f"--config.data.synthetic.{change}" for change in more)])
    root, order = data.write_synthetic(config, tmp_path, 2, lambda line: None)
    kinds = {name: {path.stem[4:] for path in (Path(root) / name / "test").glob("*.pcd")} for name in order}
    assert kinds == {"bottle": {"good", "bulge", "hole", "crack", "break"}, "vase": {"good", *synthetic.ALL_DEFECTS}}
    config.data.synthetic.set = "pretrain"  # a pretraining shows no category what it holds out
    config.data.train_category, config.data.categories = "", ("soap",)
    root, _ = data.write_synthetic(config, tmp_path, 2, lambda line: None)
    assert not {path.stem[4:] for path in (Path(root) / "soap" / "test").glob("*.pcd")} & {"dent", "bend"}
    config.data.synthetic.held_out = ("dint",)
    with pytest.raises(ConfigError, match="choose some of bulge"):
        data.write_synthetic(config, tmp_path, 2, lambda line: None)

@pytest.mark.slow
def test_the_protocol_to_the_table(finished, tmp_path, capsys):
    """Beside the run above: the same records, programs and, for the one auxiliary category, the same figures."""
    workdir, command = finished
    command = ["--config", "protocol.py", "--workdir", str(tmp_path / "w"), *command[4:]]
    command += ["--config.auxiliary=bottle", "--config.compare=", "--config.eval.pictures=0"]
    assert run.main(command) == 0
    assert "mean over 1 auxiliary categories" in capsys.readouterr().out
    found, alone = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "w", workdir))
    assert found["mean"] == alone["mean"] and set(found["categories"]) == {"vase"}
    assert run.main(command) == 0  # finds everything done
