"""The service under load, as benchmarks/service.py puts it there: its short form, with a real process and SIGTERM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ten_seconds_of_good_malformed_oversized_and_slow_posts(tmp_path):
    words = ["--seconds", "10", "--clients", "12", "--points", "500", "--out", str(tmp_path / "figures.json")]
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "service.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["wrong"] == [] and figures["answers"]["good"]["200"] > 0 and figures["farthest score"] <= 1e-6
    assert all(figures["answers"].values())
    assert figures["answers"]["slow"].keys() <= {"408", "429"} and figures["answers"]["oversized"].keys() <= {"413", "429"}
