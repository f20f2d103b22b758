"""What is part of a run's identity, what is found by content, what is refused before rendering, and evaluations of one model."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines.clouds.loading import load_scan
from experiments import evaluations, identity, predict, run
from experiments.command_line import parse
from experiments.configs import common, pretrain, protocol
from experiments.export import main as export
from gsclip_jax.methods import METHODS
from gsclip_jax.runtime.sharding import make_mesh, pad_batch
from gsclip_jax.training.feature_store import Source, feature_keys
from tests import tiny
from tests.experiments.conftest import SMALL
from tests.experiments.test_run import refuse


@pytest.mark.parametrize("name", common.PRESETS)
def test_every_key_is_claimed_by_a_row(name):
    for config in (common.preset(name), protocol.get_config(name), pretrain.get_config()):
        unclaimed = [key for key in identity.flat(config) if identity.row_of(key) is None]
        assert unclaimed == []
    configs = [protocol.get_config(), pretrain.get_config(), *(common.with_method(common.preset(name), m) for m in METHODS)]
    known = {key for config in configs for key in identity.flat(config)}
    rows = [row[0] for row in identity.KEYS]
    assert len(set(rows)) == len(rows) and all(any(k == row or k.startswith(row + ".") for k in known) for row in rows)


def test_a_pretraining_of_an_earlier_version_goes_on(tmp_path):
    """Its stages and their keys had other names."""
    config = pretrain.get_config()
    identity.claim_workdir(config, tmp_path)
    (tmp_path / "sight" / "checkpoints").mkdir(parents=True)
    (tmp_path / "sight" / "checkpoints" / "state").write_text("trained")
    path = tmp_path / "config.json"
    there = json.loads(path.read_text())
    there["sight"], there["words"] = there.pop("vision"), there.pop("contrastive")
    path.write_text(json.dumps(there))
    assert identity.differing(config, tmp_path) == []
    identity.rename_stages(tmp_path)
    assert (tmp_path / "vision" / "checkpoints" / "state").read_text() == "trained" and not (tmp_path / "sight").exists()
    config.vision.steps += 1
    assert "vision.steps" in identity.differing(config, tmp_path)[0]


def test_features_are_keyed_by_what_they_are_computed_from():
    """Text by stage 1's outcome, tokens by the CLIP alone; neither by batch, mesh or what comes after them."""
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)

    def keys(method=gsclip, params=params, stats=stats, stage="stage2", count=4, objects="a"):
        row = next(row for row in method.stages if row.name == stage)
        return feature_keys(Source(row, params, stats, lambda: iter([tiny.batch(count)]), count, objects, None))

    first = keys()
    assert set(first) == {"render_tokens", "text"} and keys(stage="stage1") == {"render_tokens": first["render_tokens"]}
    assert first == keys(count=2) == keys(tiny.method(smooth_sigma=2.0, consistency=1.0))
    assert first == keys(params={**params, "srm": jax.tree.map(lambda x: x + 1, params["srm"])})
    for changed in (keys(params={**params, "gddm": jax.tree.map(lambda x: x + 1e-3, params["gddm"])}),
                    keys(stats=jax.tree.map(lambda x: x + 1e-3, stats))):  # fmt: skip
        assert changed["text"] != first["text"] and changed["render_tokens"] == first["render_tokens"]
    other = tiny.method(clip=dataclasses.replace(tiny.CLIP, vv_blocks=2))
    assert keys(other)["render_tokens"] != first["render_tokens"] and keys(other)["text"] == first["text"]
    assert not set(keys(objects="b").values()) & set(first.values())


def test_a_batch_is_filled_up_for_the_devices():
    batch = pad_batch(tiny.batch(3), make_mesh(4, 1))
    assert len(batch["label"]) == 4 and batch["real"].tolist() == [True] * 3 + [False]
    np.testing.assert_array_equal(batch["xyz"][3], batch["xyz"][0])


@pytest.mark.parametrize("changes, said", [
    (["eval.batch_size=0"], "eval.batch_size is 0"), (["stage1.learning_rate=nan"], "stage1.learning_rate is nan"),
    (["clip.name=/nowhere.pt"], "/nowhere.pt"), (["pointnet2.weights=/nowhere.pth"], "/nowhere.pth"),
    (["clip.tokenizer=/nowhere"], "/nowhere"), (["model.start=", "model.n_ctx=200"], "prompts of 20"),
    (["model.top_k=5000"], "fewer"), (["model.start=a,b"], "make them equal"),
    (["data.categories=bottle"], "nothing to evaluate"), (["data.categories=vse"], "did you mean 'vase'"),
    (["compare=plain_clp"], "did you mean 'plain_clip'"), (["method=gsclp"], "did you mean 'gsclip'"),
    (["eval.rgb=True"], "config.eval.rgb"), (["target.name=real3d", "target.root=/nowhere"], "/nowhere"),
    (["target.name=reel3d"], "did you mean 'real3d'"), (["target.name=folder"], "config.target.root"),
    (["model.streams=boht"], "did you mean 'both'"), (["mesh.data=3"], "config.mesh"),
])  # fmt: skip
def test_what_can_be_refused_is_refused_before_rendering(capsys, tmp_path, changes, said):
    cache, work = tmp_path / "c", tmp_path / "w"
    line = refuse(capsys, "--config", "stage2.py", "--workdir", str(work), f"--config.cache={cache}", *SMALL,
                  *(f"--config.{change}" for change in changes))  # fmt: skip
    assert said in line
    assert not work.exists() and not (cache / "scans").exists() and not list(cache.glob("synthetic-*"))


