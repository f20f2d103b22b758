"""The Python interface on the embedded model: one score a row, whatever order, place and unit; batches; what it refuses."""

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import gsclip_jax
from data_pipelines.rendering import views
from data_pipelines.scan import DataError
from gsclip_jax.inspection.detector import Detector, opened
from gsclip_jax.inspection.result import Part
from gsclip_jax.inspection.saved import read_saved
from tests.parts import compiled_by, light_model


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return gsclip_jax.load(light_model(tmp_path_factory.mktemp("light") / "model"))


def part(seed: int = 0, points: int = 1500) -> np.ndarray:
    xyz = np.random.default_rng(seed).standard_normal((points, 3))
    return xyz * [3, 1, 1] / np.linalg.norm(xyz, axis=1, keepdims=True)


def test_importing_the_package_imports_nothing_heavy_and_loading_no_tensorflow():
    program = """
import sys, gsclip_jax
assert not {"jax", "flax", "open3d", "tensorflow", "scipy"} & set(sys.modules)
import gsclip_jax.inspection.detector
assert not {"open3d", "tensorflow", "torch", "matplotlib"} & set(sys.modules), sorted(sys.modules)
assert not any(name.startswith("experiments") or name.startswith("gsclip_jax.training") for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_score_a_row_in_order_with_rows_that_hold_no_point(detector):
    xyz = part()
    xyz[:3] = xyz[1000:1003]  # the same places
    rows = np.insert(xyz, [5, 700], np.nan, axis=0)
    colours = np.random.default_rng(0).integers(0, 256, rows.shape).astype(np.uint8)
    found = detector(rows, colours)
    assert isinstance(found, Part) and found.points.shape == (1502,) and found.points.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(found.points), np.isnan(rows[:, 0]))
    np.testing.assert_array_equal(found.points[:3], found.points[1002:1005])
    np.testing.assert_array_equal(found.xyz, rows)
    assert found.colours is colours and found.verdict is None and not found.removed.any()
    assert found.xyz.dtype == np.float64 and found.heat.dtype == np.float32 and found.render.dtype == np.uint8
    assert found.heat.shape == found.render.shape == found.depth.shape and len(found.heat) == detector.recipe.views
    assert np.nanmax(found.heat) <= np.nanmax(found.points) and np.isfinite(found.heat[found.render < 128]).mean() > 0.9
    assert any("2 are NaN of 1502" in note for note in found.notes) and 0 < found.score < 1
    order = np.random.default_rng(1).permutation(len(rows))
    again = detector(rows[order])
    assert again.score == found.score
    np.testing.assert_array_equal(again.points, found.points[order])
    moved = detector(rows * 25.4 + [450_000.0, 5_400_000.0, 120.0])
    assert abs(moved.score - found.score) < 1e-3


@pytest.mark.parametrize("finish", ["finish", pytest.param("described", marks=pytest.mark.slow)])
def test_the_model_is_compiled_while_the_first_scan_is_drawn(finish, tmp_path):
    fresh, made = Detector(read_saved(light_model(tmp_path / "light"), "light")), []
    fresh = fresh.for_references() if finish == "described" else fresh
    assert compiled_by(lambda: [made.append(fresh.prepare(part())), fresh._ahead.wait()]) >= 1
    assert compiled_by(lambda: [fresh.prepare(part(1)), fresh._ahead.wait(), getattr(fresh, finish)(made[0])]) == 0


def test_what_is_wrong_with_a_program_is_said_by_the_call(detector):
    def broken(*_):
        raise DataError("no such program")

    fresh = Detector(dataclasses.replace(detector.model, score=broken, ahead=broken))
    with pytest.raises(DataError, match="no such program"):
        fresh(part())


def test_as_many_processes_draw_as_are_needed_at_a_time(detector, tmp_path, monkeypatch):
    views.rasteriser.cache_clear()
    begun, begin = [], views._started
    monkeypatch.setattr(views, "_STARTED", [])
    monkeypatch.setattr(views, "_started", lambda: begun.append(1) or begin())
    fresh = opened(light_model(tmp_path / "light"), None)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(fresh.prepare, part()).result()
    assert len(begun) == 1 and (found.made["render"] < 255).any()
    with ThreadPoolExecutor(1) as pool:  # another thread, later
        pool.submit(fresh.prepare, part()).result()
    fresh.prepare(part())
    assert len(begun) == 1
    with fresh._rasteriser() as first, fresh._rasteriser() as second:
        assert first is not second and len(begun) == 2
    first._process.kill()  # it comes first, as it was put back last; one scan is lost
    with pytest.raises(DataError, match="went down"):
        fresh.prepare(part())
    fresh.prepare(part())
    assert len(begun) == 2


def test_a_list_of_scans_is_scored_as_each_of_them(detector):
    one, two = part(1), part(2, 900)
    found = detector([one, two])
    assert [len(part.points) for part in found] == [1500, 900] and [part.name for part in found] == ["scan 1", "scan 2"]
    np.testing.assert_array_equal(found[1].points, detector(two).points)


@pytest.mark.parametrize("points, said", [
    (np.zeros((5, 2)), r"expected numbers of shape \(points, 3\), found \(5, 2\)"),
    (np.full((50, 3), "x"), "expected numbers"), (np.zeros((0, 3)), "at least 10"), (np.full((50, 3), np.inf), "infinite"),
    ([part(), np.ones((50, 3))], "scan 2: all 50 points are at one place"),
])  # fmt: skip
def test_what_is_no_scan_is_one_line(detector, points, said):
    with pytest.raises(DataError, match=said) as refused:
        detector(points)
    assert "\n" not in str(refused.value)


def test_colours_have_to_fit(detector):
    with pytest.raises(DataError, match="expected colours uint8"):
        detector(part(), np.zeros((10, 3), np.uint8))
    with pytest.raises(DataError, match="1 scans and colours of 2"):
        detector([part()], [None, None])


def test_a_folder_without_a_model_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="holds no trained model"):
        gsclip_jax.load(tmp_path)


def test_the_digest_names_what_scores_depend_on(detector):
    embedded = gsclip_jax.load().model.digest
    assert len(embedded) == 64 and gsclip_jax.load().model.digest == embedded != detector.model.digest
