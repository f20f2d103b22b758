"""Bootstrap intervals against their definition, drawn out by hand."""

import numpy as np
import pytest
from scipy.stats import rankdata

from gsclip_jax.evaluation import bootstrap


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    ranks = rankdata(scores)
    positive = labels == 1
    n, m = positive.sum(), (~positive).sum()
    return (ranks[positive].sum() - n * (n + 1) / 2) / (n * m)


def objects(count: int, points: int, seed: int, shift: float = 1.0) -> list[dict]:
    rng = np.random.default_rng(seed)
    found = []
    for row in range(count):
        mask = (rng.random(points) < 0.2) & (row % 2 == 1)
        found.append({
            "points": rng.normal(size=points).round(2) + shift * mask, "valid": rng.random(points) < 0.9, "point_mask": mask,
            "object": rng.normal() + shift * (row % 2), "label": row % 2,
        })  # fmt: skip
    return found


def test_every_draw_keeps_the_classes():
    labels = np.array([0, 1, 1, 0, 1])
    counts = bootstrap.draws(labels, 200, np.random.default_rng(0))
    assert (counts[:, labels == 0].sum(1) == 2).all() and (counts[:, labels == 1].sum(1) == 3).all()
    assert counts.mean(0) == pytest.approx(np.ones(5), abs=0.25)


def test_resampled_values_are_those_of_repeated_objects():
    found = objects(6, 400, 0)
    labels = np.array([f["label"] for f in found])
    scores = np.array([f["object"] for f in found]).round(1)
    counts = bootstrap.draws(labels, 20, np.random.default_rng(1))
    of_objects, of_points = bootstrap.object_auroc(labels, scores, counts), bootstrap.point_auroc(found, counts)
    for count, on_objects, on_points in zip(counts, of_objects, of_points, strict=True):
        rows = np.repeat(np.arange(6), count)
        assert on_objects == pytest.approx(auroc(labels[rows], scores[rows]))
        mask = np.concatenate([found[r]["point_mask"][found[r]["valid"]] for r in rows])
        points = np.concatenate([found[r]["points"][found[r]["valid"]] for r in rows])
        # 2400 points in 4096 bins: only equal scores share one, up to a bin's edge that falls on a score.
        assert on_points == pytest.approx(auroc(mask.astype(int), points), abs=2e-3)


def test_the_interval_holds_the_value_and_shrinks_with_more_objects():
    few = bootstrap.intervals({"a": objects(8, 100, 0), "b": objects(8, 100, 1)}, resamples=300)
    many = bootstrap.intervals({"a": objects(80, 100, 0), "b": objects(80, 100, 1)}, resamples=300)
    for name in ("o_auroc", "p_auroc"):
        value, low, high = few[name]
        assert low <= value <= high
        assert many[name][2] - many[name][1] < 0.6 * (high - low)
    again = [bootstrap.intervals({"a": objects(8, 100, 0)}, resamples=50) for _ in range(2)]
    assert again[0] == again[1]


def test_one_class_alone_is_left_out():
    found = objects(8, 100, 0)
    alone = bootstrap.intervals({"a": found, "sound": [f for f in found if not f["label"]]}, resamples=50)
    both = bootstrap.intervals({"a": found}, resamples=50)
    assert alone["o_auroc"] == pytest.approx(both["o_auroc"], abs=1e-12) and np.isfinite(alone["p_auroc"]).all()
