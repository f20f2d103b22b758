"""Which scans a command line means: files, folders, patterns, and a list from standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_pipelines.clouds.loading import LOADERS, ending
from data_pipelines.scan import DataError

STDIN = "-"


def scans_of(words: Sequence[str], recursive: bool = False, stdin: Iterable[str] = (), below: Path | None = None) -> list[Path]:
    """The scans that the words of a command line mean, each once, in the order of the words and of their names.

    A file is itself, whatever its ending; a folder stands for the files in it whose ending is one of a scan; a word with `*`, `?`
    or `[` that is no file is a pattern (`**`: any depth); `-` for the lines of standard input, each a file, folder or pattern.

    Args:
      recursive: folders stand for the files in all folders below them, too.
      below: the folder of the results, which no folder or pattern reaches into.

    Raises:
      DataError: a folder or pattern without a scan, or nothing at all.
    """
    found: dict[str, Path] = {}
    for word in words:
        lines = [line.rstrip("\r\n") for line in stdin] if word == STDIN else [word]
        for line in lines:
            if line.strip():
                for path in _scans(line, recursive, None if below is None else below.resolve()):
                    found.setdefault(os.path.abspath(path), path)
    if not found:
        raise DataError("no scan is named; give files, folders, patterns, or - and their names on standard input")
    return list(found.values())


def _scans(word: str, recursive: bool, below: Path | None) -> list[Path]:
    path = Path(word)
    if path.is_dir():
        found = _in(path, recursive, below)
        if not found:
            deeper = "" if recursive else "; with -r in the folders below it, too"
            raise DataError(f"{word}: no scan in this folder ({' '.join(LOADERS)}){deeper}")
        return found
    if os.path.lexists(path) or not glob.has_magic(word):
        return [path]  # one that is missing is said when its turn comes
    found = []
    for name in sorted(glob.glob(word, recursive=True)):
        path = Path(name)
        found += _in(path, recursive, below) if path.is_dir() else [path] if is_scan(path) and not _is_below(path, below) else []
    if not found:
        raise DataError(f"{word}: no scan fits this pattern")
    return found


def is_scan(path: Path) -> bool:
    """Whether a file's ending is one of a scan; hidden files are none."""
    return ending(path) in LOADERS and path.name[0] != "."


def _in(folder: Path, recursive: bool, below: Path | None) -> list[Path]:
    found = []
    for home, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".") if recursive else []
        found += [Path(home) / name for name in sorted(names)]
    return [path for path in found if is_scan(path) and path.is_file() and not _is_below(path, below)]


def _is_below(path: Path, folder: Path | None) -> bool:
    return folder is not None and folder in path.resolve().parents
