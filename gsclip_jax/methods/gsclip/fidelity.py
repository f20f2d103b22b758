"""Every departure of the released code from the paper, one switch each, on top of `model.py` (the table: docs/fidelity.md)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, Params, Stats
from gsclip_jax.methods.gsclip import losses
from gsclip_jax.methods.gsclip.config import Config
from gsclip_jax.methods.gsclip.model import GsClip
from gsclip_jax.methods.gsclip.prompts import deep_prompts
from gsclip_jax.methods.gsclip.srm import srm
from gsclip_jax.models import views
from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.models.smoothing import Smoothing, smooth
from gsclip_jax.models.views import Evidence


@dataclass(frozen=True)
class Switches:
    """Where paper and released code part. The defaults are the paper's."""

    own_depth_tower: bool = False  # released: the depth encoder has weights of its own (random ones, as it is copied too early)
    lora_trains: bool = True  # released: its forward pass runs without gradients
    srm_tokens: str = "all"  # released: "cls", the render stream's patch tokens stay the local features
    stage2_losses: str = "all"  # released: "point_view", point Dice + per-view cross-entropy + consistency
    weight_by_score: bool = True  # released: scores only choose, the prototypes get no gradient
    mixed_views: bool = False  # released: views are regrouped across objects
    consistency_axis: int = -1  # released: 1, the views
    stage2_prompts_train: bool = False  # released: batch statistics in stage 2's frozen prompt learner
    test_in_train_mode: bool = False  # released: batch statistics and dropout at test time
    depth_through_render: bool = False  # released, Real3D-AD and Anomaly-ShapeNet: depth views pass the render encoder at test
    round_deep_prompts: bool = False  # released: to float16
    dice_per_row: bool = False  # released, one object a batch
    dice_padding: bool = False  # released: empty cells count in the point Dice, with probability 0 of either class
    normalise_fused: bool = True  # released: the fused features are compared with the text as they are
    smooth_storage: bool = False  # released: Gaussian over the storage order also of unorganised scans
    score_padding: bool = False  # released: empty cells keep what the smoothing spills into them, and the maximum counts it


RELEASED = Switches(
    own_depth_tower=True, lora_trains=False, srm_tokens="cls", stage2_losses="point_view", weight_by_score=False,
    mixed_views=True, consistency_axis=1, stage2_prompts_train=True, test_in_train_mode=True, round_deep_prompts=True,
    dice_per_row=True, dice_padding=True, normalise_fused=False, smooth_storage=True, score_padding=True,
)  # fmt: skip


class Switched(GsClip):
    """GS-CLIP with departures of the released code."""

    def __init__(self, switches: Switches, cfg: Config, clip: ClipConfig, net: PointNet2Config,
                 sentences: tuple[list[int], ...] = ()):  # fmt: skip
        self.switches = switches
        self.alone = not (switches.mixed_views or switches.dice_per_row or switches.stage2_prompts_train)
        if switches.own_depth_tower:
            self.loads = ("clip", "clip_depth")
        if switches.srm_tokens == "cls" and cfg.model.streams == "both":
            self.reads_depth = "cls"
        super().__init__(cfg, clip, net, sentences)
        self.gddm = replace(self.gddm, weight_by_score=switches.weight_by_score)

    def with_remat(self, remat: bool) -> Switched:
        return Switched(self.switches, self.cfg, replace(self.clip, remat=remat), self.net, self.sentences)

    def folded(self, params: Params) -> Params:
        dropped = self.switches.test_in_train_mode  # dropout on the factors' input: they cannot be added to the weights
        return params if dropped else super().folded(params)

    # ---- text

    def deep_prompts(self, params: Params) -> jax.Array | None:
        return deep_prompts(params["prompts"], rounded=self.switches.round_deep_prompts)

    # ---- views

    def depth_tower(self, params: Params) -> Params:
        return params["clip_depth" if self.switches.own_depth_tower else "clip"]["visual"]

    def fused_tokens(self, params: Params, render: jax.Array, depth: jax.Array) -> jax.Array:
        if self.cfg.model.streams != "both":
            return super().fused_tokens(params, render, depth)
        unit = normalise if self.switches.normalise_fused else lambda x: x
        if self.switches.srm_tokens == "cls":
            fused, _ = srm(params["srm"], render[..., :1, :], depth[..., :1, :], normalise=False)
            return jnp.concatenate([unit(fused), render[..., 1:, :]], axis=-2)
        return unit(self.fuse(params, render, depth))

    def stage2_tokens(self, params: Params, batch: Arrays, key: jax.Array | None = None) -> jax.Array:
        if self.switches.depth_through_render and key is None:
            images = views.images(self.clip, batch["depth"])
            depth = normalise(views.encode_render(self.clip, params["clip"], images))
            return self.fused_tokens(params, self.render_tokens(params, batch), depth)
        return super().stage2_tokens(params, batch, key)

    # ---- training

    def stage2_features(self, params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
        found = super().stage2_features(params, stats, batch)
        if self.switches.stage2_prompts_train:
            del found["text"]
        return found

    def stage2_loss(self, trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key: jax.Array | None):
        if not self.switches.lora_trains:
            trainable = {**trainable, "lora": jax.lax.stop_gradient(trainable["lora"])}
        if self.switches.stage2_prompts_train and "text" not in batch:
            text, _, _ = self.text({**frozen, **trainable}, stats, batch["cloud"], train=True)
            batch = {**batch, "text": text}
        return super().stage2_loss(trainable, frozen, stats, batch, key)

    def stage1_terms(self, found: Evidence, batch: Arrays, everything: bool = True) -> dict[str, jax.Array]:
        s = self.switches
        return losses.supervised(
            found, batch, mixed=s.mixed_views, everything=everything, padding=s.dice_padding, per_row=s.dice_per_row
        )

    def stage2_terms(self, found: Evidence, batch: Arrays) -> dict[str, jax.Array]:
        terms = self.stage1_terms(found, batch, everything=self.switches.stage2_losses == "all")
        if alpha := self.cfg.model.consistency:
            terms["consistency"] = alpha * losses.consistency(found.view_global, axis=self.switches.consistency_axis)
        return terms

    # ---- scores

    def evidence(self, params: Params, stats: Stats, batch: Arrays) -> tuple[Evidence, jax.Array]:
        if not self.switches.test_in_train_mode:
            return super().evidence(params, stats, batch)
        text, _, _ = self.text(params, stats, batch["cloud"], train=True)
        return self.compare(self.stage2_tokens(params, batch, jax.random.key(0)), text), text

    def smooth_points(self, points: jax.Array, batch: Arrays, cfg: Smoothing) -> jax.Array:
        return smooth(points, batch, cfg, storage=self.switches.smooth_storage, padding=self.switches.score_padding)
