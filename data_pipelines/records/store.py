"""Records: every object of a data set rendered once, kept as a TFDS data set under a hash of all that made it.

A cache folder holds `<name>-<hash>/`: the TFDS data set, `records.json` (index and recipe; written last, so a folder with it is
complete) and, while it is being made, `parts/` with one file per finished object, from which a killed run continues.
`data_pipelines.prepare` is the command for it; `verify.py` checks what lies there.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_pipelines import leases, storage
from data_pipelines.datasets import open_reader
from data_pipelines.datasets.listing import Listing, Reader, printable
from data_pipelines.files import checksum, write_atomic
from data_pipelines.records.fingerprints import fingerprints
from data_pipelines.records.objects import BAD, Recipe, no_space, recipe_of
from data_pipelines.records.workers import render_parts
from data_pipelines.scan import DataError, Sample, did_you_mean, no_colour, no_defective
from data_pipelines.solids import synthetic

VERSION = 4  # raise when the same recipe gives other records
INDEX = "records.json"


@dataclasses.dataclass(frozen=True)
class RecordSet:
    """Records on disk and what is in them; row i of `index` is record i."""

    dir: Path
    index: list[dict]  # name, category, defect, label, labelled (False: defective, its points unmarked), path
    recipe: Recipe
    key: str
    skipped: list[dict] = dataclasses.field(default_factory=list)  # path, error, category, label of scans that were left out
    left_out: list[dict] = dataclasses.field(default_factory=list)  # why, count, names of files and folders that were not taken

    root: Path | None = None  # where the scans are now

    def categories(self) -> list[str]:
        return list(dict.fromkeys(row["category"] for row in self.index))

    def rows(self, categories=None) -> np.ndarray:
        """Rows of the index of these categories (all if None), in order. Raises DataError for one that is not there."""
        known = self.categories()
        wanted = known if categories is None else [categories] if isinstance(categories, str) else list(categories)
        for category in wanted:
            if category not in known:
                hint = did_you_mean(category, known)
                raise DataError(f"no category {category!r} in the records{hint}; found: {', '.join(known)}")
        return np.array([i for i, row in enumerate(self.index) if row["category"] in set(wanted)], np.int64)


def open_records(folder: str | Path) -> RecordSet:
    """Opens finished records. Raises DataError when `folder` holds none."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise DataError(f"{folder} holds no finished records ({INDEX} is missing); run the preparation again")
    content = json.loads((folder / INDEX).read_text())
    return RecordSet(folder, content["index"], Recipe(**content["recipe"]), content["key"], content.get("skipped", []),
                     content.get("left_out", []), Path(content["source"]["root"]))


