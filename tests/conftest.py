"""Shared fixtures: several CPU devices for sharding tests, and the optional folder of reference data beside the project."""

import os
from pathlib import Path

import pytest

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
