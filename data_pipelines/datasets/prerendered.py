"""The trees the authors publish, rendered already: pictures, masks and point-to-pixel maps are read, nothing is drawn again.

`<class>/test/<specie>/{2d_rendering,2d_gt,2d_depth,2d_3d_cor}/<id>/`, `{pcd,gt_pcd}/<id>.pcd` and, of organised scans,
`{xyz,rgb,gt}/<id>.*` and `2d_3d_cor/<id>/nonzero_indices.npy`; Align3D-AD's trees have `2d_rgb_rendering/<id>/` besides.
Everything of a scan is found by its id and every view by its number; the published loaders count on the order of sorted file
names. Source: GS-CLIP, PointAD and Align3D-AD `dataset.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from data_pipelines.clouds.files import read_array, read_cloud
from data_pipelines.clouds.sampling import clean
from data_pipelines.clouds.tiff import TIFF, read_xyz
from data_pipelines.datasets.data_set import DataSet
from data_pipelines.datasets.listing import Listing, Partners, find_categories, is_good, spelt, unknown_category
from data_pipelines.datasets.mvtec3d import RECIPE
from data_pipelines.datasets.pictures import read_grey, read_rgb
from data_pipelines.datasets.truth import read_colours
from data_pipelines.rendering.views import fill_unseen
from data_pipelines.scan import DataError, GivenViews, Sample, Scan

LAYOUT = "<class>/test/<specie>/2d_rendering/<id>/view_0.png"
# folder -> what its files are called
VIEWS = {"2d_rendering": "view_{}.png", "2d_gt": "view_{}_gt.png", "2d_depth": "view_{}_depth.png",
         "2d_3d_cor": "view_{}_cor.npy"}
KEPT = "nonzero_indices.npy"
COLOURED = "2d_rgb_rendering"  # Align3D-AD's trees have it


def _is_category(folder: Path, listing: Listing) -> bool:
    return any(listing.folders(specie / "2d_rendering") for specie in listing.folders(folder / "test"))


class Prerendered:
    """Reader of the authors' trees, of any of the four data sets."""

    def __init__(self, root: str | Path, name: str = "prerendered"):
        self.name = name
        self.root, self._categories, self.listing = find_categories(root, _is_category, LAYOUT)
        self._labels = self._meta()

    def categories(self) -> list[str]:
        return list(self._categories)

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """All scans that have pictures ('test' alone has). Labels are those of the `*_meta.json`, where there are any; else
        whatever folder is not called 'good' is defective. `mask_path` is the labelled cloud."""
        if category not in self._categories:
            raise unknown_category(category, self._categories, self.root)
        samples = []
        for specie in self.listing.folders(self.root / category / "test") if split == "test" else []:
            sound = is_good(specie.name)
            scans = self.listing.folders(specie / "2d_rendering")
            for pictures in scans:
                label = self._labels.get((category, specie.name, pictures.name), int(not sound))
                truth = spelt(specie / "gt_pcd" / f"{pictures.name}.pcd")
                defect = "good" if not label else "defect" if sound else specie.name
                samples.append(Sample(f"{specie.name}_{pictures.name}", category, defect, label, split, str(pictures),
                                      str(truth) if label or truth.is_file() else None, _beside(specie, pictures.name)))
            if not scans and specie not in self.listing.barred:
                self.listing.leave(specie, "nothing in its 2d_rendering/")
            shown = {pictures.name for pictures in scans}
            for folder, kinds in (("pcd", (".pcd",)), ("xyz", TIFF)):
                for path in self.listing.files(specie / folder, kinds) if scans else ():
                    if path.stem not in shown:
                        self.listing.leave(path, "a scan without 2d_rendering/")
        return samples

    def colour(self, sample: Sample) -> Path | None:
        """The folder of coloured views; None where the tree has none of its kind of defect."""
        pictures = Path(sample.path)
        given = pictures.parents[1] / COLOURED / pictures.name
        return given if given.parent.is_dir() else None

    def load(self, sample: Sample) -> Scan:
        """The scan with its pictures in `views`. Organised scans are the grid that goes with the pictures (336 x 336), in the
        frame of the tiff or, where there is none, of the cloud; others are the points of the cloud, in its order."""
        pictures = Path(sample.path)
        specie, name = pictures.parents[1], pictures.name
        views, maps = _views(specie, name)
        side, count = views["render"].shape[-1], maps.shape[1]
        mask = np.zeros(count, bool)
        if sample.mask_path is not None:
            if not Path(sample.mask_path).is_file():
                raise DataError(f"{pictures}: defective sample without ground truth; expected {sample.mask_path}")
            mask = read_colours(sample.mask_path)
            _same_count(sample.mask_path, len(mask), name, count)
        kept, grid = _kept(spelt(specie / "2d_3d_cor" / name / KEPT), side, count)
        points, source = _points(specie, name, kept, side if grid else None)
        _same_count(source, len(points), name, count)
        points, fit, note = clean(points, source)
        if not fit.all():
            raise DataError(f"{source}: {note}, but the pictures of {name} show {count} points; restore the matching files")
        pixel, visible = fill_unseen(points, maps[..., :2].astype(np.int16), maps[..., 2] > 0)
        total = side * side if grid else count
        given = GivenViews(**views, pixel=_spread(pixel, kept, total, 1), visible=_spread(visible, kept, total, 1))
        valid = _spread(np.ones(count, bool), kept, total)
        colours = spelt(specie / "rgb" / f"{name}.png")
        rgb = read_rgb(colours) if colours.is_file() else None
        return Scan(_spread(points, kept, total), _spread(mask, kept, total), valid, grid, rgb, views=given)

    def _meta(self) -> dict[tuple[str, str, str], int]:
        """(class, specie, id) -> label, from all `*_meta.json`; their paths may be absolute, relative, or of another system."""
        labels = {}
        for path in sorted(self.root.glob("*_meta.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                for item in (item for items in content["test"].values() for item in items):
                    parts = [part for part in re.split(r"[\\/]+", item["d2_render_img_path"]) if part]
                    labels[parts[-5], parts[-3], parts[-1]] = {0: 0, 1: 1}[int(item["anomaly"])]
            except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError, RecursionError) as error:
                raise DataError(f"{path}: not the authors' list of samples ({error!r:.80}); restore or remove it") from error
        return labels


def _beside(specie: Path, name: str) -> tuple[str, ...]:
    """The other files and folders of one scan."""
    parts = [specie / folder / name for folder in VIEWS if folder != "2d_rendering"]
    parts += [spelt(specie / "pcd" / f"{name}.pcd"), Partners(specie / "xyz").find(name, *TIFF),
              spelt(specie / "rgb" / f"{name}.png")]
    return tuple(map(str, parts))


def _views(specie: Path, name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The pictures by field and the point-to-pixel maps [V, N, 3] int64, both by the number of the view."""
    matches = (re.fullmatch(r"view_(\d{1,6})\.png", found.lower()) for found in Partners(specie / "2d_rendering" / name).names())
    numbers = {int(match[1]) for match in matches if match}
    count = max(numbers, default=0) + 1
    if len(numbers) < count:
        gap = next(v for v in range(count) if v not in numbers)
        path = specie / "2d_rendering" / name / f"view_{gap}.png"
        raise DataError(f"{path}: no such file, one of {count} views; restore it from the archive")
    paths = {}
    for folder, called in VIEWS.items():
        there = Partners(specie / folder / name)
        paths[folder] = [there.find(*_parted(called.format(v))) for v in range(count)]
    for folder, wanted in paths.items():
        for path in wanted:
            if not path.is_file():
                why = " (PointAD's trees have no depth pictures; GS-CLIP's have)" if folder == "2d_depth" else ""
                raise DataError(f"{path}: no such file, one of {len(wanted)} views{why}; restore it from the archive")
    shape = None
    pictures: dict[str, list[np.ndarray]] = {"2d_rendering": [], "2d_gt": [], "2d_depth": []}
    for folder, read in pictures.items():
        for path in paths[folder]:
            read.append(read_grey(path, shape))
            shape = read[0].shape if shape is None else shape
    if shape[0] != shape[1]:
        raise DataError(f"{paths['2d_rendering'][0]}: {shape[1]} x {shape[0]} pixels; views have to be square")
    maps = [_array(path) for path in paths["2d_3d_cor"]]
    for path, found in zip(paths["2d_3d_cor"], maps, strict=True):
        if found.ndim != 2 or found.shape[1] != 3 or len(found) != len(maps[0]) or not len(found):
            raise DataError(f"{path}: expected a map of shape ({len(maps[0])}, 3), found {found.shape}; restore the files")
        if found[:, :2].min() < 0 or found[:, :2].max() >= shape[0]:
            raise DataError(f"{path}: pixels outside the {shape[1]} x {shape[0]} pictures; restore the matching files")
    views = {"render": np.stack(pictures["2d_rendering"]), "depth": np.stack(pictures["2d_depth"]),
             "view_mask": np.stack(pictures["2d_gt"]) > 127}  # the loader's 0.5
    return views, np.stack(maps)


def _parted(name: str) -> tuple[str, str]:
    stem, dot, ending = name.rpartition(".")
    return stem, dot + ending


def _kept(path: Path, side: int, count: int) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Which grid pixels the points are, and the grid; of unorganised scans 0 to `count` and None."""
    if not path.is_file():
        return np.arange(count), None
    kept = _array(path)
    if kept.shape != (count,):
        raise DataError(f"{path}: {kept.size} pixels where the maps beside it have {count} points; restore the matching files")
    if kept.min() < 0 or kept.max() >= side * side or len(np.unique(kept)) != count:
        raise DataError(f"{path}: pixels twice or outside the {side} x {side} grid; restore it from the archive")
    return kept, (side, side)


def _points(specie: Path, name: str, kept: np.ndarray, side: int | None) -> tuple[np.ndarray, Path]:
    """The kept points [N, 3] and their file: the tiff brought to `side` pixels as the authors do, or the cloud."""
    tiff = Partners(specie / "xyz").find(name, *TIFF)
    if side is not None and tiff.is_file():
        xyz = read_xyz(tiff)
        rows, columns = ((np.arange(side) * length) // side for length in xyz.shape[:2])
        points = xyz[rows[:, None], columns].reshape(-1, 3)[kept]
        if not points.any(1).all():
            raise DataError(f"{tiff}: no data on pixels that {KEPT} of {name} names; restore the matching files")
        return points, tiff
    clouds = [spelt(specie / folder / f"{name}.pcd") for folder in ("pcd", "gt_pcd")]
    for cloud in clouds:
        if cloud.is_file():
            return read_cloud(cloud), cloud
    raise DataError(f"{clouds[0]}: no such file, and no other with the points of {name}; restore it from the archive")


def _same_count(path: str | Path, found: int, name: str, count: int) -> None:
    if found != count:
        raise DataError(f"{path}: {found} points where the maps in 2d_3d_cor/{name} have {count}; restore the matching files")


def _array(path: Path) -> np.ndarray:
    """An array of whole numbers. Raises DataError when the file is none."""
    found = read_array(path)
    if found.dtype.kind not in "iu":
        raise DataError(f"{path}: expected whole numbers, found {found.dtype}; restore it from the archive")
    return found.astype(np.int64)


def _spread(part: np.ndarray, kept: np.ndarray, count: int, axis: int = 0) -> np.ndarray:
    """The values of the points, on the pixels they are of `count`; 0 elsewhere."""
    out = np.zeros((*part.shape[:axis], count, *part.shape[axis + 1 :]), part.dtype)
    out[(slice(None),) * axis + (kept,)] = part
    return out


DATA_SET = DataSet(Prerendered, RECIPE)  # brings its own pictures, of MVTec 3D-AD's sizes
