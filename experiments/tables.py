"""Makes tables of finished runs, beside the published numbers.

python -m experiments.tables WORKDIR... [--out DIR]

Tables of finished runs, beside the published numbers: OUT/table.md, table.csv and table.html (default: OUT is the first WORKDIR).
A WORKDIR is a run, a protocol run (mean over auxiliary categories) or the folder of a sweep. Runs that differ in the seed alone
are one row: mean and standard deviation over the seeds. Every row says which protocol it follows; like is compared with like.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from data_pipelines import storage
from data_pipelines.command import command, guarded
from data_pipelines.files import write_atomic
from data_pipelines.rendering import lettering
from experiments import pages
from experiments.outputs import refuse_foreign
from experiments.published import METHODS, METRICS, MODULES, ROWS
from gsclip_jax.inspection import markup
from gsclip_jax.runtime.names import csv_text, one_line

TITLES = {"o_auroc": "O-AUROC", "o_ap": "O-AP", "p_auroc": "P-AUROC", "p_pro": "P-PRO"}
TABLES = ("table.md", "table.csv", "table.html")
SINGLE = "one auxiliary category"
CSV_HEAD = ("row", "dataset", "protocol", "variant", "method", "seed", "category")


@dataclass
class Entry:
    """One row of the table: the runs of a name, one for each seed."""

    name: str
    runs: list[dict]

    @property
    def protocol(self) -> str:
        first = self.runs[0]
        if first.get("trained_on", first["dataset"]) != first["dataset"]:
            return f"cross, trained on {first['trained_on']}"
        if "auxiliary" in first:
            return f"one-vs-rest, mean over {len(first['auxiliary'])} auxiliary categories"
        return f"{SINGLE} ({first['train_category']})"

    @property
    def published_protocol(self) -> str | None:
        """The published protocol that this is, if any."""
        first = self.runs[0]
        if len(first.get("auxiliary", ())) != 3 or not first["preset"]:
            return None
        if first["trained_on"] != first["dataset"]:
            return "cross" if first["trained_on"] == "mvtec3d" else None
        return "one-vs-rest"

    def value(self, metric: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation over the seeds, per cent; None where the metric is undefined."""
        found = [100 * run["mean"][metric] for run in self.runs if run["mean"].get(metric) is not None]
        if not found:
            return None
        return statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None

    def published(self) -> tuple[tuple[float | None, ...], str] | None:
        """The published values of the same method, data set and protocol, and where they come from."""
        first = self.runs[0]
        if first["dataset"] == "mvtec3d" and self.published_protocol and self.name in MODULES:
            return MODULES[self.name], "GS-CLIP's ablation on MVTec3D-AD (digest)"
        for row in ROWS:
            same = row.method == METHODS.get(first.get("method", "gsclip")) and row.dataset == first["dataset"]
            if same and row.protocol == self.published_protocol:
                return row.values, f"{row.method}, {row.protocol} ({row.source}{'; ' if row.note else ''}{row.note})"
        return None


def collect(folders: list[Path]) -> list[Entry]:
    """The rows of the folders' runs, in their order.

    Raises:
      ValueError: a folder without results, or one that is not there.
    """
    entries: dict[tuple, Entry] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder")
        order = folder / "rows.json"  # of a sweep; runs that it does not name come last
        names = json.loads(order.read_text(encoding="utf-8")) if order.exists() else []
        number = {name: i for i, name in enumerate(names)}
        files = [folder / "results.json"] if (folder / "results.json").exists() else sorted(
            folder.glob("*/results.json"), key=lambda p: (number.get(p.parent.name, len(number)), p))  # fmt: skip
        if not files:
            raise ValueError(f"{folder} holds no results.json, nor do the folders in it: run experiments.run or .sweep first")
        for file in files:
            run = json.loads(file.read_text(encoding="utf-8"))
            name = re.sub(r"-s\d+$", "", file.parent.name)
            key = (file.parent.parent, name, run["dataset"], run.get("train_category"), run.get("variant"), run.get("method"))
            entries.setdefault(key, Entry(name, [])).runs.append(run)
    return list(entries.values())


def show(value: tuple[float, float | None] | None) -> str:
    if value is None:
        return "-"
    return f"{value[0]:.1f}" + ("" if value[1] is None else f" ± {value[1]:.1f}")


def header(entries: list[Entry]) -> list[str]:
    names = ["row", "data set", "protocol", "seeds", *TITLES.values()]
    if any(entry.published() for entry in entries):
        names += [f"{title} published (ours less it)" for title in TITLES.values()] + ["published by"]
    return names


def cells(entries: list[Entry]) -> list[list[str]]:
    """The table's text, row by row, without the header."""
    beside, rows = any(entry.published() for entry in entries), []
    for entry in entries:
        first, values = entry.runs[0], [entry.value(metric) for metric in METRICS]
        row = [entry.name, first["dataset"], entry.protocol, str(len(entry.runs)), *map(show, values)]
        if beside:
            given, source = entry.published() or ((None,) * 4, "-")
            row += [
                "-" if old is None else f"{old:.1f}" + ("" if new is None else f" ({new[0] - old:+.1f})")
                for old, new in zip(given, values, strict=True)
            ] + [source]
        rows.append(row)
    return rows


