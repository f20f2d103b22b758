"""Tables of runs: means over seeds, and published numbers beside like alone."""

import csv
import json
import shutil
import statistics
import warnings
from pathlib import Path

import pytest

from experiments import sweep, tables
from experiments.published import MODULES, ROWS
from gsclip_jax.runtime.names import csv_name, decoded


def leave(folder: Path, values: float, **changes) -> None:
    mean = {"o_auroc": values, "o_ap": values, "p_auroc": values / 2, "p_pro": None}
    found = {
        "dataset": "mvtec3d", "trained_on": "mvtec3d", "train_category": "carrot", "preset": "mvtec3d", "variant": "paper",
        "method": "gsclip", "seed": 0, "categories": {"bagel": mean}, "mean": mean,
    } | changes  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found))


THREE = {"auxiliary": ["carrot", "cookie", "dowel"]}


def test_seeds_are_one_row_with_mean_and_deviation(tmp_path):
    for seed, value in enumerate((0.5, 0.6, 0.8)):
        leave(tmp_path / f"k4-s{seed}", value, seed=seed)
    leave(tmp_path / "k8-s0", 0.75)
    four, eight = tables.collect([tmp_path])
    assert (four.name, len(four.runs), eight.name) == ("k4", 3, "k8")
    assert four.value("o_auroc") == (pytest.approx(190 / 3), pytest.approx(statistics.stdev([50, 60, 80])))
    assert tables.show(four.value("o_auroc")) == "63.3 ± 15.3" and tables.show(eight.value("p_auroc")) == "37.5"
    assert tables.show(four.value("p_pro")) == "-"


def test_rows_stand_in_the_order_of_the_sweep(tmp_path):
    for name in ("a", "b", "c", "extra"):
        leave(tmp_path / f"{name}-s0", 0.5)
    rows = [sweep.Row(i, name, None, tmp_path / f"{name}-s0") for i, name in enumerate("cab")]
    sweep.note_order(rows[:2])
    sweep.note_order(rows)  # another sweep of the same folder adds its own behind
    assert [entry.name for entry in tables.collect([tmp_path])] == ["c", "a", "b", "extra"]


def test_published_numbers_stand_beside_the_same_protocol_alone(tmp_path):
    leave(tmp_path / "one" / "run", 0.8)  # one auxiliary category
    leave(tmp_path / "two" / "run", 0.8, **THREE)
    leave(tmp_path / "three" / "run", 0.8, dataset="eyecandies", **THREE)
    leave(tmp_path / "four" / "run", 0.8, method="pointad", **THREE)
    leave(tmp_path / "five" / "full-s0", 0.8, **THREE)
    leave(tmp_path / "six" / "run", 0.8, dataset="synthetic", trained_on="synthetic", preset="", **THREE)
    found = [tables.collect([tmp_path / name])[0].published() for name in ("one", "two", "three", "four", "five", "six")]
    published = {(row.method, row.dataset, row.protocol): row.values for row in ROWS}
    assert found[0] is None and found[5] is None
    assert found[1][0] == published["GS-CLIP", "mvtec3d", "one-vs-rest"] == (83.6, 96.5, 96.3, 86.4)
    assert found[2][0] == published["GS-CLIP", "eyecandies", "cross"] and "cross" in found[2][1]
    assert found[3][0] == published["PointAD", "mvtec3d", "one-vs-rest"]
    assert found[4][0] == MODULES["full"] and "ablation" in found[4][1]


ALIGN3D = {  # (data set, trained on) -> what its authors print; None: no colour to train on, so nobody has a number
    ("mvtec3d", "mvtec3d"): (83.0, 94.3, 95.9, 86.5), ("eyecandies", "eyecandies"): (71.3, 76.6, 92.6, 74.2),
    ("eyecandies", "mvtec3d"): (70.7, 75.3, 92.0, 72.6), ("real3d", "mvtec3d"): (76.1, 79.3, 76.7, None),
    ("real3d", "real3d"): None, ("anomaly_shapenet", "anomaly_shapenet"): None, ("anomaly_shapenet", "mvtec3d"): None,
}  # fmt: skip


