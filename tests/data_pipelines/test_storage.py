"""The layer under work directories and caches: local copies of what lies on an object store. A real S3 server answers."""

import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest

from data_pipelines import storage
from data_pipelines.objects import Objects
from data_pipelines.storage import MARK, StorageError
from tests.object_store import BUCKET, s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("here")) as environment:
        yield environment


@pytest.fixture
def machine(server, tmp_path, monkeypatch):
    """machine(name): from now on this process is on that machine, with local copies of its own."""

    def use(name: str) -> None:
        monkeypatch.setenv("GSCLIP_MIRROR", str(tmp_path / name))

    monkeypatch.setattr(storage, "_stores", {})
    monkeypatch.setattr(storage, "_held", {})
    use("one")
    return use


def content(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in storage._files(folder)}


def test_a_path_stays_a_path_and_nothing_else_happens(tmp_path):
    for given in ("runs/a", tmp_path / "b", "~/c", "a:b/c"):
        assert storage.opened(given) == Path(given)
    assert storage.store_of(tmp_path) is None and not storage.fetch(tmp_path) and not storage.finished(tmp_path)
    (tmp_path / "file").write_text("x")
    storage.pull(tmp_path)
    storage.push(tmp_path)
    storage.publish(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_what_one_machine_writes_another_has(machine, tmp_path):
    run = storage.opened(f"s3://{BUCKET}/both")
    (run / "eval" / "vase").mkdir(parents=True)
    for name in ("config.json", "eval/vase/1.npz", "eval/vase/2.npz", ".hidden.part"):
        (run / name).write_text(name)
    storage.push(run)
    machine("two")
    other = storage.opened(Path(f"s3://{BUCKET}/both"))  # a path of it has lost a slash
    assert other != run and not content(other)
    storage.pull(other)
    assert content(other) == {name: name for name in ("config.json", "eval/vase/1.npz", "eval/vase/2.npz")}
    (other / "config.json").write_text("new")
    (other / "eval/vase/1.npz").unlink()
    storage.push(other)
    storage.pull(run)
    assert content(run) == {"config.json": "new", "eval/vase/2.npz": "eval/vase/2.npz"} and not (run / "eval/vase/1.npz").exists()
    assert storage.named(f"wrote {other}/config.json") == f"wrote s3://{BUCKET}/both/config.json"


def test_the_store_is_the_truth_of_a_machine_that_was_lost(machine):
    run = storage.opened(f"s3://{BUCKET}/truth")
    (run / "kept").write_text("first")
    storage.push(run)
    (run / "kept").write_text("never pushed")
    (run / "more").write_text("never pushed")
    storage.pull(run)
    assert content(run) == {"kept": "first"}


def test_a_pull_fetches_what_is_new_and_no_more(machine, monkeypatch):
    run = storage.opened(f"s3://{BUCKET}/new")
    for name in "abc":
        (run / name).write_text(name)
    storage.push(run)
    machine("two")
    run, fetched = storage.opened(f"s3://{BUCKET}/new"), []
    fs = storage.store_of(run).fs
    get = fs.get
    monkeypatch.setattr(fs, "get", lambda names, *rest: (fetched.extend(n[-1] for n in names), get(names, *rest)))
    storage.pull(run, lambda name: name == "a")
    storage.pull(run)
    storage.pull(run)
    assert fetched == ["a", "b", "c"]


def test_what_vouches_comes_last_and_goes_first(machine, monkeypatch):
    run = storage.opened(f"s3://{BUCKET}/order")
    fs, done = storage.store_of(run).fs, []

    def spy(name, call, *given):
        where = given[-1] if isinstance(given[-1], list) else [given[-1]]
        done.extend((name[:2], path.rpartition("/")[2]) for path in where)
        return call(*given)

    for name in ("put", "put_file", "rm_file"):
        monkeypatch.setattr(fs, name, partial(spy, name, getattr(fs, name)))
    (run / "results.json").write_text("1")
    (run / "scores.csv").write_text("1")
    storage.push(run)
    (run / "scores.csv").write_text("22")
    (run / "results.json").write_text("22")
    storage.push(run)
    puts = [("pu", "scores.csv"), ("pu", "results.json")]
    assert done == [*puts, ("rm", "results.json"), *puts]


def test_a_checkpoint_without_its_mark_is_none(machine):
    run = storage.opened(f"s3://{BUCKET}/torn")
    for step in (5, 10):
        (run / f"stage1/checkpoints/{step}").mkdir(parents=True)
        (run / f"stage1/checkpoints/{step}/arrays").write_text("x" * step)
    (run / "stage1/checkpoints/15.orbax-checkpoint-tmp").mkdir()
    (run / "stage1/checkpoints/15.orbax-checkpoint-tmp/arrays").write_text("half")
    storage.push(run)
    store = storage.store_of(run)
    key = f"{store.key(run)}/stage1/checkpoints"
    assert sorted(store.listing(run)) == [f"stage1/checkpoints/{s}/{n}" for s in (10, 5) for n in ("arrays", MARK)]
    store.fs.rm_file(f"{key}/10/{MARK}")  # as if the machine had been lost before it
    store.fs.pipe_file(f"{key}/20/arrays", b"half")
    machine("two")
    run = storage.opened(f"s3://{BUCKET}/torn")
    storage.pull(run)
    assert sorted(path.name for path in (run / "stage1/checkpoints").iterdir()) == ["5"]


def test_a_published_folder_is_fetched_once_and_whole(machine, monkeypatch):
    folder = storage.opened(f"s3://{BUCKET}/cache") / "real3d-0123"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "shard").write_bytes(os.urandom(100))
    (folder / "records.json").write_text("{}")
    assert not storage.finished(folder) and not storage.fetch(folder)
    storage.publish(folder)
    machine("two")
    other = storage.opened(f"s3://{BUCKET}/cache") / "real3d-0123"
    assert storage.finished(other) and storage.fetch(other)
    assert (other / "deep" / "shard").read_bytes() == (folder / "deep" / "shard").read_bytes()
    store = storage.store_of(other)
    monkeypatch.setattr(store.fs, "get", None)
    assert storage.fetch(other)  # it is here: nothing is asked for
    store.fs.pipe_file(f"{store.key(other)}/deep/shard", b"short")
    machine("three")
    third = storage.opened(f"s3://{BUCKET}/cache") / "real3d-0123"
    assert not storage.fetch(third) and not (third / "records.json").exists()


