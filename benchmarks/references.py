"""What good parts as references are worth on scans of real shapes: zero-shot, references alone, and both.

    python benchmarks/references.py [--real ../shared/data/real3d_ad] [--workdir runs/references] [--out benchmarks/references.md]

Of every category both templates and half of the good test scans are references (each half in turn); the other good scans and the
defective ones are scored. `--scans` leaves the templates out: references that were scanned as the parts were, alone. The detector
of `gsclip inspect` with the embedded model; shares of the references are fixed here, the command chooses one by dents put into
the references. What the model says of a scan is kept in --workdir: stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SHARES = (0.0, 0.5, 0.75, 0.9, 1.0)
HEADS = ("O-AUROC", "P-AUROC", "P-AP")


def described(path: Path, load, detector) -> dict[str, np.ndarray]:
    """What the model says of a scan and what its points are, kept in `path`."""
    from data_pipelines.files import atomic
    from data_pipelines.records.objects import make_object, to_batch
    from gsclip_jax.inspection.references import seen

    if not path.exists():
        made = make_object(load(), detector.recipe, "", "")  # with its ground truth, which `detector.prepare` knows nothing of
        batch = to_batch([made])
        found = seen(*detector.model.described(batch), batch)
        kept = {f"token {stream}": values for stream, values in found.tokens.items()} | dict(found.fields)
        with atomic(path) as part, part.open("wb") as file:
            np.savez(file, object=found.object, points=found.points, mask=made["point_mask"], size=found.size, **kept)
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def as_seen(kept: dict[str, np.ndarray]):
    """A kept scan as references see it."""
    from gsclip_jax.inspection.references import FIELDS, Seen

    tokens = {key.removeprefix("token "): values for key, values in kept.items() if key.startswith("token ")}
    return Seen(kept["object"], kept["points"], tokens, {key: kept[key] for key in FIELDS}, int(kept["size"]))


def scored(scans: dict[str, dict], references: list[str], tested: list[str], labels: dict[str, int]) -> np.ndarray:
    """[shares, 3]: HEADS on the tested scans of one category. Points are ranked over all of them together."""
    from gsclip_jax.evaluation.metrics import average_precision, roc_auc
    from gsclip_jax.inspection.references import make_references
    from gsclip_jax.method import Scores

    parts = [as_seen(scans[name]) for name in references]
    made = make_references("", {}, parts, parts)  # no dents: the share is given
    truth, mask = np.array([labels[name] for name in tested]), []
    objects, points = ([[] for _ in SHARES] for _ in range(2))
    for name in tested:
        part, kept = as_seen(scans[name]), scans[name]
        valid = kept["valid"][0]
        mask.append(kept["mask"][valid])
        ways = made.ways(part)
        for at, share in enumerate(SHARES):
            scores = dataclasses.replace(made, share=share).joined(Scores(part.object, part.points, None), ways, kept["valid"])
            objects[at].append(float(scores.object[0]))
            points[at].append(scores.points[0, valid])
    mask, points = np.concatenate(mask), [np.concatenate(each) for each in points]
    return np.array([(roc_auc(truth, np.array(one)), roc_auc(mask, each), average_precision(mask, each))
                     for one, each in zip(objects, points, strict=True)])  # fmt: skip


def main() -> int:
    from data_pipelines.datasets.real3d import Real3D
    from data_pipelines.progress import Progress

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", type=Path, default=Path("../shared/data/real3d_ad"))
    parser.add_argument("--workdir", type=Path, default=Path("runs/references"))
    parser.add_argument("--categories", default="", help="comma-separated; default: all")
    parser.add_argument("--scans", action="store_true", help="without the templates")
    parser.add_argument("--out", type=Path, help="also write the table there, as Markdown")
    options = parser.parse_args()
    from gsclip_jax.inspection.detector import Detector
    from gsclip_jax.inspection.formats import saved_model
    from gsclip_jax.runtime.compiled import keep_compiled

    keep_compiled()
    detector, reader = Detector(saved_model()), Real3D(options.real)
    options.workdir.mkdir(parents=True, exist_ok=True)
    categories = options.categories.split(",") if options.categories else reader.categories()
    progress, found = Progress("{} of {} categories", len(categories)), {}
    for number, category in enumerate(categories, 1):
        samples = [*reader.samples(category, "train"), *reader.samples(category)]
        scans = {one.id: described(options.workdir / f"{category} {one.id}.npz", lambda one=one: reader.load(one), detector)
                 for one in samples}  # fmt: skip
        labels = {one.id: one.label for one in samples}
        templates = [] if options.scans else [one.id for one in samples if one.split == "train"]
        good, bad = ([one.id for one in samples if one.split == "test" and one.label == label] for label in (0, 1))
        halves = good[::2], good[1::2]
        found[category] = np.mean([scored(scans, [*templates, *half], [*other, *bad], labels)
                                   for half, other in (halves, halves[::-1])], 0)  # fmt: skip
        progress.update(number)
    names = ["zero-shot", *(f"both, share {share:g}" for share in SHARES[1:-1]), "references alone"]
    lines = [f"| {' | '.join(['', *HEADS])} | O-AUROC, P-AUROC by category: {', '.join(found)} |", "|---|---|---|---|---|"]
    for at, name in enumerate(names):
        rows = np.array([values[at] for values in found.values()])
        each = ", ".join(f"{100 * row[0]:.0f} {100 * row[1]:.0f}" for row in rows)
        lines.append(f"| {name} | {' | '.join(f'{100 * value:.1f}' for value in rows.mean(0))} | {each} |")
    text = "\n".join([
        "# Good parts as references\n",
        f"Made by `python benchmarks/references.py{' --scans' if options.scans else ''}` (see there): per cent, mean over "
        f"{len(found)} real shapes.\n", *lines, "",
    ])  # fmt: skip
    print(text)
    if options.out:
        options.out.write_text(text)
    return 0


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
