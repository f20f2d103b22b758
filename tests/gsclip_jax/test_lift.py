"""Lifting and smoothing: the recorded arrays, scipy, naive loops, and torch's bilinear rule by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from gsclip_jax.models.lift import lift, read_pixels, upsample
from gsclip_jax.models.smoothing import smooth_grid, smooth_neighbours
from tests.recorded import Recorded


def random_scene(views=3, points=40, cells=6, size=24, seed=0):
    rng = np.random.default_rng(seed)
    maps = rng.random((2, views, cells, cells, 2)).astype(np.float32)
    pixel = rng.integers(0, size, (2, views, points, 2)).astype(np.int16)
    pixel[:, 0, :4] = [[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]]
    visible = rng.random((2, views, points)) < 0.5
    visible[:, :, 5] = False
    valid = rng.random((2, points)) < 0.9
    return maps, pixel, visible, valid


# ---------------------------------------------------------------- recorded arrays


def test_recorded_maps(shared_reference):
    recorded = Recorded(shared_reference)
    logits = jnp.einsum("bte,bce->btc", recorded.input("i/tokens"), recorded.input("i/text"), precision="highest") / 0.07
    similarity = jax.nn.softmax(logits, axis=-1)
    recorded.check("i/similarity", similarity)
    recorded.check("i/map", upsample(similarity[:, 1:].reshape(6, 6, 6, 2), 48))


def test_recorded_lifting(shared_reference):
    recorded = Recorded(shared_reference)
    maps = jax.nn.softmax(recorded.input("j/map_logits"), axis=-1).reshape(2, 3, 48, 48, 2)
    for suffix in ("", "_hidden"):
        where, real = recorded.array(f"j/in_cor{suffix}"), recorded.array(f"j/in_nonzero{suffix}")[..., 0]
        got = np.asarray(lift(maps, where[..., :2], where[..., 2] > 0, real > 0, 48)).reshape(2, 24, 24, 2)
        if not suffix:
            recorded.check("j/points", got)
            continue
        # Released: points that no view sees divide zero by zero. Ours are 0; everything else agrees.
        wanted = recorded.array("j/points_hidden")
        unseen = np.isnan(wanted)
        assert unseen.sum() == recorded.manifest["arrays"]["j/points_hidden"]["nan_count"]
        assert (got[unseen] == 0).all()
        np.testing.assert_allclose(got[~unseen], wanted[~unseen], atol=2e-6)


def test_recorded_gaussian(shared_reference):
    recorded = Recorded(shared_reference)
    recorded.check("l/gaussian", smooth_grid(recorded.array("l/in_maps")))


# ---------------------------------------------------------------- lifting


def test_upsampling_by_hand():
    # torch, align_corners=False, 2 -> 4: source positions -0.25 (clamped to 0), 0.25, 0.75, 1.25 (past the last cell)
    got = upsample(jnp.array([[0.0, 4.0], [8.0, 12.0]])[..., None], 4)[..., 0]
    along = np.array([0, 1, 3, 4.0])
    np.testing.assert_allclose(got, along[None] + 2 * along[:, None])


def test_patch_grid_equals_reading_the_upsampled_map():
    maps, pixel, visible, valid = random_scene()
    small = lift(maps, pixel, visible, valid, 24)
    large = lift(upsample(maps, 24), pixel, visible, valid, 24)
    np.testing.assert_allclose(small, large, atol=1e-6)


def test_lifting_equals_a_loop():
    maps, pixel, visible, valid = random_scene()
    large = np.asarray(upsample(maps, 24))
    got = np.asarray(lift(maps, pixel, visible, valid, 24))
    for b in range(2):
        for m in range(pixel.shape[2]):
            values = [large[b, v, y, x] for v, (x, y) in enumerate(pixel[b, :, m]) if visible[b, v, m] and valid[b, m]]
            np.testing.assert_allclose(got[b, m], np.mean(values, axis=0) if values else 0, atol=1e-6)


def test_x_is_the_column():
    maps = np.zeros((1, 1, 4, 4), np.float32)
    maps[0, 0, 1, 3] = 1  # row 1, column 3
    pixel = np.array([[[[3, 1], [1, 3]]]], np.int16)
    got = lift(maps, pixel, np.ones((1, 1, 2), bool), np.ones((1, 2), bool), 4)
    assert np.asarray(got).tolist() == [[1, 0]]


def test_single_channel_is_one_of_two():
    maps, pixel, visible, valid = random_scene()
    both = lift(maps, pixel, visible, valid, 24)
    one = lift(maps[..., 1], pixel, visible, valid, 24)
    assert one.shape == both.shape[:-1]
    np.testing.assert_allclose(one, both[..., 1], atol=1e-7)


def test_probabilities_stay_probabilities():
    maps, pixel, visible, valid = random_scene()
    maps = np.stack([maps[..., 0], 1 - maps[..., 0]], axis=-1)
    got = np.asarray(lift(maps, pixel, visible, valid, 24)).sum(-1)
    reached = (visible.any(1)) & valid
    np.testing.assert_allclose(got, reached, atol=1e-6)


def test_gradient_of_lifting_goes_to_seen_cells_only():
    maps = jnp.zeros((1, 2, 4, 4))
    pixel = np.array([[[[0, 0], [3, 3]], [[1, 0], [2, 2]]]], np.int16)
    visible = np.array([[[True, False], [True, True]]])
    slope = np.asarray(jax.grad(lambda m: lift(m, pixel, visible, np.ones((1, 2), bool), 4).sum())(maps))[0]
    wanted = np.zeros((2, 4, 4))
    wanted[0, 0, 0] = wanted[1, 0, 1] = 0.5
    wanted[1, 2, 2] = 1
    np.testing.assert_allclose(slope, wanted)


def test_reading_outside_the_square_is_clamped():
    maps = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4, 1)
    pixel = np.array([[[[-2, -2], [9, 9]]]], np.int16)
    assert np.asarray(read_pixels(maps, pixel, 4)).ravel().tolist() == [0, 15]
    assert np.asarray(read_pixels(maps, pixel, 8)).ravel().tolist() == [0, 15]


# ---------------------------------------------------------------- smoothing on the grid


@pytest.mark.parametrize("side, sigma", [(40, 4.0), (9, 4.0), (33, 1.3)])
def test_grid_smoothing_equals_scipy(side, sigma):
    grid = np.random.default_rng(0).random((2, side, side)).astype(np.float32) * 7
    wanted = np.stack([ndimage.gaussian_filter(g, sigma=sigma) for g in grid])
    np.testing.assert_allclose(smooth_grid(grid, sigma=sigma), wanted, rtol=3e-7)
    np.testing.assert_array_equal(smooth_grid(grid.reshape(2, -1), sigma=sigma).reshape(grid.shape),
                                  smooth_grid(grid, sigma=sigma))


def test_grid_smoothing_keeps_the_last_digit():
    """A plain float32 sum is several times further from the exact value."""
    grid = np.random.default_rng(0).random((1, 64, 64)).astype(np.float32)
    exact = ndimage.gaussian_filter(grid[0].astype(np.float64), sigma=4)
    assert np.abs(np.asarray(smooth_grid(grid))[0] - exact).max() < 8e-8


def test_grid_smoothing_of_one_map_does_not_depend_on_the_others():
    grid = np.random.default_rng(0).random((2, 20, 20)).astype(np.float32)
    np.testing.assert_array_equal(smooth_grid(grid)[0], smooth_grid(np.stack([grid[0], 1000 * grid[1]]))[0])


def test_grid_smoothing_has_the_gradient_of_a_linear_map():
    grid = jnp.asarray(np.random.default_rng(0).random((12, 12)), jnp.float32)
    weight = np.random.default_rng(1).random((12, 12)).astype(np.float32)
    slope = jax.jit(jax.grad(lambda g: (smooth_grid(g) * weight).sum()))(grid)
    np.testing.assert_allclose(slope, smooth_grid(jnp.asarray(weight)), rtol=1e-5)  # mirrored Gaussians are symmetric
    assert not np.asarray(smooth_grid(jnp.zeros((5, 5)))).any()


def test_no_square():
    with pytest.raises(ValueError, match="10 points are no square grid"):
        smooth_grid(jnp.zeros((2, 10)))


# ---------------------------------------------------------------- smoothing over neighbours


def neighbourhood(points=60, count=6, seed=0):
    rng = np.random.default_rng(seed)
    xyz = rng.random((2, points, 3)).astype(np.float32)
    near = np.stack([np.argsort(((c[:, None] - c[None]) ** 2).sum(-1), axis=1)[:, :count] for c in xyz]).astype(np.int32)
    return rng.random((2, points)).astype(np.float32), xyz, near, rng.random((2, points)) < 0.9


def test_neighbour_smoothing_equals_a_loop():
    scores, xyz, near, valid = neighbourhood()
    got = np.asarray(smooth_neighbours(scores, xyz, near, valid, width=0.7))
    for b in range(2):
        distance = np.linalg.norm(xyz[b][near[b]] - xyz[b][:, None], axis=-1)
        usable = valid[b][near[b]]
        sigma = 0.7 * np.mean([distance[m][usable[m]].max() for m in range(60) if valid[b, m]])
        for m in range(60):
            if not valid[b, m]:
                assert got[b, m] == scores[b, m]
                continue
            weight = np.exp(-(distance[m] ** 2) / (2 * sigma**2)) * usable[m]
            np.testing.assert_allclose(got[b, m], weight @ scores[b][near[b, m]] / weight.sum(), rtol=1e-5)


def test_neighbour_smoothing_does_not_know_units_or_storage_order():
    scores, xyz, near, valid = neighbourhood()
    got = np.asarray(smooth_neighbours(scores, xyz, near, valid))
    for unit in (1e-6, 1e6):
        np.testing.assert_allclose(smooth_neighbours(scores, xyz * np.float32(unit), near, valid), got, rtol=1e-4)
    order = np.random.default_rng(1).permutation(60)
    rank = np.argsort(order)
    moved = smooth_neighbours(scores[:, order], xyz[:, order], rank[near[:, order]], valid[:, order])
    np.testing.assert_allclose(moved, got[:, order], rtol=1e-5)


def test_neighbour_smoothing_twice_is_two_rounds_and_constants_stay():
    scores, xyz, near, valid = neighbourhood()
    once = smooth_neighbours(scores, xyz, near, valid)
    np.testing.assert_allclose(smooth_neighbours(scores, xyz, near, valid, rounds=2),
                               smooth_neighbours(once, xyz, near, valid), rtol=1e-5)
    np.testing.assert_allclose(smooth_neighbours(np.full_like(scores, 0.3), xyz, near, valid, rounds=3), 0.3, rtol=1e-5)


def test_empty_cells_and_coincident_points_are_harmless():
    scores, xyz, near, valid = neighbourhood()
    plain = np.asarray(smooth_neighbours(scores, xyz, near, valid))
    torn = np.where(valid[..., None], xyz, np.nan)
    np.testing.assert_array_equal(smooth_neighbours(scores, torn, near, valid), plain)
    flat = np.asarray(smooth_neighbours(scores, np.zeros_like(xyz), near, np.ones_like(valid)))
    np.testing.assert_allclose(flat[0, 0], scores[0, near[0, 0]].mean(), rtol=1e-5)
    assert np.isfinite(np.asarray(smooth_neighbours(scores, xyz, near, np.zeros_like(valid)))).all()
