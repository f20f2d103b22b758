"""Checks finished records: against their source, their checksums and their own index. Reads, and writes nothing but sheets."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipelines.batch import OPTIONAL, check
from data_pipelines.files import checksum
from data_pipelines.progress import Progress
from data_pipelines.records import sheets
from data_pipelines.records.store import INDEX, RecordSet, open_records, plan_of
from data_pipelines.scan import DataError


@dataclasses.dataclass
class Counts:
    """Of one category."""

    good: int = 0
    defective: int = 0
    skipped: int = 0
    bytes: int = 0  # of its records on disk


@dataclasses.dataclass
class Report:
    counts: dict[str, Counts]
    problems: list[str]  # a line each; none: everything is as it should be
    notes: list[str]
    sheets: list[Path]


def verify(folder: str | Path, root: str | Path | None = None, progress: Callable[[str], None] = print,
           draw: bool = False) -> Report:
    """Compares what lies in `folder` with its checksums, its index and the source.

    Args:
      root: where the scans are now (default: where they were).
      draw: writes the contact sheets as well.

    Raises:
      DataError: `folder` holds no finished records.
    """
    records = open_records(folder)
    content = json.loads((records.dir / INDEX).read_text())
    report = Report({}, [], [], [])
    for row in [*records.index, *records.skipped]:
        report.counts.setdefault(row["category"], Counts())
    for row in records.skipped:
        report.counts[row["category"]].skipped += 1
    for row in records.index:
        counts = report.counts[row["category"]]
        counts.good, counts.defective = counts.good + (not row["label"]), counts.defective + row["label"]
    _against_source(records, content, root, report, progress)
    _against_checksums(records, content, report, progress)
    if not report.problems:  # TFDS gives up at the first broken file, and less clearly
        _read(records, report, progress, draw)
    return report


def _against_source(records: RecordSet, content: dict, root: str | Path | None, report: Report, progress) -> None:
    """Counts by category and label against the reader's; whether the files are still those that were read."""
    source = content.get("source")
    if source is None:
        report.notes.append("these records do not say where they come from: counts were not compared with the source")
        return
    home = Path(root or source["root"]).expanduser().absolute()
    if not root and not home.is_dir():
        report.notes.append(f"the source {home} is not there: counts were not compared with it (--root says where it is now)")
        return
    config = {"name": source["name"], "reader": source["reader"], **records.recipe.json()}
    plan = plan_of(config, home, records.dir.parent, list(report.counts), progress)
    for category, counts in report.counts.items():
        for label, kind in enumerate(("good", "defective")):
            skipped = sum(row["category"] == category and row["label"] == label for row in records.skipped)
            made = counts.defective if label else counts.good
            there = sum(sample.category == category and sample.label == label for sample in plan.samples)
            if made + skipped != there:
                report.problems.append(f"category {category!r}: {made} records and {skipped} skipped, but {there} {kind} scans "
                                       f"in {home}")
    if plan.key != records.key:
        report.notes.append(f"the scans in {home} are not, by name and content, those that were read: "
                            "a run with that root will prepare records of its own")


def _against_checksums(records: RecordSet, content: dict, report: Report, progress) -> None:
    expected = content.get("sha256")
    if not expected:
        report.problems.append(f"{records.dir / INDEX} has no checksums (an earlier version made it); delete the folder and "
                               "prepare again")
        return
    say = Progress("checksums: {} of {} files", len(expected), progress, warm=1)
    for done, (name, wanted) in enumerate(expected.items(), 1):
        path = records.dir / name
        if not path.is_file():
            report.problems.append(f"{path}: missing; delete the folder and prepare again")
        elif checksum(path) != wanted:
            report.problems.append(f"{path}: not what was written (its SHA-256 differs); delete the folder and prepare again")
        say.update(done)
    for path in records.dir.glob("object_records/**/*"):
        if path.is_file() and str(path.relative_to(records.dir)) not in expected:
            report.problems.append(f"{path}: no file of these records; remove it")


def _read(records: RecordSet, report: Report, progress, draw: bool) -> None:
    """Reads every record as the models do; keeps the few of the contact sheets."""
    from data_pipelines.input import TEXTS, decoder, tf, unpack  # TensorFlow: seconds to import
    from data_pipelines.records.tfds import PICTURES, open_tfds, quiet

    features, paths = open_tfds(records.dir)
    if len(paths) != len(records.index):
        report.problems.append(f"{records.dir}: {len(paths)} records for the {len(records.index)} objects of {INDEX}")
        return
    decode = decoder(features, records.recipe, OPTIONAL)
    categories = report.counts if draw else ()
    shown = {row for name in categories for row in sheets.choose(records.index, records.rows(name).tolist())}
    drawn: dict[int, dict[str, np.ndarray]] = {}
    say = Progress("reading back: {} of {} objects", len(paths), progress, warm=1)
    for row, (path, about) in enumerate(zip(paths, records.index, strict=True)):
        report.counts[about["category"]].bytes += Path(path).stat().st_size
        try:
            (example,) = tf.data.TFRecordDataset(path).as_numpy_iterator()  # a file, a record
            with quiet():
                stored = {name: value.numpy() for name, value in decode(example).items()}
            said = [stored.pop(name).decode() for name in TEXTS]
            fields = unpack({name: np.asarray(value)[None] for name, value in stored.items()}, records)
            check(fields)
            if records.recipe.rgb_render and "rgb_render" not in fields:
                raise ValueError("it has no coloured views")
            if (*said, int(stored["label"]), int(stored["object_index"])) != (
                    about["name"], about["category"], about["defect"], about["label"], row):
                raise ValueError(f"it is of {'/'.join(said)}, row {int(stored['object_index'])}")
        except (ValueError, KeyError, tf.errors.OpError) as error:
            text = " ".join(str(error).split())
            report.problems.append(f"{path}: not the record of {about['category']}/{about['name']} ({text:.200})")
            continue
        if row in shown:
            drawn[row] = {name: fields[name][0] for name in PICTURES if name in fields}
        if row + 1 == len(paths) or about["category"] != records.index[row + 1]["category"]:
            if drawn:
                report.sheets.append(_sheet(records, drawn))
                drawn = {}
        say.update(row + 1)


def _sheet(records: RecordSet, drawn: dict[int, dict[str, np.ndarray]]) -> Path:
    abouts = [records.index[row] for row in drawn]
    path = sheets.path_of(records.dir, abouts[0]["category"])
    captions = [f"{about['category']}: {about['name']} ({about['defect'] if about['label'] else 'good'})" for about in abouts]
    sheets.write(path, list(zip(captions, drawn.values(), strict=True)))
    return path


def folders(out: str | Path, name: str | None = None) -> list[Path]:
    """Finished records at `out` or in it, of data set `name` if given. Raises DataError when there are none."""
    out = Path(out).expanduser().absolute()
    found = [path.parent for path in [out / INDEX, *sorted(out.glob(f"*/{INDEX}"))] if path.is_file()]
    if name:
        found = [folder for folder in found if folder.name.rpartition("-")[0] == name]
    if not found:
        raise DataError(f"{out} holds no finished records{f' of {name!r}' if name else ''}; prepare them first")
    return found
