"""What methods share that learn nothing: a value for every point, smoothed like GS-CLIP's point scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, Scores
from gsclip_jax.models.lift import smooth_neighbours
from gsclip_jax.models.precision import EXACT


class Yardstick:
    """Method without parameters or stages. Its object score is the largest smoothed point score."""

    name: str
    stages = ()

    def values(self, batch: Arrays) -> jax.Array:
        """[B,M], more where the surface is odder; of cells that are not valid, anything."""
        raise NotImplementedError

    def init(self, key):
        return {}, {}

    def features(self, stage, params, stats, batch):
        return {}

    def loss(self, stage, trainable, frozen, stats, batch, key):
        raise NotImplementedError(f"{self.name} has nothing to train")

    def predict(self, params, stats, batch) -> Scores:
        values = jnp.where(batch["valid"], self.values(batch), 0)
        points = smooth_neighbours(values, batch["xyz"], batch["neighbours"], batch["valid"], width=1.0, rounds=2)
        points = points * batch["valid"]
        return Scores(points.max(-1), points, jnp.zeros(batch["render"].shape, jnp.float32))


def covariances(batch: Arrays) -> jax.Array:
    """Scatter of every point's neighbours about their middle, [B,M,3,3], in squares of the scan's unit."""
    near = jax.vmap(lambda xyz, at: xyz[at])(batch["xyz"], batch["neighbours"])  # [B,M,K,3]
    near = near - near.mean(2, keepdims=True)
    return jnp.einsum("bmki,bmkj->bmij", near, near, precision=EXACT)


def unit_trace(matrices: jax.Array) -> jax.Array:
    """[...,3,3] over their trace, where that is not 0: units do not matter."""
    trace = jnp.trace(matrices, axis1=-2, axis2=-1)
    return matrices / jnp.where(trace > 0, trace, 1.0)[..., None, None]
