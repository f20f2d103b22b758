"""Align3D-AD: what trains in which stage, the terms that join late, branches and weights, the released settings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.scan import DataError
from gsclip_jax.methods.align3d import Align3d, Config, aligner
from gsclip_jax.methods.align3d.config import SCRIPTS, Model, Stage1, Stage2, resolved
from gsclip_jax.methods.pointad import Config as PointAdConfig
from gsclip_jax.methods.pointad import Model as PointAdModel
from gsclip_jax.methods.pointad import PointAd
from gsclip_jax.parts import ConfigError, Parts
from gsclip_jax.runtime.sharding import place, put_batch
from gsclip_jax.training.checkpoint import Checkpoints
from gsclip_jax.training.feature_store import Source, feature_keys, find_features
from gsclip_jax.training.train import FitConfig, State, fit, make_optimiser, make_step, partition
from tests import tiny

WORDS = ([5, 6], [7, 5, 6])
MODEL = Model(n_ctx=4, deep_depth=2, n_deep=2)
STEPS = 2  # an epoch
# Both switches between steps 4 and 5.
CONFIG = Config(model=MODEL, stage1=Stage1(epochs=4, scr_epochs=2), stage2=Stage2(epochs=3, contrast_epochs=1))


def method(stage1=None, stage2=None, **model) -> Align3d:
    replace = dataclasses.replace
    cfg = Config(model=replace(MODEL, **model), stage1=replace(CONFIG.stage1, **stage1 or {}),
                 stage2=replace(CONFIG.stage2, **stage2 or {}))  # fmt: skip
    return Align3d(cfg, tiny.CLIP, WORDS, "real3d")


def params(of: Align3d):
    found, stats = of.init(jax.random.key(3))
    return {**found, "clip": tiny.params(tiny.method())[0]["clip"]}, stats


def batch(seed=0, count=2, **options):
    made = tiny.batch(count, seed=seed, **options)
    rng = np.random.default_rng(100 + seed)
    return made | {"rgb_render": rng.integers(0, 256, (*made["render"].shape, 3), dtype=np.uint8)}


def batches(first):
    step = first
    while True:
        yield batch(step)
        step += 1


def stage_of(of: Align3d, name: str):
    return next(stage for stage in of.stages if stage.name == name)


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 2)


def train(of, name, mesh, workdir, feed=batches, **options):
    stage = stage_of(of, name)
    return fit(stage, *params(of), feed, STEPS, FitConfig(workdir, mesh, 0, **options))[0]


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# ---- what trains


@pytest.mark.parametrize("name, groups", [
    ("stage1", {"aligner"}), pytest.param("stage2", {"prompts", "rgb_prompts"}, marks=pytest.mark.slow)])  # fmt: skip
def test_gradients_reach_every_leaf_of_what_trains_and_nothing_else_moves(mesh, tmp_path, name, groups):
    of = method()
    (start, stats), stage = params(of), stage_of(method(), name)
    trainable, frozen = partition(start, stage)
    assert set(trainable) == groups and set(trainable) | set(frozen) == {"clip", "aligner", "prompts", "rgb_prompts"}
    loss = lambda trainable: stage.loss(trainable, frozen, stats, batch(), None, epoch=stage.epochs - 1)  # noqa: E731
    (_, (_, terms)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(trainable)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    assert all(np.isfinite(value) for value in terms.values())
    after = fit(dataclasses.replace(stage, epochs=1), start, stats, batches, 1, FitConfig(tmp_path, mesh, 0))[0]
    for group in start:
        moved = [not np.array_equal(x, y) for x, y in zip(jax.tree.leaves(start[group]), jax.tree.leaves(after[group]))]
        assert all(moved) if group in groups else not any(moved), group


@pytest.mark.slow
def test_no_branch_reaches_the_other(mesh):
    """So that one Adam of the sum is two: the gradient of a branch's terms, the contrastive one too, is 0 in the other's tree."""
    of = method()
    start, _ = params(of)
    made = {**batch(), **jax.jit(of.stage2_features)(start, {}, batch())}
    for mine, other, before in (("rgb_prompts", "prompts", "rgb_"), ("prompts", "rgb_prompts", "")):

        def own(trees, before=before):
            texts = of.texts({**start, **trees})
            terms = of.terms(texts, of.compare(start, texts, made), made, 1.0)
            return sum(value for name, value in terms.items() if name.startswith("rgb_") == bool(before))

        grads = jax.jit(jax.grad(own))({name: start[name] for name in ("prompts", "rgb_prompts")})
        assert all(not np.abs(leaf).any() for leaf in jax.tree.leaves(grads[other]))
        assert all(np.abs(leaf).any() for leaf in jax.tree.leaves(grads[mine]))


# ---- terms that join late


@pytest.mark.parametrize("name, term", [("stage1", "local"), pytest.param("stage2", "contrast", marks=pytest.mark.slow)])
def test_the_step_compiles_once_and_the_switch_falls_on_its_epoch(mesh, name, term):
    of, traced = method(), []
    stage = stage_of(of, name)

    def counted(*args, epoch):
        traced.append(1)
        return stage.loss(*args, epoch=epoch)

    start, stats = params(of)
    trainable, frozen = (place(part, mesh) for part in partition(start, stage))
    optimiser = make_optimiser(stage, 10)
    state = place(State(jnp.zeros((), jnp.int32), trainable, optimiser.init(trainable), stats), mesh)
    step, seen = make_step(dataclasses.replace(stage, loss=counted), optimiser, STEPS), []
    made = {**batch(), **jax.jit(stage.features)(start, stats, batch())}
    plain = jax.jit(lambda trainable: stage.loss(trainable, frozen, stats, made, None, epoch=0)[1][1][term])
    for _ in range(6):
        before = jax.tree.map(np.asarray, state.trainable)
        state, metrics = step(state, frozen, put_batch(made, mesh), jax.random.key(0))
        seen.append(float(metrics[term]) > float(plain(before)) + 1e-3)
    assert len(traced) == 1 and seen == [False] * 4 + [True] * 2


@pytest.mark.parametrize("stopped", [3, pytest.param(4, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)],
                         ids=["before", "at", "after"])  # fmt: skip
@pytest.mark.parametrize("name", ["stage1", pytest.param("stage2", marks=pytest.mark.slow)])
def test_a_killed_run_ends_where_an_undisturbed_one_does(mesh, tmp_path, name, stopped):
    """Killed on each side of the switch, which is after step 4: the same weights to the last bit."""

    class Killed(Exception):
        pass

    def killed(first):
        for number, made in enumerate(batches(first), first):
            if number == stopped:
                raise Killed
            yield made

    of = method()
    whole = train(of, name, mesh, tmp_path / "whole")
    with pytest.raises(Killed):
        train(of, name, mesh, tmp_path / "cut", killed, save_every_s=0)
    assert Checkpoints(tmp_path / "cut" / "checkpoints").latest_step() == stopped
    assert same(train(of, name, mesh, tmp_path / "cut"), whole)


@pytest.mark.parametrize("name, changes", [
    ("stage1", {"scr_epochs": 1}), pytest.param("stage2", {"contrast_epochs": 0}, marks=pytest.mark.slow)])  # fmt: skip
def test_the_epoch_of_the_switch_changes_what_is_learned(mesh, tmp_path, name, changes):
    one, two = train(method(), name, mesh, tmp_path / "a"), train(method(**{name: changes}), name, mesh, tmp_path / "b")
    assert not same(one, two)


# ---- the aligner's parts


def test_similarities_by_the_mean_vector_are_the_mean_of_all_similarities():
    rng = np.random.default_rng(0)
    grey, colour = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in rng.standard_normal((2, 3, 7, 5)))
    want = np.einsum("bte,bue->btu", grey, colour).mean(-1)
    np.testing.assert_allclose(aligner.similarities(jnp.asarray(grey), jnp.asarray(colour)), want, atol=1e-6)


def test_weights_are_constants_and_scaled_before_the_sigmoid():
    s = jnp.asarray([-0.5, 0.0, 0.5])
    np.testing.assert_allclose(aligner.consistency_weights(s, 0.8, 3.0), 1 + 0.8 / (1 + np.exp(-3 * np.asarray(s))), rtol=1e-6)
    assert not jax.grad(lambda s: aligner.consistency_weights(s, 0.8).sum())(s).any()


@pytest.mark.parametrize("cls", [True, False])
def test_the_class_token_of_the_vv_path_is_a_local_token_or_not(cls):
    of = method(stage1={"align_cls_token": cls})
    start, stats = params(of)
    grey, colour = of.pairs(start, batch())
    assert grey.shape == colour.shape == (2, 3, 1 + cls + 16, 16)
    found = of.stage1_features(start, stats, batch())
    np.testing.assert_allclose(np.linalg.norm(grey, axis=-1), 1, rtol=1e-5)
    want = np.asarray(found["rgb_render_first"])
    if cls:
        np.testing.assert_allclose(colour[:, :, 1], want / np.linalg.norm(want, axis=-1, keepdims=True), atol=1e-6)


# ---- features


def test_features_are_stored_in_one_pass_and_the_render_stream_is_the_other_methods(mesh, tmp_path):
    of, passes = method(), []
    start, stats = params(of)

    def everything():
        for start in (0, 2):
            passes.append(start)
            yield batch(start) | {"object_index": np.arange(start, start + 2, dtype=np.int32)}

    source = Source(of.stages[0], start, stats, everything, 4, "objects", mesh)
    store = find_features(source, tmp_path)
    assert passes.count(2) == 1
    joined = next(store.join([batch(2) | {"object_index": np.array([3, 2], np.int32)}]))
    live = of.stage1_features(start, stats, batch(2))
    assert set(live) == {"render_tokens", "render_first", "rgb_render_tokens", "rgb_render_first"}
    for name, value in live.items():
        np.testing.assert_allclose(joined[name], np.asarray(value)[::-1], atol=1e-5)
    pointad = PointAd(PointAdConfig(PointAdModel(n_ctx=4, deep_depth=2, n_deep=2)), tiny.CLIP, WORDS)
    keys = [feature_keys(dataclasses.replace(source, stage=stage))["render_tokens"] for stage in (*of.stages, *pointad.stages)]
    assert len(set(keys)) == 1
    one = stage_of(of, "stage1").loss({"aligner": start["aligner"]}, {}, stats, {**batch(), **of.stage1_features(
        start, stats, batch())}, None, epoch=3)  # fmt: skip
    two = stage_of(of, "stage1").loss({"aligner": start["aligner"]}, {"clip": start["clip"]}, stats, batch(), None, epoch=3)
    np.testing.assert_allclose(one[0], two[0], rtol=1e-6)


@pytest.mark.slow
def test_without_coloured_views_training_stops_and_prediction_does_not():
    of = method()
    start, stats = params(of)
    grey = tiny.batch(2)
    with pytest.raises(DataError, match="Align3D-AD needs coloured renderings of the auxiliary category; real3d has no colour: "
                                          "train on mvtec3d or eyecandies, or use gsclip or pointad"):  # fmt: skip
        of.stages[0].features(start, stats, grey)
    scores = of.predict(start, stats, grey)
    with_colour = of.predict(start, stats, batch())
    assert scores.object.shape == (2,) and scores.points.shape == (2, 64) and scores.views.shape == grey["render"].shape
    np.testing.assert_array_equal(scores.object, with_colour.object)


# ---- branches and weights


def pointad_of(start) -> tuple[PointAd, dict]:
    return PointAd(PointAdConfig(PointAdModel(n_ctx=4, deep_depth=2, n_deep=2)), tiny.CLIP, WORDS), start


def test_the_rendering_branch_alone_is_pointad():
    of = method(branches="render")
    start, stats = params(of)
    assert set(start) == {"clip", "prompts"} and [stage.name for stage in of.stages] == ["stage2"]
    assert of.stages[0].depends_on == ()
    pointad = pointad_of(start)[0]
    made = batch()
    for one, two in zip(of.predict(start, stats, made), pointad.predict(start, stats, made), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    ours = of.stages[0].loss(start, {}, stats, made, None, epoch=2)[0]
    np.testing.assert_allclose(ours, pointad.loss(start, {}, stats, made, None)[0], rtol=1e-6)


def test_the_aligned_branch_alone_has_no_rendering_learner():
    of = method(branches="aligned")
    start, stats = params(of)
    assert set(start) == {"clip", "aligner", "rgb_prompts"}
    (_, (_, terms)) = of.stages[1].loss(start, {}, stats, batch(), None, epoch=2)
    assert set(terms) == {"rgb_view", "rgb_object", "rgb_pixel", "rgb_point"}
    whole = method(image_weight=1.0, point_weight=1.0)
    both = {**params(whole)[0], **start}
    for one, two in zip(of.predict(start, stats, batch()), whole.predict(both, stats, batch()), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_weights_mix_the_branches():
    start, stats = params(method())
    points = {w: np.asarray(method(point_weight=w).predict(start, stats, batch()).points) for w in (0.0, 0.25, 1.0)}
    np.testing.assert_allclose(points[0.25], 0.25 * points[1.0] + 0.75 * points[0.0], atol=1e-6)
    assert np.abs(points[1.0] - points[0.0]).max() > 1e-3
    alone = [method(image_weight=0.0, point_weight=w).predict(start, stats, batch()).object for w in (0.0, 1.0)]
    np.testing.assert_array_equal(*alone)  # the object's score has its own weight
    render = method(branches="render")
    np.testing.assert_allclose(alone[0], render.predict({"clip": start["clip"], "prompts": start["prompts"]}, stats,
                                                        batch()).object, atol=1e-6)  # fmt: skip


def test_a_second_blur_where_it_is_asked_for():
    start, stats = params(method())
    made = batch(organised=True)
    found = {blur: method(second_blur=blur, smooth_sigma=1.0).predict(start, stats, made)
             for blur in ("none", "object", "points", "both")}  # fmt: skip
    for blur, scores in found.items():
        assert np.array_equal(scores.points, found["none"].points) == (blur in ("none", "object"))
        assert np.array_equal(scores.object, found["none"].object) == (blur in ("none", "points"))


# ---- settings


def parts(category, data_set="mvtec3d", target=""):
    return Parts(tiny.CLIP, None, None, data_set, category, target)


def test_the_paper_variant_is_as_configured():
    assert resolved(CONFIG, parts("cookie")) is CONFIG
    default = Config()
    assert (default.stage1.scr_weight, default.stage2.contrast_scale) == (1.0, 0.1)
    assert (default.model.image_weight, default.model.point_weight, default.model.second_blur) == (0.5, 0.5, "none")


@pytest.mark.parametrize(
    "given, values",
    [
        (parts("carrot"), (0.01, 1, 0.5, 0.5, "both")),
        (parts("cookie"), (0.05, 0.1, 0, 0.5, "points")),
        (parts("dowel"), (0.1, 1, 0, 0, "points")),
        (parts("Confetto", "eyecandies"), (0.5, 1, 0.5, 0.5, "object")),
        (parts("LicoriceSandwich", "eyecandies"), (0.8, 0.01, 0.5, 1, "object")),
        (parts("PeppermintCandy", "eyecandies"), (0.2, 0.01, 0.5, 0.5, "object")),
        (parts("cookie", target="eyecandies"), (0.05, 0.1, 0.5, 0.5, "object")),
        (parts("carrot", target="real3d"), (0.01, 1, 0, 0.5, "none")),
        (parts("dowel", target="real3d"), (0.1, 1, 0, 0.5, "none")),
        (parts("cookie", target="real3d"), (0.05, 0.1, 0, 0, "none")),
        (parts("bagel"), (1.0, 0.1, 0.5, 0.5, "both")),
    ],
)
def test_the_released_scripts_settings(given, values):
    found = resolved(Config(variant="released"), given)
    m = found.model
    assert (found.stage1.scr_weight, found.stage2.contrast_scale, m.image_weight, m.point_weight, m.second_blur) == values
    assert m.mixed_views and m.round_deep_prompts and m.dice_per_row and m.dice_padding and m.score_padding and m.smooth_storage
    assert len(SCRIPTS) == 6


def test_keys_that_were_set_stay_and_wrong_ones_are_refused():
    cfg = Config(variant="released", model=Model(image_weight=0.7), stage1=Stage1(scr_weight=0.3))
    found = resolved(cfg, parts("cookie"))
    assert (found.model.image_weight, found.stage1.scr_weight, found.model.point_weight) == (0.7, 0.3, 0.5)
    with pytest.raises(ConfigError, match="did you mean 'released'"):
        resolved(Config(variant="release"), parts("cookie"))
    with pytest.raises(ValueError, match="config.model.image_weight is 1.5"):
        Model(image_weight=1.5)
    with pytest.raises(ValueError, match="did you mean 'aligned'"):
        Model(branches="aligne")
