"""Parts for tests of the page: a sphere with a dent or without, scored as a model might."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gsclip_jax.inspection.model import EMBEDDED
from gsclip_jax.inspection.page import GoodParts
from gsclip_jax.inspection.result import Part, Verdict

HOSTILE = ("<script>alert(1)</script>", "\"><img src=x onerror='alert(1)'>", "=cmd|' /C calc'!A0", "a\n‮b", "部品 тест", "a\udcff")


def part(name: str = "ball", dented: bool = False, count: int = 3000, judged: bool = True, notes=(), seed: int = 0) -> Part:
    rng = np.random.default_rng(seed)
    xyz = rng.standard_normal((count, 3))
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    points = 0.3 + 0.05 * rng.random(count).astype(np.float32)
    if dented:
        hole = xyz[:, 2] > 0.9
        xyz[hole] *= 0.9
        points[hole] += 0.4
    removed = np.zeros(count, bool)
    removed[: count // 10] = True
    xyz[removed] = xyz[removed] * [2, 2, 0] - [0, 0, 1.2]  # a table under it
    points[removed] = np.nan
    xyz[-3:], points[-3:] = np.nan, np.nan
    y, x = np.mgrid[:48, :48]
    disk = np.broadcast_to((x - 24) ** 2 + (y - 24) ** 2 < 400, (2, 48, 48))
    heat = np.where(disk, np.float32(0.7 if dented else 0.32), np.nan).astype(np.float32)
    verdict = None
    if judged:
        kind, p = ("defective", 0.05) if dented else ("sound", 0.6)
        verdict = Verdict(kind, p, 0.5, 0.5, f"Of 19 good parts {int(p * 20) - 1} score at least as high.")
    score = 0.8 if dented else 0.2 + 0.01 * seed
    return Part(name=name, source=f"scans/{name}.ply", score=score, xyz=xyz * 40 + 1e6, points=points, colours=None,
                removed=removed, render=np.where(disk, 120, 255).astype(np.uint8),
                depth=np.where(disk, 90, 255).astype(np.uint8), heat=heat, notes=tuple(notes), verdict=verdict)  # fmt: skip


GOOD = GoodParts(np.linspace(0.15, 0.3, 19), threshold=0.5, rate=0.05, point_middle=0.32, point_threshold=0.5)


def compiled_by(work: Callable[[], Any]) -> int:
    """How many programs JAX compiles, or finds compiled on disk, while it works."""
    found = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        found.extend([seconds] if event == "/jax/core/compile/backend_compile_duration" else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        work()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return len(found)


def light_model(folder: Path) -> Path:
    """The embedded model with three views of 80 pixels a side for scans of 2048 points: where scores need not be good."""
    shutil.copytree(EMBEDDED, folder)
    about = json.loads((folder / "config.json").read_text())
    about["config"]["data"].update(views=3, image_size=80, points=2048)
    (folder / "config.json").write_text(json.dumps(about))
    return folder