def prepare(data_cfg: Mapping, cache_root: str | Path, *, workers: int = 2, progress: Callable[[str], None] = print,
            categories=None, skip_bad: bool = False, beam: Sequence[str] | None = None) -> RecordSet:
    """Renders what is missing and opens the records of a data configuration; made once, found again by hash.

    Args:
      data_cfg: name, root, train_category (optional: checked), and the recipe's keys (`objects.Recipe`). For 'synthetic' without
        a root: categories, good, defective, scan_points, difficulty, data_seed, from which the scans are written first.
      cache_root: folder for records, shared by runs; on an object store, a machine fetches what another one made.
      workers: rendering processes.
      progress: gets a line now and then, with the time left.
      categories: only these (default: data_cfg.categories, else all found).
      skip_bad: leaves out scans that cannot be read, instead of stopping at the first; records.json then lists them.
      beam: flags of Apache Beam, which then renders in place of the worker processes.

    Raises:
      DataError: bad configuration, missing or broken data, full disk; nothing half-written is left to be taken as whole.
    """
    if beam is not None:
        from data_pipelines.records import beam as beam_records  # noqa: F401  optional: missing before any work

    cache_root = storage.opened(cache_root).expanduser().absolute()
    if beam is not None and storage.store_of(cache_root):
        raise DataError(f"--beam writes into a folder that its workers share, and {storage.named(str(cache_root))} is none; give "
                        "a path, or prepare without --beam")
    root = _root(data_cfg, cache_root, workers, progress)
    plan = plan_of(data_cfg, root, cache_root, categories, progress)
    for line in plan.left_out():
        progress(line)
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        if not storage.fetch(plan.folder):
            with _locked(plan.folder, progress):
                if not storage.fetch(plan.folder) and not (plan.folder / INDEX).is_file():
                    _make(plan, max(1, workers), progress, skip_bad, beam)
                storage.publish(plan.folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(plan.folder) from error
        raise
    found = dataclasses.replace(open_records(plan.folder), root=root)
    now = {(sample.category, sample.id): sample.path for sample in plan.samples}  # the same scans may have been moved
    for row in found.index:
        row["path"] = now.get((row["category"], row["name"]), row["path"])
    for row in found.skipped:
        progress(f"left out: {row['error']}")
    told = [row for row in found.index if row.get("note")]
    if told:
        progress(f"{len(told)} of {len(found.index)} scans hold rows that take no part, as {told[0]['path']}: {told[0]['note']}"
                 f"{f' (all of them: {found.dir / INDEX})' if len(told) > 1 else ''}")
    return found


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a configuration asks for: which scans, how, and the folder in which their records are kept."""

    reader: Reader
    options: dict  # of the reader
    samples: list[Sample]
    recipe: Recipe
    key: str
    folder: Path

    def left_out(self) -> list[str]:
        """A line for each kind of thing that lies in the data set and is not read, and for categories without good scans."""
        good = {sample.category for sample in self.samples if not sample.label}
        bad = [sample.category for sample in self.samples if sample.category not in good]
        lines = self.reader.listing.lines()
        for category in dict.fromkeys(bad):
            lines.append(f"category {printable(category)!r} has no good scan: all its {bad.count(category)} count as defective")
        return lines


def plan_of(data_cfg: Mapping, root: Path, cache_root: Path, categories=None, progress: Callable[[str], None] = print) -> Plan:
    """Finds the scans under `root`, reads those that are new for their checksums, and names their folder; renders nothing.
    Arguments and errors: as `prepare`."""
    recipe = recipe_of(data_cfg)
    options = dict(data_cfg.get("reader") or {})
    reader = open_reader(data_cfg["name"], root, **options)
    samples = _samples(reader, categories or data_cfg.get("categories"), data_cfg.get("train_category"), recipe)
    _check_colour(reader, samples, recipe)
    key = _key(data_cfg["name"], _with_colour(reader, samples, recipe), recipe, cache_root, progress)
    return Plan(reader, options, samples, recipe, key, cache_root / f"{data_cfg['name']}-{key}")


def local_root(root: str) -> Path:
    """The folder of the scans. Raises DataError for a URL."""
    if storage.is_url(root):
        raise DataError(f"config.data.root={root}: scans are read from a folder of this machine; copy them there (records, in "
                        "config.cache, may lie on an object store)")
    return Path(root).expanduser().absolute()


def _root(data_cfg: Mapping, cache_root: Path, workers: int, progress) -> Path:
    if data_cfg.get("root"):
        return local_root(data_cfg["root"])
    if data_cfg["name"] != "synthetic":
        raise DataError(f"data set {data_cfg['name']!r} needs config.data.root, the folder with its category folders")
    options = {"categories": tuple(data_cfg["categories"]), "seed": int(data_cfg["data_seed"]), "good": int(data_cfg["good"]),
               "defective": int(data_cfg["defective"]), "points": int(data_cfg["scan_points"]),
               "difficulty": data_cfg["difficulty"]}
    name = hashlib.sha256(json.dumps({**options, "format": synthetic.FORMAT}, sort_keys=True).encode()).hexdigest()[:16]
    options["colour"] = bool(data_cfg.get("rgb_render"))  # beside the scans, which are the same without
    root = cache_root / f"scans-{name}"
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root, progress):
        synthetic.write(root, workers=workers, **options)
    return root


def _samples(reader: Reader, categories, train_category: str | None, recipe: Recipe) -> list[Sample]:
    """All test samples, after the checks that need no rendering."""
    wanted = [categories] if isinstance(categories, str) else list(categories or reader.categories())
    samples = {category: reader.samples(category) for category in wanted}
    if train_category:
        if train_category not in samples:
            reader.samples(train_category)  # names the near one if the data set does not have it
            raise DataError(f"config.data.train_category {train_category!r} is not among the categories {', '.join(wanted)}")
        if not any(sample.label for sample in samples[train_category]):
            raise no_defective(train_category, getattr(reader, "root", reader.name))
        for sample in samples[train_category]:
            if not sample.labelled:
                raise DataError(f"{sample.path}: nobody marked the defective points of this scan, so category {train_category!r} "
                                "cannot be trained on; add masks or choose another config.data.train_category")
    for category in samples:
        recipe.splat(category)
    return [sample for found in samples.values() for sample in found]


def _check_colour(reader: Reader, samples: list[Sample], recipe: Recipe) -> None:
    """Raises DataError, before anything is rendered, where coloured views are asked for and a scan can have none."""
    without = [sample for sample in samples if reader.colour(sample) is None] if recipe.rgb_render else []
    if without:
        raise no_colour(reader.name if len(without) == len(samples) else without[0].path)


def _with_colour(reader: Reader, samples: list[Sample], recipe: Recipe) -> list[Sample]:
    """The samples with the files of their colours among those that are read, where coloured views are asked for."""
    if not recipe.rgb_render:
        return samples
    return [dataclasses.replace(sample, beside=(*sample.beside, str(reader.colour(sample)))) for sample in samples]


def _key(name: str, samples: list[Sample], recipe: Recipe, cache_root: Path, progress: Callable[[str], None] = print) -> str:
    """Hash of the recipe, this code's version, and names and contents of all scans and what is read beside them, wherever they
    lie."""
    # A scan or a mask that is not there is `_make`'s to tell, and may be left out.
    read = [[_files(path) for path in (sample.path, sample.mask_path, *sample.beside)] for sample in samples]
    found = fingerprints([path for parts in read for part in parts for _, path in part], cache_root, progress)
    files = [[s.category, s.id, s.defect, s.label, [[[word, found[path]] for word, path in part] for part in parts]]
             for s, parts in zip(samples, read, strict=True)]
    content = json.dumps([VERSION, name, recipe.json(), files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _files(path: str | None) -> list[tuple[str, Path]]:
    """What is read of a path: a file with its ending, which tells how, or the files of a folder with their names."""
    if path is None:
        return []
    if os.path.isdir(path):
        return [(file.name, file) for file in Listing().everything(Path(path))]
    return [(Path(path).suffix.lower(), Path(path))] if os.path.isfile(path) else []


def _locked(folder: Path, progress):
    return leases.locked(folder / ".lock", lambda: progress(f"another process is preparing {folder.name}; waiting for it"))


def _make(plan: Plan, workers: int, progress, skip_bad: bool, beam: Sequence[str] | None) -> None:
    folder, samples, recipe = plan.folder, plan.samples, plan.recipe
    if not skip_bad:  # before any work
        _check_truth(samples)
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    _check_space(folder, len(samples), recipe)
    part_of = [parts / f"{row}.npz" for row in range(len(samples))]
    missing = [row for row, path in enumerate(part_of)
               if not path.is_file() and not (skip_bad and path.with_suffix(BAD).is_file())]
    spec = {"name": plan.reader.name, "root": str(plan.reader.root), "options": plan.options, "recipe": recipe.json(),
            "parts": str(parts), "skip_bad": skip_bad}
    if missing and beam is None:
        render_parts(spec, samples, missing, min(workers, len(missing)), progress)
    elif missing:
        from data_pipelines.records import beam as beam_records  # optional, and seconds to import

        beam_records.render_parts(spec, samples, missing, beam, progress)
    good = [row for row, path in enumerate(part_of) if path.is_file()]
    skipped = [{**json.loads(path.with_suffix(BAD).read_text()), "category": sample.category, "label": sample.label}
               for path, sample in zip(part_of, samples, strict=True) if not path.is_file()]
    for row in skipped:
        if not any(samples[i].category == row["category"] for i in good):
            raise DataError(f"category {row['category']!r}: not one scan can be read ({row['error']})")
    from data_pipelines.records.tfds import write_tfds  # TensorFlow Datasets: seconds to import

    kept = [samples[row] for row in good]
    write_tfds(folder, [part_of[row] for row in good], kept, recipe, beam)
    index = [{"name": s.id, "category": s.category, "defect": s.defect, "label": s.label, "labelled": s.labelled,
              "path": s.path, "note": _note(part_of[row])} for row, s in zip(good, kept, strict=True)]  # fmt: skip
    source = {"name": plan.reader.name, "root": str(plan.reader.root), "reader": plan.options}
    content = {"version": VERSION, "key": plan.key, "recipe": recipe.json(), "source": source, "index": index,
               "skipped": skipped, "left_out": plan.reader.listing.rows(), "sha256": checksums(folder)}
    write_atomic(folder / INDEX, json.dumps(content, indent=1).encode())
    shutil.rmtree(parts)


def _note(part: Path) -> str:
    """What is said of a scan's rows that took no part."""
    with np.load(part) as arrays:
        return str(arrays["note"]) if "note" in arrays.files else ""


def is_made(folder: Path) -> bool:
    """Whether finished records lie in a folder, or on the store that it stands for."""
    return (folder / INDEX).is_file() or storage.finished(folder)


def check_plan(plan: Plan) -> None:
    """What can be told of a plan before its first scan is rendered. Raises DataError: no ground truth, no disk space."""
    if not is_made(plan.folder):
        _check_truth(plan.samples)
        there = next(folder for folder in (plan.folder, *plan.folder.parents) if folder.is_dir())
        _check_space(there, len(plan.samples), plan.recipe)


def _check_truth(samples: list[Sample]) -> None:
    for sample in samples:
        if sample.mask_path is not None and not os.path.isfile(sample.mask_path):
            raise DataError(f"{sample.path}: defective sample without ground truth; expected {sample.mask_path}")


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the TFDS data set, by its path under `folder`."""
    paths = sorted(path for path in folder.glob("object_records/**/*") if path.is_file())
    return {str(path.relative_to(folder)): checksum(path) for path in paths}


def _check_space(folder: Path, count: int, recipe: Recipe) -> None:
    """Stops before hours of rendering whose result would not fit (parts and records lie side by side for a while)."""
    views = len(recipe.camera_list())
    each = recipe.points * (4 * views + 12 + 4 * recipe.neighbours) + recipe.cloud_points * 12 + views * recipe.image_size**2
    each += views * recipe.image_size**2 * recipe.rgb_render
    free = shutil.disk_usage(folder).free
    if free < 2 * count * each:
        raise DataError(f"no disk space for {count} records: about {2 * count * each / 1e6:.0f} MB needed under {folder}, "
                        f"{free / 1e6:.0f} MB free; free some, or choose another cache folder")
