"""Clouds and views as little text: what a page holds of a scored object, and a browser unpacks (templates/viewer.js)."""

from __future__ import annotations

import base64
import io
import zlib

import numpy as np
from PIL import Image
from scipy.spatial import cKDTree

LIMIT = 200_000  # points a page shows of one object
STEPS = 2**16 - 1


def cloud(xyz: np.ndarray, points: np.ndarray | None = None, colours: np.ndarray | None = None,
          mask: np.ndarray | None = None, limit: int = LIMIT) -> dict:  # fmt: skip
    """A cloud for JSON: at most `limit` points, coordinates and scores in 65 536 steps each.

    Above the limit points are drawn at random with one seed, but a tenth of the limit is kept for the highest scores (and as much
    for the defective points): thinning hides no small defect.

    Args:
      xyz: [S,3], finite.
      points: [S] finite scores; None for points that have none.
      colours: uint8 [S,3].
      mask: bool [S], the ground truth.

    Returns: n, low [3] and step (coordinate = low + step * whole number, in the scan's unit), spacing (the typical distance to
      the next point shown), lowest and highest score, the direction `facing` from which the highest scores are seen, the names
      of the columns, and `data`: the columns, packed by `_packed`.
    """
    chosen = _thinned(points, mask, len(xyz), limit)
    xyz = np.asarray(xyz[chosen], np.float64)
    low = xyz.min(0) if len(xyz) else np.zeros(3)
    step = max(float(np.ptp(xyz, axis=0).max(initial=0)), 1e-300) / STEPS if len(xyz) else 1.0
    whole = np.rint((xyz - low) / step).astype(np.uint16)
    order = np.argsort(_morton(whole), kind="stable")
    columns, about = list(whole[order].T), {"columns": ["x", "y", "z"], "facing": None}
    if points is not None:
        quantised, ends = levels(points[chosen][order], STEPS)
        columns.append(quantised)
        about |= {"scores": ends, "facing": _facing(xyz, points[chosen])}
        about["columns"].append("score")
    if mask is not None:
        columns.append(mask[chosen][order].astype(np.uint16))
        about["columns"].append("mask")
    if colours is not None:
        columns += list(colours[chosen][order].astype(np.uint16).T)
        about["columns"] += ["red", "green", "blue"]
    return {"n": len(xyz), "low": low.tolist(), "step": step, "spacing": _spacing(xyz), **about, "data": _packed(columns)}


def views(render: np.ndarray, depth: np.ndarray, heat: np.ndarray) -> dict:
    """Views for JSON: one grey PNG each of render, depth and heat, the V views of [V,H,W] below each other.

    Args:
      render, depth: uint8.
      heat: float, NaN where a view shows no scored point: such pixels are 0, the others 1 to 255 between the ends `scores`.
    """
    found = np.isfinite(heat)
    quantised, ends = levels(heat[found], 254)
    picture = np.zeros(heat.shape, np.uint8)
    picture[found] = quantised + 1
    count, height, width = render.shape
    return {
        "count": count, "height": height, "width": width, "scores": ends, "hottest": int(hottest(heat)[0]),
        "render": _png(render), "depth": _png(depth), "heat": _png(picture),
    }  # fmt: skip


def hottest(heat: np.ndarray) -> np.ndarray:
    """The views of [V,H,W], int [V], in the order of how much they show of the highest hundredth of the pixels."""
    found = heat[np.isfinite(heat)]
    if not found.size:
        return np.arange(len(heat))
    hot = np.where(np.isfinite(heat), heat, -np.inf) >= np.quantile(found, 0.99)
    return np.argsort(-hot.sum((1, 2)), kind="stable")


def levels(values: np.ndarray, steps: int) -> tuple[np.ndarray, list[float]]:
    """Finite values [...] as whole numbers from 0 to `steps`, uint16; and the ends that 0 and `steps` stand for."""
    if not values.size:
        return np.zeros(values.shape, np.uint16), [0.0, 0.0]
    low, high = float(values.min()), float(values.max())
    share = (values.astype(np.float64) - low) / max(high - low, 1e-300)
    return np.rint(share * steps).astype(np.uint16), [low, high]


