"""SHA-256 of scans, read once: beside the records lies what each file's was, with its size and times when it was read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_pipelines.files import checksum, locked, write_atomic
from data_pipelines.progress import EVERY_S, Progress

STORE = "fingerprints.json"
READERS = 4  # files read at once: hashing keeps up with a disk, not with a network
# A file that changed this shortly before it was read may change again without another time. Seconds.
FRESH = 0.05


def fingerprints(paths: Iterable[Path], folder: str | Path, progress: Callable[[str], None] = print) -> dict[Path, str]:
    """SHA-256 of every file; only those that are new, or another in size or time than when they were last read, are read.

    Args:
      paths: files; one that cannot be read gets a text of its own that no file has.
      folder: where the memory is kept (STORE); it need not be there yet.
      progress: gets lines while files are read.
    """
    paths = list(dict.fromkeys(paths))
    store = Path(folder) / STORE
    known = _load(store)
    stamps = {path: _stamp(path) for path in paths}
    found = {path: known[str(path)][-1] for path in paths if stamps[path] and known.get(str(path), [])[:-1] == stamps[path]}
    missing = [path for path in paths if path not in found]
    if not missing:
        return found
    new: dict[str, list] = {}
    say = Progress("reading scans once, for their checksums: {} of {} files", len(missing), progress, warm=1)
    start = time.time()
    try:
        with ThreadPoolExecutor(READERS) as pool:
            for done, (path, digest) in enumerate(zip(missing, pool.map(_read, missing), strict=True), 1):
                found[path] = digest
                stamp = stamps[path]
                if stamp and digest[:1] != "?" and _stamp(path) == stamp and max(stamp[1:3]) < (start - FRESH) * 1e9:
                    new[str(path)] = [*stamp, digest]
                if done < len(missing) or time.time() - start > EVERY_S:
                    say.update(done)
    finally:
        _keep(store, new, progress)
    return found


def _stamp(path: Path) -> list[int] | None:
    """Size, time of change, and the time of change that nobody can set."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _read(path: Path) -> str:
    try:
        return checksum(path)
    except OSError as error:  # whoever loads the scan says so, or leaves it out
        return f"? {error.strerror}"


def _load(store: Path) -> dict[str, list]:
    """What is remembered; nothing where the file is missing or damaged, for it only saves time."""
    try:
        content = json.loads(store.read_text())
    except (OSError, ValueError):
        return {}
    rows = content.items() if isinstance(content, dict) else ()
    return {path: row for path, row in rows if isinstance(row, list) and len(row) == 4 and isinstance(row[3], str)}


def _keep(store: Path, new: dict[str, list], progress: Callable[[str], None]) -> None:
    if not new:
        return
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with locked(store.with_name(f".{STORE}.lock")):
            write_atomic(store, json.dumps(_load(store) | new, indent=0).encode())
    except OSError as error:  # somebody else's cache, or a full disk, where whoever has more to write will say so
        progress(f"{store} cannot be written ({error.strerror}): the scans will be read again next time")
