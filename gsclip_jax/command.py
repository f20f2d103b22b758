"""What the commands of this package have in common: errors of one line, an exit status, and a quiet end of a closed pipe."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from gsclip_jax.runtime.keys import plain


class Parser(argparse.ArgumentParser):
    """argparse with wrong options told in one line (exit status 2), and no guessing of shortened ones."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        self.exit(2, plain(f"error: {message} (see {self.prog} --help)") + "\n")


def guarded(run: Callable[[], int], errors: tuple[type[Exception], ...] = (ValueError, OSError)) -> int:
    """The exit status of `run`: 1 after one line on standard error for `errors`; 0 where nobody reads its output any more;
    130 when interrupted."""
    try:
        status = run()
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter fails once more, at its end
        return 0
    except errors as error:
        print(plain(f"error: {' '.join(str(error).split())}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
