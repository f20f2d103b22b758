"""A model as a program: a folder with config.json, the program, its weights where they lie apart, and a model card.

config.json holds `format` (of this folder), `program` (which of PROGRAMS), `digest`, `recipe`, `inputs` (field -> shape of one
object and dtype), `sha256` of the program, and what the model was made of. Reading one needs JAX or onnxruntime, and none of the
methods, of Flax or of the training. Names of files are fixed: none is taken from a configuration.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batch import FIELDS, Batch
from data_pipelines.files import write_atomic
from data_pipelines.records.objects import Recipe, recipe_of
from gsclip_jax.convert.store import save_params, unflatten
from gsclip_jax.inspection.model import EXPORTED, Model
from gsclip_jax.inspection.program import OUTPUTS, Program, shape_of, sizes
from gsclip_jax.method import Scores
from gsclip_jax.runtime.documents import read_json
from gsclip_jax.runtime.keys import WeightsError, plain

FORMAT = 1
# Program -> the module that writes and reads it: FILE, `written` (a Program) and `load` (folder, bytes, shapes of a batch).
PROGRAMS = {"stablehlo": "gsclip_jax.inspection.stablehlo", "onnx": "gsclip_jax.inspection.onnx"}
LARGEST = 4e9  # bytes of a batch of one object; no model was trained with such


def save_exported(folder: Path, kind: str, program: Program, model: Model, about: Mapping[str, Any]) -> None:
    """Writes a model as a program of the kind; config.json comes last, and vouches for the rest by their hashes.

    Args:
      model: that the program was made of: its digest and recipe.
      about: what else is kept of it, as JSON.

    Raises:
      WeightsError: it cannot be written as a program of this kind; one line.
    """
    module = importlib.import_module(PROGRAMS[kind])
    data = module.written(program)
    known = {**about, "kind": EXPORTED, "format": FORMAT, "program": kind, "digest": model.digest, "recipe": model.recipe.json(),
             "inputs": {name: [list(shape), dtype] for name, (shape, dtype) in program.inputs.items()},
             "sha256": hashlib.sha256(data).hexdigest()}  # fmt: skip
    write_atomic(folder / module.FILE, data)
    if module.WEIGHTS_APART:
        save_params(folder, unflatten(program.weights), config=known, dtype="smallest")
    else:
        write_atomic(folder / "config.json", json.dumps(known, indent=1, sort_keys=True) + "\n")


def read_exported(home: Path, name: str) -> Model:
    """What `save_exported` wrote.

    Raises:
      WeightsError: of a later version, damaged, hostile, or a library is missing; one line that names the file.
    """
    file = home / "config.json"
    about = read_json(file)
    version = about.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise WeightsError(f"{file}: format {plain(version, 60)} is none of an exported model; export it again")
    if version > FORMAT:
        raise WeightsError(f"{file}: format {version} is of a later gsclip_jax, this one reads up to {FORMAT}; upgrade it (pip "
                           "install --upgrade gsclip-jax)")  # fmt: skip
    kind, digest = about.get("program"), about.get("digest")
    if not isinstance(kind, str) or kind not in PROGRAMS:
        raise WeightsError(f"{file}: a program of kind {plain(kind, 60)}, known are {', '.join(PROGRAMS)}; upgrade gsclip_jax")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise WeightsError(f"{file}: no digest of the model; export it again")
    recipe = _recipe(about.get("recipe"), file)
    inputs = _inputs(about.get("inputs"), recipe, file)
    module = importlib.import_module(PROGRAMS[kind])
    try:
        data = (home / module.FILE).read_bytes()
    except OSError as error:
        raise WeightsError(f"{home / module.FILE}: {error.strerror}; export the model again") from error
    if hashlib.sha256(data).hexdigest() != about.get("sha256"):
        raise WeightsError(f"{home / module.FILE}: not the program that config.json vouches for; fetch or export the model again")
    run = module.load(home, data, inputs)
    ahead = getattr(run, "ahead", lambda: None)  # onnxruntime has compiled what it loads
    return Model(name, digest, recipe, functools.partial(_scores, run, tuple(inputs), recipe), ahead=lambda tokens: ahead())


def _scores(run, fields: tuple[str, ...], recipe: Recipe, batch: Batch) -> Scores:
    found = run({name: batch[name] for name in fields})
    lengths = sizes(recipe) | {"B": len(batch["valid"])}
    for name, axes in OUTPUTS.items():
        wanted = tuple(lengths[axis] for axis in axes)
        if found[name].shape != wanted or not np.isfinite(found[name]).all():
            raise WeightsError(f"the model's program gives {name} scores of shape {found[name].shape}, or such as are no finite "
                               f"numbers; expected {wanted}; export the model again")  # fmt: skip
    return Scores(*(np.asarray(found[name], np.float32) for name in OUTPUTS))


def _recipe(value: Any, file: Path) -> Recipe:
    try:
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        recipe = recipe_of(value)
        if max(recipe.window, *sizes(recipe).values()) > 1 << 20:
            raise ValueError("its sizes are beyond any model's")
        return recipe
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError) as error:
        raise WeightsError(f"{file}: its recipe cannot be used ({plain(error, 300)}); export the model again") from error


def _inputs(value: Any, recipe: Recipe, file: Path) -> dict[str, Any]:
    """Arrays of one object by shape, as the program takes them, where the recipe makes such."""
    import jax

    lengths = sizes(recipe)
    fields = [name for name in FIELDS if isinstance(value, dict) and name in value]
    wanted = {name: [list(shape_of(name, lengths)), FIELDS[name][1]] for name in fields}
    if not fields or value != wanted:
        raise WeightsError(f"{file}: its inputs are not what its recipe makes of a scan; export the model again")
    found = {name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, (shape, dtype) in wanted.items()}
    if sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in found.values()) > LARGEST:
        raise WeightsError(f"{file}: a batch of one object would take more than {LARGEST / 1e9:g} GB; no model takes such")
    return found
