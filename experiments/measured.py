"""What the page of a run draws of its score files and its metrics.jsonl: curves, scores, kinds of defect, losses, colours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gsclip_jax.evaluation import curves, metrics
from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.inspection.page import anchored

RESAMPLES = 500
PROBES = 5000  # points of an object that take part in the choice of the colours
STEPS = 400  # of a stage that a loss curve shows


@dataclass(frozen=True)
class Measured:
    """Fields:
    charts: a dict a chart, for charts.js: title, x, y, xmax, area (the metric) and lines [{label, tone, x, y, low, high}].
    kinds: of `curves.kinds`.
    scores: category -> {"sound": [...], "defective": [...]}, object scores.
    scale: {low, high, threshold} of the colours; no threshold where no point is marked.
    highest: the highest score of a point.
    """

    charts: list[dict]
    kinds: list[dict]
    scores: dict[str, dict[str, list[float]]]
    scale: dict[str, float | None]
    highest: float


def measure(rows: Sequence[dict], folder: Path) -> Measured:
    """Reads the score files of the index rows, one category at a time."""
    samples: dict[str, curves.Sample] = {}
    kinds, scores, probes, marks, highest = [], {}, [], [], -np.inf
    rng = np.random.default_rng(0)
    for category in dict.fromkeys(row["category"] for row in rows):
        found = [read(row, folder) for row in rows if row["category"] == category]
        samples[category] = curves.sample(found, RESAMPLES, rng)
        kinds += curves.kinds({category: found})
        scores[category] = {name: [float(f["object"]) for f in found if bool(f["label"]) == defective]
                            for name, defective in (("sound", False), ("defective", True))}  # fmt: skip
        for f in found:
            valid = np.flatnonzero(f["valid"])
            highest = max(highest, float(f["points"][valid].max(initial=-np.inf)))
            if f["labelled"]:
                picked = rng.permutation(valid)[:PROBES]
                probes.append(f["points"][picked])
                marks.append(f["regions"][picked] > 0)
    points, mask = (np.concatenate(part) if part else np.zeros(0) for part in (probes, marks))
    highest = highest if np.isfinite(highest) else 1.0
    return Measured(_charts(samples), _merged(kinds), scores, _scale(points, mask.astype(bool), highest), highest)


def read(row: dict, folder: Path) -> dict:
    """The scores of one object, with what the index says of it."""
    with np.load(evaluate.object_file(folder, row), allow_pickle=False) as file:
        found = {name: file[name] for name in ("points", "valid", "regions", "object", "label")}
    return {**found, "labelled": row.get("labelled", True), "defect": row.get("defect", "")}


def losses(path: Path) -> list[dict]:
    """Charts of what a training wrote, a chart a stage; of long ones every n-th step."""
    if not path.exists():
        return []
    stages: dict[str, list[dict]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # torn by a kill
            continue
        stages.setdefault(row.pop("stage"), []).append(row)
    charts = []
    for stage, steps in stages.items():
        steps = steps[:: -(-len(steps) // STEPS)]
        names = [name for name in steps[0] if name not in ("step", "grad_norm")]
        names.sort(key=lambda name: name != "loss")
        lines = [{"label": name, "tone": _tone(number), "x": [row["step"] for row in steps if name in row],
                  "y": [row[name] for row in steps if name in row]} for number, name in enumerate(names)]  # fmt: skip
        charts.append({"title": stage, "x": "step", "y": "loss", "lines": lines})
    return charts


def _charts(samples: dict[str, curves.Sample]) -> list[dict]:
    made = []
    for field, title, rates, x, y, area in (
        ("object_roc", "Objects: ROC", curves.RATES, "sound objects called defective", "defective objects found", "o_auroc"),
        ("point_roc", "Points: ROC", curves.RATES, "normal points called defective", "defective points found", "p_auroc"),
        ("pro", "Regions: PRO", curves.PRO_RATES, "normal points called defective", "share of a region found", "p_pro"),
    ):
        found = {name: getattr(sample, field) for name, sample in samples.items()}
        lines = [{"label": name, "tone": "one", "x": _short(rates), "y": _short(sample[0])}
                 for name, sample in found.items() if np.isfinite(sample[0]).all()] if len(found) > 1 else []  # fmt: skip
        middle, low, high = curves.band(list(found.values()))
        if np.isfinite(middle).all() and len(middle):
            label = "mean over categories" if len(found) > 1 else next(iter(found))
            lines.append({"label": label, "tone": "mean", "x": _short(rates), "y": _short(middle), "low": _short(low),
                          "high": _short(high)})  # fmt: skip
            made.append({"title": title, "x": x, "y": y, "xmax": float(rates[-1]), "ymax": 1,
                         "lines": lines, "area": area})  # fmt: skip
    return made


def _merged(kinds: list[dict]) -> list[dict]:
    """Rows of the same kind in several categories as one, by their numbers of objects."""
    merged = []
    for kind in sorted({row["kind"] for row in kinds}):
        rows = [row for row in kinds if row["kind"] == kind]
        one = {"kind": kind, "count": sum(row["count"] for row in rows)}
        for name in ("o_auroc", "p_auroc"):
            known = [(row[name], row["count"]) for row in rows if row[name] is not None]
            one[name] = sum(value * count for value, count in known) / sum(count for _, count in known) if known else None
        merged.append(one)
    return merged


def _scale(points: np.ndarray, mask: np.ndarray, highest: float) -> dict[str, float | None]:
    """Colours begin at the median of the normal points and turn yellow at the threshold of the best F1."""
    if not len(points):
        return {"low": 0.0, "high": 1.0, "threshold": None}
    if mask.any() and not mask.all():
        return anchored(float(np.median(points[~mask])), metrics.f1_max(mask, points)[1], highest)
    low, high = (float(value) for value in np.quantile(points, [0.5, 0.998]))
    return {"low": low, "high": max(high, low + 1e-6), "threshold": None}


def _short(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def _tone(number: int) -> str:
    return f"line-{number % 8}"
