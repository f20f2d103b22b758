"""The training-free baseline: its eigenvalues against numpy's, and what it says of a plane with a bump."""

import jax
import numpy as np

from gsclip_jax.methods.surface.surface_variation import SurfaceVariation, smallest_share
from tests import tiny


def test_smallest_eigenvalue_equals_numpys():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((500, 16, 3)) * rng.uniform(0.01, 3, (500, 1, 3))
    matrices = np.einsum("nki,nkj->nij", points, points)
    values = np.linalg.eigvalsh(matrices)
    np.testing.assert_allclose(
        smallest_share(matrices.astype(np.float32)), values[:, 0] / values.sum(-1), atol=2e-5
    )  # near-double eigenvalues cost half the digits
    np.testing.assert_allclose(smallest_share(np.stack([np.eye(3), np.zeros((3, 3))])), [1 / 3, 0], atol=1e-6)


def test_a_bump_on_a_plane_scores_highest():
    side = np.linspace(-1, 1, 24)
    x, y = (a.ravel() for a in np.meshgrid(side, side))
    z = 0.4 * np.exp(-((x - 0.3) ** 2 + (y + 0.2) ** 2) / 0.01)
    xyz = np.stack([x, y, z], -1).astype(np.float32)
    near = np.argsort(((xyz[:, None] - xyz[None]) ** 2).sum(-1), 1)[:, :12].astype(np.int32)
    batch = {**tiny.batch(1, points=len(xyz)), "xyz": xyz[None], "neighbours": near[None]}
    scores = jax.device_get(SurfaceVariation().predict({}, {}, batch))
    at = xyz[scores.points[0].argmax()]
    assert np.hypot(at[0] - 0.3, at[1] + 0.2) < 0.2
    assert scores.object[0] == scores.points[0].max() and np.median(scores.points[0]) < 0.01 * scores.object[0]
