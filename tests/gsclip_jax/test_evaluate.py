"""From score files to metrics: by hand, resumed, padded, undefined."""

import csv
import json

import jax
import numpy as np
import pytest

from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.method import Scores
from gsclip_jax.runtime.names import csv_name
from tests import tiny


class Known:
    """A method whose scores are the ground truth turned into numbers."""

    name, stages, calls = "known", (), 0

    def predict(self, params, stats, batch):
        points = batch["point_mask"] * 0.5 + 0.25 * batch["valid"]
        return Scores(batch["label"] * 1.0, points, batch["render"] * 0.0)


@pytest.fixture
def mesh():
    return jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 2)


def index(count: int) -> list[dict]:
    return [
        {"object_index": i, "category": "ab"[i % 2], "name": f"{i:03d}", "defect": "good", "label": i % 4 // 2}
        for i in range(count)
    ]


def served(rows, asked):
    """Batches of two with the last one padded; object i is defective where its row says so."""

    def batches(missing):
        asked.append(list(missing))
        numbers = [*missing, missing[-1]] if len(missing) % 2 else list(missing)
        for at in range(0, len(numbers), 2):
            batch = tiny.batch(2, seed=at)
            pair = numbers[at : at + 2]
            batch["object_index"] = np.array(pair, np.int32)
            batch["real"] = np.array([True, at + 1 < len(missing)])
            batch["label"] = np.array([rows[i]["label"] for i in pair], np.int32)
            batch["point_mask"] = np.zeros((2, 64), bool)
            batch["point_mask"][batch["label"] == 1, :8] = True
            yield batch

    return batches


def test_perfect_scores_have_perfect_metrics_and_nothing_is_scored_twice(mesh, tmp_path):
    rows, asked = index(7), []
    evaluate.score_objects(Known(), {}, {}, rows, served(rows, asked), tmp_path, mesh=mesh)
    tables = evaluate.tabulate(rows, tmp_path)
    for table in tables.values():
        for name in ("o_auroc", "o_ap", "p_auroc", "p_auroc_released", "p_pro"):
            assert table[name] == 1.0, name
        assert table["p_pro_released"] is None  # the scans are not organised
    assert {c: (t["n_good"], t["n_defective"]) for c, t in tables.items()} == {"a": (2, 2), "b": (2, 1)}
    (tmp_path / "a" / "004.npz").unlink()
    evaluate.score_objects(Known(), {}, {}, rows, served(rows, asked), tmp_path, mesh=mesh)
    assert asked == [[0, 1, 2, 3, 4, 5, 6], [4]]
    assert evaluate.tabulate(rows, tmp_path) == tables


def test_metrics_of_hand_made_scores(tmp_path):
    """Two objects: scores 0.9 0.2 | 0.8 0.1, the first point of the first object defective: AUROC and P-PRO 1."""
    rows = [{"object_index": i, "category": "a", "name": str(i), "defect": "x", "label": i == 0} for i in range(2)]
    for i, points in enumerate(([0.9, 0.2], [0.8, 0.1])):
        mask = np.array([i == 0, False])
        evaluate._write(
            evaluate.object_file(tmp_path, rows[i]), points=np.array(points, np.float32), valid=np.ones(2, bool), point_mask=mask,
            regions=mask.astype(np.int32), organised=False, object=np.float32(0.5), label=int(i == 0),
        )  # fmt: skip
    table = evaluate.tabulate(rows, tmp_path)["a"]
    assert (table["o_auroc"], table["p_auroc"], table["p_pro"]) == (0.5, 1.0, 1.0)
    evaluate.write_scores(rows, tmp_path, tmp_path / "scores.csv")
    assert (tmp_path / "scores.csv").read_text().splitlines()[1] == "a,0,x,1,0.500000,0.900000"


def test_empty_pixels_count_only_in_the_released_metric(tmp_path):
    """Organised scans: a defective point at 0.3, sound ones at 0.4 and 0.1, 13 empty pixels at 0."""
    points, valid, mask = np.zeros(16, np.float32), np.zeros(16, bool), np.zeros(16, bool)
    points[:3], valid[:3], mask[0] = (0.3, 0.4, 0.1), True, True
    row = {"object_index": 0, "category": "a", "name": "0", "defect": "x", "label": 1}
    evaluate._write(
        evaluate.object_file(tmp_path, row), points=points, valid=valid, point_mask=mask,
        regions=evaluate._regions(mask, np.zeros((16, 3)), True), organised=True, object=np.float32(1), label=1,
    )  # fmt: skip
    table = evaluate.tabulate([row], tmp_path)["a"]
    assert table["p_auroc"] == 0.5
    assert table["p_auroc_released"] == pytest.approx(14 / 15, abs=1e-6)
    assert table["o_auroc"] is None  # one class only
    assert table["p_pro_released"] is not None


def test_the_mean_leaves_undefined_values_out():
    full = {name: 0.5 for name in evaluate.METRICS}
    found = evaluate.mean({"a": full, "b": {**full, "p_pro": None, "o_ap": 1.0}, "c": {**full, "p_pro": None}})
    assert found["p_pro"] == 0.5 and found["o_ap"] == pytest.approx(2 / 3, abs=1e-6)
    assert evaluate.mean({"a": {name: None for name in evaluate.METRICS}})["p_pro"] is None
    json.dumps(found)


class Coloured(Known):
    """Colour knows everything, geometry the opposite."""

    def predict_rgb(self, params, stats, batch):
        known = self.predict(params, stats, batch)
        maps = known.points.reshape(-1, 8, 8)
        return {
            "geometry": Scores(-known.object, -known.points, known.views),
            **{f"{part}_map": maps for part in evaluate.PARTS},
            **{part: known.object for part in evaluate.PARTS},
        }


def test_colour_scores_come_beside_those_of_the_geometry(mesh, tmp_path):
    rows = index(8)
    evaluate.score_objects(Coloured(), {}, {}, rows, served(rows, []), tmp_path, mesh=mesh, rgb=True)
    table = evaluate.tabulate(rows, tmp_path)["a"]
    assert table["o_auroc"] == table["p_auroc"] == 0
    assert table["colour_o_auroc"] == table["joint_o_auroc"] == table["joint_p_auroc"] == table["colour_p_pro"] == 1
    found = evaluate.mean({"a": table, "b": {**table, "joint_o_ap": None}})
    assert found["joint_o_auroc"] == 1 and found["joint_o_ap"] == table["joint_o_ap"]


def test_defective_objects_without_marks_count_for_object_metrics_alone(mesh, tmp_path):
    rows = index(8)
    evaluate.score_objects(Known(), {}, {}, rows, served(rows, []), tmp_path, mesh=mesh)
    marked = evaluate.tabulate(rows, tmp_path)["a"]
    unmarked = evaluate.tabulate([row | {"labelled": not row["label"]} for row in rows], tmp_path)["a"]
    assert unmarked["o_auroc"] == marked["o_auroc"] == 1 and marked["p_auroc"] == 1
    assert unmarked["p_auroc"] is None and unmarked["p_pro"] is None and unmarked["n_defective"] == marked["n_defective"]


def test_names_are_text_in_scores_csv_and_stay_in_the_folder(tmp_path):
    hostile = ["..", "/etc/passwd", "../../up", "=cmd|' /C calc'!A0", "<script>", "a,\"b\"\nc", "-1+2"]
    rows = [{"object_index": i, "category": name, "name": name, "defect": "@x", "label": 1} for i, name in enumerate(hostile)]
    folder = tmp_path / "eval"
    for row in rows:
        path = evaluate.object_file(folder, row)
        assert path.resolve().parents[1] == folder.resolve()
        evaluate._write(path, points=np.ones(2, np.float32), valid=np.ones(2, bool), object=np.float32(0.5), label=1)
    evaluate.write_scores(rows, folder, tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert [csv_name(row["category"]) for row in found] == [csv_name(row["name"]) for row in found] == hostile
    assert all(value[0] not in "=+-@\t\r" for row in found for value in row.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval", "scores.csv"]
