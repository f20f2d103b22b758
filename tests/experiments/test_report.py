"""report.html: names as text, legible labels, no column of dashes."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from experiments import report

HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "a\n\u202eb", "部品 тест", "a\udcff"]
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


def page(**changes) -> str:
    results = {
        "dataset": "mvtec3d", "trained_on": "mvtec3d", "train_category": HOSTILE[0], "variant": HOSTILE[1], "seed": 0,
        "categories": {name: {**METRICS, "n_good": 1, "n_defective": 2} for name in HOSTILE}, "mean": METRICS,
        "seconds": {"render": 1.0}, "versions": {"python": "3"},
    } | changes  # fmt: skip
    panel = np.zeros((8, 8, 3), np.uint8)
    drawn = [([name, name, "truth: dent", "score 0.5"], [panel] * 4) for name in HOSTILE]
    return report._html(Path(HOSTILE[0]), results, {"random_clip": {"mean": METRICS}}, drawn)


def test_names_are_text():
    text = page()
    text.encode()  # bytes that are no UTF-8 in a file's name
    found = Page(text)
    assert {tag for tag, _ in found.tags} <= set("html meta title style h1 p b table tr th td br img small".split())
    assert all(not key.startswith("on") for _, attributes in found.tags for key in attributes)
    assert all(attributes["src"].startswith("data:image/png;base64,") for tag, attributes in found.tags if tag == "img")
    shown = "".join(found.text)
    assert HOSTILE[0] in shown and "部品 тест" in shown and r"a\n\u202eb" in shown


def test_labels_are_text_beside_their_pictures_and_no_column_is_empty():
    found = Page(page())
    assert sum(tag == "img" for tag, _ in found.tags) == 4 * len(HOSTILE) and found.text.count("score 0.5") == len(HOSTILE)
    assert not {"P-PRO", "P-PRO as released", "–"} & set(found.text) and "P-AUROC" in found.text
    some = Page(page(categories={"x": {**METRICS, "p_pro": 0.5, "n_good": 1, "n_defective": 2}}))
    assert "P-PRO" in some.text and "–" in some.text


def test_a_run_on_another_data_set_says_which_it_was_trained_on():
    text = "".join(Page(page(dataset="eyecandies")).text)
    assert "of mvtec3d alone, tested on eyecandies" in text and "tested on" not in "".join(Page(page()).text)
