"""Two processes that are stopped, killed and paused at random moments: one end for both, and the numbers of an undisturbed run.

All slow: `python -m pytest -m slow tests/experiments/test_disturbed.py`. The moments are drawn from seeds, in shares of the steps
of both stages and the scores after them. `one_of_several` renders nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.test_processes import end, free_port

STEPS = 60  # of each of two stages
# Most of the time here is compilation.
QUICK = os.environ | {"OMP_NUM_THREADS": "1"}


def start(folder: Path, save_every_s: float = 1.0, steps: int = STEPS, processes: int = 2) -> list[subprocess.Popen]:
    """The processes of one run; what they say goes to FOLDER.NUMBER.log."""
    folder.mkdir(exist_ok=True)
    for path in folder.glob("met*"):
        path.unlink()
    port, found = free_port(), []
    for number in range(processes):
        words = [folder, port, processes, number, 1, save_every_s, steps]
        with folder.with_suffix(f".{number}.log").open("wb") as log:
            command = [sys.executable, "-m", "tests.experiments.one_of_several", *map(str, words)]
            found.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=QUICK))
    return found


def last_lines(folder: Path, number: int) -> list[str]:
    """What a process said at last, without what counts steps."""
    lines = folder.with_suffix(f".{number}.log").read_text(errors="replace").splitlines()
    return [line for line in lines if line.startswith(("error", "stopped"))]


def reached(folder: Path) -> int:
    """Steps that were noted, of both stages together; one more for every scored object."""
    noted = folder / "metrics.jsonl"
    return (noted.read_bytes().count(b"\n") if noted.exists() else 0) + len(list(folder.glob("eval/*/*.npz")))


def wait_for(moment: int, folder: Path, running: list[subprocess.Popen]) -> None:
    """Returns once both processes are together and so much is reached, or they have ended."""
    while len(list(folder.glob("met*"))) < 2 or reached(folder) < moment:
        if any(process.poll() is not None for process in running):
            return
        time.sleep(0.01)


def numbers(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(folder / "trained.npz") as file:
        return json.loads((folder / "results.json").read_text()), dict(file)


def check_same(folder: Path, undisturbed: Path) -> None:
    (results, weights), (expected, expected_weights) = numbers(folder), numbers(undisturbed)
    assert results["mean"] == pytest.approx(expected["mean"], abs=1e-4)
    assert weights.keys() == expected_weights.keys()
    assert max(float(np.abs(weights[name] - expected_weights[name]).max()) for name in weights) <= 1e-5


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("disturbed") / "undisturbed"
    assert end(start(folder), 3600) == [0, 0], last_lines(folder, 0) + last_lines(folder, 1)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_one_process_is_asked_to_stop(undisturbed, stopped):
    folder = undisturbed.with_name(f"stop{stopped}")
    running = start(folder, save_every_s=1e6)
    wait_for(STEPS + STEPS // 3, folder, running)
    running[stopped].send_signal(signal.SIGTERM)
    assert end(running, 90) == [130, 130]
    assert [last_lines(folder, number)[0].partition(";")[0] for number in (0, 1)] == ["stopped", "stopped"]
    (saved,) = [path.name for path in (folder / "stage2" / "checkpoints").iterdir() if path.name.isdecimal()]
    noted = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert STEPS // 3 <= int(saved) < STEPS and noted[-1]["step"] <= int(saved)
    assert end(start(folder), 3600) == [0, 0]
    check_same(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_one_process_is_killed(undisturbed, seed):
    drawn = random.Random(seed)
    folder, killed = undisturbed.with_name(f"kill{seed}"), drawn.randrange(2)
    running = start(folder)
    wait_for(drawn.randrange(2 * STEPS + 4), folder, running)
    time.sleep(drawn.random() / 2)
    running[killed].kill()
    since, other = time.monotonic(), running[1 - killed]
    assert other.wait(60) in (0, 1)
    print(f"the other ended after {time.monotonic() - since:.1f} s with status {other.returncode}")
    if other.returncode:
        (line,) = last_lines(folder, 1 - killed)
        assert f"process {killed} of 2" in line
    assert end(start(folder), 3600) == [0, 0]
    check_same(folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_processes_that_pause_do_not_hang(undisturbed, seed):
    """A checkpoint every second while one process or the other stands still, at times longer than three signs of life."""
    drawn = random.Random(100 + seed)
    folder = undisturbed.with_name(f"pause{seed}")
    running = start(folder)
    wait_for(0, folder, running)
    until = time.monotonic() + 3600
    while any(process.poll() is None for process in running) and time.monotonic() < until:
        time.sleep(drawn.uniform(0.2, 2))
        paused = running[drawn.randrange(2)]
        if paused.poll() is None:
            paused.send_signal(signal.SIGSTOP)
            time.sleep(12 if drawn.random() < 0.1 else drawn.uniform(0.2, 3))
            paused.send_signal(signal.SIGCONT)
    assert end(running, 60) == [0, 0], last_lines(folder, 0) + last_lines(folder, 1)
    check_same(folder, undisturbed)
