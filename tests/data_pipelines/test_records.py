"""Records: made once, found again, continued after a kill, the same whatever happened; one line for bad input."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest

from data_pipelines.datasets import open_reader
from data_pipelines.records import fingerprints, objects, workers
from data_pipelines.records import store as records
from data_pipelines.scan import DataError
from tests.scans import ellipsoid, write_pcd, write_set

SMALL = {"name": "real3d", "train_category": "ball", "points": 600, "image_size": 48, "views": 3, "cameras": "ring", "window": 96,
         "point_size": 4, "cloud_points": 128, "neighbours": 4, "sample_seed": 0}


def config(root, **changes):
    return ml_collections.ConfigDict({**SMALL, "root": str(root), **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    return records.prepare(config(root), tmp_path_factory.mktemp("cache"), workers=2, progress=lambda line: None)


def content(found: records.RecordSet) -> list[dict]:
    """Every record as TFDS itself reads it."""
    from data_pipelines.records.tfds import SPLIT, ObjectRecords, tfds

    builder = tfds.builder_from_directory(found.dir / ObjectRecords.name / str(ObjectRecords.VERSION))
    return list(tfds.as_numpy(builder.as_dataset(split=SPLIT, shuffle_files=False)))


def same(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a) for a, b in zip(one, other, strict=True))


def test_records_hold_what_was_made(made, root):
    assert [(row["name"], row["label"], row["defect"]) for row in made.index[:4]] == [
        ("8_good", 0, "good"), ("9_good", 0, "good"), ("10_bulge", 1, "bulge"), ("11_bulge", 1, "bulge")]
    assert made.categories() == ["ball", "egg"]
    np.testing.assert_array_equal(made.rows("egg"), [4, 5, 6, 7])
    assert not (made.dir / "parts").exists()
    stored = content(made)[2]
    reader = open_reader("real3d", root)
    fresh = objects.make_object(reader.load(reader.samples("ball")[2]), made.recipe, "ball", "10_bulge")
    assert (stored["name"], stored["category"], stored["label"], stored["object_index"]) == (b"10_bulge", b"ball", 1, 2)
    for name in ("render", "depth"):
        np.testing.assert_array_equal(stored[name].reshape(3, 48, 48), fresh[name])
    np.testing.assert_array_equal(stored["view_mask"].reshape(3, 48, 48) > 0, fresh["view_mask"])
    assert fresh["view_mask"].any() and fresh["point_mask"].any()
    np.testing.assert_array_equal(stored["pix"], fresh["pixel"])  # records keep the names they began with
    for name in ("xyz", "neighbours", "cloud"):
        np.testing.assert_array_equal(stored[name], fresh[name])
    np.testing.assert_array_equal(np.unpackbits(stored["seen"], axis=-1, count=600), fresh["visible"])


def test_found_again_without_work(made, root, monkeypatch):
    monkeypatch.setattr(records, "_make", lambda *a: pytest.fail("made again"))
    said = []
    again = records.prepare(config(root, train_category="egg"), made.dir.parent, progress=said.append)  # one set for all
    assert again.dir == made.dir and again.index == made.index and again.recipe == made.recipe and not said


def test_key_names_all_that_made_it(made, root, tmp_path):
    reader = open_reader("real3d", root)

    def key(**changes):
        recipe = objects.recipe_of(config(root, **changes))
        return records._key("real3d", records._samples(reader, changes.get("categories"), None, recipe), recipe, tmp_path)

    changes = [{"points": 700}, {"image_size": 64}, {"views": 5}, {"cameras": "mvtec3d"}, {"window": 128}, {"point_size": 5},
               {"point_size": {"default": 4}}, {"cloud_points": 64}, {"neighbours": 5}, {"sample_seed": 1}, {"seen": "surface"},
               {"zoom": 0.5}, {"categories": ("egg",)}, {"back_off": True}, {"cavity": 0.5}, {"depth_relief": 0.5},
               {"fill_gaps": True}, {"rgb_render": True}]
    # Records from before these keys are still found.
    assert key(cavity=0.0, depth_relief=0.0, fill_gaps=False, rgb_render=False) == key()
    keys = [key()] + [key(**change) for change in changes]
    assert len(set(keys)) == len(keys) and made.dir.name == f"real3d-{keys[0]}"
    path = Path(reader.samples("egg")[3].mask_path)
    status, whole = path.stat(), path.read_bytes()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert key() == keys[0]  # the time alone changes nothing
    try:
        path.write_bytes(whole.replace(b"1", b"2", 1))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert key() != keys[0]  # and hides nothing
    finally:
        path.write_bytes(whole)
    assert key() == keys[0]


def test_scans_are_read_once_and_found_wherever_they_lie(made, root, tmp_path, monkeypatch):
    cache = shutil.copytree(made.dir.parent, tmp_path / "backup")  # cp -r: other times
    moved = shutil.copytree(root, tmp_path / "moved", copy_function=shutil.copyfile)
    monkeypatch.setattr(records, "_make", lambda *a: pytest.fail("made again"))
    read = []
    monkeypatch.setattr(fingerprints, "_read", lambda path: read.append(path) or fingerprints.checksum(path))
    time.sleep(2 * fingerprints.FRESH)  # what changed just now may change again within the same tick of the clock
    files = [path for path in moved.rglob("*") if path.is_file() and "train" not in path.parts]
    for reads in (len(files), 0, 1):
        found = records.prepare(config(moved), cache, progress=lambda line: None)
        assert found.dir == cache / made.dir.name and found.index[0]["path"].startswith(str(moved)) and len(read) == reads
        read.clear()
        if not reads:
            os.utime(files[0])
            time.sleep(2 * fingerprints.FRESH)
    (cache / fingerprints.STORE).write_text("[1, {")
    assert records.prepare(config(moved), cache, progress=lambda line: None).dir == found.dir and len(read) == len(files)
    assert json.loads((cache / fingerprints.STORE).read_text())


def test_a_memory_that_cannot_be_written_is_said(root, tmp_path):
    (tmp_path / fingerprints.STORE).mkdir()  # nothing can take its place
    said = []
    paths = [path for path in root.rglob("*.txt")]
    assert fingerprints.fingerprints(paths, tmp_path, said.append) == {path: fingerprints.checksum(path) for path in paths}
    assert len(said) == 1 and "will be read again" in said[0]


def test_killed_and_continued_gives_the_same_records(made, root, tmp_path):
    code = ("import sys, json; from data_pipelines.records import store as records;"
            "records.prepare(json.loads(sys.argv[1]), sys.argv[2], workers=1)")
    settings = json.dumps(config(root).to_dict())
    process = subprocess.Popen([sys.executable, "-c", code, settings, str(tmp_path)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("*/parts/*.npz"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = tmp_path.glob("real3d-*")
    with pytest.raises(DataError, match="no finished records"):
        records.open_records(folder)
    time.sleep(0.5)  # its worker ends with the object at hand
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("parts/*.npz")}
    assert 3 <= len(before) < 8
    after = {}

    def look(line):
        after.update({path.name: path.stat().st_mtime_ns for path in folder.glob("parts/*.npz")})

    found = records.prepare(config(root), tmp_path, workers=2, progress=look)
    assert {name: after[name] for name in before} == before  # kept, not drawn again
    assert found.index == made.index and same(content(found), content(made))


def test_broken_scan_stops_with_its_name_and_can_be_repaired(tmp_path):
    root = write_set(tmp_path / "set", categories=("ball",))
    path = root / "ball" / "test" / "9_good.pcd"
    whole = path.read_bytes()
    status = path.stat()
    xyz = np.full((700, 3), np.nan)
    write_pcd(path, xyz)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=r"9_good.pcd: only 0 points \(700 are NaN of 700 rows") as error:
        records.prepare(config(root), tmp_path / "cache", workers=1, progress=lambda line: None)
    assert "\n" not in str(error.value)
    (folder,) = (tmp_path / "cache").glob("real3d-*")
    assert not (folder / records.INDEX).exists() and not list(folder.glob("object_records/*"))
    path.write_bytes(whole)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = records.prepare(config(root), tmp_path / "cache", workers=1, progress=lambda line: None)
    assert found.dir != folder and len(found.index) == 4


def test_a_worker_that_goes_down_is_one_line(root, tmp_path, monkeypatch):
    def die(spec):
        return subprocess.Popen([sys.executable, "-c", "import sys; sys.exit('no GL library')"], text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    monkeypatch.setattr(workers, "_start_worker", die)
    with pytest.raises(DataError, match="8_good.pcd: the rendering process stopped at this scan .no GL library.*"):
        records.prepare(config(root), tmp_path, workers=1, progress=lambda line: None)


def test_no_disk_space(root, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    reader = open_reader("real3d", root)
    fresh = objects.make_object(reader.load(reader.samples("ball")[0]), objects.recipe_of(config(root)), "ball", "x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match="no disk space left under"):
            objects.write_part(tmp_path / "0.npz", fresh)
        assert not list(tmp_path.iterdir())
    monkeypatch.setattr(records.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match="no disk space for 8 records: about .* MB needed"):
        records.prepare(config(root), tmp_path, progress=lambda line: None)


def test_says_what_is_wrong_before_any_work(root, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_make", lambda *a: pytest.fail("work began"))
    wrong = [({"train_category": "bal"}, "no category 'bal'.*did you mean 'ball'"),
             ({"categories": ("ball", "eg")}, "did you mean 'egg'"),
             ({"train_category": "egg", "categories": ("ball",)}, "'egg' is not among"),
             ({"views": 4, "cameras": "mvtec3d"}, "no camera list of 4"), ({"cameras": "rong"}, "did you mean 'ring'"),
             ({"points": 3}, "config.data.points is 3"), ({"seen": "x"}, "config.data.seen"),
             ({"window": 40}, "smaller than config.data.image_size"),
             ({"point_size": {"bal": 3}}, "no point size for category 'ball'"),
             ({"root": ""}, "needs config.data.root"), ({"name": "real4d"}, "did you mean 'real3d'")]
    for changes, message in wrong:
        with pytest.raises(DataError, match=message):
            records.prepare(config(**{"root": root, **changes}), tmp_path, progress=lambda line: None)
    lacking = config(root)
    del lacking["window"]
    with pytest.raises(DataError, match="config.data lacks window"):
        records.prepare(lacking, tmp_path)
    plain = write_set(tmp_path / "plain", defective=0)
    with pytest.raises(DataError, match="'ball' of .* has no defective sample"):
        records.prepare(config(plain), tmp_path)


def test_missing_ground_truth_is_found_before_any_work(tmp_path):
    root = write_set(tmp_path / "set")
    (root / "egg" / "gt" / "11_bulge.txt").unlink()
    with pytest.raises(DataError, match="11_bulge.pcd: defective sample without ground truth; expected .*11_bulge.txt"):
        records.prepare(config(root), tmp_path)


def test_a_batch_without_records(made, root):
    """What scoring a single scan uses."""
    from data_pipelines import batch

    reader = open_reader("real3d", root)
    fresh = [objects.make_object(reader.load(s), made.recipe, s.category, s.id) for s in reader.samples("egg")[1:3]]
    lengths = batch.check(objects.to_batch(fresh, labels=[0, 1]))
    assert lengths == {"B": 2, "V": 3, "H": 48, "W": 48, "N": 128, "M": 600, "K": 4}


def test_rows_that_hold_no_point_are_said_and_kept_in_the_index(tmp_path):
    root = write_set(tmp_path / "set", categories=("ball",))
    path = root / "ball" / "test" / "9_good.pcd"
    xyz = ellipsoid(700, 5)[0]
    write_pcd(path, np.concatenate([xyz, np.zeros((50, 3)), xyz[:20]]))
    said = []
    found = records.prepare(config(root), tmp_path / "cache", workers=1, progress=said.append)
    (row,) = [row for row in found.index if row["note"]]
    assert row["name"] == "9_good"
    assert "50 lie at exactly 0, 0, 0 of 770 rows" in row["note"] and "20 of 770 points are copies" in row["note"]
    assert sum("1 of 4 scans hold rows that take no part" in line for line in said) == 1
