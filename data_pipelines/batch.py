"""The contract between the data pipeline and the models: which fields a batch has, their axes and dtypes.

numpy only, so that models can import it without TensorFlow or Open3D.

Axes: B batch, V views, H and W pixels, N cloud points (PointNet++ input), M scored points, K neighbours, 2 = (x, y) or 3 = xyz.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Batch = Mapping[str, np.ndarray]

# field -> (axes, dtype, what). An int axis has that length; a letter has one length within a batch.
FIELDS: dict[str, tuple[tuple[str | int, ...], str, str]] = {
    "render": (("B", "V", "H", "W"), "uint8", "shaded grey views; background 255"),
    "depth": (("B", "V", "H", "W"), "uint8", "depth per view over the object's pixels: near bright; background 255"),
    "cloud": (("B", "N", 3), "float32", "points centred and scaled to the unit sphere (PointNet++ input)"),
    "pixel": (("B", "V", "M", 2), "int16", "pixel (x = column, y = row) of every scored point in every view"),
    "visible": (("B", "V", "M"), "bool", "whether the view shows the point; hidden in all, it has its nearest visible one's"),
    "xyz": (("B", "M", 3), "float32", "scored points, centred and in radii (`canonical.Frame.unit`), in the scan's own attitude"),
    "neighbours": (("B", "M", "K"), "int32", "K nearest scored points of every scored point, itself first (unorganised scans)"),
    "valid": (("B", "M"), "bool", "false for the empty pixels of organised scans and for padding"),
    "point_mask": (("B", "M"), "bool", "ground truth: defective points"),
    "organised": (("B",), "bool", "scored points are the row-major pixels of a square grid"),
    "view_mask": (("B", "V", "H", "W"), "bool", "ground truth rendered into each view"),
    "view_label": (("B", "V"), "int32", "1 where any pixel of the view is defective"),
    "label": (("B",), "int32", "1 = defective object"),
    "object_index": (("B",), "int32", "row of the object in the record set's index (names, category, defect kind)"),
    "real": (("B",), "bool", "false for the repeats that fill up the last evaluation batch"),
    "rgb": (("B", "H", "W", 3), "uint8", "colour image, only where the data set has one"),
    "rgb_render": (("B", "V", "H", "W", 3), "uint8", "the views in the object's own colours; background 255; where asked for"),
}
OPTIONAL = frozenset({"rgb", "rgb_render"})


def check(batch: Batch) -> dict[str, int]:
    """Checks that `batch` keeps the contract and returns the length of every axis letter.

    Raises:
      ValueError: listing every missing or unknown field, wrong dtype and axis that disagrees.
    """
    problems: list[str] = []
    lengths: dict[str, int] = {}
    for name in batch.keys() - FIELDS.keys():
        problems.append(f"unknown field {name!r}")
    for name, (axes, dtype, _) in FIELDS.items():
        if name not in batch:
            if name not in OPTIONAL:
                problems.append(f"missing field {name!r}")
            continue
        array = batch[name]
        if array.dtype != np.dtype(dtype):
            problems.append(f"{name}: dtype {array.dtype}, expected {dtype}")
        if array.ndim != len(axes):
            problems.append(f"{name}: shape {tuple(array.shape)}, expected axes {axes}")
            continue
        for axis, length in zip(axes, array.shape, strict=True):
            expected = axis if isinstance(axis, int) else lengths.setdefault(axis, length)
            if length != expected:
                problems.append(f"{name}: axis {axis} has length {length}, expected {expected}")
    if problems:
        raise ValueError("not a batch: " + "; ".join(problems))
    return lengths
