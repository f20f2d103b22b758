"""What a run says and notes of itself: lines, the table of its metrics, seconds of its phases, versions of the packages."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines import storage
from data_pipelines.files import write_json
from gsclip_jax.evaluation import score as evaluate
from gsclip_jax.runtime.distributed import is_first

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "open3d", "tensorflow-datasets", "numpy")


def say(line: str) -> None:
    """Prints a line, once for all processes of a run."""
    if is_first():
        print(storage.named(line), flush=True)


class Timer:
    """Seconds of every phase, summed over interrupted runs, in the work directory."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.monotonic() - began, 1)
            if is_first():
                write_json(self.path, self.seconds)
                storage.sync(self.path)


def versions() -> dict[str, str]:
    """What ran; a package that is not there is recorded as such (some are used by a few commands alone)."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def columns(mean: dict, released: bool = False) -> list[tuple[str, str]]:
    """Key and title of the metrics to show: those of the geometry, and of colour and both where there are any."""
    names = [("o_auroc", "O-AUROC"), ("o_ap", "O-AP"), ("p_auroc", "P-AUROC"), ("p_pro", "P-PRO")]
    if released:
        names += [("p_auroc_released", "P-AUROC as released"), ("p_pro_released", "P-PRO as released")]
    more = [(f"{part}_{key}", f"{part} {title}") for part in evaluate.PARTS for key, title in names]
    return names + [(key, title) for key, title in more if key in mean]


def table(results: dict, compared: dict[str, dict] | None = None) -> str:
    """The metrics as text, per category and mean, with the compared methods' means below."""
    shown = columns(results["mean"])
    rows = list(results["categories"].items()) + [("mean", results["mean"])]
    rows += [(f"  {name} (mean)", other["mean"]) for name, other in (compared or {}).items()]
    width = max(len(name) for name, _ in rows) + 2
    lines = [" " * width + "".join(f"{title:>{len(title) + 2}}" for _, title in shown)]
    for name, values in rows:
        cells = "".join(
            f"{'-' if values.get(key) is None else f'{100 * values[key]:.1f}':>{len(title) + 2}}" for key, title in shown
        )
        lines.append(f"{name:<{width}}{cells}")
    return "\n".join(lines)
