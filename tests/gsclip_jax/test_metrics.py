"""Metrics: the recorded arrays, scikit-learn, a brute-force P-PRO written from its definition, and values by hand."""

import math
import time

import numpy as np
import pytest
from scipy import ndimage
from sklearn import metrics as sklearn_metrics

from gsclip_jax.evaluation import metrics
from gsclip_jax.models.smoothing import smooth_grid
from tests.recorded import Recorded


def brute_force_p_pro(regions, scores, limit=0.3):
    """Straight from the definition: every distinct score is a threshold; every region is looked at for itself."""
    names = [r for r in np.unique(regions) if r]
    points = [(0.0, 0.0)]
    for threshold in sorted(set(scores.tolist()), reverse=True):
        found = scores >= threshold
        rate = found[regions == 0].sum() / (regions == 0).sum()
        points.append((rate, np.mean([found[regions == r].sum() / (regions == r).sum() for r in names])))
    area = 0.0
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x1 > limit and x0 < limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def example(seed, n=400, levels=None, regions=4, dtype=np.float32):
    rng = np.random.default_rng(seed)
    marks = np.where(rng.random(n) < 0.2, rng.integers(1, regions + 1, n), 0)
    scores = rng.normal(size=n) + (marks > 0) * rng.random(n) * 2
    if levels:
        scores = np.round(scores * levels) / levels
    return marks, scores.astype(dtype)


# ---------------------------------------------------------------- recorded arrays


def test_recorded_metrics(shared_reference):
    recorded = Recorded(shared_reference)
    maps, masks, labels = (recorded.array(f"l/in_{name}") for name in ("maps", "masks", "labels"))
    filtered = np.asarray(smooth_grid(maps))
    scores = 0.5 * filtered.max((1, 2)) + 0.5 * recorded.array("l/in_probs").mean(1)
    recorded.check("l/object_score", scores)
    recorded.check("l/image_auroc", metrics.roc_auc(labels, scores))
    recorded.check("l/image_ap", metrics.average_precision(labels, scores))
    regions = metrics.join_regions([metrics.regions_grid(mask) for mask in masks])
    for suffix, values in (("", maps), ("_filtered", filtered)):
        recorded.check(f"l/pixel_auroc{suffix}", metrics.roc_auc(masks, values))
        recorded.check(f"l/pixel_ap{suffix}", metrics.average_precision(masks, values))
        recorded.check(f"l/aupro{suffix}", metrics.p_pro_released(regions, values))
    recorded.check("l/aupro_float_masks", metrics.p_pro_released(regions, maps))
    recorded.check("l/aupro_constant", metrics.p_pro_released(regions, np.full_like(maps, 0.5)))
    recorded.check("l/aupro_step100_fpr0.3", metrics.p_pro_released(regions, maps, steps=100))
    recorded.check("l/aupro_step200_fpr0.05", metrics.p_pro_released(regions, maps, limit=0.05))


# ---------------------------------------------------------------- independent programs


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auroc_and_ap_equal_scikit_learn(levels, dtype):
    for seed in range(5):
        marks, scores = example(seed, levels=levels, dtype=dtype)
        labels = marks > 0
        assert metrics.roc_auc(labels, scores) == pytest.approx(sklearn_metrics.roc_auc_score(labels, scores), abs=1e-12)
        assert metrics.average_precision(labels, scores) == pytest.approx(
            sklearn_metrics.average_precision_score(labels, scores), abs=1e-12)
        precision, recall, _ = sklearn_metrics.precision_recall_curve(labels, scores)
        best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-30))
        f1, threshold = metrics.f1_max(labels, scores)
        assert f1 == pytest.approx(best, abs=1e-12)
        assert f1 == pytest.approx(sklearn_metrics.f1_score(labels, scores >= threshold), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 4, 1])
