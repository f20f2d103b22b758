"""Where numbers go while a run is under way: one JSON object a line, a progress line, TensorBoard where it is installed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path


class MetricWriter:
    """Appends {"step", "stage", ...} lines to `path`; a resumed run drops the lines it is about to write again.

    Args:
      path: metrics.jsonl of the work directory.
      tensorboard: also write event files beside it, if tensorflow's or torch's summary writer can be imported.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._tensorboard = _tensorboard_writer(self.path.parent / "tensorboard")

    def rewind(self, stage: str, step: int) -> None:
        """Removes the lines of `stage` after `step`, and a torn last line: they belong to a killed run."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if not (row.get("stage") == stage and row.get("step", 0) > step):
                kept.append(line + "\n")
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)

    def write(self, stage: str, step: int, values: dict[str, float]) -> None:
        row = {"stage": stage, "step": step, **{name: float(f"{value:.6g}") for name, value in values.items()}}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        if self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{stage}/{name}", value, step)


def _tensorboard_writer(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:  # optional: the JSON lines hold everything
        return None
    return SummaryWriter(str(folder))


_NAME: ContextVar[str] = ContextVar("name", default="")


@contextmanager
def named(name: str) -> Iterator[None]:
    """Every progress line within says `name` first: which of several runs is under way."""
    token = _NAME.set(f"{_NAME.get()}{name} ")
    try:
        yield
    finally:
        _NAME.reset(token)


class Progress:
    """One line a step or object with the time left; rewritten in place on a terminal, sparse otherwise.

    The time left follows from what came after the first `update`: before it, programs are compiled and workers started.
    """

    def __init__(self, what: str, total: int, every_s: float = 5.0):
        self.what, self.total = _NAME.get() + what, total
        self._live = sys.stderr.isatty()
        self._every = 0.5 if self._live else every_s
        self._last = time.monotonic() - (self._every if self._live else 0.0)
        self._first: tuple[float, int] | None = None  # of the first update: when, and how much was done

    def update(self, done: int, note: str = "") -> None:
        now = time.monotonic()
        self._first = self._first or (now, done)
        finished = done >= self.total
        if not finished and now - self._last < self._every:
            return
        self._last = now
        began, before = self._first
        time_left = ""
        if before < done < self.total:
            time_left = f", {_clock((self.total - done) * (now - began) / (done - before))} left"
        line = f"{self.what} {done}/{self.total}{time_left}{'  ' + note if note else ''}"
        end = "\n" if finished or not self._live else ""
        print(("\r\033[K" if self._live else "") + line, end=end, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    seconds = round(seconds)
    return f"{seconds} s" if seconds < 100 else f"{seconds // 60} min {seconds % 60:02d} s"
