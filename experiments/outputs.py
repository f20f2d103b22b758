"""What a command may write over in a folder of the user's."""

from __future__ import annotations

import os
from pathlib import Path

from gsclip_jax.runtime.names import one_line


def refuse_foreign(path: Path, begins: str) -> None:
    """Raises ValueError when there is a file at `path` that this command did not make: one that does not begin as its own do."""
    if not os.path.lexists(path):
        return
    mine = path.is_file() and not path.is_symlink()
    if mine:
        with path.open("rb") as file:
            mine = file.read(len(begins.encode())) == begins.encode()
    if not mine:
        raise ValueError(f"{one_line(str(path))} was not written by this command and stays as it is; choose another --out")
