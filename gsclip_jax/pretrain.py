"""Training the small embedded models from nothing: a CLIP on captioned views, and a PointNet++ start on clouds.

Both are Methods, so `fit` trains them like any stage. Views come from the pretraining categories alone, which no experiment
trains or tests on. Render views go through the V-V path and depth views
through the plain path, as GS-CLIP will use them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.clip import ClipConfig, clip_module, encode_image, encode_tokens, init_clip, preprocess_views
from gsclip_jax.method import Stage
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
    (what cannot be told from the sound twin teaches little); view_sure float32 [2B] the same for whole views; caption int32
    [2B,T] (renders first); pair int32 [N,2,T] sound and damaged sentences, pair_of int32 [2B] which pair a view is held against;
    damaged int32 [2B].
    """

    def __init__(self, cfg: ClipConfig, stages: tuple[Stage, ...] = ()):
        self.name, self.cfg, self.stages = "clip_pretraining", cfg, stages

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
        evidence = [(normalise(x) @ head["patch"]["kernel"] + head["patch"]["bias"]) / TEMPERATURE for x in tokens]
        direct = [patch_loss(e, *given) + twin_loss(e, *given) for e, given in
                  ((e, (batch[name + "_mask"], batch[name + "_sure"])) for e, name in zip(evidence, PICTURES, strict=True))]
        image = normalise(jnp.concatenate([render.cls, depth.cls]))  # [2B,E]
        damaged, view_sure = batch["damaged"], batch["view_sure"]
        whole = cross_entropy((image @ head["view"]["kernel"] + head["view"]["bias"]) / TEMPERATURE, damaged, view_sure)
        sight = sum(direct) / 2 + 0.5 * whole
        terms = {"render": direct[0], "depth": direct[1], "whole": whole}
        if stage == "sight":
            found = [x @ head["rough"]["kernel"] + head["rough"]["bias"] for x in tokens]
            rough = [roughness_loss(f, batch[name], batch[name + "_keep"], self.cfg.patch)
                     for f, name in zip(found, PICTURES, strict=True)]  # fmt: skip
            return sight + sum(rough) / 2, (stats, {**terms, "rough": sum(rough) / 2})

        patches = normalise(jnp.concatenate(tokens))  # [2B,K,E]
        share, sure = (jnp.concatenate([batch[name + part] for name in PICTURES]) for part in ("_mask", "_sure"))  # [2B,K]
        caption = normalise(encode_tokens(clip, batch["caption"]))  # [2B,E]
        pair = normalise(encode_tokens(clip, batch["pair"]))[batch["pair_of"]]  # [2B,2,E]

        # Equal captions are equally right answers: the target spreads over them.
        same = (batch["caption"][:, None] == batch["caption"][None]).all(-1).astype(jnp.float32)
        target = same / same.sum(-1, keepdims=True)
        logits = image @ caption.T * jnp.exp(jnp.minimum(trainable["clip"]["logit_scale"], jnp.log(100.0)))
        contrast = (_soft_cross_entropy(logits, target) + _soft_cross_entropy(logits.T, target)) / 2

        condition = cross_entropy(jnp.einsum("be,bke->bk", image, pair) / TEMPERATURE, damaged, view_sure)
        local = patch_loss(jnp.einsum("bpe,bke->bpk", patches, pair) / TEMPERATURE, share, sure)
        total = 0.3 * contrast + 0.5 * condition + local + sight
        return total, (stats, {**terms, "contrast": contrast, "condition": condition, "local": local})

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
SCALES = (0.7, 1.5, 3.0, 6.0)  # pixels
ROUGHNESS = 6 * len(SCALES)


