"""Sound detail on the embedded solids: as deep as said, on both twins, and inside the box the mesher looks at."""

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_pipelines.datasets import fields, finish
from data_pipelines.datasets.fields import Solid
from data_pipelines.datasets.meshing import fitting_resolution, mesh_field
from data_pipelines.datasets.synthetic import make_object


def cube(factor: float = 1.0) -> Solid:
    """A cube whose field is `factor` times the distance, as joins and turned outlines underestimate it."""
    body = fields.box((0.8, 0.8, 0.8))
    return Solid(lambda p: np.float32(factor) * body(p), np.array([0.8, 0.8, 0.8]))


@pytest.mark.parametrize("factor", [1.0, 0.4])
@pytest.mark.parametrize("depth", [0.04, -0.04])
def test_relief_is_as_deep_as_said_whatever_the_fields_scale(factor, depth):
    top = lambda p: ((np.abs(p[:, 0]) < 0.3) & (np.abs(p[:, 1]) < 0.3) & (p[:, 2] > 0)).astype(np.float32)  # noqa: E731
    changed = finish._relief(cube(factor), top, depth, 1.0)
    column = np.stack([np.zeros(4001), np.zeros(4001), np.linspace(0.5, 1.1, 4001)], 1).astype(np.float32)
    beside = column + np.float32([0.5, 0, 0])
    surface = [column[np.argmax(changed.field(c) > 0), 2] for c in (column, beside)]
    # The slope is measured on points near the surface, some of them at edges: a few per cent.
    assert surface[0] == pytest.approx(0.8 + depth, abs=0.1 * abs(depth)) and surface[1] == pytest.approx(0.8, abs=1e-3)


def test_ridges_by_hand():
    x = np.array([0.0, 0.1, 0.25, 0.4, 0.5, 0.75, 1.0, -3.0])
    np.testing.assert_allclose(finish._wave(x), [1, 1, 0.5, 0, 0, 0.5, 1, 1], atol=1e-6)


@pytest.mark.parametrize("kind", finish.KINDS, ids=lambda kind: kind.__name__)
def test_detail_stays_inside_its_box_and_leaves_most_of_the_body(kind):
    body = Solid(fields.cylinder(0.6, 0.8, 0.05), np.array([0.6, 0.6, 0.8]))
    unit = float(np.linalg.norm(body.half))
    before = mesh_field(*body, fitting_resolution(*body)).vertices
    moved = []
    for seed in range(4):
        found = kind(body, unit, np.random.default_rng(seed))
        vertices = mesh_field(*found, fitting_resolution(*found)).vertices
        assert (np.abs(vertices) < found.half + 1e-3).all()
        away = cKDTree(before).query(vertices)[0]
        assert away.max() < 0.06 * unit, "no deeper than the deepest relief and a cell of the mesh"
        moved.append(np.abs(body.field(vertices.astype(np.float32))).max() / unit)
    assert max(moved) > 0.01, "something is there"


def test_twins_carry_the_same_detail():
    """Away from the defect the two clouds lie on one surface; without detail in common they would part by its depth."""
    for index in range(6):
        rows = [make_object("dumbbell", 4, index, defect, points=6000, difficulty="easy") for defect in ("good", "bulge")]
        (good, _, _), (bad, labels, _) = rows
        away = cKDTree(good).query(bad[~labels])[0]
        spacing = np.median(cKDTree(good).query(good, 2)[0][:, 1])
        assert np.quantile(away, 0.95) < 2.5 * spacing


def test_a_share_of_objects_stays_plain():
    body = cube()
    left = [finish.finish(body, np.random.default_rng(seed)) is body for seed in range(400)]
    assert np.mean(left) == pytest.approx(finish.PLAIN, abs=0.07)  # three standard deviations of 400 draws
