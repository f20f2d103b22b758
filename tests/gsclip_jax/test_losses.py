"""Losses: the recorded arrays with the switches their descriptions ask for, and values by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gsclip_jax.methods.gsclip.losses import (
    classification,
    consistency,
    cross_entropy,
    dice,
    dice_both,
    focal,
    object_logits,
    segmentation,
)
from tests.recorded import Recorded


@pytest.fixture(scope="module")
def recorded(shared_reference):
    return Recorded(shared_reference)


# ---------------------------------------------------------------- recorded arrays


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_recorded_focal_and_dice_with_gradients(recorded, kind):
    maps = jax.nn.softmax(recorded.input("k/map_logits"), axis=1)  # [6,2,48,48]
    mask = recorded.array(f"k/in_{kind}_mask")[:, 0]
    terms = {
        "focal": lambda p: focal(jnp.moveaxis(p, 1, -1), mask, truncate=True),
        "dice1": lambda p: dice(p[:, 1], mask),
        "dice0": lambda p: dice(p[:, 0], 1 - mask),
    }
    for name, term in terms.items():
        value, slope = jax.jit(jax.value_and_grad(term))(maps)
        recorded.check(f"k/{name}_{kind}", value)
        recorded.check(f"k/grad_{name}_{kind}", slope[:, :, ::3, ::3])


def test_recorded_cross_entropy(recorded):
    recorded.check("k/cross_entropy", cross_entropy(recorded.input("k/ce_logits"), recorded.array("k/in_labels")))


def test_recorded_classification_both_groupings(recorded):
    logits = recorded.array("m/view_logits").reshape(2, 3, 2)
    view_label, label = recorded.array("m/in_view_label"), recorded.array("m/in_label")
    released = classification(logits, view_label, label, mixed=True)
    recorded.check("m/global_logits", object_logits(logits, mixed=True))
    recorded.check("m/loss_d2_image_loss", released["view"])
    recorded.check("m/loss_d3_global_loss", released["object"])
    recorded.check("m/global_logits_by_object", object_logits(logits))
    recorded.check("m/loss_d3_global_loss_by_object", classification(logits, view_label, label)["object"])


def test_recorded_point_loss(recorded):
    maps = np.moveaxis(recorded.array("m/d3_similarity_map"), 1, -1)
    recorded.check("m/loss_d3_point_loss", dice_both(maps, recorded.array("m/in_gt")))


def test_recorded_consistency_over_views_and_features(recorded):
    fused = recorded.array("n/fused").reshape(2, 3, 96)
    recorded.check("n/loss_cons_loss", 0.3 * consistency(fused, axis=1))
    recorded.check("n/loss_cons_loss_feature_dim", 0.3 * consistency(fused))


# ---------------------------------------------------------------- by hand


def test_focal_by_hand():
    probs = jnp.array([[[0.75, 0.25], [0.5, 0.5]]])
    # anomalous at 0.25 and normal at 0.5; smoothing shifts p by about 1e-5
    wanted = -(0.75**2 * math.log(0.25) + 0.5**2 * math.log(0.5)) / 2
    np.testing.assert_allclose(focal(probs, jnp.array([[True, False]])), wanted, rtol=1e-4)
    np.testing.assert_allclose(focal(probs, jnp.array([[True, False]]), gamma=0),
                               -(math.log(0.25) + math.log(0.5)) / 2, rtol=1e-4)


def test_focal_is_finite_at_certainty():
    sure = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    for mask in ([False, True], [True, False]):
        for gamma in (2.0, 1.5):
            value, slope = jax.value_and_grad(lambda p, m=mask, g=gamma: focal(p, jnp.array(m), gamma=g))(sure)
            assert np.isfinite(value) and np.isfinite(slope).all()


def test_focal_soft_masks_count_from_one_half_unless_truncated():
    probs = jnp.array([[0.2, 0.8]])
    assert focal(probs, jnp.array([0.7])) == focal(probs, jnp.array([1.0]))
    assert focal(probs, jnp.array([0.7]), truncate=True) == focal(probs, jnp.array([0.0]))


def test_dice_by_hand():
    probs, mask = jnp.array([[0.5, 0.5, 1.0], [0.0, 0.25, 0.0]]), jnp.array([[1, 0, 1], [0, 0, 0]])
    # 1 - (2*1.5 + 1)/(2 + 2 + 1) = 0.2 and 1 - 1/(0.25 + 0 + 1) = 0.2
    np.testing.assert_allclose(dice(probs, mask), 0.2, rtol=1e-6)
    np.testing.assert_allclose(dice(probs[:1], mask[:1]), 0.2, rtol=1e-6)


def test_dice_per_row_is_another_number():
    probs = jnp.asarray(np.random.default_rng(0).random((1, 4, 5)), jnp.float32)
    mask = jnp.zeros((1, 4, 5), bool).at[0, 1].set(True)
    by_row = np.mean([float(dice(probs[:, r], mask[:, r])) for r in range(4)])
    np.testing.assert_allclose(dice(probs, mask, rows=4), by_row, rtol=1e-6)
    assert abs(float(dice(probs, mask)) - by_row) > 1e-2


def test_padding_takes_no_part():
    rng = np.random.default_rng(0)
    probs, mask = rng.random((2, 6, 2)).astype(np.float32), rng.random((2, 6)) < 0.5
    valid = np.array([[True] * 4 + [False] * 2] * 2)
    np.testing.assert_allclose(dice_both(probs, mask, valid=valid), dice_both(probs[:, :4], mask[:, :4]), rtol=1e-6)
    assert abs(float(dice_both(probs, mask)) - float(dice_both(probs[:, :4], mask[:, :4]))) > 1e-3


def test_objects_keep_their_own_views():
    logits = jnp.array([[[1.0, 0], [3, 0]], [[5, 0], [7, 0]]])
    assert object_logits(logits)[:, 0].tolist() == [2, 6]
    assert object_logits(logits, mixed=True)[:, 0].tolist() == [3, 5]  # rows 1, 3, 5, 7: (1 + 5) / 2, (3 + 7) / 2
    assert object_logits(logits[:1], mixed=True).tolist() == object_logits(logits[:1]).tolist()


def test_parts_of_both_losses():
    rng = np.random.default_rng(0)
    view_maps = jax.nn.softmax(rng.standard_normal((2, 3, 4, 4, 2)).astype(np.float32))
    view_mask = rng.random((2, 3, 4, 4)) < 0.3
    point_maps = jax.nn.softmax(rng.standard_normal((2, 9, 2)).astype(np.float32))
    point_mask, valid = rng.random((2, 9)) < 0.3, rng.random((2, 9)) < 0.8
    parts = segmentation(view_maps, view_mask, point_maps, point_mask, valid)
    flat_maps, flat_mask = view_maps.reshape(6, 4, 4, 2), view_mask.reshape(6, 4, 4)
    wanted = focal(flat_maps, flat_mask) + dice(flat_maps[..., 1], flat_mask) + dice(flat_maps[..., 0], ~flat_mask)
    np.testing.assert_allclose(parts["pixel"], wanted, rtol=1e-6)
    np.testing.assert_allclose(parts["point"], dice_both(point_maps, point_mask, valid=valid), rtol=1e-6)
    assert set(segmentation(view_maps, view_mask, point_maps, point_mask, per_view=False)) == {"point"}
    logits, view_label, label = rng.standard_normal((2, 3, 2)), np.ones((2, 3), np.int32), np.zeros(2, np.int32)
    assert set(classification(logits, view_label, label)) == {"view", "object"}
    assert set(classification(logits, view_label, label, per_object=False)) == {"view"}


def test_cross_entropy_by_hand():
    np.testing.assert_allclose(cross_entropy(jnp.array([[0.0, math.log(3)]]), jnp.array([1])), math.log(4 / 3), rtol=1e-6)
    assert np.isfinite(cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1])))


def test_consistency_by_hand():
    same = jnp.broadcast_to(jnp.array([1.0, 2.0]), (1, 3, 2))
    np.testing.assert_allclose(consistency(same), 0, atol=1e-6)
    # two views at right angles: the mean lies at 45 degrees to both
    square = jnp.eye(2)[None]
    np.testing.assert_allclose(consistency(square), 1 - math.sqrt(0.5), rtol=1e-6)
    # lengths matter through the mean only: (4, 0), (0, 1) -> mean (2, 0.5)
    uneven = jnp.array([[[4.0, 0], [0, 1]]])
    np.testing.assert_allclose(consistency(uneven), 1 - (2 + 0.5) / math.hypot(2, 0.5) / 2, rtol=1e-6)


def test_consistency_of_zero_features_has_a_finite_gradient():
    slope = jax.grad(lambda x: consistency(x))(jnp.zeros((1, 3, 4)))
    assert np.isfinite(slope).all()
