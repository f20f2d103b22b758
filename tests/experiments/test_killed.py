"""Killed in each of the four phases through the command line, and run again: the numbers of a run that nobody disturbed.

Slow (several minutes): `make test-slow`.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = [
    "--config.data.synthetic.train_good=6", "--config.data.synthetic.train_defective=6", "--config.data.synthetic.good=4",
    "--config.data.synthetic.defective=4", "--config.data.categories=vase", "--config.data.points=2048",
    "--config.data.synthetic.scan_points=2500", "--config.data.cloud_points=256", "--config.pointnet2.centroids=64,32,16,8",
    "--config.stage1.epochs=4", "--config.stage2.epochs=4", "--config.eval.batch_size=2", "--config.eval.pictures=0",
    "--config.compare=", "--config.save_every_s=0",
]  # fmt: skip


def command(workdir: Path, cache: Path) -> list[str]:
    run = [sys.executable, "-m", "experiments.run", "--config", "stage2.py", "--workdir", str(workdir)]
    return [*run, f"--config.cache={cache}", *SMALL]


def results(workdir: Path) -> dict:
    found = json.loads((workdir / "results.json").read_text())
    return {name: found[name] for name in ("categories", "mean")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    root = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(root / "w", root / "cache"), check=True, capture_output=True)
    return root


def reached(phase: str, workdir: Path, cache: Path) -> bool:
    """Whether the run is in the middle of a phase, with something done that a second run can go on from."""
    if phase == "render":
        return len(list(cache.glob("synthetic-*/parts/*.npz"))) >= 3
    if phase == "eval":
        return len(list(workdir.glob("eval/vase/*.npz"))) >= 2
    saved = [path for path in workdir.glob(f"{phase}/checkpoints/*") if path.name.isdigit()]
    return any(3 <= int(path.name) < 12 for path in saved)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["render", "stage1", "stage2", "eval"])
def test_killed_and_run_again_ends_with_the_same_numbers(undisturbed, tmp_path, phase):
    workdir, cache = tmp_path / "w", tmp_path / "cache"
    if phase != "render":
        shutil.copytree(undisturbed / "cache", cache)
    process = subprocess.Popen(command(workdir, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not reached(phase, workdir, cache):
        assert process.poll() is None, f"the run ended before {phase} could be interrupted"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (workdir / "results.json").exists()
    subprocess.run(command(workdir, cache), check=True, capture_output=True)
    assert results(workdir) == results(undisturbed / "w")
