"""The folder of an inspection: whose files are whose, what a kill leaves, names of any kind."""

import csv
import json
import os
from pathlib import Path

import pytest

from data_pipelines.scan import DataError
from gsclip_jax.inspection.store import Store

SETTINGS = {"model": "m"}


def scan(path: Path, content: bytes = b"scan") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def row(name: str, **more) -> dict:
    return {"name": name, "source": name, "score": 0.5, "highest_point_score": 0.6, "rows": 3, "points": 3, "removed": 0,
            "suspicious_points": None, "highest_at": [0, 0, 0], "verdict": None, "notes": [], **more}  # fmt: skip


def kept(store: Store, path: Path, count: int = 1) -> list[str]:
    names = store.names_for(path, count)
    store.begin(path, names)
    for name in names:
        store.write(name, ".ply", b"cloud")
        store.write(name, ".json", "{}")
    store.commit(path, [row(name, source=str(path)) for name in names])
    return names


def test_results_grow_and_the_next_call_goes_on(tmp_path):
    one, two, out = scan(tmp_path / "a" / "part.ply"), scan(tmp_path / "b" / "part.ply"), tmp_path / "out"
    store = Store(out, SETTINGS, [one, two])
    assert kept(store, one) == ["part"] and len((out / "results.jsonl").read_text().splitlines()) == 1
    assert len((out / "results.csv").read_text().splitlines()) == 2
    assert kept(store, two) == ["part_2"] and store.done(one) and store.done(two)
    store.close()
    again = Store(out, SETTINGS, [one, two])
    assert again.done(one) and again.done(two) and list(again.rows) == ["part", "part_2"]
    one.write_bytes(b"another scan")
    assert not again.done(one) and again.done(two)
    assert kept(again, one) == ["part"] and again.done(one)
    assert len((out / "results.jsonl").read_text().splitlines()) == 2  # its old line is gone
    again.close()


def test_what_a_kill_leaves_is_half_a_part_at_most(tmp_path):
    one, two, out = scan(tmp_path / "one.ply"), scan(tmp_path / "two.ply"), tmp_path / "out"
    store = Store(out, SETTINGS, [one, two])
    kept(store, one)
    kept(store, two, 3)
    store.close()
    whole = (out / "results.jsonl").read_bytes()
    for cut in (1, 40, len(whole) // 3):
        (out / "results.jsonl").write_bytes(whole[:-cut])
        again = Store(out, SETTINGS, [one, two])
        assert again.done(one) and not again.done(two) and list(again.rows) == ["one"]
        assert (out / "results.csv").read_text().count("\n") == 2
        assert kept(again, two, 3) == ["two part 1", "two part 2", "two part 3"]  # over its own files
        assert (out / "results.jsonl").read_bytes() == whole
        again.close()


def test_other_settings_and_foreign_files_are_refused_and_stay(tmp_path):
    Store(tmp_path / "out", SETTINGS, []).close()
    with pytest.raises(DataError, match=r"other settings \(model differ\)"):
        Store(tmp_path / "out", {"model": "n"}, [])
    for name in ("results.csv", "results.jsonl", "index.html", "parts"):
        scan(tmp_path / name / name, b"mine")
        with pytest.raises(DataError, match=f"{name} there was not written by this command"):
            Store(tmp_path / name, SETTINGS, [])
        assert sorted(os.listdir(tmp_path / name)) == [name]
    scan(tmp_path / "m" / "inspection.json", b"{}")
    with pytest.raises(DataError, match="stays as it is"):
        Store(tmp_path / "m", SETTINGS, [])
    with pytest.raises(DataError, match="is no folder"):
        Store(scan(tmp_path / "file"), SETTINGS, [])


def test_two_inspections_at_once_are_refused(tmp_path):
    first = Store(tmp_path, SETTINGS, [])
    with pytest.raises(DataError, match="another inspection is writing there"):
        Store(tmp_path, SETTINGS, [])
    first.close()
    Store(tmp_path, SETTINGS, []).close()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_inputs_and_files_of_the_users_among_the_results_stay(tmp_path, link):
    one, out = scan(tmp_path / "in" / "one.ply"), tmp_path / "out"
    Store(out, SETTINGS, [one]).close()
    link(one, out / "parts" / "one.ply")
    store = Store(out, SETTINGS, [one])
    assert kept(store, one) == ["one_2"] and one.read_bytes() == b"scan" == (out / "parts" / "one.ply").read_bytes()
    result = out / "parts" / "one_2.ply"
    store.close()
    store = Store(out, SETTINGS, [result])  # a result that became a scan
    assert kept(store, result) == ["one_2_2"] and result.read_bytes() == b"cloud"
    one.write_bytes(b"changed")
    with pytest.raises(DataError, match="a link or a scan of this call"):
        store.begin(one, store.names_for(one, 1))
    store.close()


NAMES = ["...ply", "=cmd|' C calc'!A0.ply", "<script>alert(1)<script>.ply", "x" * 240 + ".ply", "тест 部品.ply", "a\\b.ply",
         ".hid.ply", "a\nb.ply", "Größe 1.csv.gz", "../up.ply", b"\xff\xfe.ply".decode(errors="surrogateescape")]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_harmless(tmp_path, name):
    one, out = scan(tmp_path / "in" / name), tmp_path / "out"
    store = Store(out, SETTINGS, [one])
    (written,) = kept(store, one)
    store.close()
    assert sorted(os.listdir(out / "parts")) == sorted([f"{written}.json", f"{written}.ply"])
    assert {path.name for path in tmp_path.iterdir()} <= {"in", "out"} or name.startswith("../")
    with (out / "results.csv").open(newline="", encoding="utf-8") as file:
        (line,) = csv.DictReader(file)
    assert line["name"][0] not in "=+-@\t\r" and "\n" not in line["source"]
    assert json.loads((out / "results.jsonl").read_text())["name"] == written
    again = Store(out, SETTINGS, [one])
    assert again.done(one)
    again.close()
