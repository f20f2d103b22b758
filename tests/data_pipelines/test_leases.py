"""Leases between real processes: one holder at a time, and what a lost one leaves is taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipelines import leases, storage
from data_pipelines.leases import Lease, held, locked
from data_pipelines.objects import Objects
from tests.object_store import BUCKET, s3_server

ROOT = Path(__file__).resolve().parents[2]
TERM = 1.6


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("here")) as environment:
        yield environment


@pytest.fixture(params=["path", "s3"])
def folder(request, tmp_path):
    """Where the lease lies; a path, or on a store."""
    if request.param == "path":
        return tmp_path / "lease"
    request.getfixturevalue("server")
    return storage.opened(f"s3://{BUCKET}/{tmp_path.name}") / "lease"


WORKER = """
import os, sys, time
from pathlib import Path
from data_pipelines import leases, storage
place, log, mode = sys.argv[1:4]
folder = storage.opened(place) / "lease"
def write(word):
    with open(log, "a") as file:
        file.write(f"{word} {os.getpid()}\\n")
if mode == "hold":
    lease = leases.Lease(folder, 1.6)
    assert lease.take()
    write("in")
    time.sleep(60)
for _ in range(int(mode)):
    with leases.held(folder, term_s=8.0):
        write("in")
        time.sleep(0.02)
        write("out")
"""


def start(folder: Path, log: Path, mode: str) -> subprocess.Popen:
    store = storage.store_of(folder)
    place = store.url if store else str(folder.parent)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", WORKER, place, str(log), mode], env=env)


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_several_processes_never_hold_it_at_once(folder, tmp_path):
    log = tmp_path / "log"
    workers = [start(folder, log, "4") for _ in range(3)]
    assert [worker.wait(60) for worker in workers] == [0, 0, 0]
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 24 and len({pid for _, pid in lines}) == 3
    assert all(a == ["in", b[1]] and b[0] == "out" for a, b in zip(lines[::2], lines[1::2], strict=True))
    assert Objects(folder).names() == []


def test_what_a_killed_process_of_this_machine_held_is_free_at_once(folder, tmp_path):
    worker = start(folder, tmp_path / "log", "hold")
    until((tmp_path / "log").exists)
    lease = Lease(folder, term_s=3600)
    assert not lease.take() and lease.holder() == f"process {worker.pid} on {leases.socket.gethostname()}"
    worker.kill()
    worker.wait()
    assert lease.holder() is None and lease.take()
    lease.release()


def test_what_a_process_of_another_machine_holds_runs_out_only_if_it_is_not_renewed(tmp_path, monkeypatch):
    folder = tmp_path / "lease"
    worker = start(folder, tmp_path / "log", "hold")
    until((tmp_path / "log").exists)
    monkeypatch.setattr(leases, "_machine", lambda: "elsewhere")  # nothing is known of its processes
    lease = Lease(folder, TERM)
    end = time.monotonic() + 1.5 * TERM
    while time.monotonic() < end:  # it renews
        assert not lease.take()
        time.sleep(0.1)
    worker.kill()
    worker.wait()
    began = time.monotonic()
    until(lease.take)
    assert time.monotonic() - began > TERM / 2
    lease.release()


def test_a_suspended_holder_learns_that_it_lost_the_lease(tmp_path, monkeypatch):
    """Its process is stopped for longer than the term, and goes on: somebody else has it."""
    program = """
import os, sys, time
from pathlib import Path
from data_pipelines.leases import Lease
lease = Lease(Path(sys.argv[1]), 1.6, lost=lambda: os._exit(75))
assert lease.take()
print("in", flush=True)
time.sleep(60)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "l")], env=env, stdout=subprocess.PIPE)
    assert worker.stdout.readline() == b"in\n"
    worker.send_signal(signal.SIGSTOP)
    lease = Lease(tmp_path / "l", TERM)
    until(lease.take)
    worker.send_signal(signal.SIGCONT)
    assert worker.wait(20) == 75
    assert not Lease(tmp_path / "l", TERM).take()  # what it was told does not concern the new one
    lease.release()


def test_a_lease_made_meanwhile_by_who_saw_less_is_no_second_one(tmp_path):
    """The old holder ends while two look: one has seen its file, the other the empty folder, and is quicker."""
    old, slow, quick = (Lease(tmp_path / "l") for _ in range(3))
    assert old.take()
    seen, content = old._files.names(), old._files.read("000001")
    old.release()
    assert quick.take()
    names, read = [seen], [content]
    slow._files.names = lambda call=slow._files.names: names.pop() if names else call()
    slow._files.read = lambda name, call=slow._files.read: read.pop() if read else call(name)
    slow._gone = lambda *_: True
    assert not slow.take() and not names and not read
    assert quick._is_mine()
    quick.release()


def test_a_lock_is_a_lock_on_paths_and_a_lease_on_a_store(folder):
    inside, waited = [], []

    def work():
        with locked(folder / "file.lock", lambda: waited.append(1)):
            inside.append(1)
            time.sleep(0.1)
            assert inside.pop() and not inside

    folder.mkdir(parents=True, exist_ok=True)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waited and not inside


def test_the_file_says_who_and_when(tmp_path):
    with held(tmp_path / "l"):
        (file,) = (tmp_path / "l").glob("0*")
        found = json.loads(file.read_text())
    assert found["pid"] == os.getpid() and abs(found["time"] - time.time()) < 60 and found["term_s"] == leases.TERM_S
    assert list((tmp_path / "l").iterdir()) == []
