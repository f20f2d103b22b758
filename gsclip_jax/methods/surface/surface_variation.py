"""A training-free baseline: how far each neighbourhood is from a plane.

Surface variation l_0 / (l_0 + l_1 + l_2) of the neighbours' covariance (Pauly et al. 2002). A method that does not beat it has
not understood the object.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays
from gsclip_jax.methods.surface.baseline import TrainingFree, covariances, smoothed, unit_trace
from gsclip_jax.methods.surface.descriptor import principal


def smallest_share(matrices: jax.Array) -> jax.Array:
    """Smallest eigenvalue of symmetric [...,3,3] over their trace, 0 where the trace is 0."""
    least, _, _ = principal(unit_trace(matrices))
    return jnp.where(jnp.trace(matrices, axis1=-2, axis2=-1) > 0, least, 0.0)


def smoothed_variation(batch: Arrays) -> jax.Array:
    """Surface variation of every point [B,M], smoothed over its neighbours; 0 where not valid."""
    return smoothed(smallest_share(covariances(batch)), batch)


class SurfaceVariation(TrainingFree):
    name = "surface_variation"

    def values(self, batch: Arrays) -> jax.Array:
        return smallest_share(covariances(batch))
