"""Items q to z, Align3D-AD: encoder, aligner, losses and gradients of both stages, training across the switches, scores."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.convert import fusion_names
from gsclip_jax.convert.authors import fixed_words
from gsclip_jax.methods.align3d import Align3d, Config, aligner
from gsclip_jax.methods.align3d.config import Model as ModelConfig
from gsclip_jax.methods.align3d.config import Stage1, Stage2, blurred
from gsclip_jax.methods.align3d.model import ALIGNED, RENDER
from gsclip_jax.methods.gsclip.losses import object_logits
from gsclip_jax.methods.gsclip.prompts import prompts, special_embeddings
from gsclip_jax.methods.pointad import WORDS, embed_words
from gsclip_jax.models import views
from gsclip_jax.models.clip import clip_module
from gsclip_jax.models.layers import normalise
from gsclip_jax.models.lift import lift, upsample
from gsclip_jax.models.tokenizer import load_tokenizer
from gsclip_jax.parity.assembled import batch, on_grid
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.names import prompts_to_torch
from gsclip_jax.parity.recording import Entry, Model
from gsclip_jax.parity.texts import vocabulary
from gsclip_jax.parity.towers import images
from gsclip_jax.training.train import State, make_optimiser, make_step

TERMS = {"d2_image_loss": "view", "d3_global_loss": "object", "d2_pixel_loss": "pixel", "d3_point_loss": "point",
         "alignment_loss": "contrast"}  # fmt: skip
BRANCHES = {"rgb_": (ALIGNED, "rgb_prompt_learner"), "": (RENDER, "prompt_learner")}  # ours and theirs, by what names begin with
RELEASED = ModelConfig(mixed_views=True, dice_padding=True, score_padding=True)  # in all recorded arrays
LATE = 10**6  # an epoch in which every term counts


class Recorded:
    """The method of the recorded sizes, its parameters through the converters, and inputs as batches; of one Model."""

    def __init__(self, model: Model):
        self.model, self.recording, sizes = model, model.recording, model.sizes
        self.cfg = Config(model=replace(
            RELEASED, n_ctx=sizes["n_ctx"], deep_depth=sizes["deep_prompt_depth"], n_deep=sizes["t_n_ctx"],
            smooth_sigma=float(sizes["sigma"]),
        ))  # fmt: skip

    @functools.cached_property
    def words(self) -> tuple[list[int], ...]:
        tokenizer = load_tokenizer(vocabulary(self.recording))
        return tuple(tokenizer.encode(text) for text in WORDS)

    @functools.cached_property
    def params(self) -> dict[str, Any]:
        found = {}
        for ours, theirs in BRANCHES.values():
            learner = {name.removeprefix(f"{theirs}."): x for name, x in self.model.state(f"{theirs}.").items()}
            found[ours] = fixed_words(learner, theirs)
        state = self.model.state(fusion_names.ALIGNER_PREFIX)
        found["aligner"] = fusion_names.aligner_from_torch(state, self.model.clip.embed_dim)
        return {**found, "clip": {**self.model.visual, **self.model.text}}

    def method(self, words: bool = True, stage1: Mapping[str, Any] | None = None, stage2: Mapping[str, Any] | None = None,
               **changes: Any) -> Align3d:  # fmt: skip
        cfg = Config(model=replace(self.cfg.model, **changes), stage1=Stage1(**stage1 or {}), stage2=Stage2(**stage2 or {}))
        return Align3d(cfg, self.model.clip, self.words if words else ((), ()))

    def views(self, item: str) -> dict[str, Any]:
        """Stored features of the recorded views of an item, as stage 1 keeps them."""
        if item not in self._views:
            made = {name: images(self.recording.value(f"{item}/{name}")) for name in ("render", "rgb_render")}
            clip = {"visual": self.model.visual["visual"]}
            self._views[item] = jax.jit(self.method(words=False).stage1_features)({"clip": clip}, {}, made)
        return self._views[item]

    @functools.cached_property
    def _views(self) -> dict[str, dict[str, Any]]:
        return {}


@functools.lru_cache(maxsize=1)  # items of one model come one after the other
def recorded(model: Model) -> Recorded:
    return Recorded(model)


def rows(x: jax.Array) -> jax.Array:
    """[B,V,...] -> [B*V,...]."""
    return x.reshape(-1, *x.shape[2:])


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    """By the item; arrays that it does not know stay unanswered."""
    if "aligner" not in model.sizes:  # a recording of another method
        return
    made = {"q": encoder, "s": encoder, "r": mlps, "t": alignment, "u": training1, "v": texts, "w": contrast, "x": branches,
            "y": training2, "z": scores}[entries[0].item](recorded(model), entries)  # fmt: skip
    for entry in entries:
        if entry.key in made:
            yield Found(entry, made[entry.key])


def encoder(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    grey, colour = this.method(words=False).pairs({}, this.views("q"))
    return {"cls": rows(grey)[:, 0], "patch": rows(grey)[:, 1:], "rgb_cls": rows(colour)[:, 0], "rgb_patch": rows(colour)[:, 1:],
            "s": rows(aligner.similarities(grey[..., 1:, :], colour[..., 1:, :]))}  # fmt: skip


def mlps(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    cls, local = (this.recording.value(f"r/{part}_in") for part in ("global", "local"))

    @jax.jit
    def run(params, cls, local):
        aligned = aligner.align(params, jnp.concatenate([cls[:, None], local], axis=1))
        return {"global_raw": aligner.mlp(params["global"], cls), "local_raw": aligner.mlp(params["local"], local),
                "global": aligned[:, 0], "local": aligned[:, 1:]}  # fmt: skip

    return run(this.params["aligner"], cls, local)


def alignment(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    """Losses and gradients before the switch, and after it under every lambda that was recorded."""
    found, trainable, made = this.views("q"), {"aligner": this.params["aligner"]}, {}
    lambdas = {re.search(r"_weighted2?$|$", e.key)[0]: e.about["settings"]["align_local_weight_lambda"]
               for e in entries if "settings" in e.about and ":" not in e.key}  # fmt: skip
    for name, strength in {"": 0.0, **lambdas}.items():
        method = this.method(words=False, stage1={"scr_weight": strength})
        grad = jax.jit(jax.value_and_grad(method.stage1_loss, has_aux=True))
        (total, (_, terms)), grads = grad(trainable, {}, {}, found, None, LATE if name else 0)
        made |= {f"loss_total{name}": total, f"loss_local{name}": terms["local"], f"loss_global{name}": terms["global"]}
        made |= {f"grad_total{name}:{key}": x for key, x in fusion_names.aligner_to_torch(grads["aligner"]).items()}
        grey, colour = method.pairs({}, found)
        s = aligner.similarities(grey[..., 1:, :], colour[..., 1:, :])
        made[f"weight{name}"] = rows(aligner.consistency_weights(s, strength))
    return made


def trained(stage: Any, params: Mapping[str, Any], batches: list[dict[str, Any]], per_epoch: int):
    """(parameters of all groups after the last of the batches, metrics of every step), by the training loop's own step."""
    optimiser = make_optimiser(stage, len(batches))
    start = jax.tree.map(jnp.array, {group: params[group] for group in stage.train})  # the step gives its state away
    state = State(jnp.zeros((), jnp.int32), start, optimiser.init(start), {})
    step, metrics = make_step(stage, optimiser, per_epoch), []
    for made in batches:
        state, logged = step(state, {group: params[group] for group in stage.frozen if group in params}, made, jax.random.key(0))
        metrics.append(jax.device_get(logged))
    return {**params, **state.trainable}, metrics


