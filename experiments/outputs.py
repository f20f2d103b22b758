"""What a command has written into a folder of the user's, so that it never writes over anything else.

scores.json lists the results and the files of each with their SHA-256. Only a file listed there, unchanged since and no scan of
this call, is ever replaced; whatever else lies in the folder keeps its name, and new files get others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import signal
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data_pipelines.files import write_atomic
from gsclip_jax.runtime.names import file_part, one_line

TABLE = "scores.json"
ENDINGS = (".ply", ".npy", ".png")
KNOWN = {"scan", "score"}  # every entry of the table has these


class Outputs:
    """The results in one folder.

    Args:
      folder: made with the first result.
      inputs: files of this call that are read and must stay as they are.

    Raises:
      ValueError: the folder is a file or cannot be written, or holds a scores.json of something else.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path]):
        self.folder, self.table, self.done = folder, folder / TABLE, 0  # scans kept by this call
        self.inputs = {key for path in inputs if (key := _identity(path))}
        there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
        if not there.is_dir():
            raise ValueError(f"--out {folder}: {there} is no folder; choose another --out")
        if not os.access(there, os.W_OK | os.X_OK):
            raise ValueError(f"--out {folder}: no permission to write into {there}; choose another --out")
        self.read()

    def read(self) -> dict[str, dict]:
        """The table, {} where there is none yet.

        Raises:
          ValueError: there is a file of that name that this command did not make.
        """
        path = self.table
        if not os.path.lexists(path):
            return {}
        try:
            if path.is_symlink() or not path.is_file() or _identity(path) in self.inputs:
                raise ValueError
            table = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(table, dict) or not table:
                raise ValueError
            if not all(isinstance(entry, dict) and entry.keys() >= KNOWN for entry in table.values()):
                raise ValueError
        except ValueError:  # of JSON and UTF-8 as well
            raise ValueError(f"{path} was not written by this command and stays as it is; choose another --out") from None
        return table

    def keep(self, scan: Path, about: Mapping, files: Mapping[str, bytes]) -> str:
        """Writes the files of one scan, content by ending, and its entry, replacing those it has; both or neither, also when the
        program is stopped. Returns their name without ending: the scan's, with a number where that is taken.

        Raises:
          ValueError: of `read`.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with undivided(), _alone(self.folder):
            table = self.read()
            name = self._name(scan, table)
            listed = {f"{name}{ending}": hashlib.sha256(content).hexdigest() for ending, content in files.items()}
            for ending, content in files.items():
                write_atomic(self.folder / f"{name}{ending}", content)
            table[name] = {**table.get(name, {}), "scan": str(scan), "path": os.path.abspath(scan), **about, "files": listed}
            write_atomic(self.table, (json.dumps(table, indent=1) + "\n").encode())
            self.done += 1
        return name

    def _name(self, scan: Path, table: dict[str, dict]) -> str:
        place = os.path.abspath(scan)
        for name, entry in table.items():
            if entry.get("path") == place and self._ours(name, entry.get("files")):
                return name
        taken = {_folded(name) for name in table}
        stem = file_part(scan.stem)
        name, number = stem, 2
        while _folded(name) in taken or any(os.path.lexists(self.folder / f"{name}{ending}") for ending in ENDINGS):
            name, number = f"{stem}_{number}", number + 1
        return name

    def _ours(self, name: str, files) -> bool:
        """Whether the files of an entry may be replaced: each is as it was written, or gone."""
        if name != file_part(name) or not isinstance(files, dict) or files.keys() != {f"{name}{end}" for end in ENDINGS}:
            return False
        for file, known in files.items():
            path = self.folder / file
            if not os.path.lexists(path):
                continue
            if path.is_symlink() or not path.is_file() or _identity(path) in self.inputs:
                return False
            if hashlib.sha256(path.read_bytes()).hexdigest() != known:
                return False
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file and all links to it have in common; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # reading it will say what is wrong
        return None
    return found.st_dev, found.st_ino


def _folded(name: str) -> str:
    """Equal for names that are one file on some file systems."""
    return unicodedata.normalize("NFC", name).casefold()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, without a lock file in the user's folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # network folders may not lock: two calls at once are then the user's own care
            if error.errno not in (errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
                raise
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until what is inside is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for number in came[:1]:
            signal.raise_signal(number)


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