def filled(entries: list[Entry]) -> list[list[str]]:
    """Header and rows without the columns in which no row has a value."""
    rows = [header(entries), *cells(entries)]
    kept = [column for column in zip(*rows, strict=True) if set(column[1:]) != {"-"}]
    return [list(row) for row in zip(*kept, strict=True)]


def markdown(entries: list[Entry]) -> str:
    head, *rows = filled(entries)
    rows = [head, ["---"] * len(head), *([_markdown_text(cell) for cell in row] for row in rows)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _markdown_text(cell: str) -> str:
    """Names as text: no cell or line of their own, no tags, no links, no emphasis; `a_b` stays legible."""
    cell = html.escape(one_line(cell), quote=False)
    return re.sub(r"([\\`*\[\]|]|^_|_$|(?<=\W)_|_(?=\W))", r"\\\1", cell)


def write_csv(entries: list[Entry], path: Path) -> None:
    """A line for each run, category and metric: for those who make their own tables. Names are written by `names.csv_text`."""
    text = io.StringIO(newline="")
    out = csv.writer(text)
    out.writerow([*CSV_HEAD, *METRICS])
    for entry in entries:
        for run in entry.runs:
            for name, values in [*run["categories"].items(), ("mean", run["mean"])]:
                numbers = ["" if values.get(m) is None else f"{values[m]:.6f}" for m in METRICS]
                about = [run["dataset"], entry.protocol, run["variant"], run.get("method", "gsclip"), run["seed"], name]
                out.writerow([csv_text(str(cell)) for cell in (entry.name, *about)] + numbers)
    write_atomic(path, text.getvalue().encode())


def shortened(name: str, most: int = 40) -> str:
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def plot(entries: list[Entry]) -> bytes:
    """PNG: a panel for each metric, a dot for each row, its seeds' spread as a bar, the published value as a ring."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.2 + 0.32 * len(entries)), layout="constrained")
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for panel, (number, metric) in zip(panels, enumerate(METRICS), strict=True):
        for y, entry in enumerate(entries):
            value, given = entry.value(metric), entry.published()
            if value:
                panel.errorbar(value[0], y, xerr=value[1] or 0, fmt="o", color="#1f5fa8", capsize=3)
            if given and given[0][number] is not None:
                panel.plot(given[0][number], y, "o", mfc="none", mec="#c2571a", ms=9)
        panel.set_title(TITLES[metric], fontsize=10)
        panel.grid(axis="x", color="#ddd")
        panel.set_axisbelow(True)
    labels = [lettering.legible(shortened(entry.name)) for entry in entries]
    families = list(dict.fromkeys(name for _, names in labels for name in names))
    names = [label for label, _ in labels]
    panels[0].set_yticks(range(len(entries)), names, parse_math=False, fontfamily=families)  # dollar signs make no formula
    panels[0].invert_yaxis()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


def page(entries: list[Entry]) -> str:
    rings = any(entry.published() for entry in entries)
    return pages.page("table.html", rows=filled(entries), rings=rings, picture=markup.picture(plot(entries)))


def write(folders: list[Path], out: Path) -> str:
    """Writes the three files into `out`; returns the markdown.

    Raises:
      ValueError: of `collect`, or `out` holds a file of these names that this command did not make; nothing is written then.
    """
    entries = collect(folders)
    text, whole = markdown(entries), page(entries)
    head = whole.partition("\n")[0]
    begins = {"table.md": "| row | data set | ", "table.csv": ",".join(CSV_HEAD), "table.html": head}
    for name, start in begins.items():
        refuse_foreign(out / name, start)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.md", text.encode())
    write_csv(entries, out / "table.csv")
    write_atomic(out / "table.html", whole.encode())
    return text


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status; expected failures are one line on standard error."""

    parser = argparse.ArgumentParser(prog="python -m experiments.tables", description=__doc__.split("\n\n")[2])
    parser.add_argument("workdirs", nargs="+", metavar="WORKDIR")
    parser.add_argument("--out", metavar="DIR", help="default: the first WORKDIR")
    options = parser.parse_args(arguments)

    def work() -> None:
        folders = [storage.opened(name, write=name == options.workdirs[0] and not options.out) for name in options.workdirs]
        for folder in folders:
            storage.pull(folder, re.compile(r"rows\.json|([^/]+/)?results\.json|table\.\w+").fullmatch)
        out = storage.opened(options.out) if options.out else folders[0]
        print(write(folders, out))
        storage.push(out, TABLES.__contains__)
        print(storage.named(f"wrote {out / 'table.md'}, table.csv, table.html"))

    return guarded(work)


if __name__ == "__main__":
    sys.exit(command(main))
