"""Processes that render: each is given one scan after another and leaves a part file of it, or the reason why there is none."""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

from data_pipelines.progress import Progress
from data_pipelines.scan import DataError, Sample


def _start_worker(spec: dict) -> subprocess.Popen:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), env.get("PYTHONPATH")]))
    env |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}  # one worker, one core
    env["LP_NUM_THREADS"] = "0"  # of the software GL, beside its caller
    process = subprocess.Popen([sys.executable, "-m", f"{__package__}.objects"], env=env, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(json.dumps(spec) + "\n")
    return process


def render_parts(spec: dict, samples: list[Sample], missing: list[int], workers: int, progress) -> None:
    """Gives the missing rows to worker processes, one at a time each.

    A scan that cannot be read leaves its `.bad` file and, with spec["skip_bad"], nothing else happens.

    Raises:
      DataError: the first error, once all have stopped.
    """
    rows: queue.Queue[int] = queue.Queue()
    for row in missing:
        rows.put(row)
    done: queue.Queue[Exception | None] = queue.Queue()
    processes = [_start_worker(spec) for _ in range(workers)]

    def feed(process: subprocess.Popen) -> None:
        tail: list[str] = []
        threading.Thread(target=lambda: [tail.append(line) or tail[:-5].clear() for line in process.stderr], daemon=True).start()
        while True:
            try:
                row = rows.get_nowait()
            except queue.Empty:
                return
            sample = samples[row]
            try:
                process.stdin.write(json.dumps({"row": row, "sample": dataclasses.asdict(sample)}) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except (BrokenPipeError, ValueError):
                answer = ""
            if not answer:
                time.sleep(0.2)  # the last words of a worker that went down
                said = " ".join(line.strip() for line in tail[-3:])
                done.put(DataError(f"{sample.path}: the rendering process stopped at this scan ({said or 'it said nothing'})"))
                return
            answer = json.loads(answer)
            error = answer.get("error") or (None if spec["skip_bad"] else answer.get("bad"))
            done.put(DataError(error) if error else None)
            if error:
                return

    threads = [threading.Thread(target=feed, args=(process,), daemon=True) for process in processes]
    say = Progress("rendering: {} of {} objects", len(samples), progress, len(samples) - len(missing), workers)
    try:
        for thread in threads:
            thread.start()
        for finished in range(1, len(missing) + 1):
            error = done.get()
            if error is not None:
                raise error
            say.update(len(samples) - len(missing) + finished)
    finally:
        for process in processes:
            process.kill()
            process.wait()
