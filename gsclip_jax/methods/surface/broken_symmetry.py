"""A training-free baseline: what the body's own symmetries map elsewhere than onto its surface.

The least that its nearest symmetries leave at a point (symmetry.py). GS-CLIP's surface stream has it among its numbers: what
beats this baseline is learned, what does not is geometry.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays
from gsclip_jax.methods.surface.baseline import TrainingFree, covariances, unit_trace
from gsclip_jax.methods.surface.descriptor import principal
from gsclip_jax.methods.surface.symmetry import residuals


class BrokenSymmetry(TrainingFree):
    name = "broken_symmetry"

    def values(self, batch: Arrays) -> jax.Array:
        there = batch["valid"][..., None]
        normals = principal(unit_trace(jnp.where(there[..., None], covariances(batch), 0)))[2]
        off, _ = jax.vmap(residuals)(jnp.where(there, batch["xyz"], 0), normals, batch["valid"])
        return off.min(1)
