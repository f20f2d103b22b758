"""The losses of method.md. The paper's behaviour is the default; the released code's departures are keyword switches.

Axes: B objects, V views, H W pixels, M scored points, E embedding; class 0 = normal, 1 = anomalous. All in float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays
from gsclip_jax.models.lift import lift, upsample
from gsclip_jax.models.views import Evidence

SMOOTH = 1e-5  # label smoothing and floor of the focal loss, as released
COSINE_FLOOR = 1e-8


def focal(probs: jax.Array, mask: jax.Array, *, gamma: float = 2.0, truncate: bool = False) -> jax.Array:
    """Focal loss -(1 - p)^gamma log p, p the smoothed probability of the true class; mean over all pixels.

    Args:
      probs: [...,2], summing to one.
      mask: [...], bool or 0/1; a soft mask counts from one half on.
      truncate: released: soft targets are cut to integers, so that only 1.0 counts.
    """
    probs = probs.astype(jnp.float32)
    mask = mask.astype(jnp.float32)
    anomalous = mask >= 1 if truncate else mask > 0.5
    true, other = (jnp.where(anomalous, probs[..., a], probs[..., b]) for a, b in ((1, 0), (0, 1)))
    p = (1 - SMOOTH) * true + SMOOTH * other + SMOOTH
    return jnp.mean(-(jnp.maximum(1 - p, 0) ** gamma) * jnp.log(p))


def dice(probs: jax.Array, mask: jax.Array, *, valid: jax.Array | None = None, rows: int | None = None) -> jax.Array:
    """1 - Dice coefficient of one class, smoothed by 1, mean over the items of the leading axis.

    Args:
      probs: [n,...] probabilities of the class.
      mask: [n,...] where the class is true (bool, 0/1 or soft).
      valid: [n,...] bool; entries outside (padding) take no part.
      rows: released, batch of one object: a squeeze makes every one of the `rows` rows of the map an item of its own.
    """
    probs, mask = probs.astype(jnp.float32), mask.astype(jnp.float32)
    if valid is not None:
        probs, mask = probs * valid, mask * valid
    items = probs.shape[0] * (rows or 1)
    probs, mask = probs.reshape(items, -1), mask.reshape(items, -1)
    overlap = (probs * mask).sum(-1)
    return jnp.mean(1 - (2 * overlap + 1) / (probs.sum(-1) + mask.sum(-1) + 1))


def dice_both(probs: jax.Array, mask: jax.Array, *, valid: jax.Array | None = None,
              rows: int | None = None) -> jax.Array:
    """Dice loss of the anomalous class plus that of the normal one: probs [n,...,2], mask [n,...]; rest as `dice`."""
    mask = mask.astype(jnp.float32)
    return (dice(probs[..., 1], mask, valid=valid, rows=rows) + dice(probs[..., 0], 1 - mask, valid=valid, rows=rows))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy: logits [...,classes] (temperature already applied), labels int [...]."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


def object_logits(view_logits: jax.Array, *, mixed: bool = False) -> jax.Array:
    """Mean logits of every object's own views: [B,V,2] -> [B,2].

    mixed: released: the flattened rows are cut into V chunks of B, so "object" i averages rows i, i + B, i + 2B, ...
    """
    batch, views, classes = view_logits.shape
    if mixed:
        return view_logits.reshape(views, batch, classes).mean(0)
    return view_logits.mean(1)


def classification(view_logits: jax.Array, view_label: jax.Array, label: jax.Array, *, mixed: bool = False,
                   per_object: bool = True) -> dict[str, jax.Array]:
    """L_cla in its two parts: {"view": cross-entropy per view, "object": of the mean over views}; L_cla is their sum.

    Args:
      view_logits: [B,V,2], cosines / tau.
      view_label, label: int [B,V], [B].
      mixed: see `object_logits`.
      per_object: False leaves the object part out (released stage 2 does not train on it).
    """
    parts = {"view": cross_entropy(view_logits, view_label)}
    if per_object:
        parts["object"] = cross_entropy(object_logits(view_logits, mixed=mixed), label)
    return parts


def segmentation(view_maps: jax.Array, view_mask: jax.Array, point_maps: jax.Array, point_mask: jax.Array,
                 valid: jax.Array | None = None, *, rows: int | None = None, truncate: bool = False,
                 per_view: bool = True) -> dict[str, jax.Array]:
    """L_seg in two parts: {"pixel": focal + Dice of both classes on the views, "point": Dice of both on the points}.

    Args:
      view_maps, view_mask: [B,V,H,W,2], [B,V,H,W].
      point_maps, point_mask: [B,M,2], [B,M].
      valid: [B,M]; None (released): padding points count, with probability 0 of either class.
      rows: of the point map, see `dice` (released, one object a batch).
      truncate: see `focal`.
      per_view: False leaves the pixel part out (released stage 2 does not train on it).
    """
    parts = {"point": dice_both(point_maps, point_mask, valid=valid, rows=rows)}
    if per_view:
        maps = view_maps.reshape(-1, *view_maps.shape[2:])  # one Dice per view
        mask = view_mask.reshape(-1, *view_mask.shape[2:])
        parts["pixel"] = focal(maps, mask, truncate=truncate) + dice_both(maps, mask)
    return parts


def supervised(found: Evidence, batch: Arrays, *, mixed: bool = False, everything: bool = True, padding: bool = False,
               per_row: bool = False) -> dict[str, jax.Array]:
    """The terms of L_cla + L_seg for the views' evidence, on the views and lifted to the points.

    Args:
      mixed: see `object_logits`.
      everything: False leaves out the object and pixel parts (released stage 2 does not train on them).
      padding: released: empty cells count in the point Dice.
      per_row: released, one object a batch: see `dice`.
    """
    size, valid = batch["view_mask"].shape[-1], batch["valid"]
    rows = round(valid.shape[1] ** 0.5) if per_row and valid.shape[0] == 1 else None
    point_maps = lift(found.cells, batch["pixel"], batch["visible"], valid, size)
    terms = classification(found.view_logits, batch["view_label"], batch["label"], mixed=mixed, per_object=everything)
    return terms | segmentation(
        upsample(found.cells, size), batch["view_mask"], point_maps, batch["point_mask"], None if padding else valid, rows=rows,
        per_view=everything,
    )  # fmt: skip


def consistency(fused: jax.Array, *, axis: int = -1) -> jax.Array:
    """L_con = 1 - mean cosine between each view's fused global feature and their mean: [B,V,E] -> scalar.

    axis: of the cosine; -1 = features (paper), 1 = views (released: PyTorch's default dimension).
    """
    fused = fused.astype(jnp.float32)
    mean = jnp.broadcast_to(fused.mean(1, keepdims=True), fused.shape)

    def length(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis), COSINE_FLOOR**2))

    cosine = (fused * mean).sum(axis) / (length(fused) * length(mean))
    return 1 - cosine.mean()
