"""PLY files, text and binary of either byte order. Every count in the header is held against the bytes there before it is used.

Source: Turk, The PLY polygon file format (1994).
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
_TYPES = {"char": "i1", "uchar": "u1", "int8": "i1", "uint8": "u1", "short": "i2", "ushort": "u2", "int16": "i2", "uint16": "u2",
          "int": "i4", "uint": "u4", "int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8", "float": "f4", "float32": "f4",
          "double": "f8", "float64": "f8"}


class _Property(NamedTuple):
    name: str
    dtype: np.dtype
    length: np.dtype | None  # of a list: the type of its length


class _Element(NamedTuple):
    name: str
    count: int
    properties: list[_Property]

    @property
    def least(self) -> int:
        """Bytes of a row whose lists are empty."""
        return sum((one.length or one.dtype).itemsize for one in self.properties)

    @property
    def lists(self) -> bool:
        return any(one.length for one in self.properties)


def read_ply(content: bytes, path: str | Path) -> list[Field]:
    """The scalar properties of the vertices of a PLY file with the bytes `content`, in file order; names as written.

    Raises:
      DataError: naming `path`, for a header that is broken or does not fit the body, and a file cut short.
    """
    elements, text, start = _header(content, path)
    at = next((at for at, element in enumerate(elements) if element.name == "vertex"), None)
    if at is None:
        raise DataError(f"{path}: a PLY file without vertices; export the points")
    vertex = elements[at]
    if not vertex.count:
        raise DataError(f"{path}: the file holds no points; export the scan again")
    if text:
        return _text(content, start, elements[:at], vertex, at == len(elements) - 1, path)
    for element in elements[:at]:
        start = _blocks(content, start, element, path)[1]
    blocks, end = _blocks(content, start, vertex, path)
    if at == len(elements) - 1 and content[end:].strip(b"\0 \t\r\n"):
        raise DataError(f"{path}: {len(content) - end} bytes are left after the header's {vertex.count} points; the header "
                        "does not fit, export it again")
    fields, block, offset = [], 0, 0
    for one in vertex.properties:
        if one.length:
            block, offset = block + 1, 0
            continue
        if vertex.lists:
            places = blocks[:, block, None] + offset + np.arange(one.dtype.itemsize)
            values = np.frombuffer(content, np.uint8)[places].view(one.dtype)[:, 0]
        else:
            values = np.ndarray(vertex.count, one.dtype, content, start + offset, (vertex.least,))
        fields.append(Field(one.name, one.dtype, values))
        offset += one.dtype.itemsize
    return fields


def has_faces(content: bytes, path: str | Path) -> bool:
    """Whether a PLY file is a mesh. Raises DataError for a broken header."""
    return any(element.name in ("face", "faces", "tristrips") and element.count for element in _header(content, path)[0])


def stated_rows(content: bytes, path: str | Path) -> int:
    """The most rows that an element of a PLY file has by its header, which `content` begins with. Raises DataError: a broken
    header."""
    return max((element.count for element in _header(content, path)[0]), default=0)


def _header(content: bytes, path: str | Path) -> tuple[list[_Element], bool, int]:
    """(elements, whether the body is text, where it starts)."""
    # A body may begin with a byte that looks like half a line end: the first line says what a line end is.
    line_end = re.match(rb"ply[ \t]*(\r\n|\r|\n)", content)
    ending = rb"\r" if line_end and line_end[1] == b"\r" else rb"\r?\n"
    end = line_end and re.search(rb"[\r\n]end_header[ \t]*" + ending, content[:_HEADER_BYTES])
    if not end:
        raise DataError(f"{path}: not a PLY file (no complete header); export it again")
    elements, order = [], None
    for line in re.split(r"[\r\n]+", content[: end.start()].decode("latin-1"))[1:]:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format" and words[1:2] and words[1] in ("ascii", "binary_little_endian", "binary_big_endian"):
            order = words[1]
        elif words[0] == "element" and len(words) == 3 and re.fullmatch(r"\d{1,18}", words[2]):
            elements.append(_Element(words[1], int(words[2]), []))
        elif words[0] == "property" and elements and _property(words, order == "binary_big_endian"):
            elements[-1].properties.append(_property(words, order == "binary_big_endian"))
        else:
            raise DataError(f"{path}: PLY header line {line.strip()[:60]!r} is not understood; export it again")
    if order is None:
        raise DataError(f"{path}: the PLY header does not say its format; export it again")
    if len({element.name for element in elements}) < len(elements):
        raise DataError(f"{path}: the PLY header names an element twice; export it again")
    return elements, order == "ascii", end.end()


def _property(words: list[str], big: bool) -> _Property | None:
    """`property float x` or `property list uchar int name`; None where it is neither."""
    is_list = words[1:2] == ["list"]
    kinds = words[2:-1] if is_list else words[1:-1]
    if len(kinds) != 1 + is_list or not all(kind in _TYPES for kind in kinds):
        return None
    dtypes = [np.dtype((">" if big else "<") + _TYPES[kind]) for kind in kinds]
    if is_list and dtypes[0].kind == "f":
        return None
    return _Property(words[-1], dtypes[-1], dtypes[0] if is_list else None)


def _blocks(content: bytes, start: int, element: _Element, path: str | Path) -> tuple[np.ndarray, int]:
    """Where the scalars between an element's lists are, [rows, lists + 1] int64 (empty without lists), and where it ends."""
    needed, there = element.count * element.least, len(content) - start
    if there < needed:
        raise DataError(f"{path}: truncated, {there} bytes where {element.count} of {listed([element.name])} need at least "
                        f"{needed}; copy it again")
    if not element.lists:
        return np.zeros((0, 1), np.int64), start + needed
    steps, fixed = [], 0  # (scalars before a list, its lengths, its items)
    for one in element.properties:
        if one.length:
            steps.append((fixed, one.length, one.dtype.itemsize))
            fixed = 0
        else:
            fixed += one.dtype.itemsize
    blocks, here = np.zeros((element.count, len(steps) + 1), np.int64), start
    for row in range(element.count):
        for block, (scalars, length, item) in enumerate(steps):
            blocks[row, block] = here
            here += scalars
            size = length.itemsize
            order = "big" if length.str[0] == ">" else "little"
            items = int.from_bytes(content[here : here + size], order, signed=length.kind == "i")
            here += size + items * item
            if items < 0 or here > len(content):
                raise DataError(f"{path}: damaged, a list of {items} in row {row + 1} of {listed([element.name])} leaves "
                                "the file; copy it again")
        blocks[row, -1] = here
        here += fixed
    if here > len(content):
        raise DataError(f"{path}: truncated in the rows of {listed([element.name])}; copy it again")
    return blocks, here