@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
def test_p_pro_equals_brute_force(levels, limit):
    for seed in range(5):
        regions, scores = example(seed, levels=levels)
        wanted = brute_force_p_pro(regions, scores, limit)
        assert metrics.p_pro(regions, scores, limit=limit) == pytest.approx(wanted, abs=1e-12)
        assert metrics.p_pro(regions, scores.astype(np.float64), limit=limit) == pytest.approx(wanted, abs=1e-12)


def test_p_pro_with_one_region_over_everything_is_auroc():
    regions, scores = example(0, regions=1, levels=5)
    assert metrics.p_pro(regions, scores, limit=1.0) == pytest.approx(metrics.roc_auc(regions > 0, scores), abs=1e-12)


def test_point_and_object_metrics_are_the_single_ones():
    regions, scores = example(3, levels=8)
    labels = regions > 0
    assert metrics.point_metrics(regions, scores) == {
        "p_auroc": metrics.roc_auc(labels, scores), "p_ap": metrics.average_precision(labels, scores),
        "p_f1_max": metrics.f1_max(labels, scores)[0], "p_pro": metrics.p_pro(regions, scores)}
    assert metrics.object_metrics(labels, scores) == {
        "o_auroc": metrics.roc_auc(labels, scores), "o_ap": metrics.average_precision(labels, scores),
        "o_f1_max": metrics.f1_max(labels, scores)[0]}


def test_released_p_pro_equals_its_description_threshold_by_threshold():
    regions, scores = example(1, n=900)
    thresholds = np.arange(scores.min(), scores.max(), (scores.max() - scores.min()) / 50)
    points = []
    for threshold in thresholds:
        found = scores > threshold
        rate = found[regions == 0].mean()
        if rate < 0.3:
            points.append((rate, np.mean([found[regions == r].mean() for r in range(1, 5)])))
    rates, overlaps = np.array(points[::-1]).T
    rates = (rates - rates.min()) / (rates.max() - rates.min())
    wanted = sklearn_metrics.auc(rates, overlaps)
    assert metrics.p_pro_released(regions, scores, steps=50) == pytest.approx(wanted, abs=1e-12)


# ---------------------------------------------------------------- by hand


def test_perfect_inverse_and_constant_scores():
    regions = np.array([0] * 10 + [1, 1, 2])
    perfect = (regions > 0).astype(np.float32)
    assert metrics.roc_auc(regions, perfect) == metrics.average_precision(regions, perfect) == 1
    assert metrics.p_pro(regions, perfect) == 1 and metrics.f1_max(regions, perfect) == (1, 1)
    assert metrics.roc_auc(regions, -perfect) == 0 and metrics.p_pro(regions, -perfect) == 0
    constant = np.zeros(13, np.float32)
    assert metrics.roc_auc(regions, constant) == 0.5
    assert metrics.average_precision(regions, constant) == pytest.approx(3 / 13)
    assert metrics.p_pro(regions, constant) == pytest.approx(0.15)  # the diagonal up to 0.3: 0.045 / 0.3
    assert metrics.p_pro_released(regions, constant) == 0


def test_p_pro_by_hand():
    # falling: region 1 of two points, region 2 of one, four normal ones
    regions = np.array([1, 0, 2, 0, 1, 0, 0])
    scores = np.array([9, 8, 7, 6, 5, 4, 3], np.float32)
    # rate 0: 1/4 (half of region 1, none of 2) -> 0.25: 1/4, then 3/4 -> 0.5: 3/4 -> 1 from there
    assert metrics.p_pro(regions, scores, limit=0.5) == pytest.approx((0.25 * 0.25 + 0.25 * 0.75) / 0.5)
    assert metrics.p_pro(regions, scores, limit=0.3) == pytest.approx((0.25 * 0.25 + 0.05 * 0.75) / 0.3)
    assert metrics.p_pro(regions, scores, limit=1.0) == pytest.approx(0.25 * 0.25 + 0.25 * 0.75 + 0.5)


