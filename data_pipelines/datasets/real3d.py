"""Real3D-AD's folder layout: `<category>/train/*template*.pcd`, `<category>/test/*.pcd`, `<category>/gt/<stem>.txt`.

Defective test samples take their points from the ground-truth text (`x y z label` a row), good ones from the cloud:
so do the data set's own loaders, because rows and cloud need not be in the same order.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from data_pipelines.clouds.files import read_cloud
from data_pipelines.clouds.sampling import clean
from data_pipelines.datasets.data_set import UNORGANISED, DataSet, Published
from data_pipelines.datasets.listing import Listing, Partners, find_categories, unknown_category
from data_pipelines.datasets.truth import read_labels
from data_pipelines.scan import DataError, Sample, Scan

CLOUDS = (".pcd", ".ply")
TRUTH = ".txt"
ROWS_OFF = 1  # some published ground truths have one row more than their cloud


def _is_category(folder: Path, listing: Listing) -> bool:
    return bool(listing.files(folder / "test", CLOUDS))


def _words(stem: str) -> list[str]:
    """The words of a file name, without numbers and how it was cut."""
    return [word for word in re.split(r"[_\-\s]+|\d+", stem.lower()) if word and word not in ("cut", "copy")]


def defect_of(stem: str) -> str:
    """'142_good_cut' -> 'good', '482_bulge_cut' -> 'bulge': the name without its number and how it was cut."""
    words = _words(stem)
    return "good" if "good" in words else "_".join(words) or "defect"


class Real3D:
    """Reader of Real3D-AD and of everything written in its layout. Source: the data set's own `dataset_pc.py`."""

    layout = "<category>/test/*.pcd"
    truth_folders = ("gt", "GT")  # the first is named where none is there

    def __init__(self, root: str | Path, name: str = "real3d"):
        self.name = name
        self.root, self._categories, self.listing = find_categories(root, _is_category, self.layout)

    def categories(self) -> list[str]:
        return list(self._categories)

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """Test scans (good and defective), or the `train` split's templates. Templates among the test scans are left out."""
        if category not in self._categories:
            raise unknown_category(category, self._categories, self.root)
        folder = self.root / category
        truths = [Partners(folder / spelt, self.listing) for spelt in self.truth_folders]
        samples = []
        for path in self.listing.files(folder / split, CLOUDS):
            truth = next((each.find(path.stem, TRUTH) for each in truths if each.has(path.stem, TRUTH)), None)
            template = truth is None and self.is_template(path.stem)
            if template != (split == "train"):
                self.listing.leave(path, "a template" if template else "no template")
                continue
            defect = "good" if template else self.defect_of(path.stem)
            if defect == "good":
                truth = None
            else:
                truth = truth or truths[0].find(path.stem, TRUTH)
            samples.append(Sample(path.stem, category, defect, int(defect != "good"), split, str(path), truth and str(truth)))
        stems = {Path(sample.path).stem for sample in samples}
        for each in truths if split == "test" else ():
            for name in each.names():
                if Path(name).suffix.lower() == TRUTH and Path(name).stem not in stems and name[0] != ".":
                    self.listing.leave(each.folder / name, "ground truth of no scan")
        return samples

    def colour(self, sample: Sample) -> None:
        """None: clouds alone, without colour."""

    def load(self, sample: Sample) -> Scan:
        if sample.mask_path is None:
            xyz, valid, note = clean(read_cloud(sample.path), sample.path)
            mask = np.zeros(len(xyz), bool)
        else:
            if not Path(sample.mask_path).is_file():
                raise DataError(f"{sample.path}: defective sample without ground truth; expected {sample.mask_path}")
            xyz, labels = read_labels(sample.mask_path)
            if xyz is None:
                raise DataError(f"{sample.mask_path}: expected rows 'x y z label', found labels alone; restore the file")
            count = len(read_cloud(sample.path))
            if abs(len(xyz) - count) > ROWS_OFF:
                raise DataError(f"{sample.mask_path}: ground truth has {len(xyz)} rows but {Path(sample.path).name} has "
                                f"{count} points; restore the matching pair of files")
            xyz, valid, note = clean(xyz, sample.mask_path)
            if not np.isin(labels[valid], (0, 1)).all():
                raise DataError(f"{sample.mask_path}: labels (fourth column) must be 0 or 1")
            mask = labels > 0.5
        return Scan(xyz=xyz, mask=mask, valid=valid, note=note)

    def is_template(self, stem: str) -> bool:
        """Whether a file name is that of a defect-free template: the word ends it, as in 12_template or 12_template_cut."""
        return _words(stem)[-1:] in (["template"], ["temp"])

    def defect_of(self, stem: str) -> str:
        """'good', or the kind of defect, by file name."""
        return defect_of(stem)


PUBLISHED = Published(1206, 12, 180_000, of={"chicken": 106})  # 43 thousand to 1.6 million points
DATA_SET = DataSet(Real3D, UNORGANISED, ("seahorse", "shell", "starfish"), PUBLISHED)
