"""MVTec 3D-AD's folder layout: `<category>/<split>/<defect>/{xyz,rgb,gt}/NNN.{tiff,png,png}`, raw or preprocessed.

The object alone is kept (`foreground.py`) and the picture is padded to a square, both in memory: files are never written. A tree
that the published preprocessing has been through is read as it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipelines.clouds.sampling import MIN_POINTS, clean
from data_pipelines.clouds.tiff import TIFF, read_xyz
from data_pipelines.datasets.data_set import COMMON, DataSet, Published
from data_pipelines.datasets.foreground import EPS, LEAST, object_pixels
from data_pipelines.datasets.listing import Listing, Partners, find_categories, is_good, unknown_category
from data_pipelines.datasets.pictures import read_flags, read_rgb
from data_pipelines.scan import DataError, Sample, Scan

LAYOUT = "<category>/test/<defect>/xyz/*.tiff"
PICTURES = (".png", ".tiff", ".tif", ".bmp")  # the first is the data set's own
STEP = 100  # squares have a side of a multiple of it, pixels


def _is_category(folder: Path, listing: Listing) -> bool:
    return any(listing.files(kind / "xyz", TIFF) for kind in listing.folders(folder / "test"))


class MVTec3D:
    """Reader of MVTec 3D-AD. Source: PointAD `multi_view/preprocess_mvtec3d.py`, `multiview_mvtec.py`."""

    def __init__(self, root: str | Path, name: str = "mvtec3d"):
        self.name = name
        self.root, self._categories, self.listing = find_categories(root, _is_category, LAYOUT)

    def categories(self) -> list[str]:
        return list(self._categories)

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """Scans of a split ('test', 'train', 'validation'): whatever folder is not called 'good' is a kind of defect."""
        if category not in self._categories:
            raise unknown_category(category, self._categories, self.root)
        samples = []
        for kind in self.listing.folders(self.root / category / split):
            defect = "good" if is_good(kind.name) else kind.name
            truths, colours = Partners(kind / "gt", self.listing), Partners(kind / "rgb", self.listing)
            scans = self.listing.files(kind / "xyz", TIFF)
            for path in scans:
                truth = None if defect == "good" else str(truths.find(path.stem, *PICTURES))
                beside = (str(colours.find(path.stem, *PICTURES)),)
                label = int(defect != "good")
                samples.append(Sample(f"{kind.name}_{path.stem}", category, defect, label, split, str(path), truth, beside))
            if not scans and kind not in self.listing.barred:
                self.listing.leave(kind, "nothing in its xyz/")
            stems = {path.stem for path in scans}
            for name in truths.names() if scans else ():
                if Path(name).suffix.lower() in PICTURES and Path(name).stem not in stems and name[0] != ".":
                    self.listing.leave(truths.folder / name, "ground truth of no scan")
        return samples

    def colour(self, sample: Sample) -> Path | None:
        """The photograph; None where the data set has no folder of them."""
        photograph = Path(sample.beside[0])
        return photograph if photograph.parent.is_dir() else None

    def load(self, sample: Sample) -> Scan:
        """The object on its square grid; S = H * W. `mask` is the annotation, also on pixels where no point was measured."""
        path = Path(sample.path)
        xyz = read_xyz(path)
        shape = xyz.shape[:2]
        if sample.mask_path is None:
            mask = np.zeros(shape, bool)
        elif Path(sample.mask_path).is_file():
            mask = read_flags(sample.mask_path, shape)
        else:
            raise DataError(f"{path}: defective sample without ground truth; expected {sample.mask_path}")
        seen = int(xyz.any(-1).sum())
        if seen < MIN_POINTS:
            raise DataError(f"{path}: only {seen} of {xyz.shape[0] * xyz.shape[1]} pixels hold a point; export the scan again")
        valid = object_pixels(xyz)
        if not valid.any():
            raise DataError(f"{path}: no object left of {seen} points once the plane is removed (nowhere {LEAST} points within "
                            f"{EPS} m of each other); coordinates have to be in metres")
        clean(xyz[valid], path)
        xyz[~valid] = 0
        rgb = _colours(Path(sample.beside[0]), shape)
        if rgb is not None:
            rgb[~valid] = 0
        xyz, mask, valid, rgb = (_square(plane) for plane in (xyz, mask, valid, rgb))
        return Scan(xyz.reshape(-1, 3), mask.ravel(), valid.ravel(), valid.shape, rgb)


def _colours(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The colour image beside a scan, a copy; None where the data set has no folder of them."""
    return read_rgb(path, shape).copy() if path.parent.is_dir() else None


def _square(plane: np.ndarray | None) -> np.ndarray | None:
    """[H, W, ...] in the middle of a square of zeros, both sides rounded up to `STEP` and the larger taken."""
    if plane is None:
        return None
    height, width = plane.shape[:2]
    side = max(-(-height // STEP), -(-width // STEP)) * STEP
    top, left = (side - height) // 2, (side - width) // 2
    out = np.zeros((side, side, *plane.shape[2:]), plane.dtype)
    out[top : top + height, left : left + width] = plane
    return out


RECIPE = COMMON | {
    "cameras": "mvtec3d",
    "point_sizes": {
        "bagel": 7.0, "cable_gland": 12.0, "carrot": 7.0, "cookie": 6.0, "dowel": 10.0, "rope": 5.0, "peach": 7.0,
        "foam": 8.0, "potato": 8.0, "tire": 8.0,
    },
}  # fmt: skip
PUBLISHED = Published(1197, 10, 160_000, (400, 400), {"carrot": 159, "cookie": 131, "dowel": 130})
DATA_SET = DataSet(MVTec3D, RECIPE, ("carrot", "cookie", "dowel"), PUBLISHED)
