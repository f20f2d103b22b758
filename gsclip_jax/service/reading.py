"""The processes that read scans (`reader.py`), as the service sees them: started, asked, and ended when they take too long."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from data_pipelines.records.objects import Recipe
from data_pipelines.scan import DataError
from gsclip_jax.inspection.prepare import Reading
from gsclip_jax.service.limits import Limits
from gsclip_jax.service.reader import NOT_A_SCAN

START = 300.0  # seconds that a process may take to start
LARGE = 1 << 30  # bytes of memory with which a process is not asked again


class ReadingProcess:
    """One process that reads scans, one at a time; a new one is started where it is gone.

    Args:
      recipe, reading: how scans are brought to what the model reads.
      folder: for the temporary files of its libraries.

    Fields:
      seconds: that a scan may take.
      pid: of the process; None where there is none.
    """

    def __init__(self, recipe: Recipe, reading: Reading, limits: Limits, folder: Path):
        self._spec = {"recipe": dataclasses.asdict(recipe), "reading": dataclasses.asdict(reading), "points": limits.points,
                      "seconds": limits.seconds, "memory": limits.memory}  # fmt: skip
        self.seconds, self._folder = limits.seconds, folder
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        return self._process and self._process.pid

    async def start(self) -> None:
        """Raises DataError: it cannot draw here, or ends at once."""
        env = dict(os.environ)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), env.get("PYTHONPATH")]))
        env |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}  # one reader, one core
        env |= {"LP_NUM_THREADS": "0", "TMPDIR": str(self._folder)}  # of the software GL, beside its caller
        # A group of its own: it is ended with all that it started.
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gsclip_jax.service.reader", env=env, start_new_session=True, stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            answer = await self._ask(self._spec, START)
        except BaseException:
            await self.end()
            raise
        if answer is None or "error" in answer:
            await self.end()
            raise DataError((answer or {}).get("error") or "the process that reads scans does not start")

    async def prepare(self, scan: Path, shown: str, out: Path) -> dict[str, Any]:
        """The answer of `reader.prepared`; {"status", "error"} also where it took too long or took the process down."""
        if self._process is None:
            await self.start()
        job = {"scan": str(scan), "shown": shown, "out": str(out)}
        try:
            answer = await self._ask(job, self.seconds)
        except TimeoutError:
            await self.end()
            return {"status": NOT_A_SCAN, "error": f"{shown}: reading it takes more than {self.seconds:g} seconds; thin it out"}
        except BaseException:
            await self.end()
            raise
        if answer is None:
            await self.end()
            return {"status": NOT_A_SCAN, "error": f"{shown}: the process that read it went down; export the scan again"}
        if self._memory() > LARGE:  # what libraries keep of a large scan
            await self.end()
        return answer

    async def _ask(self, said: dict, seconds: float) -> dict | None:
        """None where the process is gone."""
        process = self._process
        async with asyncio.timeout(seconds):
            try:
                process.stdin.write(json.dumps(said).encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
            except (BrokenPipeError, ConnectionResetError):
                line = b""
        return json.loads(line) if line.endswith(b"\n") else None

    def _memory(self) -> int:
        try:
            with open(f"/proc/{self._process.pid}/statm", encoding="ascii") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            return 0

    async def end(self) -> None:
        """Ends the process and all that it started, and waits for it."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        await process.wait()
