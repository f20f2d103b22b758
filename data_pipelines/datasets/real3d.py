"""Real3D-AD's folder layout: `<category>/train/*template*.pcd`, `<category>/test/*.pcd`, `<category>/gt/<stem>.txt`.

Defective test samples take their points from the ground-truth text (`x y z label` a row), good ones from the cloud:
so do the data set's own loaders, because rows and cloud need not be in the same order.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..cloud_files import point_count, read_cloud
from ..clouds import clean
from ..tables import read_table
from .base import DataError, Sample, Scan, files, find_root, folders, unknown_category

CLOUDS = (".pcd", ".ply")
ROWS_OFF = 1  # some published ground truths have one row more than their cloud


def _is_category(folder: Path) -> bool:
    return bool(files(folder / "test", CLOUDS))


def defect_of(stem: str) -> str:
    """'142_good_cut' -> 'good', '482_bulge_cut' -> 'bulge': the name without its number and how it was cut."""
    words = [word for word in re.split(r"[_\-]+|\d+", stem.lower()) if word and word not in ("cut", "copy")]
    return "good" if "good" in words else "_".join(words) or "defect"


class Real3D:
    """Reader of Real3D-AD and of everything written in its layout. Source: the data set's own `dataset_pc.py`."""

    layout = "<category>/test/*.pcd"
    truth_folders = ("gt", "GT")  # the first is named where none is there

    def __init__(self, root: str | Path, name: str = "real3d"):
        self.name = name
        self.root = find_root(root, lambda folder: any(map(_is_category, folders(folder))), self.layout)
        self._categories = sorted(folder.name for folder in folders(self.root) if _is_category(folder))

    def categories(self) -> list[str]:
        return list(self._categories)

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """Test scans (good and defective), or the `train` split's templates. Templates among the test scans are left out."""
        if category not in self._categories:
            raise unknown_category(category, self._categories, self.root)
        folder = self.root / category
        samples = []
        for path in files(folder / split, CLOUDS):
            template = self.is_template(path.stem)
            if template != (split == "train"):
                continue
            defect = "good" if template else self.defect_of(path.stem)
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

    def is_template(self, stem: str) -> bool:
        """Whether a file name is that of a defect-free template, by the word the data set's loaders look for."""
        return "temp" in stem.lower()

    def defect_of(self, stem: str) -> str:
        """'good', or the kind of defect, by file name."""
        return defect_of(stem)

    def _truth(self, folder: Path, stem: str) -> Path:
        """`gt/<stem>.txt`, or `GT/` where the folder is spelt so."""
        places = [folder / spelt / f"{stem}.txt" for spelt in self.truth_folders]
        return next((place for place in places if place.is_file()), places[0])
