"""Item m: stage 1's losses, the gradient of every listed parameter, and the short Adam runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gsclip_jax.methods.gsclip.losses import object_logits
from gsclip_jax.models.lift import lift, upsample
from gsclip_jax.parity.assembled import batch, on_grid, render_tokens
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.names import learner_to_torch
from gsclip_jax.parity.recording import Entry, Model
from gsclip_jax.training.optim import Adam

# The released names of our terms, in the order in which the Adam runs list them; then the sum, and the corrected grouping.
TERMS = {"d2_image_loss": "view", "d3_global_loss": "object", "d2_pixel_loss": "pixel", "d3_point_loss": "point"}
LOSSES = (*TERMS, "total", "d3_global_loss_by_object")
GROUPS = ("prompts", "gddm", "pointnet2")


@dataclass
class Run:
    """Compiled once: losses and gradients in inference mode (`grad`) and with batch statistics (`train_grad`)."""

    model: Model
    made: dict[str, Any]
    grad: Any
    train_grad: Any

    def losses(self, trainable: Mapping[str, Any], loss: str) -> tuple[dict[str, jax.Array], Mapping[str, Any], tuple]:
        """(every loss by name, gradient of `loss`, (text, view logits, cells))."""
        weights = np.array([name == loss for name in LOSSES], np.float32)
        (_, (values, rest)), grads = self.grad(trainable, weights, self.model.text, self.model.learner[1], self.made)
        return dict(zip(LOSSES, np.asarray(values), strict=True)), grads, rest


def prepare(model: Model, entry: Entry) -> Run:
    mixed, by_object = model.method(mixed_views=True), model.method()
    made = batch(model, entry, ("render",))
    made |= {"cloud": model.recording.value(model.recording.source(entry, "in_cloudsB", "m"))}
    made |= {"render_tokens": render_tokens(model, made)}
    del made["render"]

    def losses(trainable, weights, clip, stats, made):
        frozen = {"clip": clip}
        text = mixed.text({**frozen, **trainable}, stats, made["cloud"], train=False)[0]
        given = {**made, "text": text}
        total, (_, terms) = mixed.stage1_loss(trainable, frozen, stats, given, None)
        own = by_object.stage1_loss(trainable, frozen, stats, given, None)[1][1]["object"]
        values = jnp.stack([*(terms[name] for name in TERMS.values()), total, own])
        found = mixed.compare(made["render_tokens"], text)
        return weights @ values, (values, (text, found.view_logits, found.cells))

    def train_losses(trainable, clip, stats, made):
        return mixed.stage1_loss(trainable, {"clip": clip}, stats, made, None)

    return Run(model, made, jax.jit(jax.value_and_grad(losses, has_aux=True)),
               jax.jit(jax.value_and_grad(train_losses, has_aux=True)))  # fmt: skip


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    run = prepare(model, entries[0])
    learner, stats = model.learner
    network = model.net
    wanted = {match[1] for e in entries if (match := re.match(r"grad_(?:norms_)?(\w+?)(?::|$)", e.key))} & set(LOSSES)
    grads = {}
    for loss in sorted(wanted | {"total"}):
        values, tree, (text, view_logits, cells) = run.losses(learner, loss)
        grads[loss] = learner_to_torch(tree, network)
    made = run.made
    size = made["view_mask"].shape[-1]
    arrays = {
        "view_logits": view_logits.reshape(-1, 2),
        "global_logits": object_logits(view_logits, mixed=True),
        "global_logits_by_object": object_logits(view_logits),
        "text_features": text,
        "similarity_map": jnp.moveaxis(upsample(cells, size), -1, 2).reshape(-1, 2, size, size),
        "d3_similarity_map": on_grid(lift(cells, made["pixel"], made["visible"], made["valid"], size)),
        **{f"loss_{name}": value for name, value in values.items()},
    }
    if any(e.key.startswith("train_mode_") for e in entries):
        (_, (_, terms)), tree = run.train_grad(learner, model.text, stats, made)
        arrays |= {f"train_mode_loss_{name}": terms[ours] for name, ours in TERMS.items()}
        grads["train_mode"] = learner_to_torch(tree, network)
    adam = {prefix: adam_run(run, entries, prefix) for prefix in ("adam_frozen_pointnet_", "adam_")
            if any(e.key.startswith(prefix) for e in entries)}  # fmt: skip
    for entry in entries:
        if entry.key in arrays:
            yield Found(entry, arrays[entry.key])
        elif entry.key == "grad_norms_total":
            idle = set(model.recording.manifest.get("stage1_parameters_without_gradient", ()))
            names = sorted(name for name in grads["total"] if name not in idle)
            yield Found(entry, np.array([np.sqrt(np.square(grads["total"][n], dtype=np.float64).sum()) for n in names]))
        elif match := re.fullmatch(r"(?:grad_(\w+)|(train_mode)_grad_total):(.+)", entry.key):
            found = grads.get(match[1] or match[2], {})
            if match[3] in found:
                yield Found(entry, found[match[3]])
        elif match := re.match("adam_(frozen_pointnet_)?", entry.key):
            found = adam[match[0]]
            if entry.key.removeprefix(match[0]) in found:
                yield Found(entry, found[entry.key.removeprefix(match[0])])


def settings(about: Mapping[str, Any]) -> tuple[int, tuple[float, ...], tuple[float, float]]:
    """(steps, learning rates, betas) of an Adam run, read from the description of its losses."""
    what = about["what"]
    rates = tuple(float(rate) for rate in re.findall(r"(?:lr|and) (\d[\d.e-]*\d)", what))
    first, second = re.search(r"betas \(([\d.]+), ?([\d.]+)\)", what).groups()
    return about["shape"][0] - 1, rates, (float(first), float(second))


def adam_run(run: Run, entries: list[Entry], prefix: str) -> dict[str, np.ndarray]:
    """Losses before each step and after the last, and every parameter then, by the training loop's own optimiser."""
    about = next(e.about for e in entries if e.key == f"{prefix}losses")
    steps, (rate, *_), betas = settings(about)
    without = prefix.endswith("frozen_pointnet_")
    trained = [group for group in GROUPS if not (without and group == "pointnet2")]
    rates, start = dict.fromkeys(trained, rate), run.model.learner[0]
    path = list(trajectory(Adam(betas), rates, start, steps, lambda params: run.losses(params, "total")[:2]))
    losses = np.array([[values[name] for name in TERMS] for values, _ in path])
    return {"losses": losses, **learner_to_torch(path[-1][1], run.model.net)}


def trajectory(
    adam: Adam, rates: Mapping[str, float], params: dict[str, Any], steps: int, losses
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(losses, parameters they belong to) before each of `steps` steps on the same batch, and after the last.

    Args:
      rates: group that trains -> learning rate.
    """
    optimiser = adam.build(rates, steps)

    @jax.jit
    def step(grads, state, trainable):
        updates, state = optimiser.update(grads, state, trainable)
        return optax.apply_updates(trainable, updates), state

    state = jax.jit(optimiser.init)({group: params[group] for group in rates})
    for number in range(steps + 1):
        values, grads = losses(params)
        yield values, params
        if number < steps:
            trainable = {group: params[group] for group in rates}
            trainable, state = step({group: grads[group] for group in rates}, state, trainable)
            params = {**params, **trainable}


