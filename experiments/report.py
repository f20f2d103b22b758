"""report.html and pictures of a run: what was found, where, and how sure; every object one click away."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from markupsafe import Markup
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.files import atomic
from data_pipelines.input import eval_batches
from data_pipelines.records.store import RecordSet
from experiments import pages, pictures
from experiments.data import index_rows
from experiments.measured import RESAMPLES, Measured, losses, measure, read
from experiments.summary import columns
from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.inspection import compact, markup
from gsclip_jax.inspection.heat import front, heat_maps
from gsclip_jax.runtime.names import one_line

TITLES = ("rendered view", "depth view", "ground truth", "point scores")
BYTES = 48 << 20  # all objects together; the rest of the page is under one MB
LEAST = 9000  # bytes of an object of LEAST_POINTS points; where not even that is there for each, some are left out
LEAST_POINTS = 1000
POINT = 7.5  # bytes of a point with its score


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

    The page has every object, or none where `config.eval.pictures` is 0, in at most about BYTES bytes: of many objects fewer
    points and views are kept, of very many not all, and the page says so.

    Args:
      home: the folder of the evaluation, with its scores.
      load: gives the records that were evaluated.
    """
    page = home / "report.html"
    if page.exists():
        return
    records = load()
    rows = index_rows(records, list(results["categories"]))
    own = (config.target.name or config.data.name) != "prerendered"  # else the pictures came with the data
    chosen = choose(rows, config.eval.pictures)
    if chosen:
        drawn = _drawn(records, home / "eval", chosen, own)
        labels = ["\n".join(map(one_line, label)) for label, _ in drawn]
        pictures.save(pictures.sheet([row for _, row in drawn], TITLES, labels), home / "pictures" / "heatmaps.png")
    found = measure(rows, home / "eval")
    shown, limits = _shown(rows) if chosen else ([], [])
    training = home.parent.parent if home.parent.name == "evaluations" else home
    with atomic(page) as path, path.open("w", encoding="utf-8") as file:
        file.writelines(_page(home, results, compared, found, {
            "losses": losses(training / "metrics.jsonl"), "settings": _flat(config.to_dict()), "limits": limits,
            "rows": [_about(row, read(row, home / "eval"), found) for row in shown],
            "records": _records(records, home / "eval", shown, own, found),
        }))  # fmt: skip


def _drawn(records: RecordSet, folder: Path, chosen: list[dict], own: bool) -> list[tuple[list[str], list[np.ndarray]]]:
    """Lines of the label and the panels of every object; `own` for pictures that were rendered here."""
    found = {row["object_index"]: fields for row, fields in _each(records, chosen)}
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

