"""Pretraining of the embedded models: what the batches show, and which parameters learn from them."""

import dataclasses
from itertools import islice

import jax
import numpy as np
import optax
import pytest
from scipy.spatial import cKDTree

from experiments import pretrain
from experiments.captions import Captioner, make_tokenizer, vocabulary
from gsclip_jax.convert.load import load_clip
from gsclip_jax.method import Stage
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_image, init_clip, preprocess_views
from gsclip_jax.models.clip_blocks import block_matrices
from gsclip_jax.parts import ConfigError
from gsclip_jax.pretraining.start import OFFSETS, look_around, whitening
from gsclip_jax.pretraining.views import (
    DOUBT,
    augment,
    cloud_batches,
    patch_roughness,
    roughness_maps,
    twins,
    view_batches,
    visible_change,
)
from gsclip_jax.pretraining.vision import ROUGHNESS, ClipPretraining, patch_loss, roughness, twin_loss
from gsclip_jax.training.optim import Muon
from gsclip_jax.training.train import FitConfig, fit

NAMES = ("gear", "bowl")
CFG = ClipConfig(
    image_size=32, patch=8, vision_width=32, vision_layers=2, vision_heads=2, vv_blocks=1, embed_dim=16,
    vocab=len(vocabulary(NAMES)), context=20,
    text_width=16, text_layers=2, text_heads=2, sos=2, eos=3, dot=4, pad=0, mean=(0.7,) * 3, std=(0.3,) * 3,
)  # fmt: skip


