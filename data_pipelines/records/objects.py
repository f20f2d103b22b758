"""From one scan to everything the models read of it, and the worker process that does so for many.

`python -m data_pipelines.records.objects` is the worker that `workers.py` starts: a process of its own, because the drawing
library may bring a process down, and one that imports neither TensorFlow nor JAX. It reads a job a line and answers a line each.
"""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_pipelines.batch import Batch
from data_pipelines.clouds.sampling import cloud_points, knn, resample, seed_of
from data_pipelines.datasets import open_reader
from data_pipelines.datasets.colours import coloured
from data_pipelines.datasets.listing import Reader
from data_pipelines.files import write_atomic
from data_pipelines.rendering.cameras import Cameras, views
from data_pipelines.rendering.projection import RASTERISERS
from data_pipelines.rendering.views import SEEN, ZOOM, Look, Rasteriser, rasteriser, render_object
from data_pipelines.scan import DataError, Sample, Scan, did_you_mean

BESIDE = ("source", "frame", "note")  # of a made object: not fields of a batch
BAD = ".bad"  # ending of the file that stands for the part of a scan which cannot be used
LATER = ("cavity", "depth_relief", "fill_gaps", "rasteriser", "rgb_render")  # left out of the JSON at defaults: older keys stay


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a scan becomes a record. Everything here is part of the key under which records are kept; a configuration may leave out
    what has a default."""

    points: int  # M scored points
    image_size: int  # H = W of the stored views
    views: int | None
    cameras: str | Sequence  # preset name or list of rotations
    window: int  # side of the drawing, pixels
    point_size: float | Mapping[str, float]  # or by category, 'default' for the others
    cloud_points: int  # N points for PointNet++
    neighbours: int  # K
    sample_seed: int
    seen: str = "front"
    back_off: bool | None = None
    zoom: float = ZOOM  # of the camera: less is nearer
    cavity: float = 0.0  # how far rough surface is darkened in shaded views
    depth_relief: float = 0.0  # share of a depth view's greys that show height over the surroundings
    fill_gaps: bool = False  # where the far side shows between splats
    rasteriser: str = "open3d"  # or "numpy": what draws
    rgb_render: bool = False  # the views in the object's own colours as well

    def camera_list(self) -> Cameras:
        return views(self.cameras, self.views, self.back_off)

    def look(self, category: str) -> Look:
        """How the views of a category are drawn. Errors: as `splat`."""
        return Look(self.image_size, self.window, self.splat(category), self.seen, self.zoom, self.cavity, self.depth_relief,
                    self.fill_gaps)

    def splat(self, category: str) -> float:
        """Point size of a category. Raises DataError when a table of sizes does not have it."""
        if not isinstance(self.point_size, Mapping):
            return float(self.point_size)
        size = self.point_size.get(category, self.point_size.get("default"))
        if size is None:
            raise DataError(f"no point size for category {category!r}{did_you_mean(category, self.point_size)} in "
                            "config.data.point_size; add it, or 'default'")
        return float(size)

    def json(self) -> dict:
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in LATER or v != _FIELDS[k].default}


_FIELDS = {field.name: field for field in dataclasses.fields(Recipe)}
BEFORE = {key: _FIELDS[key].default for key in LATER}  # what the later keys stand for where a configuration has none yet


def recipe_of(data_cfg: Mapping) -> Recipe:
    """The recipe in a data configuration.

    Raises:
      DataError: a missing key or a value out of range.
    """
    plain = json.loads(json.dumps({key: _plain(data_cfg[key]) for key in _FIELDS if key in data_cfg}))
    missing = [key for key, field in _FIELDS.items() if field.default is dataclasses.MISSING and key not in plain]
    if missing:
        raise DataError(f"config.data lacks {', '.join(missing)}")
    recipe = Recipe(**plain)
    for key, least in (("points", 16), ("image_size", 16), ("window", 16), ("cloud_points", 1), ("neighbours", 1)):
        if getattr(recipe, key) < least:
            raise DataError(f"config.data.{key} is {getattr(recipe, key)}; it has to be at least {least}")
    if recipe.window < recipe.image_size:
        raise DataError(f"config.data.window ({recipe.window}) is smaller than config.data.image_size ({recipe.image_size})")
    if not 0 < recipe.zoom <= 10:
        raise DataError(f"config.data.zoom is {recipe.zoom}; it has to be above 0 and at most 10")
    for key in ("cavity", "depth_relief"):
        if not 0 <= getattr(recipe, key) <= 1:
            raise DataError(f"config.data.{key} is {getattr(recipe, key)}; it has to be between 0 and 1")
    for key, known in (("seen", SEEN), ("rasteriser", RASTERISERS)):
        if getattr(recipe, key) not in known:
            raise DataError(f"config.data.{key} is {getattr(recipe, key)!r}; use one of {', '.join(known)}")
    try:
        recipe.camera_list()
    except ValueError as error:
        raise DataError(f"config.data.cameras: {error}") from error
    return recipe


def _plain(value):
    """ConfigDicts and tuples as JSON knows them."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


