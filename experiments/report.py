"""report.html and pictures of a run: what was found, where, and how sure, on a few objects of every test category."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.files import write_atomic
from data_pipelines.input import eval_batches
from data_pipelines.records.store import RecordSet
from experiments import pages, pictures
from experiments.data import index_rows
from experiments.summary import columns
from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.inspection import markup
from gsclip_jax.inspection.heat import front
from gsclip_jax.runtime.names import one_line

TITLES = ("rendered view", "depth view", "ground truth", "point scores")


def choose(rows: list[dict], count: int) -> list[dict]:
    """`count` objects, spread over categories and defects: a defective one of each category in turn, then a sound one."""
    categories = list(dict.fromkeys(row["category"] for row in rows))
    if not categories:
        return []
    chosen = []
    for number in range(count):
        category = categories[number % len(categories)]
        bad = [r for r in rows if r["category"] == category and r["label"] and r not in chosen]
        good = [r for r in rows if r["category"] == category and not r["label"] and r not in chosen]
        if number >= len(categories) and good:
            bad = []
        # Another defect kind in every category, so that the pictures show several.
        pool = bad or good
        if pool:
            chosen.append(pool[number % len(pool)])
    return chosen


def write_report(
    config: ConfigDict, home: Path, results: dict, compared: dict[str, dict], load: Callable[[], RecordSet]
) -> None:
    """Writes pictures/heatmaps.png and report.html into `home` (once: both are cheap to delete and make again).

    Args:
      home: the folder of the evaluation, with its scores.
      load: gives the records that were evaluated.
    """
    page = home / "report.html"
    if page.exists():
        return
    records = load()
    chosen = choose(index_rows(records, list(results["categories"])), config.eval.pictures)
    own = (config.target.name or config.data.name) != "prerendered"  # else the pictures came with the data
    drawn = _drawn(records, home / "eval", chosen, own) if chosen else []
    if drawn:
        labels = ["\n".join(map(one_line, label)) for label, _ in drawn]
        pictures.save(pictures.sheet([row for _, row in drawn], TITLES, labels), home / "pictures" / "heatmaps.png")
    write_atomic(page, _html(home, results, compared, drawn).encode())


def _drawn(records: RecordSet, folder: Path, chosen: list[dict], own: bool) -> list[tuple[list[str], list[np.ndarray]]]:
    """Lines of the label and the panels of every object; `own` for pictures that were rendered here."""
    found = _fields(records, {row["object_index"] for row in chosen})
    scale, drawn = {}, []
    for row in chosen:
        category, fields = row["category"], found[row["object_index"]]
        with np.load(evaluate.object_file(folder, row)) as file:
            points, score = file["points"], float(file["object"])
        if category not in scale:
            scale[category] = _ends(records, folder, category)
        view = pictures.best_view(fields)
        shown = front(fields, records.recipe, view, category) if own else None
        label = [category, row["name"], f"truth: {row['defect']}", f"score {score:.3f}"]
        drawn.append((label, pictures.panels(fields, points, *scale[category], view, shown)))
    return drawn


def _ends(records: RecordSet, folder: Path, category: str) -> tuple[float, float]:
    """Ends of a category's colour scale: the middle of all its points, and nearly their top."""
    values = []
    for row in index_rows(records, [category]):
        with np.load(evaluate.object_file(folder, row)) as file:
            values.append(file["points"][file["valid"]])
    low, high = np.quantile(np.concatenate(values), [0.5, 0.998])
    return float(low), float(high)


def _fields(records: RecordSet, numbers: set[int]) -> dict[int, dict]:
    found = {}
    categories = list(dict.fromkeys(records.index[number]["category"] for number in numbers))
    for batch in eval_batches(records, categories=categories, batch_size=4):
        for i in np.flatnonzero(batch["real"]):
            if int(batch["object_index"][i]) in numbers:
                found[int(batch["object_index"][i])] = {name: value[i] for name, value in batch.items()}
    return found


def _html(home: Path, results: dict, compared: dict[str, dict], drawn) -> str:
    tables = [*results["categories"].values(), results["mean"], *(other["mean"] for other in compared.values())]
    names = [(key, title) for key, title in columns(results["mean"], released=True)
             if any(values.get(key) is not None for values in tables)]  # fmt: skip
    rows = [(f"{category} ({values['n_good']} good, {values['n_defective']} defective)", values, "")
            for category, values in results["categories"].items()]  # fmt: skip
    rows.append(("mean", results["mean"], "mean"))
    rows += [(f"{name.replace('_', ' ')}, mean", other["mean"], "other") for name, other in compared.items()]
    shown = [(label, [_image(panel) for panel in row]) for label, row in drawn]
    return pages.page(
        "report.html", workdir=home, results=results, names=names, rows=rows, titles=TITLES, drawn=shown
    )


def _image(panel: np.ndarray) -> markup.Markup:
    return markup.picture(pictures.png(pictures.enlarged(panel, 2 * len(panel))))
