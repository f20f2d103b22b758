"""Prepared parts as files, from the process that reads scans to the one that has the model. Nothing in them can run as code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.clouds.canonical import Frame
from gsclip_jax.inspection.prepare import Prepared, Ready

ARRAYS = ("xyz", "valid", "removed")


def parcels(folder: Path) -> list[Path]:
    """The parcels in a folder, in the order of their parts."""
    return sorted(folder.glob("part-*.npz"))


def pack(parts: list[Ready], folder: Path) -> None:
    """Writes a file a part."""
    for number, (part, attributes) in enumerate(parts):
        arrays = {name: getattr(part, name) for name in ARRAYS}
        arrays |= {f"attribute-{at}": values for at, values in enumerate(attributes.values())}
        if part.colours is not None:
            arrays["colours"] = part.colours
        made = {key: value for key, value in part.made.items() if key not in ("frame", "note")}
        arrays |= {f"made-{key}": value for key, value in made.items()}
        arrays |= {f"frame-{key}": value for key, value in part.made["frame"]._asdict().items()}
        about = {"name": part.name, "source": part.source, "notes": part.notes, "attributes": list(attributes),
                 "note": part.made["note"]}  # fmt: skip
        arrays["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
        np.savez(folder / f"part-{number:05d}.npz", **arrays)


def unpack(path: Path) -> Ready:
    """What `pack` wrote."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    about: dict[str, Any] = json.loads(arrays.pop("about").tobytes())
    made = dict(_begun(arrays, "made-")) | {"note": about["note"]}
    frame = dict(_begun(arrays, "frame-"))
    made["frame"] = Frame(frame["centre"], float(frame["radius"]), frame["axes"])
    attributes = {name: arrays[f"attribute-{at}"] for at, name in enumerate(about["attributes"])}
    prepared = Prepared(about["name"], about["source"], arrays["xyz"], arrays["valid"], arrays.get("colours"), arrays["removed"],
                        tuple(about["notes"]), made)  # fmt: skip
    return Ready(prepared, attributes)


def _begun(arrays: dict[str, np.ndarray], start: str) -> Iterator[tuple[str, np.ndarray]]:
    return ((name.removeprefix(start), values) for name, values in arrays.items() if name.startswith(start))
