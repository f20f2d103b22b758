"""Which points of a scan are taken, and in what order: decided by where they lie, whatever their order, unit, place or copies."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_pipelines.clouds import sampling as clouds
from data_pipelines.clouds.canonical import frame_of, shuffled
from data_pipelines.scan import DataError, Scan
from tests.scans import ellipsoid


def scan_of(xyz, mask):
    return Scan(xyz, mask, np.ones(len(xyz), bool))


@pytest.mark.parametrize("count", [1500, 5000])  # fewer points than the scan has, and more
@pytest.mark.parametrize("digits", [15, 2])  # coordinates of few digits: many distances are equal
def test_the_choice_of_points_is_that_of_the_places(count, digits):
    xyz, mask = ellipsoid(3000, 2, bump=True)
    xyz = np.round(xyz, digits)
    order = np.random.default_rng(0).permutation(3000)
    base, permuted = clouds.resample(scan_of(xyz, mask), count, 3), clouds.resample(scan_of(xyz[order], mask[order]), count, 3)
    np.testing.assert_array_equal(permuted.xyz, base.xyz)
    np.testing.assert_array_equal(permuted.mask, base.mask)
    np.testing.assert_array_equal(order[permuted.source], base.source)
    np.testing.assert_array_equal(clouds.knn(permuted.xyz, 16), clouds.knn(base.xyz, 16))
    for other in (xyz / 25.4, xyz + [450_000.0, 5_400_000.0, 120.0], (xyz + [300, -20, 5]).astype(np.float32)):
        moved = clouds.resample(scan_of(other, mask), count, 3)
        assert len(set(moved.source) & set(base.source)) > 0.995 * len(set(base.source))
        assert np.median(np.abs(moved.xyz - base.xyz)) < 1e-5  # in the same order, but where one point more or less comes first


def test_the_order_looks_drawn_at_random():
    xyz = ellipsoid(4000, 0)[0]
    steps = frame_of(xyz).steps(xyz)
    order = shuffled(steps, 0)
    assert sorted(order) == list(range(4000)) and (order != shuffled(steps, 1)).mean() > 0.99
    cover = [cKDTree(xyz[some]).query(xyz)[0].mean() for some in (order[:400], np.random.default_rng(0).permutation(4000)[:400])]
    assert 0.9 < cover[0] / cover[1] < 1.1


def test_a_frame_turns_with_the_scan():
    xyz = ellipsoid(2000, 1, bump=True)[0]
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    base, turned = (frame_of(points).steps(points, turned=True) for points in (xyz, xyz @ turn.T * 3 + [5, 6, 7]))
    assert np.abs(turned - base).max() <= 1


def detail(count, share, size):
    """An overview of a part, and `share` of the points close to one place of it."""
    whole, close = ellipsoid(int(count * (1 - share)), 0)[0], ellipsoid(int(count * share), 1)[0]
    return np.concatenate([whole, whole[0] + (close - close.mean(0)) * size])


@pytest.mark.parametrize("share,size", [(0.5, 1e-3), (0.9, 1e-2), (0.3, 1e-5)])
def test_farthest_points_never_look_at_many_pairs(share, size, monkeypatch):
    """The work goes with the pairs of points within reach: where points crowd it must not go with their square."""
    looked_at = []
    pairs_of = clouds._pairs

    def counted(points, radius):
        found = pairs_of(points, radius)
        looked_at.append(len(found[0]))
        return found

    monkeypatch.setattr(clouds, "_pairs", counted)
    whole = np.zeros(20_000, bool)
    clouds.resample(scan_of(ellipsoid(20_000, 2)[0], whole), 8000, 0)
    even = sum(looked_at)
    looked_at.clear()
    xyz = detail(20_000, share, size)
    assert len(set(clouds.resample(scan_of(xyz, whole[: len(xyz)]), 8000, 0).source)) == 8000
    assert sum(looked_at) < 4 * even


def test_copies_count_once():
    xyz, mask = ellipsoid(3000, 2, bump=True)
    alone = clouds.resample(scan_of(xyz, mask), 2000, 0)
    marked = np.concatenate([mask & False, mask])  # the second copy alone is marked
    twice = clouds.resample(scan_of(np.concatenate([xyz, xyz]), marked), 2000, 0)
    assert (alone.copies, twice.copies) == (0, 3000)
    np.testing.assert_array_equal(twice.xyz, alone.xyz)
    np.testing.assert_array_equal(twice.mask, alone.mask)
    two_places = clouds.resample(scan_of(np.repeat([[0.0, 0, 1], [1, 2, 3]], 20, axis=0), np.zeros(40, bool)), 100, 0)
    assert two_places.copies == 38 and np.isfinite(two_places.xyz).all()


def test_rows_that_hold_no_point_are_left_out_and_said():
    xyz = ellipsoid(500, 0)[0]
    lost, zeros = np.full((7, 3), [np.nan, 1, 1]), np.zeros((300, 3))
    rows = np.concatenate([lost, xyz[:250], zeros, xyz[250:]])
    found = clouds.clean(rows, "a.ply")
    assert found.xyz.dtype == np.float64 and found.valid.sum() == 500
    np.testing.assert_array_equal(found.xyz[found.valid], xyz)
    assert found.note == "7 are NaN and 300 lie at exactly 0, 0, 0 of 807 rows: no points, left out"
    assert clouds.clean(xyz, "a.ply").note == ""
    around = xyz - xyz.mean(0)
    assert clouds.clean(np.concatenate([around, zeros[:1]]), "a.ply").valid.all()  # one of a part about the origin is a point
    assert clouds.clean(np.arange(20.0)[:, None] * [1, 0, 0], "a.ply").valid.all()  # or of one that begins there
    assert clouds.clean(np.concatenate([xyz, zeros[:1]]), "a.ply").valid.sum() == 500  # far outside of the part it is none
    with pytest.raises(DataError, match="a.ply: only 0 points .*300 lie at exactly 0, 0, 0"):
        clouds.clean(zeros, "a.ply")


def test_nearest_is_decided_alike_for_points_in_the_middle():
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0), [0.0]), -1).reshape(-1, 3)
    middle = grid[grid[:, 0] < 7] + [0.5, 0, 0]
    found = clouds.nearest(grid, middle)
    shaken = middle + 1e-7 * np.random.default_rng(0).normal(size=middle.shape)
    np.testing.assert_array_equal(found, clouds.nearest(grid, shaken))
    np.testing.assert_allclose(np.abs(grid[found] - middle).sum(1), 0.5)
