"""Align3D-AD (arXiv 2605.05850): grey views are mapped to what coloured ones would say; two learners look at both.

    stage 1   grey view  --render stream-->  tokens  --aligner-->  tokens of the coloured view
    stage 2   grey tokens against the texts of one prompt learner, aligned tokens against those of another
    scores    weighted means of both branches; colour is needed in stage 1 alone

The render stream, prompts, losses of stage 2, lifting and smoothing are those of PointAD and GS-CLIP. README.md has the rest.

Axes: B objects, V views, P patches, E embedding, M scored points.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from data_pipelines.scan import no_colour
from gsclip_jax.method import Arrays, MethodBase, Params, Scores, Stage, Stats
from gsclip_jax.methods.align3d import aligner
from gsclip_jax.methods.align3d.config import Config
from gsclip_jax.methods.gsclip import losses
from gsclip_jax.methods.gsclip.prompts import PromptConfig, init_prompts
from gsclip_jax.methods.pointad import Words, text_pair
from gsclip_jax.models import views
from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.lift import lift, upsample
from gsclip_jax.models.smoothing import Smoothing, smooth
from gsclip_jax.models.views import Evidence

ALIGNED, RENDER = "rgb_prompts", "prompts"  # the learners, and so the branches
GROUPS = {"both": (ALIGNED, RENDER), "aligned": (ALIGNED,), "render": (RENDER,)}


class Align3d(MethodBase):
    """The Method. Parameters: {clip, aligner, rgb_prompts, prompts}, without those of a branch that is switched off.

    Args:
      words: token ids of `pointad.WORDS`.
      data_set: that is trained on, for the message where it has no colour.
    """

    name = "align3d"
    loads = ("clip",)

    def __init__(self, cfg: Config, clip: ClipConfig, words: Words, data_set: str = ""):
        self.cfg, self.clip, self.words, self.data_set = cfg, clip, words, data_set
        m, one, two = cfg.model, cfg.stage1, cfg.stage2
        self.prompts = PromptConfig(m.n_ctx, m.deep_depth, m.n_deep, shape_dim=0)
        self.smoothing = Smoothing(m.smooth_sigma, m.smooth_width, m.smooth_rounds)
        self.branches, self.aligns = GROUPS[m.branches], m.branches != "render"
        aligned = ("aligner",) if self.aligns else ()
        stage1 = Stage(
            "stage1", {"aligner": one.learning_rate}, ("clip", *self.branches), one.epochs, one.batch_size,
            loss=self.stage1_loss, features=self.stage1_features, by_epoch=True, alone=True, micro_batch=one.micro_batch,
        )  # fmt: skip
        stage2 = Stage(
            "stage2", dict.fromkeys(self.branches, two.learning_rate), ("clip", *aligned), two.epochs, two.batch_size,
            loss=self.stage2_loss, features=self.stage2_features, by_epoch=True, depends_on=("stage1",) if aligned else (),
            alone=not (m.mixed_views or m.dice_per_row), micro_batch=two.micro_batch,
        )  # fmt: skip
        self.stages = (stage1, stage2) if aligned else (stage2,)

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        first, *others = jax.random.split(key, 3)
        params = {name: init_prompts(other, self.prompts, self.clip) for name, other in zip(GROUPS["both"], others, strict=True)}
        params = {name: params[name] for name in self.branches}
        return params | ({"aligner": aligner.init_aligner(first, self.clip.embed_dim)} if self.aligns else {}), {}

    def with_remat(self, remat: bool) -> Align3d:
        return Align3d(self.cfg, replace(self.clip, remat=remat), self.words, self.data_set)

    # ---- stage 1: alignment

    def stage1_features(self, params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
        """Of grey and of coloured views: the render stream's tokens [B,V,1+P,E], those of the grey ones as every method stores
        them, and the V-V path's class token [B,V,E].

        Raises:
          DataError: no coloured views.
        """
        if "rgb_render" not in batch:
            raise no_colour(self.data_set or "this data set", "Align3D-AD", "use gsclip or pointad")
        found = {}
        for name in ("render", "rgb_render"):
            encoded = views.encode_vv(self.clip, params["clip"], views.images(self.clip, batch[name]))
            found |= {f"{name}_tokens": views.stream(encoded), f"{name}_first": encoded.tokens[-1][..., 0, :]}
        return found

    def pairs(self, params: Params, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        """Tokens of the grey and of the coloured views, normalised [B,V,1+T,E]: CLS, then the local ones."""
        if "rgb_render_tokens" not in batch:
            batch = {**batch, **self.stage1_features(params, {}, batch)}

        def tokens(name: str) -> jax.Array:
            cls, patches = jnp.split(batch[f"{name}_tokens"], [1], axis=-2)
            first = [batch[f"{name}_first"][..., None, :]] if self.cfg.stage1.align_cls_token else []
            return normalise(jnp.concatenate([cls, *first, patches], axis=-2))

        return tokens("render"), tokens("rgb_render")

    def stage1_loss(self, trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key, epoch: jax.Array):
        """L_global + L_local, the latter weighted in the last epochs."""
        grey, colour = self.pairs(frozen, batch)
        one = self.cfg.stage1
        strength = jnp.where(epoch >= one.epochs - one.scr_epochs, one.scr_weight, 0.0)
        s = aligner.similarities(grey[..., 1:, :], colour[..., 1:, :])
        weights = aligner.consistency_weights(s, strength, one.scr_scale)
        terms = aligner.alignment(aligner.align(trainable["aligner"], grey), colour, weights)
        return sum(terms.values()), (stats, terms)

    # ---- stage 2: prompts

    def stage2_features(self, params: Params, stats: Stats, batch: Arrays) -> dict[str, jax.Array]:
        """The render stream. Aligned tokens are made anew: three products each are less than reading as much again from disk."""
        return views.render_features(self.clip, params["clip"], batch)

    def texts(self, params: Params) -> dict[str, jax.Array]:
        """(T_N, T_A) of every branch, normalised [1,2,E]."""
        rounded = self.cfg.model.round_deep_prompts
        return {name: text_pair(self.clip, params["clip"], params[name], self.words, rounded=rounded) for name in self.branches}

    def compare(self, params: Params, texts: dict[str, jax.Array], batch: Arrays) -> dict[str, Evidence]:
        """What the views say in every branch: the render stream's tokens, or what the aligner makes of them."""
        grey = views.render_tokens(self.clip, params["clip"], batch)
        tokens = {ALIGNED: aligner.align(params["aligner"], grey) if self.aligns else None, RENDER: grey}
        return {name: views.compare(tokens[name], texts[name]) for name in self.branches}

    def stage2_loss(self, trainable: Params, frozen: Params, stats: Stats, batch: Arrays, key, epoch: jax.Array):
        """L_cla + L_seg of every branch, and the contrastive terms in the last epochs. No branch's terms reach the other's
        parameters, so that one optimiser of the sum is the released code's two."""
        params, two = {**frozen, **trainable}, self.cfg.stage2
        texts = self.texts(params)
        late = jnp.where(epoch >= two.epochs - two.contrast_epochs, two.contrast_scale, 0.0)
        terms = self.terms(texts, self.compare(params, texts, batch), batch, late)
        return sum(terms.values()), (stats, terms)

    def terms(self, texts: dict, found: dict[str, Evidence], batch: Arrays, late: jax.Array | float) -> dict[str, jax.Array]:
        """The terms of both branches, those of the aligned one as rgb_*; `late` is the scale of the contrastive ones."""
        m, terms = self.cfg.model, {}
        for name in self.branches:
            own = losses.supervised(found[name], batch, mixed=m.mixed_views, padding=m.dice_padding, per_row=m.dice_per_row)
            for other in self.branches:
                if other != name:
                    own |= {"contrast": late * aligner.branch_contrast(texts[name], texts[other])}
            terms |= {f"rgb_{term}" if name == ALIGNED else term: value for term, value in own.items()}
        return terms

    # ---- scores

    def predict(self, params: Params, stats: Stats, batch: Arrays) -> Scores:
        return self.score(self.compare(params, self.texts(params), batch), batch)

    def smoothed(self, points: jax.Array, batch: Arrays, again: bool) -> jax.Array:
        """Point scores [B,M], smoothed once or twice."""
        m = self.cfg.model
        for _ in range(1 + again):
            points = smooth(points, batch, self.smoothing, storage=m.smooth_storage, padding=m.score_padding)
        return points

    def score(self, found: dict[str, Evidence], batch: Arrays) -> Scores:
        """Half of the mixed map's maximum, half of the mixed probability of the views; all is linear up to the maximum, so that
        maps are mixed on the patch grid."""
        m, size = self.cfg.model, batch["render"].shape[2]
        cells = {name: one.cells[..., 1] for name, one in found.items()}
        at_points, at_object = self.mixed(cells, m.point_weight), self.mixed(cells, m.image_weight)
        where = batch["pixel"], batch["visible"], batch["valid"], size
        points = self.smoothed(lift(at_points, *where), batch, m.second_blur in ("points", "both"))
        whole = self.smoothed(lift(at_object, *where), batch, m.second_blur in ("object", "both"))
        probability = self.mixed({name: views.view_probability(one) for name, one in found.items()}, m.image_weight)
        return Scores(views.object_score(whole, probability), points, upsample(at_points[..., None], size)[..., 0])

    def mixed(self, values: dict[str, jax.Array], share: float) -> jax.Array:
        """`share` of the aligned branch and the rest of the other; all of a branch that is alone."""
        if len(self.branches) == 1:
            return values[self.branches[0]]
        return share * values[ALIGNED] + (1 - share) * values[RENDER]
