"""The real TPU compiler takes the programs of the presets as they stand, for four chips of 16 GB, without a TPU.

    pip install libtpu==0.0.42.*; make test-slow          # skipped, saying so, without libtpu; a paper preset takes minutes
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from data_pipelines.datasets import AUXILIARY
from experiments.configs.common import paper

MEMORY = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def gigabytes(tmp_path, *options: str) -> list[dict]:
    command = [sys.executable, str(MEMORY), *options, "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    found = json.loads((tmp_path / "found.json").read_text())
    return [{"device": found["device"], **row} for row in found["rows"]]


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    pytest.param(("--presets", "", "--model", "2"), id="embedded-default-split-over-both-axes"),
    pytest.param(("--presets", "real3d"), id="paper-preset"),
])  # fmt: skip
def test_compiles_for_four_chips_and_fits(tmp_path, options):
    if find_spec("libtpu") is None:
        pytest.skip("no libtpu here: the TPU compiler is not at hand")
    rows = gigabytes(tmp_path, "--chips", "v5e:2x2", *options)
    assert len(rows) == 5
    for row in rows:
        assert "TPU" in row["device"] and row["fits"], row
        assert 0 < row["gb_a_device"]["all"] < 8  # half of what one chip has: parameters are there more than once while placed


@pytest.mark.slow
@pytest.mark.parametrize("program", ["features1", "stage1", "features2", "stage2", "predict"])
def test_two_objects_of_a_paper_preset_fit_a_common_computer(tmp_path, program):
    (row,) = gigabytes(tmp_path, "--cpu", "1", "--batch", "2", "--presets", "real3d", "--programs", program)
    assert 0 < row["gb_a_device"]["all"] < 8


def test_the_paper_presets_are_of_one_size():
    """What the compilers say of one of them holds for all."""
    one = paper("real3d")
    sizes = ("points", "image_size", "views", "cloud_points", "neighbours")
    for name in AUXILIARY:
        other = paper(name)
        assert other.clip.remat == "auto"
        assert other.clip == one.clip and other.model == one.model and other.pointnet2 == one.pointnet2
        assert [other.data[size] for size in sizes] == [one.data[size] for size in sizes]
        for part in ("stage1", "stage2", "eval"):
            assert other[part].batch_size == one[part].batch_size
