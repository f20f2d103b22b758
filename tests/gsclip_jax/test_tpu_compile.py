"""The real TPU compiler takes the programs of the presets as they stand, for four chips of 16 GB, without a TPU.

    pip install libtpu==0.0.42.*; make test-slow          # skipped, saying so, without libtpu; a paper preset takes minutes
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from data_pipelines.datasets import AUXILIARY
from experiments.configs.common import paper

MEMORY = Path(__file__).parents[2] / "benchmarks" / "memory.py"


def tpu_aot():
    spec = spec_from_file_location("tpu_aot", MEMORY.with_name("tpu_aot.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_the_page_has_the_rows_that_were_recorded():
    module = tpu_aot()
    assert module.recorded() and module.PAGE.read_text().endswith(f"{module.MARK}\n\n{module.tables()}\n")


@pytest.mark.slow
def test_presets_share_a_row_where_their_programs_are_the_same():
    module, options = tpu_aot(), argparse.Namespace(method="", remat=None, model=1)
    assert set(module.PRESETS) == {"", *AUXILIARY}
    found = {name: module.content(module.programs_of(name, options), "stage2") for name in ("real3d", "mvtec3d", "")}
    assert found["real3d"] == found["mvtec3d"] != found[""]  # another learning rate; another size


@pytest.mark.slow
def test_a_preset_as_it_is_by_the_plan_that_a_run_takes():
    """What `benchmarks/tpu_aot.py` writes of the program that takes the compiler least."""
    if find_spec("libtpu") is None:
        pytest.skip("no libtpu here: the TPU compiler is not at hand")
    command = [sys.executable, str(MEMORY.with_name("tpu_aot.py")), "--topology", "v5e:2x2", "--config", "real3d", "--program"]
    done = subprocess.run([*command, "features1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(done.stdout)
    assert row["fits"] and row["plan"] == "whole batches" and row["presets"] == ["real3d"] and row["collectives"] == {}
    assert 14e12 < row["flops"] < 16e12 and 0 < row["gb_a_device"]["all"] < 4  # four objects of 3.76 TFLOP
