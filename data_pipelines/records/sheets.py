"""Contact sheets: a few objects of a category from all sides, to be looked at before anything is trained on them."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.files import write_atomic
from data_pipelines.rendering import lettering

WIDTH = 1500  # pixels
LARGEST = 300  # side of a picture, pixels
OBJECTS = 4
CAPTION = 24  # pixels
LONGEST = 150  # bytes of a category's name in a file name, which may have 255
TEXT = 15  # pixels
RED = (230, 30, 30)


def choose(index: Sequence[Mapping], rows: Sequence[int]) -> list[int]:
    """At most `OBJECTS` of the rows: one good object, then kinds of defects by turns, then what there is."""
    by_kind: dict[str, list[int]] = {}
    for row in rows:
        by_kind.setdefault(index[row]["defect"] if index[row]["label"] else "", []).append(row)
    kinds = [by_kind[kind] for kind in sorted(by_kind)]  # "" first
    turns = [kind[turn] for turn in range(OBJECTS) for kind in kinds if turn < len(kind)]
    return turns[:OBJECTS]


def path_of(folder: Path, category: str) -> Path:
    """The sheet of a category; a name that is no file's, or a long one, is changed, with a hash of what it was."""
    name = re.sub(r"[^\w .,()+&@=-]", "_", category)
    while len(name.encode()) > LONGEST:
        name = name[:-1]
    if name != category:
        name += "-" + hashlib.sha256(category.encode(errors="surrogatepass")).hexdigest()[:8]
    return folder / f"sheet-{name}.png"


def write(path: Path, objects: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> None:
    """Writes a sheet: for each object a caption, its shaded views with the defect in red, its depth views below them, and below
    these its coloured views.

    Args:
      objects: caption and fields render, depth [V, H, W] uint8, view_mask [V, H, W] bool; where there are any, rgb [H, W, 3] and
        rgb_render [V, H, W, 3] uint8.
    """
    columns = max(len(fields["render"]) + ("rgb" in fields) for _, fields in objects)
    rows = 2 + any("rgb_render" in fields for _, fields in objects)
    side = min(LARGEST, WIDTH // columns)
    sheet = Image.new("RGB", (columns * side, len(objects) * (rows * side + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (caption, fields) in enumerate(objects):
        top = place * (rows * side + CAPTION)
        line = lettering.wrapped(caption, TEXT, sheet.width - 8)[0]
        lettering.draw(pen, (4, top + CAPTION - 7), line, TEXT)
        for view, (render, depth, mask) in enumerate(zip(fields["render"], fields["depth"], fields["view_mask"], strict=True)):
            sheet.paste(_picture(tinted(render, mask), side), (view * side, top + CAPTION))
            sheet.paste(_picture(np.repeat(depth[..., None], 3, -1), side), (view * side, top + CAPTION + side))
        for view, coloured in enumerate(fields.get("rgb_render", ())):
            sheet.paste(_picture(coloured, side), (view * side, top + CAPTION + 2 * side))
        if "rgb" in fields:
            sheet.paste(_picture(fields["rgb"], side), (len(fields["render"]) * side, top + CAPTION))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def tinted(render: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A grey view [H, W] as colours [H, W, 3] uint8, half red where it is defective."""
    grey = np.repeat(render[..., None], 3, -1)
    return np.where(mask[..., None], (grey // 2 + np.array(RED) // 2), grey).astype(np.uint8)


def _picture(pixels: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
