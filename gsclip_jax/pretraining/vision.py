"""Training the small embedded models from nothing: a CLIP on captioned views, and a PointNet++ start on clouds.

`fit` trains them like any stage (method.Stage), by the losses here. Their batches are made in `views.py`, what the CLIP starts as
in `start.py`. Views come from the pretraining categories alone, which no experiment trains or tests on. Render views go through
the V-V path and depth views through the plain path, as GS-CLIP will use them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.method import Params, Stats
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_image, encode_tokens, init_clip, preprocess_views
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.pointnet2 import PointNet2Config, init_pointnet2, pointnet2
from gsclip_jax.models.precision import product
from gsclip_jax.models.similarity import TEMPERATURE
from gsclip_jax.pretraining.views import PICTURES

SCALES = (1.0, 3.0)  # pixels
ROUGHNESS = 3 * (2 * len(SCALES) + 2)


class ClipPretraining:
    """Two losses. `vision_loss`: linear heads learn which patches and which views are defective, and how rough each patch is next
    to its surroundings, which teaches the vision tower to see. `contrastive_loss`: image-text contrast on captions, and
    sound-or-damaged contrasts of whole views and of patches against a pair of sentences.

    Together from the start, the noise of the untrained sentences drowns the patches' signal: nothing is learned.

    A batch holds twins, defective views first and behind them the same views of the same bodies without the defect: what differs
    between two twins is the defect alone.

    Batch: render, depth uint8 [B,H,W]; render_keep, depth_keep int32 [B,K] patches that are encoded (most of a view is
    empty); render_mask, depth_mask float32 [B,K] defective share of each; render_sure, depth_sure float32 [B,K] how much each
    counts (what cannot be told from the sound twin teaches little); render_roughness, depth_roughness float32 [B,P,2] how
    rough the surface in each patch is (`patch_roughness`, all patches of the grid); view_sure float32 [2B] the same for whole
    views; caption int32 [2B,T] (renders first); pair int32 [N,2,T] sound and damaged sentences, pair_of int32 [2B] which pair
    a view is held against; damaged int32 [2B].
    """

    def __init__(self, cfg: ClipConfig, defects: bool = True):
        """`defects` false: from sound solids alone, by roughness and captions; nothing says what a defect is."""
        self.cfg, self.defects = cfg, defects

    def init(self, key):
        """The CLIP, and linear heads that are thrown away: they tell patches and views apart before the sentences can."""
        width = self.cfg.embed_dim
        head = {name: {"kernel": jnp.zeros((width, 2)), "bias": jnp.zeros(2)} for name in ("patch", "view")}
        rough = jax.random.normal(jax.random.fold_in(key, 1), (width, ROUGHNESS)) * width**-0.5
        head["rough"] = {"kernel": rough, "bias": jnp.zeros(ROUGHNESS)}
        return {"clip": init_clip(key, self.cfg), "head": head}, {}

    def _encoded(self, trainable: Params, batch):
        """(CLIP, patch tokens [B,K,E] of both streams, global features [2B,E], the heads' loss and its terms)."""
        clip, head = clip_module(self.cfg, trainable["clip"]), trainable["head"]
        render = encode_image(clip, preprocess_views(self.cfg, batch["render"]), vv=True, keep=batch["render_keep"])
        depth = encode_image(clip, preprocess_views(self.cfg, batch["depth"]), keep=batch["depth_keep"])
        tokens = [stream.tokens[-1][:, 1:].astype(jnp.float32) for stream in (render, depth)]  # [B,K,E] each
        image = normalise(jnp.concatenate([render.cls, depth.cls]))  # [2B,E]
        total, terms = 0.0, {}
        if self.defects:
            total, terms = self._told_apart(head, tokens, image, batch)
        return clip, tokens, image, total, terms

    def vision_loss(self, trainable: Params, frozen: Params, stats: Stats, batch, key):
        """What the linear heads make of patches and views, and the roughness of the patches."""
        _, tokens, _, total, terms = self._encoded(trainable, batch)
        found = [_linear(trainable["head"]["rough"], x) for x in tokens]
        rough = [roughness_loss(f, batch[name], batch[name + "_roughness"], batch[name + "_keep"], self.cfg.patch)
                 for f, name in zip(found, PICTURES, strict=True)]  # fmt: skip
        return total + sum(rough) / 2, (stats, {**terms, "rough": sum(rough) / 2})

    def contrastive_loss(self, trainable: Params, frozen: Params, stats: Stats, batch, key):
        """Image-text contrast on captions, and sound-or-damaged contrasts of views and patches."""
        clip, tokens, image, total, terms = self._encoded(trainable, batch)
        caption = normalise(encode_tokens(clip, batch["caption"]))  # [2B,E]
        # Equal captions are equally right answers: the target spreads over them.
        same = (batch["caption"][:, None] == batch["caption"][None]).all(-1).astype(jnp.float32)
        target = same / same.sum(-1, keepdims=True)
        logits = product("be,ce->bc", image, caption) * jnp.exp(jnp.minimum(trainable["clip"]["logit_scale"], jnp.log(100.0)))
        contrast = (_soft_cross_entropy(logits, target) + _soft_cross_entropy(logits.T, target)) / 2
        total, terms = total + 0.3 * contrast, {**terms, "contrast": contrast}
        if self.defects:
            patches = normalise(jnp.concatenate(tokens))  # [2B,K,E]
            share, sure = (jnp.concatenate([batch[name + part] for name in PICTURES]) for part in ("_mask", "_sure"))  # [2B,K]
            pair = normalise(encode_tokens(clip, batch["pair"]))[batch["pair_of"]]  # [2B,2,E]
            logits = product("be,bke->bk", image, pair) / TEMPERATURE
            condition = cross_entropy(logits, batch["damaged"], batch["view_sure"])
            local = patch_loss(product("bpe,bke->bpk", patches, pair) / TEMPERATURE, share, sure)
            total, terms = total + 0.5 * condition + local, {**terms, "condition": condition, "local": local}
        return total, (stats, terms)

    @staticmethod
    def _told_apart(head, tokens: list[jax.Array], image: jax.Array, batch) -> tuple[jax.Array, dict]:
        """What the linear heads make of patches and of whole views."""
        evidence = [_linear(head["patch"], normalise(x)) / TEMPERATURE for x in tokens]
        direct = [patch_loss(e, *given) + twin_loss(e, *given) for e, given in
                  ((e, (batch[name + "_mask"], batch[name + "_sure"])) for e, name in zip(evidence, PICTURES, strict=True))]
        logits = _linear(head["view"], image) / TEMPERATURE
        whole = cross_entropy(logits, batch["damaged"], batch["view_sure"])
        return sum(direct) / 2 + 0.5 * whole, {"render": direct[0], "depth": direct[1], "whole": whole}


def _linear(params: Params, x: jax.Array) -> jax.Array:
    return product("...e,ek->...k", x, params["kernel"]) + params["bias"]


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


def roughness(images: jax.Array, surface: jax.Array, patch: int) -> tuple[jax.Array, jax.Array]:
    """How rough each patch is, in grey and in the cloud itself, alone, next to its neighbours and to the whole view.

    Defects show in it only in part, but a tower that can tell it has learned to look at what is small, and to see the shape in
    the shading.

    Args:
      images: uint8 [B,S,S], background 255.
      surface: [B,P,2] of `patch_roughness`.

    Returns: logarithms of mean and largest difference between neighbouring SCALES in the patch and `surface`, then the same less
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
        both = lambda x: product("ij,bjk,lk->bil", kernel, x, kernel)  # noqa: E731
        return both(grey * inside) / jnp.maximum(both(inside), 1e-3)

    def cells(x):
        return x.reshape(-1, side, patch, side, patch)

    levels, filled, found = [grey, *map(blurred, SCALES)], cells(inside).sum((2, 4)), []
    for fine, coarse in zip(levels[:-1], levels[1:], strict=True):
        change = cells(jnp.abs(fine - coarse) * inside)
        found += [jnp.log(change.sum((2, 4)) / (filled + 1e-3) + 2e-3), jnp.log(change.max((2, 4)) + 4e-3)]
    own = jnp.concatenate([jnp.stack(found, -1) + 4, surface.reshape(-1, side, side, 2)], -1)  # about zero on average
    real = (filled >= 10).astype(jnp.float32)[..., None]

    def ring(x):
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") - x

    beside = ring(own * real) / jnp.maximum(ring(real), 1)
    everywhere = (own * real).sum((1, 2), keepdims=True) / jnp.maximum(real.sum((1, 2), keepdims=True), 1)
    out = jnp.concatenate([own, (own - beside) / 0.7, (own - everywhere) / 0.7], -1)
    return out.reshape(len(images), side**2, -1), real.reshape(len(images), -1)


def roughness_loss(found: jax.Array, images: jax.Array, surface: jax.Array, keep: jax.Array, patch: int) -> jax.Array:
    """Mean squared error of predicted roughness [B,K,ROUGHNESS] over the kept patches that show the object."""
    target, real = (jax.lax.stop_gradient(x) for x in roughness(images, surface, patch))
    target = jnp.take_along_axis(target, keep[..., None], 1)
    real = jnp.take_along_axis(real, keep, 1)[..., None]
    return (real * jnp.square(found - target)).sum() / (real.sum() * ROUGHNESS)


class PointPretraining:
    """PointNet++ learns which points are defective and which solid it sees: the start that S3DIS weights give at full size.

    Batch: cloud float32 [B,N,3] in the unit sphere, defective int32 [B,N], category int32 [B].
    """

    def __init__(self, cfg: PointNet2Config, categories: int):
        self.cfg, self.categories = cfg, categories

    def init(self, key):
        first, second, third = jax.random.split(key, 3)
        params, stats = init_pointnet2(first, self.cfg)
        head = {
            "point": jax.random.normal(second, (128, 2)) * 128**-0.5,
            "object": jax.random.normal(third, (512, self.categories)) * 512**-0.5,
        }
        return {"pointnet2": params, "head": head}, {"pointnet2": stats}

    def loss(self, trainable: Params, frozen: Params, stats: Stats, batch, key):
        net, head = trainable["pointnet2"], trainable["head"]
        (points, shape), new, _ = pointnet2(net, stats["pointnet2"], batch["cloud"], train=True, cfg=self.cfg)
        log_point = jax.nn.log_softmax(product("bnc,ck->bnk", points, head["point"]))
        target = batch["defective"].astype(jnp.float32)
        weight = 1 + 9 * target
        point = -(weight * jnp.where(target > 0, log_point[..., 1], log_point[..., 0])).sum() / weight.sum()
        log_object = jax.nn.log_softmax(product("bs,sk->bk", shape, head["object"]))
        kind = -jnp.take_along_axis(log_object, batch["category"][:, None], 1).mean()
        right = (log_object.argmax(-1) == batch["category"]).mean()
        return point + 0.3 * kind, ({"pointnet2": new}, {"point": point, "category": kind, "category_right": right})
