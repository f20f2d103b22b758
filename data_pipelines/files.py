"""Files that are there whole or not at all, and locks between processes that share a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A new name beside `path` to write to; it becomes `path` when the block ends well, and is removed when it does not. Makes
    the folder.

    The name is another in every call: several threads and processes may write the same file, and the last one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex[:12]}.{path.name[-180:]}.part")
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file that is there whole or not at all, also after a kill; text as UTF-8."""
    with atomic(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: str | Path, value: Any) -> None:
    """`value` as JSON, whole or not at all."""
    write_atomic(Path(path), json.dumps(value, indent=1) + "\n")


def user_cache(name: str) -> Path:
    """This project's folder `name` in the user's cache folder. Raises RuntimeError: the user has no home."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "gsclip_jax" / name


def checksum(path: str | Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Holds the file `path` as a lock, one process at a time; it goes with its holder, however that ends.

    `waiting` is called once where another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
