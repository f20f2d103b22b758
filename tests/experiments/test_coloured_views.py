"""A method that trains on coloured views: what it switches on, what its features get, and where it cannot be trained."""

import dataclasses
import re

import numpy as np
import pytest

from experiments import data, run, scans
from experiments.checks import check_all, check_before
from experiments.command_line import parse
from experiments.configs.common import with_method
from gsclip_jax.methods import METHODS, pointad
from tests.data_pipelines.test_coloured_views import mvtec3d
from tests.experiments.test_run import SMALL, refuse
from tests.scans import write_set

NEEDS = "align3d"


class Coloured(pointad.PointAd):
    """PointAD with one more feature: the mean colour of every view."""

    def __init__(self, cfg, clip, words):
        super().__init__(cfg, clip, words)

        def features(params, stats, batch):
            return self.features(params, stats, batch) | {"colour": batch["rgb_render"].mean((2, 3))}

        def loss(trainable, frozen, stats, batch, key):
            value, (stats, logged) = self.loss(trainable, frozen, stats, batch, key)
            return value, (stats, logged | {"red": batch["colour"][..., 0].mean()})

        self.stages = (dataclasses.replace(self.stages[0], features=features, loss=loss),)

    def with_remat(self, remat):
        return Coloured(self.cfg, dataclasses.replace(self.clip, remat=remat), self.words)


@pytest.fixture(autouse=True)
def method(monkeypatch):
    """A method that needs them, in the registry."""

    def build(cfg, parts):
        plain = pointad.build(cfg, parts)
        return Coloured(plain.cfg, plain.clip, plain.words)

    monkeypatch.setitem(METHODS, NEEDS, METHODS["pointad"]._replace(build=build, fields=lambda cfg: ("rgb_render",)))


def test_the_method_switches_them_on_for_its_training_alone():
    config, _ = parse(["--config=stage2.py:mvtec3d", f"--config.method={NEEDS}", "--config.target.name=real3d"])
    assert data.data_config(config)["rgb_render"] is True
    assert data.data_config(data.target(config))["rgb_render"] is False  # what is evaluated elsewhere needs no colour
    other = with_method(config, "plain_clip")  # put beside it, on the same records
    assert other.data.rgb_render and not parse(["--config=stage2.py:mvtec3d"])[0].data.rgb_render
    embedded, _ = parse(["--config=stage2.py", f"--config.method={NEEDS}"])
    assert embedded.data.rgb_render and not scans.without_training(embedded).data.rgb_render


def test_without_colour_it_is_refused_before_anything_is_rendered(tmp_path, capsys):
    root = write_set(tmp_path / "set")
    common = [f"--config.method={NEEDS}", f"--config.cache={tmp_path / 'cache'}", "--workdir", str(tmp_path / "w")]
    here = ["--config.data.name=real3d", f"--config.data.root={root}", "--config.data.train_category=ball"]
    assert refuse(capsys, "--config=stage2.py", *here, *common) == (
        "error: Align3D-AD needs coloured renderings of the auxiliary category; real3d has no colour: train on mvtec3d or "
        "eyecandies, or use gsclip or pointad")
    assert "set config.data.rgb_render=True" in refuse(capsys, "--config=stage2.py", *common, "--config.data.rgb_render=no")
    assert not (tmp_path / "w").exists() and not list((tmp_path / "cache").glob("*/parts"))


def test_a_target_without_colour_and_a_data_set_with_it_pass(tmp_path):
    mvtec3d(tmp_path / "set")
    (tmp_path / "set" / "foam").symlink_to(tmp_path / "set" / "tire")
    root = write_set(tmp_path / "clouds")
    small = [change for change in SMALL if not re.search(r"\.(categories|synthetic|stage2|pointnet2)\b", change)]
    config, folder = parse([
        "--config=stage2.py", *small, f"--config.method={NEEDS}", "--config.data.name=mvtec3d",
        f"--config.data.root={tmp_path / 'set'}", "--config.data.train_category=tire", "--config.target.name=real3d",
        f"--config.target.root={root}", f"--config.cache={tmp_path / 'cache'}", "--workdir", str(tmp_path / "w"),
    ])  # fmt: skip
    check_before(config, folder, devices=False)


@pytest.mark.slow
def test_features_and_training_get_them_and_the_evaluation_does_without(tmp_path):
    """The embedded data set, from nothing to results; a feature made of the coloured views reaches the loss."""
    small = [change for change in SMALL if not re.search(r"\.stage2\b", change)]
    config, folder = parse(["--config=stage2.py", *small, f"--config.method={NEEDS}", "--config.compare=()",
                            f"--config.cache={tmp_path / 'cache'}", "--workdir", str(tmp_path / "w")])
    check_all(config, folder)
    results = run.train_and_evaluate(config, folder)
    assert np.isfinite(results["mean"]["p_auroc"])
    logged = (folder / "metrics.jsonl").read_text()
    assert '"red"' in logged
    (about,) = (path for path in (tmp_path / "cache" / "features").glob("*/meta.json") if "colour" in path.read_text())
    (colours,) = about.parent.glob("*.npy")
    found = np.load(colours)
    assert found.shape == (6, 3, 3) and np.ptp(found, -1).min() > 3  # the bottle's material is no grey
