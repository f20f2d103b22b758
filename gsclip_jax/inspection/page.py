"""The page of inspected parts: index.html, which needs no network and no program but a browser.

`part_record` keeps what a page shows of one part as soon as the part is finished; `write_pages` puts the kept parts together. So
a batch of any length needs the memory of one part, and a killed run keeps what it had.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from data_pipelines.files import atomic, write_atomic
from gsclip_jax.inspection import compact, markup
from gsclip_jax.inspection.part_files import finite
from gsclip_jax.inspection.result import Part
from gsclip_jax.runtime.names import decoded, file_part, one_line

KEPT = "page_parts"  # folder beside the results
PARTS = 100  # a page holds no more
BYTES = 120 << 20  # and ends after this many bytes of parts
REMOVED = 50_000  # points shown of those taken away
SHARES = (0, 0.01, 0.05, *np.linspace(0.1, 0.9, 33).tolist(), 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1)
VERDICTS = ("defective", "cannot tell", "sound")


@dataclass(frozen=True)
class GoodParts:
    """What the page shows of the calibration.

    Fields:
      scores: [G], the object scores of the good parts.
      threshold: object score above which a part is called defective; None where so few parts allow none.
      rate: the false-alarm rate asked for.
      point_middle: the median score of their points: the beginning of the colours.
      point_threshold: the score of a point from which it is coloured as suspicious; None where there is none. A sound part looks
        sound where few good parts have any point above it: take it from the highest point of each, not from all their points.
      warnings: a sentence each, shown above the table (too few parts, drift).
    """

    scores: np.ndarray
    threshold: float | None
    rate: float
    point_middle: float
    point_threshold: float | None
    warnings: tuple[str, ...] = ()


def part_record(part: Part, folder: Path) -> Path:
    """Keeps what a page shows of a part, in `folder`/page_parts: whole or not at all. Returns the file.

    Its first line is what the table needs, its second the cloud and the views.
    """
    real = np.isfinite(part.xyz).all(1)
    shown = real & ~part.removed & np.isfinite(part.points)
    scores = part.points[shown]
    removed = part.xyz[real & part.removed]
    body = {
        "cloud": compact.cloud(part.xyz[shown], scores, None if part.colours is None else part.colours[shown]),
        "removed": compact.cloud(removed, limit=REMOVED) if len(removed) else None,
        "views": compact.views(part.render, part.depth, part.heat) if len(part.render) else None,
    }
    about = {
        "name": one_line(part.name), "source": one_line(part.source), "score": finite(part.score),
        "notes": list(map(one_line, part.notes)), "id": hashlib.sha256(decoded(part.name).encode()).hexdigest()[:12],
        "verdict": None if part.verdict is None else _verdict(part), "rows": len(part.xyz), "points": int(shown.sum()),
        "shown": body["cloud"]["n"], "removed": len(removed), "highest": finite(scores.max()) if len(scores) else None,
        "quantiles": np.quantile(scores, SHARES).tolist() if len(scores) else [],
    }  # fmt: skip
    path = Path(folder) / KEPT / f"{file_part(part.name)}.json"
    write_atomic(path, f"{markup.data(about)}\n{markup.data(body)}\n")
    return path


def write_pages(folder: Path, title: str, good: GoodParts | None = None, about: Mapping[str, str] | None = None,
                failures: Sequence[str] = ()) -> list[Path]:  # fmt: skip
    """Writes index.html, index-2.html ... of the parts kept in `folder`, the most suspicious first; removes pages of before.

    Args:
      good: of the calibration; None without good parts: the page then says that it ranks and gives no verdict.
      about: what the page says of the run: model, date, versions.
      failures: a line for each scan that could not be inspected.
    """
    folder = Path(folder)
    parts = sorted(_kept(folder), key=_order)
    pages = _cut(parts)
    shown = {
        "title": title, "scale": scale(parts, good), "good": _about_good(good), "about": dict(about or {}),
        "failures": list(failures), "counts": _counts(parts), "pages": [_file(number) for number in range(len(pages))],
    }  # fmt: skip
    table = [_row(part, number) for number, page in enumerate(pages) for part in page]
    highest = max((row["highest"] for row in table if row["highest"] is not None), default=None)
    here = markup.data({"scale": shown["scale"], "good": shown["good"], "title": title, "highest": highest,
                        "scores": [row["score"] for row in table]})  # fmt: skip
    template = markup.environment().get_template("index.html")
    for number, page in enumerate(pages):
        with atomic(folder / _file(number)) as path, path.open("w", encoding="utf-8") as file:
            file.writelines(template.generate(**shown, rows=table, here=here, number=number, records=_records(page)))
    written = [folder / name for name in shown["pages"]]
    for old in folder.glob("index-*.html"):
        if re.fullmatch(r"index-[0-9]+\.html", old.name) and old not in written:
            old.unlink()
    return written


def scale(parts: Sequence[Mapping], good: GoodParts | None) -> dict:
    """The one colour scale of all parts: `low`, `high`, `threshold` (None without good parts), scores of points.

    With good parts colours begin at the middle of their points, change to yellow at the threshold, which is the middle of the
    bar, and are dark red as far above it again (at 1 where no score is above 1). Without them they run from the median of all
    points to their 99.8 % quantile: what stands out of this batch.
    """
    if good is not None and good.point_threshold is not None:
        highest = max((part["highest"] for part in parts if part["highest"] is not None), default=0.0)
        return anchored(good.point_middle, good.point_threshold, highest)
    known = [part for part in parts if part["quantiles"]]
    if not known:
        return {"low": 0.0, "high": 1.0, "threshold": None}
    # Every quantile stands for the share of a part's points up to it; parts count alike, however many points they have.
    weights = np.tile(np.diff(SHARES, prepend=0), len(known))
    values = np.concatenate([part["quantiles"] for part in known])
    order = np.argsort(values)
    low, high = np.interp([0.5, 0.998], np.cumsum(weights[order]) / weights.sum(), values[order])
    return {"low": float(low), "high": max(float(high), float(low) + 1e-6), "threshold": None}


def anchored(middle: float, threshold: float, highest: float) -> dict:
    """The colour scale with a threshold in its middle: {low, high, threshold}.

    Args:
      middle: the score that most sound points have; highest: of all points that are shown.
    """
    width = max(threshold - middle, 1e-6)
    high = min(threshold + width, 1.0) if threshold < 1 and highest <= 1 else threshold + width
    return {"low": threshold - width, "high": high, "threshold": threshold}


def _kept(folder: Path) -> Iterator[dict]:
    for path in sorted((folder / KEPT).glob("*.json")):
        with path.open(encoding="utf-8") as file:
            yield {**json.loads(file.readline()), "path": path, "bytes": path.stat().st_size}


def _records(page: list[dict]) -> Iterator[tuple[str, Markup]]:
    """One part after the other: its id, and its two lines as one JSON list."""
    for part in page:
        with part["path"].open(encoding="utf-8") as file:
            about, body = file.readline(), file.readline()
        yield part["id"], Markup(f"[{about.rstrip()},{body.rstrip()}]")


def _order(part: dict) -> tuple:
    kind = part["verdict"]["kind"] if part["verdict"] else VERDICTS[1]
    return VERDICTS.index(kind), -(part["score"] if part["score"] is not None else -math.inf), part["name"]


def _cut(parts: list[dict]) -> list[list[dict]]:
    """Pages of at most PARTS parts and, but for a single larger part, BYTES bytes; one page where there are no parts."""
    pages, size = [[]], 0
    for part in parts:
        if pages[-1] and (len(pages[-1]) == PARTS or size + part["bytes"] > BYTES):
            pages.append([])
            size = 0
        pages[-1].append(part)
        size += part["bytes"]
    return pages


def _row(part: dict, number: int) -> dict:
    kept = ("id", "name", "source", "score", "highest", "points", "verdict")
    return {**{key: part[key] for key in kept}, "page": _file(number)}


def _file(number: int) -> str:
    return f"index-{number + 1}.html" if number else "index.html"


def _counts(parts: list[dict]) -> dict[str, int]:
    kinds = [part["verdict"]["kind"] for part in parts if part["verdict"]]
    return {"all": len(parts), **{kind: kinds.count(kind) for kind in VERDICTS}, "unjudged": len(parts) - len(kinds)}


def _verdict(part: Part) -> dict:
    known = dataclasses.asdict(part.verdict)
    found = {key: finite(value) if isinstance(value, float) else value for key, value in known.items()}
    return {**found, "order": VERDICTS.index(part.verdict.kind), "reason": one_line(part.verdict.reason)}


def _about_good(good: GoodParts | None) -> dict | None:
    if good is None:
        return None
    return {"scores": [float(v) for v in good.scores], "threshold": good.threshold, "rate": good.rate,
            "point_threshold": good.point_threshold, "warnings": list(map(one_line, good.warnings))}  # fmt: skip
