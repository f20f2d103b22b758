"""Records: every object of a data set rendered once, kept as a TFDS data set under a hash of all that made it.

A cache folder holds `<name>-<hash>/`: the TFDS data set, `records.json` (index and recipe; written last, so a folder with it is
complete) and, while it is being made, `parts/` with one file per finished object, from which a killed run continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from .datasets import DataError, Reader, Sample, open_reader
from .datasets.base import near, no_defective
from .objects import Recipe, no_space, recipe_of, write_atomic

VERSION = 1  # raise when the same recipe gives other records
INDEX = "records.json"


@dataclasses.dataclass(frozen=True)
class RecordSet:
    """Records on disk and what is in them; row i of `index` is record i."""

    dir: Path
    index: list[dict]  # name, category, defect, label, labelled (False: defective, its points unmarked), path
    recipe: Recipe
    key: str

    def categories(self) -> list[str]:
        return list(dict.fromkeys(row["category"] for row in self.index))

    def rows(self, categories=None) -> np.ndarray:
        """Rows of the index of these categories (all if None), in order. Raises DataError for one that is not there."""
        known = self.categories()
        wanted = known if categories is None else [categories] if isinstance(categories, str) else list(categories)
        for category in wanted:
            if category not in known:
                raise DataError(f"no category {category!r} in the records{near(category, known)}; found: {', '.join(known)}")
        return np.array([i for i, row in enumerate(self.index) if row["category"] in set(wanted)], np.int64)


def open_records(folder: str | Path) -> RecordSet:
    """Opens finished records. Raises DataError when `folder` holds none."""
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        raise DataError(f"{folder} holds no finished records ({INDEX} is missing); run the preparation again")
    content = json.loads((folder / INDEX).read_text())
    return RecordSet(folder, content["index"], Recipe(**content["recipe"]), content["key"])


def prepare(data_cfg: Mapping, cache_root: str | Path, *, workers: int = 2, progress: Callable[[str], None] = print,
            categories=None) -> RecordSet:
    """Renders what is missing and opens the records of a data configuration; made once, found again by hash.

    Args:
      data_cfg: name, root, train_category (optional: checked), and the recipe's keys (`objects.Recipe`). For 'synthetic' without
        a root: categories, good, defective, scan_points, difficulty, data_seed, from which the scans are written first.
      cache_root: folder for records, shared by runs.
      workers: rendering processes.
      progress: gets a line now and then, with the time left.
      categories: only these (default: data_cfg.categories, else all found).

    Raises:
      DataError: bad configuration, missing or broken data, full disk; nothing half-written is left to be taken as whole.
    """
    cache_root = Path(cache_root).expanduser().absolute()
    recipe = recipe_of(data_cfg)
    root = _root(data_cfg, cache_root, workers, progress)
    options = dict(data_cfg.get("reader") or {})
    reader = _reader(data_cfg["name"], root, options)
    samples = _samples(reader, categories or data_cfg.get("categories"), data_cfg.get("train_category"), recipe)
    key = _key(data_cfg["name"], reader, samples, recipe)
    folder = cache_root / f"{data_cfg['name']}-{key}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, progress):
            if not (folder / INDEX).is_file():
                _make(folder, reader, options, samples, recipe, key, max(1, workers), progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(folder) from error
        raise
    return open_records(folder)


def _reader(name: str, root: Path, options: dict) -> Reader:
    try:
        return open_reader(name, root, **options)
    except TypeError as error:
        raise DataError(f"config.data.reader: the reader of {name!r} does not take {options} ({error})") from error


def _root(data_cfg: Mapping, cache_root: Path, workers: int, progress) -> Path:
    if data_cfg.get("root"):
        return Path(data_cfg["root"]).expanduser().absolute()
    if data_cfg["name"] != "synthetic":
        raise DataError(f"data set {data_cfg['name']!r} needs config.data.root, the folder with its category folders")
    from .datasets import synthetic  # procedural solids: only where they are asked for

    options = {"categories": tuple(data_cfg["categories"]), "seed": int(data_cfg["data_seed"]), "good": int(data_cfg["good"]),
               "defective": int(data_cfg["defective"]), "points": int(data_cfg["scan_points"]),
               "difficulty": data_cfg["difficulty"]}
    name = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
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
    for category, found in samples.items():
        recipe.splat(category)
        for sample in found:
            if sample.mask_path is not None and not Path(sample.mask_path).is_file():
                raise DataError(f"{sample.path}: defective sample without ground truth; expected {sample.mask_path}")
    return [sample for found in samples.values() for sample in found]


def _key(name: str, reader: Reader, samples: list[Sample], recipe: Recipe) -> str:
    """Hash of the recipe, this code's version, and the names, sizes and times of all files read."""
    files = []
    for sample in samples:
        for path in map(Path, filter(None, (sample.path, sample.mask_path, *sample.beside))):
            for part in sorted(path.iterdir()) if path.is_dir() else [path]:
                if part.exists() or str(path) not in sample.beside:
                    s = os.stat(part)
                    files.append([sample.category, sample.id, sample.defect, part.name, s.st_size, s.st_mtime_ns])
    content = json.dumps([VERSION, name, recipe.json(), files], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _locked(folder: Path, progress) -> Iterator[None]:
    """One process at a time; the lock goes with its holder, however that ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is preparing {folder.name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path, reader: Reader, options: dict, samples: list[Sample], recipe: Recipe, key: str, workers: int,
          progress) -> None:
    parts = folder / "parts"
    parts.mkdir(exist_ok=True)
    _check_space(folder, len(samples), recipe)
    missing = [row for row in range(len(samples)) if not (parts / f"{row}.npz").is_file()]
    if missing:
        spec = {"name": reader.name, "root": str(reader.root), "options": options, "recipe": recipe.json(), "parts": str(parts)}
        _render_parts(spec, samples, missing, min(workers, len(missing)), progress)
    from .tfds_records import write_tfds  # TensorFlow Datasets: seconds to import

    write_tfds(folder, parts, samples, recipe)
    index = [{"name": s.id, "category": s.category, "defect": s.defect, "label": s.label, "labelled": s.labelled,
              "path": s.path} for s in samples]  # fmt: skip
    content = {"version": VERSION, "key": key, "recipe": recipe.json(), "index": index}
    write_atomic(folder / INDEX, json.dumps(content, indent=1).encode())
    shutil.rmtree(parts)


def _check_space(folder: Path, count: int, recipe: Recipe) -> None:
    """Stops before hours of rendering whose result would not fit (parts and records lie side by side for a while)."""
    views = len(recipe.camera_list())
    each = recipe.points * (4 * views + 12 + 4 * recipe.neighbours) + recipe.cloud_points * 12 + views * recipe.image_size**2
    free = shutil.disk_usage(folder).free
    if free < 2 * count * each:
        raise DataError(f"no disk space for {count} records: about {2 * count * each / 1e6:.0f} MB needed under {folder}, "
                        f"{free / 1e6:.0f} MB free; free some, or choose another cache folder")


# ---- worker processes ----


def _start_worker(spec: dict) -> subprocess.Popen:
    env = dict(os.environ)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[1]), env.get("PYTHONPATH")]))
    env |= {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}  # one worker, one core
    env["LP_NUM_THREADS"] = "0"  # of the software GL, beside its caller
    process = subprocess.Popen([sys.executable, "-m", f"{__package__}.objects"], env=env, text=True, stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(json.dumps(spec) + "\n")
    return process


def _render_parts(spec: dict, samples: list[Sample], missing: list[int], workers: int, progress) -> None:
    """Gives the missing rows to worker processes, one at a time each. Raises the first error, once all have stopped."""
    rows: queue.Queue[int] = queue.Queue()
    for row in missing:
        rows.put(row)
    done: queue.Queue[Exception | None] = queue.Queue()
    processes = [_start_worker(spec) for _ in range(workers)]

    def feed(process: subprocess.Popen) -> None:
        tail: list[str] = []
        threading.Thread(target=lambda: [tail.append(line) or tail[:-5].clear() for line in process.stderr], daemon=True).start()
        while True:
            try:
                row = rows.get_nowait()
            except queue.Empty:
                return
            sample = samples[row]
            try:
                process.stdin.write(json.dumps({"row": row, "sample": dataclasses.asdict(sample)}) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
            except (BrokenPipeError, ValueError):
                answer = ""
            if not answer:
                time.sleep(0.2)  # the last words of a worker that went down
                said = " ".join(line.strip() for line in tail[-3:])
                done.put(DataError(f"{sample.path}: the rendering process stopped at this scan ({said or 'it said nothing'})"))
                return
            error = json.loads(answer).get("error")
            done.put(DataError(error) if error else None)
            if error:
                return

    threads = [threading.Thread(target=feed, args=(process,), daemon=True) for process in processes]
    said = time.monotonic()
    first = None  # the rate is that of the objects after the first, which waits for the workers to start
    try:
        for thread in threads:
            thread.start()
        for finished in range(1, len(missing) + 1):
            error = done.get()
            if error is not None:
                raise error
            now = time.monotonic()
            first = first or now
            if now - said > 5 or finished == len(missing):
                rate = (finished - 1) / max(now - first, 1e-9)
                left = f", {rate:.1f} a second, {(len(missing) - finished) / rate:.0f} s left" if finished > workers else ""
                progress(f"rendering: {len(samples) - len(missing) + finished} of {len(samples)} objects{left}")
                said = now
    finally:
        for process in processes:
            process.kill()
            process.wait()
