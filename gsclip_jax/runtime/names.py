"""Names that come from outside (folders, files, configurations), fit for where they are shown: text, whatever they hold."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from pathlib import Path
from urllib.parse import quote

FORMULA = "=+-@\t\r\n＝＋－＠"  # what spreadsheets take for the beginning of a formula, in both widths
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LONGEST = 200  # bytes of a file's name that leave room for endings and numbers; file systems take 255


def csv_text(name: str) -> str:
    """The name as a cell of a table: with an apostrophe before it where a spreadsheet would compute it (OWASP, CSV injection).

    `csv_name` undoes it.
    """
    name = decoded(name)
    return f"'{name}" if name.lstrip(" ")[:1] in tuple(FORMULA) or name.startswith("'") else name


def csv_name(text: str) -> str:
    """The name that `csv_text` wrote."""
    return text.removeprefix("'")


def decoded(name: str) -> str:
    """The name without the lone surrogates Python keeps for bytes that are no UTF-8, as `\\udcff`: text that can be written."""
    return name.encode("utf-8", "backslashreplace").decode()


def one_line(name: str) -> str:
    """The name for a terminal or a label: control characters, line ends and marks of the writing's direction as escapes."""
    shown = []
    for sign in decoded(name):
        hidden = unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp") and sign not in "\u200c\u200d"  # joiners belong to words
        shown.append(sign.encode("unicode_escape").decode() if hidden else sign)
    return "".join(shown)


def is_hub_name(name: str) -> bool:
    """'owner/model' that is no path on this machine."""
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def of_model(path: str) -> bool:
    """Whether a file of a work directory, or of an exported model, belongs to the trained model."""
    endings = (".json", ".safetensors", ".stablehlo", ".onnx", "README.md")
    return path.removeprefix("model/").count("/") == 0 and path.endswith(endings)


def file_part(name: str) -> str:
    """The name as one file's or folder's name inside a folder: unchanged where it is one already.

    Slashes, `..`, an absolute path, nothing or more than `LONGEST` bytes become an escaped name with a hash, one for each name.
    """
    raw = name.encode("utf-8", "surrogatepass")
    plain = decoded(name) == name and name not in ("", ".", "..") and not {"/", "\\", "\0"} & set(name)
    if plain and len(raw) <= LONGEST:
        return name
    short = quote(raw, safe="").replace(".", "%2E")[:100]
    return f"{short}-{hashlib.sha256(raw).hexdigest()[:12]}"