def test_a_protocol_is_refused_as_a_whole(capsys, tmp_path):
    line = refuse(capsys, "--config", "protocol.py", "--workdir", str(tmp_path / "w"), f"--config.cache={tmp_path / 'c'}", *SMALL,
                  "--config.auxiliary=bottle,nutt")  # fmt: skip
    assert "did you mean 'nut'" in line and not (tmp_path / "w").exists() and not (tmp_path / "c" / "scans").exists()


def test_default_folders_of_runs_with_and_without_a_target_differ():
    plain, across = (parse(["--config", "stage2.py:mvtec3d", *more])[1] for more in ([], ["--config.target.name=eyecandies"]))
    assert plain == Path("runs/mvtec3d-carrot-paper-s111") and across == Path(f"{plain}-on-eyecandies")
    assert parse(["--config", "eval.py:mvtec3d", "--config.target.name=eyecandies"])[1] == plain


@pytest.fixture(scope="module")
def trained(small_run, tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    _, command = small_run(root / "w")
    rng = np.random.default_rng(0)
    for kind in ("good", "defective"):
        folder = root / "own" / "part" / kind
        folder.mkdir(parents=True)
        for number in range(2):
            xyz = rng.standard_normal((1400, 3))
            np.savetxt(folder / f"{number}.xyz", xyz * [[3, 1, 1]] / np.linalg.norm(xyz, axis=1, keepdims=True))
    return root, command


def test_what_changes_no_result_is_no_part_of_the_run(trained, capsys):
    root, command = trained
    first = json.loads((root / "w" / "results.json").read_text())
    assert run.main([*command, "--config.clip.remat=True", "--config.eval.batch_size=1", "--config.workers=1"]) == 0
    assert json.loads((root / "w" / "results.json").read_text()) == first
    assert "stage2.epochs" in refuse(capsys, *command, "--config.stage2.epochs=3")


def test_a_run_from_before_a_key_had_its_default(trained, capsys):
    root, command = trained
    path = root / "w" / "config.json"
    config = json.loads(path.read_text())
    kept = path.read_text()
    del config["data"]["rasteriser"], config["model"]["consistency"]
    path.write_text(json.dumps(config))
    try:
        assert run.main(command) == 0
        assert "data.rasteriser 'open3d' there, 'numpy' now" in refuse(capsys, *command, "--config.data.rasteriser=numpy")
        del config["data"]["cavity"]  # without the key nothing was darkened, whatever the default is now
        path.write_text(json.dumps(config))
        assert "data.cavity 0.0 there, 0.6 now" in refuse(capsys, *command)
    finally:
        path.write_text(kept)


def test_a_trained_model_is_evaluated_elsewhere_without_training_or_its_data(trained, tmp_path):
    root, _ = trained
    work, cache = tmp_path / "w", tmp_path / "cache"
    shutil.copytree(root / "w", work)
    plain = json.loads((work / "results.json").read_text())
    steps = (work / "metrics.jsonl").read_text()
    on_own = ["--config", "eval.py", "--workdir", str(work), f"--config.cache={cache}", "--config.target.name=folder",
              f"--config.target.root={root / 'own'}"]  # fmt: skip
    assert run.main(on_own) == 0
    own = json.loads((work / "results.json").read_text())
    assert (own["dataset"], own["trained_on"], list(own["categories"])) == ("folder", "synthetic", ["part"])
    assert not (cache / "scans").exists() and (work / "metrics.jsonl").read_text() == steps
    # What the first evaluation found is kept, apart, and comes back when asked for.
    config, _ = parse([*on_own[:4], f"--config.cache={cache}"])
    kept = evaluations.find(work, config)
    assert json.loads(kept.read_text()) == plain and kept.parent != work
    assert run.main([*on_own[:4], f"--config.cache={cache}"]) == 0
    assert json.loads((work / "results.json").read_text()) == plain
    assert not (cache / "scans").exists()


@pytest.mark.slow
def test_what_export_writes_takes_the_place_of_a_work_directory(trained, tmp_path, capsys):
    root, _ = trained
    out, scan = tmp_path / "E", root / "own" / "part" / "good" / "0.xyz"
    assert export(["--workdir", str(root / "w"), "--out", str(out)]) == 0
    scores = []
    for workdir in (root / "w", out):
        assert predict.main([str(scan), "--workdir", str(workdir), "--out", str(tmp_path / f"p{len(scores)}")]) == 0
        scores.append(load_scan(tmp_path / f"p{len(scores)}" / "parts" / "0.ply").attributes["score"])
    np.testing.assert_allclose(*scores, atol=0.02)  # half precision
    assert run.main(["--config", "eval.py", "--workdir", str(out), "--config.target.name=folder",
                     f"--config.target.root={root / 'own'}"]) == 0  # fmt: skip
    assert export(["--workdir", str(root / "w"), "--out", str(root / "w")]) == 1  # holds a run
    assert export(["--workdir", str(root / "w"), "--out", str(root / "w" / "model")]) == 1
    assert (root / "w" / "config.json").exists() and "name another" in capsys.readouterr().err
