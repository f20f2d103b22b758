"""A grid over a pod: any number of workers, on one machine or on many, each takes the next row that nobody has.

Every row that runs has a lease beside the rows (`FOLDER/.pod/leases/ROW`, `data_pipelines.leases`), which the row's own process
holds. A lost worker's row is taken over when its lease runs out, and goes on from its checkpoint. Workers need not know of each
other.
"""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field

from data_pipelines.leases import Lease
from data_pipelines.objects import Objects
from experiments.grid import LOG, Row, bring, last_words, line
from gsclip_jax.parts import ConfigError

TAKEN = 75  # exit status of a row's process that found the row leased, or lost its lease
LOOK_S = 5.0  # between two looks at rows that others run
# The workers' numbers, where a cluster gives them: TPU pod, SLURM, Kubernetes.
NUMBERS = ("TPU_WORKER_ID", "SLURM_PROCID", "JOB_COMPLETION_INDEX")
# Chips of a process -> how they lie (x, y, z), as libtpu wants to know it.
BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}


# ---- which devices a row has


@dataclass(frozen=True)
class Share:
    """What one row at a time runs on: the environment of its process, and keys of its configuration."""

    environment: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...] = ()


def accelerators() -> tuple[str, list[str]]:
    """'tpu', 'gpu' or 'cpu', and the numbers of the devices of this machine that we may use; found without starting JAX."""
    wanted = os.environ.get("JAX_PLATFORMS", "").lower().split(",")[0]
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if wanted in ("", "tpu") and chips and importlib.util.find_spec("libtpu"):
        return "tpu", _visible("TPU_VISIBLE_CHIPS", len(chips))
    cards = glob.glob("/proc/driver/nvidia/gpus/*")
    if wanted in ("", "cuda", "gpu") and cards:
        return "gpu", _visible("CUDA_VISIBLE_DEVICES", len(cards))
    return "cpu", []


def _visible(name: str, count: int) -> list[str]:
    given = os.environ.get(name)
    return [str(number) for number in range(count)] if given is None else [word for word in given.split(",") if word]


def shares(chips: int | None, jobs: int, found: tuple[str, list[str]] | None = None) -> list[Share]:
    """The devices of this machine, `chips` for each row at a time; without `chips` all of them for each of `jobs` rows.

    Raises:
      ConfigError: so many chips are not there, or do not make a mesh.
    """
    if chips is None:
        return [Share()] * jobs
    kind, ids = accelerators() if found is None else found
    if chips < 1:
        raise ConfigError(f"--chips-per-row {chips}: one at least")
    if kind == "cpu":  # virtual devices
        return [Share(keys=(f"--config.mesh.cpu_devices={chips}",))] * jobs
    if chips > len(ids):
        raise ConfigError(f"--chips-per-row {chips}: this machine has {len(ids)}; a row stays on one machine here")
    groups = [ids[first : first + chips] for first in range(0, len(ids) - chips + 1, chips)]
    if kind == "gpu":
        return [Share({"CUDA_VISIBLE_DEVICES": ",".join(group)}) for group in groups]
    if len(groups) == 1 and len(ids) == chips:
        return [Share(_alone(chips) if chips in BOUNDS else {})]
    if chips not in BOUNDS:
        raise ConfigError(f"--chips-per-row {chips}: TPU chips are shared by {', '.join(map(str, BOUNDS))}, or whole machines")
    return [Share({**_alone(chips), "TPU_VISIBLE_CHIPS": ",".join(group)}) for group in groups]


def _alone(chips: int) -> dict[str, str]:
    """A process that is no part of the pod: its chips are all there are."""
    return {
        "TPU_PROCESS_BOUNDS": "1,1,1", "TPU_CHIPS_PER_PROCESS_BOUNDS": BOUNDS[chips], "TPU_WORKER_ID": "0",
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_SKIP_MDS_QUERY": "1",
    }  # fmt: skip


def worker_number(given: int | None) -> int:
    """Which worker this is: as told, or as the cluster says, or 0. It decides nothing but with which row a worker begins."""
    words = [os.environ.get(name, "") for name in NUMBERS]
    return given if given is not None else next((int(word) for word in words if word.isdecimal()), 0)


# ---- one worker


def lease_of(row: Row, **settings) -> Lease:
    return Lease(row.workdir.parent / ".pod" / "leases" / row.label, **settings)


