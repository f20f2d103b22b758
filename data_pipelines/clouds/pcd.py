"""PCD files, text, binary and compressed. Every count in the header is held against the bytes that are there before it is used.

Source: https://pointclouds.org/documentation/tutorials/pcd_file_format.html; compressed bodies as PCL writes them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.clouds.columns import Field, listed
from data_pipelines.clouds.tables import numbers
from data_pipelines.scan import DataError

_HEADER_BYTES = 1 << 16
_TYPES = {("F", 4), ("F", 8), *((kind, size) for kind in "IU" for size in (1, 2, 4, 8))}
_LZF_MOST = 88  # bytes that one packed byte can stand for: three give at most 264


class _Header(NamedTuple):
    names: list[str]
    dtypes: list[np.dtype]  # of one number
    counts: list[int]  # numbers a field
    points: int
    data: str
    start: int  # of the body, in bytes


def read_pcd(content: bytes, path: str | Path) -> list[Field]:
    """The fields of one number a point of a PCD file with the bytes `content`, in file order; names as written.

    Raises:
      DataError: naming `path`, for a header that is broken or contradicts itself or the body, and a damaged body.
    """
    head = _header(content, path)
    widths = [dtype.itemsize * count for dtype, count in zip(head.dtypes, head.counts, strict=True)]
    row, there = sum(widths), len(content) - head.start
    if head.data == "ascii":
        return _text(content, head, path)
    body, start = content, head.start
    if head.data == "binary_compressed":
        packed, size = (int.from_bytes(content[start + at : start + at + 4], "little") for at in (0, 4))
        if there < 8 or there - 8 < packed:
            raise DataError(f"{path}: truncated, {max(there - 8, 0)} of {packed} packed bytes are there; copy it again")
        if size != head.points * row or size > packed * _LZF_MOST:
            raise DataError(f"{path}: damaged, {head.points} points need {head.points * row} bytes, {size} are said to be packed "
                            f"in {packed}; copy it again")
        body, start, there = _unpack(content[start + 8 : start + 8 + packed], size, path), 0, size
    _fits(there, head.points * row, head.points, body, start, path)
    fields, offset = [], 0
    for name, dtype, count, width in zip(head.names, head.dtypes, head.counts, widths, strict=True):
        # Binary bodies go point by point, compressed ones field by field.
        at, step = (offset * head.points, width) if head.data == "binary_compressed" else (offset, row)
        if count == 1 and name != "_":
            fields.append(Field(name, dtype, np.ndarray(head.points, dtype, body, start + at, (step,))))
        offset += width
    return fields


def stated_points(content: bytes, path: str | Path) -> int:
    """The points of a PCD file by its header, which `content` begins with. Raises DataError: a broken header."""
    return _header(content, path).points


def _fits(there: int, needed: int, points: int, body: bytes, start: int, path: str | Path) -> None:
    if there < needed:
        raise DataError(f"{path}: truncated, {there} bytes where {points} points need {needed}; copy it again")
    if body[start + needed :].strip(b"\0 \t\r\n"):
        raise DataError(f"{path}: {there} bytes where the header's {points} points take {needed}; the header does not fit, "
                        "export it again")


def _header(content: bytes, path: str | Path) -> _Header:
    end = re.search(rb"(?:^|[\r\n])[ \t]*DATA[ \t]+(\w+)[^\r\n]*(?:\r\n|\r|\n)", content[:_HEADER_BYTES], re.IGNORECASE)
    if not end:
        raise DataError(f"{path}: not a PCD file (no complete header); export it again")
    lines = re.split(r"[\r\n]+", content[: end.start()].decode("latin-1"))
    said = {words[0].upper(): words[1:] for words in map(str.split, lines) if words and words[0][0] != "#"}
    data = end[1].decode().lower()

    def whole(key: str, words: list[str]) -> list[int]:
        if not words or not all(re.fullmatch(r"\d{1,18}", word) for word in words):
            raise DataError(f"{path}: the PCD header's {key} is {' '.join(words)[:40]!r}, not whole numbers; export it again")
        return [int(word) for word in words]

    names = said.get("FIELDS", said.get("COLUMNS", []))
    plain = data == "ascii"  # where the first versions said no more than names and points
    sizes = whole("SIZE", said.get("SIZE", ["4"] * len(names) if plain else []))
    kinds = [kind.upper() for kind in said.get("TYPE", ["F"] * len(names) if plain else [])]
    counts = whole("COUNT", said.get("COUNT", ["1"] * len(names)))
    if data not in ("ascii", "binary", "binary_compressed"):
        raise DataError(f"{path}: unknown kind of PCD data {data[:40]!r}; export it as ascii or binary")
    if not names or not len(names) == len(sizes) == len(kinds) == len(counts):
        raise DataError(f"{path}: the PCD header names {len(names)} fields, {len(sizes)} sizes, {len(kinds)} types and "
                        f"{len(counts)} counts; export it again")
    pairs = list(zip(kinds, sizes, strict=True))
    wrong = [f"{listed([kind[:8]])} of {size} bytes" for kind, size in pairs if (kind, size) not in _TYPES]
    if wrong or 0 in counts:
        raise DataError(f"{path}: the PCD header has fields of {wrong[0] if wrong else 'no numbers'}; export it again")
    grid = [whole(key, said[key])[0] for key in ("WIDTH", "HEIGHT") if key in said]
    points = whole("POINTS", said["POINTS"])[0] if "POINTS" in said else int(np.prod(grid, dtype=object)) if grid else 0
    if len(grid) == 2 and grid[0] * grid[1] != points:
        raise DataError(f"{path}: the PCD header says {points} points and {grid[0]} x {grid[1]}; export it again")
    if not points:
        raise DataError(f"{path}: the file holds no points; export the scan again")
    dtypes = [np.dtype(f"<{kind.lower()}{size}") for kind, size in zip(kinds, sizes, strict=True)]
    return _Header(names, dtypes, counts, points, data, end.end())


def _text(content: bytes, head: _Header, path: str | Path) -> list[Field]:
    """The fields of a body of one line a point."""
    starts = np.cumsum([0, *head.counts])[:-1].tolist() if sum(head.counts) <= len(content) else []
    picked = [at for at, (name, count) in enumerate(zip(head.names, head.counts, strict=True)) if count == 1 and name != "_"]
    first = len(re.findall(rb"\r\n|\r|\n", content[: head.start])) + 1
    lines = re.split(r"\r\n|\r|\n", content[head.start :].decode("latin-1"))
    if head.points > len(lines) or not starts:
        raise DataError(f"{path}: truncated, {len(lines)} lines where the header says {head.points} points; copy it again")
    table = numbers(lines, None, [starts[at] for at in picked], sum(head.counts), path, first)
    if len(table) != head.points:
        raise DataError(f"{path}: {len(table)} rows where the header says {head.points} points; copy or export it again")
    return [Field(head.names[at], head.dtypes[at], column) for at, column in zip(picked, table.T, strict=True)]


def _unpack(packed: bytes, size: int, path: str | Path) -> bytes:
    """`size` bytes out of LZF's runs: copies of what follows, or of what came before."""
    out, at = bytearray(), 0
    try:
        while at < len(packed) and len(out) <= size:
            token = packed[at]
            if token < 32:
                out += packed[at + 1 : at + token + 2]
                at += token + 2
                continue
            length, at = token >> 5, at + 1
            if length == 7:
                length, at = 7 + packed[at], at + 1
            length, start = length + 2, len(out) - ((token & 31) << 8) - packed[at] - 1
            at += 1
            if start < 0:
                raise IndexError
            repeated = out[start : start + length]
            out += (repeated * (length // len(repeated) + 1))[:length]
    except IndexError as error:
        raise DataError(f"{path}: the packed points are damaged; copy it again") from error
    if len(out) != size or at != len(packed):
        raise DataError(f"{path}: the packed points are damaged, {len(out)} bytes of {size}; copy it again")
    return bytes(out)