def _text(content: bytes, start: int, before: list[_Element], vertex: _Element, last: bool, path: str | Path) -> list[Field]:
    """The scalars of vertices that are lines of text."""
    first = len(re.findall(rb"\r\n|\r|\n", content[:start])) + 1
    lines = re.split(r"\r\n|\r|\n", content[start:].decode("latin-1"))
    skipped = sum(element.count for element in before)
    rows = [at for at, line in enumerate(lines) if line and not line.isspace()]
    if len(rows) < skipped + vertex.count:
        raise DataError(f"{path}: truncated, {len(rows)} rows where the header says {skipped + vertex.count}; copy it again")
    if last and len(rows) > skipped + vertex.count:
        raise DataError(f"{path}: {len(rows)} rows where the header says {skipped + vertex.count}; export it again")
    rows = rows[skipped : skipped + vertex.count]
    first, lines = first + rows[0], lines[rows[0] : rows[-1] + 1]
    if vertex.lists:
        lines = [_without_lists(line, vertex, path, first + at) for at, line in enumerate(lines)]
    scalars = [one for one in vertex.properties if not one.length]
    table = numbers(lines, None, range(len(scalars)), len(scalars), path, first) if scalars else np.zeros((vertex.count, 0))
    return [Field(one.name, one.dtype, column) for one, column in zip(scalars, table.T, strict=True)]


def _without_lists(line: str, vertex: _Element, path: str | Path, number: int) -> str:
    """A row with its scalars alone."""
    words, kept, at = line.split(), [], 0
    for one in vertex.properties if words else ():
        if not one.length:
            kept.append(words[at] if at < len(words) else "")
            at += 1
        elif at < len(words) and re.fullmatch(r"\d{1,9}", words[at]):
            at += 1 + int(words[at])
        else:
            raise DataError(f"{path}: line {number}: no length of the list {listed([one.name])}; export it again")
    if at != len(words):
        raise DataError(f"{path}: line {number}: {len(words)} numbers where its lists need {at}; the file may be truncated")
    return " ".join(kept)
