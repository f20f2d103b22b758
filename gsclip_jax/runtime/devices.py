"""Published figures of devices that a run may be planned for. Peak rates are what makers state, never what a program reaches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """One chip.

    Fields:
      kind: beginning of the name that JAX gives it (`device_kind`); "" where none is asked for.
      half: operations a second of bfloat16 products, dense.
      single: of float32 products as this project takes them (`models/precision.py`): on a TPU six passes in bfloat16.
      bandwidth: bytes a second between the chip and its memory.
      memory: bytes.
      source: where all of it stands.
    """

    kind: str
    half: float
    single: float
    bandwidth: float
    memory: float
    source: str


def _tpu(kind: str, half: float, bandwidth: float, gib: float, page: str) -> Chip:
    return Chip(kind, half, half / 6, bandwidth, gib * 2**30, f"cloud.google.com/tpu/docs/{page}")


V5E = _tpu("TPU v5 lite", 197e12, 819e9, 16, "v5e")
V5P = _tpu("TPU v5", 459e12, 2765e9, 95, "v5p")
V6E = _tpu("TPU v6", 918e12, 1638e9, 32, "v6e")
H100 = Chip("NVIDIA H100", 989e12, 67e12, 3350e9, 80e9, "data sheet of the H100 SXM; float32 without tensor cores")
# Two multiply-adds of eight numbers a cycle. bfloat16 is multiplied as float32.
CORE = Chip("", 96e9, 96e9, 10e9, 4e9, "cores with AVX2 at 3 GHz and half of a memory channel each")


def chip_of(device_kind: str) -> Chip | None:
    """The published figures of a device by JAX's name of it; None where they are not here."""
    return next((chip for chip in (V5E, V6E, V5P, H100) if device_kind.startswith(chip.kind)), None)


@dataclass(frozen=True)
class Machine:
    """Chips that one run uses together.

    Fields:
      cores: that prepare records: of the host of process 0.
      hosts: processes that read batches.
    """

    name: str
    chip: Chip
    chips: int
    cores: int
    hosts: int


MACHINES = (
    Machine("2 cores", CORE, 2, 2, 1),
    Machine("H100", H100, 1, 26, 1),  # as in a3-highgpu-1g
    Machine("v5e-8", V5E, 8, 224, 1),  # ct5lp-hightpu-8t
    Machine("v5e-256", V5E, 256, 112, 64),  # of ct5lp-hightpu-4t
)
