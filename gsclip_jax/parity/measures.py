"""Items k, l, p: losses with their gradients, metrics, and what the data pipeline does to clouds and visibility."""

from __future__ import annotations

import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from gsclip_jax.evaluation import metrics
from gsclip_jax.methods.gsclip.losses import cross_entropy, dice, focal
from gsclip_jax.models.smoothing import smooth_grid
from gsclip_jax.models.views import object_score
from gsclip_jax.parity.check import Found
from gsclip_jax.parity.recording import Entry, Model

FILLED = ("the released code copies a hidden point's visibility from a neighbour in storage order and keeps its own pixel; we "
          "take views and pixels of the nearest visible neighbour in 3D (checked here on the cells of the grid)")  # fmt: skip


def answers(model: Model, entries: list[Entry]) -> Iterator[Found]:
    yield from {"k": _losses, "l": _metrics, "p": _clouds}[entries[0].item](model, entries)


@jax.jit
def _loss_terms(logits, mask):
    """Values and gradients of the losses of maps [n,2,H,W]; the recorded focal loss truncates soft targets."""
    maps = jax.nn.softmax(logits, axis=1)
    losses = {
        "focal": lambda maps: focal(jnp.moveaxis(maps, 1, -1), mask, truncate=True),
        "dice1": lambda maps: dice(maps[:, 1], mask),
        "dice0": lambda maps: dice(maps[:, 0], 1 - mask),
    }
    return {name: jax.value_and_grad(loss)(maps) for name, loss in losses.items()}


def _losses(model: Model, entries: list[Entry]) -> Iterator[Found]:
    recording, runs = model.recording, {}
    for entry in entries:
        if match := re.fullmatch(r"(grad_)?(focal|dice1|dice0)_(hard|soft)", entry.key):
            kind = match[3]
            if kind not in runs:
                logits, mask = (recording.value(recording.source(entry, leaf)) for leaf in ("map_logits", f"in_{kind}_mask"))
                runs[kind] = _loss_terms(logits, mask[:, 0])
            yield Found(entry, runs[kind][match[2]][1 if match[1] else 0])
        elif entry.key == "cross_entropy":
            logits, labels = (recording.value(recording.source(entry, leaf)) for leaf in ("ce_logits", "in_labels"))
            yield Found(entry, cross_entropy(logits, labels))


def _metrics(model: Model, entries: list[Entry]) -> Iterator[Found]:
    recording = model.recording
    maps, masks, probabilities, labels = (recording.value(recording.source(entries[0], f"in_{leaf}"))
                                          for leaf in ("maps", "masks", "probs", "labels"))  # fmt: skip
    filtered = smooth_grid(jnp.asarray(maps))
    scores = object_score(filtered.reshape(len(maps), -1), jnp.asarray(probabilities))
    objects = {"gaussian": filtered, "object_score": scores, "image_auroc": metrics.roc_auc(labels, np.asarray(scores)),
               "image_ap": metrics.average_precision(labels, np.asarray(scores))}  # fmt: skip
    regions = metrics.join_regions([metrics.regions_grid(mask) for mask in masks])
    of_floats = metrics.join_regions([metrics.regions_grid(mask) for mask in masks.astype(np.float32)])
    for entry in entries:
        values = np.asarray(filtered) if entry.key.endswith("_filtered") else maps
        key = entry.key.removesuffix("_filtered")
        if key in objects:
            yield Found(entry, objects[key])
        elif key in ("pixel_auroc", "pixel_ap"):
            yield Found(entry, (metrics.roc_auc if key == "pixel_auroc" else metrics.average_precision)(masks, values))
        elif key == "aupro_constant":
            yield Found(entry, metrics.p_pro_released(regions, np.full_like(maps, 0.5)))
        elif key == "aupro_float_masks":
            yield Found(entry, metrics.p_pro_released(of_floats, maps))
        elif match := re.fullmatch(r"aupro(?:_step(\d+)_fpr([\d.]+))?", key):
            steps, limit = int(match[1] or 200), float(match[2] or 0.3)
            yield Found(entry, metrics.p_pro_released(regions, values, steps=steps, limit=limit))


def _clouds(model: Model, entries: list[Entry]) -> Iterator[Found]:
    # The one place that reaches across to the data pipeline's functions, and only when its arrays are checked.
    from data_pipelines.clouds import sampling
    from data_pipelines.rendering import views

    recording = model.recording
    for entry in entries:
        if entry.key == "normalised":
            yield Found(entry, sampling.unit_sphere(recording.value(recording.source(entry, "in_raw"))))
        elif entry.key in ("filled", "left"):
            where, real = (recording.value(recording.source(entry, leaf)) for leaf in ("in_cor", "in_nonzero"))
            ours, wanted = _filled(views.fill_unseen, where, real[:, 0] > 0)
            if entry.key == "filled":
                yield Found(entry, ours, FILLED, wanted)
            else:
                left = np.flatnonzero((real[:, 0] > 0) & ~(ours[..., 2] > 0).any(0)).astype(np.int32)
                yield Found(entry, left, FILLED, recording.array(entry.name))


def _filled(fill, where: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correspondences [V,P,3] after the pipeline's filling, and what the definition says, point by point.

    The recorded input has no coordinates: the cells of its square grid, slightly sheared so that no two neighbours are
    equally far, stand in for them. Empty cells take no part."""
    side = round(where.shape[1] ** 0.5)
    row, column = np.divmod(np.arange(where.shape[1]), side)
    xyz = np.stack([column + 0.013 * row, row + 0.0071 * column, 0.1 * np.sin(column + 2.0 * row)], -1)
    ours, wanted = where.copy(), where.copy()
    pixel, visible = fill(xyz[real], where[:, real, :2], where[:, real, 2] > 0)
    ours[:, real, :2], ours[:, real, 2] = pixel, visible
    found = real & (where[..., 2] > 0).any(0)
    for point in np.flatnonzero(real & ~found):
        candidates = np.flatnonzero(found)
        nearest = candidates[np.square(xyz[candidates] - xyz[point]).sum(-1).argmin()]
        wanted[:, point] = where[:, nearest]
    return ours, wanted