def roughness(images: jax.Array, patch: int) -> tuple[jax.Array, jax.Array]:
    """How much the grey of each patch varies, finely and coarsely, alone, next to its neighbours and to the whole view.

    Defects show in it only in part, but a tower that can tell it has learned to look at what is small.

    Args:
      images: uint8 [B,S,S], background 255.

    Returns: logarithms of mean and largest difference between neighbouring SCALES in the patch, then the same less its
      neighbours' and less the view's [B,P,ROUGHNESS]; float [B,P], 1 where the object fills at least ten pixels of the patch.
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
    own = jnp.stack(found, -1) + 4  # about zero on average
    real = (filled >= 10).astype(jnp.float32)[..., None]

    def ring(x):
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") - x

    beside = ring(own * real) / jnp.maximum(ring(real), 1)
    everywhere = (own * real).sum((1, 2), keepdims=True) / jnp.maximum(real.sum((1, 2), keepdims=True), 1)
    out = jnp.concatenate([own, (own - beside) / 0.7, (own - everywhere) / 0.7], -1)
    return out.reshape(len(images), side**2, -1), real.reshape(len(images), -1)


def roughness_loss(found: jax.Array, images: jax.Array, keep: jax.Array, patch: int) -> jax.Array:
    """Mean squared error of predicted roughness [B,K,ROUGHNESS] over the kept patches that show the object."""
    target, real = (jax.lax.stop_gradient(x) for x in roughness(images, patch))
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


def view_batches(
    views: dict[str, Any], captioner, *, batch_size: int, patch: int, keep: int, seed: int, first: int = 0, pairs: int = 12
) -> Iterator[dict]:
    """Endless augmented batches for ClipPretraining, resumable: step s depends on (seed, s) alone.

    Args:
      views: render, depth uint8 [R,V,H,W]; view_mask bool [R,V,H,W]; category, defect lists of R names; twin int [R], the row of
        the same body without the defect, -1 for sound ones.
      captioner: `caption(rng, category, defect, damaged, modality)` -> ids [T], `pair(rng, category)` -> ids [2,T].
      batch_size: B renders and B depth views a step, drawn separately: half defective, then their twins.
      keep: K patches of a view that are encoded: those the object fills, in a random choice where they are more.
      pairs: N different pairs of sentences a step.
    """
    names = sorted(set(views["category"]))
    visible = views["view_mask"].any((2, 3))
    rows = np.flatnonzero(visible.any(1) & (views["twin"] >= 0))
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        fields: dict[str, list] = {f"{m}{part}": [] for m in PICTURES for part in ("", "_keep", "_mask", "_sure")}
        captions, damaged, view_sure = [], [], []
        for modality in PICTURES:
            drawn: list[list[tuple]] = [[], []]
            for row in rng.choice(rows, batch_size // 2):
                view = rng.choice(np.flatnonzero(visible[row]))
                mask = views["view_mask"][row, view]
                twin = views["twin"][row]
                images = augment(rng, [views[modality][row, view], views[modality][twin, view], mask], shade=modality == "render")
                cover = _share(images[0] < 255, patch)
                kept = np.sort(np.argsort(-np.minimum(cover, 0.25) + 0.02 * rng.random(len(cover)))[:keep]).astype(np.int32)
                share = _share(images[2], patch)[kept].astype(np.float32)
                seen = visible_change(*images, patch, PLAIN[modality])[kept].astype(np.float32)
                sure = 1 - np.minimum(2 * share, 1) * (1 - seen)
                whole = np.clip((share * seen).sum() * patch**2 / 40, DOUBT, 1)
                drawn[0].append((row, images[0], kept, share, sure, whole))
                drawn[1].append((twin, images[1], kept, np.zeros_like(share), np.ones_like(share), 1.0))
            for row, image, kept, share, sure, whole in drawn[0] + drawn[1]:
                is_damaged = int(share.sum() * patch**2 >= 4)
                for part, value in (("", image), ("_keep", kept), ("_mask", share), ("_sure", sure)):
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


def augment(rng: np.random.Generator, pictures: list[np.ndarray], shade: bool) -> list[np.ndarray]:
    """A nearer or farther look that may cut the object, quarter turns, mirroring, and for shaded views a change of brightness.

    The same for all `pictures`, uint8 views [S,S] and bool masks [S,S]. Where the look goes does not depend on the masks: a
    crop round the defect teaches "the middle of the picture is defective".
    """
    size = pictures[0].shape[0]
    side = int(size * rng.uniform(0.6, 1.15))
    window = []
    for axis in (1, 0):
        filled = np.flatnonzero((pictures[0] < 255).any(axis))
        low, high = (filled[0], filled[-1]) if len(filled) else (0, size - 1)
        slack = max(abs(side - (high - low)) / 2, 0.15 * side)
        window.append(int(np.clip((low + high - side) / 2 + rng.uniform(-slack, slack), -size // 2, size)))
    turns, flip, gain, lift = int(rng.integers(4)), rng.random() < 0.5, rng.uniform(0.8, 1.15), rng.uniform(-12, 12)
    # Pixel i of the result shows pixel (i + 0.5) side / size - 0.5 of the window; outside of the view is background.
    at = (np.arange(size) + 0.5) * side / size - 0.5
    out = []
    for picture in pictures:
        flag = picture.dtype == bool
        values = 255 - 255 * picture.astype(np.float32) if flag else picture.astype(np.float32)
        values = np.rot90(_sample(_sample(values, at + window[0]).T, at + window[1]).T, turns)
        values = values[:, ::-1] if flip else values
        if flag:
            out.append(values < 127.5)
            continue
        if shade:
            values = np.where(values < 254.5, np.clip(values * gain + lift, 0, 254), 255)
        out.append(np.rint(values).astype(np.uint8))
    return out


def _sample(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows [S,...] at fractional positions, linearly; background (255) outside."""
    low = np.floor(at).astype(int)
    share = (at - low).astype(np.float32)[:, None]
    padded = np.concatenate([rows, np.full((1, *rows.shape[1:]), 255, rows.dtype)])
    pick = [np.where((i >= 0) & (i < len(rows)), i, len(rows)) for i in (low, low + 1)]
    return padded[pick[0]] * (1 - share) + padded[pick[1]] * share


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