def make_object(scan: Scan, recipe: Recipe, category: str, name: str, draw: Rasteriser | None = None) -> dict[str, np.ndarray]:
    """Samples, renders and maps one scan. Seeded by category and name: the same scan always gives the same arrays.

    Args:
      scan: with its colours (`datasets.colours`) where the recipe has coloured views.

    Returns: the fields of `batch.FIELDS` without the batch axis (all but label, object_index and real), and BESIDE: `source` [M]
      int32, the scan's point that each scored point is, or is nearest to; `frame`, a `canonical.Frame`, that brings the scan's
      points to `xyz`; `note`, one line on rows of the scan that took no part, or nothing.
    """
    seed = seed_of(recipe.sample_seed, category, name)
    scored = resample(scan, recipe.points, seed)
    if scan.views is not None:  # pictures of its own: `resample` left the points as they are, or `fitting` says why not
        shown = scan.views.fitting(recipe.points, recipe.image_size, len(recipe.camera_list()), f"{category}/{name}")
    else:
        shown = render_object(scored.xyz, scored.valid, scored.mask, recipe.camera_list(), recipe.look(category),
                              colours=scan.colours[scored.source] if recipe.rgb_render else None,
                              draw=draw or rasteriser(recipe.window, recipe.rasteriser))
    # Organised scans are smoothed over their grid: each point is its only neighbour.
    near = own_neighbours(recipe.points, recipe.neighbours) if scored.organised else knn(scored.xyz, recipe.neighbours)
    out = {
        **{key: shown[key] for key in ("render", "depth", "view_mask", "pixel", "visible")},
        "view_label": shown["view_mask"].any((1, 2)).astype(np.int32),
        "cloud": cloud_points(scored.xyz[scored.valid], recipe.cloud_points, seed + 1),
        "xyz": scored.xyz, "neighbours": near, "valid": scored.valid, "point_mask": scored.mask,
        "organised": np.array(scored.organised), "source": scored.source, "frame": scored.frame,
        "note": _note(scan, scored.copies),
    }
    if recipe.rgb_render:
        out["rgb_render"] = shown["rgb_render"]
    if scan.rgb is not None:
        picture = Image.fromarray(scan.rgb).resize((recipe.image_size, recipe.image_size), Image.Resampling.BICUBIC)
        out["rgb"] = np.asarray(picture)
    return out


def _note(scan: Scan, copies: int) -> str:
    told = f"{copies} of {len(scan.xyz)} points are copies of others: scored as these" if copies else ""
    return "; ".join(filter(None, [scan.note, told]))


def own_neighbours(points: int, neighbours: int) -> np.ndarray:
    """[points, neighbours] int32, every point its own neighbour: what a record does not keep."""
    return np.repeat(np.arange(points, dtype=np.int32)[:, None], neighbours, axis=1)