def discs(count: int = 4, size: int = 32) -> dict:
    """Views of a grey disc off the centre; every second row is its predecessor with a dark defect of grey 40."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    shape = (count, 2, size, size)
    render, mask = np.full(shape, 255, np.uint8), np.zeros(shape, bool)
    for row in range(0, count, 2):
        for view in range(2):
            cy, cx = rng.uniform(12, 20, 2)
            disc = np.hypot(y - cy, x - cx) < 9
            render[row : row + 2, view, disc] = rng.integers(150, 200, disc.sum())
            mask[row + 1, view] = np.hypot(y - cy - 3, x - cx + 4) < 3
            render[row + 1, view][mask[row + 1, view]] = 40
    index = [
        {"name": f"{row:03d}_{('good', 'dent')[row % 2]}", "category": NAMES[row // 2 % 2], "label": row % 2}
        for row in range(count)
    ]
    return {
        "render": render,
        "depth": render.copy(),
        "view_mask": mask,
        "roughness": np.where(render < 255, np.where(mask, 200, 60), 255).astype(np.uint8),
        "category": [row["category"] for row in index],
        "defect": ["dent" if row % 2 else "good" for row in range(count)],
        "twin": twins(index),
    }


@pytest.fixture(scope="module")
def one_device():
    return jax.make_mesh((1, 1), ("data", "model"), devices=jax.devices()[:1], axis_types=(jax.sharding.AxisType.Auto,) * 2)


def batches(**changes):
    options = {"batch_size": 4, "patch": CFG.patch, "keep": 9, "seed": 3, "pairs": 2} | changes
    return view_batches(discs(), Captioner(make_tokenizer(NAMES)), **options)


def test_twins_are_found_by_their_number():
    assert discs(6)["twin"].tolist() == [-1, 0, -1, 2, -1, 4]
    rows = [{"name": "007_hole", "category": "bowl", "label": 1}, {"name": "006_good", "category": "gear", "label": 0}]
    assert twins(rows).tolist() == [-1, -1]  # of another category


def test_augmented_mask_stays_on_its_pixels():
    views = discs()
    for seed in range(30):
        pictures = ([views["render"][1, 0]], [views["view_mask"][1, 0]])
        (image,), (mask,) = augment(np.random.default_rng(seed), *pictures, shade=False)
        assert image.shape == mask.shape == (32, 32) and image.dtype == np.uint8 and mask.dtype == bool
        defect = image < 108  # halfway between the defect's grey and the disc's: where the two are mixed half and half
        assert (defect ^ mask).sum() <= 0.3 * max(mask.sum(), 12)
        assert not (mask & (image == 255)).any()


def test_where_the_look_goes_does_not_depend_on_the_defect():
    views = discs()
    image, mask = views["render"][1, 0], views["view_mask"][1, 0]
    for seed in range(10):
        with_defect = augment(np.random.default_rng(seed), [image], [mask], shade=True)[0][0]
        without = augment(np.random.default_rng(seed), [image], [np.zeros_like(mask)], shade=True)[0][0]
        np.testing.assert_array_equal(with_defect, without)


def test_twins_differ_in_the_defect_alone():
    batch = next(batches(batch_size=8))
    for modality in ("render", "depth"):
        (first, last), share = np.split(batch[modality], 2), batch[modality + "_mask"]
        np.testing.assert_array_equal(*np.split(batch[modality + "_keep"], 2))
        assert (share[4:] == 0).all() and (share[:4].sum(1) > 0).any()
        differs = first != last
        assert 0 < differs.mean() < 0.1 and (first[differs] <= last[differs]).all()  # the defect is darker


def test_batches_resume_at_any_step():
    third = next(islice(batches(), 2, None))
    again = next(batches(first=2))
    other = next(batches(first=2, seed=4))
    for name, value in third.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert not np.array_equal(third["render"], other["render"])


def test_kept_patches_show_the_object_and_carry_its_mask():
    batch = next(batches(batch_size=16))
    for modality in ("render", "depth"):
        image, kept, share = (batch[modality + part] for part in ("", "_keep", "_mask"))
        cells = image.reshape(16, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(16, 16, 64)
        cover = (cells < 255).mean(2)
        assert (np.diff(kept, axis=1) > 0).all()
        for row in range(16):
            left_out = np.setdiff1d(np.arange(16), kept[row])
            # Patches filled to a quarter are equals: the choice among them is random.
            least, most = cover[row, kept[row]].min(), cover[row, left_out].max()
            assert min(most, 0.25) <= min(least, 0.25) + 0.02
        dark = (cells < 105).mean(2)
        np.testing.assert_allclose(np.take_along_axis(dark, kept, 1), share, atol=0.2)
    seen = np.concatenate([batch["render_mask"], batch["depth_mask"]]).sum(1) * 64 >= 4
    np.testing.assert_array_equal(batch["damaged"], seen)
    assert 0 < batch["damaged"].sum() <= 16


@pytest.mark.slow
def test_keeping_every_patch_changes_nothing_and_left_out_ones_do_not_matter():
    clip = clip_module(CFG, init_clip(jax.random.key(0), CFG))
    views = discs()["render"][:, 0]
    encode = jax.jit(lambda x, keep: encode_image(clip, preprocess_views(CFG, x), vv=True, keep=keep))
    whole = encode_image(clip, preprocess_views(CFG, views), vv=True)
    kept = encode(views, np.tile(np.arange(16, dtype=np.int32), (4, 1)))
    np.testing.assert_allclose(kept.tokens, whole.tokens, atol=2e-5)
    np.testing.assert_allclose(kept.cls, whole.cls, atol=2e-5)
    some = np.tile(np.array([1, 5, 6, 10], np.int32), (4, 1))
    changed = views.copy()
    changed[:, 24:, :8] = 7  # patch 12, left out
    np.testing.assert_array_equal(encode(views, some).tokens, encode(changed, some).tokens)
    assert encode(views, some).tokens.shape == (1, 4, 5, 16)


def test_whitening_evens_out_the_variance_of_patches():
    views, cfg = discs(8), CFG
    kernel = whitening(views, cfg, floor=1e-6)
    assert kernel.shape == (8, 8, 3, 32) and kernel.dtype == np.float32
    cells = views["render"].reshape(8, 2, 4, 8, 4, 8).transpose(0, 1, 2, 4, 3, 5).reshape(-1, 64)
    cells = cells[(cells < 255).mean(1) > 0.5] / 255
    grey = np.repeat(((cells - 0.7) / 0.3).reshape(-1, 8, 8, 1), 3, 3)
    out = np.einsum("npqc,pqcw->nw", grey, kernel)
    variance = np.linalg.eigvalsh(np.cov(out.T))[::-1][:20]
    assert variance.max() / variance.min() < 30  # of the pixels themselves: over a thousand
    raw = np.linalg.eigvalsh(np.cov(grey[..., 0].reshape(len(grey), -1).T))[::-1][:20]
    assert raw.max() / raw.min() > 4 * variance.max() / variance.min()


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "text_learns"), [("vision", False), ("contrastive", True)])
def test_who_learns(stage, text_learns):
    method = ClipPretraining(CFG)
    loss = getattr(method, f"{stage}_loss")
    params, stats = method.init(jax.random.key(0))
    params["head"] = jax.tree.map(lambda x: x + 0.1, params["head"])
    params["head"]["patch"]["kernel"] = jax.random.normal(jax.random.key(1), (16, 2))
    params["head"]["view"]["kernel"] = jax.random.normal(jax.random.key(2), (16, 2))
    batch = next(batches())
    params["head"]["rough"]["kernel"] = jax.random.normal(jax.random.key(3), (16, ROUGHNESS))
    grad = jax.jit(jax.grad(lambda p: loss(p, {}, stats, batch, jax.random.key(0))[0]))(params)
    largest = lambda tree: max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))  # noqa: E731
    assert largest(grad["clip"]["visual"]["blocks"]) > 0 and largest(grad["head"]) > 0
    assert (largest(grad["clip"]["text"]) > 0) == text_learns


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vision", "contrastive"])
def test_sound_solids_alone_say_nothing_of_defects(stage):
    views = pretrain._sound(discs())
    assert views["defect"] == ["good", "good"] and len(views["render"]) == 2
    views["twin"] = np.arange(2)
    batch = next(view_batches(views, Captioner(make_tokenizer(NAMES)), batch_size=4, patch=CFG.patch, keep=9, seed=3, pairs=2))
    assert not batch["damaged"].any() and not batch["render_mask"].any()
    method = ClipPretraining(CFG, defects=False)
    own = getattr(method, f"{stage}_loss")
    params, stats = method.init(jax.random.key(0))
    loss = jax.jit(jax.value_and_grad(lambda p, b: own(p, {}, stats, b, jax.random.key(0)), has_aux=True))
    (value, (_, terms)), grad = loss(params, batch)
    assert set(terms) == {"rough" if stage == "vision" else "contrast"}
    largest = lambda tree: max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))  # noqa: E731
    assert largest(grad["clip"]["visual"]["blocks"]) > 0 and largest(grad["head"]["patch"]) == largest(grad["head"]["view"]) == 0
    labelled = {**batch, "render_mask": np.ones_like(batch["render_mask"]), "damaged": 1 - batch["damaged"]}
    assert loss(params, labelled)[0][0] == value


@pytest.mark.slow
def test_muon_turns_the_blocks_matrices_and_adam_the_rest():
    muon = Muon(betas=(0.9, 0.98), rate=5e-3, matrices=block_matrices)
    params, _ = ClipPretraining(CFG).init(jax.random.key(0))
    grads = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
    steps = {}
    # Everything else takes Adam with Nesterov's momentum, as optax has it beside Muon.
    for name, optimiser in (("muon", muon.build({"clip": 1e-3, "head": 1e-3}, 10)), ("adam", optax.nadam(1e-3, 0.9, 0.98))):
        steps[name] = jax.jit(optimiser.update)(grads, optimiser.init(params), params)[0]
    moved = 0
    for (path, muon), adam in zip(
        jax.tree_util.tree_leaves_with_path(steps["muon"]), jax.tree.leaves(steps["adam"]), strict=True
    ):
        name = jax.tree_util.keystr(path)
        if "blocks" not in name or "kernel" not in name:
            np.testing.assert_allclose(muon, adam, rtol=1e-4, atol=1e-9, err_msg=name)
            continue
        moved += 1
        for layer in np.asarray(muon):
            if "qkv" in name:
                matrices = layer.transpose(1, 0, 2, 3).reshape(3, layer.shape[0], -1)  # three matrices in one
            else:
                matrices = [layer.reshape(-1, layer.shape[-1])]
            for matrix in matrices:
                values = np.linalg.svd(matrix, compute_uv=False)
                assert np.quantile(values, 0.2) > 0.4 * values.max(), name  # next to orthogonal; of a random matrix under 0.15
                rms = np.sqrt(np.square(matrix).mean())
                assert 0.1 * 5e-3 < rms < 0.3 * 5e-3, name
    assert moved == 8  # four kernels a block, two towers


@pytest.mark.slow
def test_an_interrupted_pretraining_continues(one_device, tmp_path):
    method = ClipPretraining(CFG)
    muon = Muon(cosine=True, warmup_steps=1, clip_norm=1.0, rate=5e-3, matrices=block_matrices)
    stage = Stage("vision", {"clip": 1e-3, "head": 1e-3}, (), 1, 4, loss=method.vision_loss, optimiser=muon)
    start = lambda: method.init(jax.random.key(0))  # noqa: E731

    def train(folder, stop=None):
        def feed(first):
            for number, batch in enumerate(batches(first=first), first):
                if number == stop:
                    raise KeyboardInterrupt
                yield batch

        return fit(stage, *start(), feed, 4, FitConfig(folder, one_device, 0, save_every_s=0))[0]

    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", stop=2)
    jax.tree.map(np.testing.assert_array_equal, train(tmp_path / "cut"), whole)


def test_clouds_are_turned_and_labelled():
    rng = np.random.default_rng(0)
    xyz = rng.standard_normal((3, 50, 3)).astype(np.float32)
    mask = xyz[..., 2] > 1
    draw = lambda first: next(cloud_batches(xyz, mask, [0, 1, 2], batch_size=4, points=40, seed=1, first=first))  # noqa: E731
    batch = draw(5)
    assert batch["cloud"].shape == (4, 40, 3) and batch["cloud"].dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(batch["cloud"], axis=-1).max(1), 1, atol=1e-5)
    np.testing.assert_array_equal(batch["cloud"], draw(5)["cloud"])
    assert not np.array_equal(batch["cloud"], draw(6)["cloud"])
    assert 0 < batch["defective"].mean() < 0.5


def test_roughness_by_hand():
    images = np.full((2, 16, 16), 255, np.uint8)
    images[0, :, :8] = 100  # flat
    images[1, :, :8] = 100
    images[1, 4, 4] = 200  # a spot in the first patch of 8 x 8
    roughness_of = np.zeros((2, 4, 2), np.float32)
    roughness_of[1, 0] = 3.0, 5.0
    values, real = (np.asarray(x) for x in roughness(images, roughness_of, 8))
    assert values.shape == (2, 4, ROUGHNESS) and real.tolist() == [[1, 0, 1, 0]] * 2
    np.testing.assert_allclose(values[0, [0, 2], 0], np.log(2e-3) + 4, atol=1e-3)  # nothing varies: only the floors are left
    np.testing.assert_allclose(values[0, [0, 2], 6:], 0, atol=1e-3)
    own, beside = values[1, 0, :6], values[1, 0, 6:12]
    assert (own > values[0, 0, :6] + 0.05).all() and own[1] > own[3]  # most of a single pixel is at the finest scale
    np.testing.assert_allclose(beside, (own - values[1, 2, :6]) / 0.7, atol=1e-4)  # the other filled patch is the only neighbour


def test_roughness_maps_show_the_surface_variation_of_their_points():
    """A plane is flat, a ball of random points is not, on the pixels where their points are seen."""
    rng = np.random.default_rng(0)
    flat = np.concatenate([rng.uniform(-1, 1, (200, 2)), np.zeros((200, 1))], 1)
    xyz = np.concatenate([flat, rng.standard_normal((200, 3)) * 0.2 + [4, 0, 0]]).astype(np.float32)
    near = cKDTree(xyz).query(xyz, 9)[1].astype(np.int32)
    pixel = np.stack([np.clip((xyz[:, 0] + 1) * 5, 0, 31), np.clip((xyz[:, 1] + 1) * 5, 0, 31)], -1).astype(np.int16)
    depth = np.full((1, 1, 32, 32), 255, np.uint8)
    depth[0, 0, :12] = 100
    batch = {"xyz": xyz[None], "neighbours": near[None], "valid": np.ones((1, 400), bool), "pixel": pixel[None, None],
             "visible": np.ones((1, 1, 400), bool), "depth": depth, "render": depth}  # fmt: skip
    found = roughness_maps(batch)[0, 0]
    assert ((found == 255) == (depth[0, 0] == 255)).all()
    assert (found[2:8, 2:8] <= 1).all() and (found[2:8, 24:27] > 150).all()
    cells = patch_roughness(found, 8)
    assert cells.shape == (16, 2) and cells.dtype == np.float32
    np.testing.assert_allclose(cells[0], np.log(1e-4) + 6, atol=0.1)
    np.testing.assert_allclose(cells[12:], [[6, np.log(1e-4) + 6]] * 4, atol=1e-3)  # background
    variation = np.exp(cells[3, 1] - 6)
    assert 0.1 < variation < 1 / 3  # the roundest neighbourhood of a ball: three equal eigenvalues would give a third


def test_heads_start_by_looking_at_their_neighbours():
    cfg = dataclasses.replace(CFG, image_size=48, vision_width=64, vision_heads=4)
    visual = init_clip(jax.random.key(0), cfg)["visual"]
    visual = look_around(visual, cfg, sharp=3.0)
    kernel, positions = np.asarray(visual["blocks"]["attn"]["qkv_kernel"][0]), np.asarray(visual["pos_embedding"])[1:]
    q, k = (np.einsum("pw,whd->hpd", positions, kernel[:, part]) for part in (0, 1))
    scores = np.einsum("hpd,hsd->hps", q, k) / np.sqrt(16)
    grid = cfg.grid
    for head, (down, right) in enumerate(OFFSETS[0]):
        for row, column in np.ndindex(grid, grid):
            if 0 <= row + down < grid and 0 <= column + right < grid:
                looks_at = scores[head, row * grid + column].argmax()
                assert divmod(looks_at, grid) == (row + down, column + right)
    taken = 16
    assert not np.asarray(visual["patch_embed"])[..., :taken].any()  # what a patch shows has the other axes


def test_twin_loss_by_hand():
    logits = np.zeros((2, 3, 2), np.float32)
    logits[0, 1, 1], logits[0, 2, 1] = 2.0, 50.0
    share = np.array([[0, 0.5, 0.05], [0, 0, 0]], np.float32)  # the third patch is too little defective to count
    np.testing.assert_allclose(twin_loss(logits, share, np.ones_like(share)), np.log1p(np.exp(-2.0)), rtol=1e-5)
    share[0, 0], sure = 1.0, np.array([[0.5, 1, 1], [1, 1, 1]], np.float32)  # the first patch counts half
    np.testing.assert_allclose(
        twin_loss(logits, share, sure), (0.5 * np.log(2) + np.log1p(np.exp(-2.0))) / 1.5, rtol=1e-5
    )


def test_what_cannot_be_seen_counts_little():
    image, mask = np.full((16, 16), 100, np.uint8), np.zeros((16, 16), bool)
    mask[:4, :4] = mask[8:12, :4] = mask[:8, 8:] = True
    twin = image.copy()
    twin[:8, 8:] += 12  # half as much as is plain
    twin[8:12, :4] -= 90
    twin[8:, 8:] += 50  # outside of the mask
    seen = visible_change(image, twin, mask, 8, 24.0)
    np.testing.assert_allclose(seen, [DOUBT, 0.5, 1, 1])
    logits = np.random.default_rng(0).standard_normal((2, 4, 2)).astype(np.float32)
    share = np.array([[0.5, 0.3, 0, 0], [0, 0, 0, 0]], np.float32)
    certain = np.ones_like(share)
    doubted = certain.copy()
    doubted[0, 0] = 0
    moved = logits.copy()
    moved[0, 0] += [3, -3]
    assert patch_loss(logits, share, doubted) == patch_loss(moved, share, doubted)  # no weight, no influence
    assert patch_loss(logits, share, certain) != patch_loss(moved, share, certain)


def test_going_on_from_former_weights_takes_them_or_says_what_differs():
    cfg, params, _, sha256 = load_clip("mini")
    found, started_from = pretrain._former("mini", cfg)
    assert started_from == sha256
    jax.tree.map(np.testing.assert_array_equal, found, params)
    with pytest.raises(ConfigError, match=f"patch {cfg.patch} there, 8 here"):
        pretrain._former("mini", dataclasses.replace(cfg, patch=8))
