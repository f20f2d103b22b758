"""Scores of every test object on disk, and the metrics of every category from them.

`score_objects` needs the model; `tabulate` only reads what it left, so tables can be rebuilt at any time. An object that has its
file is not scored again: a killed evaluation continues.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from data_pipelines import storage
from data_pipelines.files import atomic
from data_pipelines.progress import Progress
from gsclip_jax.evaluation import metrics
from gsclip_jax.method import Method, Params, Scores, Stats
from gsclip_jax.runtime.distributed import shared, wait
from gsclip_jax.runtime.memory import choose
from gsclip_jax.runtime.names import csv_text, file_part
from gsclip_jax.runtime.sharding import local_rows, pad_batch, put_batch, split_rows

PARTS = ("colour", "joint")  # what the colour plug-in adds: scores of the colour image, and of both together
SYNC_S = 30.0  # between two times that scores go to an object store
METRICS = ("o_auroc", "o_ap", "p_auroc", "p_auroc_released", "p_pro", "p_pro_released")


def score_objects(
    method: Method,
    params: Params,
    stats: Stats,
    index: Sequence[dict],
    batches: Callable[[list[int]], Iterator[dict]],
    folder: str | Path,
    *,
    mesh: jax.sharding.Mesh,
    rgb: bool = False,
    together: bool = False,
) -> None:
    """Writes folder/CATEGORY/OBJECT.npz, every process those of its share: points float32 [M], valid, point_mask bool [M],
    regions int32 [M] (0 = none), organised bool, object float32, label int; with `rgb` also points_colour, points_joint,
    object_colour, object_joint.

    Args:
      index: one row an object: {"object_index", "category", "name"}.
      batches: object_index numbers -> batches with exactly those objects, in order, the last one padded. A batch that does not
        divide among the devices is filled up with repeats.
      together: the objects of a batch share statistics: it is never taken in parts. Else it is where the memory asks for it.

    Raises:
      DoesNotFit: not even the smallest part of a batch can be scored in the memory.
    """
    folder = Path(folder)
    by_number = {row["object_index"]: row for row in index}
    missing = shared("unscored", lambda: [row["object_index"] for row in index if not object_file(folder, row).exists()])
    if not missing:
        return
    predict, program = partial(_with_colour if rgb else _alone, method), None
    progress, done = Progress("evaluating", len(missing)), 0
    for batch in batches(missing):
        batch = pad_batch(batch, mesh)
        program = program or _planned(predict, (params, stats), batch, mesh, together)
        found, mine = program(batch)
        for row in np.flatnonzero(batch["real"] & mine):
            valid, mask = batch["valid"][row], batch["point_mask"][row]
            organised = bool(batch["organised"][row])
            _write(
                object_file(folder, by_number[int(batch["object_index"][row])]),
                valid=valid,
                point_mask=mask,
                regions=_regions(mask & valid, batch["xyz"][row], organised),
                organised=organised,
                label=int(batch["label"][row]),
                **{name: value[row] for name, value in found.items()},
            )
            done += 1
        progress.update(done * jax.process_count())
        storage.sync(folder, SYNC_S)
    wait("evaluated")


@dataclass(frozen=True)
class ScorePlan:
    """Rows of this process that are scored at once, of those of a batch."""

    rows: int
    batch: int
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.rows} of {self.batch} objects at once" if self.rows < self.batch else "whole batches"


def score_plans(count: int, smallest: int, together: bool) -> list[ScorePlan]:
    """The plans for a batch of `count` objects, the largest parts first; no part has fewer than `smallest`, the devices' number.

    Args:
      together: the objects of a batch share statistics: it is never taken in parts.
    """
    sizes = [count] if together else [rows for rows in range(count, 0, -1) if count % rows == 0 and rows % smallest == 0]
    return [ScorePlan(rows, count) for rows in sizes]


def _planned(
    predict, given: tuple, batch: dict, mesh: jax.sharding.Mesh, together: bool
) -> Callable[[dict], tuple[dict, np.ndarray]]:
    """host batch -> scores of this process's rows, host arrays, and which of them it writes; by the largest parts of a batch that
    fit the memory."""
    count, smallest = len(batch["real"]), len(pad_batch({"real": batch["real"][:1]}, mesh)["real"])
    jitted = jax.jit(predict, out_shardings=split_rows(mesh))

    def part(batch: dict, start: int, rows: int) -> dict[str, jax.Array]:
        return put_batch({name: value[start : start + rows] for name, value in batch.items()}, mesh)

    def compiled(plan: ScorePlan) -> jax.stages.Compiled:
        with jax.set_mesh(mesh):
            return jitted.lower(*given, part(batch, 0, plan.rows)).compile()

    plan, program, _ = choose("evaluation", score_plans(count, smallest, together), compiled, mesh)

    def scored(batch: dict) -> tuple[dict, np.ndarray]:
        found = [jax.tree.map(local_rows, program(*given, part(batch, start, plan.rows))) for start in range(0, count, plan.rows)]
        joined = {name: tuple(map(np.concatenate, zip(*(rows[name] for rows in found), strict=True))) for name in found[0]}
        return {name: rows for name, (rows, _) in joined.items()}, joined["object"][1]

    return scored


def _alone(method: Method, params: Params, stats: Stats, batch) -> dict[str, jax.Array]:
    """What is written of a batch's scores: {points [B,M], object [B]}, float32. Those of the views are not even computed."""
    return _written(method.predict(params, stats, batch))


