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
from PIL import Image

from gsclip_jax.clip import ClipConfig, clip_module, encode_image, encode_tokens, init_clip, preprocess_views
from gsclip_jax.method import Stage
from gsclip_jax.pointnet2 import PointNet2Config, init_pointnet2, pointnet2

TAU = 0.07  # the temperature GS-CLIP's scores use


def unit(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum((x * x).sum(-1, keepdims=True), 1e-12))


class ClipPretraining:
    """Two stages. "sight": a linear head learns which patches are defective, which teaches the vision tower to see them. "words":
    image-text contrast on captions, and sound-or-damaged contrasts of whole views and of patches against a pair of sentences.

    Together from the start, the noise of the untrained sentences drowns the patches' signal: nothing is learned.

    Batch: render, depth uint8 [B,H,W]; render_mask, depth_mask float32 [B,P] defective share of every patch; caption int32 [2B,T]
    (renders first); pair int32 [K,2,T] sound and damaged sentences, pair_of int32 [2B] which pair a view is held against;
    damaged int32 [2B].
    """

    def __init__(self, cfg: ClipConfig, stages: tuple[Stage, ...] = ()):
        self.name, self.cfg, self.stages = "clip_pretraining", cfg, stages

    def init(self, key):
        """The CLIP, and a linear head that is thrown away: it tells patches apart before the sentences can."""
        return {
            "clip": init_clip(key, self.cfg),
            "head": {"kernel": jnp.zeros((self.cfg.embed_dim, 2)), "bias": jnp.zeros(2)},
        }, {}

    def features(self, stage, params, stats, batch):
        return {}

    def loss(self, stage, trainable, frozen, stats, batch, key):
        clip = clip_module(self.cfg, trainable["clip"])
        render = encode_image(clip, preprocess_views(self.cfg, batch["render"]), vv=True)
        depth = encode_image(clip, preprocess_views(self.cfg, batch["depth"]))
        tokens = jnp.concatenate([render.tokens[-1], depth.tokens[-1]])[:, 1:]  # [2B,P,E]
        share = jnp.concatenate([batch["render_mask"], batch["depth_mask"]])  # [2B,P]
        head = trainable["head"]
        evidence = tokens.astype(jnp.float32) @ head["kernel"] + head["bias"]
        direct = patch_loss(evidence, share)
        gap = evidence[..., 1] - evidence[..., 0]
        hit, miss = share > 0.3, share == 0
        apart = (gap * hit).sum() / jnp.maximum(hit.sum(), 1) - (gap * miss).sum() / jnp.maximum(miss.sum(), 1)
        if stage == "sight":
            return direct, (stats, {"direct": direct, "apart": apart})

        image = unit(jnp.concatenate([render.cls, depth.cls]))  # [2B,E]
        patches = unit(tokens)
        caption = unit(encode_tokens(clip, batch["caption"]))  # [2B,E]
        pair = unit(encode_tokens(clip, batch["pair"]))[batch["pair_of"]]  # [2B,2,E]

        # Equal captions are equally right answers: the target spreads over them.
        same = (batch["caption"][:, None] == batch["caption"][None]).all(-1).astype(jnp.float32)
        target = same / same.sum(-1, keepdims=True)
        logits = image @ caption.T * jnp.exp(jnp.minimum(trainable["clip"]["logit_scale"], jnp.log(100.0)))
        contrast = (_soft_cross_entropy(logits, target) + _soft_cross_entropy(logits.T, target)) / 2

        view = jnp.einsum("be,bke->bk", image, pair) / TAU
        condition = -jnp.take_along_axis(jax.nn.log_softmax(view), batch["damaged"][:, None], 1).mean()
        local = patch_loss(jnp.einsum("bpe,bke->bpk", patches, pair) / TAU, share)
        total = 0.3 * contrast + 0.5 * condition + local + 2 * direct
        terms = {"contrast": contrast, "condition": condition, "local": local, "direct": direct, "apart": apart}
        return total, (stats, terms)

    def predict(self, params, stats, batch):
        raise NotImplementedError("the pretrained CLIP is scored through GS-CLIP: run stage2.py")


def _soft_cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    return -(target * jax.nn.log_softmax(logits)).sum(-1).mean()


