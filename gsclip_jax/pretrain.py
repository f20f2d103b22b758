"""Training the small embedded models from nothing: a CLIP on captioned views, and a PointNet++ start on clouds.

Both are Methods, so `fit` trains them like any stage. Views come from the pretraining categories alone, which no experiment
trains or tests on. Render views go through the V-V path and depth views
through the plain path, as GS-CLIP will use them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from gsclip_jax.baselines.surface_variation import SurfaceVariation
from gsclip_jax.clip import ClipConfig, clip_module, encode_image, encode_tokens, init_clip, preprocess_views
from gsclip_jax.method import Params, Stage
from gsclip_jax.pointnet2 import PointNet2Config, init_pointnet2, pointnet2
from gsclip_jax.similarity import TEMPERATURE, normalise


class ClipPretraining:
    """Two stages. "sight": linear heads learn which patches and which views are defective, and how rough each patch is next to
    its surroundings, which teaches the vision tower to see. "words": image-text contrast on captions, and sound-or-damaged
    contrasts of whole views and of patches against a pair of sentences.

    Together from the start, the noise of the untrained sentences drowns the patches' signal: nothing is learned.

    A batch holds twins, defective views first and behind them the same views of the same bodies without the defect: what differs
    between two twins is the defect alone.

    Batch: render, depth uint8 [B,H,W]; render_keep, depth_keep int32 [B,K] patches that are encoded (most of a view is empty);
    render_mask, depth_mask float32 [B,K] defective share of each; render_sure, depth_sure float32 [B,K] how much each counts
    (what cannot be told from the sound twin teaches little); render_rugged, depth_rugged float32 [B,P,2] how rough the surface in
    each patch is (`rugged_patches`, all patches of the grid); view_sure float32 [2B] the same for whole views; caption int32
    [2B,T] (renders first); pair int32 [N,2,T] sound and damaged sentences, pair_of int32 [2B] which pair a view is held against;
    damaged int32 [2B].
    """

    def __init__(self, cfg: ClipConfig, stages: tuple[Stage, ...] = (), defects: bool = True):
        """`defects` false: from sound solids alone, by roughness and captions; nothing says what a defect is."""
        self.name, self.cfg, self.stages, self.defects = "clip_pretraining", cfg, stages, defects

    def init(self, key):
        """The CLIP, and linear heads that are thrown away: they tell patches and views apart before the sentences can."""
        width = self.cfg.embed_dim
        head = {name: {"kernel": jnp.zeros((width, 2)), "bias": jnp.zeros(2)} for name in ("patch", "view")}
        rough = jax.random.normal(jax.random.fold_in(key, 1), (width, ROUGHNESS)) * width**-0.5
        head["rough"] = {"kernel": rough, "bias": jnp.zeros(ROUGHNESS)}
        return {"clip": init_clip(key, self.cfg), "head": head}, {}

    def features(self, stage, params, stats, batch):
        return {}

    def loss(self, stage, trainable, frozen, stats, batch, key):
        clip, head = clip_module(self.cfg, trainable["clip"]), trainable["head"]
        render = encode_image(clip, preprocess_views(self.cfg, batch["render"]), vv=True, keep=batch["render_keep"])
        depth = encode_image(clip, preprocess_views(self.cfg, batch["depth"]), keep=batch["depth_keep"])
        tokens = [stream.tokens[-1][:, 1:].astype(jnp.float32) for stream in (render, depth)]  # [B,K,E] each
        image = normalise(jnp.concatenate([render.cls, depth.cls]))  # [2B,E]
        total, terms = 0.0, {}
        if self.defects:
            total, terms = self._sight(head, tokens, image, batch)
        if stage == "sight":
            found = [x @ head["rough"]["kernel"] + head["rough"]["bias"] for x in tokens]
            rough = [roughness_loss(f, batch[name], batch[name + "_rugged"], batch[name + "_keep"], self.cfg.patch)
                     for f, name in zip(found, PICTURES, strict=True)]  # fmt: skip
            return total + sum(rough) / 2, (stats, {**terms, "rough": sum(rough) / 2})

        caption = normalise(encode_tokens(clip, batch["caption"]))  # [2B,E]
        # Equal captions are equally right answers: the target spreads over them.
        same = (batch["caption"][:, None] == batch["caption"][None]).all(-1).astype(jnp.float32)
        target = same / same.sum(-1, keepdims=True)
        logits = image @ caption.T * jnp.exp(jnp.minimum(trainable["clip"]["logit_scale"], jnp.log(100.0)))
        contrast = (_soft_cross_entropy(logits, target) + _soft_cross_entropy(logits.T, target)) / 2
        total, terms = total + 0.3 * contrast, {**terms, "contrast": contrast}
        if self.defects:
            patches = normalise(jnp.concatenate(tokens))  # [2B,K,E]
            share, sure = (jnp.concatenate([batch[name + part] for name in PICTURES]) for part in ("_mask", "_sure"))  # [2B,K]
            pair = normalise(encode_tokens(clip, batch["pair"]))[batch["pair_of"]]  # [2B,2,E]
            logits = jnp.einsum("be,bke->bk", image, pair) / TEMPERATURE
            condition = cross_entropy(logits, batch["damaged"], batch["view_sure"])
            local = patch_loss(jnp.einsum("bpe,bke->bpk", patches, pair) / TEMPERATURE, share, sure)
            total, terms = total + 0.5 * condition + local, {**terms, "condition": condition, "local": local}
        return total, (stats, terms)

    @staticmethod
    def _sight(head, tokens: list[jax.Array], image: jax.Array, batch) -> tuple[jax.Array, dict]:
        """What the linear heads make of patches and of whole views."""
        evidence = [(normalise(x) @ head["patch"]["kernel"] + head["patch"]["bias"]) / TEMPERATURE for x in tokens]
        direct = [patch_loss(e, *given) + twin_loss(e, *given) for e, given in
                  ((e, (batch[name + "_mask"], batch[name + "_sure"])) for e, name in zip(evidence, PICTURES, strict=True))]
        logits = (image @ head["view"]["kernel"] + head["view"]["bias"]) / TEMPERATURE
        whole = cross_entropy(logits, batch["damaged"], batch["view_sure"])
        return sum(direct) / 2 + 0.5 * whole, {"render": direct[0], "depth": direct[1], "whole": whole}

    def predict(self, params, stats, batch):
        raise NotImplementedError("the pretrained CLIP is scored through GS-CLIP: run stage2.py")


def cross_entropy(logits_bk: jax.Array, label_b: jax.Array, weight_b: jax.Array) -> jax.Array:
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits_bk), label_b[:, None], 1)[:, 0]
    return -(weight_b * log_p).sum() / weight_b.sum()


def _soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    return -(target * jax.nn.log_softmax(logits)).sum(-1).mean()


def patch_loss(logits_bpk: jax.Array, share_bp: jax.Array, sure_bp: jax.Array) -> jax.Array:
    """Weighted cross-entropy plus Dice of patches [B,P,2] against the defective share [B,P] of their pixels; each patch counts
    as much as `sure` [B,P] says."""
    target = jnp.minimum(2 * share_bp, 1.0)  # half a patch of defect is a defective patch
    log_p = jax.nn.log_softmax(logits_bpk)
    weight = sure_bp * (1 + 7 * target)  # defects cover a few per cent
    entropy = -(weight * (target * log_p[..., 1] + (1 - target) * log_p[..., 0])).sum() / weight.sum()
    p, target = sure_bp * jnp.exp(log_p[..., 1]), sure_bp * target
    any_defect = (target.sum(-1) > 0).astype(jnp.float32)
    dice = 1 - 2 * (p * target).sum(-1) / (p.sum(-1) + target.sum(-1) + 1e-6)
    return entropy + (dice * any_defect).sum() / (any_defect.sum() + 1e-6)


def twin_loss(logits_bpk: jax.Array, share_bp: jax.Array, sure_bp: jax.Array) -> jax.Array:
    """How well a defective patch [B/2 first] is told from the same patch of its sound twin [B/2 last], logits [B,P,2]."""
    evidence = logits_bpk[..., 1] - logits_bpk[..., 0]
    first, last = jnp.split(evidence, 2)
    hit = jnp.split((share_bp > 0.1) * sure_bp, 2)[0]
    return (jax.nn.softplus(last - first) * hit).sum() / jnp.maximum(hit.sum(), 1)


PICTURES = ("render", "depth")
PARTS = ("", "_keep", "_mask", "_sure", "_rugged")  # of a batch, for each of the PICTURES
SCALES = (1.0, 3.0)  # pixels
ROUGHNESS = 3 * (2 * len(SCALES) + 2)
FLATTEST = 1e-4  # surface variation that counts as flat


def rugged_views(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Surface variation of the point each pixel shows, uint8 [B,V,H,W]: its logarithm, FLATTEST 0 to 1 254; background 255.

    Args:
      batch: xyz, neighbours, valid, pix, seen and depth of `data_pipelines.batch.FIELDS`.
    """
    fields = {name: batch[name] for name in ("xyz", "neighbours", "valid", "render")}
    variation = np.asarray(_surface_variation(fields))  # [B,M]
    grey = np.rint(254 * np.clip(1 - np.log(variation + FLATTEST) / np.log(FLATTEST), 0, 1)).astype(np.uint8)
    out = np.full(batch["depth"].shape, 255, np.uint8)
    for body, view in np.ndindex(*out.shape[:2]):
        inside = batch["depth"][body, view] < 255
        points = np.flatnonzero(batch["seen"][body, view])
        if not len(points) or not inside.any():
            continue
        x, y = batch["pix"][body, view, points].T
        shown = np.full(inside.shape, -1, np.int16)
        np.maximum.at(shown, (y, x), grey[body, points].astype(np.int16))
        row, column = distance_transform_edt(shown < 0, return_distances=False, return_indices=True)
        out[body, view][inside] = shown[row, column][inside]
    return out


