"""GS-CLIP put together: from a batch to losses and scores. The two stages share everything but their visual tokens.

    views  --encode_image-->  render tokens (V-V), depth tokens (LoRA)  --srm-->  G_i, L_i     (stage 1: render tokens alone)
    points --surface-->  tokens (embedded preset, ours)  --against T_N, T_A-->  points
    cloud  --pointnet2-->  shape vector, point features  --prompts, gddm-->  prompts  --encode_text-->  T_N, T_A
    G_i, L_i against T_N, T_A  -->  view probabilities and maps  --lift-->  points

Axes: B objects, V views, P patches, E embedding, M points, H W pixels, g side of the patch grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, Params, Scores, Stage, Stats
from gsclip_jax.methods.gsclip import losses
from gsclip_jax.methods.gsclip.gddm import GddmConfig, gddm, init_gddm
from gsclip_jax.methods.gsclip.prompts import PromptConfig, deep_prompts, init_prompts, prompts, shape_prompt, special_embeddings
from gsclip_jax.methods.gsclip.srm import SrmConfig, init_srm, srm
from gsclip_jax.methods.surface.descriptor import describe, encode_surface
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_image, encode_text, preprocess_rgb, preprocess_views
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.lift import lift, smooth_grid, smooth_neighbours, upsample
from gsclip_jax.models.lora import init_lora
from gsclip_jax.models.pointnet2 import PointNet2Config, init_pointnet2, pointnet2
from gsclip_jax.models.similarity import patch_grid, probabilities, text_logits


@dataclass(frozen=True)
class Switches:
    """Where paper and released code part (the table in docs/fidelity.md). The defaults are the paper's."""

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
    normalise_fused: bool = True  # released: the fused features meet the text as they are
    smooth_storage: bool = False  # released: Gaussian over the storage order also of unorganised scans
    score_padding: bool = False  # released: empty cells keep what the smoothing spills into them, and the maximum counts it


RELEASED = Switches(
    own_depth_tower=True, lora_trains=False, srm_tokens="cls", stage2_losses="point_view", weight_by_score=False,
    mixed_views=True, consistency_axis=1, stage2_prompts_train=True, test_in_train_mode=True, round_deep_prompts=True,
    dice_per_row=True, dice_padding=True, normalise_fused=False, smooth_storage=True, score_padding=True,
)  # fmt: skip


