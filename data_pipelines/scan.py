"""What every data set reader gives: samples (which scans exist) and scans (points, ground truth)."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path

import numpy as np


class DataError(ValueError):
    """Bad input, in one line for the user: what is wrong, in which file, what to do."""


class NoColour(DataError):
    """Coloured views of scans that have no colour."""


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

    xyz: np.ndarray  # [S, 3] float64, the scan's own unit and frame
    mask: np.ndarray  # [S] bool, defective points; all false where nobody marked them (`Sample.labelled`)
    valid: np.ndarray  # [S] bool, false for the empty pixels of organised scans and for other rows that hold no point
    grid: tuple[int, int] | None = None  # (H, W) of organised scans
    rgb: np.ndarray | None = None  # [H, W, 3] uint8
    colours: np.ndarray | None = None  # [S, 3] uint8, of the points, where coloured views are asked for
    views: GivenViews | None = None  # where the data set brings its own pictures
    note: str = ""  # one line on rows that were left out


@dataclasses.dataclass
class GivenViews:
    """V pictures that come with a scan of S points, in place of rendered ones; the fields are those of `batch.FIELDS`."""

    render: np.ndarray  # [V, H, W] uint8
    depth: np.ndarray  # [V, H, W] uint8
    view_mask: np.ndarray  # [V, H, W] bool
    pixel: np.ndarray  # [V, S, 2] int16, x = column, y = row
    visible: np.ndarray  # [V, S] bool
    rgb_render: np.ndarray | None = None  # [V, H, W, 3] uint8, where coloured views are asked for

    def fitting(self, points: int, size: int, views: int, name: str) -> dict[str, np.ndarray]:
        """The pictures by field, once they are what a record of `points` points and `views` pictures of `size` pixels holds.

        Raises:
          DataError: naming the scan, what it has and what to set.
        """
        has = {"points": self.pixel.shape[1], "image_size": self.render.shape[-1], "views": len(self.render)}
        wrong = [f"config.data.{key}={has[key]}" for key, asked in zip(has, (points, size, views), strict=True)
                 if has[key] != asked]
        if wrong:
            raise DataError(f"{name}: given pictures cannot be brought to other numbers; set {' '.join(wrong)}")
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {field: pictures for field, pictures in found.items() if pictures is not None}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`", did you mean 'x'?"` for the nearest known word, or nothing."""
    close = difflib.get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.5)
    return f", did you mean {close[0]!r}?" if close else ""


def no_colour(data_set: str, who: str = "config.data.rgb_render", instead: str = "set it to False") -> NoColour:
    """The error for coloured views of a data set without colour.

    Args:
      who: what needs them: a method's name, or the key that asks for them.
      instead: what else can be done than training on a data set that has colour.
    """
    return NoColour(f"{who} needs coloured renderings of the auxiliary category; {data_set} has no colour: train on mvtec3d or "
                    f"eyecandies, or {instead}")


def no_defective(category: str, where: str | Path) -> DataError:
    """The error for training on a category without defective samples."""
    return DataError(f"category {category!r} of {where} has no defective sample, so nothing can be learned from it; "
                     "choose another config.data.train_category")
