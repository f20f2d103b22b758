"""Judging: our array against the recorded one, with the manifest's bounds and no others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Row:
    """One array's verdict. `max_abs`, `rms` None where nothing was compared; bounds 0 for integers, which must be equal.
    `by_design` is the reason where we do something else on purpose (and `ok` then says that we do it); `note` the trouble."""

    name: str
    max_abs: float | None
    rms: float | None
    allowed_abs: float | None
    allowed_rms: float | None
    ok: bool
    by_design: str = ""
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row; numbers JSON has no sign for become null."""
        numbers = {name: getattr(self, name) for name in ("max_abs", "rms", "allowed_abs", "allowed_rms")}
        finite = {name: v if v is None or np.isfinite(v) else None for name, v in numbers.items()}
        words = {name: text for name in ("by_design", "note") if (text := getattr(self, name))}
        return {"name": self.name, **finite, "ok": self.ok, **words}


def judge(name: str, ours: Any, theirs: np.ndarray, about: Mapping[str, Any]) -> Row:
    """Compares after taking the part of ours that the description says was kept ('..., [:, ::2]')."""
    ours = kept_part(np.asarray(ours), theirs.shape, about.get("what", ""))
    exact = not np.issubdtype(theirs.dtype, np.floating)
    allowed = (0.0, 0.0) if exact else (about.get("accept_atol"), about.get("accept_rms"))
    if ours.shape != theirs.shape:
        return Row(name, None, None, *allowed, False, note=f"shape {ours.shape}, recorded {theirs.shape}")
    if exact and np.issubdtype(ours.dtype, np.floating):
        return Row(name, None, None, *allowed, False, note=f"{ours.dtype} where integers were recorded")
    if None in allowed:
        return Row(name, None, None, *allowed, False, note="the manifest gives no bounds")
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    largest, rms = (float(apart.max()), float(np.sqrt(np.square(apart).mean()))) if apart.size else (0.0, 0.0)
    return Row(name, largest, rms, *allowed, bool(largest <= allowed[0] and rms <= allowed[1]))  # NaN is a miss


def kept_part(ours: np.ndarray, shape: tuple[int, ...], what: str) -> np.ndarray:
    """`ours`, or the slice '[:, ::3]' of it that the description names, whichever has the recorded shape."""
    if ours.shape == shape:
        return ours
    for text in re.findall(r"\[([\d:,\s-]*:[\d:,\s-]*)\]", what):
        parts = [part.strip() for part in text.split(",")]
        if len(parts) > ours.ndim or not all(re.fullmatch(r"-?\d+|(-?\d*):(-?\d*)(:(\d*))?", part) for part in parts):
            continue
        index = tuple(slice(*(int(n) if n else None for n in part.split(":"))) if ":" in part else int(part) for part in parts)
        if all(not isinstance(i, int) or -n <= i < n for i, n in zip(index, ours.shape)) and ours[index].shape == shape:
            return ours[index]
    return ours


def table(rows: list[Row]) -> str:
    """The rows as text, and a last line that counts."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.2e}"

    width = max((len(row.name) for row in rows), default=4)
    lines = [f"{'array':<{width}}  {'max abs':>8}  {'allowed':>8}  {'rms':>8}  {'allowed':>8}"]
    for row in rows:
        verdict = "by design" if row.by_design and row.ok else "ok" if row.ok else "MISS"
        numbers = "  ".join(f"{number(v):>8}" for v in (row.max_abs, row.allowed_abs, row.rms, row.allowed_rms))
        lines.append(f"{row.name:<{width}}  {numbers}  {verdict}" + (f": {row.note}" if row.note else ""))
    lines += [f"by design: {row.name}: {row.by_design}" for row in rows if row.by_design]
    missed = [row.name for row in rows if not row.ok]
    count = f"{len(rows)} arrays, {len(rows) - len(missed)} ok"
    return "\n".join([*lines, count + (f", {len(missed)} missed: {', '.join(missed[:8])}" if missed else "")])