@jax.jit
def _surface_variation(fields: dict) -> jax.Array:
    return SurfaceVariation().predict({}, {}, fields).points


def rugged_patches(rugged: np.ndarray, patch: int) -> np.ndarray:
    """Mean and largest logarithm of surface variation in each patch of a map [S,S] of `rugged_views`, plus 6: float32 [P,2]."""
    inside = rugged < 255
    nats = np.where(inside, (1 - rugged / np.float32(254)) * np.log(FLATTEST), 0)
    side = len(rugged) // patch
    largest = np.where(inside, nats, -np.inf).reshape(side, patch, side, patch).max((1, 3)).reshape(-1)
    mean = _share(nats, patch) / np.maximum(_share(inside, patch), 1e-6)
    return (np.stack([mean, np.maximum(largest, np.log(FLATTEST))], -1) + 6).astype(np.float32)


def roughness(images: jax.Array, rugged: jax.Array, patch: int) -> tuple[jax.Array, jax.Array]:
    """How rough each patch is, in grey and in the cloud itself, alone, next to its neighbours and to the whole view.

    Defects show in it only in part, but a tower that can tell it has learned to look at what is small, and to see the shape in
    the shading.

    Args:
      images: uint8 [B,S,S], background 255.
      rugged: [B,P,2] of `rugged_patches`.

    Returns: logarithms of mean and largest difference between neighbouring SCALES in the patch and `rugged`, then the same less
      its neighbours' and less the view's [B,P,ROUGHNESS]; float [B,P], 1 where the object fills at least ten pixels of the patch.
    """
    size = images.shape[-1]
    side = size // patch
    inside = (images < 255).astype(jnp.float32)
    area = jnp.maximum(inside.sum((1, 2), keepdims=True), 1)
    grey = images.astype(jnp.float32) / 255
    grey = jnp.where(inside > 0, grey, (grey * inside).sum((1, 2), keepdims=True) / area)
    at = np.arange(size)

    def blurred(sigma):  # within the object
        kernel = np.exp(-0.5 * ((at[:, None] - at) / sigma) ** 2)
        kernel = jnp.asarray(kernel / kernel.sum(1, keepdims=True), jnp.float32)
        both = lambda x: jnp.einsum("ij,bjk,lk->bil", kernel, x, kernel)  # noqa: E731
        return both(grey * inside) / jnp.maximum(both(inside), 1e-3)

    def cells(x):
        return x.reshape(-1, side, patch, side, patch)

    levels, filled, found = [grey, *map(blurred, SCALES)], cells(inside).sum((2, 4)), []
    for fine, coarse in zip(levels[:-1], levels[1:], strict=True):
        change = cells(jnp.abs(fine - coarse) * inside)
        found += [jnp.log(change.sum((2, 4)) / (filled + 1e-3) + 2e-3), jnp.log(change.max((2, 4)) + 4e-3)]
    own = jnp.concatenate([jnp.stack(found, -1) + 4, rugged.reshape(-1, side, side, 2)], -1)  # about zero on average
    real = (filled >= 10).astype(jnp.float32)[..., None]

    def ring(x):
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") - x

    beside = ring(own * real) / jnp.maximum(ring(real), 1)
    everywhere = (own * real).sum((1, 2), keepdims=True) / jnp.maximum(real.sum((1, 2), keepdims=True), 1)
    out = jnp.concatenate([own, (own - beside) / 0.7, (own - everywhere) / 0.7], -1)
    return out.reshape(len(images), side**2, -1), real.reshape(len(images), -1)