def _with_colour(method, params: Params, stats: Stats, batch) -> dict[str, jax.Array]:
    """The scores without colour, and what the colour plug-in adds."""
    found = method.predict_rgb(params, stats, batch)
    maps = {f"points_{part}": found[f"{part}_map"].reshape(len(batch["label"]), -1) * batch["valid"] for part in PARTS}
    return {**_written(found["geometry"]), **maps, **{f"object_{part}": found[part] for part in PARTS}}


def _written(scores: Scores) -> dict[str, jax.Array]:
    return {"points": scores.points.astype(np.float32), "object": scores.object.astype(np.float32)}


def _regions(mask: np.ndarray, xyz: np.ndarray, organised: bool) -> np.ndarray:
    if not organised:
        return metrics.regions_points(xyz, mask)
    side = round(len(mask) ** 0.5)
    return metrics.regions_grid(mask.reshape(side, side)).reshape(-1)


def object_file(folder: str | Path, row: dict) -> Path:
    """Where the scores of an index row lie: in the folder, whatever category and scan are called."""
    return Path(folder) / file_part(row["category"]) / f"{file_part(row['name'])}.npz"


def _write(path: Path, **arrays) -> None:
    with atomic(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **arrays)


def tabulate(index: Sequence[dict], folder: str | Path) -> dict[str, dict]:
    """Metrics of every category, from the files of `score_objects`; values in [0, 1], None where undefined.

    P-AUROC pools the valid points of a category; objects whose index row says `labelled` False (defective, but nobody marked
    where) count for the object metrics alone. `*_released` count the empty pixels of organised scans as score 0 and are
    None on unorganised scans where the released code has no such number (P-PRO).
    """
    tables = {}
    for category in dict.fromkeys(row["category"] for row in index):
        rows = [row for row in index if row["category"] == category]
        found = [_read(object_file(folder, row)) | {"labelled": row.get("labelled", True)} for row in rows]
        tables[category] = _category(found)
        for part in PARTS:
            if all(f"object_{part}" in f for f in found):
                values = _category([f | {"points": f[f"points_{part}"], "object": f[f"object_{part}"]} for f in found])
                tables[category] |= {f"{part}_{name}": values[name] for name in METRICS}
    return tables


def _read(path: Path) -> dict:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _category(found: list[dict]) -> dict:
    labels = np.array([int(f["label"]) for f in found])
    objects = np.array([float(f["object"]) for f in found])
    marked = [f for f in found if f["labelled"]] or found[:1]  # without any, the point metrics come out undefined
    every_score = np.concatenate([np.where(f["valid"], f["points"], 0) for f in marked])
    every_region = metrics.join_regions([f["regions"] for f in marked])
    valid = np.concatenate([f["valid"] for f in marked])
    on_points = metrics.point_metrics(every_region[valid], every_score[valid])
    values = {
        "o_auroc": metrics.roc_auc(labels, objects),
        "o_ap": metrics.average_precision(labels, objects),
        "p_auroc": on_points["p_auroc"],
        "p_auroc_released": metrics.roc_auc(every_region > 0, every_score),
        "p_pro": on_points["p_pro"],
        "p_pro_released": None,
    }
    if all(bool(f["organised"]) for f in found):
        values["p_pro_released"] = metrics.p_pro_released(every_region, every_score)
    clean = {name: None if value is None or np.isnan(value) else round(float(value), 6) for name, value in values.items()}
    return {**clean, "n_good": int((labels == 0).sum()), "n_defective": int((labels == 1).sum())}


def mean(tables: dict[str, dict]) -> dict[str, float | None]:
    """Mean over categories of every metric; a metric undefined in a category is left out there, None if it is nowhere defined."""
    out = {}
    names = [*METRICS, *(f"{part}_{name}" for part in PARTS for name in METRICS)]
    for name in [name for name in names if any(name in table for table in tables.values())]:
        values = [table[name] for table in tables.values() if table.get(name) is not None]
        out[name] = round(float(np.mean(values)), 6) if values else None
    return out


def write_scores(index: Sequence[dict], folder: str | Path, path: str | Path) -> None:
    """scores.csv, whole or not at all: one row an object, with its score and the largest point score.

    Names that a spreadsheet would compute have an apostrophe before them; `names.csv_name` takes it off.
    """
    with atomic(Path(path)) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "name", "defect", "label", "score", "max_point_score"])
        for row in index:
            found = _read(object_file(folder, row))
            most = found["points"][found["valid"]].max()
            named = [csv_text(row[key]) for key in ("category", "name", "defect")]
            writer.writerow([*named, int(found["label"]), f"{float(found['object']):.6f}", f"{float(most):.6f}"])


