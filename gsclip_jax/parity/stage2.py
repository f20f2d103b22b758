"""Item n: stage 2's losses, the gradients of SRM and LoRA, and the short Adam run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.parity.assembled import batch, render_tokens, stage_text
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.names import fusion_to_torch
from gsclip_jax.parity.recording import Entry, Model
from gsclip_jax.parity.stage1 import settings, trajectory
from gsclip_jax.training.optim import Adam

LOSSES = ("d3_point_loss", "d2_image_loss", "cons_loss", "total", "cons_loss_feature_dim", "d3_global_loss", "d2_pixel_loss")
RELEASED = dict(srm_tokens="cls", stage2_losses="point_view", mixed_views=True, consistency_axis=1, normalise_fused=False,
                own_depth_tower=True)  # fmt: skip


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    """LoRA takes gradients (the recorded run had them switched on), nothing is dropped, prompts are in inference mode."""
    method = model.method(**RELEASED)
    logged = model.method(**RELEASED | {"stage2_losses": "all"})  # terms the released code computes but does not train on
    along_features = model.method(**RELEASED | {"consistency_axis": -1})
    made = batch(model, entries[0], ("render", "depth"))
    made |= {"render_tokens": render_tokens(model, made)}
    del made["render"]
    made |= {"text": stage_text(model, model.recording.source(entries[0], "in_cloudsB", "m"))}

    def losses(trainable, weights, frozen, made):
        tokens = method.stage2_tokens({**frozen, **trainable}, made, None)
        found = method.compare(tokens, made["text"])
        terms, every, other = (m.stage2_terms(found, made) for m in (method, logged, along_features))
        values = jnp.stack([terms["point"], terms["view"], terms["consistency"], sum(terms.values()), other["consistency"],
                            every["object"], every["pixel"]])  # fmt: skip
        return weights @ values, (values, found.view_global)

    grad = jax.jit(jax.value_and_grad(losses, has_aux=True))
    depth, lora = model.depth
    frozen, trainable = {"clip_depth": depth}, {"srm": model.srm, "lora": lora}

    def run(params: dict[str, Any], loss: str) -> tuple[dict[str, np.ndarray], Any, jax.Array]:
        weights = np.array([name == loss for name in LOSSES], np.float32)
        (_, (values, fused)), grads = grad(params, weights, frozen, made)
        return dict(zip(LOSSES, np.asarray(values), strict=True)), grads, fused

    wanted = {match[1] for e in entries if (match := re.match(r"grad_(\w+):", e.key))} & set(LOSSES)
    grads = {}
    for loss in sorted(wanted | {"total"}):
        values, tree, fused = run(trainable, loss)
        grads[loss] = fusion_to_torch(tree)
    # What training differentiates must be the sum that was taken apart here.
    whole = jax.jit(lambda params, frozen, made: method.stage2_loss(params, frozen, {}, made, None)[0])
    arrays = {"fused": fused.reshape(-1, fused.shape[-1]), **{f"loss_{name}": value for name, value in values.items()}}
    arrays["loss_total"] = whole(trainable, frozen, made)
    for entry in entries:
        if entry.key in arrays:
            yield Found(entry, arrays[entry.key])
        elif entry.key == "adam_losses":
            steps, (fusion_rate, lora_rate), betas = settings(entry.about)
            rates = {"srm": fusion_rate, "lora": lora_rate}
            path = trajectory(Adam(betas), rates, trainable, steps, lambda params: run(params, "total")[:2])
            yield Found(entry, np.array([[found[name] for name in LOSSES[:3]] for found, _ in path]))
        elif (match := re.fullmatch(r"grad_(\w+):(.+)", entry.key)) and match[2] in grads.get(match[1], {}):
            yield Found(entry, grads[match[1]][match[2]])
