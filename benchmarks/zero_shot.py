"""The zero-shot benchmark: every method on unseen categories at three difficulties, and on real shapes.

    python benchmarks/zero_shot.py [--workdir runs/zero-shot] [--difficulties easy,middle,hard] [--seeds 0,1,2]
        [--real ../shared/data/real3d_ad] [--jobs 1] [--report] [--out benchmarks/zero_shot.md]

Runs what is missing of the sweeps zero_shot.py and real_shapes.py through experiments.sweep, then writes the report: mean and
standard deviation over the seeds, and the bootstrap interval over objects (95 per cent, first seed). Real shapes are scored by
models trained on the embedded auxiliary category, never on them; without the folder of --real that part is left out, saying so.
`--report` runs nothing and reports what is complete; the column of seeds says how much that is.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

METRICS = {"o_auroc": "O-AUROC", "o_ap": "O-AP", "p_auroc": "P-AUROC", "p_pro": "P-PRO"}
KINDS = ("bulge", "dent", "hole", "crack", "break", "bend")
ALIASES = {"sink": "dent", "broken": "break", "bending": "bend"}  # as the data sets' files name them


def scored(workdir: Path) -> dict[str, list[dict]]:
    """The scored objects of a run, by category, each with its file's name."""
    found: dict[str, list[dict]] = {}
    for path in sorted((workdir / "eval").glob("*/*.npz")):
        with np.load(path, allow_pickle=False) as file:
            kept = {name: file[name] for name in ("points", "valid", "point_mask", "object", "label")}
        found.setdefault(path.parent.name, []).append({**kept, "name": path.stem})
    return found


def by_kind(categories: dict[str, list[dict]]) -> dict[str, float]:
    """P-AUROC within the objects of each defect kind, mean over categories: how well each kind is found where it is."""
    from data_pipelines.datasets.real3d import defect_of
    from gsclip_jax.evaluation.metrics import roc_auc

    out = {}
    for kind in KINDS:
        values = []
        for found in categories.values():
            rows = [f for f in found if ALIASES.get(named := defect_of(f["name"]), named) == kind]
            if rows:
                mask, points = (np.concatenate([f[key][f["valid"]] for f in rows]) for key in ("point_mask", "points"))
                values.append(roc_auc(mask, points))
        if values:
            out[kind] = float(np.mean(values))
    return out


def section(title: str, rows: list, prefix: str) -> str:
    """The tables of one difficulty, from its runs; `prefix` is taken off the rows' names."""
    from experiments.tables import Entry, show
    from gsclip_jax.evaluation.bootstrap import intervals

    entries: dict[str, Entry] = {}
    first = {}
    for row in rows:
        entries.setdefault(row.name, Entry(row.name, [])).runs.append(row.results())
        first.setdefault(row.name, row)
    lines = [f"## {title}\n", "| method | seeds | " + " | ".join(METRICS.values()) + " | O-AUROC, 95% | P-AUROC, 95% |",
             "|---|---|" + "---|" * (len(METRICS) + 2)]  # fmt: skip
    kinds = []
    for name, entry in entries.items():
        categories = scored(first[name].workdir)
        found = intervals(categories)
        spans = [f"{100 * found[key][1]:.0f} to {100 * found[key][2]:.0f}" for key in ("o_auroc", "p_auroc")]
        cells = [show(entry.value(metric)) for metric in METRICS]
        lines.append("| " + " | ".join([name.removeprefix(prefix), str(len(entry.runs)), *cells, *spans]) + " |")
        kinds.append((name.removeprefix(prefix), by_kind(categories)))
    if any(values for _, values in kinds):
        held_out = set(rows[0].config.data.synthetic.held_out)
        groups = {kind: [kind] for kind in KINDS}
        if held_out:
            groups |= {"mean of the shown": [k for k in KINDS if k not in held_out], "of the held out": sorted(held_out)}
        heads = [f"{name} (held out)" if name in held_out else name for name in groups]
        lines += ["\nP-AUROC on the defective objects of each kind, first seed"
                  + (" (held out: neither the embedded CLIP nor the methods' training saw the kind):\n" if held_out else ":\n"),
                  "| method | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]  # fmt: skip
        for name, values in kinds:
            cells = [
                f"{100 * np.mean([values[k] for k in group]):.1f}" if all(k in values for k in group) else "-"
                for group in groups.values()
            ]
            lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    from experiments import sweep

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/zero-shot"))
    parser.add_argument("--difficulties", default="easy,middle,hard")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--real", type=Path, default=Path("../shared/data/real3d_ad"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="run nothing; report what is complete")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "zero_shot.md")
    options = parser.parse_args()
    seeds, wanted = [int(seed) for seed in options.seeds.split(",")], options.difficulties.split(",")
    parts, sections = [("sweeps/zero_shot.py", [], options.workdir)], []
    if options.real.is_dir():
        parts.append(("sweeps/real_shapes.py", [("target.root", str(options.real))], options.workdir / "real"))
    for name, changes, folder in parts:
        rows = sweep.expand(name, changes, seeds, folder)
        rows = [row for row in rows if row.name.partition("-")[0] in (*wanted, "real")]
        command = [sys.executable, "-m", "experiments.sweep", "--config", name, "--workdir", str(folder)]
        command += ["--seeds", options.seeds, *(f"--config.{key}={value}" for key, value in changes)]
        if options.report:
            rows = [row for row in rows if row.results()]
        else:
            sweep.note_order(rows)
            if sweep.run_rows(rows, command, options.jobs):
                print("not every row is complete: no report; the same command goes on", file=sys.stderr)
                return 1
        for group in dict.fromkeys(row.name.partition("-")[0] for row in rows):
            title = "Real shapes" if group == "real" else f"Synthetic, {group}"
            sections.append(section(title, [row for row in rows if row.name.startswith(f"{group}-")], f"{group}-"))
    if not sections:
        print(f"nothing is complete under {options.workdir}: run the same without --report", file=sys.stderr)
        return 1
    every = [json.loads(path.read_text()) for path in options.workdir.rglob("results.json")]
    results = next((found for found in every if "clip" in found["weights"]), every[0])
    about = (
        "# Zero-shot benchmark\n\nMade by `python benchmarks/zero_shot.py` (see there). Per cent, mean over categories that\n"
        "neither the embedded CLIP nor the methods were trained on; mean ± standard deviation over the seeds, and bootstrap\n"
        f"intervals over objects of the first seed.\n\nEmbedded CLIP {results['weights'].get('clip', '')[:12]}, "
        f"Python {platform.python_version()}, jax {results['versions']['jax']}, CPU.\n\n"
    )
    left_out = "" if options.real.is_dir() else f"\nReal shapes left out: no folder {options.real}.\n"
    options.out.write_text(about + "\n".join(sections) + left_out)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
