"""A grid shared by several workers: every row once, one at a time, also where a worker is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments import pod, sweep
from experiments.pod import Share, Worker
from gsclip_jax.parts import ConfigError
from tests.experiments.test_sweep import write_sweep

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

# Stands for `experiments.sweep --row`: holds the row's lease as it does, and needs no JAX.
CHILD = """
import json, os, sys, time
from pathlib import Path
from data_pipelines.leases import Lease
row, sign = (sys.argv[sys.argv.index(name) + 1] for name in ("--row", "--leased"))
label = ("a-s0", "b-s0", "c-s0", "d-s0")[int(row)]
folder = Path({folder!r})
lease = Lease(folder / ".pod" / "leases" / label, 1.6)
lease.believe(sign)
if not lease.take():
    sys.exit(75)
if (folder / label / "results.json").exists():
    sys.exit()
def note(word):
    with (folder / "log").open("a") as file:
        file.write(f"{{word}} {{label}} {{os.getpid()}}\\n")
note("in")
if label == {broken!r}:
    print("error: no luck")
    lease.release()
    sys.exit(3)
if label == {stuck!r} and not (folder / "stuck").exists():
    (folder / "stuck").write_text(str(os.getpid()))
    time.sleep(60)
time.sleep(0.2)
mean = dict(o_auroc=0.5 + int(row) / 10, p_auroc=0.25, p_pro=None)
(folder / label / "results.json").write_text(json.dumps(dict(mean=mean)))
note("out")
lease.release()
"""


def rows_and_command(tmp_path, broken="", stuck=""):
    name = write_sweep(tmp_path, '{"a": {}, "b": {"model.top_k": 3}, "c": {"model.top_k": 4}, "d": {"model.top_k": 5}}')
    rows = sweep.expand(name, [], [0], tmp_path)
    return rows, [sys.executable, "-c", CHILD.format(folder=str(tmp_path), broken=broken, stuck=stuck)]


def work(rows, command, numbers, said, places=1):
    """Workers with these numbers at the same time; what each found failed."""
    failed = {}

    def one(number):
        worker = Worker(rows, command, [Share()] * places, number, said.append, term_s=1.6, look_s=0.1)
        failed[number] = [row.label for row in worker.run()]

    threads = [threading.Thread(target=one, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_workers_share_the_rows_and_each_runs_once(tmp_path):
    rows, command = rows_and_command(tmp_path, broken="b-s0")
    said = []
    failed = work(rows, command, (0, 1, 2), said)
    log = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted((word, label) for word, label, _ in log) == [
        ("in", "a-s0"), ("in", "b-s0"), ("in", "c-s0"), ("in", "d-s0"), ("out", "a-s0"), ("out", "c-s0"), ("out", "d-s0")]
    assert failed == {0: ["b-s0"], 1: ["b-s0"], 2: ["b-s0"]}
    assert sum("FAILED, status 3: error: no luck" in line for line in said) == 1
    assert sum("b-s0: FAILED with another worker" in line for line in said) == 2
    assert sum(line.startswith("a-s0: O-AUROC 50.0") for line in said) == 3
    # The same command tries what failed again, and nothing else.
    assert work(rows, rows_and_command(tmp_path)[1], (0,), said) == {0: []}
    assert (tmp_path / "log").read_text().count("in ") == 5


def test_a_killed_row_is_taken_over_by_whoever_is_there(tmp_path):
    rows, command = rows_and_command(tmp_path, stuck="c-s0")
    said = []

    def kill():
        while not (tmp_path / "stuck").exists() or not (tmp_path / "stuck").read_text():
            time.sleep(0.05)
        os.kill(int((tmp_path / "stuck").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert work(rows, command, (0, 2), said) == {0: [], 2: []}
    killer.join()
    starts = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines() if line.startswith("in")]
    assert sorted(starts) == ["a-s0", "b-s0", "c-s0", "c-s0", "d-s0"]
    assert any("c-s0: ended by signal 9; it is tried again" in line for line in said)


def test_a_worker_that_is_stopped_ends_its_rows(tmp_path, monkeypatch):
    rows, command = rows_and_command(tmp_path, stuck="a-s0")
    worker = Worker(rows, command, [Share()] * 2, 0, print, look_s=0.1)

    def stop(_):
        while not (tmp_path / "stuck").exists():
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(pod, "as_completed", stop)
    with pytest.raises(KeyboardInterrupt):
        worker.run()
    assert all(child.poll() is not None for child in worker._children)


PROCESS = """
import os, sys
from pathlib import Path
from types import SimpleNamespace
from experiments import pod
pod.RUN = lambda row: (Path(sys.argv[1]).with_suffix(".done").touch(), __import__("time").sleep(60))
row = SimpleNamespace(workdir=Path(sys.argv[1]), label="a-s0", results=lambda: None)
sys.exit(pod.run_leased(row, "", pod.RUN))
"""


def test_the_process_of_a_row_ends_with_its_worker_and_its_row_is_free(tmp_path):
    """A worker, the process of its row, and the worker killed."""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PROCESS!r}, {str(tmp_path / 'a-s0')!r}])"
    worker = subprocess.Popen([sys.executable, "-c", parent], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    lease, end = pod.lease_of(sweep.Row(0, "a", None, tmp_path / "a-s0")), time.monotonic() + 60
    while not (tmp_path / "a-s0.done").exists():
        assert time.monotonic() < end and worker.poll() is None
        time.sleep(0.05)
    assert lease.holder()
    again = [sys.executable, "-c", PROCESS, str(tmp_path / "a-s0")]
    twice = subprocess.run(again, env=ENVIRONMENT, capture_output=True, text=True)
    assert twice.returncode == pod.TAKEN and "a-s0 is leased by process" in twice.stdout
    worker.kill()
    assert "the worker is gone; its row is free" in worker.stdout.read()
    while lease.holder():  # it has said its last words
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("chips, found, expected", [
    (None, ("tpu", list("0123")), [{}, {}]),
    (1, ("gpu", ["2", "5", "GPU-a1"]), [{"CUDA_VISIBLE_DEVICES": name} for name in ("2", "5", "GPU-a1")]),
    (2, ("gpu", ["2", "5", "7"]), [{"CUDA_VISIBLE_DEVICES": "2,5"}]),
    (4, ("tpu", list("0123")), [{"TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": "2,2,1"}]),
    (1, ("tpu", list("01")), [{"TPU_VISIBLE_CHIPS": n, "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1"} for n in "01"]),
    (2, ("tpu", list("0123")), [{"TPU_VISIBLE_CHIPS": n, "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1"} for n in ("0,1", "2,3")]),
])  # fmt: skip
def test_every_row_has_its_own_devices(chips, found, expected):
    places = pod.shares(chips, 2, found)
    assert len(places) == len(expected)
    assert all(wanted.items() <= place.environment.items() for place, wanted in zip(places, expected, strict=True))


def test_on_a_cpu_a_row_has_virtual_devices():
    assert pod.shares(3, 2, ("cpu", [])) == [Share(keys=("--config.mesh.cpu_devices=3",))] * 2


@pytest.mark.parametrize("chips, found, said", [
    (5, ("gpu", list("0123")), "has 4"), (0, ("gpu", ["0"]), "one at least"),
    (3, ("tpu", list("01234567")), "shared by 1, 2, 4, 8"),
])  # fmt: skip
def test_chips_that_cannot_be_shared_are_refused(chips, found, said):
    with pytest.raises(ConfigError, match=said):
        pod.shares(chips, 1, found)


def test_a_worker_is_who_the_cluster_says(monkeypatch):
    for name in pod.NUMBERS:
        monkeypatch.delenv(name, raising=False)
    assert pod.worker_number(None) == 0 and pod.worker_number(3) == 3
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "5")
    assert pod.worker_number(None) == 5 and pod.worker_number(1) == 1


SMALL = [
    "data.synthetic.train_good=3", "data.synthetic.train_defective=3", "data.synthetic.good=2", "data.synthetic.defective=2",
    "data.categories=vase", "data.points=1024", "data.synthetic.scan_points=1500", "data.cloud_points=64", "data.views=3",
    "pointnet2.centroids=32,16,8,4", "stage1.epochs=2", "stage2.epochs=2", "eval.pictures=0", "save_every_s=0",
    "mesh.cpu_devices=1",
]  # fmt: skip


def grid(folder: Path, cache: Path, *more: str) -> list[str]:
    """The paper's modules, tiny."""
    command = [sys.executable, "-m", "experiments.sweep", "--config", "sweeps/modules.py", "--workdir", str(folder), *more]
    return [*command, *(f"--config.{change}" for change in SMALL), f"--config.cache={cache}"]


