"""How every command of the project ends: an exit status, and one line for whatever can be expected to go wrong."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from data_pipelines import storage

STOPPED = "stopped; the same command continues where this one was"
LONGEST = 4000  # characters of a message: names come out of files and may have any length


def plain(text: object, longest: int = LONGEST) -> str:
    """One line of printable characters: what a file names may hold line ends and terminal commands."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[: longest + 1])
    return text if len(text) <= longest else f"{text[:longest]}..."


class Parser(argparse.ArgumentParser):
    """argparse with wrong options told in one line (exit status 2), and no guessing of shortened ones."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, plain(f"error: {message} (see {self.prog} --help)") + "\n")


def command(main: Callable[[], int | None]) -> int:
    """The exit status of `main`, run as a program of its own: call it from `if __name__ == "__main__"` alone.

    A reader that has seen enough and closes the pipe (`| head -1`) is no error: the rest of the output is dropped, the work is
    done all the same.
    """
    _outlive_readers()
    return guarded(main)


def guarded(work: Callable[[], int | None], in_options: Callable[[str], str] = str) -> int:
    """The exit status of `work`, with every expected failure as one line on standard error; GSCLIP_TRACEBACK=1 shows where.

    Args:
      in_options: says a message in the options of the command.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):  # ignored in a shell's background; None: somebody else's, not of Python
            signal.signal(number, _stop)
    try:
        with interruptible():
            return work() or 0
    except KeyboardInterrupt:
        print(f"\n{STOPPED}", file=sys.stderr)
        return 130
    except (ValueError, ArithmeticError, OSError, RuntimeError, AssertionError, MemoryError) as error:
        line = _line(error)
        if line is None or os.environ.get("GSCLIP_TRACEBACK"):
            raise
        print(plain(f"error: {storage.named(' '.join(in_options(line).split()))}"), file=sys.stderr)
        return 1
    finally:
        _asked.clear()
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)


_asked: list[int] = []  # signals that asked to stop
_holding: list[bool] = []  # blocks that ask `stopping` themselves


def _stop(number, _):
    _asked.append(number)
    if not _holding or len(_asked) > 1:
        raise KeyboardInterrupt


@contextlib.contextmanager
def holding() -> Iterator[None]:
    """Inside, a first signal to stop only makes `stopping` true, so that what is under way can be saved; a second one stops at
    once."""
    _holding.append(True)
    try:
        yield
    finally:
        _holding.pop()


def stopping() -> bool:
    """Whether a signal asked the command to stop. The exception is lost where it meets a callback of JAX: long work asks."""
    return bool(_asked)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt also for what a signal broke inside, as it reaches the processes that were started, too."""
    try:
        yield
    except Exception as error:
        if stopping():
            raise KeyboardInterrupt from error
        raise


def _line(error: Exception) -> str | None:
    """What to say of an error; None for one that is a fault of the program."""
    text = str(error)
    if isinstance(error, OSError):
        hint = "; free some space and run the same command again" if error.errno == 28 else ""
        return f"{error.strerror or error}{': ' + str(error.filename) if error.filename else ''}{hint}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:  # of the host, or of JAX's device
        first = text.partition("\n")[0] or "no memory left"
        return (
            f"out of memory ({first}); smaller batches (config.stage1.batch_size, config.stage2.batch_size, "
            "config.eval.batch_size), config.stage2.micro_batch=1 or config.clip.remat=True"
        )
    if isinstance(error, RuntimeError | AssertionError):
        return _no_platform(error)
    return text if isinstance(error, ValueError | FloatingPointError) else None


def _no_platform(error: Exception) -> str | None:
    """Of JAX's "Unable to initialize backend 'cuda'" (or, without a plug-in for it, a bare assertion in the same place): what
    was asked for, what there is, and what to set."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or not last.tb_frame.f_code.co_filename.endswith("xla_bridge.py"):
        return None
    jax = sys.modules["jax"]  # whose error this is
    asked = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    there = ", ".join(sorted({device.platform for device in jax.devices()}))
    why = str(error).partition("(you may need")[0].strip() or "JAX finds none"
    return f"JAX_PLATFORMS={asked}: no such device here ({why}); there is: {there}; set JAX_PLATFORMS={there}, or unset it"


class _Outliving(io.FileIO):
    """A stream whose reader may go away: what is written from then on is dropped."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def _outlive_readers() -> None:
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        if old is None:  # closed by whoever started the program
            continue
        old.flush()
        raw = io.BufferedWriter(_Outliving(old.fileno(), "w", closefd=False))
        line_buffering = old.line_buffering or name == "stderr"
        setattr(sys, name, io.TextIOWrapper(raw, encoding=old.encoding, errors=old.errors, line_buffering=line_buffering))
