"""Training-free baselines: a value for every point, smoothed like GS-CLIP's point scores. Method papers have to beat them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import jax
import jax.numpy as jnp

from gsclip_jax.method import Arrays, MethodBase, Params, Scores, Stats
from gsclip_jax.models.precision import EXACT
from gsclip_jax.models.smoothing import smooth_neighbours


class TrainingFree(MethodBase, ABC):
    """Method without parameters. Its object score is the largest smoothed point score."""

    name: str

    @abstractmethod
    def values(self, batch: Arrays) -> jax.Array:
        """[B,M], more where the surface is odder; of cells that are not valid, anything."""

    def predict(self, params: Params, stats: Stats, batch: Arrays) -> Scores:
        points = smoothed(self.values(batch), batch)
        return Scores(points.max(-1), points, jnp.zeros(batch["render"].shape, jnp.float32))


def smoothed(values: jax.Array, batch: Arrays) -> jax.Array:
    """Values [B,M] averaged over neighbours in space, 0 where not valid."""
    values = jnp.where(batch["valid"], values, 0)
    near = smooth_neighbours(values, batch["xyz"], batch["neighbours"], batch["valid"], width=1.0, rounds=2)
    return near * batch["valid"]


def covariances(batch: Arrays) -> jax.Array:
    """Scatter of every point's neighbours about their middle, [B,M,3,3], in squares of the scan's unit."""
    near = jax.vmap(lambda xyz, at: xyz[at])(batch["xyz"], batch["neighbours"])  # [B,M,K,3]
    near = near - near.mean(2, keepdims=True)
    return jnp.einsum("bmki,bmkj->bmij", near, near, precision=EXACT)


def unit_trace(matrices: jax.Array) -> jax.Array:
    """[...,3,3] over their trace, where that is not 0: units do not matter."""
    trace = jnp.trace(matrices, axis1=-2, axis2=-1)
    return matrices / jnp.where(trace > 0, trace, 1.0)[..., None, None]