def roughness_loss(found: jax.Array, images: jax.Array, rugged: jax.Array, keep: jax.Array, patch: int) -> jax.Array:
    """Mean squared error of predicted roughness [B,K,ROUGHNESS] over the kept patches that show the object."""
    target, real = (jax.lax.stop_gradient(x) for x in roughness(images, rugged, patch))
    target = jnp.take_along_axis(target, keep[..., None], 1)
    real = jnp.take_along_axis(real, keep, 1)[..., None]
    return (real * jnp.square(found - target)).sum() / (real.sum() * ROUGHNESS)


class PointPretraining:
    """PointNet++ learns which points are defective and which solid it sees: the start that S3DIS weights give at full size.

    Batch: cloud float32 [B,N,3] in the unit sphere, defective int32 [B,N], category int32 [B].
    """

    def __init__(self, cfg: PointNet2Config, stage: Stage, categories: int):
        self.name, self.cfg, self.stages, self.categories = "point_pretraining", cfg, (stage,), categories

    def init(self, key):
        first, second, third = jax.random.split(key, 3)
        params, stats = init_pointnet2(first, self.cfg)
        head = {
            "point": jax.random.normal(second, (128, 2)) * 128**-0.5,
            "object": jax.random.normal(third, (512, self.categories)) * 512**-0.5,
        }
        return {"pointnet2": params, "head": head}, {"pointnet2": stats}

    def features(self, stage, params, stats, batch):
        return {}

    def loss(self, stage, trainable, frozen, stats, batch, key):
        net, head = trainable["pointnet2"], trainable["head"]
        (points, shape), new = pointnet2(net, stats["pointnet2"], batch["cloud"], train=True, cfg=self.cfg)
        log_point = jax.nn.log_softmax(points @ head["point"])
        target = batch["defective"].astype(jnp.float32)
        weight = 1 + 9 * target
        point = -(weight * jnp.where(target > 0, log_point[..., 1], log_point[..., 0])).sum() / weight.sum()
        log_object = jax.nn.log_softmax(shape @ head["object"])
        kind = -jnp.take_along_axis(log_object, batch["category"][:, None], 1).mean()
        right = (log_object.argmax(-1) == batch["category"]).mean()
        return point + 0.3 * kind, ({"pointnet2": new}, {"point": point, "category": kind, "category_right": right})

    def predict(self, params, stats, batch):
        raise NotImplementedError("the pretrained PointNet++ is scored through GS-CLIP: run stage2.py")


