"""The assembled method: who receives gradients, what may not change a score, what the released variant does differently."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.batch import check
from gsclip_jax.methods.gsclip import RELEASED, Switches
from gsclip_jax.models.clip import preprocess_views
from gsclip_jax.training.train import partition
from tests import tiny


def gradients(gsclip, stage, batch, seed=0):
    params, stats = tiny.params(gsclip, seed)
    trainable, frozen = partition(params, stage)
    # LoRA's second factor starts at zero, which stops the gradient of the first: move off that point.
    if "lora" in trainable:
        trainable["lora"] = jax.tree.map(lambda x: x + 0.01, trainable["lora"])

    def loss(trainable):
        return stage.loss(trainable, frozen, stats, batch, jax.random.key(1))[0]

    return jax.jit(jax.value_and_grad(loss))(trainable)


def silent(grads) -> list[str]:
    """Leaves whose gradient is exactly zero."""
    named = jax.tree_util.tree_leaves_with_path(grads)
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, leaf in named if not np.abs(leaf).max() > 0]


@pytest.fixture(scope="module")
def batch():
    made = tiny.batch()
    check(made)
    return made


def test_every_trained_leaf_of_stage1_gets_a_gradient(batch):
    loss, grads = gradients(tiny.method(), tiny.STAGE1, batch)
    assert np.isfinite(loss)
    # The biases of layers that a BatchNorm follows cancel in training mode: only round-off reaches them.
    assert [name for name in silent(grads) if "bias" not in name] == []
    assert set(grads) == {"prompts", "gddm", "pointnet2"}


def test_every_trained_leaf_of_stage2_gets_a_gradient(batch):
    loss, grads = gradients(tiny.method(), tiny.STAGE2, batch)
    assert np.isfinite(loss)
    assert silent(grads) == []
    assert set(grads) == {"srm", "lora"}


@pytest.mark.slow
def test_released_variant_leaves_lora_prototypes_and_srm_keys_untrained(batch):
    gsclip = tiny.method(RELEASED)
    _, stage1 = gradients(gsclip, gsclip.stages[0], batch)
    assert "gddm.prototypes" in silent(stage1)
    _, stage2 = gradients(gsclip, gsclip.stages[1], batch)
    idle = silent(stage2)
    for name in ("lora.fc.a", "lora.proj.b", "srm.render.kernel", "srm.depth.kernel"):
        assert name in idle
    assert "srm.out.kernel" not in idle


@pytest.fixture(scope="module")
def pieces(batch):
    """The costly parts once: render tokens, depth tokens, text in inference and in training mode."""
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)

    @jax.jit
    def run(params, stats, batch):
        depth = gsclip.depth_tokens(params, preprocess_views(gsclip.clip, batch["depth"]))
        texts = [gsclip.text(params, stats, batch["cloud"], train=train)[0] for train in (False, True)]
        return gsclip.render_tokens(params, batch), depth, *texts

    return params, *run(params, stats, batch)


@pytest.mark.parametrize("switch", [
    {"srm_tokens": "cls"}, {"stage2_losses": "point_view"}, {"mixed_views": True}, {"consistency_axis": 1},
    {"normalise_fused": False},
])  # fmt: skip
def test_each_switch_of_the_released_code_changes_the_stage2_loss(batch, pieces, switch):
    params, render, depth, text, _ = pieces
    losses = []
    for switches in (Switches(), dataclasses.replace(Switches(), **switch)):
        gsclip = tiny.method(switches)

        @jax.jit
        def loss(params, render, depth, text, gsclip=gsclip):
            return sum(gsclip.stage2_terms(gsclip.compare(gsclip.fused_tokens(params, render, depth), text), batch).values())

        losses.append(float(loss(params, render, depth, text)))
    assert abs(losses[0] - losses[1]) > 1e-4


def test_training_mode_uses_the_statistics_of_the_batch(pieces):
    _, _, _, inference, training = pieces
    assert np.abs(inference - training).max() > 1e-3


@pytest.fixture(scope="module")
def scored(batch):
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)
    predict = jax.jit(gsclip.predict)
    return predict, params, stats, jax.device_get(predict(params, stats, batch))


def test_a_batch_of_one_scores_like_a_batch_of_four(batch, scored):
    predict, params, stats, together = scored
    for i in range(4):
        alone = predict(params, stats, {name: value[i : i + 1] for name, value in batch.items()})
        np.testing.assert_allclose(alone.object[0], together.object[i], atol=2e-6)
        np.testing.assert_allclose(alone.points[0], together.points[i], atol=2e-6)


def test_order_of_views_and_points_changes_nothing(batch, scored):
    predict, params, stats, before = scored
    views, points = np.array([2, 0, 1]), np.random.default_rng(0).permutation(64)
    back = np.argsort(points)
    moved = dict(batch)
    for name in ("render", "depth", "view_mask", "view_label"):
        moved[name] = batch[name][:, views]
    for name in ("pixel", "visible"):
        moved[name] = batch[name][:, views][:, :, points]
    for name in ("xyz", "valid", "point_mask"):
        moved[name] = batch[name][:, points]
    moved["neighbours"] = back[batch["neighbours"][:, points]].astype(np.int32)
    after = predict(params, stats, moved)
    np.testing.assert_allclose(after.object, before.object, atol=2e-6)
    np.testing.assert_allclose(after.points[:, back], before.points, atol=2e-6)


def test_scores_follow_method_md(batch, scored, pieces):
    """The object score from its parts: half the largest point score, half the mean view probability."""
    scores = scored[3]
    params, render, depth, text, _ = pieces
    gsclip = tiny.method()
    found = gsclip.compare(gsclip.fused_tokens(params, render, depth), text)
    views = np.exp(found.view_logits) / np.exp(found.view_logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(scores.object, 0.5 * scores.points.max(1) + 0.5 * views[..., 1].mean(1), atol=1e-5)
    assert scores.views.shape == batch["render"].shape and scores.points.min() >= 0 and scores.points.max() <= 1


def test_invalid_points_score_zero_and_do_not_move_others(batch, scored):
    predict, params, stats, before = scored
    padded = {name: value.copy() for name, value in batch.items()}
    padded["valid"][:, -5:] = False
    padded["neighbours"] = np.where(padded["neighbours"] >= 59, np.arange(64)[None, :, None], batch["neighbours"]).astype(
        np.int32
    )
    reference = {**batch, "neighbours": padded["neighbours"]}
    with_all = predict(params, stats, reference)
    after = predict(params, stats, padded)
    assert (np.asarray(after.points)[:, -5:] == 0).all()
    assert np.abs(np.asarray(after.points[:, :-5]) - np.asarray(with_all.points[:, :-5])).max() < 0.2
    assert np.isfinite(np.asarray(after.object)).all()


@pytest.mark.slow
def test_stored_features_give_the_loss_that_the_views_give(batch):
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)
    trainable, frozen = partition(params, gsclip.stages[1])
    loss = jax.jit(lambda batch: gsclip.stage2_loss(trainable, frozen, stats, batch, jax.random.key(3))[0])
    features = jax.jit(lambda batch: gsclip.stage2_features(params, stats, batch))(batch)
    assert set(features) == {"render_tokens", "text"}
    np.testing.assert_allclose(loss(batch), loss({**batch, **features}), rtol=1e-5)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_residual_start_is_the_mean_of_the_streams(pieces, share):
    params, render, depth, _, _ = pieces
    gsclip = tiny.method(srm_residual=True, render_share=share)
    silenced = {**params, "srm": {**params["srm"], "out": jax.tree.map(jnp.zeros_like, params["srm"]["out"])}}
    fused = gsclip.fused_tokens(silenced, render, depth)
    middle = share * render + (1 - share) * depth
    np.testing.assert_allclose(fused, middle / np.linalg.norm(middle, axis=-1, keepdims=True), atol=1e-5)


@pytest.mark.slow
def test_colour_plug_in_joins_maps_and_scores():
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)
    size = tiny.CLIP.image_size
    batch = tiny.batch(2, points=size * size, organised=True)
    batch["rgb"] = np.random.default_rng(1).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    predict = jax.jit(lambda batch: gsclip.predict_rgb(params, stats, batch))
    found = predict(batch)
    assert found["joint_map"].shape == (2, size, size) == found["colour_map"].shape
    assert (found["colour"] >= found["colour_map"].max((1, 2))).all()
    darker = predict({**batch, "rgb": batch["rgb"] // 4})
    assert np.abs(darker["joint"] - found["joint"]).max() > 1e-6
    np.testing.assert_allclose(darker["geometry"].object, found["geometry"].object, atol=1e-6)
