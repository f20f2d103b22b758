"""Models that earlier code has saved: today's loader gives the scores that the code of then gave (tests/data/earlier/make.py)."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from gsclip_jax.inspection.model import EMBEDDED
from gsclip_jax.inspection.saved import load_model
from tests.data.earlier.make import batch

NOW = {"pix": "pixel", "seen": "visible"}  # fields of a batch that had other names
EARLIER = Path(__file__).parents[1] / "data" / "earlier"


def scores_of(folder: Path) -> dict[str, np.ndarray]:
    method, params, stats, _ = load_model(folder)
    given = {NOW.get(name, name): value for name, value in batch().items()}
    found = jax.device_get(jax.jit(method.predict)(params, stats, given))
    return {"object": found.object, "points": found.points}


@pytest.mark.parametrize("name, folder", [("pointad", EARLIER / "model"), ("gsclip", EMBEDDED)])
def test_a_model_saved_by_earlier_code_scores_the_same(name, folder):
    with np.load(EARLIER / "scores.npz") as recorded:
        for part, found in scores_of(folder).items():
            assert np.ptp(found) > 1e-3  # scores that say something
            np.testing.assert_allclose(found, recorded[f"{name}_{part}"], rtol=0, atol=1e-6, err_msg=f"{name} {part}")


def test_an_absent_key_takes_its_default(tmp_path):
    """Keys that came later are absent in an earlier model; one that is there with another value is obeyed."""
    shutil.copytree(EARLIER / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    about = json.loads(path.read_text())
    changed = [about["config"]["model"].pop(key) for key in ("smooth_sigma", "n_deep")]
    assert changed == [4.0, 4]  # the defaults
    path.write_text(json.dumps(about))
    model = load_model(tmp_path / "model")[0].cfg.model
    assert [model.smooth_sigma, model.n_deep] == changed
    with np.load(EARLIER / "scores.npz") as recorded:
        np.testing.assert_allclose(scores_of(tmp_path / "model")["points"], recorded["pointad_points"], rtol=0, atol=1e-6)
    about["config"]["model"]["smooth_width"] = 3.0
    path.write_text(json.dumps(about))
    with np.load(EARLIER / "scores.npz") as recorded:
        assert np.abs(scores_of(tmp_path / "model")["points"] - recorded["pointad_points"]).max() > 1e-4