def whitening(views: dict[str, Any], cfg: ClipConfig, seed: int = 0, floor: float = 3e-3) -> np.ndarray:
    """A patch embedding [P,P,3,W] that whitens the patches of the views, under a random rotation.

    Most of a patch's variance is its mean grey; defects are in the small rest. From random kernels a tower needs thousands of
    steps to look past the mean.
    """
    rng, p = np.random.default_rng(seed), cfg.patch
    rows, count, size = views["render"].shape[:3]
    side, patches = size // p, []
    for name in ("render", "depth"):
        for row in rng.integers(rows, size=400):
            view = views[name][row, rng.integers(count)]
            cells = view.reshape(side, p, side, p).transpose(0, 2, 1, 3).reshape(-1, p * p)
            patches.append(cells[(cells < 255).mean(1) > 0.5])
    x = (np.concatenate(patches) / 255 - cfg.mean[0]) / cfg.std[0]
    variance, axes = np.linalg.eigh(np.cov(x.T))
    kept = min(cfg.vision_width, p * p)
    variance, axes = variance[::-1][:kept], axes[:, ::-1][:, :kept]
    turn = np.linalg.qr(rng.standard_normal((cfg.vision_width, kept)))[0]
    kernel = (axes / np.sqrt(variance + floor * variance.sum() / len(variance))) @ turn.T
    return np.repeat(kernel.reshape(p, p, 1, -1) / 3, 3, axis=2).astype(np.float32)