def patch_loss(logits_bpk: jax.Array, share_bp: jax.Array) -> jax.Array:
    """Weighted cross-entropy plus Dice of patches [B,P,2] against the defective share [B,P] of their pixels."""
    target = jnp.minimum(2 * share_bp, 1.0)  # half a patch of defect is a defective patch
    log_p = jax.nn.log_softmax(logits_bpk)
    weight = 1 + 7 * target  # defects cover a few per cent
    entropy = -(weight * (target * log_p[..., 1] + (1 - target) * log_p[..., 0])).sum() / weight.sum()
    p = jnp.exp(log_p[..., 1])
    any_defect = (target.sum(-1) > 0).astype(jnp.float32)
    dice = 1 - 2 * (p * target).sum(-1) / (p.sum(-1) + target.sum(-1) + 1e-6)
    return entropy + (dice * any_defect).sum() / (any_defect.sum() + 1e-6)


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


def view_batches(
    views: dict[str, Any], captioner, *, batch_size: int, patch: int, seed: int, first: int = 0, pairs: int = 12
) -> Iterator[dict]:
    """Endless augmented batches for ClipPretraining, resumable: step s depends on (seed, s) alone.

    Args:
      views: render, depth uint8 [R,V,H,W]; view_mask bool [R,V,H,W]; category, defect lists of R names.
      captioner: `caption(rng, category, defect, damaged, modality)` -> ids [T], `pair(rng, category)` -> ids [2,T].
      batch_size: B renders and B depth views a step, drawn separately.
      pairs: K different pairs of sentences a step.
    """
    rows, count = views["render"].shape[:2]
    names = sorted(set(views["category"]))
    damaged_views = [np.flatnonzero(mask) for mask in views["view_mask"].any((2, 3))]
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        fields: dict[str, list] = {name: [] for name in ("render", "depth", "render_mask", "depth_mask")}
        captions, damaged = [], []
        for modality in ("render", "depth"):
            for row in rng.integers(rows, size=batch_size):
                # Defects are seen from few sides: most draws of a defective object take such a view.
                seen = damaged_views[row]
                view = rng.choice(seen) if len(seen) and rng.random() < 0.8 else rng.integers(count)
                image, mask = augment(rng, views[modality][row, view], views["view_mask"][row, view], shade=modality == "render")
                side = image.shape[0] // patch
                share = mask.reshape(side, patch, side, patch).mean((1, 3)).reshape(-1)
                is_damaged = int(mask.sum() >= 4)
                fields[modality].append(image)
                fields[modality + "_mask"].append(share.astype(np.float32))
                captions.append(captioner.caption(rng, views["category"][row], views["defect"][row], is_damaged, modality))
                damaged.append(is_damaged)
        yield {
            **{name: np.stack(value) for name, value in fields.items()},
            "caption": np.stack(captions),
            "pair": np.stack([captioner.pair(rng, rng.choice(names)) for _ in range(pairs)]),
            "pair_of": rng.integers(pairs, size=2 * batch_size).astype(np.int32),
            "damaged": np.array(damaged, np.int32),
        }
        step += 1


def augment(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, shade: bool) -> tuple[np.ndarray, np.ndarray]:
    """A closer look, quarter turns, mirroring, and for shaded views a change of brightness; uint8 [S,S] and bool [S,S].

    The closer look is a square of half to all of the view, around a defective pixel where there is one, else around any pixel of
    the object: defects are then seen at many sizes.
    """
    size = image.shape[0]
    side = int(rng.integers(size // 2, size + 1))
    rows, columns = np.nonzero(mask if mask.any() and rng.random() < 0.8 else image < 255)
    if len(rows) and side < size:
        pick = rng.integers(len(rows))
        top, left = (
            int(np.clip(centre - rng.integers(side // 5, side - side // 5), 0, size - side))
            for centre in (rows[pick], columns[pick])
        )
        near = (np.arange(size) * side) // size
        mask = mask[top : top + side, left : left + side][near][:, near]
        cut = Image.fromarray(image[top : top + side, left : left + side])
        image = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))
    turns = int(rng.integers(4))
    image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    if rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if shade:
        inside = image < 255
        level = image.astype(np.float32) * rng.uniform(0.8, 1.15) + rng.uniform(-12, 12)
        image = np.where(inside, np.clip(level, 0, 254), 255).astype(np.uint8)
    return image, mask


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
