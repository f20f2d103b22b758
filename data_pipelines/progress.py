"""How far a long piece of work is: one line with the time left, for every command and every phase of a run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

EVERY_S = 5.0  # between two lines; on a terminal one line is rewritten twice a second

_NAME: ContextVar[str] = ContextVar("name", default="")
speaks = True  # False in all processes of a run but the first


@contextmanager
def named(name: str) -> Iterator[None]:
    """Every progress line within says `name` first: which of several runs is under way."""
    token = _NAME.set(f"{_NAME.get()}{name} ")
    try:
        yield
    finally:
        _NAME.reset(token)


# Not tqdm, nor rich: both reckon the time left from the start, so that a first step's compilation is extrapolated over all;
# in a log file tqdm writes one endless line of carriage returns and rich nothing before the end. A log is where most runs are
# watched. With either, this class would stay (when to speak, what the time left follows from); the two lines that draw would go.
class Progress:
    """Says how far the work is, how fast, and for how long still; sparse lines, or one that is rewritten on a terminal.

    The time left follows from what came after the first `update` past `done`: before it, programs are compiled and workers start.

    Args:
      what: 'stage1' (shown as 'stage1 3/10'), or with two places, 'rendering: {} of {} objects'.
      total: steps or objects.
      say: takes each line; None for standard error.
      done: how many were done before this call.
      warm: how many further ones say nothing of the speed.
    """

    def __init__(self, what: str, total: int, say: Callable[[str], None] | None = None, done: int = 0, warm: int = 0):
        self._what = _NAME.get() + (what if "{}" in what else what + " {}/{}")
        self._total, self._say, self._start, self._warm = total, say, done, warm
        self._live = say is None and sys.stderr.isatty()
        self._every = 0.5 if self._live else EVERY_S
        self._said = time.monotonic() - (self._every if self._live else 0.0)
        self._first: tuple[float, int] | None = None  # of the first update that the speed is reckoned from: when, how much

    def update(self, done: int, note: str = "") -> None:
        """`done` of the total are done; `note` is shown behind them."""
        if not speaks and self._say is None:
            return
        now = time.monotonic()
        if self._say is None or done > self._start:
            self._first = self._first or (now, done)
        finished = done >= self._total
        if not finished and now - self._said < self._every:
            return
        self._said, left = now, ""
        if self._first and self._first[1] < done and done >= self._start + self._warm and (self._say or not finished):
            each = max(now - self._first[0], 1e-9) / (done - self._first[1])
            rate = f", {1 / each:.1f} a second" if each < 1 else f", {each:.1f} s each"
            left = f"{rate if self._say else ''}, {span(each * (self._total - done))} left"
        line = self._what.format(done, self._total) + left + (f"  {note}" if note else "")
        if self._say is not None:
            return self._say(line)
        end = "\n" if finished or not self._live else ""
        print(("\r\033[K" if self._live else "") + line, end=end, file=sys.stderr, flush=True)


def span(seconds: float) -> str:
    """45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