OFFSETS = (  # (row, column) a head looks at, block by block: neighbours first, then farther
    ((0, 1), (1, 0), (0, -1), (-1, 0)),
    ((1, 1), (1, -1), (-1, 1), (-1, -1)),
    ((0, 2), (2, 0), (0, -2), (-2, 0)),
    ((0, 3), (3, 0), (0, -3), (-3, 0)),
)


def look_around(visual: Params, cfg: ClipConfig, seed: int = 0, sharp: float = 1.0) -> Params:
    """The vision tower's parameters with positions that are waves across the grid and heads that each look at one neighbour.

    A small tower that starts from random positions needs long to find out which patches lie side by side. Sines and cosines of
    row and column take the first 4F axes of the width and the patch embedding what is left; a query is its own position moved by
    the head's offset, which a turn of every sine-cosine pair does exactly. After Cordonnier et al. 2020 (attention can convolve)
    and d'Ascoli et al. 2021 (it helps to start there).

    Args:
      visual: of `init_clip`, with the patch embedding of `whitening`.
      sharp: 1 puts three quarters of a head's attention on its neighbour, 2 all of it.
    """
    grid, width, heads = cfg.grid, cfg.vision_width, cfg.vision_heads
    depth = width // heads
    waves = min(8, depth // 4)
    taken = 4 * waves
    rate = np.pi / grid * np.arange(1, 2 * waves, 2)
    phase = np.arange(grid)[:, None] * rate
    line = np.concatenate([np.sin(phase), np.cos(phase)], 1)  # [G, 2F]
    rows, columns = np.repeat(line[:, None], grid, 1), np.repeat(line[None], grid, 0)
    positions = np.zeros((1 + grid**2, width), np.float32)
    positions[1:, :taken] = np.concatenate([rows, columns], -1).reshape(grid**2, taken)

    kernel = np.asarray(visual["patch_embed"], np.float64).reshape(-1, width)
    left, size, _ = np.linalg.svd(kernel, full_matrices=False)
    kept = min(width - taken, int((size > 1e-6 * size[0]).sum()))
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((width - taken, kept)))[0]
    patch_embed = np.zeros_like(kernel)
    patch_embed[:, taken:] = (left[:, :kept] * size[:kept]) @ turn.T

    qkv = np.array(visual["blocks"]["attn"]["qkv_kernel"])  # [L,W,3,H,D]
    qkv[:, :, :2] *= 0.3  # what a patch shows has its say, but less
    strength = np.sqrt(sharp * np.sqrt(depth) / (1 - np.cos(rate)).sum())
    for block, offsets in zip(range(cfg.vision_layers), itertools.cycle(OFFSETS)):
        for head in range(heads):
            query, key = np.zeros((taken, depth)), np.zeros((taken, depth))
            for axis, step in enumerate(offsets[head % len(offsets)]):
                sine = 2 * waves * axis + np.arange(waves)
                cosine, c, s = sine + waves, np.cos(rate * step), np.sin(rate * step)
                query[sine, sine], query[cosine, sine] = c, s
                query[sine, cosine], query[cosine, cosine] = -s, c
                key[sine, sine] = key[cosine, cosine] = 1
            qkv[block, :taken, 0, head], qkv[block, :taken, 1, head] = strength * query, strength * key
    class_embedding = np.array(visual["class_embedding"])
    class_embedding[:taken] = 0  # looks nowhere in particular
    attention = {**visual["blocks"]["attn"], "qkv_kernel": jnp.asarray(qkv, jnp.float32)}
    return {
        **visual,
        "patch_embed": jnp.asarray(patch_embed.reshape(visual["patch_embed"].shape), jnp.float32),
        "pos_embedding": jnp.asarray(positions),
        "class_embedding": jnp.asarray(class_embedding),
        "blocks": {**visual["blocks"], "attn": attention},
    }


