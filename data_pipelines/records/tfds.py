"""The TFDS builder of the records: which features a record has, and how parts become shards."""

from __future__ import annotations

import contextlib
import errno
import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from data_pipelines.batch import OPTIONAL
from data_pipelines.records.objects import Recipe, no_space
from data_pipelines.scan import DataError, Sample

SPLIT = "objects"
PICTURES = ("render", "depth", "view_mask", "rgb", "rgb_render")  # kept as PNG


def features(recipe: Recipe, optional: Collection[str]) -> tfds.features.FeaturesDict:
    """Views stacked into one tall PNG each, flags as packed bits, arrays as raw bytes (the default would be int64 lists).

    Args:
      optional: which of `batch.OPTIONAL` every record has.
    """
    views, size, points = len(recipe.camera_list()), recipe.image_size, recipe.points
    flags = -(-points // 8)

    def array(shape, dtype):
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

    def picture(height, channels):
        return tfds.features.Image(shape=(height, size, channels), dtype=np.uint8, encoding_format="png")

    return tfds.features.FeaturesDict({
        **{name: picture(views * size, 1) for name in ("render", "depth", "view_mask")},
        **({"rgb": picture(size, 3)} if "rgb" in optional else {}),
        **({"rgb_render": picture(views * size, 3)} if "rgb_render" in optional else {}),
        "pix": array((views, points, 2), np.uint8 if size <= 256 else np.int16),
        "seen": array((views, flags), np.uint8),
        "valid": array((flags,), np.uint8),
        "point_mask": array((flags,), np.uint8),
        "xyz": array((points, 3), np.float32),
        # None of organised scans, see `objects.pack`
        "neighbours": array((None, recipe.neighbours), np.uint16 if points <= 65536 else np.int32),
        "cloud": array((recipe.cloud_points, 3), np.float32),
        "organised": np.uint8,
        "label": np.int32,
        "object_index": np.int32,
        **{name: tfds.features.Text() for name in ("name", "category", "defect")},
    })


class ObjectRecords(tfds.core.GeneratorBasedBuilder):
    """Rendered objects, from part files, in the order of their index; `beam`: by an Apache Beam pipeline."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, parts: list[Path], samples: list[Sample], recipe: Recipe, beam: bool = False, **options):
        self._parts, self._samples, self._recipe, self._beam = parts, samples, recipe, beam
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        optional = OPTIONAL.intersection(*map(_fields, self._parts))  # one schema for all: colour only where every scan has it
        return self.dataset_info_from_configs(features=features(self._recipe, optional), disable_shuffling=True,
                                              description="Point-cloud objects rendered from several sides.")

    def _split_generators(self, dl_manager):
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self):
        rows = [(row, str(part), sample) for row, (part, sample) in enumerate(zip(self._parts, self._samples, strict=True))]
        optional = tuple(sorted(OPTIONAL & set(self.info.features)))
        if self._beam:
            from data_pipelines.records.beam import examples

            return examples([(*row, optional) for row in rows], example)
        return (example(*row, optional) for row in rows)


def _fields(part: Path) -> list[str]:
    with np.load(part) as arrays:
        return arrays.files


def example(row: int, part: str, sample: Sample, optional: Collection[str]) -> tuple[int, dict]:
    """Key and features of one record, of `batch.OPTIONAL` those named. Raises DataError when its part cannot be read."""
    left = {"note", *(OPTIONAL - set(optional))}
    try:
        with np.load(part) as arrays:
            record = {name: arrays[name] for name in arrays.files if name not in left}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{part}: unreadable part ({error}); delete it and run again") from error
    for name in PICTURES:
        if name in record:
            record[name] = io.BytesIO(record[name].tobytes())
    return row, record | {"label": sample.label, "object_index": row, "name": sample.id, "category": sample.category,
                          "defect": sample.defect}


def write_tfds(folder: Path, parts: list[Path], samples: list[Sample], recipe: Recipe, beam: Sequence[str] | None = None) -> None:
    """Writes the TFDS data set under `folder`, whole or not at all; `beam`: with Apache Beam and these flags of it.

    Raises:
      DataError: the disk is full.
    """
    options = None
    if beam is not None:
        from data_pipelines.records.beam import pipeline_options

        options = pipeline_options(beam)
    builder = ObjectRecords(parts=parts, samples=samples, recipe=recipe, beam=beam is not None, data_dir=folder,
                            file_format="tfrecord")
    # A shard for every record: any record can be read at once, so that shuffling is exact and resuming costs nothing.
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP,
                                          num_shards=len(samples), beam_options=options)
    tfds.disable_progress_bar()  # `records.prepare` says how far it is
    try:
        with contextlib.redirect_stdout(io.StringIO()), quiet():  # and what it does
            builder.download_and_prepare(download_config=config)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise no_space(folder) from error
        raise


def open_tfds(folder: Path) -> tuple[tfds.features.FeaturesDict, list[str]]:
    """The features of the records under `folder`, and the file of each record in the order of the index."""
    with quiet():
        builder = tfds.builder_from_directory(folder / ObjectRecords.name / str(ObjectRecords.VERSION))
        return builder.info.features, [str(path) for path in builder.info.splits[SPLIT].filepaths]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps TFDS from warning, a line for each, of a deprecation inside its own features."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)
