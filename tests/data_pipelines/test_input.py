"""Batches: the contract, the order drawn from seed and epoch, resuming at any step, sharing between processes."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from data_pipelines import batch, input
from data_pipelines.datasets import open_reader
from data_pipelines.records import objects
from data_pipelines.records import store as records
from data_pipelines.records import tfds as tfds_records
from data_pipelines.scan import DataError
from tests.data_pipelines.test_records import config, content
from tests.scans import ellipsoid, write_set


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_set(tmp_path_factory.mktemp("scans"), good=3, defective=2)  # 5 a category: no multiple of the batch
    for path in (root / "egg" / "test").glob("*bulge*"):
        path.rename(path.with_name(path.name.replace("bulge", "good")))  # egg has no defective sample
    return root


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    return records.prepare(config(root), tmp_path_factory.mktemp("cache"), workers=2, progress=lambda line: None)


def take(batches, count):
    return list(itertools.islice(batches, count))


def rows(batches):
    return [one["object_index"].tolist() for one in batches]


def equal(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_batches_keep_the_contract_and_hold_what_was_made(made, root):
    (one,) = take(input.eval_batches(made, categories="ball", batch_size=5), 2)
    assert batch.check(one) == {"B": 5, "V": 3, "H": 48, "W": 48, "N": 128, "M": 600, "K": 4}
    reader = open_reader("real3d", root)
    samples = reader.samples("ball")
    fresh = objects.to_batch([objects.make_object(reader.load(s), made.recipe, "ball", s.id) for s in samples],
                             [s.label for s in samples])
    assert one["view_label"].any() and one["label"].tolist() == [0, 0, 0, 1, 1]
    for name in fresh:
        np.testing.assert_array_equal(one[name], fresh[name], err_msg=name)


def test_every_object_once_an_epoch_in_another_order(made):
    seen = np.concatenate(rows(take(input.train_batches(made, categories=["ball"], batch_size=2, seed=3), 10)))
    epochs = seen.reshape(4, 5)
    assert (np.sort(epochs, axis=1) == np.arange(5)).all()
    assert len({tuple(epoch) for epoch in epochs}) > 1
    other = np.concatenate(rows(take(input.train_batches(made, categories=["ball"], batch_size=2, seed=4), 10)))
    assert (seen != other).any()
    assert input.steps_per_epoch(made, "ball", 2) == 3


def test_resumes_exactly_at_any_step(made):
    whole = take(input.train_batches(made, categories="ball", batch_size=2, seed=1), 9)
    for start in (1, 2, 5, 8):
        rest = take(input.train_batches(made, categories="ball", batch_size=2, seed=1, start_step=start), 9 - start)
        assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True)), start


def test_processes_share_every_batch(made):
    whole = rows(take(input.train_batches(made, categories="ball", batch_size=4, seed=1, start_step=1), 4))
    parts = [rows(take(input.train_batches(made, categories="ball", batch_size=4, seed=1, start_step=1, places=places), 4))
             for places in ([0, 1, 2], [3, 0, 1])]
    assert [a + b for a, b in zip(*parts, strict=True)] == [[*one, one[0], one[1]] for one in whole]
    for wrong in ([], [4], [-1]):
        with pytest.raises(ValueError, match="of a batch of 4 objects"):
            input.train_batches(made, categories="ball", batch_size=4, seed=1, places=wrong)


def test_evaluation_is_in_order_and_marks_its_filling(made):
    batches = take(input.eval_batches(made, batch_size=4), 9)
    assert rows(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    assert [one["real"].tolist() for one in batches] == [[True] * 4, [True] * 4, [True, True, False, False]]
    parts = [take(input.eval_batches(made, batch_size=4, places=places), 9) for places in ([0, 1], [2, 3])]
    assert [rows(part) for part in parts] == [[[0, 1], [4, 5], [8, 9]], [[2, 3], [6, 7], [9, 9]]]
    assert [part[-1]["real"].tolist() for part in parts] == [[True, True], [False, False]]
    (repeated,) = take(input.eval_batches(made, categories="egg", batch_size=5, places=[0, 1, 2, 3, 4, 0]), 1)
    assert repeated["real"].tolist() == [True] * 5 + [False]


def test_what_cannot_be_trained_on(made):
    with pytest.raises(DataError, match="category 'egg' .* has no defective sample"):
        input.train_batches(made, categories="egg", batch_size=2, seed=0)
    with pytest.raises(DataError, match="no category 'bal' in the records, did you mean 'ball'"):
        input.train_batches(made, categories="bal", batch_size=2, seed=0)


def test_a_lost_shard_is_named(made, tmp_path):
    shutil.copytree(made.dir, tmp_path / "copy")
    found = records.open_records(tmp_path / "copy")
    next((tmp_path / "copy").glob("object_records/*/*00003-of*")).unlink()
    with pytest.raises(DataError, match="copy.* is missing"):
        input.eval_batches(found, batch_size=2)


def test_organised_scans_beside_clouds_keep_no_neighbours(tmp_path):
    y, x = np.mgrid[:30, :30]
    grid = np.stack([x, y, 40 + np.hypot(x - 15, y - 15)], 2).astype(np.float32)
    (tmp_path / "set" / "p" / "good").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "set" / "p" / "good" / "1.tiff", grid)
    np.save(tmp_path / "set" / "p" / "good" / "2.npy", ellipsoid(700, 0)[0])
    made = records.prepare(config(tmp_path / "set", name="folder", train_category="", points=625), tmp_path / "cache", workers=1,
                           progress=lambda line: None)
    assert [len(row["neighbours"]) for row in content(made)] == [0, 625]
    (one,) = input.eval_batches(made, batch_size=2)
    batch.check(one)
    assert one["organised"].tolist() == [True, False]
    np.testing.assert_array_equal(one["neighbours"][0], np.repeat(np.arange(625)[:, None], 4, 1))
    assert (one["neighbours"][1, :, 0] == np.arange(625)).all() and (one["neighbours"][1, :, 1] != np.arange(625)).all()


@pytest.mark.parametrize("colours", [(True, True), (False, True), (True, False)])
def test_colour_is_kept_where_every_scan_has_it(root, tmp_path, colours):
    reader = open_reader("real3d", root)
    recipe = objects.recipe_of(config(root))
    samples = reader.samples("ball")[:2]
    parts = [tmp_path / f"{i}.npz" for i in range(2)]
    for sample, part, colour in zip(samples, parts, colours, strict=True):
        made = objects.make_object(reader.load(sample), recipe, "ball", sample.id)
        objects.write_part(part, made | ({"rgb": np.full((48, 48, 3), 7, np.uint8)} if colour else {}))
    tfds_records.write_tfds(tmp_path, parts, samples, recipe)
    assert ("rgb" in tfds_records.open_tfds(tmp_path)[0]) == all(colours)


@pytest.mark.slow
def test_tensorflow_is_imported_without_a_word():
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TF_", "GRPC_"))}
    command = [sys.executable, "-c", "import data_pipelines.input"]
    found = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(__file__).resolve().parents[2])
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