def test_what_nobody_published_stays_empty(tmp_path):
    for place, (dataset, trained_on) in enumerate(ALIGN3D):
        leave(tmp_path / f"{place}", 0.8, dataset=dataset, trained_on=trained_on, preset=trained_on, method="align3d", **THREE)
    entries = tables.collect([tmp_path])
    found = [entry.published() for entry in entries]
    assert [one and one[0] for one in found] == list(ALIGN3D.values())
    assert "settings differ by auxiliary category" in found[0][1]
    head, *rows = [tables.header(entries), *tables.cells(entries)]
    beside = [[row[i] for i, name in enumerate(head) if "published" in name] for row in rows]
    assert [cell == "-" for cell in beside[3]] == [False, False, False, True, False]  # P-PRO of unorganised scans
    assert beside[4] == beside[5] == beside[6] == ["-"] * 5
    # The rows beside it, of the same protocols.
    published = {(row.method, row.dataset, row.protocol): row.values for row in ROWS}
    assert len(published) == len(ROWS)
    assert [published["PointAD", name, "one-vs-rest"][0] for name in ("mvtec3d", "eyecandies", "real3d", "anomaly_shapenet")] == [
        82.0, 69.1, 74.8, 82.6]
    assert [published["GS-CLIP", name, "one-vs-rest"][0] for name in ("mvtec3d", "eyecandies", "real3d", "anomaly_shapenet")] == [
        83.6, 71.5, 76.4, 84.1]
    assert published["PointAD", "real3d", "cross"] == (75.9, 77.9, 71.6, None) and ("GS-CLIP", "real3d", "cross") not in published


def test_three_files_with_the_difference_and_every_category(tmp_path, capsys):
    leave(tmp_path / "runs" / "full-s0", 0.8, **THREE)
    assert tables.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert "83.6 (-3.6)" in text and "96.3 (-56.3)" in text and text in capsys.readouterr().out
    assert "one-vs-rest, mean over 3 auxiliary categories" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["category"] for row in rows] == ["bagel", "mean"] and rows[0]["o_auroc"] == "0.800000" and rows[0]["p_pro"] == ""
    page = (tmp_path / "out" / "table.html").read_text()
    assert "data:image/png;base64," in page and "83.6 (-3.6)" in page and "Rings: published" in page


HOSTILE = ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "a|b", "two\nlines", "$x$", "-1", "[x](y)", "部品", "a\udcff"]


def test_names_are_text_in_all_three_files(tmp_path):
    mean = {"o_auroc": 0.5, "o_ap": 0.5, "p_auroc": 0.5, "p_pro": 0.5}
    for number, name in enumerate(HOSTILE):
        leave(tmp_path / "runs" / str(number), 0.5, dataset=name, trained_on=name, train_category=name, categories={name: mean})
    tables.write([tmp_path / "runs"], tmp_path)
    page = (tmp_path / "table.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "部品" in page
    lines = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 + len(HOSTILE) and "<script" not in "".join(lines) and r"a\|b" in "".join(lines)
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [csv_name(row["category"]) for row in rows[::2]] == [decoded(name) for name in HOSTILE]
    assert all(value[:1] not in tuple("=+-@\t\r") or not value for row in rows for value in row.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of matplotlib, for a sign without a letter
        runs = tables.collect([tmp_path / "runs" / "0"])[0].runs
        tables.plot([tables.Entry(name, runs) for name in HOSTILE])


def test_columns_without_a_value_are_left_out(tmp_path):
    leave(tmp_path / "a-s0", 0.5)
    (head, *rows), page = tables.filled(tables.collect([tmp_path])), tables.page(tables.collect([tmp_path]))
    assert "P-PRO" not in head and "P-AUROC" in head and "P-PRO</th>" not in page and all("-" not in row for row in rows)


def test_a_page_of_an_earlier_version_is_replaced(tmp_path):
    leave(tmp_path / "a-s0", 0.5)
    (tmp_path / "table.html").write_text("<!doctype html><meta charset=utf-8><title>GS-CLIP runs</title><style>body{}")
    tables.write([tmp_path], tmp_path)
    assert "P-AUROC</th>" in (tmp_path / "table.html").read_text()


@pytest.mark.parametrize("name", ["table.md", "table.csv", "table.html"])
def test_a_file_of_the_users_stays(tmp_path, capsys, name):
    leave(tmp_path / "runs" / "a-s0", 0.5)
    out = tmp_path / "out"
    command = [str(tmp_path / "runs"), "--out", str(out)]
    assert tables.main(command) == tables.main(command) == 0
    shutil.rmtree(out)
    out.mkdir()
    (out / name).write_text("my own table")
    capsys.readouterr()
    assert tables.main(command) == 1
    assert f"{name} was not written by this command and stays as it is" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == "my own table"


def test_a_folder_without_results_is_one_line(tmp_path, capsys):
    assert tables.main([str(tmp_path)]) == 1
    assert "holds no results.json" in capsys.readouterr().err
    assert tables.main([str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err
