"""Small files that several machines write: leases and notes, seen alike by all of them at once."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path

from data_pipelines import storage
from data_pipelines.files import write_atomic


class Objects:
    """The small files of one folder, on the store itself where its path stands for one, seen alike by all machines at once.

    Args:
      folder: need not be there.
    """

    def __init__(self, folder: Path):
        self.folder, self.store = folder, storage.store_of(folder)

    def names(self) -> list[str]:
        if self.store:
            return sorted(name for name in self.store.listing(self.folder) if "/" not in name and not name.startswith("."))
        try:
            return sorted(name for name in os.listdir(self.folder) if not name.startswith("."))
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes | None:
        """The content; None where there is none (any more)."""
        try:
            return self.store.fs.cat_file(self._key(name)) if self.store else (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file that is not there yet. Returns whether it was this call that did: of several at once, one."""
        if self.store:
            return self._create_on_store(name, content)
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{uuid.uuid4().hex[:12]}.part"
        part.write_bytes(content)
        try:
            os.link(part, self.folder / name)  # whole, and only where there is none: also on network file systems
            return True
        except FileExistsError:
            return False
        finally:
            part.unlink()

    def write(self, name: str, content: bytes) -> None:
        if self.store:
            self.store.fs.pipe_file(self._key(name), content)
        else:
            write_atomic(self.folder / name, content)

    def remove(self, name: str) -> None:
        try:
            self.store.fs.rm_file(self._key(name)) if self.store else (self.folder / name).unlink()
        except FileNotFoundError:
            pass

    def _key(self, name: str) -> str:
        return f"{self.store.key(self.folder)}/{name}"

    def _create_on_store(self, name: str, content: bytes) -> bool:
        """By a conditional put where the store knows them, else by looking, after a while, whose content stayed."""
        if self.read(name) is not None:
            return False
        storage.put_new(self.store.fs, self._key(name), content)
        if not self.store.conditional:
            time.sleep(storage.SETTLE_S)
        return self.read(name) == content  # also where a put was repeated because its answer was lost