def training1(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    settings = entries[0].about["settings"]
    epochs, weight = settings["epochs"], settings["align_local_weight_lambda"]
    stage = {"epochs": epochs, "scr_epochs": epochs - settings["weighted_from_epoch"], "scr_weight": weight,
             "learning_rate": settings["learning_rate"]}  # fmt: skip
    method = this.method(words=False, stage1=stage)
    after, metrics = trained(method.stages[0], this.params, [this.views("q"), this.views("u")] * epochs, 2)
    grey, _ = method.pairs({}, this.views("q"))
    made = {f"adam:{name}": x for name, x in fusion_names.aligner_to_torch(after["aligner"]).items()}
    losses = np.array([row["loss"] for row in metrics]).reshape(epochs, 2)
    return made | {"adam_losses": losses, "adam_global": rows(aligner.align(after["aligner"], grey))[:, 0]}


def texts(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    clip = clip_module(this.model.clip, this.model.text)
    words, special, made = embed_words(clip, this.words), special_embeddings(clip), {}
    for before, (ours, _) in BRANCHES.items():
        made[f"{before}prompts"] = prompts(this.params[ours], None, None, special, words=words)[0][0]
        for after, rounded in (("", False), ("_fp16_deep", True)):
            made[f"{before}text_features{after}"] = jax.jit(this.method(round_deep_prompts=rounded).texts)(this.params)[ours]
    context = " ".join(["X"] * this.cfg.model.n_ctx)
    return made | {"tokenized": load_tokenizer(vocabulary(this.recording))([f"{context} {text}." for text in WORDS])}


def contrast(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    given = [this.recording.value(f"w/{name}") for name in ("anchor", "positive", "negative")]
    loss, grads = jax.jit(jax.value_and_grad(aligner.contrast, argnums=(0, 1, 2)))(*given)
    if np.abs(grads[1]).max() > 0:
        raise ValueError("the positive of the contrastive term takes a gradient")
    return {"contrastive": loss, "grad_anchor": grads[0], "grad_negative": grads[2]}


def branch_batch(this: Recorded, entry: Entry) -> dict[str, Any]:
    """Item x's objects with the render stream's tokens, as stage 2 stores them."""
    made = batch(this.model, entry, ("render",), item="x")
    clip = {"visual": this.model.visual["visual"]}
    stored = jax.jit(this.method().stage2_features)({"clip": clip}, {}, made)
    return {name: value for name, value in made.items() if name != "render"} | stored


def branches(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    """Every term of both branches with its gradient, their sums, and what they are made of."""
    scale = next(e.about["settings"]["alignment_loss_scale"] for e in entries if e.key == "loss_total")
    made, params = branch_batch(this, entries[0]), this.params
    trainable = {group: params[group] for group, _ in BRANCHES.values()}
    frozen = {group: params[group] for group in ("clip", "aligner")}
    frozen["clip"] = {name: tree for name, tree in frozen["clip"].items() if name != "visual"}
    arrays: dict[str, Any] = {}

    mixed, own = this.method(), this.method(mixed_views=False)

    @jax.jit
    def parts(trainable, frozen, made, weights):
        """Sum over both branches of the weighted terms: their gradients lie in different groups."""

        def total(trainable):
            params = {**frozen, **trainable}
            texts = mixed.texts(params)
            found = mixed.compare(params, texts, made)
            terms, corrected = (m.terms(texts, found, made, 1.0) for m in (mixed, own))
            values = {before: {name: terms[before + ours] for name, ours in TERMS.items()}
                      | {"d3_global_loss_by_object": corrected[f"{before}object"]} for before in BRANCHES}  # fmt: skip
            return sum(weights[name] * value for row in values.values() for name, value in row.items()), (values, found)

        return jax.value_and_grad(total, has_aux=True)(trainable)

    def grads_of(name: str, grads: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{before}grad_{name}:{theirs}.{key}": x for before, (ours, theirs) in BRANCHES.items()
                for key, x in prompts_to_torch(grads[ours]).items()}  # fmt: skip

    names = (*TERMS, "d3_global_loss_by_object")
    for name in names:
        (_, (values, found)), grads = parts(trainable, frozen, made, {other: float(other == name) for other in names})
        arrays |= grads_of(name, grads)
    for before, row in values.items():
        four = sum(value for name, value in row.items() if name in TERMS and name != "alignment_loss")
        arrays |= {f"{before}loss_{name}": value for name, value in row.items()}
        arrays |= {f"{before}loss_total": four + scale * row["alignment_loss"], f"{before}loss_total_unaligned": four}
    # What training differentiates must be the sum that was taken apart here; rounded deep prompts as released as well.
    for after, rounded in (("", False), ("_fp16_deep", True)):
        method = this.method(stage2={"contrast_scale": scale}, round_deep_prompts=rounded)
        grad = jax.jit(jax.value_and_grad(method.stage2_loss, has_aux=True))
        (_, (_, terms)), grads = grad(trainable, frozen, {}, made, None, LATE)
        arrays |= grads_of(f"total{after}", grads)
        for before in BRANCHES:
            arrays[f"{before}loss_total{after}"] = sum(terms[before + ours] for ours in TERMS.values())
    size, where = made["view_mask"].shape[-1], (made["pixel"], made["visible"], made["valid"])
    for before, (ours, _) in BRANCHES.items():
        one = found[ours]
        maps = jnp.moveaxis(upsample(one.cells, size), -1, 2).reshape(-1, 2, size, size)
        arrays |= {f"{before}view_logits": rows(one.view_logits), f"{before}similarity_map": maps,
                   f"{before}global_logits": object_logits(one.view_logits, mixed=True),
                   f"{before}global_logits_by_object": object_logits(one.view_logits),
                   f"{before}d3_similarity_map": on_grid(lift(one.cells, *where, size))}  # fmt: skip
    # All local tokens, the V-V path's class token among them, as stage 1 aligns them.
    encoded = views.encode_vv(this.model.clip, this.model.visual, images(this.recording.value("x/render")))
    grey = normalise(jnp.concatenate([encoded.cls[..., None, :], encoded.tokens[-1]], axis=-2))
    aligned = rows(aligner.align(params["aligner"], grey))
    return arrays | {"aligned_global": aligned[:, 0], "aligned_local": aligned[:, 1:]}


def training2(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    settings = entries[0].about["settings"]
    epochs = settings["epochs"]
    stage = {"epochs": epochs, "contrast_epochs": epochs - settings["aligned_from_epoch"],
             "contrast_scale": settings["alignment_loss_scale"], "learning_rate": settings["learning_rate"]}  # fmt: skip
    params = {**this.params, "clip": this.model.text}
    made = branch_batch(this, entries[0])
    after, metrics = trained(this.method(stage2=stage).stages[1], params, [made] * epochs, 1)
    arrays: dict[str, Any] = {}
    for before, (ours, theirs) in BRANCHES.items():
        losses = np.array([[row[before + name] for name in TERMS.values()] for row in metrics])
        losses[:, -1] /= settings["alignment_loss_scale"]  # recorded as it is, from where it counts on
        arrays[f"{before}adam_losses"] = losses
        arrays |= {f"{before}adam:{theirs}.{key}": x for key, x in prompts_to_torch(after[ours]).items()}
    return arrays


def scores(this: Recorded, entries: list[Entry]) -> dict[str, Any]:
    """One object under the settings of every released script; their object score is a sum, ours the mean of the same two."""
    made = batch(this.model, entries[0], ("render",), labels=False)
    plain, size = this.method(), made["render"].shape[2]
    found = jax.jit(lambda params, made: plain.compare(params, plain.texts(params), made))(this.params, made)
    where, arrays = (made["pixel"], made["visible"], made["valid"], size), {}
    for before, (ours, _) in {"rgb_": BRANCHES["rgb_"], "render_": BRANCHES[""]}.items():
        points = lift(found[ours].cells[..., 1], *where)
        arrays |= {f"{before}prob": views.view_probability(found[ours]).mean(-1), f"{before}points": on_grid(points),
                   f"{before}map": rows(upsample(found[ours].cells[..., 1:], size)[..., 0]),
                   f"{before}points_smooth": on_grid(plain.smoothed(points, made, False))}  # fmt: skip
    for script, about in {e.key.partition(":")[0]: e.about["settings"] for e in entries if ":" in e.key}.items():
        points, whole = about["dataset"] == "mvtec_pc_3d_rgb", about["need_blur"]
        weights = {"image_weight": about["image_level_weight"], "point_weight": about["point_level_weight"]}
        method = this.method(**weights, second_blur=blurred(points, whole))
        found_here = method.score(found, made)
        arrays |= {f"{script}:score": 2 * found_here.object[0], f"{script}:map": on_grid(found_here.points)}
    return arrays
