"""Real3D-AD's folder layout: `<category>/train/*template*.pcd`, `<category>/test/*.pcd`, `<category>/gt/<stem>.txt`.

Defective test samples take their points from the ground-truth text (`x y z label` a row), good ones from the cloud:
so do the data set's own loaders, because rows and cloud need not be in the same order.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..clouds import clean, point_count, read_cloud, read_table
from .base import DataError, Sample, Scan, find_root, unknown_category

CLOUDS = (".pcd", ".ply")
LAYOUT = "<category>/test/*.pcd"
ROWS_OFF = 1  # some published ground truths have one row more than their cloud


def _natural(path: Path) -> list:
    """Sort key that puts 99_good before 105_good."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", path.stem) if part]


def _clouds(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.suffix.lower() in CLOUDS), key=_natural)


def _is_category(folder: Path) -> bool:
    return bool(_clouds(folder / "test"))


def defect_of(stem: str) -> str:
    """'142_good_cut' -> 'good', '482_bulge_cut' -> 'bulge': the name without its number and how it was cut."""
    words = [word for word in re.split(r"[_\-]+|\d+", stem.lower()) if word and word not in ("cut", "copy")]
    return "good" if "good" in words else "_".join(words) or "defect"


class Real3D:
    """Reader of Real3D-AD and of everything written in its layout. Source: the data set's own `dataset_pc.py`."""

    def __init__(self, root: str | Path, name: str = "real3d"):
        self.name = name
        self.root = find_root(root, lambda folder: any(_is_category(c) for c in folder.iterdir() if c.is_dir()), LAYOUT)
        self._categories = sorted(folder.name for folder in self.root.iterdir() if folder.is_dir() and _is_category(folder))

    def categories(self) -> list[str]:
        return list(self._categories)

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """Test scans (good and defective), or the `train` split's templates. Test names holding 'temp' are left out."""
        if category not in self._categories:
            raise unknown_category(category, self._categories, self.root)
        folder = self.root / category
        samples = []
        for path in _clouds(folder / split):
            template = "temp" in path.stem.lower()
            if template != (split == "train"):
                continue
            defect = "good" if template else defect_of(path.stem)
            truth = None if defect == "good" else str(self._truth(folder, path.stem))
            samples.append(Sample(path.stem, category, defect, int(defect != "good"), split, str(path), truth))
        return samples

    def load(self, sample: Sample) -> Scan:
        if sample.mask_path is None:
            xyz = clean(read_cloud(sample.path), sample.path)
            mask = np.zeros(len(xyz), bool)
        else:
            if not Path(sample.mask_path).is_file():
                raise DataError(f"{sample.path}: defective sample without ground truth; expected {sample.mask_path}")
            rows = read_table(sample.mask_path)
            if rows.shape[1] < 4:
                raise DataError(f"{sample.mask_path}: expected rows 'x y z label', found {rows.shape[1]} columns")
            count = point_count(sample.path)
            if abs(len(rows) - count) > ROWS_OFF:
                raise DataError(f"{sample.mask_path}: ground truth has {len(rows)} rows but {Path(sample.path).name} has "
                                f"{count} points; restore the matching pair of files")
            xyz = clean(rows[:, :3], sample.mask_path)
            labels = rows[:, 3]
            if not np.isin(labels, (0, 1)).all():
                raise DataError(f"{sample.mask_path}: labels (fourth column) must be 0 or 1")
            mask = labels > 0.5
        return Scan(xyz=xyz, mask=mask, valid=np.ones(len(xyz), bool))

    @staticmethod
    def _truth(folder: Path, stem: str) -> Path:
        """`gt/<stem>.txt`, or `GT/` where the folder is spelt so."""
        for spelt in ("gt", "GT"):
            if (folder / spelt / f"{stem}.txt").is_file():
                return folder / spelt / f"{stem}.txt"
        return folder / "gt" / f"{stem}.txt"
