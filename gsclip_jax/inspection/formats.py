"""Finds a trained model: in a folder, on a store or on the Hugging Face hub, and reads it by its kind.

What reads a kind is imported when a folder of that kind is met: an exported program needs nothing of the methods and their
libraries.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from data_pipelines import storage
from gsclip_jax.inspection.model import EMBEDDED, EXPORTED, Model
from gsclip_jax.runtime.documents import read_json
from gsclip_jax.runtime.keys import WeightsError
from gsclip_jax.runtime.names import is_hub_name, of_model

CALIBRATION = "calibration.json"  # in an exported model, where it was given one


def saved_model(place: str | os.PathLike | None = None) -> Model:
    """A model by its place.

    Args:
      place: a work directory of `experiments.run`, what `gsclip export` wrote, a URL of either, 'owner/name' or
        'owner/name@revision' on the Hugging Face hub, or None for the embedded model.

    Raises:
      ValueError: one line: no model there, one of an earlier or a later version, damaged, or it cannot be fetched.
    """
    return read_model(*found_model(place))


def found_model(place: str | os.PathLike | None = None) -> tuple[Path, str]:
    """The folder of `saved_model`, and what the model is called in messages. Errors: as `saved_model`."""
    if place is None:
        return EMBEDDED, "the embedded model"
    folder = located(place)
    home = next((found for found in (folder / "model", folder) if kind_of(found)), None)
    if home is None:
        raise WeightsError(f"{os.fspath(place)} holds no trained model; run stage2.py with this --workdir first, or name what "
                           "gsclip export wrote, or a model of the hub (owner/name)")  # fmt: skip
    return home, f"the model of {os.fspath(place)}"


def drawn_by(home: Path) -> str:
    """What drew the views that the model of a folder was trained on; '' where its configuration does not say."""
    about = read_json(home / "config.json")
    known = about.get("recipe") or (about["config"].get("data") if isinstance(about.get("config"), dict) else None)
    return str(known.get("rasteriser", "")) if isinstance(known, dict) else ""


def located(place: str | os.PathLike) -> Path:
    """The folder of a model on this machine; one of a store or of the hub is fetched. Errors: as `saved_model`."""
    if storage.is_url(place):
        folder = storage.opened(place, write=False)
        storage.pull(folder, of_model)
        return folder
    name, _, revision = os.fspath(place).partition("@")
    if not Path(place).exists() and is_hub_name(name):
        from gsclip_jax.inspection.hub import fetch  # the client's import is slow

        return fetch(name, revision or None)
    return Path(place)


def kind_of(folder: Path) -> str:
    """The kind of model in a folder, '' where there is none. Raises WeightsError: its configuration is broken."""
    kind = read_json(folder / "config.json").get("kind") if (folder / "config.json").is_file() else None
    return kind if kind in READERS else ""


def read_model(home: Path, name: str) -> Model:
    """The model of `found_model`. Errors: as `saved_model`."""
    found = READERS[kind_of(home)](home, name)
    calibration = home / CALIBRATION
    return dataclasses.replace(found, calibration=calibration) if calibration.is_file() else found


def _saved(home: Path, name: str) -> Model:
    from gsclip_jax.inspection.saved import read_saved

    return read_saved(home, name)


def _exported(home: Path, name: str) -> Model:
    from gsclip_jax.inspection.exported import read_exported

    return read_exported(home, name)


READERS = {"gsclip": _saved, EXPORTED: _exported}  # kind, as config.json says it
