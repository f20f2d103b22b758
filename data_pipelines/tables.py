"""Tables of numbers in text files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from .datasets.base import DataError


def read_table(path: str | Path, least: int = 3) -> np.ndarray:
    """Numbers [rows, columns >= least] float64 of a text file, separated by white space or commas.

    Raises:
      DataError: missing or empty file, or rows that are no numbers or of different lengths.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    text = path.read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise DataError(f"{path}: the file is empty")
    try:
        rows = np.loadtxt(io.StringIO(text), delimiter="," if "," in text[:4096] else None, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path}: rows are not all numbers of one length ({error}); the file may be truncated") from error
    if rows.shape[1] < least:
        raise DataError(f"{path}: expected at least the columns x y z, found {rows.shape[1]}")
    return rows
