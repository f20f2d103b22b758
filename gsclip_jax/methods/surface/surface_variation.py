"""A yardstick that learns nothing: how far each neighbourhood is from a plane.

Surface variation l_0 / (l_0 + l_1 + l_2) of the neighbours' covariance (Pauly et al. 2002). A method that does not beat it has
not understood the object.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays
from gsclip_jax.methods.surface.descriptor import principal
from gsclip_jax.methods.surface.training_free import Yardstick, covariances, unit_trace


def smallest_share(matrices: jax.Array) -> jax.Array:
    """Smallest eigenvalue of symmetric [...,3,3] over their trace, 0 where the trace is 0."""
    least, _, _ = principal(unit_trace(matrices))
    return jnp.where(jnp.trace(matrices, axis1=-2, axis2=-1) > 0, least, 0.0)


class SurfaceVariation(Yardstick):
    name = "surface_variation"

    def values(self, batch: Arrays) -> jax.Array:
        return smallest_share(covariances(batch))
