"""GS-CLIP as the paper has it: from a batch to losses and scores (docs/method.md). The two stages share all but visual tokens.

    cloud  --pointnet2-->  shape vector, point features  --prompts, gddm-->  prompts  --encode_text-->  T_N, T_A
    views  --encode_image-->  render tokens (V-V), depth tokens (LoRA)  --srm-->  G_i, L_i     (stage 1: render tokens alone)
    G_i, L_i against T_N, T_A  -->  view probabilities and maps  --lift-->  points

What the released code does otherwise is in `fidelity.py`, colour in `rgb.py`.

Axes: B objects, V views, H W pixels, P patches, E embedding, N cloud points, M scored points.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, MethodBase, Params, Scores, Stage, Stats, Tokens
from gsclip_jax.methods.gsclip import losses
from gsclip_jax.methods.gsclip.config import Config
from gsclip_jax.methods.gsclip.gddm import GddmConfig, gddm, init_gddm
from gsclip_jax.methods.gsclip.prompts import PromptConfig, deep_prompts, init_prompts, prompts, shape_prompt, special_embeddings
from gsclip_jax.methods.gsclip.rgb import predict_rgb
from gsclip_jax.methods.gsclip.sentences import start_from_sentences
from gsclip_jax.methods.gsclip.srm import SrmConfig, init_srm, srm
from gsclip_jax.models import views
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_image, encode_text
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.lora import Dropout, init_lora, merge_lora
from gsclip_jax.models.pointnet2 import PointNet2Config, init_pointnet2, pointnet2
from gsclip_jax.models.smoothing import Smoothing, smooth
from gsclip_jax.models.views import Evidence

FOLDED = "depth_tower"  # the group of parameters that `folded` makes


class GsClip(MethodBase):
    """The Method: two stages, one prediction.

    Args:
      sentences: token ids of the normal and the abnormal sentence that the contexts start as; () for noise.
    """

    name = "gsclip"
    loads = ("clip",)
    alone = True  # objects do not see each other in stage 2; in stage 1 PointNet++ normalises them together
    reads_depth = "all"  # of the depth stream's tokens; "cls": the class token alone, and the last block computes no more
    smooth_points = staticmethod(smooth)

    def __init__(self, cfg: Config, clip: ClipConfig, net: PointNet2Config, sentences: tuple[list[int], ...] = ()):
        self.cfg, self.clip, self.net, self.sentences = cfg, clip, net, sentences
        m, one, two = cfg.model, cfg.stage1, cfg.stage2
        self.prompts = PromptConfig(m.n_ctx, m.deep_depth, m.n_deep, net.shape_dim)
        self.gddm = GddmConfig(clip.text_width, net.point_dim, m.prototypes, m.top_k, m.defect_tokens, m.gddm_heads)
        self.smoothing = Smoothing(m.smooth_sigma, m.smooth_width, m.smooth_rounds)
        frozen = self.loads
        stage1 = Stage(
            "stage1", {"prompts": one.learning_rate, "gddm": one.learning_rate, "pointnet2": one.pointnet2_rate},
            (*frozen, "lora", "srm"), one.epochs, one.batch_size, loss=self.stage1_loss, features=self.stage1_features,
        )  # fmt: skip
        stage2 = Stage(
            "stage2", {"srm": two.learning_rate, "lora": two.learning_rate * two.lora_factor},
            (*frozen, "prompts", "gddm", "pointnet2"), two.epochs, two.batch_size, loss=self.stage2_loss,
            features=self.stage2_features, depends_on=("stage1",), alone=self.alone, micro_batch=two.micro_batch,
        )  # fmt: skip
        self.stages: tuple[Stage, ...] = (stage1, stage2)

    # ---- parameters

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        keys = jax.random.split(key, 5)
        net, stats = init_pointnet2(keys[0], self.net)
        params = {
            "pointnet2": net,
            "prompts": init_prompts(keys[1], self.prompts, self.clip),
            "gddm": init_gddm(keys[2], self.gddm),
            "lora": init_lora(keys[3], self.clip, self.cfg.model.lora_rank),
            "srm": init_srm(keys[4], SrmConfig(self.clip.embed_dim)),
        }
        if self.cfg.model.srm_residual:  # close to a mean of the streams, but not at a point where the keys get no gradient
            params["srm"]["out"] = jax.tree.map(lambda x: 0.1 * x, params["srm"]["out"])
        return params, {"pointnet2": stats}

    def start(self, params: Params) -> Params:
        return start_from_sentences(params, clip_module(self.clip, params["clip"]), *self.sentences) if self.sentences else params

    @property
    def lora_scale(self) -> float:
        return self.cfg.model.lora_alpha / self.cfg.model.lora_rank

    def folded(self, params: Params) -> Params:
        """LoRA added to the MLPs of a depth tower, which shares all its other weights. In half precision it would be rounded, and
        stays beside the tower."""
        if self.clip.dtype != "float32":
            return params
        tower = self.depth_tower(params)
        merged = {**tower, "blocks": merge_lora(tower["blocks"], params["lora"], self.lora_scale)}
        return {**{group: tree for group, tree in params.items() if group != "lora"}, FOLDED: merged}

    def with_remat(self, remat: bool) -> GsClip:
        return GsClip(self.cfg, replace(self.clip, remat=remat), self.net, self.sentences)

    # ---- stage 1: text

    def text(
        self, params: Params, stats: Stats, cloud: jax.Array, *, train: bool
    ) -> tuple[jax.Array, Stats, dict[str, jax.Array]]:
        """(T_N, T_A) of every object, normalised: cloud [B,N,3] -> [B,2,E]; also new statistics and GDDM's point scores."""
        (points, shape), net_stats, _ = pointnet2(params["pointnet2"], stats["pointnet2"], cloud, train=train, cfg=self.net)
        tokens, scores, topk = gddm(params["gddm"], points, cfg=self.gddm)
        clip = clip_module(self.clip, {k: v for k, v in params["clip"].items() if k != "visual"})
        embeds, eot = prompts(
            params["prompts"],
            shape_prompt(params["prompts"], shape) if self.cfg.model.shape_prompt else None,
            tokens if self.cfg.model.defect_prompt else None,
            special_embeddings(clip),
            length=None,
        )
        text = normalise(encode_text(clip, embeds, eot, self.deep_prompts(params)))
        text = jnp.broadcast_to(text, (cloud.shape[0], *text.shape[1:]))
        return text, {**stats, "pointnet2": net_stats}, {"scores": scores, "topk": topk}

    def deep_prompts(self, params: Params) -> jax.Array | None:
        return deep_prompts(params["prompts"])

    def stage1_features(self, params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
        """The render stream."""
        return views.render_features(self.clip, params["clip"], batch)

    def stage1_loss(self, trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key: jax.Array | None):
        """L_cla + L_seg."""
        params = {**frozen, **trainable}
        text, new_stats = batch.get("text"), stats
        if text is None:
            text, new_stats, _ = self.text(params, stats, batch["cloud"], train=True)
        terms = self.stage1_terms(self.compare(self.render_tokens(params, batch), text), batch)
        return sum(terms.values()), (new_stats, terms)

    # ---- stage 2: views

    def render_tokens(self, params: Params, batch: Arrays) -> jax.Array:
        """Render stream, normalised, [B,V,1+P,E]."""
        return views.render_tokens(self.clip, params.get("clip", {}), batch)  # stored tokens need no tower

    def depth_tokens(
        self, params: Params, images: jax.Array, key: jax.Array | None = None, place: jax.Array | None = None
    ) -> jax.Array:
        """Depth stream with LoRA, plain blocks, normalised: images [B,V,H,W,3] -> [B,V,1+P,E] ([B,V,1,E], see `reads_depth`).

        Args:
          key: turns LoRA's dropout on.
          place: int [B], rows of a whole batch that these objects are a part of.
        """
        dropout = None
        if key is not None:
            count = images.shape[1]
            numbers = None if place is None else (place[:, None] * count + jnp.arange(count)).ravel()
            dropout = Dropout(key, self.cfg.model.lora_dropout, numbers)
        clip = clip_module(self.clip, {"visual": params[FOLDED] if FOLDED in params else self.depth_tower(params)})
        encoded = encode_image(
            clip, images, lora=params.get("lora"), lora_scale=self.lora_scale, dropout=dropout,
            layers=None if self.reads_depth == "all" else (),
        )  # fmt: skip
        return normalise(encoded.tokens[-1] if len(encoded.tokens) else encoded.cls[..., None, :])

    def depth_tower(self, params: Params) -> Params:
        return params["clip"]["visual"]

    def fused_tokens(self, params: Params, render: jax.Array, depth: jax.Array) -> jax.Array:
        """Tokens [B,V,1+P,E] that are compared with the text in stage 2, normalised: G_i first, then L_i."""
        streams = self.cfg.model.streams
        return normalise(self.fuse(params, render, depth)) if streams == "both" else render if streams == "render" else depth

    def fuse(self, params: Params, render: jax.Array, depth: jax.Array) -> jax.Array:
        """SRM's tokens [B,V,1+P,E], as they come out of it."""
        fused, _ = srm(params["srm"], render, depth, normalise=False)
        share = self.cfg.model.render_share
        return fused + share * render + (1 - share) * depth if self.cfg.model.srm_residual else fused

    def stage2_tokens(self, params: Params, batch: Arrays, key: jax.Array | None = None) -> jax.Array:
        """Both streams of a batch, fused; `key` turns LoRA's dropout on."""
        depth = self.depth_tokens(params, views.images(self.clip, batch["depth"]), key, batch.get("place"))
        return self.fused_tokens(params, self.render_tokens(params, batch), depth)

    def stage2_features(self, params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
        """The render stream, where it is used, and the text, as its prompts are in inference mode."""
        found = {} if self.cfg.model.streams == "depth" else self.stage1_features(params, stats, batch)
        return {**found, "text": self.text(params, stats, batch["cloud"], train=False)[0]}

    def stage2_loss(self, trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key: jax.Array | None):
        """L_cla + L_seg + consistency * L_con."""
        params = {**frozen, **trainable}
        text = batch["text"] if "text" in batch else self.text(params, stats, batch["cloud"], train=False)[0]
        terms = self.stage2_terms(self.compare(self.stage2_tokens(params, batch, key), text), batch)
        return sum(terms.values()), (stats, terms)  # statistics of groups that do not train stay as they are

    # ---- losses and scores

    def compare(self, tokens: jax.Array, text: jax.Array) -> Evidence:
        """Cosines with the prompts: tokens [B,V,1+P,E], text [B,2,E]."""
        return views.compare(tokens, text, self.cfg.model.tau)

    def stage1_terms(self, found: Evidence, batch: Arrays) -> dict[str, jax.Array]:
        """The terms of L_cla + L_seg (docs/method.md)."""
        return losses.supervised(found, batch)

    def stage2_terms(self, found: Evidence, batch: Arrays) -> dict[str, jax.Array]:
        """Those of stage 1 and alpha * L_con."""
        terms, alpha = self.stage1_terms(found, batch), self.cfg.model.consistency
        return terms | ({"consistency": alpha * losses.consistency(found.view_global)} if alpha else {})

    def evidence(self, params: Params, stats: Stats, batch: Arrays) -> tuple[Evidence, jax.Array]:
        """What the views say at test time, and the texts [B,2,E] that they were compared with."""
        text, _, _ = self.text(params, stats, batch["cloud"], train=False)
        return self.compare(self.stage2_tokens(params, batch), text), text

    def predict(self, params: Params, stats: Stats, batch: Arrays) -> Scores:
        return self.score(self.evidence(params, stats, batch)[0], batch)

    def predict_with_tokens(self, params: Params, stats: Stats, batch: Arrays) -> tuple[Scores, Tokens]:
        """Patches of the render stream and, where it has any, of the depth stream."""
        streams = {"render": self.render_tokens(params, batch)}
        if self.reads_depth == "all":
            streams["depth"] = self.depth_tokens(params, views.images(self.clip, batch["depth"]))
        return self.predict(params, stats, batch), {name: tokens[:, :, 1:] for name, tokens in streams.items()}

    def score(self, found: Evidence, batch: Arrays) -> Scores:
        """Scores of docs/method.md."""
        return views.score(found, batch, self.smoothing, self.smooth_points)

    predict_rgb = predict_rgb