def view_batches(
    views: dict[str, Any], captioner, *, batch_size: int, patch: int, keep: int, seed: int, first: int = 0, pairs: int = 12
) -> Iterator[dict]:
    """Endless augmented batches for ClipPretraining, resumable: step s depends on (seed, s) alone.

    Args:
      views: render, depth uint8 [R,V,H,W]; view_mask bool [R,V,H,W]; rugged uint8 [R,V,H,W] (`rugged_views`); category, defect
        lists of R names; twin int [R], the row of the same body without the defect, -1 for sound ones
        (of sound solids alone: each its own).
      captioner: `caption(rng, category, defect, damaged, modality)` -> ids [T], `pair(rng, category)` -> ids [2,T].
      batch_size: B renders and B depth views a step, drawn separately: half defective, then their twins.
      keep: K patches of a view that are encoded: those the object fills, in a random choice where they are more.
      pairs: N different pairs of sentences a step.
    """
    names = sorted(set(views["category"]))
    visible = views["view_mask"].any((2, 3))
    if not visible.any():  # sound solids only: every view will do
        visible = (views["depth"] < 255).any((2, 3))
    rows = np.flatnonzero(visible.any(1) & (views["twin"] >= 0))
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        fields: dict[str, list] = {m + part: [] for m in PICTURES for part in PARTS}
        captions, damaged, view_sure = [], [], []
        for modality in PICTURES:
            drawn: list[list[tuple]] = [[], []]
            for row in rng.choice(rows, batch_size // 2):
                view = rng.choice(np.flatnonzero(visible[row]))
                mask = views["view_mask"][row, view]
                twin = views["twin"][row]
                pictures, (mask, *rugged) = augment(
                    rng, [views[modality][row, view], views[modality][twin, view]],
                    [mask, views["rugged"][row, view], views["rugged"][twin, view]], shade=modality == "render",
                )  # fmt: skip
                cover = _share(pictures[0] < 255, patch)
                kept = np.sort(np.argsort(-np.minimum(cover, 0.25) + 0.02 * rng.random(len(cover)))[:keep]).astype(np.int32)
                share = _share(mask, patch)[kept].astype(np.float32)
                seen = visible_change(*pictures, mask, patch, PLAIN[modality])[kept].astype(np.float32)
                sure = 1 - np.minimum(2 * share, 1) * (1 - seen)
                whole = np.clip((share * seen).sum() * patch**2 / 40, DOUBT, 1)
                geometry = [rugged_patches(x, patch) for x in rugged]
                drawn[0].append((row, pictures[0], kept, share, sure, geometry[0], whole))
                drawn[1].append((twin, pictures[1], kept, np.zeros_like(share), np.ones_like(share), geometry[1], 1.0))
            for row, image, kept, share, sure, rugged, whole in drawn[0] + drawn[1]:
                is_damaged = int(share.sum() * patch**2 >= 4)
                for part, value in zip(PARTS, (image, kept, share, sure, rugged), strict=True):
                    fields[modality + part].append(value)
                view_sure.append(whole)
                captions.append(captioner.caption(rng, views["category"][row], views["defect"][row], is_damaged, modality))
                damaged.append(is_damaged)
        yield {
            **{name: np.stack(value) for name, value in fields.items()},
            "caption": np.stack(captions),
            "pair": np.stack([captioner.pair(rng, rng.choice(names)) for _ in range(pairs)]),
            "pair_of": rng.integers(pairs, size=2 * batch_size).astype(np.int32),
            "damaged": np.array(damaged, np.int32),
            "view_sure": np.array(view_sure, np.float32),
        }
        step += 1


PLAIN = {"render": 24.0, "depth": 8.0}  # a change of so many grey levels is plain to see
DOUBT = 0.15  # how much a defect counts that cannot be seen


def visible_change(image: np.ndarray, twin: np.ndarray, mask: np.ndarray, patch: int, plain: float) -> np.ndarray:
    """How visible the defect is in each patch, [P] from DOUBT to 1: the mean change of grey against the twin over the masked
    pixels, as a share of `plain`; 1 where nothing is masked."""
    change = np.abs(image.astype(np.float32) - twin) * mask
    masked = _share(mask, patch)
    seen = _share(change, patch) / np.maximum(masked, 1e-6) / plain
    return np.where(masked > 0, np.clip(seen, DOUBT, 1), 1)


def twins(rows: list[dict]) -> np.ndarray:
    """For every row of an index of the embedded data set (name, category, label) the row of the sound object of its number."""
    sound = {(row["category"], int(row["name"].split("_")[0]) // 2): i for i, row in enumerate(rows) if not row["label"]}
    return np.array([sound.get((r["category"], int(r["name"].split("_")[0]) // 2), -1) if r["label"] else -1 for r in rows])


def _share(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Mean of the pixels [S,S] of each patch (of bools, the share of true ones), [P] row by row."""
    side = pixels.shape[0] // patch
    return pixels.reshape(side, patch, side, patch).mean((1, 3)).reshape(-1)


def augment(
    rng: np.random.Generator, views: list[np.ndarray], maps: list[np.ndarray], shade: bool, tilt: float = 20.0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A nearer or farther look that may cut the object, quarter turns and a tilt of up to `tilt` degrees, mirroring, and for
    shaded views a change of brightness.

    The same for all `views`, uint8 [S,S] with background 255, which are resampled linearly, and all `maps`, bool or uint8 [S,S],
    which keep their values. Where the look goes does not depend on the maps: a crop round the defect teaches "the middle of the
    picture is defective".
    """
    size = views[0].shape[0]
    side = int(size * rng.uniform(0.6, 1.15))
    centre = []
    for axis in (0, 1):  # column, row
        filled = np.flatnonzero((views[0] < 255).any(axis))
        low, high = (filled[0], filled[-1]) if len(filled) else (0, size - 1)
        slack = max(abs(side - (high - low)) / 2, 0.15 * side)
        start = np.clip((low + high - side) / 2 + rng.uniform(-slack, slack), -size // 2, size)
        centre.append(start + side / 2)
    angle = np.deg2rad(90 * rng.integers(4) + rng.uniform(-tilt, tilt))
    flip, gain, lift = 1 - 2 * (rng.random() < 0.5), rng.uniform(0.8, 1.15), rng.uniform(-12, 12)
    # A place (x, y) of the result, from its middle, shows centre + turn @ (x, y) of the view.
    turn = side / size * np.array([[np.cos(angle) * flip, -np.sin(angle)], [np.sin(angle) * flip, np.cos(angle)]])
    offset = np.array(centre) - turn @ [size / 2, size / 2]
    affine = (*turn[0], offset[0], *turn[1], offset[1])

    def look(picture: np.ndarray, how: Image.Resampling, outside: int) -> np.ndarray:
        found = Image.fromarray(picture).transform((size, size), Image.Transform.AFFINE, affine, how, fillcolor=outside)
        return np.asarray(found)

    seen = [look(view, Image.Resampling.BILINEAR, 255) for view in views]
    if shade:
        seen = [np.where(x < 255, np.rint(np.clip(x * gain + lift, 0, 254)), 255).astype(np.uint8) for x in seen]
    nearest = Image.Resampling.NEAREST
    moved = [look(x.view(np.uint8), nearest, 0).view(bool) if x.dtype == bool else look(x, nearest, 255) for x in maps]
    return seen, moved


def cloud_batches(xyz, mask, category, *, batch_size: int, points: int, seed: int, first: int = 0) -> Iterator[dict]:
    """Endless batches for PointPretraining from scored points xyz [R,M,3], mask [R,M], category int [R]; randomly turned."""
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(xyz), size=batch_size)
        clouds, labels = [], []
        for row in rows:
            chosen = rng.choice(xyz.shape[1], points, replace=False)
            cloud = xyz[row, chosen] - xyz[row, chosen].mean(0)
            cloud /= np.linalg.norm(cloud, axis=1).max()
            turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
            clouds.append((cloud @ turn).astype(np.float32))
            labels.append(mask[row, chosen].astype(np.int32))
        yield {"cloud": np.stack(clouds), "defective": np.stack(labels), "category": np.asarray(category, np.int32)[rows]}
        step += 1
