"""Eyecandies' folder layout: `<Category>/{train,val,test_public}/data/<id>_<item>`, with depth.png, info_depth.yaml, pose.txt,
image_<k>.png, and for test scans mask.png, metadata.yaml and a mask per kind of defect. `test_private` has no ground truth and is
not read.

Points are those of the published background removal: turned so that y and z change places, and a tenth of the size (the camera
list 'eyecandies' was made for that frame). Source: the data set's docs/download.md; M3DM `utils/preprocess_eyecandies.py`;
PointAD `multi_view/multiview_eyecandies.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import yaml

from data_pipelines.clouds.sampling import clean
from data_pipelines.datasets.data_set import COMMON, DataSet, Published
from data_pipelines.datasets.listing import Listing, Partners, find_categories, natural, unknown_category
from data_pipelines.datasets.pictures import read_flags, read_levels, read_rgb
from data_pipelines.scan import DataError, Sample, Scan

LAYOUT = "<Category>/test_public/data/<id>_depth.png"
SIDE, FOCAL = 512, 711.11  # pixels; one camera for all
SPLITS = {"test": "test_public", "train": "train", "validation": "val", "val": "val"}
DEFECTS = ("bumps", "dents", "colors", "normals")
DEPTH = "_depth.png"
MOST_BYTES = 10_000  # of the small text files
INFO, META = (("_info_depth.yaml", "_info_depth.yml"), ("_metadata.yaml", "_metadata.yml"))
ITEM = re.compile(r"(.+?)_(?:pose|image_\d|info_depth|(?:bumps_|dents_|colors_|normals_)?mask|metadata)\.\w+", re.IGNORECASE)
# Of the object, in the frame of the conveyor: above it, not behind it, not beside it.
ABOVE, FAR, ASIDE = -0.02, 1.8, 1.0
TURN = np.array([[0.1, 0, 0], [0, 0, -0.1], [0, 0.1, 0]])


def _is_category(folder: Path, listing: Listing) -> bool:
    data = Partners(folder / SPLITS["test"] / "data", listing)
    return any(name.lower().endswith(DEPTH) for name in data.names())


class Eyecandies:
    """Reader of Eyecandies.

    Args:
      image: which light the colour picture has: 0 all spots, 1 bottom, 2 right, 3 top, 4 left (as M3DM takes it), 5 global.
    """

    def __init__(self, root: str | Path, name: str = "eyecandies", image: int = 4):
        if image not in range(6):
            raise DataError(f"Eyecandies has the images 0 to 5, not {image}")
        self.name, self.image = name, image
        self.root, self._categories, self.listing = find_categories(root, _is_category, LAYOUT)

    def categories(self) -> list[str]:
        return list(self._categories)

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """Scans of a split ('test' is test_public, 'validation' is val). Reads labels and masks of the test scans.

        Raises:
          DataError: unknown category, or a test scan whose label is missing or contradicts its mask.
        """
        if category not in self._categories:
            raise unknown_category(category, self._categories, self.root)
        if split not in SPLITS:
            return []
        data = Partners(self.root / category / SPLITS[split] / "data", self.listing)
        names = [name for name in data.names() if name[0] != "."]
        ids = {name[: -len(DEPTH)] for name in names if name.lower().endswith(DEPTH)}
        for name in names:
            match = ITEM.fullmatch(name)
            if match and match[1] not in ids:
                self.listing.leave(data.folder / name, f"of a scan without {DEPTH}")
        samples = []
        for name in sorted(ids, key=lambda name: natural(Path(name))):
            defect = self._defect(data, name) if split == "test" else "good"
            truth = None if defect == "good" else str(data.find(name, "_mask.png"))
            beside = (data.find(name, *INFO), data.find(name, "_pose.txt"), data.find(name, f"_image_{self.image}.png"))
            samples.append(Sample(name, category, defect, int(defect != "good"), split, str(data.find(name, DEPTH)), truth,
                                  tuple(map(str, beside))))
        return samples

    def _defect(self, data: Partners, name: str) -> str:
        """'good', or the kinds of defect whose masks are not empty, joined by '+'."""
        mask, meta = data.find(name, "_mask.png"), data.find(name, *META)
        try:
            marked = read_flags(mask).any() if mask.is_file() else None
        except DataError:
            if not meta.is_file() or not _number(_yaml(meta), meta, "anomalous"):
                raise  # what the scan is stands nowhere else
            return "defect"  # `load` refuses the scan, which --skip-bad then leaves out
        defective = bool(_number(_yaml(meta), meta, "anomalous")) if meta.is_file() else marked
        if defective is None:
            raise DataError(f"{data.find(name, DEPTH)}: test scan with neither {mask.name} nor {meta.name}; restore them from "
                            "the archive")
        if marked and not defective:
            raise DataError(f"{meta}: says 'anomalous: 0', but {mask.name} is not empty; restore the matching files")
        if not defective:
            return "good"
        masks = {kind: data.find(name, f"_{kind}_mask.png") for kind in DEFECTS}
        return "+".join(kind for kind, path in masks.items() if self._marks(path)) or "defect"

    def _marks(self, mask: Path) -> bool:
        """Whether the mask of a kind marks anything. It only names the defect: one that is no picture is left out, saying so."""
        try:
            return mask.is_file() and bool(read_flags(mask).any())
        except DataError:
            self.listing.leave(mask, "masks of one kind of defect that cannot be read")
            return False

    def colour(self, sample: Sample) -> Path:
        """The photograph, in the light of the option `image`."""
        return Path(sample.beside[2])

    def load(self, sample: Sample) -> Scan:
        """The scan on its 512 x 512 pixels, in a tenth of metres; the conveyor is not valid and is 0, 0, 0."""
        shape = (SIDE, SIDE)
        levels = read_levels(sample.path, shape)
        data, name = Partners(Path(sample.path).parent), Path(sample.path).name[: -len(DEPTH)]
        info, pose = data.find(name, *INFO), data.find(name, "_pose.txt")
        normalization = _yaml(info).get("normalization")
        if not isinstance(normalization, dict):
            raise DataError(f"{info}: no 'normalization' with 'min' and 'max'; restore it from the archive")
        low, high = (_number(normalization, info, key) for key in ("min", "max"))
        if not 0 < low <= high:
            raise DataError(f"{info}: depths from {low} to {high} m; they have to be above 0 and rise")
        world = world_points(levels / 65535 * (high - low) + low, _pose(pose))
        valid = above_conveyor(world, sample.path)
        mask = np.zeros(shape, bool)
        if sample.mask_path is not None:
            if not Path(sample.mask_path).is_file():
                raise DataError(f"{sample.path}: defective sample without ground truth; expected {sample.mask_path}")
            mask = read_flags(sample.mask_path, shape)
        xyz = world @ TURN.T
        if not valid.any():
            raise DataError(f"{sample.path}: no object, all {valid.size} pixels are background; check {info.name}, {pose.name}")
        clean(xyz[valid], sample.path)
        xyz[~valid] = 0
        return Scan(xyz, mask.ravel(), valid, shape, read_rgb(data.find(name, f"_image_{self.image}.png"), shape))


def world_points(depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """World points [H * W, 3] float64 in metres, row by row, of depths [H, W] in metres; `pose` [4, 4] takes world to camera."""
    row, column = np.indices(depth.shape)
    camera = np.stack([(column - depth.shape[1] / 2) * depth / FOCAL, (row - depth.shape[0] / 2) * depth / FOCAL, depth,
                       np.ones_like(depth)], -1)
    return (camera.reshape(-1, 4) @ np.linalg.inv(pose).T)[:, :3]


def above_conveyor(world: np.ndarray, path: str | Path = "scan") -> np.ndarray:
    """[S] bool: the points of the object among world points [S, 3] of a square picture, which shows the conveyor in the middle of
    its first and last row; the line between these two gives its tilt.

    Raises:
      DataError: naming `path`, when the two are at one place.
    """
    side = round(len(world) ** 0.5)
    first, last = world[side // 2], world[-side + side // 2]
    up, along = first[1:] - last[1:]
    length = np.hypot(up, along)
    if not length > 0:
        raise DataError(f"{path}: the first and the last row see one and the same point, so the conveyor has no direction")
    sine, cosine = up / length, along / length
    apart = world - [0, *last[1:]]
    y = cosine * apart[:, 1] - sine * apart[:, 2]
    z = sine * apart[:, 1] + cosine * apart[:, 2]
    return (y <= ABOVE) & (z <= FAR) & (np.abs(apart[:, 0]) <= ASIDE)


def _yaml(path: Path) -> dict:
    """A file of keys and values. Raises DataError when it is missing or is none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; restore it from the archive")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes, more than such a file has; restore it from the archive")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Plain)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        text = f"{' '.join(str(error).split()):.200}"
        raise DataError(f"{path}: not readable as yaml ({text}); restore it from the archive") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected keys with values, found {_short(content)}; restore it from the archive")
    return content