def _thinned(points: np.ndarray | None, mask: np.ndarray | None, count: int, limit: int) -> np.ndarray:
    if count <= limit:
        return np.arange(count)
    kept = np.zeros(count, bool)
    if points is not None:
        kept[np.argpartition(points, count - limit // 10)[count - limit // 10 :]] = True
    draw = np.random.default_rng(0)
    if mask is not None and mask.any():
        kept[draw.permutation(np.flatnonzero(mask))[: limit // 10]] = True
    kept[draw.permutation(np.flatnonzero(~kept))[: limit - kept.sum()]] = True
    return np.flatnonzero(kept)


def _morton(whole: np.ndarray) -> np.ndarray:
    """Neighbours in space become neighbours in the file, so that differences are small: uint64 [S] of uint16 [S,3]."""
    bits = whole.astype(np.uint64)
    for shift, pattern in ((32, 0x1F00000000FFFF), (16, 0x1F0000FF0000FF), (8, 0x100F00F00F00F00F), (4, 0x10C30C30C30C30C3),
                           (2, 0x1249249249249249)):  # fmt: skip
        bits = (bits | (bits << np.uint64(shift))) & np.uint64(pattern)
    return bits[:, 0] | bits[:, 1] << np.uint64(1) | bits[:, 2] << np.uint64(2)


def _packed(columns: list[np.ndarray]) -> str:
    """uint16 columns as base64: differences between rows, their signs in the lowest bit, low bytes before high ones, deflated."""
    planes = []
    for column in columns:
        change = np.diff(column.astype(np.int32), prepend=0).astype(np.int16)  # modulo 65 536
        folded = ((change.astype(np.int32) << 1) ^ (change.astype(np.int32) >> 15)).astype(np.uint16)
        planes += [(folded & 255).astype(np.uint8).tobytes(), (folded >> 8).astype(np.uint8).tobytes()]
    return base64.b64encode(zlib.compress(b"".join(planes), 6)).decode()


def _spacing(xyz: np.ndarray) -> float:
    if len(xyz) < 3:
        return 1.0
    probes = xyz[np.random.default_rng(0).permutation(len(xyz))[:2000]]
    near = min(9, len(xyz))  # the eighth is as far away on a grid as among random points: 1.5 steps of a grid
    distance, _ = cKDTree(xyz).query(probes, k=near)
    return float(np.median(distance[:, -1])) / (near / np.pi) ** 0.5 or float(np.ptp(xyz, axis=0).max()) / len(xyz) ** 0.5 or 1.0


def _facing(xyz: np.ndarray, points: np.ndarray) -> list[float] | None:
    """Unit vector [3] from which the highest scores are seen: the surface's normal there, pointing outwards; None if unknown."""
    if len(xyz) < 50:
        return None
    hot = xyz[points >= np.quantile(points, 0.99)]
    centre = hot[np.linalg.norm(hot - np.median(hot, axis=0), axis=1).argmin()]
    around = xyz[cKDTree(xyz).query(centre, k=min(len(xyz) // 20 + 10, 2000))[1]]
    normal = np.linalg.eigh(np.cov((around - around.mean(0)).T))[1][:, 0]
    outwards = centre - xyz.mean(0)
    normal *= 1 if normal @ outwards >= 0 else -1
    found = normal + 0.35 * outwards / max(np.linalg.norm(outwards), 1e-300)
    length = np.linalg.norm(found)
    return (found / length).tolist() if np.isfinite(length) and length > 0 else None


def _png(stack: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stack.reshape(-1, stack.shape[-1]))).save(buffer, "PNG", compress_level=6)
    return base64.b64encode(buffer.getvalue()).decode()
