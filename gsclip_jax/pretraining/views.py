"""Batches for pretraining: augmented views with their captions and twins, and clouds. Host side, numpy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from gsclip_jax.methods.surface.surface_variation import smoothed_variation

PICTURES = ("render", "depth")
PARTS = ("", "_keep", "_mask", "_sure", "_roughness")  # of a batch, for each of the PICTURES
FLATTEST = 1e-4  # surface variation that counts as flat
PLAIN = {"render": 24.0, "depth": 8.0}  # a change of so many grey levels is plain to see
DOUBT = 0.15  # how much a defect counts that cannot be seen


def view_batches(
    views: dict[str, Any], captioner, *, batch_size: int, patch: int, keep: int, seed: int, first: int = 0, pairs: int = 12
) -> Iterator[dict]:
    """Endless augmented batches for ClipPretraining, resumable: step s depends on (seed, s) alone.

    Args:
      views: render, depth uint8 [R,V,H,W]; view_mask bool [R,V,H,W]; roughness uint8 [R,V,H,W] (`roughness_maps`); category,
        defect lists of R names; twin int [R], the row of the same body without the defect, -1 for sound ones
        (of sound solids alone: each its own).
      captioner: `caption(rng, category, defect, damaged, modality)` -> ids [T], `pair(rng, category)` -> ids [2,T].
      batch_size: B renders and B depth views a step, drawn separately: half defective, then their twins.
      keep: K patches of a view that are encoded: those the object fills, in a random choice where they are more.
      pairs: N different pairs of sentences a step.
    """
    names = sorted(set(views["category"]))
    visible = views["view_mask"].any((2, 3))
    if not visible.any():  # sound solids only: every view will do
        visible = (views["depth"] < 255).any((2, 3))
    rows = np.flatnonzero(visible.any(1) & (views["twin"] >= 0))
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        fields: dict[str, list] = {m + part: [] for m in PICTURES for part in PARTS}
        captions, damaged, view_sure = [], [], []
        for modality in PICTURES:
            drawn: list[list[tuple]] = [[], []]
            for row in rng.choice(rows, batch_size // 2):
                view = rng.choice(np.flatnonzero(visible[row]))
                mask = views["view_mask"][row, view]
                twin = views["twin"][row]
                pictures, (mask, *roughness) = augment(
                    rng, [views[modality][row, view], views[modality][twin, view]],
                    [mask, views["roughness"][row, view], views["roughness"][twin, view]], shade=modality == "render",
                )  # fmt: skip
                cover = _share(pictures[0] < 255, patch)
                kept = np.sort(np.argsort(-np.minimum(cover, 0.25) + 0.02 * rng.random(len(cover)))[:keep]).astype(np.int32)
                share = _share(mask, patch)[kept].astype(np.float32)
                seen = visible_change(*pictures, mask, patch, PLAIN[modality])[kept].astype(np.float32)
                sure = 1 - np.minimum(2 * share, 1) * (1 - seen)
                whole = np.clip((share * seen).sum() * patch**2 / 40, DOUBT, 1)
                geometry = [patch_roughness(x, patch) for x in roughness]
                drawn[0].append((row, pictures[0], kept, share, sure, geometry[0], whole))
                drawn[1].append((twin, pictures[1], kept, np.zeros_like(share), np.ones_like(share), geometry[1], 1.0))
            for row, image, kept, share, sure, roughness, whole in drawn[0] + drawn[1]:
                is_damaged = int(share.sum() * patch**2 >= 4)
                for part, value in zip(PARTS, (image, kept, share, sure, roughness), strict=True):
                    fields[modality + part].append(value)
                view_sure.append(whole)
                captions.append(captioner.caption(rng, views["category"][row], views["defect"][row], is_damaged, modality))
                damaged.append(is_damaged)
        yield {
            **{name: np.stack(value) for name, value in fields.items()},
            "caption": np.stack(captions),
            "pair": np.stack([captioner.pair(rng, rng.choice(names)) for _ in range(pairs)]),
            "pair_of": rng.integers(pairs, size=2 * batch_size).astype(np.int32),
            "damaged": np.array(damaged, np.int32),
            "view_sure": np.array(view_sure, np.float32),
        }
        step += 1


def visible_change(image: np.ndarray, twin: np.ndarray, mask: np.ndarray, patch: int, plain: float) -> np.ndarray:
    """How visible the defect is in each patch, [P] from DOUBT to 1: the mean change of grey against the twin over the masked
    pixels, as a share of `plain`; 1 where nothing is masked."""
    change = np.abs(image.astype(np.float32) - twin) * mask
    masked = _share(mask, patch)
    seen = _share(change, patch) / np.maximum(masked, 1e-6) / plain
    return np.where(masked > 0, np.clip(seen, DOUBT, 1), 1)


def twins(rows: list[dict]) -> np.ndarray:
    """For every row of an index of the embedded data set (name, category, label) the row of the sound object of its number."""
    sound = {(row["category"], int(row["name"].split("_")[0]) // 2): i for i, row in enumerate(rows) if not row["label"]}
    return np.array([sound.get((r["category"], int(r["name"].split("_")[0]) // 2), -1) if r["label"] else -1 for r in rows])


def _share(pixels: np.ndarray, patch: int) -> np.ndarray:
    """Mean of the pixels [S,S] of each patch (of bools, the share of true ones), [P] row by row."""
    side = pixels.shape[0] // patch
    return pixels.reshape(side, patch, side, patch).mean((1, 3)).reshape(-1)


def augment(
    rng: np.random.Generator, views: list[np.ndarray], maps: list[np.ndarray], shade: bool, tilt: float = 20.0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A nearer or farther look that may cut the object, quarter turns and a tilt of up to `tilt` degrees, mirroring, and for
    shaded views a change of brightness.

    The same for all `views`, uint8 [S,S] with background 255, which are resampled linearly, and all `maps`, bool or uint8 [S,S],
    which keep their values. Where the look goes does not depend on the maps: a crop round the defect teaches "the middle of the
    picture is defective".
    """
    size = views[0].shape[0]
    side = int(size * rng.uniform(0.6, 1.15))
    centre = []
    for axis in (0, 1):  # column, row
        filled = np.flatnonzero((views[0] < 255).any(axis))
        low, high = (filled[0], filled[-1]) if len(filled) else (0, size - 1)
        slack = max(abs(side - (high - low)) / 2, 0.15 * side)
        start = np.clip((low + high - side) / 2 + rng.uniform(-slack, slack), -size // 2, size)
        centre.append(start + side / 2)
    angle = np.deg2rad(90 * rng.integers(4) + rng.uniform(-tilt, tilt))
    flip, gain, lift = 1 - 2 * (rng.random() < 0.5), rng.uniform(0.8, 1.15), rng.uniform(-12, 12)
    # A place (x, y) of the result, from its middle, shows centre + turn @ (x, y) of the view.
    turn = side / size * np.array([[np.cos(angle) * flip, -np.sin(angle)], [np.sin(angle) * flip, np.cos(angle)]])
    offset = np.array(centre) - turn @ [size / 2, size / 2]
    affine = (*turn[0], offset[0], *turn[1], offset[1])

    def look(picture: np.ndarray, how: Image.Resampling, outside: int) -> np.ndarray:
        found = Image.fromarray(picture).transform((size, size), Image.Transform.AFFINE, affine, how, fillcolor=outside)
        return np.asarray(found)

    seen = [look(view, Image.Resampling.BILINEAR, 255) for view in views]
    if shade:
        seen = [np.where(x < 255, np.rint(np.clip(x * gain + lift, 0, 254)), 255).astype(np.uint8) for x in seen]
    nearest = Image.Resampling.NEAREST
    moved = [look(x.view(np.uint8), nearest, 0).view(bool) if x.dtype == bool else look(x, nearest, 255) for x in maps]
    return seen, moved


def roughness_maps(batch: dict[str, np.ndarray]) -> np.ndarray:
    """Surface variation of the point each pixel shows, uint8 [B,V,H,W]: its logarithm, FLATTEST 0 to 1 254; background 255.

    Args:
      batch: xyz, neighbours, valid, pixel, visible and depth of `data_pipelines.batch.FIELDS`.
    """
    fields = {name: batch[name] for name in ("xyz", "neighbours", "valid", "render")}
    variation = np.asarray(_surface_variation(fields))  # [B,M]
    grey = np.rint(254 * np.clip(1 - np.log(variation + FLATTEST) / np.log(FLATTEST), 0, 1)).astype(np.uint8)
    out = np.full(batch["depth"].shape, 255, np.uint8)
    for body, view in np.ndindex(*out.shape[:2]):
        inside = batch["depth"][body, view] < 255
        points = np.flatnonzero(batch["visible"][body, view])
        if not len(points) or not inside.any():
            continue
        x, y = batch["pixel"][body, view, points].T
        shown = np.full(inside.shape, -1, np.int16)
        np.maximum.at(shown, (y, x), grey[body, points].astype(np.int16))
        row, column = distance_transform_edt(shown < 0, return_distances=False, return_indices=True)
        out[body, view][inside] = shown[row, column][inside]
    return out


@jax.jit
def _surface_variation(fields: dict) -> jax.Array:
    return smoothed_variation(fields)


def patch_roughness(roughness: np.ndarray, patch: int) -> np.ndarray:
    """Mean and largest logarithm of surface variation in each patch of a map [S,S] of `roughness_maps`, plus 6: float32 [P,2]."""
    inside = roughness < 255
    nats = np.where(inside, (1 - roughness / np.float32(254)) * np.log(FLATTEST), 0)
    side = len(roughness) // patch
    largest = np.where(inside, nats, -np.inf).reshape(side, patch, side, patch).max((1, 3)).reshape(-1)
    mean = _share(nats, patch) / np.maximum(_share(inside, patch), 1e-6)
    return (np.stack([mean, np.maximum(largest, np.log(FLATTEST))], -1) + 6).astype(np.float32)


def cloud_batches(xyz, mask, category, *, batch_size: int, points: int, seed: int, first: int = 0) -> Iterator[dict]:
    """Endless batches for PointPretraining from scored points xyz [R,M,3], mask [R,M], category int [R]; randomly turned."""
    step = first
    while True:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(xyz), size=batch_size)
        clouds, labels = [], []
        for row in rows:
            chosen = rng.choice(xyz.shape[1], points, replace=False)
            cloud = xyz[row, chosen] - xyz[row, chosen].mean(0)
            cloud /= np.linalg.norm(cloud, axis=1).max()
            turn, _ = np.linalg.qr(rng.standard_normal((3, 3)))
            clouds.append((cloud @ turn).astype(np.float32))
            labels.append(mask[row, chosen].astype(np.int32))
        yield {"cloud": np.stack(clouds), "defective": np.stack(labels), "category": np.asarray(category, np.int32)[rows]}
        step += 1