def test_small_regions_count_as_much_as_large_ones():
    regions = np.array([1] * 90 + [2] * 10 + [0] * 100)
    scores = np.where(regions == 1, 1, 0).astype(np.float32)
    small = np.where(regions == 2, 1, 0).astype(np.float32)
    assert metrics.p_pro(regions, scores) == pytest.approx(metrics.p_pro(regions, small))
    assert metrics.roc_auc(regions > 0, scores) > metrics.roc_auc(regions > 0, small) + 0.3


def test_ties_are_met_half_way():
    labels, scores = np.array([1, 0, 1, 0]), np.array([2, 2, 1, 1], np.float32)
    assert metrics.roc_auc(labels, scores) == 0.5
    assert metrics.roc_auc([1, 0, 0], np.array([1, 1, 0], np.float32)) == 0.75


def test_order_and_monotone_maps_do_not_matter():
    regions, scores = example(2, levels=6)
    order = np.random.default_rng(0).permutation(len(scores))
    wanted = metrics.point_metrics(regions, scores)
    for other in (metrics.point_metrics(regions[order], scores[order]),
                  metrics.point_metrics(regions, np.exp(scores.astype(np.float64)))):
        assert {name: pytest.approx(value, abs=1e-12) for name, value in wanted.items()} == other


def test_both_sorts_agree_on_signs_zeros_and_extremes():
    scores = np.array([-0.0, 0.0, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.0, -1.0, 0.0], np.float32)
    regions = np.array([1, 0, 0, 1, 1, 0, 0, 2, 1])
    fast, plain = metrics.curve(scores, regions), metrics.curve(scores.astype(np.float64), regions)
    for a, b in zip(fast, plain):
        np.testing.assert_array_equal(a, b)
    assert len(fast.thresholds) == 7  # the three zeros are one score
    assert (np.diff(fast.thresholds) < 0).all()


@pytest.mark.parametrize("regions", [[0, 0, 0], [1, 1, 2]])
def test_undefined_is_nan(regions):
    scores = np.array([0.1, 0.2, 0.3], np.float32)
    values = metrics.point_metrics(np.array(regions), scores)
    assert math.isnan(values["p_auroc"]) and math.isnan(values["p_pro"])
    assert math.isnan(metrics.p_pro_released(np.array(regions), scores))
    assert math.isnan(values["p_ap"]) == math.isnan(values["p_f1_max"]) == (not any(regions))


def test_nothing_at_all_is_nan():
    values = metrics.point_metrics(np.zeros(0, int), np.zeros(0, np.float32))
    assert all(math.isnan(value) for value in values.values())
    assert math.isnan(metrics.roc_auc([], [])) and math.isnan(metrics.p_pro_released(np.zeros(0, int), np.zeros(0)))


def test_bad_input_is_refused():
    good = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="2 of 3 scores are NaN or infinite"):
        metrics.roc_auc([0, 1, 0], np.array([np.nan, 0, np.inf]))
    with pytest.raises(ValueError, match="3 scores but 2 labels"):
        metrics.p_pro(np.array([0, 1]), good)
    with pytest.raises(ValueError, match="limit 0 must"):
        metrics.p_pro(np.array([0, 1, 0]), good, limit=0)
    with pytest.raises(ValueError, match="bool or integer"):
        metrics.curve(good, np.array([0.0, 0.5, 1.0]))
    with pytest.raises(ValueError, match="negative"):
        metrics.curve(good, np.array([0, -1, 1]))


# ---------------------------------------------------------------- regions


def test_grid_regions_join_over_corners():
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]], bool)
    assert metrics.regions_grid(mask).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 0, 2]]
    assert ndimage.label(mask)[1] == 3  # four neighbours would tear the first region apart
    assert metrics.regions_grid(mask.astype(np.float32)).dtype == np.int32


def naive_regions(xyz, mask, neighbours):
    found = np.flatnonzero(mask)
    joined = {i: {i} for i in found}
    for i in found:
        others = sorted((j for j in found if j != i), key=lambda j: ((xyz[i] - xyz[j]) ** 2).sum())[:neighbours]
        for j in others:
            merged = joined[i] | joined[j]
            for member in merged:
                joined[member] = merged
    return {frozenset(group) for group in joined.values()}


