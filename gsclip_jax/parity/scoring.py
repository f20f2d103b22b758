"""Item o: everything at test time, from views, colour image and cloud to maps and scores."""

from __future__ import annotations

from collections.abc import Iterator

import jax

from gsclip_jax.methods.gsclip import rgb
from gsclip_jax.models.lift import lift
from gsclip_jax.parity.assembled import batch
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.recording import Entry, Model

RELEASED = dict(srm_tokens="cls", normalise_fused=False, own_depth_tower=True)
# The released test scripts, and the switches that make ours do the same; the second has no colour.
SCRIPTS = {"test2": {}, "test_only_point2": {"depth_through_render": True}}


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.key.partition(":")[0], []).append(entry)
    for script, group in groups.items():
        if script not in SCRIPTS:
            continue
        colour = any(e.key.partition(":")[2].startswith(("color_", "integrate_")) for e in group)
        made = batch(model, group[0], ("render", "depth", *(["rgb"] if colour else [])))
        made |= {"cloud": model.recording.value(model.recording.source(group[0], "in_cloudC"))}
        arrays = _arrays(model, SCRIPTS[script], made, colour)
        for entry in group:
            if entry.key.partition(":")[2] in arrays:
                yield Found(entry, arrays[entry.key.partition(":")[2]])


def _arrays(model: Model, switches: dict, made: dict, colour: bool) -> dict[str, jax.Array]:
    """The recorded arrays of one script. The parts are those that `GsClip.predict` and `predict_rgb` are made of."""
    method = model.method(**RELEASED, **switches)
    size = made["view_mask"].shape[-1]

    @jax.jit
    def run(params, stats, made):
        found, text = method.evidence(params, stats, made)
        scores = method.score(found, made)
        side = round(made["valid"].shape[1] ** 0.5)
        arrays = {
            "prob": jax.nn.softmax(found.view_logits, axis=-1)[..., 1].mean(1),
            "map": scores.views.reshape(-1, size, size),
            "points": lift(found.cells, made["pixel"], made["visible"], made["valid"], size).reshape(-1, side, side, 2),
            "anomaly_map": scores.points.reshape(-1, side, side),
            "score": scores.object,
        }
        if colour:
            joint = rgb.join_rgb(rgb.colour_evidence(method, params, text, made), scores, method.smoothing.sigma)
            arrays |= {"color_map": joint["colour_map"], "color_prob": joint["colour_probability"],
                       "color_score": joint["colour"], "integrate_map": joint["joint_map"],
                       "integrate_score": joint["joint"]}  # fmt: skip
        return arrays

    learner, stats = model.learner
    depth, lora = model.depth
    clip = {**model.text, **model.visual}
    return run({**learner, "clip": clip, "clip_depth": depth, "srm": model.srm, "lora": lora}, stats, made)
