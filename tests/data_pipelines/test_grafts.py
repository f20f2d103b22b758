"""Parts of another kind grown on: bodies of more kinds than there are generators."""

import numpy as np
import pytest

from data_pipelines.solids import fields, meshing
from data_pipelines.solids import shapes as solids
from data_pipelines.solids.synthetic import make_object, write


def volume(mesh: meshing.Mesh) -> float:
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def test_a_grown_body_is_the_body_at_another_scale():
    points = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    np.testing.assert_allclose(fields.grow(fields.ball(0.5), 0.6)(points), fields.ball(0.3)(points), atol=1e-6)


def test_an_attitude_is_a_rotation():
    rng = np.random.default_rng(0)
    turns = np.array([fields.attitude(rng) for _ in range(400)])
    np.testing.assert_allclose(turns @ turns.transpose(0, 2, 1), np.broadcast_to(np.eye(3), turns.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(turns), 1, atol=1e-12)
    assert np.abs(turns.mean(0)).max() < 0.12  # no direction is preferred: 0.58 / sqrt(400) is 0.03


def test_pieces_are_counted():
    apart = fields.union(fields.ball(0.3, (-0.5, 0, 0)), fields.ball(0.3, (0.5, 0, 0)))
    hollow = fields.subtract(fields.ball(0.8), fields.ball(0.5))
    found = [meshing.pieces(meshing.mesh_field(body, np.full(3, 0.9), 40)) for body in (fields.ball(0.8), apart, hollow)]
    assert found == [1, 2, 2]


@pytest.mark.parametrize("category", ["ring", "bowl", "gear"])
def test_a_graft_is_one_body_inside_its_box_and_larger_than_the_first(category):
    changed = 0
    for seed in range(4):
        body = solids.solid(category, np.random.default_rng(seed))
        whole = solids.graft(body, category, 1.0, np.random.default_rng(seed))
        mesh = meshing.mesh_field(*whole, 48)
        assert (np.abs(mesh.vertices) < whole.half + 0.06).all()
        changed += whole is not body
        if whole is not body:
            assert meshing.pieces(mesh) == 1
            assert volume(mesh) > 1.005 * volume(meshing.mesh_field(*body, 48))
    assert changed >= 2
    assert solids.graft(body, category, 0.0, np.random.default_rng(0)) is body


def test_twins_share_the_graft_and_the_share_is_kept(tmp_path):
    options = {"points": 600, "difficulty": "easy"}
    good, bulge = (make_object("ring", 3, 1, kind, grafts=1.0, **options)[0] for kind in ("good", "bulge"))
    plain = make_object("ring", 3, 1, "good", **options)[0]
    reach = lambda a: np.sort(np.linalg.eigvalsh(np.cov(a.T)))  # noqa: E731
    assert np.abs(reach(good) / reach(plain) - 1).max() > 0.1 > np.abs(reach(good) / reach(bulge) - 1).max()
    with pytest.raises(ValueError, match="grafts=2"):
        write(tmp_path, categories=["nut"], seed=1, good=1, defective=0, points=300, grafts=2)
