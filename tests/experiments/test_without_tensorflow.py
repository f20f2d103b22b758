"""Prediction runs where TensorFlow is not installed: what `pip install gsclip-jax` gives (requirements-infer.txt)."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WITHOUT = """
import sys
for name in ("tensorflow", "tensorflow_datasets"):
    sys.modules[name] = None  # importing it is an ImportError
from experiments.predict import main
status = main(sys.argv[1:])
assert not any(name.startswith("tensorflow") and module for name, module in sys.modules.items())
sys.exit(status)
"""


@pytest.mark.slow
def test_a_scan_is_scored_without_tensorflow(tmp_path):
    ball = np.random.default_rng(0).standard_normal((3000, 3))
    np.savetxt(tmp_path / "ball.xyz", ball / np.linalg.norm(ball, axis=1, keepdims=True))
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "ball.xyz"), "--out", str(tmp_path / "out"), "--rasteriser", "numpy"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert np.isfinite(json.loads(line)["score"])


def test_what_prediction_installs_has_no_tensorflow():
    infer, whole = (ROOT / name for name in ("requirements-infer.txt", "requirements.txt"))
    assert "tensorflow" not in infer.read_text() and "jax" in infer.read_text()
    assert [line for line in whole.read_text().splitlines() if not line.startswith("#")] == [
        "-r requirements-infer.txt", "-r requirements-train.txt"]  # fmt: skip
