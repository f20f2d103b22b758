"""A body as its own reference: what its nearest symmetries leave, on bodies whose symmetries and defects are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_pipelines.clouds.sampling import knn
from gsclip_jax.methods.surface.broken_symmetry import BrokenSymmetry
from gsclip_jax.methods.surface.symmetry import KEPT, nearest, residuals
from tests import tiny
from tests.scans import ellipsoid

found_in = jax.jit(residuals)
COUNT = 3000


def normals_of(xyz):
    around = xyz[knn(xyz, 16)]
    around = around - around.mean(1, keepdims=True)
    return np.linalg.eigh(around.transpose(0, 2, 1) @ around)[1][:, :, 0]


def run(xyz, valid=None):
    """off, turned [T,M]"""
    valid = np.ones(len(xyz), bool) if valid is None else valid
    return [np.asarray(x) for x in found_in(xyz.astype(np.float32), normals_of(xyz).astype(np.float32), valid)]


def gear(count, teeth, seed=0):
    """Points on a toothed disc, its axis along z."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, count)
    rim = 1 + 0.25 * np.cos(teeth * angle)
    side = rng.random(count) < 0.4
    reach = np.where(side, 1, np.sqrt(rng.random(count))) * rim
    height = np.where(side, rng.uniform(-0.4, 0.4, count), rng.choice([-0.4, 0.4], count))
    return np.stack([reach * np.cos(angle), reach * np.sin(angle), height], 1)


def test_nearest_is_what_a_tree_finds():
    rng = np.random.default_rng(0)
    points, reference = rng.normal(size=(777, 3)).astype(np.float32), rng.normal(size=(1500, 3)).astype(np.float32)
    found = np.asarray(jax.jit(nearest)(jnp.asarray(points), jnp.asarray(reference)))
    want, index = cKDTree(reference).query(points)
    assert (found == index).mean() > 0.99  # the last bits hold the index
    np.testing.assert_allclose(np.linalg.norm(points - reference[found], axis=1), want, rtol=1e-3)


def test_a_symmetric_body_leaves_noise_and_another_does_not():
    off, turned = run(ellipsoid(COUNT, 0)[0])
    assert off.shape == turned.shape == (KEPT, COUNT)
    medians = np.median(off, 1)
    assert (np.diff(medians) >= 0).all() and medians[2] < 0.015  # an ellipsoid has three planes and three half turns
    assert np.quantile(turned[0], 0.9) < 0.02
    lump = ellipsoid(COUNT, 0)[0] - [100, -40, 5]
    lump = lump * (1 + 0.3 * np.sin(lump @ [0.3, 0.2, 0.1] + 1) + 0.3 * np.sin(lump @ [-0.1, 0.25, 0.3]))[:, None]
    assert np.median(run(lump)[0][0]) > 3 * medians[0]


def test_the_one_plane_of_a_body_is_chosen_among_the_candidates():
    lump = ellipsoid(COUNT, 6)[0] - [100, -40, 5]
    x, y, z = (lump / np.abs(lump).max(0)).T
    lump = lump * (1 + 0.3 * np.sin(3 * x + 2 * y + 1) + 0.3 * np.sin(2 * x - 3 * y + 2 * z**2))[:, None]  # below as above
    off, turned = run(lump)
    assert np.median(off[0]) < 0.01 and np.median(turned[0]) < 0.01


@pytest.mark.parametrize("teeth", [3, 5])
def test_turns_and_reflections_of_a_toothed_disc_are_found(teeth):
    off, _ = run(gear(COUNT, teeth))
    assert np.median(off, 1).max() < 0.03  # by half a tooth turned: the rim is off by a quarter


def test_a_bump_is_off_by_its_height_and_nothing_else_is():
    xyz, mask = ellipsoid(COUNT, 1, bump=True)
    plain = ellipsoid(40000, 2)[0]
    height = cKDTree(plain).query(xyz[mask])[0]
    radius = np.sqrt(np.square(xyz - xyz.mean(0)).sum(1).mean())
    off = np.median(run(xyz)[0], 0)
    np.testing.assert_allclose(np.median(off[mask]) * radius, np.median(height), rtol=0.25)
    assert np.quantile(off[~mask], 0.98) < np.median(off[mask]) / 2


def test_unit_place_attitude_and_order_hardly_matter():
    xyz = ellipsoid(COUNT, 3, bump=True)[0]
    base = run(xyz)[0].min(0)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    order = np.random.default_rng(3).permutation(COUNT)
    moved = run((25.4 * xyz @ turn + [300, -20, 5])[order])[0].min(0)
    assert np.abs(moved - base[order]).mean() < 0.004  # other points refine the symmetries
    assert np.corrcoef(moved, base[order])[0, 1] > 0.95


def test_padding_changes_nothing_and_gets_nothing():
    xyz = ellipsoid(COUNT, 4, bump=True)[0]
    base = run(xyz)
    more = np.concatenate([xyz, np.full((100, 3), 7.0)])
    normals = np.concatenate([normals_of(xyz), np.ones((100, 3))])
    padded = found_in(more.astype(np.float32), normals.astype(np.float32), np.arange(COUNT + 100) < COUNT)
    for found, want in zip(map(np.asarray, padded), base, strict=True):
        np.testing.assert_allclose(found[:, :COUNT], want, atol=2e-3)
        assert not found[:, COUNT:].any()
    assert np.isfinite(np.stack(run(xyz, np.zeros(COUNT, bool)))).all()  # nothing there at all


def test_the_baseline_scores_a_bump_highest():
    xyz, mask = ellipsoid(COUNT, 5, bump=True)
    valid = np.ones((1, COUNT + 20), bool)
    valid[:, COUNT:] = False
    padded = np.concatenate([xyz, np.full((20, 3), np.nan)])[None].astype(np.float32)
    near = np.concatenate([knn(xyz, 12), np.repeat(np.arange(COUNT, COUNT + 20)[:, None], 12, 1)])[None].astype(np.int32)
    batch = {**tiny.batch(1, points=COUNT + 20), "xyz": padded, "neighbours": near, "valid": valid}
    scores = jax.device_get(jax.jit(lambda batch: BrokenSymmetry().predict({}, {}, batch))(batch))
    assert mask[scores.points[0].argmax()] and scores.object[0] == scores.points[0].max()
    assert np.median(scores.points[0, :COUNT][mask]) > np.quantile(scores.points[0, :COUNT][~mask], 0.95)
    assert not scores.points[0, COUNT:].any()
