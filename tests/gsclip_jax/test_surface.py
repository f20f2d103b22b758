"""The surface stream: what it sees of a neighbourhood, what may not change it, how it joins the views, how it is trained."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.clouds.sampling import knn
from experiments import pretrain
from experiments.captions import Captioner
from experiments.command_line import load_config
from experiments.configs import common
from gsclip_jax.build import build_model
from gsclip_jax.convert.load import MINI, load_clip, load_surface
from gsclip_jax.convert.store import save_params
from gsclip_jax.method import Stage
from gsclip_jax.methods.surface import fusion
from gsclip_jax.methods.surface.descriptor import (
    AROUND,
    DESCRIPTION,
    FIRST,
    FLOOR,
    LEFT,
    SMOOTHED,
    SYMMETRY,
    describe,
    encode_surface,
    init_surface,
    principal,
)
from gsclip_jax.methods.surface.symmetry import residuals
from gsclip_jax.models.views import Evidence
from gsclip_jax.pretraining.surface import SAMPLE, SurfacePretraining, surface_batches, surface_sample
from gsclip_jax.runtime.keys import WeightsError
from gsclip_jax.runtime.metric_writer import MetricWriter
from gsclip_jax.runtime.sharding import make_mesh
from gsclip_jax.training.train import FitConfig, fit
from tests import tiny
from tests.scans import ellipsoid

described = jax.jit(describe)
LOCAL = np.arange(DESCRIPTION).reshape(3, -1)[:, : -SYMMETRY * len(SMOOTHED)].ravel()  # of neighbourhoods; not of symmetries


def cloud(seed=0, count=2000, bump=True):
    xyz, mask = ellipsoid(count, seed, bump=bump)
    return xyz.astype(np.float32)[None], knn(xyz, 16)[None], np.ones((1, len(xyz)), bool), mask


def test_principal_is_what_a_solver_finds():
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(400, 3, 3)) * rng.uniform(0.01, 1, (400, 1, 3))
    matrices = factor @ factor.transpose(0, 2, 1)
    matrices /= np.trace(matrices, axis1=1, axis2=2)[:, None, None]
    least, middle, normal = principal(jnp.asarray(matrices, jnp.float32))
    values, vectors = np.linalg.eigh(matrices)
    np.testing.assert_allclose(least, values[:, 0], atol=FLOOR / 5)  # two equal eigenvalues cost half of float32's digits
    np.testing.assert_allclose(middle, values[:, 1], atol=FLOOR / 5)
    apart = values[:, 1] - values[:, 0] > 0.02  # else any vector of a plane would do
    assert apart.sum() > 100
    np.testing.assert_allclose(np.abs((normal * vectors[:, :, 0]).sum(-1))[apart], 1, atol=1e-4)
    degenerate = jnp.stack([jnp.zeros((3, 3)), jnp.eye(3) / 3, jnp.diag(jnp.array([0.5, 0.5, 0]))])
    assert all(np.isfinite(x).all() for x in principal(degenerate))


def test_shares_are_those_of_the_covariance():
    """Every point has all points as its neighbours: each neighbourhood, and each average of them, is the whole cloud."""
    rng = np.random.default_rng(1)
    xyz = (rng.normal(size=(30, 3)) * [3, 2, 0.5]).astype(np.float32)
    near = np.stack([np.roll(np.arange(30), -i) for i in range(30)]).astype(np.int32)
    found = np.asarray(described(xyz[None], near[None], np.ones((1, 30), bool)))[0]
    values, vectors = np.linalg.eigh(np.cov(xyz.T, bias=True))
    share = values / values.sum()
    off = (xyz - xyz.mean(0)) / np.sqrt(values.sum())
    above = np.abs(off @ vectors[:, 0])
    beside = np.sqrt(np.square(off).sum(1) - above**2)
    want = [np.log(share[0] + FLOOR), np.log(share[1] + FLOOR), np.log(above + 1e-3).mean(), np.log(beside + 1e-3).mean()]
    np.testing.assert_allclose(found[:, :FIRST], np.tile(want, (30, 1)), atol=2e-3)


def test_what_symmetries_leave_and_the_surroundings_stand_where_the_network_learned_them():
    """By plain means over neighbours, from the point to plane residuals on."""
    xyz, near, valid, _ = cloud(count=1500)
    near, own, contrast = near[0], *np.split(np.asarray(described(xyz, near, valid))[0], 3, axis=1)[:2]
    around = xyz[0][near] - xyz[0][near].mean(1, keepdims=True)
    normals = np.linalg.eigh(np.einsum("mki,mkj->mij", around, around))[1][:, :, 0].astype(np.float32)
    left = np.concatenate(jax.jit(residuals)(xyz[0], normals, valid[0])).T
    wanted = []
    for rounds in np.diff([0, *SMOOTHED]):
        for _ in range(rounds):
            left = left[near].mean(1)
        off, turned = np.split(left, 2, axis=1)
        numbers = off[:, 0], off.min(1), np.median(off, 1), turned.min(1), np.median(turned, 1)
        wanted.append(np.log(np.stack(numbers, 1) + LEFT)[near].mean(1))
    np.testing.assert_allclose(own[:, -SYMMETRY * len(SMOOTHED) :], np.concatenate(wanted, 1), atol=1e-3)
    wider = own
    for _ in range(AROUND):
        wider = wider[near[:, 3::4]].mean(1)
    np.testing.assert_allclose(contrast, own - wider, atol=1e-4)


def test_unit_place_attitude_and_order_do_not_matter():
    xyz, near, valid, _ = cloud()
    base = np.asarray(described(xyz, near, valid))[0]
    turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    moved = np.asarray(described((25.4 * xyz @ turn + [300, -20, 5]).astype(np.float32), near, valid))[0]
    apart = np.abs(moved - base)[:, LOCAL]
    assert apart.mean() < 1e-3 and np.quantile(apart, 0.999) < 0.1  # round-off of thin shares
    order = np.random.default_rng(3).permutation(xyz.shape[1])
    place = np.argsort(order)
    shuffled = np.asarray(described(xyz[:, order], place[near[:, order]], valid))[0]
    np.testing.assert_allclose(shuffled[:, LOCAL], base[order][:, LOCAL], atol=2e-3)
    for found, want in ((moved, base), (shuffled, base[order])):  # which points refine the symmetries does matter, a little
        assert np.abs(found - want).mean() < 0.1


def test_padding_changes_nothing_and_gets_nothing():
    xyz, near, valid, _ = cloud(count=500)
    base = np.asarray(described(xyz, near, valid))
    count = xyz.shape[1]
    more = np.repeat(np.arange(count, count + 40, dtype=np.int32)[None, :, None], near.shape[2], 2)
    padded = described(np.concatenate([xyz, np.full((1, 40, 3), np.nan, np.float32)], 1), np.concatenate([near, more], 1),
                       np.concatenate([valid, np.zeros((1, 40), bool)], 1))  # fmt: skip
    np.testing.assert_allclose(padded[:, :count], base, atol=1e-3)  # logarithms: 3e-4 is round-off, by the processor
    assert not np.asarray(padded[:, count:]).any()


def test_a_bump_stands_out():
    xyz, near, valid, mask = cloud(count=4000)
    smooth = np.asarray(described(*cloud(count=4000, bump=False)[:3]))[0]
    found = np.asarray(described(xyz, near, valid))[0]
    contrast = slice(DESCRIPTION // 3, 2 * DESCRIPTION // 3)
    assert np.abs(found[mask, contrast]).mean() > 1.3 * np.abs(smooth[:, contrast]).mean()


@functools.cache
def with_surface():
    """(batch, share) -> scores with that share of the surface stream; everything is compiled once for a shape."""
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)
    params["surface"] = init_surface(jax.random.key(5), tiny.CLIP.embed_dim, (8, 8))
    evidence = jax.jit(fusion.with_surface(gsclip, 0.5).evidence)

    @functools.cache
    def scoring(share):
        return jax.jit(fusion.with_surface(gsclip, share).score)

    def score(batch, share):
        found, _ = evidence(params, stats, batch)
        return jax.device_get(scoring(share)(found if share else found.views, batch))

    return score


@pytest.mark.slow
def test_it_joins_the_points_of_unorganised_scans_alone():
    batch, score = tiny.batch(2), with_surface()
    views, joined, whole = (score(batch, share) for share in (0.0, 0.5, 1.0))
    assert np.abs(joined.points - views.points).max() > 1e-3 and joined.points.min() >= 0 and joined.points.max() <= 1
    np.testing.assert_array_equal(joined.views, views.views)  # the views' own maps are theirs
    dark = {**batch, "render": 255 - batch["render"], "depth": 255 - batch["depth"]}
    np.testing.assert_allclose(whole.points, score(dark, 1.0).points, atol=1e-6)
    np.testing.assert_allclose(whole.object, whole.points.max(-1), atol=1e-6)
    odds = [np.log(x.points) - np.log1p(-x.points) for x in (views, whole, joined)]
    np.testing.assert_allclose(odds[2], (odds[0] + odds[1]) / 2, atol=1e-3)
    grid = {**batch, "organised": np.ones(2, bool)}
    for found, want in zip(score(grid, 0.5), score(grid, 0.0), strict=True):
        np.testing.assert_allclose(found, want, atol=1e-6)


def test_points_that_the_surface_holds_against_the_damaged_sentence_score_highest():
    gsclip, batch = fusion.with_surface(tiny.method(), 1.0), tiny.batch(1, points=128)
    hot = batch["neighbours"][0, 5]  # a point and those around it
    logits = np.zeros((1, 128, 2), np.float32)
    logits[0, hot, 1] = 6
    views, side = batch["render"].shape[1], tiny.CLIP.grid
    cells = jnp.full((1, views, side, side, 2), 0.5)
    undecided = fusion.SurfaceEvidence(
        Evidence(jnp.zeros((1, views, 2)), cells, jnp.zeros((1, views, 4))), jnp.asarray(logits)
    )
    scores = jax.jit(gsclip.score)(undecided, batch)
    assert scores.points[0].argmax() in hot and scores.points[0, 5] > 0.9 and np.median(scores.points) == 0.5
    np.testing.assert_allclose(scores.object, scores.points.max(-1), atol=1e-6)


@pytest.mark.slow
def test_one_object_scores_the_same_in_any_batch():
    score, batch = with_surface(), tiny.batch(2)
    together, alone = score(batch, 0.5), score({name: value[1:2] for name, value in batch.items()}, 0.5)
    np.testing.assert_allclose(together.points[1:2], alone.points, atol=1e-5)
    np.testing.assert_allclose(together.object[1:2], alone.object, atol=1e-5)


@pytest.mark.slow
def test_training_tells_marked_points_from_others(tmp_path):
    """On bumps, against two random sentence pairs; new bumps are found as well."""
    def objects(seeds):
        parts = [cloud(seed, 3000) for seed in seeds]
        return {
            "xyz": np.concatenate([p[0] for p in parts]), "neighbours": np.concatenate([p[1] for p in parts]),
            "valid": np.ones((len(parts), 3000), bool), "point_mask": np.stack([p[3] for p in parts]),
            "object_index": np.array(seeds, np.int32),
        }  # fmt: skip

    sample = surface_sample(objects([0, 1]))
    assert sample.shape == (2, SAMPLE, DESCRIPTION + 1) and 0 < sample[..., -1].mean() <= 0.5
    np.testing.assert_allclose(sample[1:], surface_sample(objects([1])), atol=0.01)  # half precision
    pair = np.random.default_rng(0).normal(size=(1, 2, 16)).astype(np.float32)
    text = np.repeat(pair / np.linalg.norm(pair, axis=-1, keepdims=True), 2, 0)
    flat = sample[..., :-1].reshape(-1, DESCRIPTION).astype(np.float32)
    method = SurfacePretraining(16, flat.mean(0), flat.std(0) + 1e-3)
    row = Stage("surface", {"surface": 3e-3}, ("scaling",), 1, 4, loss=method.loss)
    params, stats = method.init(jax.random.key(0))
    batches = lambda first: surface_batches(sample, text, batch_size=4, points=128, seed=0, first=first)  # noqa: E731
    run = FitConfig(tmp_path, make_mesh(), 0)
    trained, _ = fit(row, params, stats, batches, 60, run, MetricWriter(tmp_path / "m.jsonl"))
    np.testing.assert_array_equal(trained["scaling"]["mean"], flat.mean(0))
    new = objects([2])
    tokens = encode_surface({**trained["surface"], **trained["scaling"]}, described(new["xyz"], new["neighbours"], new["valid"]))
    evidence = np.asarray(tokens[0] @ (text[0, 1] - text[0, 0]))
    marked = new["point_mask"][0]
    assert np.median(evidence[marked]) > np.quantile(evidence[~marked], 0.9)


def test_pretraining_makes_one_that_loads_with_its_clip(tmp_path):
    """The stage of pretrain.py on a handful of objects, against the embedded CLIP's sentences."""
    config = load_config("pretrain.py")
    config.surface_stage.update({"steps": 3, "sentences": 5, "batch_size": 4, "points": 16})
    cfg, clip, tokenizer, _ = load_clip("mini")
    text = pretrain._sentences(config, Captioner(tokenizer / "tokenizer.json"), ["gear", "soap"], cfg, clip)
    assert text.shape == (5, 2, cfg.embed_dim) and np.abs(np.linalg.norm(text, axis=-1) - 1).max() < 1e-5
    assert (np.einsum("se,se->s", text[:, 0], text[:, 1]) < 0.95).all()  # sound and damaged differ
    sample = np.random.default_rng(0).normal(size=(3, SAMPLE, DESCRIPTION + 1)).astype(np.float16)
    run, writer = FitConfig(tmp_path / "run", make_mesh(), 0), MetricWriter(tmp_path / "m.jsonl")
    made = pretrain._surface(config, sample, text, lambda *given: fit(*given, run, writer))
    save_params(tmp_path / "out", {"clip": clip, "surface": made}, config={"kind": "mini", "clip": cfg.to_json()})
    found, _ = load_surface(tmp_path / "out", cfg.embed_dim)
    jax.tree.map(np.testing.assert_array_equal, found, made)
    start = init_surface(jax.random.key(config.seed + 2), cfg.embed_dim)["layers"]
    assert all(np.abs(found["layers"][name]["kernel"] - start[name]["kernel"]).max() > 0 for name in start)


def test_the_embedded_clip_has_one_and_others_say_so(tmp_path):
    found, sha256 = load_surface("mini", 96)
    assert encode_surface(found, jnp.zeros((3, DESCRIPTION))).shape == (3, 96) and len(sha256) == 64
    config = common.embedded()
    method, params, _, weights = build_model(config)
    assert method.share > 0 and "surface" in params and weights["surface"] == sha256
    assert all("surface" in stage.frozen for stage in method.stages)
    config.variant = "released"  # the authors' code has none
    method, params, _, _ = build_model(config)
    assert not hasattr(method, "share") and "surface" not in params and "surface" not in method.stages[0].frozen
    config.variant, config.method = "paper", "pointad"
    assert "surface" not in build_model(config)[1]
    assert common.paper("real3d").model.surface_share == 0
    save_params(tmp_path / "other", {"clip": {"a": np.zeros(2)}}, config={"kind": "mini"})
    with pytest.raises(WeightsError, match="surface_share=0"):
        load_surface(tmp_path / "other", 96)
    with pytest.raises(WeightsError, match="instead of"):
        load_surface(MINI, 64)
    with pytest.raises(ValueError, match="surface_share"):
        dataclasses.replace(method.cfg.model, surface_share=1.5)
