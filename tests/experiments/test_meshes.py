"""Any number of processes and devices, and any mesh, train and score what one device does: in doubles, so that what differs is no
round-off (docs/scaling.md says what float32 makes of it).

All slow: `python -m pytest -m slow tests/experiments/test_meshes.py`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.test_disturbed import QUICK, last_lines, numbers
from tests.experiments.test_processes import end, free_port

STEPS = 3  # of each stage


def trained(folder: Path, processes: int, devices: int, shape: str) -> Path:
    """The folder of a run in doubles, by processes of so many devices each; shape 'DATA,VIEW,MODEL'."""
    folder.mkdir()
    port, running = free_port(), []
    for number in range(processes):
        words = [folder, port, processes, number, devices, 1e6, STEPS, shape, "double"]
        command = [sys.executable, "-m", "tests.experiments.one_of_several", *map(str, words)]
        with folder.with_suffix(f".{number}.log").open("wb") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=QUICK))
    assert end(running, 1800) == [0] * processes, [last_lines(folder, number) for number in range(processes)]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    return trained(tmp_path_factory.mktemp("meshes") / "alone", 1, 1, "1,1,1")


@pytest.mark.slow
@pytest.mark.parametrize("processes, devices, shape", [
    (1, 2, "2,1,1"), (1, 8, "8,1,1"), (1, 8, "2,2,2"), (2, 1, "2,1,1"), (2, 1, "1,2,1"), (2, 1, "1,1,2"), (2, 2, "2,2,1"),
    (4, 1, "2,2,1"), (4, 1, "1,2,2"), (4, 1, "4,1,1"),
])  # fmt: skip
def test_a_mesh_changes_nothing(alone, processes, devices, shape):
    folder = trained(alone.with_name(f"{processes}x{devices}-{shape}"), processes, devices, shape)
    (results, weights), (expected, expected_weights) = numbers(folder), numbers(alone)
    assert results["mean"] == pytest.approx(expected["mean"], abs=1e-6)
    apart = max(float(np.abs(weights[name] - expected_weights[name]).max()) for name in expected_weights)
    print(f"{processes} processes of {devices}, {shape}: weights {apart:.1e} apart")
    assert apart <= 1e-6  # 2e-8 to 1.4e-7 were seen: Adam turns round-off of gradients near 0 into parts of a step
