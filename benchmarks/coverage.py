"""Whether verdicts by good parts keep the false-alarm rate they state: the project's own good parts, scored by the detector.

    python benchmarks/coverage.py [--category vase ...] [--good 50] [--parts 200] [--workdir runs/coverage]
        [--out benchmarks/coverage.md]

Parts of one family, every one with its own dimensions, pose, warp, number of points and noise, are scored once and their scores
kept in --workdir (stopped, the same command goes on). The first `--good` of them are the good parts, with a dent each to find out
what a sound verdict is worth; the next `--parts` are judged, as are defective ones. Then all of them are divided otherwise, at
random, many times. The model is the embedded one with fewer scored points and smaller drawings (`--scored`): the rate does not
depend on the model, and a part takes a second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

RATES = (0.05, 0.1, 0.2)
SPLITS = 1000
WINDOW = 160  # pixels of the drawings
SURE = 0.99  # of the intervals


def scored_rows(path: Path, detector, category: str, good: int, parts: int, defective: int, points: int) -> list[dict]:
    """A row a part, its score and its highest and middle point score; kept in `path`, and taken from there."""
    from data_pipelines.progress import Progress
    from data_pipelines.solids.defects import ALL_DEFECTS
    from data_pipelines.solids.synthetic import make_object
    from gsclip_jax.inspection.batch import with_dent

    jobs = [(i, "good") for i in range(good + parts)]
    jobs += [(good + parts + i, ALL_DEFECTS[i % len(ALL_DEFECTS)]) for i in range(defective)]
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    progress = Progress("scoring: {} of {} parts", len(jobs), done=len(rows))
    with path.open("a") as file:
        for number, kind in jobs[len(rows) :]:
            xyz, *_ = make_object(category, 0, number, kind, points=points, difficulty="middle")
            prepared = detector.prepare(xyz, f"{category} {number}")
            part = detector.finish(prepared)
            row = {"number": number, "kind": kind, "score": part.score, "highest": float(np.nanmax(part.points)),
                   "middle": float(np.nanmedian(part.points))}  # fmt: skip
            if number < good:
                row["dented"] = detector.finish(with_dent(detector, prepared, 0)).score
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            progress.update(len(rows))
    return rows


def calibration(rows: list[dict], rate: float):
    """By these good parts."""
    from gsclip_jax.inspection.calibration import Calibration

    columns = {key: tuple(row[key] for row in rows) for key in ("score", "highest")}
    dents = tuple(row["dented"] for row in rows if "dented" in row)
    middle = float(np.median([row["middle"] for row in rows]))
    return Calibration("", {}, rate, columns["score"], columns["highest"], middle, dents)


def verdicts(made, rows: list[dict]) -> Counter:
    """How many of these parts are called what."""
    from gsclip_jax.inspection.result import Part

    empty = np.zeros((1, 3))
    blank = Part("", "", 0.0, empty, np.zeros(1, np.float32), None, np.zeros(1, bool), *[np.zeros((0, 2, 2), np.float32)] * 3)
    return Counter(made.judge(dataclasses.replace(blank, score=row["score"])).kind for row in rows)


def from_top(rate: float, good: int) -> int:
    """k: at this rate a part is called defective that scores above the k-th highest of so many good parts; 0: too few."""
    return int(rate * (good + 1) + 1e-9)


def within(count: int, parts: int, rate: float, good: int | None = None) -> tuple[bool, str]:
    """Whether so many of the parts may be called defective at this rate; the shares that may be, in words. With `good`, of a
    threshold by so many good parts, which are a sample as well."""
    from scipy.stats import betabinom, binom

    if good is None:
        law = binom(parts, rate)
    elif k := from_top(rate, good):
        law = betabinom(parts, k, good + 1 - k)
    else:  # too few for a threshold
        law = binom(parts, 0)
    low, high = law.ppf((1 - SURE) / 2), law.ppf((1 + SURE) / 2)
    return low <= count <= high, f"{low / parts:.1%} to {high / parts:.1%}"


def table(rows: list[dict], good: int, parts: int) -> tuple[list[str], bool]:
    """The lines of the report, and whether every share is within its interval."""
    known, judged, spoilt = rows[:good], rows[good : good + parts], rows[good + parts :]
    lines = ["| nominal | expected | good parts called defective | binomial, 99 % | with the good parts' own chance | "
             "cannot tell, of good parts | defective parts called defective |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    fine = True
    for rate in RATES:
        made = calibration(known, rate)
        told, others = verdicts(made, judged), verdicts(made, spoilt)
        exact = from_top(rate, good) / (good + 1)
        plain, (right, wide) = within(told["defective"], parts, exact)[1], within(told["defective"], parts, rate, good)
        fine &= right
        lines.append(f"| {rate:.0%} | {exact:.1%} | {told['defective'] / parts:.1%} | {plain} | {wide} | "
                     f"{told['cannot tell'] / parts:.1%} | {others['defective']} of {len(spoilt)} |")  # fmt: skip
    lines += ["", f"All {good + parts} divided at random, {SPLITS} times:", "",
              "| good parts | nominal | expected | called defective, mean | nine splits in ten | verdicts |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    rng = np.random.default_rng(0)
    for few in (few for few in (8, 30) if few < good):
        for rate in RATES:
            shares, kinds = [], Counter()
            for _ in range(SPLITS):
                order = rng.permutation(good + parts)
                told = verdicts(calibration([rows[i] for i in order[:few]], rate), [rows[i] for i in order[few:]])
                shares.append(told["defective"] / (good + parts - few))
                kinds += told
            low, high = np.quantile(shares, [0.05, 0.95])
            exact = from_top(rate, few) / (few + 1)
            said = ", ".join(f"{count / kinds.total():.0%} {kind}" for kind, count in sorted(kinds.items()))
            lines.append(f"| {few} | {rate:.0%} | {exact:.1%} | {np.mean(shares):.1%} | {low:.1%} to {high:.1%} | {said} |")
    return lines, fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--category", nargs="+", default=["vase"], help="of data_pipelines/solids")
    parser.add_argument("--workdir", type=Path, default=Path("runs/coverage"))
    for name, default in (("good", 50), ("parts", 200), ("defective", 30), ("points", 3000), ("scored", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    options = parser.parse_args()
    from gsclip_jax.inspection.detector import Detector
    from gsclip_jax.inspection.formats import saved_model
    from gsclip_jax.runtime.compiled import keep_compiled

    keep_compiled()
    model = saved_model()
    recipe = dataclasses.replace(model.recipe, points=options.scored, window=WINDOW)
    detector = Detector(dataclasses.replace(model, recipe=recipe))
    counts = options.good, options.parts, options.defective, options.points
    sections, fine = [], True
    for category in options.category:
        name = "-".join(map(str, (category, *counts, options.scored, model.digest[:8])))
        rows = scored_rows(options.workdir / f"{name}.jsonl", detector, category, *counts)
        lines, right = table(rows, options.good, options.parts)
        sections += [f"## {category}\n", *lines, ""]
        fine &= right
    text = "\n".join([
        "# Do verdicts keep the rate of false alarms that they state?\n",
        f"Made by `python benchmarks/coverage.py --category {' '.join(options.category)}` (see there): of each family "
        f"{options.good} good parts, {options.parts} other good ones judged, {options.defective} defective; embedded model, "
        f"{options.scored} points.\n",
        *sections,
    ])  # fmt: skip
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0 if fine else 1


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
