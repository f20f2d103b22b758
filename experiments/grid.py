"""The rows of a grid of runs: what is known of each, whoever runs it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines import leases, storage
from data_pipelines.files import write_json
from data_pipelines.progress import span
from experiments import evaluations

LOG = "log.txt"
ORDER = "rows.json"
RESULTS = re.compile(r"[^/]+/(config\.json|results\.json|seconds\.json|evaluations/[^/]+/results\.json|eval/evaluation\.json)$")


@dataclass(frozen=True)
class Row:
    """One run of a sweep."""
    number: int
    name: str  # of the grid's row, without the seed
    config: ConfigDict
    workdir: Path

    @property
    def label(self) -> str:
        return self.workdir.name

    def results(self) -> dict | None:
        """Of this row's configuration; None where there are none, or those of another."""

        path = evaluations.find(self.workdir, self.config)
        return json.loads(path.read_text()) if path else None


def note_order(rows: list[Row]) -> None:
    """Writes the rows' names into rows.json beside them, behind those of other sweeps there: tables keep this order."""
    folder = rows[0].workdir.parent
    folder.mkdir(parents=True, exist_ok=True)
    with leases.locked(folder / ".rows.lock"):  # rows that start together each note it
        storage.pull(folder, ORDER.__eq__)
        path = folder / ORDER
        old = json.loads(path.read_text()) if path.exists() else []
        names = list(dict.fromkeys([*old, *(row.label for row in rows)]))
        if names != old:
            write_json(path, names)
            storage.push(folder, ORDER.__eq__)


def bring(rows: list[Row]) -> None:
    """Brings what rows found from the store, where there is one, to this machine. Not for a row that runs here: its folder is
    ahead of the store."""
    names = {row.label for row in rows}
    storage.pull(rows[0].workdir.parent, lambda name: name.split("/")[0] in names and bool(RESULTS.match(name)))


def line(row: Row, seconds: float | None = None) -> str:
    """What a finished row found, in one line."""
    mean = row.results()["mean"]
    shown = "  ".join(
        f"{title} {'-' if mean.get(key) is None else f'{100 * mean[key]:.1f}'}"
        for key, title in (("o_auroc", "O-AUROC"), ("p_auroc", "P-AUROC"), ("p_pro", "P-PRO"))
    )
    return f"{row.label}: {shown}" + ("" if seconds is None else f"  ({span(seconds)})")


def last_words(row: Row) -> str:
    """The last line of a row's log, which whoever cleared the work directory may have taken away."""
    path = row.workdir / LOG
    if not path.exists():
        return f"{path} is gone"
    lines = [text for text in path.read_text(errors="replace").splitlines() if text.strip()]
    return lines[-1] if lines else "nothing in its log"
