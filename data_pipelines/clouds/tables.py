"""Tables of numbers in text files, as instruments, spreadsheets and programs export them.

Understood: any delimiter (comma, semicolon, tab, bar, white space), decimal commas, a line of names, titles above it, a line with
the number of rows, comments (`#`, `//`, `%`, `;`), quotes, delimiters at the ends of lines, empty fields and words for no value
(NaN), UTF-8, UTF-16 and UTF-32 with or without byte-order mark, line ends of any system. What could be read in two ways
is refused.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.clouds.columns import axes, bare, running, unnamed_xyz
from data_pipelines.clouds.kinds import contents
from data_pipelines.scan import DataError

_HEAD = 200  # lines among which the first row of numbers has to be
_SAMPLE = 100  # rows by which the delimiter is told
_DELIMITERS = (";", "\t", "|", ",", None)  # None: white space
_COMMENT = re.compile(r"[ \t]*(?:#(?!n/a)|//|%|;|!)[#/%;! \t]*", re.IGNORECASE)
_AFTER = {";": re.compile(r"(?mi)[ \t]+(?:#(?!n/a)|//|%).*$")}  # a comment behind a row, by delimiter
_AFTER |= dict.fromkeys(("\t", "|", ",", None), re.compile(r"(?mi)[ \t]+(?:#(?!n/a)|//|%|;).*$"))
_DOT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eEdD][+-]?\d+)?")
_COMMA = re.compile(r"[+-]?(?:\d+,?\d*|,\d+)(?:[eEdD][+-]?\d+)?")
_NO_VALUE = re.compile(r"[+-]?nan(?:\(\w*\))?|[+-]?1[.,]#(?:qnan|snan|ind)\w*|#?n/a|na|null|none|nil", re.IGNORECASE)
_INFINITE = re.compile(r"[+-]?inf(?:inity)?|[+-]?1[.,]#inf\w*", re.IGNORECASE)
_WORDS = re.compile(r"(?i)(?<![^\s,;|])(?:[+-]?nan\(\w*\)|[+-]?1[.,]#(?:qnan|snan|ind)\w*|#?n/a|na|null|none|nil)(?![^\s,;|])")
_SPELLINGS = {0xA0: " ", 0x202F: " ", 0x2009: " ", 0x2212: "-", 0xFEFF: None}  # spaces and minus signs of typesetters


class Table(NamedTuple):
    """Columns of a text file."""

    values: np.ndarray  # [rows, columns] float64
    names: tuple[str, ...] | None  # of the columns, where a line named them


class _Dialect(NamedTuple):
    delimiter: str | None
    decimal: str
    width: int  # fields a row, without empty ones behind a last delimiter
    trailing: int  # those
    text: bool = False  # whether fields are other than numbers


def read_points(path: str | Path) -> np.ndarray:
    """Points [S, 3] float64 of a text file, one a row: the columns named x, y and z; without names the first three, or those
    after a running number. An empty or NaN coordinate is NaN.

    Raises:
      DataError: as `read_table`.
    """
    table = read_table(path, lambda names: axes(names, path), least=3, most=4)
    return table.values if table.names else unnamed_xyz(table.values, path)


def read_table(path: str | Path, named: Callable[[Sequence[str]], list[int] | None], least: int = 1,
               most: int | None = None) -> Table:
    """The wanted columns of a text file.

    Args:
      named: names of columns -> the wanted ones, or None where the names are not those of such a table.
      least, most: columns that a table without names needs, and how many of them are returned.

    Raises:
      DataError: naming the file and, where there is one, the line: as `file_kinds.contents`; rows that are no numbers or of
        different lengths; columns of which nobody can say what they are; another number of rows than the file says.
    """
    text = _decoded(contents(path), path)
    if not text.strip():
        raise DataError(f"{path}: the file is empty; copy or export it again")
    lines = text.split("\n")
    start, count, names_line, comments = _preamble(lines, named, path)
    body = lines[start:]
    sample = _sample(body)
    names, dialect = _described(sample, names_line, comments, named, path)
    if names is not None:
        picked = named(names)
    else:
        picked = list(range(min(dialect.width, most or dialect.width)))
        if dialect.width < least:
            raise DataError(f"{path}: line {start + 1}: expected at least the columns x y z, found {dialect.width}")
        _no_second_commas(sample, dialect, path)
    body = _plain(body, dialect, picked, path, start + 1)
    values = numbers(body, dialect.delimiter, picked, dialect.width, path, start + 1)
    if count is not None and len(values) != count:
        raise DataError(f"{path}: says it has {count} rows, {len(values)} are there; the file may be truncated, copy it again")
    return Table(values, tuple(bare(names[column]) for column in picked) if names is not None else None)


def numbers(lines: Sequence[str], delimiter: str | None, picked: Sequence[int], width: int, path: str | Path,
            first: int = 1) -> np.ndarray:
    """The columns `picked` [rows, picked] float64 of lines that all have `width` fields; blank lines are left out.

    Args:
      delimiter: None for white space.  first: the number of the first line in its file.

    Raises:
      DataError: naming `path` and the line, for another number of fields, or one that is no number.
    """
    rows = [line for line in lines if line and not line.isspace()]
    if not rows:
        raise DataError(f"{path}: no rows of numbers; export the points again")
    ended = not lines[-1] or lines[-1].isspace()
    widths = (row.count(delimiter) + 1 if delimiter else len(row.split()) for row in rows)
    wrong = next((at for at, found in enumerate(widths) if found != width), None)
    if wrong is not None:
        found = len(rows[wrong].split(delimiter))
        raise _at_line(lines, wrong, path, first, f"{found} fields where other rows have {width}")
    try:
        values = np.loadtxt(rows, delimiter=delimiter, usecols=list(picked), ndmin=2, comments=None)
    except ValueError as error:
        for at, row in enumerate(rows):
            fields = row.split(delimiter)
            odd = next((fields[column] for column in picked if not _number(fields[column].strip(), ".")), None)
            if odd is not None:
                raise _at_line(lines, at, path, first, f"{odd.strip()[:30]!r} is no number") from error
        raise DataError(f"{path}: rows are not all numbers ({' '.join(str(error).split())[:100]})") from error
    if not ended and len(rows) > 9 and _cut_short(rows, delimiter):
        raise _at_line(lines, len(rows) - 1, path, first, "its last number has fewer decimals than all others")
    return values


def _at_line(lines: Sequence[str], row: int, path: str | Path, first: int, what: str) -> DataError:
    """The error for a row, counted without blank lines."""
    filled = [at for at, line in enumerate(lines) if line and not line.isspace()]
    last = row == len(filled) - 1
    todo = "the file may be truncated, copy or export it again" if last else "correct it or export the file again"
    return DataError(f"{path}: rows are not all numbers of one length (line {first + filled[row]}: {what}); {todo}")


def _cut_short(rows: list[str], delimiter: str | None) -> bool:
    """Whether the file ends within a number: it has no last line end, and the last field not the decimals all others have."""
    fields = [row.split(delimiter)[-1].strip() for row in [*rows[:_SAMPLE], rows[-1]]]
    decimals = [len(field.partition(".")[2]) for field in fields]
    return decimals[0] > decimals[-1] and len(set(decimals[:-1])) == 1


def _decoded(content: bytes, path: str | Path) -> str:
    """The text, its lines ended by line feeds."""
    marks = ((codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF8, "utf-8"),
             (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
    encoding = next((name for mark, name in marks if content.startswith(mark)), None)
    if encoding is None:  # numbers are ASCII: of wide characters the other bytes are zero
        head = np.frombuffer(content[:4000][: len(content[:4000]) // 4 * 4], np.uint8).reshape(-1, 4)
        zero = tuple((head == 0).mean(0) > 0.9) if len(head) else ()
        encoding = {(False, True, True, True): "utf-32-le", (True, True, True, False): "utf-32-be",
                    (False, True, False, True): "utf-16-le", (True, False, True, False): "utf-16-be"}.get(zero, "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(f"{path}: damaged or truncated {encoding.upper()} text ({error.reason}); copy it again") from error
        text = content.decode("latin-1")  # of names and comments only letters that do not matter are then wrong
    if "\0" in text:
        raise DataError(f"{path}: binary data, not a table of numbers in text; give it the ending of its format")
    if not text.isascii():
        text = text.translate(_SPELLINGS)
    return text.rstrip("\x1a").replace("\r\n", "\n").replace("\r", "\n")


def _split(line: str, delimiter: str | None) -> list[str]:
    return [field.strip() for field in line.split(delimiter)]


def _number(field: str, decimal: str) -> bool:
    """Whether a field is a number, or says that there is none."""
    if (_DOT if decimal == "." else _COMMA).fullmatch(field):
        return True
    return not field or bool(_NO_VALUE.fullmatch(field) or _INFINITE.fullmatch(field))


def _dialect(rows: list[str], named_width: int = 0) -> _Dialect | None:
    """How rows of nothing but numbers, and comments behind them, are written; None where they are not that."""
    rows = [_unquoted(row) for row in rows]
    for delimiter in _DELIMITERS:
        fields = [_split(_AFTER[delimiter].sub("", row), delimiter) for row in rows]
        width = len(fields[0])
        if (delimiter and width == 1) or any(len(row) != width for row in fields):
            continue
        trailing = 0
        while width - trailing > max(1, named_width) and not any(row[width - trailing - 1] for row in fields):
            trailing += 1
        for decimal in ".,":
            if delimiter != decimal and all(_number(field, decimal) for row in fields for field in row) and any(map(any, fields)):
                return _Dialect(delimiter, decimal, width - trailing, trailing)
    return None


def _preamble(lines: list[str], named: Callable, path: str | Path):
    """(the first row of numbers, how many rows the file says it has, the line of names, comments above the rows)."""
    names_line, unknown, comments, count = None, None, [], None
    filled = [(at, line) for at, line in enumerate(lines[:_HEAD]) if line.strip()]
    for (at, line), following in zip(filled, [line for _, line in filled[1:]] + [""], strict=True):
        mark = _COMMENT.match(line)
        if mark and not (line.lstrip()[0] == ";" and (names_line or _dialect([line]))):
            comments.append(line[mark.end() :])
            continue
        if _dialect([line]) and re.search(r"\d|nan", line, re.IGNORECASE):
            said = re.fullmatch(r"\d{1,18}", _AFTER[None].sub("", line).strip())
            rest = sum(1 for other in lines[at + 1 :] if other.strip()) if said and count is None else 0
            wider = _dialect([following])
            if rest and (int(said[0]) == rest > 1 or (wider and wider.width > 1)):
                count = int(said[0])
                continue
        elif not ((names_line or comments) and sum(map(_is_digits, re.split(r"[\s;|,]+", line))) >= 3):
            if any(named(_split(_unitless(line), delimiter)) for delimiter in _DELIMITERS):
                names_line = line
            elif names_line is None or re.search(r"\d", line):
                unknown = unknown or (at, line)
            continue
        if unknown and names_line is None:
            break
        return at, count, names_line, comments
    if unknown:
        raise DataError(f"{path}: line {unknown[0] + 1}: {unknown[1].strip()[:40]!r} is neither a row of numbers nor names "
                        "the columns (x, y, z); name them so, or remove the line")
    raise DataError(f"{path}: no rows of numbers; export the points again")


def _is_digits(field: str) -> bool:
    return bool(_DOT.fullmatch(field))


def _unitless(line: str) -> str:
    """A line of names without units in brackets, which may hold white space, and quotes."""
    return re.sub(r"[ \t]*[\[(][^\])]*[\])]|[\"'`]", "", line)


def _unquoted(text: str) -> str:
    """Text without quotes; commas in quoted numbers are decimal ones, other quoted text is made one word."""
    if '"' not in text:
        return text

    def inner(match: re.Match) -> str:
        inside = match[1].strip()
        return inside.replace(",", ".") if _COMMA.fullmatch(inside) else re.sub(r"[\s,;|]+", "_", inside)

    text = re.sub(r'"([^"\s,;|]*)"', r"\1", text)  # most of them, quickly
    return re.sub(r'"([^"\n]*)"', inner, text) if '"' in text else text


def _sample(body: list[str]) -> list[str]:
    """Rows from all over the file, without the last one, which may be cut short."""
    at = sorted({*range(min(20, len(body))), *np.linspace(0, len(body) - 1, _SAMPLE).astype(int).tolist()})
    rows = [body[i] for i in at if body[i].strip() and not _COMMENT.match(body[i])]
    return rows[:-1] or rows or body[:1]


def _described(sample: list[str], names_line: str | None, comments: list[str], named: Callable,
               path: str | Path) -> tuple[list[str] | None, _Dialect]:
    """(names of the columns, None where nothing names them; how rows are written)."""
    def names_of(line: str, width: int | None) -> tuple[str | None, list[str]] | None:
        for delimiter in _DELIMITERS:
            fields = _split(_unitless(line), delimiter)
            if (width is None or len(fields) == width) and named(fields):
                return delimiter, fields
        return None

    delimiter, names = names_of(names_line, None) if names_line is not None else (None, None)
    dialect = _dialect(sample, len(names or ()))
    if dialect is None and names is None:
        numeric = _dialect(sample[:1])
        for line in reversed(comments):
            found = names_of(line, None)
            if found and len(found[1]) == len(sample[0].split(found[0])) and numeric is None:
                delimiter, names = found
                break
    if dialect is None and names is not None:
        rows = [_split(_unquoted(row), delimiter) for row in sample]
        comma = any(re.fullmatch(r"[+-]?\d*,\d+", row[at]) for row in rows for at in named(names) if at < len(row))
        dialect = _Dialect(delimiter, "," if comma else ".", len(rows[0]), 0, text=True)
    dialect = dialect or _dialect(sample[:1])
    if dialect is None:
        raise DataError(f"{path}: {sample[0].strip()[:40]!r} is no row of numbers; name the columns in a first line (x, y, z)")
    if names is None:
        found = next(filter(None, (names_of(line, dialect.width) for line in reversed(comments))), None)
        return found and found[1], dialect
    while len(names) > dialect.width and not names[-1]:
        names = names[:-1]
    first = [_split(_unquoted(row), dialect.delimiter)[0] for row in sample[:10]]
    if len(names) == dialect.width - 1 and all(map(_is_digits, first)) and running(np.array([float(field) for field in first])):
        names = ["", *names]  # rows begin with their number, which has no name
    if len(names) != dialect.width:
        raise DataError(f"{path}: the line of names has {len(names)} columns, rows have {dialect.width}; name every column")
    return names, dialect


def _no_second_commas(sample: list[str], dialect: _Dialect, path: str | Path) -> None:
    """Refuses `1,0332,26,1464,4,0000`: commas both between and within numbers."""
    if dialect.delimiter != "," or dialect.width < 6 or dialect.width % 2:
        return
    fields = [_split(row, ",") for row in sample]
    decimals = [row[1 : dialect.width : 2] for row in fields]
    if not all(re.fullmatch(r"[+-]?\d+", field) for row in fields for field in row[: dialect.width]):
        return
    same = len({len(field) for row in decimals for field in row}) == 1 and len(decimals[0][0]) > 1
    if all(field.isdecimal() for row in decimals for field in row) and (
            same or any(field[0] == "0" and len(field) > 1 for row in decimals for field in row)):
        raise DataError(f"{path}: commas seem to stand both between and within numbers; export with semicolons or decimal points")


def _plain(body: list[str], dialect: _Dialect, picked: Sequence[int], path: str | Path, first: int) -> list[str]:
    """The rows with nothing but numbers, decimal points and delimiters; other lines are blank."""
    text, d = "\n".join(body), dialect.delimiter
    if '"' in text:
        text = _unquoted(text)
    if re.search(r"[#/A-Za-z]", text):
        text = _WORDS.sub("nan", text)
        text = re.sub(r"([+-]?)1[.,]#INF\w*", r"\1inf", text)
    if re.search(r"[#%;!]|//", text):
        rows = (dialect.width - 1, dialect.width - 1 + dialect.trailing) if d == ";" else ()
        text = re.sub(r"(?mi)^[ \t]*(?:#(?!n/a)|//|%|;|!).*$",
                      lambda line: line[0] if line[0].count(";") in rows and line[0].lstrip()[0] == ";" else "", text)
        text = text if dialect.text else _AFTER[d].sub("", text)
    if dialect.decimal == ",":
        if "." in text:
            _one_decimal_sign(text.split("\n"), d, picked, path, first)
        text = text.replace(",", ".")
    if "d" in text or "D" in text:  # Fortran's exponents
        text = re.sub(r"(?<=[\d.])[dD](?=[+-]?\d)", "e", text)
    if d:
        space, sign = ("[ ]*" if d == "\t" else "[ \t]*"), re.escape(d)
        if dialect.trailing:
            text = re.sub(rf"(?m)(?:{sign}{space}){{1,{dialect.trailing}}}$", "", text)
        empty = re.compile(rf"(?m)(?<={sign}){space}(?={sign}|$)|^{space}(?={sign})")
        text = empty.sub("nan", text) if empty.search(text) else text
    return text.split("\n")


def _one_decimal_sign(lines: list[str], delimiter: str | None, picked: Sequence[int], path: str | Path, first: int) -> None:
    """Refuses decimal commas and points in one file: either may be there to part thousands."""
    for at, line in enumerate(lines):
        fields = line.split(delimiter)
        if any("." in fields[column] for column in picked if column < len(fields)):
            raise DataError(f"{path}: line {first + at}: a decimal point where other numbers have commas; export with one of "
                            "them, and nothing between thousands")