@pytest.mark.parametrize("neighbours", [1, 3, 8])
def test_point_regions_equal_a_loop(neighbours):
    rng = np.random.default_rng(0)
    centres = rng.random((6, 3)) * 20
    xyz = (centres[rng.integers(0, 6, 150)] + rng.normal(size=(150, 3))).astype(np.float32)
    mask = rng.random(150) < 0.7
    regions = metrics.regions_points(xyz, mask, neighbours=neighbours)
    assert (regions > 0).tolist() == mask.tolist()
    groups = {frozenset(np.flatnonzero(regions == r)) for r in range(1, regions.max() + 1)}
    assert groups == naive_regions(xyz, mask, neighbours) and len(groups) > 1


def test_point_regions_of_two_patches_and_of_few_points():
    rng = np.random.default_rng(1)
    xyz = np.concatenate([rng.random((20, 3)), rng.random((20, 3)) + 50, rng.random((20, 3)) + 25])
    mask = np.arange(60) < 40
    assert set(metrics.regions_points(xyz, mask).tolist()) == {0, 1, 2}
    assert metrics.regions_points(xyz, np.zeros(60, bool)).max() == 0
    lonely = np.arange(60) == 5
    assert metrics.regions_points(xyz, lonely).tolist() == lonely.astype(int).tolist()
    same = np.zeros((30, 3))  # coincident points
    same[15:] = 9
    assert set(metrics.regions_points(same, np.ones(30, bool), neighbours=3).tolist()) <= set(range(1, 31))


def test_points_outside_the_mask_may_be_nan():
    xyz = np.full((12, 3), np.nan)
    xyz[3:] = np.arange(27).reshape(9, 3)
    assert metrics.regions_points(xyz, np.arange(12) >= 3).tolist() == [0] * 3 + [1] * 9


def test_joined_regions_get_numbers_of_their_own():
    joined = metrics.join_regions([np.array([[0, 1], [2, 0]]), np.array([0, 0]), np.array([1, 0, 3])])
    assert joined.tolist() == [0, 1, 2, 0, 0, 0, 3, 0, 5]
    assert metrics.join_regions([]).size == 0


# ---------------------------------------------------------------- uncertainty and speed


def test_bootstrap_interval():
    rng = np.random.default_rng(0)
    values = rng.normal(size=400)
    low, high = metrics.bootstrap_interval(lambda at: values[at].mean(), 400, seed=1)
    assert (low, high) == metrics.bootstrap_interval(lambda at: values[at].mean(), 400, seed=1)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02) and high == pytest.approx(values.mean() + half, abs=0.02)
    narrow = metrics.bootstrap_interval(lambda at: values[at].mean(), 400, level=0.5, seed=1)
    assert low < narrow[0] < narrow[1] < high


def test_bootstrap_leaves_undefined_rounds_out():
    labels, scores = np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    assert metrics.bootstrap_interval(lambda at: metrics.roc_auc(labels[at], scores[at]), 4, rounds=50) == (1, 1)
    assert all(math.isnan(v) for v in metrics.bootstrap_interval(lambda at: math.nan, 4, rounds=3))
    with pytest.raises(ValueError, match="bootstrap of 0 objects"):
        metrics.bootstrap_interval(lambda at: 0.0, 0)


@pytest.mark.slow
def test_a_category_of_full_size_takes_seconds():
    n = 112_896 * 100
    rng = np.random.default_rng(0)
    regions = np.where(rng.random(n) < 0.02, rng.integers(1, 150, n), 0)
    scores = (rng.standard_normal(n, np.float32) + (regions > 0)).astype(np.float32)
    begin = time.perf_counter()
    values = metrics.point_metrics(regions, scores)
    assert time.perf_counter() - begin < 60
    assert values["p_auroc"] == pytest.approx(0.7602, abs=2e-3)  # two normals one apart: Phi(1 / sqrt 2)
