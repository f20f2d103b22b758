"""Extension of griffe: our docstrings are plain text. Brackets are shapes there, not links, and `<` begins no HTML."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Raises):\n((?:[ ]+\S.*\n?)+)", re.MULTILINE)


def escaped(text: str) -> str:
    """`text` so that Markdown shows it as it is; code, in backticks or as a paragraph indented by four, stays."""
    paragraphs = re.split(r"(\n\s*\n)", SECTION.sub(_readable, text))
    for number, paragraph in enumerate(paragraphs):
        if all(line.startswith("    ") for line in paragraph.splitlines()):
            continue
        parts = re.split(r"(`[^`]*`)", paragraph)
        parts[::2] = [part.replace("[", r"\[").replace("<", "&lt;") for part in parts[::2]]
        paragraphs[number] = "".join(parts)
    return "".join(paragraphs)


def _readable(section: re.Match) -> str:
    """A section that is a sentence ("ConfigError, or what the reader raises") and no list of `name: text` as a sentence."""
    lines = section[2].rstrip("\n").split("\n")
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    if all(": " in line for line in lines if len(line) - len(line.lstrip()) == indent):
        return section[0]
    return f"{section[1]}: " + " ".join(line.strip() for line in lines) + "\n"


class PlainDocstrings(griffe.Extension):
    """Escapes every docstring once, before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring:
            obj.docstring.value = escaped(obj.docstring.value)
