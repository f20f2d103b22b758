"""Leases: one process at a time works on something, on any number of machines, and a lost one loses its hold after a while.

A lease is a folder of files `000001`, `000002`, ...; the holder is the owner named in the newest, which it writes again every few
seconds. Whoever finds the newest unchanged for the lease's term makes the next one; of several who try, one does
(`objects.Objects.create`). A holder that finds a newer one than its own has lost the lease. No clocks are compared: each process
measures by its own how long a file has not changed.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipelines import files, storage
from data_pipelines.objects import Objects

TERM_S = 60.0
BEATS = 4  # a term


class Lease:
    """A lease in `folder`, a path or what stands for a URL; not held yet.

    Args:
      term_s: how long after its last sign of life a holder counts as lost.
      lost: called, in a thread, where this process held the lease and has it no more.
    """

    def __init__(self, folder: Path, term_s: float = TERM_S, lost: Callable[[], None] = lambda: None):
        self.term_s, self._lost = term_s, lost
        self._files, self._seen, self._mine = Objects(folder), {}, None
        self._lost_sign: tuple[str, str, int] | None = None
        self._owner = {"id": uuid.uuid4().hex, **_here(), "term_s": term_s}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def holder(self) -> str | None:
        """Who holds it, in words; None where nobody does, or who did is gone."""
        names = self._files.names()
        found = self._read(names[-1]) if names else None
        return None if found is None or self._gone(names[-1], found) else f"process {found['pid']} on {found['host']}"

    def sign(self) -> str:
        """The last sign of life of a holder that was found lost: another process of this machine need not wait for it again."""
        return json.dumps(self._lost_sign) if self._lost_sign else ""

    def believe(self, sign: str) -> None:
        """Takes the holder whose last sign of life this is for lost."""
        if sign:
            self._seen[tuple(json.loads(sign))] = -float("inf")

    def take(self) -> bool:
        """Takes the lease if it is free, or its holder lost; from then on it is renewed until `release`."""
        names = self._files.names()
        found = self._read(names[-1]) if names else None
        if found is not None and not self._gone(names[-1], found):
            return False
        mine = f"{int(names[-1]) + 1 if names else 1:06d}"
        if not self._files.create(mine, self._content(0)):
            return False
        self._mine = mine
        if not self._alone(names, found):
            self._drop()
            return False
        if found is not None and not _ended(found):  # should it be slow and not lost, it sees this within a beat
            time.sleep(self.term_s / BEATS)
            if not self._is_mine():
                self._drop()
                return False
        for name in names:
            self._files.remove(name)
        self._stop.clear()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()
        return True

    def _alone(self, names: list[str], found: dict | None) -> bool:
        """Whether nobody else came meanwhile: who saw other files than we did may have made one before ours, or after it."""
        now = self._files.names()
        if now[-1:] != [self._mine] or set(now) - {*names, self._mine}:
            return False
        before = self._read(names[-1]) if names else None
        return before is None or (found is not None and before["id"] == found["id"])

    def _drop(self) -> None:
        mine, self._mine = self._mine, None
        found = self._read(mine)
        if found is not None and found["id"] == self._owner["id"]:
            self._files.remove(mine)

    def release(self) -> None:
        """Gives the lease back."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._mine is not None:
            with contextlib.suppress(Exception):  # of the storage: it runs out by itself
                self._drop()

    def _renew(self) -> None:
        beat, last = 0, time.monotonic()
        while not self._stop.wait(self.term_s / BEATS):
            late = time.monotonic() - last > self.term_s  # suspended, or the storage out of reach: others may have it
            try:
                if late or not self._is_mine():
                    self._mine = None
                    return self._lost()
                beat += 1
                self._files.write(self._mine, self._content(beat))
                last = time.monotonic()
            except Exception:  # of the storage: until the term is over, it may come back
                continue

    def _is_mine(self) -> bool:
        names = self._files.names()
        found = self._read(self._mine)
        return bool(names) and names[-1] == self._mine and found is not None and found["id"] == self._owner["id"]

    def _content(self, beat: int) -> bytes:
        return json.dumps(self._owner | {"beat": beat, "time": time.time()}).encode()

    def _read(self, name: str) -> dict | None:
        content = self._files.read(name)
        try:
            return None if content is None else json.loads(content)
        except ValueError:  # torn: none of ours
            return None

    def _gone(self, name: str, found: dict) -> bool:
        """Whether the holder ended, or has not renewed its file for a term, by this process's own clock."""
        sign = name, found["id"], found["beat"]
        since = self._seen.setdefault(sign, time.monotonic())
        gone = _ended(found) or time.monotonic() - since > found["term_s"]
        self._lost_sign = sign if gone else None
        return gone


def _here() -> dict:
    """This process, among all of all machines."""
    return {"host": socket.gethostname(), "machine": _machine(), "pid": os.getpid(), "started": _started(os.getpid())}


def _machine() -> str:
    """Names what process numbers are one list of: this start of the machine, and of it the container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: nothing is known of other processes
        return uuid.uuid4().hex


def _started(pid: int) -> str | None:
    """When a process of this machine was started; None where there is none of that number that runs."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _ended(found: dict) -> bool:
    """Whether a holder was a process of this machine that is no more."""
    return found["machine"] == _machine() and _started(found["pid"]) != found["started"]


@contextlib.contextmanager
def held(folder: Path, waiting: Callable[[str], None] = lambda who: None, term_s: float = TERM_S) -> Iterator[None]:
    """Holds the lease in `folder`; waits for it, saying once who has it."""
    lease, told = Lease(folder, term_s), False
    while not lease.take():
        if not told and (who := lease.holder()):
            waiting(who)
            told = True
        time.sleep(min(1.0, term_s / BEATS))
    try:
        yield
    finally:
        lease.release()


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the file `path` as a lock (`files.locked`); where it stands for one on a store, as a lease there."""
    if storage.store_of(path) is None:
        with files.locked(path, waiting):
            yield
    else:
        with held(path.with_name(f"{path.name}.lease"), lambda who: waiting()):
            yield


@contextlib.contextmanager
def working_in(path: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """For a path that stands for a URL: holds the work directory, brings it here, and takes back what the block made of it, also
    where it fails. Raises ValueError where another process works in it."""
    if storage.store_of(path) is None:
        yield
        return
    with held(path / ".lease", lambda who: say(f"{storage.named(str(path))} is in use by {who}; waiting")):
        storage.pull(path)
        storage.hold(path)
        try:
            yield
        finally:
            storage.let_go(path)
