"""A yardstick that learns nothing: how far each neighbourhood is from a plane.

Surface variation l_0 / (l_0 + l_1 + l_2) of the neighbours' covariance (Pauly et al. 2002), smoothed like GS-CLIP's point scores.
A method that does not beat it has not understood the object.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gsclip_jax.lift import smooth_neighbours
from gsclip_jax.method import Scores
from gsclip_jax.surface import principal


def smallest_share(matrices: jax.Array) -> jax.Array:
    """Smallest eigenvalue of symmetric [...,3,3] over their trace, 0 where the trace is 0."""
    trace = jnp.trace(matrices, axis1=-2, axis2=-1)
    least, _, _ = principal(matrices / jnp.where(trace > 0, trace, 1.0)[..., None, None])  # units do not matter
    return jnp.where(trace > 0, least, 0.0)


class SurfaceVariation:
    """Method without parameters or stages. Its object score is the largest smoothed point score."""

    name = "surface_variation"
    stages = ()

    def init(self, key):
        return {}, {}

    def features(self, stage, params, stats, batch):
        return {}

    def loss(self, stage, trainable, frozen, stats, batch, key):
        raise NotImplementedError("surface variation has nothing to train")

    def predict(self, params, stats, batch) -> Scores:
        near = jax.vmap(lambda xyz, at: xyz[at])(batch["xyz"], batch["neighbours"])  # [B,M,K,3]
        near = near - near.mean(2, keepdims=True)
        covariance = jnp.einsum("bmki,bmkj->bmij", near, near, precision=jax.lax.Precision.HIGHEST)
        variation = smallest_share(covariance) * batch["valid"]
        points = smooth_neighbours(variation, batch["xyz"], batch["neighbours"], batch["valid"], width=1.0, rounds=2)
        points = points * batch["valid"]
        return Scores(points.max(-1), points, jnp.zeros(batch["render"].shape, jnp.float32))
