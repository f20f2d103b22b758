"""Records to batches: tf.data with random access, so that any step of any epoch can be started at."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from data_pipelines.batch import OPTIONAL, Batch
from data_pipelines.records.objects import FLAGS, Recipe, own_neighbours
from data_pipelines.records.store import RecordSet
from data_pipelines.records.tfds import open_tfds, quiet
from data_pipelines.scan import DataError, no_defective

# Accelerators are the models' alone: TensorFlow would take their memory.
for _kind in ("GPU", "TPU"):
    tf.config.set_visible_devices([], _kind)

THREADS = 2  # of the pipeline; the rest of the machine trains
AHEAD = 2  # batches ready in advance
TEXTS = ("name", "category", "defect")
COLOUR = ("rgb",)  # of the optional fields, what is read where records have it and nobody says otherwise


def train_batches(records: RecordSet, *, categories=None, batch_size: int, seed: int, start_step: int = 0,
                  places: Sequence[int] | None = None, optional: Collection[str] = COLOUR) -> Iterator[Batch]:
    """Endless batches: every object once an epoch, in an order drawn from (seed, epoch).

    Step s takes places s * batch_size to (s + 1) * batch_size - 1 of the endless order, so that starting at `start_step` gives
    exactly what a run from step 0 gives from there on; the last batch of an epoch may reach into the next.

    Args:
      batch_size: objects of one step over all processes.
      places: the rows of every batch that this process yields, in this order; a row may come again, to fill up. None: all.
      optional: which of `batch.OPTIONAL` are read, where the records have them; the others are not even decoded.

    Yields: batches that keep `batch.FIELDS`, of as many rows as `places`.

    Raises:
      DataError: unknown category, or one without defective samples.
      ValueError: no batch size, or places that are not in the batch.
    """
    rows = records.rows(categories)
    wanted = {records.index[row]["category"] for row in rows}
    for category in sorted(wanted):
        if not any(records.index[row]["label"] for row in rows if records.index[row]["category"] == category):
            raise no_defective(category, records.dir)
    mine = _places(places, batch_size)

    first = start_step * batch_size

    def epoch_order(epoch: tf.Tensor) -> tf.data.Dataset:
        # Whole seeds, not their low bits: neighbouring seeds and epochs are unrelated orders.
        return tf.data.Dataset.from_tensor_slices(tf.random.experimental.stateless_shuffle(rows, seed=[seed, epoch]))

    order = tf.data.Dataset.counter(first // len(rows)).flat_map(epoch_order).skip(first % len(rows))
    order = order.batch(batch_size, drop_remainder=True).map(lambda step: tf.gather(step, mine)).unbatch()
    return _batches(records, order, len(mine), optional)


def steps_per_epoch(records: RecordSet, categories, batch_size: int) -> int:
    """Steps of `train_batches` in which every object of the categories is seen, at least one."""
    return -(-len(records.rows(categories)) // batch_size)


def eval_batches(records: RecordSet, *, categories=None, batch_size: int, places: Sequence[int] | None = None,
                 optional: Collection[str] = COLOUR) -> Iterator[Batch]:
    """Every object once, in the order of the index; what fills up a batch is repeats marked real = False.

    Args and errors: as `train_batches`; all processes get the same number of batches.
    """
    rows = records.rows(categories)
    mine = _places(places, batch_size)
    if not len(rows):
        raise DataError(f"{records.dir}: no records to evaluate")
    padded = np.concatenate([rows, np.repeat(rows[-1:], -len(rows) % batch_size)]).reshape(-1, batch_size)
    first = np.zeros(len(mine), bool)
    first[np.unique(mine, return_index=True)[1]] = True
    real = (np.arange(padded.size) < len(rows)).reshape(padded.shape)[:, mine] & first
    batches = _batches(records, tf.data.Dataset.from_tensor_slices(padded[:, mine].ravel()), len(mine), optional)
    return (batch | {"real": flags} for batch, flags in zip(batches, real, strict=True))


def _places(places: Sequence[int] | None, batch_size: int) -> np.ndarray:
    if batch_size < 1:
        raise ValueError(f"a batch of {batch_size} objects; it takes at least one")
    found = np.arange(batch_size) if places is None else np.asarray(places)
    if not len(found) or not (0 <= found.min() <= found.max() < batch_size):
        raise ValueError(f"places {found.tolist()} of a batch of {batch_size} objects")
    return found


def _batches(records: RecordSet, rows: tf.data.Dataset, size: int, optional: Collection[str]) -> Iterator[Batch]:
    """Batches of `size` of the records that `rows` names, read and decoded in parallel, in order.

    No Python function runs inside the pipeline: its threads never wait for the interpreter, nor hang a program that ends.
    """
    features, paths = open_tfds(records.dir)
    if len(paths) != len(records.index):
        raise DataError(f"{records.dir}: {len(paths)} records for {len(records.index)} objects; delete the folder and run again")
    for path in paths:
        if not os.path.isfile(path):
            raise DataError(f"{path} is missing; delete {records.dir} and run again")
    shards = tf.constant(paths)
    read = decoder(features, records.recipe, optional)

    def decode(example: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: value for name, value in read(example).items() if name not in TEXTS}

    data = rows.flat_map(lambda row: tf.data.TFRecordDataset(shards[row]))
    with quiet():
        data = data.map(decode, num_parallel_calls=THREADS, deterministic=True)
    data = data.batch(size, drop_remainder=True).prefetch(AHEAD)
    options = tf.data.Options()
    options.threading.private_threadpool_size = THREADS
    options.threading.max_intra_op_parallelism = 1
    return map(lambda stored: unpack(stored, records), data.with_options(options).as_numpy_iterator())


def decoder(features: tfds.features.FeaturesDict, recipe: Recipe,
            optional: Collection[str]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """How a stored record becomes its fields, for every reader: with the neighbours that organised ones do not keep
    (`objects.pack`), since rows that are batched together have to be as long. Works on tensors and inside `tf.data`.

    Args:
      optional: which of `batch.OPTIONAL` are decoded, where they are stored.

    Raises:
      ValueError: an optional field that no batch has.
    """
    unknown = set(optional) - OPTIONAL
    if unknown:
        raise ValueError(f"no optional field {', '.join(sorted(unknown))}; there are {', '.join(sorted(OPTIONAL))}")
    features = tfds.features.FeaturesDict({name: kind for name, kind in features.items() if name not in OPTIONAL - set(optional)})
    own = tf.constant(own_neighbours(recipe.points, recipe.neighbours))

    def decode(example: tf.Tensor) -> dict[str, tf.Tensor]:
        record = features.deserialize_example(example)
        near = record["neighbours"]
        record["neighbours"] = tf.cond(tf.size(near) > 0, lambda: near, lambda: tf.cast(own, near.dtype))
        record["neighbours"].set_shape(own.shape)
        return record

    return decode


def unpack(stored: dict[str, np.ndarray], records: RecordSet) -> Batch:
    """The fields of `batch.FIELDS` from a batch of records; undoes `objects.pack`."""
    recipe = records.recipe
    count, size, points = len(stored["label"]), recipe.image_size, recipe.points
    views = {name: stored[name].reshape(count, -1, size, size) for name in ("render", "depth", "view_mask")}
    flags = {name: np.unpackbits(stored[key], axis=-1, count=points).astype(bool) for name, key in FLAGS.items()}
    view_mask = views.pop("view_mask") > 0
    batch = {
        **views, **flags, "view_mask": view_mask, "view_label": view_mask.any((2, 3)).astype(np.int32),
        "cloud": stored["cloud"], "xyz": stored["xyz"], "pixel": stored["pix"].astype(np.int16),
        "neighbours": stored["neighbours"].astype(np.int32), "organised": stored["organised"].astype(bool),
        "label": stored["label"], "object_index": stored["object_index"], "real": np.ones(count, bool),
    }
    if "rgb_render" in stored:
        batch["rgb_render"] = stored["rgb_render"].reshape(count, -1, size, size, 3)
    return batch | ({"rgb": stored["rgb"]} if "rgb" in stored else {})
