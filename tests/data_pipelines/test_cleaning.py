"""What is taken out of a scan: the table, stray points, other parts; in any unit and place, the same every time."""

import numpy as np
import pytest

from data_pipelines.clouds.cleaning import cleaned
from tests.scans import ellipsoid


def scene(seed: int = 0, unit: float = 1.0, at=(0, 0, 0)):
    """A ball on a rough table, and another one a little apart: points [S,3], 0 table, 1 and 2 balls, 3 stray."""
    rng = np.random.default_rng(seed)
    table = np.column_stack([rng.uniform(-4, 4, (9000, 2)), rng.normal(0, 0.004, 9000)])
    one, two = (rng.standard_normal((count, 3)) for count in (3000, 2000))
    one, two = (ball / np.linalg.norm(ball, axis=1, keepdims=True) for ball in (one, two))
    balls = [one + [0, 0, 1.0], 0.8 * two + [2.5, 0, 0.8]]
    stray = np.array([[3, 3, 3.0], [-3, 3, 2.5], [0, -3, 3.3]])
    kind = np.repeat([0, 1, 2, 3], [9000, 3000, 2000, 3])
    points = np.concatenate([table, *balls, stray])
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(len(points))
    return (points @ turn * unit + at)[order], kind[order]


@pytest.mark.parametrize("unit, at", [(1, (0, 0, 0)), (1e-3, (450_000.0, 5_400_000.0, 120.0))])
def test_table_stray_points_and_parts(unit, at):
    xyz, kind = scene(0, unit, at)
    valid = np.ones(len(xyz), bool)
    plane = cleaned(xyz, valid, plane=True)
    assert plane.removed[kind == 0].mean() > 0.99 and plane.removed[(kind == 1) | (kind == 2)].mean() < 0.03
    assert plane.parts == 1 and (plane.part[plane.removed] == -1).all() and "plane under the part" in plane.notes[0]
    both = cleaned(xyz, valid, plane=True, stray=True)
    assert both.removed[kind == 3].all() and both.removed[kind == 0].mean() > 0.99 and both.parts == 1
    apart = cleaned(xyz, valid, plane=True, split=True)
    assert apart.parts == 2 and (apart.part[kind == 1] == 0).mean() > 0.95 and (apart.part[kind == 2] == 1).mean() > 0.95
    assert "2 parts in this scan" in apart.notes
    again = cleaned(xyz, valid, plane=True, split=True)
    np.testing.assert_array_equal(again.part, apart.part)


def test_a_part_without_a_table_stays_whole():
    ball = ellipsoid(3000, 0)[0]
    valid = np.arange(3000) > 4
    found = cleaned(ball, valid, plane=True, stray=True)
    assert not found.removed.any() and (found.part[valid] == 0).all() and (found.part[~valid] == -1).all()
    assert found.notes[0].startswith("no plane under the part")


def test_a_box_keeps_its_sides():
    """Its largest side is no table: the others lie on one side of it, too, and so it would be taken away where it is large."""
    rng = np.random.default_rng(0)
    sides = [np.insert(rng.uniform(-1, 1, (1500, 2)), axis, sign, 1) for axis in range(3) for sign in (-1, 1)]
    found = cleaned(np.concatenate(sides), np.ones(9000, bool), plane=False, stray=True)
    assert not found.removed.any()
