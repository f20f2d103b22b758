"""What is written of a part for other programs: a PLY file with all that its scan had and the scores, and a JSON file."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gsclip_jax.inspection.result import Part

PLY_TYPES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float", "f8": "double"}
SCORE, REMOVED = "score", "removed"


def scored_ply(part: Part, attributes: Mapping[str, np.ndarray]) -> bytes:
    """A binary PLY file of all rows of a part in their order: x y z in doubles, the scan's other attributes [S] as they were, and
    `score`, a scalar field (NaN for rows that hold no point or were taken away); where some were, `removed` is 1 for them.

    Types that PLY does not know become doubles, names one word each. Colours are in it once, as red, green, blue.
    """
    columns: dict[str, np.ndarray] = {axis: part.xyz[:, at] for at, axis in enumerate("xyz")}
    if part.colours is not None:
        columns |= {name: part.colours[:, at] for at, name in enumerate(("red", "green", "blue"))}
    for name, values in attributes.items():
        same = columns.get(name.lower())
        if same is None or not np.array_equal(same, values):  # colours stand there already
            columns[_word(name, columns)] = values
    columns[_word(SCORE, columns)] = part.points
    if part.removed.any():
        columns[_word(REMOVED, columns)] = part.removed.astype(np.uint8)
    arrays = {name: _known(np.asarray(values)) for name, values in columns.items()}
    rows = np.empty(len(part.xyz), [(name, values.dtype) for name, values in arrays.items()])
    for name, values in arrays.items():
        rows[name] = values
    lines = [f"property {PLY_TYPES[values.dtype.str[1:]]} {name}" for name, values in arrays.items()]
    head = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}", *lines, "end_header", ""]
    return "\n".join(head).encode("ascii") + rows.tobytes()


def _known(values: np.ndarray) -> np.ndarray:
    kind = values.dtype.newbyteorder("<")
    return values.astype(kind if kind.str[1:] in PLY_TYPES else "<f8")


def _word(name: str, taken: Mapping[str, Any]) -> str:
    """The name as one word of ASCII that is not taken; the score's own is kept free."""
    word = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_") or "field"
    number, free = 2, word if word not in (SCORE, REMOVED) or name in (SCORE, REMOVED) else f"{word}_in"
    while free in taken:
        free, number = f"{word}_{number}", number + 1
    return free


def row_of(part: Part) -> dict[str, Any]:
    """What results.jsonl, results.csv and the part's own JSON file say of it; numbers that are none are null."""
    known = np.isfinite(part.points)
    threshold = part.verdict.point_threshold if part.verdict else None
    verdict = part.verdict and {
        "kind": part.verdict.kind, "p_value": finite(part.verdict.p_value), "threshold": finite(part.verdict.threshold),
        "point_threshold": finite(threshold), "reason": part.verdict.reason,
    }  # fmt: skip
    return {
        "name": part.name, "source": part.source, "score": finite(part.score),
        "highest_point_score": finite(part.points[known].max()) if known.any() else None,
        "rows": len(part.points), "points": int(known.sum()), "removed": int(part.removed.sum()),
        "suspicious_points": None if threshold is None else int((part.points[known] > threshold).sum()),
        "highest_at": part.xyz[int(np.nanargmax(part.points))].tolist() if known.any() else None,
        "verdict": verdict, "notes": list(part.notes),
    }  # fmt: skip


def json_text(row: Mapping[str, Any]) -> str:
    """A row as strict JSON on one line, in ASCII: any program reads it, whatever a file is called."""
    return json.dumps(row, allow_nan=False)


def finite(value: float | None) -> float | None:
    """For JSON, which has no NaN."""
    return None if value is None or not math.isfinite(value) else float(value)
