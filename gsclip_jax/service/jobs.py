"""Scans on their way: a bounded queue, the processes that read, the thread that scores, results that go after a time.

All of it runs in one event loop; the model alone has a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gsclip_jax.inspection.prepare import Reading
from gsclip_jax.service.folders import Folder
from gsclip_jax.service.limits import Limits
from gsclip_jax.service.metrics import Metrics
from gsclip_jax.service.reading import ReadingProcess
from gsclip_jax.service.scoring import Scorer, warm_scan

SWEEP = 1.0  # seconds between looks at what is to go
LOG = logging.getLogger("gsclip.serve")


@dataclasses.dataclass(eq=False)
class Job:
    """A scan and what became of it.

    Fields:
      id: unguessable: who has it may see the result.
      name: the scan's, one line; of no file.
      folder: all of its files.
      state: waiting, working, done or failed.
      status, error: of a failed one, as HTTP says it, and one line.
      parts: of a finished one, what `part_files.row_of` says.
      until: `time.monotonic` when it goes, once it has ended.
    """

    id: str
    name: str
    folder: Path
    scan: Path
    state: str = "waiting"
    status: int = 202
    error: str = ""
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    since: float = dataclasses.field(default_factory=time.monotonic)
    until: float = 0.0
    bytes: int = 0
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    page: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)


class Full(Exception):
    """No room for another scan."""


class Jobs:
    """The work of a service.

    Args:
      load: makes the scorer; called in the thread that keeps it.
      reading: how scans are read.
      readers: processes that read.

    Fields:
      folder: all files, of jobs and of uploads; it goes when the service ends.
      scorer: None until the model is loaded.
      ready: whether the model is compiled, and a scan went all the way.
      uploading: bodies that come in; under_way: scans that are read, scored, or between the two.
      readers: the processes that read.
    """

    def __init__(self, load: Callable[[Path], Scorer], reading: Reading, limits: Limits, readers: int, metrics: Metrics):
        self._load, self._reading, self.limits, self._count, self.metrics = load, reading, limits, readers, metrics
        self._jobs: dict[str, Job] = {}
        self._queue: asyncio.Queue[Job] = asyncio.Queue(limits.queue)
        self._read: asyncio.Queue[Job] = asyncio.Queue(1)  # read, to be scored
        self._model = ThreadPoolExecutor(1, "model")
        self._tasks: list[asyncio.Task] = []
        self.readers: list[ReadingProcess] = []
        self.under_way = self.uploading = 0
        self._pace = 2.0  # seconds a scan takes, as it was of late
        self.scorer: Scorer | None = None
        self.ready, self.stopping = False, False
        self.on_ready: Callable[[], None] = lambda: None
        self._folder = Folder()
        metrics.queue.set(limits.queue)

    # ---- beginning and end ----

    async def start(self) -> None:
        """Loads the model, has it compiled, and begins to work. Raises ValueError: no such model, or nothing can draw here."""
        loop = asyncio.get_running_loop()
        self.scorer = await loop.run_in_executor(self._model, self._load, self.folder)
        recipe = self.scorer.detector.recipe
        self.readers = [ReadingProcess(recipe, self._reading, self.limits, self.folder) for _ in range(self._count)]
        warm = self._made("warm.npy")
        warm_scan(warm.scan)
        await self._prepare(self.readers[0], warm)
        if not warm.error:
            await self._score(warm)
        if warm.error:
            raise ValueError(f"the service cannot score its own test scan: {warm.error}")
        self._forget(warm)
        self._tasks = [asyncio.create_task(self._reads(reader)) for reader in self.readers]
        self._tasks += [asyncio.create_task(self._scores()), asyncio.create_task(self._sweeps())]
        self.ready = True
        self.metrics.ready.set(1)
        self.on_ready()

    async def finish(self) -> None:
        """Takes no more, turns down what waits, and returns when what is under way has ended."""
        self.stopping = True
        self.metrics.ready.set(0)
        while not self._queue.empty():
            job = self._queue.get_nowait()
            self._failed(job, 503, f"{job.name}: the service is stopping; send it again later")
        while self.under_way:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Ends every process and removes every file."""
        self.stopping, self.ready = True, False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for job in self._jobs.values():
            job.ended.set()
        await asyncio.gather(*(reader.end() for reader in self.readers))
        await asyncio.to_thread(self._model.shutdown, cancel_futures=True)
        self.remove()

    def remove(self) -> None:
        """Removes every file."""
        self._folder.remove()

    # ---- from outside ----

    @property
    def folder(self) -> Path:
        return self._folder.path

    def upload(self) -> Path:
        """A new folder for a body that comes in; whoever asks for it removes it, or gives it to `add`."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    @contextlib.contextmanager
    def upload_counted(self) -> Iterator[None]:
        """While a body comes in."""
        self.uploading += 1
        self.metrics.uploads.set(self.uploading)
        try:
            yield
        finally:
            self.uploading -= 1
            self.metrics.uploads.set(self.uploading)

    @property
    def full(self) -> bool:
        return self._queue.full()

    @property
    def waiting(self) -> int:
        """Scans in the queue."""
        return self._queue.qsize()

    @property
    def retry_after(self) -> int:
        """Seconds after which there may be room: a few scans of those that wait are done."""
        return max(1, min(60, round(self._pace * (1 + self._queue.qsize() / 4))))

    def add(self, folder: Path, scan: Path, name: str) -> Job:
        """Has a scan inspected; its folder is the job's from now on. Raises Full."""
        job = Job(secrets.token_urlsafe(24), name, folder, scan)
        try:
            self._queue.put_nowait(job)
        except asyncio.QueueFull:
            raise Full from None
        self._jobs[job.id] = job
        self.metrics.waiting.set(self._queue.qsize())
        return job

    def get(self, name: str) -> Job | None:
        """The job with this id, unless it is gone."""
        job = self._jobs.get(name)
        return None if job is None or (job.until and job.until <= time.monotonic()) else job

    def left(self, job: Job) -> int:
        """Seconds that a result has left."""
        return max(0, round(job.until - time.monotonic()))

    def ahead(self, job: Job) -> int:
        """Scans that come before one that waits."""
        return sum(other.state == "waiting" and other.since < job.since for other in self._jobs.values())

    def drop(self, job: Job) -> None:
        """Removes a result; nobody wants one that has not ended."""
        if job.state in ("done", "failed"):
            self._forget(job)
        elif job.state == "waiting":
            self._failed(job, 410, f"{job.name}: given up")

    # ---- work ----

    def _made(self, name: str) -> Job:
        folder = self.upload()
        return Job("", name, folder, folder / name)

    async def _reads(self, reader: ReadingProcess) -> None:
        while True:
            job = await self._queue.get()
            self.metrics.waiting.set(self._queue.qsize())
            if job.state != "waiting":  # given up
                continue
            async with self._busily():
                await self._prepare(reader, job)
                if job.state == "working":
                    self.under_way += 1  # until it is scored
                    await self._read.put(job)

    async def _prepare(self, reader: ReadingProcess, job: Job) -> None:
        begun = time.monotonic()
        self._took("waiting", job, job.since)
        job.state = "working"
        try:
            answer = await reader.prepare(job.scan, job.name, job.folder)
        except Exception:
            LOG.exception("reading a scan")
            answer = {"status": 500, "error": f"{job.name}: the service could not read it; its log says why"}
        job.scan.unlink(missing_ok=True)
        self._took("read", job, begun)
        if "error" in answer:
            self._failed(job, answer["status"], answer["error"])

    async def _scores(self) -> None:
        while True:
            job = await self._read.get()
            try:
                await self._score(job)
            finally:
                self.under_way -= 1

    async def _score(self, job: Job) -> None:
        begun = time.monotonic()
        loop = asyncio.get_running_loop()
        try:
            job.parts = await loop.run_in_executor(self._model, self.scorer.score, job.folder, job.scan, job.name)
        except Exception as error:
            LOG.exception("scoring a scan")
            no_space = isinstance(error, OSError) and error.errno == errno.ENOSPC
            told = "no room on its disk" if no_space else "the service could not score it; its log says why"
            return self._failed(job, 507 if no_space else 500, f"{job.name}: {told}")
        self._took("scored", job, begun)
        job.status, job.state = 200, "done"
        job.bytes = sum(path.stat().st_size for path in job.folder.rglob("*") if path.is_file())
        self._end(job, "done")

    @contextlib.asynccontextmanager
    async def _busily(self):
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def _failed(self, job: Job, status: int, error: str) -> None:
        job.state, job.status, job.error = "failed", status, error
        shutil.rmtree(job.folder, ignore_errors=True)
        self._end(job, f"failed {status}")

    def _took(self, step: str, job: Job, begun: float) -> None:
        if not job.id:  # the service's own test scan
            return
        took = time.monotonic() - begun
        self.metrics.seconds.labels(step).observe(took)
        if step == "scored":
            self._pace += 0.2 * (took - self._pace)

    def _end(self, job: Job, outcome: str) -> None:
        job.until = time.monotonic() + self.limits.keep
        if job.id:
            self.metrics.scans.labels(outcome).inc()
            for row in job.parts:
                self.metrics.parts.labels(row["verdict"]["kind"] if row["verdict"] else "none").inc()
        job.ended.set()

    # ---- what goes ----

    async def _sweeps(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.sweep()

    def sweep(self) -> None:
        """Removes results whose time is over, and the oldest where there are more than the limits say."""
        ended = [job for job in self._jobs.values() if job.until]
        ended.sort(key=lambda job: job.until)
        count, size, now = len(ended), sum(job.bytes for job in ended), time.monotonic()
        for job in ended:
            if job.until > now and count <= self.limits.results and size <= self.limits.disk:
                break
            self._forget(job)
            count, size = count - 1, size - job.bytes
        self.metrics.results.set(count)
        self.metrics.disk.set(size)

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job.id, None)
        shutil.rmtree(job.folder, ignore_errors=True)
