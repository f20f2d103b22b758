"""Shared fixtures: several CPU devices for sharding tests, and the optional folder of reference data beside the project."""

import atexit
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

# torch, an oracle here, imports triton where it is installed; triton's LLVM and Open3D's or JAX's in one process end in a
# segmentation fault. Nothing in the tests needs it: let the import fail.
sys.modules["triton"] = None

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling, often the same program again: one cache for all tests and workers of this run, which
# inherit the variable. Set it yourself to keep the cache between runs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gsclip-tests-xla-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Two thirds of the compiling, for programs that run for a moment each. Level 0 makes gradients in doubles on one and on two
# devices a thousandth apart; with these they are 2e-8 apart, as they are without. The slow tests compile as users' runs do.
QUICK = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"


def pytest_configure(config):
    if config.option.markexpr == "not slow":
        os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"


import jax  # noqa: E402

from gsclip_jax.methods import METHODS  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)

# A run in the background of a shell begins with Ctrl-C ignored, and hands that on to what it starts: tests send it on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {name} folder beside the project ({folder})")
    return folder


@pytest.fixture(autouse=True)
def registry():
    """What a test registers ends with it."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small scans of real shapes in the data sets' own formats."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Arrays recorded from the authors' code."""
    return _shared("reference")


@pytest.fixture(scope="session")
def shared_align3d() -> Path:
    """Arrays recorded from the code of Align3D-AD's authors."""
    return _shared("reference_align3d")
