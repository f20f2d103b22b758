"""The folder of a service's files: it goes with the service, and where that was killed, when the next one begins."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX, LOCK = "gsclip-serve-", "in-use.lock"
YOUNG = 60.0  # seconds in which a folder may not have its lock yet


class Folder:
    """A folder of this process alone, in the system's place for temporary files (TMPDIR)."""

    def __init__(self):
        remove_left()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = FileLock(self.path / LOCK)
        self._lock.acquire()

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        self._lock.release()
        shutil.rmtree(self.path, ignore_errors=True)


def remove_left() -> None:
    """Removes folders of this user whose service is gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError, Timeout):
            about = path.lstat()
            if path.is_symlink() or about.st_uid != os.geteuid() or time.time() - about.st_mtime < YOUNG:
                continue
            with FileLock(path / LOCK).acquire(timeout=0):
                shutil.rmtree(path)