def to_batch(objects: Sequence[Mapping[str, np.ndarray]], labels: Sequence[int] | None = None) -> Batch:
    """A batch of objects just made, without records: for scoring single scans. Labels default to 0."""
    batch = {key: np.stack([one[key] for one in objects]) for key in objects[0] if key not in BESIDE}
    count = len(objects)
    return batch | {"label": np.array(labels if labels is not None else [0] * count, np.int32),
                    "object_index": np.arange(count, dtype=np.int32), "real": np.ones(count, bool)}


# ---- parts: one object on disk, pictures as PNG, flags as bits, small integers small ----


FLAGS = {"visible": "seen", "valid": "valid", "point_mask": "point_mask"}  # field -> its name in a record


def pack(made: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of `make_object` as a record keeps them; undone in `input.py`."""
    size, points = made["render"].shape[-1], len(made["xyz"])
    packed = {key: _png(made[key].reshape(-1, size)) for key in ("render", "depth")}
    packed["view_mask"] = _png(made["view_mask"].reshape(-1, size).astype(np.uint8) * 255)
    packed |= {key: np.packbits(made[name], axis=-1) for name, key in FLAGS.items()}
    packed["pix"] = made["pixel"].astype(np.uint8 if size <= 256 else np.int16)
    near = made["neighbours"].astype(np.uint16 if points <= 65536 else np.int32)
    packed["neighbours"] = near[:0] if made["organised"] else near
    packed |= {key: made[key] for key in ("xyz", "cloud")}
    packed["organised"] = made["organised"].astype(np.uint8)
    if "rgb" in made:
        packed["rgb"] = _png(made["rgb"])
    if "rgb_render" in made:
        packed["rgb_render"] = _png(made["rgb_render"].reshape(-1, size, 3))
    return packed


def _png(pixels: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=4)
    return np.frombuffer(buffer.getvalue(), np.uint8)


def no_space(folder: str | Path) -> DataError:
    """The error for a full disk."""
    return DataError(f"no disk space left under {folder}; free some, or choose another cache folder")


def write_part(path: Path, made: Mapping[str, np.ndarray]) -> None:
    """Keeps one object as a part file. Raises DataError when the disk is full."""
    buffer = io.BytesIO()
    np.savez(buffer, note=np.array(made.get("note", "")), **pack(made))
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(path.parent) from error
        raise


def make_part(reader: Reader, sample: Sample, recipe: Recipe, path: Path, draw: Rasteriser | None = None) -> str | None:
    """Makes the part file of one scan, or, of a scan that cannot be used, `.bad` in its place with the reason, which is returned.

    Raises:
      DataError: the disk is full.
    """
    try:
        try:
            scan = reader.load(sample)
            if recipe.rgb_render:
                scan = coloured(scan, reader.colour(sample), reader.name)
        except OSError as error:  # no permission, a disk that fails
            raise DataError(f"{error.filename or sample.path}: cannot be read ({error.strerror or error})") from error
        made = make_object(scan, recipe, sample.category, sample.id, draw)
    except DataError as error:
        write_atomic(path.with_suffix(BAD), json.dumps({"path": sample.path, "error": str(error)}).encode())
        return str(error)
    write_part(path, made)
    return None


def _work(jobs, answers) -> None:
    """First line: reader and recipe. Then a line per object, answered by `{}`, `{"bad": why}` or, to stop, `{"error": why}`."""
    spec = json.loads(jobs.readline())
    reader = open_reader(spec["name"], spec["root"], **spec["options"])
    recipe, parts = Recipe(**spec["recipe"]), Path(spec["parts"])
    try:
        draw = rasteriser(recipe.window, recipe.rasteriser, here=True)
    except DataError as error:
        answers.write(json.dumps({"error": str(error)}) + "\n")
        answers.flush()
        return
    for line in jobs:
        job = json.loads(line)
        sample = Sample(**job["sample"] | {"beside": tuple(job["sample"]["beside"])})
        try:
            bad = make_part(reader, sample, recipe, parts / f"{job['row']}.npz", draw)
            answer = {"bad": bad} if bad else {}
        except DataError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    # Libraries print to standard output: keep it for answers, and send theirs to standard error.
    with os.fdopen(os.dup(1), "w") as private:
        os.dup2(2, 1)
        _work(sys.stdin, private)
