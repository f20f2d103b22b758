"""Sound detail on the embedded solids: as deep as said, on both twins, and inside the box the mesher looks at."""

import json

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_pipelines.solids import fields, finish, synthetic
from data_pipelines.solids.fields import Solid
from data_pipelines.solids.meshing import fitting_resolution, mesh_field
from data_pipelines.solids.synthetic import make_object, write


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


def test_twins_carry_the_same_detail(monkeypatch):
    """The body that gets the defect is the body of its sound twin, detail included; other numbers have other detail."""
    probes, seen = np.random.default_rng(0).uniform(-1, 1, (2000, 3)).astype(np.float32), []

    def recorded(*args):
        body = finish.finish(*args)
        seen.append((body.field(probes), body is not args[0]))
        return body

    monkeypatch.setattr(synthetic, "finish", recorded)
    for index, defect in ((0, "good"), (0, "bulge"), (0, "break"), (1, "good")):
        make_object("dumbbell", 4, index, defect, points=500, difficulty="easy", relief=1.0)
    values, detailed = zip(*seen, strict=True)
    assert all(detailed)
    np.testing.assert_array_equal(values[0], values[1])
    np.testing.assert_array_equal(values[0], values[2])
    assert np.abs(values[0] - values[3]).max() > 0.01


def test_the_share_of_objects_with_detail():
    body = cube()
    left = [finish.finish(body, 0.7, np.random.default_rng(seed)) is body for seed in range(400)]
    assert np.mean(left) == pytest.approx(0.3, abs=0.07)  # three standard deviations of 400 draws
    assert finish.finish(body, 0.0, np.random.default_rng(0)) is body


def test_without_relief_the_bytes_are_what_they_were(tmp_path):
    """Folders of scans made before the option existed stay valid: their settings do not name it, nor does a set without it."""
    write(tmp_path / "a", categories=["nut"], seed=1, good=1, defective=0, points=300)
    write(tmp_path / "b", categories=["nut"], seed=1, good=1, defective=0, points=300, relief=1.0)
    settings = [json.loads((tmp_path / name / "manifest.json").read_text())["settings"] for name in "ab"]
    assert "relief" not in settings[0] and settings[1] == {**settings[0], "relief": 1.0}
    first, second = ((tmp_path / name / "nut" / "test" / "000_good.pcd").read_bytes() for name in "ab")
    assert first != second
    with pytest.raises(ValueError, match="between 0 and 1"):
        write(tmp_path / "c", categories=["nut"], seed=1, good=1, defective=0, points=300, relief=1.5)
