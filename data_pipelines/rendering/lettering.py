"""Letters of any language in pictures: matplotlib's DejaVu Sans and, for what it lacks, the fonts installed here.

A sign that no font has, and one that cannot be seen (line ends, marks of the writing's direction), stands as its escape:
`\\u90e8`. So two names never look the same.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata

from PIL import ImageDraw, ImageFont

LEADING = 1.3  # height of a line, in sizes
_JOINING = ("Mn", "Mc", "Me")  # marks that belong to the letter before them
_LINKS = "\u200c\u200d"  # invisible, but part of words


@functools.cache
def _signs(path: str) -> frozenset[int]:
    """Code points a font file has letters for; none where it cannot be used."""
    from matplotlib.ft2font import FT2Font

    try:
        ImageFont.truetype(path, 16)  # bitmap fonts have only sizes of their own
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@functools.cache
def _own() -> str:
    from matplotlib import get_data_path

    return f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf"


@functools.cache
def _installed() -> tuple[str, ...]:
    from matplotlib.font_manager import findSystemFonts

    return tuple(sorted(path for path in findSystemFonts() if "lastresort" not in path.lower()))


@functools.cache
def _font_of(sign: str) -> str | None:
    """The font file that has the sign, if any does."""
    if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in _LINKS:
        return None
    return next((path for path in itertools.chain([_own()], _installed()) if ord(sign) in _signs(path)), None)


def _runs(text: str) -> list[tuple[str, str]]:
    """(font file, piece) in turn, with escapes for what no font has."""
    runs: list[tuple[str, str]] = []
    for sign in text:
        last = runs[-1][0] if runs else None
        joins = last and (sign in _LINKS or unicodedata.category(sign) in _JOINING) and ord(sign) in _signs(last)
        path = last if joins else _font_of(sign)
        piece = sign if path else sign.encode("unicode_escape").decode()
        path = path or _own()
        if path == last:
            runs[-1] = path, runs[-1][1] + piece
        else:
            runs.append((path, piece))
    return runs


def legible(text: str) -> tuple[str, list[str]]:
    """The text with its escapes, and the font families matplotlib draws it with, in the order to try them."""
    from matplotlib.font_manager import FontProperties

    runs = _runs(text)
    names = [FontProperties(fname=path).get_name() for path in [_own(), *(path for path, _ in runs)]]
    return "".join(piece for _, piece in runs), list(dict.fromkeys(names))


@functools.cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def width(text: str, size: int) -> float:
    """Pixels of one line of text."""
    return sum(_font(path, size).getlength(piece) for path, piece in _runs(text))


def draw(pen: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, fill="black") -> None:
    """Draws one line of text, `place` being the left end of its base line."""
    x, y = place
    for path, piece in _runs(text):
        pen.text((x, y), piece, fill, _font(path, size), anchor="ls")
        x += _font(path, size).getlength(piece)


def wrapped(text: str, size: int, pixels: float, most: int = 8) -> list[str]:
    """The text in lines of at most that many pixels, broken after blanks and signs where it can be; what is beyond `most` lines
    is left out of the middle, `…` in its place. Line ends within the text begin lines as well."""
    lines = [line for part in text.split("\n") for line in _broken(part, size, pixels)]
    return lines if len(lines) <= most else [*lines[: most // 2], "…", *lines[len(lines) - (most - most // 2 - 1) :]]


def _broken(text: str, size: int, pixels: float) -> list[str]:
    lines = []
    while text and width(text, size) > pixels:
        fits = max(1, next(n for n in range(1, len(text) + 1) if width(text[:n], size) > pixels) - 1)
        after = next((n for n in range(fits, fits // 2, -1) if not text[n - 1].isalnum()), fits)
        lines.append(text[:after])
        text = text[after:]
    return [*lines, text]
