"""What every data set reader gives: samples (which scans exist) and scans (points, ground truth)."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np


class DataError(ValueError):
    """Bad input, in one line for the user: what is wrong, in which file, what to do."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One scan on disk. `id` is unique within category and split; `defect` is 'good' or the kind of defect."""

    id: str
    category: str
    defect: str
    label: int  # 1 = defective
    split: str
    path: str
    mask_path: str | None = None
    beside: tuple[str, ...] = ()  # other files that `load` reads, where they exist; a folder stands for all files in it

    @property
    def labelled(self) -> bool:
        """False for a defective scan of which nobody marked the points: it counts for object metrics alone."""
        return not (self.label and self.mask_path is None)


@dataclasses.dataclass
class Scan:
    """A scan in file order: S points, of which the organised ones are the row-major pixels of an H x W grid."""

    xyz: np.ndarray  # [S, 3] float32, the scan's own unit and frame
    mask: np.ndarray  # [S] bool, defective points; all false where nobody marked them (`Sample.labelled`)
    valid: np.ndarray  # [S] bool, false for the empty pixels of organised scans
    grid: tuple[int, int] | None = None  # (H, W) of organised scans
    rgb: np.ndarray | None = None  # [H, W, 3] uint8
    views: GivenViews | None = None  # where the data set brings its own pictures


@dataclasses.dataclass
class GivenViews:
    """V pictures that come with a scan of S points, in place of rendered ones; the fields are those of `batch.FIELDS`."""

    render: np.ndarray  # [V, H, W] uint8
    depth: np.ndarray  # [V, H, W] uint8
    view_mask: np.ndarray  # [V, H, W] bool
    pix: np.ndarray  # [V, S, 2] int16, x = column, y = row
    seen: np.ndarray  # [V, S] bool

    def fitting(self, points: int, size: int, views: int, name: str) -> dict[str, np.ndarray]:
        """The pictures by field, once they are what a record of `points` points and `views` pictures of `size` pixels holds.

        Raises:
          DataError: naming the scan, what it has and what to set.
        """
        has = {"points": self.pix.shape[1], "image_size": self.render.shape[-1], "views": len(self.render)}
        wrong = [f"config.data.{key}={has[key]}" for key, asked in zip(has, (points, size, views), strict=True)
                 if has[key] != asked]
        if wrong:
            raise DataError(f"{name}: given pictures cannot be brought to other numbers; set {' '.join(wrong)}")
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


class Reader(Protocol):
    """A data set on disk."""

    name: str

    def categories(self) -> list[str]:
        """Names of all categories found, sorted."""

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """All scans of a category and split, in a fixed order. Raises DataError for an unknown category."""

    def load(self, sample: Sample) -> Scan:
        """Reads one scan. Raises DataError naming the file when it cannot be used."""


def natural(path: Path) -> tuple:
    """Sort key of a file or folder that puts 99_good before 105_good."""
    parts = re.split(r"(\d+)", path.stem)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part], path.suffix


def folders(folder: Path) -> list[Path]:
    """The folders in a folder, in natural order, without hidden ones; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted((child for child in folder.iterdir() if child.is_dir() and child.name[0] != "."), key=natural)


def files(folder: Path, kinds: Iterable[str]) -> list[Path]:
    """The files in a folder that end in one of `kinds` ('.png'), as `folders` gives folders."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in kinds and path.name[0] != "."), key=natural)


def near(word: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def find_root(root: str | Path, holds_categories: Callable[[Path], bool], layout: str, depth: int = 3) -> Path:
    """The folder at or at most `depth` levels under `root` that holds the category folders.

    Raises:
      DataError: `root` is missing, holds nothing of that `layout`, or holds it in several places.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"data root {root} does not exist or is no folder; set config.data.root to the unpacked data set")
    level = [root]
    for _ in range(depth + 1):
        found = [folder for folder in level if holds_categories(folder)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(str(folder) for folder in found)
            raise DataError(f"data root {root} holds several data sets ({names}); set config.data.root to one of them")
        level = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
    raise DataError(f"data root {root} holds no category folder laid out as {layout}, up to {depth} levels down")


def unknown_category(category: str, known: list[str], root: Path) -> DataError:
    """The error for a category that is not there, with what is."""
    return DataError(f"no category {category!r} in {root}{near(category, known)}; found: {', '.join(known)}")


def no_defective(category: str, where: str | Path) -> DataError:
    """The error for training on a category without defective samples."""
    return DataError(f"category {category!r} of {where} has no defective sample, so nothing can be learned from it; "
                     "choose another config.data.train_category")