def table(folder: Path) -> str:
    subprocess.run([sys.executable, "-m", "experiments.tables", str(folder)], env=ENVIRONMENT, check=True, capture_output=True)
    return (folder / "table.md").read_text()


@pytest.mark.slow
def test_four_workers_one_killed_make_the_table_of_one(tmp_path):
    """sweeps/modules.py with one seed: by one worker, and by four of which one is killed while its row trains."""
    subprocess.run(grid(tmp_path / "one", tmp_path / "cache", "--seeds", "0"), env=ENVIRONMENT, check=True, capture_output=True)
    four, command = tmp_path / "four", grid(tmp_path / "four", tmp_path / "cache", "--seeds", "0", "--pod")
    workers = [subprocess.Popen([*command, "--worker", str(2 * number)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
               for number in range(4)]  # fmt: skip
    while not (trained := [path for path in four.glob("*/stage2/checkpoints/*") if path.name.isdecimal()]):
        assert all(worker.poll() is None for worker in workers)
        time.sleep(0.02)
    row = trained[0].parents[2].name
    (lease,) = (four / ".pod" / "leases" / row).glob("0*")
    child = json.loads(lease.read_text())["pid"]
    parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    (killed,) = [worker for worker in workers if worker.pid == parent]
    killed.kill()
    os.kill(child, signal.SIGKILL)
    assert not (four / row / "results.json").exists()
    said = {worker.pid: worker.communicate()[0] for worker in workers}
    assert [worker.returncode for worker in workers if worker is not killed] == [0, 0, 0]
    assert all("all 7 rows are complete" in text for pid, text in said.items() if pid != killed.pid)
    assert sum(text.count(f"{row}: O-AUROC") for text in said.values()) == 3  # every worker that is left tells of it
    assert table(four) == table(tmp_path / "one")
    for path in (tmp_path / "one").glob("*/results.json"):
        ours, theirs = (json.loads(file.read_text()) for file in (path, four / path.parent.name / "results.json"))
        assert ours["categories"] == theirs["categories"], path.parent.name
