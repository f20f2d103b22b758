"""Several processes on this machine are one run: the numbers of one process, one end for all, whatever happens to one of them.

The long ones: `python -m pytest -m slow tests/experiments/test_processes.py`.
"""

import json
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from gsclip_jax.convert.store import load_params
from gsclip_jax.runtime.clusters import ClusterError, Place, place
from gsclip_jax.runtime.peers import meet

SMALL = [
    "--config.data.synthetic.train_good=2", "--config.data.synthetic.train_defective=2", "--config.data.synthetic.good=2",
    "--config.data.synthetic.defective=2", "--config.data.categories=vase", "--config.data.points=1024",
    "--config.data.synthetic.scan_points=1500", "--config.data.cloud_points=128", "--config.data.views=2",
    "--config.pointnet2.centroids=32,16,8,4", "--config.stage1.epochs=1", "--config.stage2.epochs=1",
    "--config.eval.batch_size=2", "--config.eval.pictures=0", "--config.compare=",
]  # fmt: skip


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(workdir: Path, cache: Path, processes: int, devices: int, *more: str) -> list[subprocess.Popen]:
    """The processes of one run; what they say goes to workdir.NUMBER.log."""
    command = [sys.executable, "-m", "experiments.run", "--config", "stage2.py", "--workdir", str(workdir)]
    command += [f"--config.cache={cache}", *SMALL, f"--config.mesh.cpu_devices={devices}", *more]
    if processes > 1:
        command += [f"--config.mesh.coordinator=127.0.0.1:{free_port()}", f"--config.mesh.processes={processes}"]
    found = []
    for number in range(processes):
        own = [f"--config.mesh.process={number}"] if processes > 1 else []
        with workdir.with_suffix(f".{number}.log").open("ab") as log:
            found.append(subprocess.Popen([*command, *own], stdout=log, stderr=subprocess.STDOUT))
    return found


def end(running: list[subprocess.Popen], limit: float = 900) -> list[int]:
    """Their exit statuses; those still running after `limit` seconds are killed (-9)."""
    until = time.monotonic() + limit
    for process in running:
        try:
            process.wait(max(until - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return [process.returncode for process in running]


def said(workdir: Path, number: int = 0) -> str:
    return workdir.with_suffix(f".{number}.log").read_text(errors="replace")


def results(workdir: Path) -> dict:
    found = json.loads((workdir / "results.json").read_text())
    return {**found["categories"], "mean": found["mean"]}


def furthest(one: Path, other: Path) -> tuple[float, float]:
    """The largest differences of the results, and of the weights that both stages trained."""
    ours, theirs = results(one), results(other)
    assert ours.keys() == theirs.keys()
    apart = [abs(a - theirs[row][name]) for row, values in ours.items() for name, a in values.items() if a is not None]
    trees = [load_params(folder / "model")[0] for folder in (one, other)]
    return max(apart), max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *trees)))


@pytest.mark.slow
def test_the_tasks_of_a_submitted_row_are_one_run(tmp_path):
    """submitit's stand-in for SLURM, two tasks of one device a row: the numbers of one process with as many devices."""
    submitit = pytest.importorskip("submitit")
    file = tmp_path / "grid.py"
    file.write_text("from experiments.configs import stage2\n\n"
                    "def get_config(preset=None):\n    return stage2.get_config()\n\n"
                    "def rows(config):\n    return {'row': {}}\n")  # fmt: skip
    command = [sys.executable, "-m", "experiments.sweep", "--config", str(file), "--workdir", str(tmp_path / "w"), "--seeds", "0",
               *SMALL, "--config.mesh.cpu_devices=1", f"--config.cache={tmp_path / 'cache'}",
               "--slurm=cluster=local,tasks_per_node=2,timeout_min=30"]  # fmt: skip
    sent = subprocess.run(command, capture_output=True, text=True)
    assert sent.returncode == 0, sent.stderr
    number = re.search(r"submitted 1 jobs: (\S+)", sent.stdout)[1]
    assert submitit.local.local.LocalJob(tmp_path / "w" / "slurm", number, tasks=(0, 1)).results() == [0, 0]
    assert end(start(tmp_path / "one", tmp_path / "cache", 1, 2)) == [0], said(tmp_path / "one")
    apart, weights = furthest(tmp_path / "w" / "row-s0", tmp_path / "one")
    assert apart <= 1e-4 and weights <= 1e-5


@pytest.mark.slow
def test_two_processes_are_one_run(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert end(start(one, tmp_path / "cache", 1, 2)) == [0], said(one)
    shutil.rmtree(tmp_path / "cache" / "features")  # so that both encode
    assert end(start(two, tmp_path / "cache", 2, 1)) == [0, 0], said(two) + said(two, 1)
    in_results, in_weights = furthest(one, two)
    assert in_results <= 1e-4
    assert in_weights <= 1e-5
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in two.iterdir())
    features = list((tmp_path / "cache" / "features").glob("*/meta.json"))
    assert features and all(json.loads(path.read_text())["files"] == ["0.npy", "1.npy"] for path in features)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """The same weights from features that each process encoded its share of; `one_of_several` renders nothing."""
    found = {}
    for processes, devices in ((1, 2), (2, 1)):
        folder, port = tmp_path / str(processes), free_port()
        folder.mkdir()
        given = [str(folder), str(port), str(processes)]
        command = [sys.executable, "-m", "tests.experiments.one_of_several", *given]
        running = [subprocess.Popen([*command, str(number), str(devices), "60", "3"]) for number in range(processes)]
        assert end(running) == [0] * processes
        found[processes] = np.load(folder / "trained.npz")
    for name in found[1].files:
        np.testing.assert_allclose(found[1][name], found[2][name], atol=1e-5)
    meta = next((tmp_path / "2" / "features").glob("*/meta.json"))
    assert json.loads(meta.read_text())["files"] == ["0.npy", "1.npy"]


def test_a_process_whose_place_is_told_by_halves_is_refused():
    with pytest.raises(ClusterError, match="coordinator and config.mesh.process missing"):
        place(processes=2)
    with pytest.raises(ClusterError, match="process=2 of config.mesh.processes=2"):
        place("host:9000", 2, 2)
    with pytest.raises(ClusterError, match="HOST:PORT"):
        place("host", 2, 1)
    assert place("host:9000", 2, 1) == Place("host:9000", 2, 1)


def test_clusters_are_found_by_their_own_variables():
    assert place(env={}) is None
    xpk = {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3", "JAX_COORDINATOR_ADDRESS": "first:1234"}
    assert place(env=xpk) == Place("first:1234", 4, 3)
    assert place(processes=1, env=xpk) is None
    with pytest.raises(ClusterError, match="JAX_PROCESS_ID not set"):
        place(env={name: value for name, value in xpk.items() if name != "JAX_PROCESS_ID"})
    local = {"SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_JOB_ID": "77", "SUBMITIT_LOCAL_GLOBALID": "1"}
    assert place(env=local) == Place("127.0.0.1:61517", 2, 1)


def test_a_process_that_finds_no_other_says_so_in_time():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConnectionError, match="process 1 of 2 cannot reach process 0"):
        meet(address, 2, 1, {}, 0.5)
    with pytest.raises(ConnectionError, match="process 1 of 2 did not come"):
        meet(address, 2, 0, {}, 0.5)
