"""report.html and pictures of a run: what was found, where, and how sure, on a few objects of every test category."""

from __future__ import annotations

import base64
import html
import io

import numpy as np

from data_pipelines.input import eval_batches
from experiments import pictures
from experiments.build import index_rows
from experiments.pipeline import columns
from gsclip_jax import evaluate

STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .9em;text-align:right;border-bottom:1px solid #ddd}
td:first-child,th:first-child{text-align:left}tr.mean td{font-weight:600;border-top:2px solid #888}tr.other td{color:#666}
img{max-width:100%}code{background:#f3f3f3;padding:.1em .3em}small{color:#666}"""


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


def write_report(run, results: dict, compared: dict[str, dict]) -> None:
    """Writes pictures/heatmaps.png and report.html into the work directory (once: both are cheap to delete and make again)."""
    page = run.workdir / "report.html"
    if page.exists():
        return
    records = run.test_records
    rows = index_rows(records, list(results["categories"]))
    chosen = choose(rows, run.config.eval.pictures)
    sheet = _sheet(run, chosen) if chosen else None
    if sheet is not None:
        pictures.save(sheet, run.workdir / "pictures" / "heatmaps.png")
    temporary = page.with_name(page.name + ".tmp")
    temporary.write_text(_html(run, results, compared, sheet))
    temporary.replace(page)


def _sheet(run, chosen: list[dict]):
    folder = run.workdir / "eval"
    found = _fields(run, {row["object_index"] for row in chosen})
    scale = {}
    drawn, labels = [], []
    for row in chosen:
        with np.load(evaluate.object_file(folder, row)) as file:
            points, score = file["points"], float(file["object"])
        if row["category"] not in scale:
            scale[row["category"]] = _ends(run, row["category"])
        drawn.append(pictures.panels(found[row["object_index"]], points, *scale[row["category"]]))
        labels.append(f"{row['category']}\n{row['name']}\ntruth: {row['defect']}\nscore {score:.3f}")
    return pictures.sheet(drawn, ["rendered view", "depth view", "ground truth", "point scores"], labels)


def _ends(run, category: str) -> tuple[float, float]:
    """Ends of a category's colour scale: the middle of all its points, and nearly their top."""
    values = []
    for row in index_rows(run.test_records, [category]):
        with np.load(evaluate.object_file(run.workdir / "eval", row)) as file:
            values.append(file["points"][file["valid"]])
    low, high = np.quantile(np.concatenate(values), [0.5, 0.998])
    return float(low), float(high)


def _fields(run, numbers: set[int]) -> dict[int, dict]:
    found = {}
    categories = list(dict.fromkeys(run.test_records.index[number]["category"] for number in numbers))
    for batch in eval_batches(run.test_records, categories=categories, batch_size=4):
        for i in np.flatnonzero(batch["real"]):
            if int(batch["object_index"][i]) in numbers:
                found[int(batch["object_index"][i])] = {name: value[i] for name, value in batch.items()}
    return found


def _html(run, results: dict, compared: dict[str, dict], sheet) -> str:
    names = columns(results["mean"], released=True)
    rows = []

    def add(label: str, values: dict, kind: str = "") -> None:
        cells = "".join(f"<td>{'–' if values.get(k) is None else f'{100 * values[k]:.1f}'}</td>" for k, _ in names)
        rows.append(f"<tr class='{kind}'><td>{html.escape(label)}</td>{cells}</tr>")

    for category, values in results["categories"].items():
        add(f"{category} ({values['n_good']} good, {values['n_defective']} defective)", values)
    add("mean", results["mean"], "mean")
    for name, other in compared.items():
        add(f"{name.replace('_', ' ')}, mean", other["mean"], "other")
    picture = ""
    if sheet is not None:
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG", optimize=True)
        picture = f"<img alt='heat maps' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"
    head = "".join(f"<th>{title}</th>" for _, title in names)
    seconds = ", ".join(f"{phase} {value:.0f} s" for phase, value in results["seconds"].items())
    made = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(str(run.workdir))}</title>
<style>{STYLE}</style><h1>Zero-shot 3D anomaly detection</h1>
<p>Trained on <b>{html.escape(results["train_category"])}</b> of <b>{html.escape(results["dataset"])}</b> alone
(variant {results["variant"]}, seed {results["seed"]}); every category below was never seen in training.
Per cent; P-PRO is exact, up to false-positive rate 0.3.</p>
<table><tr><th>category</th>{head}</tr>{"".join(rows)}</table>
<p>Colours run from a category's median point score (blue) to its top (red); ground truth is marked red.</p>{picture}
<p><small>{seconds}<br>{html.escape(made)}</small></p></html>
"""
