"""Shared fixtures: several CPU devices for sharding tests, and the optional folder of reference data beside the project."""

import os
import sys
from pathlib import Path

import pytest

# torch, an oracle here, imports triton where it is installed; triton's LLVM and Open3D's or JAX's in one process end in a
# segmentation fault. Nothing in the tests needs it: let the import fail.
sys.modules["triton"] = None

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 4)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {name} folder beside the project ({folder})")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Small scans of real shapes in the data sets' own formats."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Arrays recorded from the authors' code."""
    return _shared("reference")
