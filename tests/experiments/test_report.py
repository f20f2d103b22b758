"""report.html: names as text, legible labels, no column of dashes."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from experiments import measured, report
from experiments.measured import Measured

HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "a\n\u202eb", "部品 тест", "a\udcff"]
def script(text: str) -> list[str]:
    """What a browser would run."""
    return re.findall(r"<script>(.*?)</script>", text, re.DOTALL)


METRICS = {"o_auroc": 0.9, "o_ap": 0.8, "p_auroc": 0.7, "p_pro": None, "p_auroc_released": 0.7, "p_pro_released": None}


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


FOUND = Measured(
    charts=[], kinds=[{"kind": name, "count": 1, "o_auroc": 0.5, "p_auroc": None} for name in HOSTILE],
    scores={name: {"sound": [0.1], "defective": [0.2]} for name in HOSTILE}, scale={"low": 0, "high": 1, "threshold": 0.5},
    highest=0.9,
)  # fmt: skip


def page(**changes) -> str:
    results = {
        "dataset": "mvtec3d", "trained_on": "mvtec3d", "train_category": HOSTILE[0], "variant": HOSTILE[1], "seed": 0,
        "categories": {name: {**METRICS, "n_good": 1, "n_defective": 2} for name in HOSTILE}, "mean": METRICS,
        "seconds": {"render": 1.0}, "versions": {"python": "3"},
    } | changes  # fmt: skip
    rows = [{"id": str(number), "name": name, "category": name, "defect": name, "label": 1, "score": 0.5}
            for number, name in enumerate(HOSTILE)]  # fmt: skip
    shown = {"losses": [], "settings": [(HOSTILE[0], HOSTILE[1])], "limits": [], "rows": rows, "records": []}
    return "".join(report._page(Path(HOSTILE[0]), results, {"random_clip": {"mean": METRICS}}, FOUND, shown))


def test_names_are_text():
    text = page()
    text.encode()  # bytes that are no UTF-8 in a file's name
    found = Page(text)
    assert "alert(1)" not in "".join(script(text)) and not {"img", "iframe"} & {tag for tag, _ in found.tags}
    assert all(not key.startswith("on") for _, attributes in found.tags for key in attributes)
    shown = "".join(found.text)
    assert HOSTILE[0] in shown and "部品 тест" in shown and r"a\n\u202eb" in shown


def test_no_column_is_empty():
    found = Page(page())
    assert not {"P-PRO", "P-PRO as released"} & set(found.text) and "P-AUROC" in found.text
    some = Page(page(categories={"x": {**METRICS, "p_pro": 0.5, "n_good": 1, "n_defective": 2}}))
    assert "P-PRO" in some.text and "–" in some.text


def test_a_run_on_another_data_set_says_which_it_was_trained_on():
    text = "".join(Page(page(dataset="eyecandies")).text)
    assert "of mvtec3d alone, tested on eyecandies" in text and "tested on" not in "".join(Page(page()).text)


def scored(folder, category: str, name: str, label: int, defect: str, seed: int) -> dict:
    """An index row whose score file is written: the first 20 of 300 points are defective and score higher."""
    rng = np.random.default_rng(seed)
    regions = np.zeros(300, np.int32)
    regions[:20] = label
    path = folder / category / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    points = (0.5 * rng.random(300) + 0.45 * (regions > 0)).astype(np.float32)
    np.savez(path, points=points, valid=np.arange(300) > 1, regions=regions,
             object=np.float32(0.4 * rng.random() + 0.3 * label), label=label)  # fmt: skip
    return {"object_index": seed, "category": category, "name": name, "label": label, "defect": defect}


def test_what_is_measured_of_a_run(tmp_path):
    rows = [scored(tmp_path, category, f"{number}", number % 2, ("good", "dent")[number % 2], 10 * order + number)
            for order, category in enumerate(("cup", "pot")) for number in range(8)]  # fmt: skip
    found = measured.measure(rows, tmp_path)
    assert [chart["area"] for chart in found.charts] == ["o_auroc", "p_auroc", "p_pro"]
    assert [line["label"] for line in found.charts[0]["lines"]] == ["cup", "pot", "mean over categories"]
    assert len(found.charts[0]["lines"][-1]["low"]) == len(found.charts[0]["lines"][-1]["x"]) == 101
    (kind,) = found.kinds
    assert (kind["kind"], kind["count"]) == ("dent", 8) and kind["p_auroc"] > 0.9
    assert len(found.scores["cup"]["sound"]) == 4 and 0.4 < found.scale["threshold"] < 0.6 and found.highest > 0.9
    json.dumps([found.charts, found.kinds, found.scores, found.scale], allow_nan=False)


def test_sound_objects_alone_have_no_curves(tmp_path):
    rows = [scored(tmp_path, "cup", f"{number}", 0, "good", number) for number in range(3)]
    found = measured.measure(rows, tmp_path)
    assert found.charts == found.kinds == [] and found.scale["threshold"] is None


def test_losses_by_stage_and_torn_lines(tmp_path):
    steps = [{"step": step, "grad_norm": 1.0, "part": 0.5, "loss": 1 / step} for step in range(1, 1001)]
    lines = [{"stage": stage, **step} for stage in "ab" for step in steps]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"stage": "b", "st')
    first, second = measured.losses(tmp_path / "metrics.jsonl")
    assert [line["label"] for line in first["lines"]] == ["loss", "part"] and len(second["lines"][0]["x"]) <= measured.STEPS
    assert measured.losses(tmp_path / "none") == []


def test_a_page_of_many_objects_stays_small():
    rows = [{"object_index": number} for number in range(20000)]
    shown, (said,) = report._shown(rows)
    assert len(shown) * report.LEAST <= report.BYTES and "of 20,000 objects" in said
    assert report._shown(rows[:100]) == (rows[:100], [])
