"""Curves with bands: their areas are the exact metrics, their kinds are counted by hand."""

import numpy as np
import pytest

from gsclip_jax.evaluation import curves, metrics


def objects(rng, count: int = 20, points: int = 400) -> list[dict]:
    found = []
    for number in range(count):
        label, regions = number % 2, np.zeros(points, np.int32)
        if label:
            regions[:20], regions[20:60] = 1, 2
        scores = (rng.random(points) + 0.5 * (regions == 1) + 0.2 * (regions == 2)).astype(np.float32)
        valid = np.arange(points) % 11 > 0
        found.append({"points": scores, "valid": valid, "regions": regions, "object": rng.random() + 0.4 * label, "label": label,
                      "defect": ("dent", "hole")[number % 4 == 1] if label else "good"})  # fmt: skip
    return found


def test_the_areas_are_the_metrics():
    found = objects(np.random.default_rng(0), count=40)
    made = curves.sample(found, 0, np.random.default_rng(0))
    labels, scores = np.array([f["label"] for f in found]), np.array([f["object"] for f in found])
    points = np.concatenate([f["points"][f["valid"]] for f in found])
    regions = metrics.join_regions([f["regions"][f["valid"]] for f in found])
    assert np.trapezoid(made.object_roc[0], curves.RATES) == pytest.approx(metrics.roc_auc(labels, scores), abs=0.03)
    assert np.trapezoid(made.point_roc[0], curves.RATES) == pytest.approx(metrics.roc_auc(regions > 0, points), abs=2e-3)
    pro = np.trapezoid(made.pro[0], curves.PRO_RATES) / metrics.FPR_LIMIT
    assert pro == pytest.approx(metrics.p_pro(regions, points), abs=2e-3)


def test_a_curve_by_hand():
    """Scores 4 3 2 1 with labels 1 0 1 0: the curve goes (0, .5), (.5, .5), (.5, 1), (1, 1)."""
    one = {"points": np.zeros(2), "valid": np.ones(2, bool), "regions": np.zeros(2, int)}
    found = [one | {"object": score, "label": label} for score, label in ((4, 1), (3, 0), (2, 1), (1, 0))]
    made = curves.sample(found, 3, np.random.default_rng(0))
    np.testing.assert_allclose(made.object_roc[0, [0, 25, 49, 50, 100]], [0.5, 0.5, 0.5, 1, 1])
    assert np.isnan(made.pro).all() and np.isnan(curves.band([made.pro])).all(), "no defective point: no curve"
    sound = curves.sample([f | {"label": 0} for f in found], 3, np.random.default_rng(0))
    assert np.isnan(sound.object_roc).all() and np.isfinite(curves.band([sound.object_roc, made.object_roc])).all()


def test_bands_hold_the_curve_and_narrow_with_more_objects():
    width = {}
    for count in (60, 960):
        made = curves.sample(objects(np.random.default_rng(1), count, 70), 100, np.random.default_rng(2))
        middle, low, high = curves.band([made.object_roc])
        assert (low <= middle + 1e-9).mean() > 0.9 and (middle <= high + 1e-9).mean() > 0.9
        width[count] = (high - low).mean()
    assert 0.15 < width[960] / width[60] < 0.4  # one to four, by the square root


def test_bands_resample_as_the_areas_do():
    """The area of every resampled curve is the resampled AUROC of bootstrap.py, drawn with the same seed."""
    from gsclip_jax.evaluation.bootstrap import draws, object_auroc

    found = objects(np.random.default_rng(3), count=60, points=30)
    labels, scores = np.array([f["label"] for f in found]), np.array([f["object"] for f in found])
    made = curves.sample(found, 50, np.random.default_rng(4)).object_roc[1:]
    exact = object_auroc(labels, scores, draws(labels, 50, np.random.default_rng(4)))
    np.testing.assert_allclose(np.trapezoid(made, curves.RATES, axis=1), exact, atol=0.03)


def test_kinds_of_defect():
    one = {"points": np.float32([0, 1, 2, 3]), "valid": np.ones(4, bool)}
    good = [one | {"object": score, "label": 0, "defect": "good", "regions": np.zeros(4, int)} for score in (1, 2)]
    bad = [one | {"object": 3, "label": 1, "defect": "dent", "regions": np.array([0, 0, 0, 1])},
           one | {"object": 1.5, "label": 1, "defect": "dent", "regions": np.array([1, 0, 0, 0])},
           one | {"object": 0, "label": 1, "defect": "hole", "regions": np.zeros(4, int), "labelled": False}]  # fmt: skip
    assert curves.kinds({"a": good + bad}) == [{"kind": "dent", "count": 2, "o_auroc": 0.75, "p_auroc": 0.5},
                                               {"kind": "hole", "count": 1, "o_auroc": 0.0, "p_auroc": None}]  # fmt: skip