def _shown(rows: list[dict]) -> tuple[list[dict], list[str]]:
    """The objects that the page has room for, and what it says of those it has not."""
    if len(rows) * LEAST <= BYTES:
        return rows, []
    kept = rows[:: -(-len(rows) * LEAST // BYTES)]
    return kept, [f"{len(kept):,} of {len(rows):,} objects are shown: the page is kept under {BYTES >> 20} MB."]


def _about(row: dict, scores: dict, found: Measured) -> dict:
    """What the table and the head of an opened object say of it; `scores` of its file."""
    score, points = float(scores["object"]), scores["points"][scores["valid"]]
    others = found.scores[row["category"]]
    ranked = others["sound"] + others["defective"]
    name = f"{row['category']}/{row['name']}"
    return {
        "id": hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:12], "name": one_line(row["name"]),
        "category": one_line(row["category"]), "source": one_line(name), "defect": one_line(row["defect"]),
        "label": int(scores["label"]), "score": score, "rank": 1 + sum(other > score for other in ranked), "of": len(ranked),
        "points": len(points), "highest": float(points.max()) if len(points) else None, "verdict": None, "notes": [],
    }  # fmt: skip


def _records(records: RecordSet, folder: Path, shown: list[dict], own: bool, found: Measured) -> Iterator[tuple[str, Markup]]:
    """One object after the other, as the page keeps it: its id, and what is said and shown of it."""
    share = BYTES / max(len(shown), 1)
    for row, fields in _each(records, shown):
        scores = read(row, folder)
        about = _about(row, scores, found)
        valid = fields["valid"]
        limit = int(np.clip(share * 0.55 / POINT, LEAST_POINTS, compact.LIMIT))
        cloud = compact.cloud(fields["xyz"][valid], scores["points"][valid], mask=fields["point_mask"][valid], limit=limit)
        views = _views(row, fields, scores["points"], records, own, share - len(cloud["data"]))
        body = {"cloud": cloud, "removed": None, "views": views}
        yield about["id"], Markup(f"[{markup.data({**about, 'shown': cloud['n']})},{markup.data(body)}]")


def _views(row: dict, fields: dict, points: np.ndarray, records: RecordSet, own: bool, room: float) -> dict | None:
    """As many views as there is room for, those that show most of the highest scores first."""
    own = own and room > 40_000  # drawing each point again takes 0.1 s an object: not for thousands of them
    maps = heat_maps(points, fields, records.recipe if own else None, row["category"])
    made = compact.views(fields["render"], fields["depth"], maps)
    size = sum(len(made[name]) for name in ("render", "depth", "heat"))
    if size <= room:
        return made
    count = int(room / size * len(maps))
    if not count:
        return None
    kept = np.sort(compact.hottest(maps)[:count])
    return compact.views(fields["render"][kept], fields["depth"][kept], maps[kept]) | {"numbers": kept.tolist()}


def _each(records: RecordSet, shown: list[dict]) -> Iterator[tuple[dict, dict]]:
    """The index rows with the fields of their objects, in the order of the records."""
    wanted = {row["object_index"]: row for row in shown}
    categories = list(dict.fromkeys(row["category"] for row in shown))
    for batch in eval_batches(records, categories=categories, batch_size=4) if categories else ():
        for i in np.flatnonzero(batch["real"]):
            if int(batch["object_index"][i]) in wanted:
                yield wanted[int(batch["object_index"][i])], {name: value[i] for name, value in batch.items()}


def _page(home: Path, results: dict, compared: dict[str, dict], found: Measured, shown: dict) -> Iterator[str]:
    """The page in pieces.

    Args:
      shown: losses, settings, limits, rows and records, as `write_report` makes them.
    """
    tables = [*results["categories"].values(), results["mean"], *(other["mean"] for other in compared.values())]
    names = [(key, title) for key, title in columns(results["mean"], released=True)
             if any(values.get(key) is not None for values in tables)]  # fmt: skip
    table = [(f"{category} ({values['n_good']} good, {values['n_defective']} defective)", values, "")
             for category, values in results["categories"].items()]  # fmt: skip
    table.append(("mean", results["mean"], "mean"))
    table += [(f"{name.replace('_', ' ')}, mean", other["mean"], "other") for name, other in compared.items()]
    scores = {one_line(category): values for category, values in found.scores.items()}
    titles = {"o_auroc": "O-AUROC", "p_auroc": "P-AUROC", "p_pro": "P-PRO"}
    drawn = [{**chart, "title": f"{chart['title']}, {titles[chart['area']]} {100 * value:.1f} %"}
             for chart in found.charts if (value := results["mean"].get(chart["area"])) is not None]  # fmt: skip
    charts = markup.data({"curves": drawn, "losses": shown["losses"], "scores": scores})
    place = storage.named(str(home))
    here = markup.data({"title": one_line(place), "scale": found.scale, "highest": found.highest, "scores": scores})
    shown = {"workdir": place, "results": results, "names": names, "table": table} | shown
    return pages.pieces("report.html", kinds=found.kinds, charts=charts, here=here, resamples=RESAMPLES, **shown)  # fmt: skip


def _flat(values: dict, before: str = "") -> list[tuple[str, str]]:
    found = []
    for name, value in values.items():
        found += _flat(value, f"{before}{name}.") if isinstance(value, dict) and value else [(f"{before}{name}", str(value))]
    return found