class Worker:
    """Runs rows that nobody has until every row is complete or failed, whoever ran it.

    Args:
      command: runs one row, with `--row I --leased SIGN` and the keys of its share.
      worker: with which row it begins.
      say: gets a line for each row.
      term_s: of the rows' leases.
    """

    def __init__(self, rows: list[Row], command: list[str], places: list[Share], worker: int = 0,
                 say: Callable[[str], None] = print, term_s: float | None = None, look_s: float = LOOK_S):  # fmt: skip
        first = worker * len(places) % max(len(rows), 1)
        self._rows, self._command, self._places = [*rows[first:], *rows[:first]], command, places
        self._say, self._look_s = say, look_s
        settings = {} if term_s is None else {"term_s": term_s}
        self._leases = {row.number: lease_of(row, **settings) for row in rows}
        self._notes = Objects(rows[0].workdir.parent / ".pod" / "failed") if rows else None
        self._began, self._mutex = time.time(), threading.Lock()
        self._done: set[int] = set()
        self._failed: dict[int, str] = {}
        self._here: set[int] = set()  # that run in this worker
        self._ended: dict[int, int] = {}  # how often a row was ended by a signal
        self._children: list[subprocess.Popen] = []
        self._looked = False

    def run(self) -> list[Row]:
        """Returns the rows that failed."""
        pool = ThreadPoolExecutor(len(self._places))
        try:
            for future in as_completed([pool.submit(self._serve, place) for place in self._places]):
                future.result()
        except BaseException:
            self._rows = []  # nothing is begun any more
            for child in self._children:
                child.terminate()  # they keep their checkpoints, and give their leases back
            raise
        finally:
            pool.shutdown(wait=True)
        return [row for row in self._rows if row.number in self._failed]

    def _serve(self, place: Share) -> None:
        while self._rows:
            row, sign = self._next()
            if row is not None:
                try:
                    self._run(row, sign, place)
                finally:
                    with self._mutex:
                        self._here.discard(row.number)
            elif sign == "over":
                return
            else:
                time.sleep(self._look_s)

    def _next(self) -> tuple[Row | None, str]:
        """A row that nobody has, and what was seen of its lost holder; None and "over" where no row is left; None and "" where
        others run what is left."""
        with self._mutex:
            free = self._look()
            if free:
                self._here.add(free[0].number)
                return free[0], self._leases[free[0].number].sign()
            return None, "" if any(self._pending(row) for row in self._rows) else "over"

    def _pending(self, row: Row) -> bool:
        return row.number not in self._done and row.number not in self._failed

    def _look(self) -> list[Row]:
        """The rows that nobody has, after a look at what the other workers finished, and what failed with them."""
        free = [row for row in self._rows if row.number not in self._done | self._here
                and self._leases[row.number].holder() is None]  # fmt: skip
        if not free:
            return []
        # Of a row that runs on this machine the copy here is ahead of the store.
        bring(free)
        for row in free:
            if row.results() is not None:
                self._done.add(row.number)
                self._failed.pop(row.number, None)
                self._say(f"{line(row)}  ({'by another worker' if self._looked else 'was there'})")
            elif row.number not in self._failed and (note := self._notes.read(row.label)):
                about = json.loads(note)
                if about["time"] > self._began:  # older ones are tried again
                    self._failed[row.number] = about["why"]
                    self._say(f"{row.label}: FAILED with another worker: {about['why']}")
        self._looked = True
        return [row for row in free if self._pending(row)]

    def _run(self, row: Row, sign: str, place: Share) -> None:
        start = time.monotonic()
        row.workdir.mkdir(parents=True, exist_ok=True)
        with (row.workdir / LOG).open("ab") as log:
            alone = "--config.mesh.processes=1"  # no part of a cluster's one run
            command = [*self._command, *place.keys, alone, "--row", str(row.number), "--leased", sign]
            child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **place.environment})
            self._children.append(child)
            status = child.wait()
        if status == TAKEN or not self._rows:
            return
        bring([row])
        if status == 0 and row.results() is not None:
            self._done.add(row.number)
            return self._say(line(row, time.monotonic() - start))
        if status < 0 and self._ended.setdefault(row.number, 0) < 1:  # killed from outside: it goes on from its checkpoint
            self._ended[row.number] += 1
            return self._say(f"{row.label}: ended by signal {-status}; it is tried again")
        self._failed[row.number] = why = f"status {status}: {last_words(row)}"
        self._notes.write(row.label, json.dumps({"time": time.time(), "why": why}).encode())
        self._say(f"{row.label}: FAILED, {why}")
        return None


# ---- the process of a row


def run_leased(row: Row, sign: str, work: Callable[[Row], int]) -> int:
    """Runs a row in this process while it holds the row's lease. The process ends at once, with a line, where it loses the lease
    or its worker is gone.

    Args:
      sign: what the worker saw of a holder that it found lost.

    Returns:
      The exit status of `work`, or TAKEN.
    """
    lease = lease_of(row, lost=lambda: _end(f"the lease of {row.label} was lost; another worker has it", TAKEN))
    lease.believe(sign)
    worker = os.getppid()

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(1.0)
        _end("the worker is gone; its row is free", TAKEN)

    threading.Thread(target=watch, daemon=True).start()
    if not lease.take():
        print(f"{row.label} is leased by {lease.holder()}", flush=True)
        return TAKEN
    try:
        bring([row])
        return 0 if row.results() else work(row)  # another worker may have finished it while this process started
    finally:
        lease.release()


def _end(why: str, status: int) -> None:
    print(f"error: {why}", flush=True)
    os._exit(status)
