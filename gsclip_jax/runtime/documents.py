"""Text and JSON files that lie beside weights: read with a limit, and refused in one line whatever they hold."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from gsclip_jax.runtime.keys import WeightsError

LARGEST = 1 << 27  # bytes of text; the largest tokenizer files in use have a tenth of it


def read_text(path: Path, what: str = "text", error: type[WeightsError] = WeightsError) -> str:
    """A UTF-8 file (gzip unpacked up to `LARGEST`), without a byte-order mark.

    Raises:
        WeightsError (or `error`, a kind of it): not there, not text, damaged, or larger than any such file is.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            data = (gzip.GzipFile(fileobj=file) if packed else file).read(LARGEST + 1)
        if len(data) > LARGEST:
            raise error(f"{path}: more than {LARGEST >> 20} MiB, which no {what} has; give the original file")
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, ValueError) as problem:
        if isinstance(problem, WeightsError):
            raise
        raise error(f"{path}: cannot read the {what} ({problem}); fetch it again") from problem


def read_json(path: Path, what: str = "configuration", error: type[WeightsError] = WeightsError) -> dict[str, Any]:
    """The object in a JSON file. Raises WeightsError (or `error`): as `read_text`, or broken or no object."""
    try:
        document = json.loads(read_text(path, what, error))
    except (json.JSONDecodeError, RecursionError) as problem:
        raise error(f"{path}: broken, cannot be read as JSON ({type(problem).__name__}: {problem}); fetch it again") from problem
    except ValueError as problem:  # numbers of more digits than Python converts
        if isinstance(problem, WeightsError):
            raise
        raise error(f"{path}: broken, cannot be read as JSON ({problem}); fetch it again") from problem
    if not isinstance(document, dict):
        raise error(f"{path}: broken, holds a {type(document).__name__} and not the JSON object of a {what}; fetch it again")
    return document


def part(document: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """An object inside a document; {} where it is absent or null. Raises WeightsError where it is anything else."""
    value = document.get(name)
    if value is not None and not isinstance(value, dict):
        raise WeightsError(f"{path}: {name} is a {type(value).__name__} and not an object")
    return dict(value or {})


def triple(value: Any, name: str, path: Path) -> tuple[float, float, float]:
    """Three finite numbers (of the colours). Raises WeightsError for anything else."""
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) != 3 or any(isinstance(n, bool) or not isinstance(n, int | float) or not abs(n) < 1e9 for n in numbers):
        raise WeightsError(f"{path}: {name} must be three numbers, one a colour")
    return tuple(float(number) for number in numbers)