class _Plain(yaml.SafeLoader):
    """YAML without merged mappings, which grow a small file to any size."""

    def flatten_mapping(self, node):
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("merged mappings (<<) are not read")


def _short(value) -> str:
    """A value as a message shows it: lists that hold themselves many times over are not written out."""
    return f"{value!r:.40}" if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"


def _number(content: dict, path: Path, key: str) -> float:
    value = content.get(key)
    if not isinstance(value, int | float) or not abs(value) < 1e300:
        raise DataError(f"{path}: '{key}' should be a number, found {_short(value)}; restore it from the archive")
    return float(value)


def _pose(path: Path) -> np.ndarray:
    """The camera's pose [4, 4]. Raises DataError when it is missing or is none."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; restore it from the archive")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: {path.stat().st_size} bytes, more than a pose has; restore it from the archive")
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        pose = np.array(rows)
    except ValueError as error:
        raise DataError(f"{path}: not a matrix of numbers ({' '.join(str(error).split()):.200})") from error
    if pose.shape != (4, 4) or not np.abs(pose).max() < 1e6 or abs(np.linalg.det(pose)) < 1e-9:
        raise DataError(f"{path}: expected a pose, an invertible 4 x 4 matrix; restore it from the archive")
    return pose


RECIPE = COMMON | {"cameras": "eyecandies", "point_size": 10.0, "window": 1036, "reader": {"image": 4}}
PUBLISHED = Published(500, 10, 512 * 512, (512, 512))
DATA_SET = DataSet(Eyecandies, RECIPE, ("Confetto", "LicoriceSandwich", "PeppermintCandy"), PUBLISHED)
