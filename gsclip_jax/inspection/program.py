"""A method with its parameters as one function of a batch, and which arrays it reads: what exported programs are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from data_pipelines.batch import FIELDS, OPTIONAL
from data_pipelines.records.objects import Recipe
from gsclip_jax.method import Method, Params, Stats

Arrays = Mapping[str, Any]
Inputs = dict[str, tuple[tuple[int, ...], str]]  # field of a batch -> (shape without the batch axis, dtype)
OUTPUTS = {"object": ("B",), "points": ("B", "M"), "views": ("B", "V", "H", "W")}  # of `method.Scores`, all float32


def specs_of(inputs: Inputs, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays by shape, of so many objects (a number or a symbol)."""
    return {name: jax.ShapeDtypeStruct((batch, *shape), dtype) for name, (shape, dtype) in inputs.items()}


class Program(NamedTuple):
    """A prediction.

    Fields:
      run: (weights, batch) -> {"object", "points", "views"}, of any number of objects; both hold the arrays below and no others.
      weights: name -> array, every one once, however many streams read it.
      inputs: what it reads of a batch.
    """

    run: Callable[[Arrays, Arrays], dict[str, jax.Array]]
    weights: dict[str, np.ndarray]
    inputs: Inputs

    def specs(self, batch: Any) -> dict[str, jax.ShapeDtypeStruct]:
        """The batch's arrays by shape, of so many objects (a number or a symbol)."""
        return specs_of(self.inputs, batch)


def sizes(recipe: Recipe) -> dict[str, int]:
    """Length of every axis of a batch that the recipe makes, by its letter in `batch.FIELDS`; B is left out."""
    return {"V": len(recipe.camera_list()), "H": recipe.image_size, "W": recipe.image_size, "N": recipe.cloud_points,
            "M": recipe.points, "K": recipe.neighbours}  # fmt: skip


def shape_of(field: str, lengths: Mapping[str, int]) -> tuple[int, ...]:
    """Shape of a field of one object, without the batch axis."""
    return tuple(lengths.get(axis, axis) for axis in FIELDS[field][0][1:])


def inputs_of(recipe: Recipe) -> Inputs:
    """Every array of a batch that the recipe makes of scans."""
    lengths = sizes(recipe)
    return {name: (shape_of(name, lengths), FIELDS[name][1]) for name in FIELDS if name not in OPTIONAL}


def program_of(method: Method, params: Params, stats: Stats, recipe: Recipe) -> Program:
    """What `method.predict` does in inference mode, with `method.folded` parameters."""
    method = method.for_inference()
    leaves, structure = jax.tree.flatten_with_path({"params": method.folded(params), "stats": stats})
    named: dict[int, str] = {}  # one array may be in several groups
    for path, leaf in leaves:
        named.setdefault(id(leaf), "/".join(key.key for key in path))
    places = [named[id(leaf)] for _, leaf in leaves]
    weights = {named[id(leaf)]: np.asarray(leaf) for _, leaf in leaves}
    inputs = inputs_of(recipe)

    def run(weights: Arrays, batch: Arrays) -> dict[str, jax.Array]:
        # What is not read is not there; zeros in its place are no part of the compiled program.
        found = {name: weights[name] if name in weights else jnp.zeros(spec.shape, spec.dtype) for name, spec in shapes.items()}
        count = next(iter(batch.values())).shape[0]
        rest = {name: jnp.zeros((count, *shape), dtype) for name, (shape, dtype) in inputs.items() if name not in batch}
        tree = jax.tree.unflatten(structure, [found[name] for name in places])
        return method.predict(tree["params"], tree["stats"], {**rest, **batch})._asdict()

    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    whole = Program(run, weights, inputs)
    jaxpr = jax.make_jaxpr(run)(shapes, whole.specs(1)).jaxpr
    read = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    names = [*sorted(weights), *sorted(inputs)]  # as JAX orders a dict
    used = {name for name, there in zip(names, read, strict=True) if there}
    return Program(run, {name: weights[name] for name in weights if name in used},
                   {name: inputs[name] for name in inputs if name in used})  # fmt: skip