def test_a_failed_publication_is_none(machine, monkeypatch):
    folder = storage.opened(f"s3://{BUCKET}/cache") / "failed"
    folder.mkdir()
    (folder / "records.json").write_text("{}")
    fs = storage.store_of(folder).fs
    with monkeypatch.context() as broken:
        broken.setattr(fs, "put_file", lambda *_: (_ for _ in ()).throw(OSError("away")))
        with pytest.raises(OSError, match="away"):
            storage.publish(folder)
    assert not storage.finished(folder)
    storage.publish(folder)
    assert storage.finished(folder)


@pytest.mark.parametrize("known", [True, False])
def test_of_several_that_create_one_object_one_does(machine, monkeypatch, known):
    """Also on stores that take a conditional put for any other."""
    run = storage.opened(f"s3://{BUCKET}/{known}")
    store = storage.store_of(run)
    assert store.conditional
    files = Objects(run / "lease")
    monkeypatch.setattr(storage, "SETTLE_S", 0.05)
    if not known:
        files.store = storage.dataclasses.replace(store, conditional=False)
        monkeypatch.setattr(storage, "put_new", lambda fs, key, content: fs.pipe_file(key, content))
    assert files.create("1", b"mine") and not files.create("1", b"yours") and files.read("1") == b"mine"
    if known:
        monkeypatch.setattr(files, "read", lambda name: None)  # as if both had looked before either wrote
        assert not storage.put_new(store.fs, files._key("1"), b"yours")
    files.write("1", b"again")
    assert Objects(run / "lease").read("1") == b"again" and files.names() == ["1"]
    files.remove("1")
    files.remove("1")
    assert files.names() == []


@pytest.mark.parametrize("url, said", [
    ("s3://no-such-bucket/run", "s3://no-such-bucket/run cannot be written: no such bucket; access comes from AWS_PROFILE"),
    ("ftp://host/run", "no storage of the kind ftp://"),
])  # fmt: skip
def test_a_wrong_place_is_one_line_before_anything(machine, url, said):
    with pytest.raises(StorageError) as caught:
        storage.opened(url)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_package_is_named_with_its_extra(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(StorageError, match=r"gs://b/run needs the package gcsfs .*pip install 'gsclip-jax\[gs\]'"):
        storage.opened("gs://b/run")


def test_no_access_is_one_line(machine, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match="s3://other/run cannot be written: .*credentials.*access comes from"):
        storage.opened("s3://other/run")
    s3fs.S3FileSystem.clear_instance_cache()


def test_the_mark_lists_its_files(machine):
    folder = storage.opened(f"s3://{BUCKET}/cache") / "listed"
    folder.mkdir()
    (folder / "a").write_text("four")
    storage.publish(folder)
    assert json.loads((folder / MARK).read_text())["files"] == {"a": 4}
