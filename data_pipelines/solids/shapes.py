"""Procedural solids: one generator function a category, with dimensions, profiles and counts drawn anew for every
object.

A generator takes a numpy Generator and returns a `Solid` of about unit half size, its axis along z. Categories of
different sets never share a generator; the bodies and joins of `fields.py` are common vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data_pipelines.solids import eval_families as later
from data_pipelines.solids import exact
from data_pipelines.solids import families as more
from data_pipelines.solids import fields as f
from data_pipelines.solids import pretrain_families as first
from data_pipelines.solids.fields import Solid
from data_pipelines.solids.meshing import Mesh, fitting_resolution, mesh_field, pieces

Generator = Callable[[np.random.Generator], Solid]

# Disjoint by generator: nothing that weights were trained on, or choices made on, is ever tested.
SETS_OF_GENERATORS: dict[str, tuple[Generator, ...]] = {
    "pretrain": (
        first.soap, first.ring, first.gear, first.spring, first.dice, first.cone, first.plate, first.cross, first.elbow,
        first.bowl, first.knob, first.hook, first.star, first.spindle, first.funnel, first.cutout, first.pebble, first.cluster,
        first.column, first.wire, first.frame, first.saddle, first.auger, first.stack,
        more.crystal, more.truss, more.hub, more.casting, more.blob, more.profile, more.chain, more.cheese, more.branch,
        more.hood, more.ribbon, more.vessel,
    ),
    "train": (later.bottle, later.bracket, later.nut),
    "dev": (later.cup, later.wheel, later.dumbbell),
    "test": (later.vase, later.pawn, later.bolt, later.wrench, later.propeller),
}  # fmt: skip
SETS: dict[str, tuple[str, ...]] = {name: tuple(g.__name__ for g in row) for name, row in SETS_OF_GENERATORS.items()}
GENERATORS: dict[str, Generator] = {g.__name__: g for row in SETS_OF_GENERATORS.values() for g in row}


def solid(category: str, rng: np.random.Generator) -> Solid:
    """Draws one object of a category. Raises ValueError for an unknown category."""
    if category not in GENERATORS:
        raise ValueError(f"unknown synthetic category '{category}': choose from {', '.join(GENERATORS)}")
    return GENERATORS[category](rng)


def graft(body: Solid, category: str, share: float, rng: np.random.Generator) -> Solid:
    """The body, or for a `share` of bodies the body grown together with a smaller one of any category of its set, at any angle.

    Surfaces of one category meet at few angles; what is sound in general is learned from many.
    """
    if rng.random() >= share:
        return body
    kin = next(names for names in SETS.values() if category in names)
    for _ in range(6):  # hollow bodies may come to lie apart
        other, rotation, scale = solid(rng.choice(kin), rng), f.attitude(rng), rng.uniform(0.4, 0.8)
        here, there = (mesh_field(*part, 24).vertices for part in (body, other))
        at = here[rng.integers(len(here))] - 0.85 * scale * exact.times(there[rng.integers(len(there))], rotation.T)
        part = f.move(f.turn(f.grow(other.field, scale), rotation), at)
        corner = scale * exact.times(other.half, np.abs(rotation).T)
        low, high = np.minimum(-body.half, at - corner), np.maximum(body.half, at + corner)
        middle = (low + high) / 2
        whole = Solid(f.move(f.union(body.field, part, fillet=rng.uniform(0.0, 0.1)), -middle), (high - low) / 2)
        if pieces(mesh_field(*whole, 48)) == 1:
            return whole
    return body


def make_solid(category: str, rng: np.random.Generator) -> Mesh:
    """A closed triangle mesh (vertices float64 [Q, 3], faces int64 [F, 3]) of one object of about unit half size."""
    body = solid(category, rng)
    return mesh_field(*body, fitting_resolution(*body))