@dataclass(frozen=True)
class GsClipConfig:
    """Everything that shapes the model. Sizes that follow from the CLIP (text width, embedding) are filled in by `build`."""

    clip: ClipConfig = field(default_factory=ClipConfig)
    pointnet2: PointNet2Config = field(default_factory=PointNet2Config)
    gddm: GddmConfig = field(default_factory=GddmConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    lora_rank: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.1
    tau: float = 0.07
    consistency: float = 0.3  # alpha, weight of L_con
    smooth_sigma: float = 4.0  # organised scans, in grid cells
    smooth_width: float = 0.5  # unorganised scans, in mean distances to the K-th neighbour
    smooth_rounds: int = 1
    streams: str = "both"  # "render" or "depth": ablations without SRM
    use_shape_prompt: bool = True
    use_defect_prompt: bool = True
    srm_residual: bool = False  # ours: stage 2 starts from a mean of the streams instead of from nothing
    render_share: float = 0.5  # of that mean
    surface_share: float = 0.0  # ours: of the surface stream in the points' evidence (surface.py); 0: views alone, the paper
    switches: Switches = Switches()

    def __post_init__(self) -> None:
        if not 0 <= self.surface_share <= 1:
            raise ValueError(f"surface_share {self.surface_share} is a share: from 0 (views alone) to 1 (surface alone)")

    def build(self) -> GsClipConfig:
        """The same with GDDM's widths taken from the CLIP and PointNet++, and its switch from `switches`."""
        return replace(
            self,
            gddm=replace(
                self.gddm,
                text_dim=self.clip.text_width,
                point_dim=self.pointnet2.point_dim,
                weight_by_score=self.switches.weight_by_score,
            ),
        )


class Predictions(NamedTuple):
    """Class evidence of a batch before losses or scores, float32; class 0 = normal, 1 = anomalous."""

    view_logits: jax.Array  # [B,V,2], cosines / tau
    cells: jax.Array  # [B,V,g,g,2] probabilities on the patch grid
    view_global: jax.Array  # [B,V,E] G_i, as L_con takes it
    surface_logits: jax.Array | None = None  # [B,M,2], cosines / tau, where the surface stream is on


def object_score(points: jax.Array, view_probability: jax.Array, surface_share: jax.Array | float = 0.0) -> jax.Array:
    """Half the largest point score [B,M], half the mean of the views' probabilities [B,V] -> [B]; what of the points' evidence
    is the surface's, [B] or one number, the views' half gives up."""
    views = 0.5 * (1 - surface_share)
    return (1 - views) * points.max(-1) + views * view_probability.mean(-1)


class GsClip:
    """The Method: two stages, one prediction."""

    def __init__(self, cfg: GsClipConfig, stages: tuple[Stage, ...] = (), name: str = "gsclip"):
        self.cfg, self.stages, self.name = cfg.build(), stages, name

    # ---- parameters

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        """Everything but the CLIP, the surface stream (and PointNet++'s start), which are loaded: see `experiments.build`."""
        cfg = self.cfg
        keys = jax.random.split(key, 5)
        net, stats = init_pointnet2(keys[0], cfg.pointnet2)
        params = {
            "pointnet2": net,
            "prompts": init_prompts(keys[1], cfg.prompts, cfg.clip),
            "gddm": init_gddm(keys[2], cfg.gddm),
            "lora": init_lora(keys[3], cfg.clip, cfg.lora_rank),
            "srm": init_srm(keys[4], SrmConfig(cfg.clip.embed_dim)),
        }
        if cfg.srm_residual:  # start close to a mean of the streams, but not at a point where the keys get no gradient
            params["srm"]["out"] = jax.tree.map(lambda x: 0.1 * x, params["srm"]["out"])
        return params, {"pointnet2": stats}

    # ---- text side

    def text(
        self, params: Params, stats: Stats, cloud: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Stats, dict[str, jax.Array]]:
        """(T_N, T_A) of every object, normalised: cloud [B,N,3] -> [B,2,E]; also new statistics and GDDM's point scores."""
        cfg = self.cfg
        (points, shape), net_stats = pointnet2(params["pointnet2"], stats["pointnet2"], cloud, train=train, cfg=cfg.pointnet2)
        tokens, scores, topk = gddm(params["gddm"], points, cfg=cfg.gddm)
        clip = clip_module(cfg.clip, {k: v for k, v in params["clip"].items() if k != "visual"})
        embeds, eot = prompts(
            params["prompts"],
            shape_prompt(params["prompts"], shape) if cfg.use_shape_prompt else None,
            tokens if cfg.use_defect_prompt else None,
            special_embeddings(clip),
            length=None,
        )
        deep = deep_prompts(params["prompts"], rounded=cfg.switches.round_deep_prompts)
        text = normalise(encode_text(clip, embeds, eot, deep))
        text = jnp.broadcast_to(text, (cloud.shape[0], *text.shape[1:]))
        return text, {**stats, "pointnet2": net_stats}, {"scores": scores, "topk": topk}

    # ---- visual side

    def render_tokens(self, params: Params, batch: Arrays) -> jax.Array:
        """Render stream, normalised: CLS of the plain path, then the V-V path's patch tokens, [B,V,1+P,E]."""
        if "render_tokens" in batch:
            return normalise(batch["render_tokens"])
        return self._render_stream(params, self.images(batch["render"]))

    def images(self, views: jax.Array) -> jax.Array:
        """Network input [...,H,W,3] of grey views uint8 [...,H,W] or colour ones uint8 [...,H,W,3]; floating arrays
        [...,H,W,3] are network input already."""
        if jnp.issubdtype(views.dtype, jnp.floating):
            return views
        return preprocess_rgb(self.cfg.clip, views) if views.shape[-1] == 3 else preprocess_views(self.cfg.clip, views)

    def _render_stream(self, params: Params, images: jax.Array) -> jax.Array:
        return normalise(self._render_tower(params, images))

    def _render_tower(self, params: Params, images: jax.Array) -> jax.Array:
        clip = clip_module(self.cfg.clip, {"visual": params["clip"]["visual"]})
        encoded = encode_image(clip, images, vv=True)
        return jnp.concatenate([encoded.cls[..., None, :], encoded.tokens[-1][..., 1:, :]], axis=-2)

    def depth_tokens(self, params: Params, images: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """Depth stream with LoRA, plain blocks, normalised: images [B,V,H,W,3] -> [B,V,1+P,E]."""
        cfg = self.cfg
        tower = params["clip_depth"] if "clip_depth" in params else params["clip"]
        clip = clip_module(cfg.clip, {"visual": tower["visual"]})
        encoded = encode_image(
            clip, images, lora=params["lora"], dropout_key=dropout_key,
            lora_scale=cfg.lora_alpha / cfg.lora_rank, lora_dropout=cfg.lora_dropout,
        )  # fmt: skip
        return normalise(encoded.tokens[-1])

    def fused_tokens(self, params: Params, render: jax.Array, depth: jax.Array) -> jax.Array:
        """Tokens [B,V,1+P,E] that meet the text in stage 2: G_i first, then L_i."""
        cfg = self.cfg
        if cfg.streams == "render":
            return render
        if cfg.streams == "depth":
            return depth
        if cfg.switches.srm_tokens == "cls":
            fused = srm(params["srm"], render[..., :1, :], depth[..., :1, :], normalise=False)
            return jnp.concatenate([self._normalised(fused), render[..., 1:, :]], axis=-2)
        fused = srm(params["srm"], render, depth, normalise=False)
        if cfg.srm_residual:
            fused = fused + cfg.render_share * render + (1 - cfg.render_share) * depth
        return self._normalised(fused)

    def _normalised(self, fused: jax.Array) -> jax.Array:
        return normalise(fused) if self.cfg.switches.normalise_fused else fused

    # ---- both together

    def compare(self, tokens: jax.Array, text: jax.Array) -> Predictions:
        """Cosines with the prompts: tokens [B,V,1+P,E], text [B,2,E]."""
        logits = text_logits(tokens, text, tau=self.cfg.tau, normalised=True)
        return Predictions(logits[:, :, 0], patch_grid(probabilities(logits[:, :, 1:])), tokens[:, :, 0])

    def tokens_of_stage(self, stage: str, params: Params, batch: Arrays, key: jax.Array | None = None) -> jax.Array:
        """Visual tokens of a stage; `key` turns LoRA's dropout on."""
        render = self.render_tokens(params, batch)
        if stage == "stage1":
            return render
        images = self.images(batch["depth"])
        if self.cfg.switches.depth_through_render and key is None:
            return self.fused_tokens(params, render, self._render_stream(params, images))
        return self.fused_tokens(params, render, self.depth_tokens(params, images, key))

    def features(self, stage: str, params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
        """Frozen parts: the render stream in both stages; in stage 2 also the text, as its prompts are in inference mode."""
        found = {}
        if self.cfg.streams != "depth" or stage == "stage1":
            # As the tower gives them, in its own dtype: normalised in float32 when read, so that storing rounds nothing.
            found["render_tokens"] = self._render_tower(params, self.images(batch["render"]))
        if stage == "stage2" and not self.cfg.switches.stage2_prompts_train:
            found["text"] = self.text(params, stats, batch["cloud"], train=False)[0]
        return found

    def loss(self, stage: str, trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key: jax.Array):
        """Stage 1: L_cla + L_seg. Stage 2: L_cla + L_seg + consistency * L_con. Differentiated in `trainable` (method.Method).

        Without a key nothing is dropped."""
        switches = self.cfg.switches
        params = {**frozen, **trainable}
        if stage == "stage2" and not switches.lora_trains:
            params = {**params, "lora": jax.lax.stop_gradient(params["lora"])}
        if "text" in batch:
            text, new_stats = batch["text"], stats
        else:
            train = stage == "stage1" or switches.stage2_prompts_train
            text, new_stats, _ = self.text(params, stats, batch["cloud"], train=train)
        tokens = self.tokens_of_stage(stage, params, batch, key)
        terms = self.loss_terms(stage, self.compare(tokens, text), batch)
        # Statistics of groups that do not train stay as they are.
        return sum(terms.values()), (new_stats if stage == "stage1" else stats, terms)

    def loss_terms(self, stage: str, found: Predictions, batch: Arrays) -> dict[str, jax.Array]:
        """The terms of method.md, weighted; their sum is the loss."""
        cfg, switches = self.cfg, self.cfg.switches
        image_size = batch["view_mask"].shape[-1]
        rows = round(batch["valid"].shape[1] ** 0.5) if switches.dice_per_row and batch["valid"].shape[0] == 1 else None
        everything = stage == "stage1" or switches.stage2_losses == "all"
        view_maps = upsample(found.cells, image_size)
        point_maps = lift(found.cells, batch["pix"], batch["seen"], batch["valid"], image_size)
        cla = losses.classification(
            found.view_logits, batch["view_label"], batch["label"], mixed=switches.mixed_views, per_object=everything
        )
        seg = losses.segmentation(
            view_maps, batch["view_mask"], point_maps, batch["point_mask"],
            None if switches.dice_padding else batch["valid"], rows=rows, per_view=everything,
        )  # fmt: skip
        terms = {**cla, **seg}
        if stage == "stage2" and cfg.consistency:
            terms["consistency"] = cfg.consistency * losses.consistency(found.view_global, axis=switches.consistency_axis)
        return terms

    def evidence(
        self, params: Params, stats: Stats, batch: Arrays, *, stage: str = "stage2"
    ) -> tuple[Predictions, jax.Array]:
        """What views and surface say at test time, and the texts [B,2,E] that they were compared with."""
        in_training_mode = self.cfg.switches.test_in_train_mode
        text, _, _ = self.text(params, stats, batch["cloud"], train=in_training_mode)
        tokens = self.tokens_of_stage(stage, params, batch, jax.random.key(0) if in_training_mode else None)
        found = self.compare(tokens, text)
        if self.cfg.surface_share:
            surface = encode_surface(params["surface"], describe(batch["xyz"], batch["neighbours"], batch["valid"]))
            found = found._replace(surface_logits=text_logits(surface, text, tau=self.cfg.tau, normalised=True))
        return found, text

    def predict(self, params: Params, stats: Stats, batch: Arrays, *, stage: str = "stage2") -> Scores:
        """Scores of method.md for a batch; `stage` "stage1" takes the render stream alone for the views."""
        return self.score(self.evidence(params, stats, batch, stage=stage)[0], batch)

    def score(self, found: Predictions, batch: Arrays) -> Scores:
        """Object score of `object_score`; points smoothed, and joined with the surface stream's where it is on."""
        image_size = batch["render"].shape[2]
        cells = found.cells[..., 1]
        points = self.smooth(lift(cells, batch["pix"], batch["seen"], batch["valid"], image_size), batch)
        view_probability = jax.nn.softmax(found.view_logits, axis=-1)[..., 1]
        share = 0.0
        if found.surface_logits is not None:
            share = jnp.where(batch["organised"], 0.0, self.cfg.surface_share)  # [B]
            points = self.joined(points, found.surface_logits, share, batch)
        return Scores(object_score(points, view_probability, share), points, upsample(cells[..., None], image_size)[..., 0])

    def joined(self, views: jax.Array, surface_logits: jax.Array, share: jax.Array, batch: Arrays) -> jax.Array:
        """Weighted mean, as log odds, of the views' smoothed point scores [B,M] and the surface stream's; 0 where not valid.

        Not of probabilities: a confident stream would be held back by half of what the other cannot see.
        """
        surface = self.smooth(surface_logits[..., 1] - surface_logits[..., 0], batch)
        odds = jnp.log(jnp.clip(views, 1e-6, 1)) - jnp.log(jnp.clip(1 - views, 1e-6, 1))
        both = jax.nn.sigmoid((1 - share)[:, None] * odds + share[:, None] * surface) * batch["valid"]
        return jnp.where(share[:, None] > 0, both, views)

    def smooth(self, points: jax.Array, batch: Arrays) -> jax.Array:
        """Organised scans: Gaussian over the grid; others: over 3D neighbours. [B,M], 0 where not valid."""
        cfg = self.cfg
        side = round(points.shape[1] ** 0.5)
        near = smooth_neighbours(
            points, batch["xyz"], batch["neighbours"], batch["valid"], width=cfg.smooth_width, rounds=cfg.smooth_rounds
        )
        if side * side != points.shape[1]:
            return near * batch["valid"]
        kept = 1 if cfg.switches.score_padding else batch["valid"]
        grid = smooth_grid(points, sigma=cfg.smooth_sigma)
        on_grid = jnp.ones_like(batch["organised"]) if cfg.switches.smooth_storage else batch["organised"]
        return jnp.where(on_grid[:, None], grid, near) * kept

    def predict_rgb(self, params: Params, stats: Stats, batch: Arrays) -> dict[str, Any]:
        """The colour plug-in: batch["rgb"] [B,H,W,3] is one more view for both streams (method.md, Scores).

        Organised scans: the picture is a square like the grid g x g = M of their points.

        Returns: colour_map, joint_map [B,g,g], colour, joint, colour_probability [B] and the scores without colour, "geometry".
        """
        found, text = self.evidence(params, stats, batch)
        geometry = self.score(found, batch)
        return {"geometry": geometry, **self.join_rgb(self.colour_evidence(params, text, batch), geometry, batch)}

    def colour_evidence(self, params: Params, text: jax.Array, batch: Arrays) -> Predictions:
        """What the colour image says as a single view that passes both streams."""
        images = self.images(batch["rgb"])[:, None]
        tokens = self.fused_tokens(params, self._render_stream(params, images), self.depth_tokens(params, images))
        return self.compare(tokens, text)

    def join_rgb(self, found: Predictions, geometry: Scores, batch: Arrays) -> dict[str, jax.Array]:
        """Colour and joint maps and scores from the colour view's predictions and the geometry's scores."""
        side = round(geometry.points.shape[1] ** 0.5)
        sigma = self.cfg.smooth_sigma
        colour_map = smooth_grid(upsample(found.cells[..., 1:], side)[:, 0, ..., 0], sigma=sigma)
        colour_probability = jax.nn.softmax(found.view_logits, axis=-1)[:, 0, 1]
        joint_map = smooth_grid((colour_map + geometry.points.reshape(-1, side, side)) / 2, sigma=sigma)
        # No surface stream here: a half of the object score is the largest point.
        view_part = (geometry.object - 0.5 * geometry.points.max(-1)) * 2
        return {
            "colour_map": colour_map,
            "colour_probability": colour_probability,
            "colour": colour_map.max((1, 2)) + colour_probability,
            "joint_map": joint_map,
            "joint": joint_map.max((1, 2)) + (view_part + colour_probability) / 2,
        }
