"""Compiling for devices that are not here: what the compiler says of memory, and which collectives it puts between chips.

A TPU's compiler needs no TPU: `pip install libtpu`, in the version that this JAX names, is enough.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from gsclip_jax.runtime.memory import GB, Use, used

# What the compiler of a topology has to be told where no TPU is: it looks for the machine's own.
WITHOUT_TPU = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_MADE = re.compile(rf"= ([^=]*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")
_COMMENT = re.compile(r"/\*.*?\*/")  # of a tuple's every fifth member
_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d\w*)?\[([\d,]*)\]")


class NoTopology(ValueError):
    """The chips cannot be described here; one line that says why."""


def topology(name: str) -> np.ndarray:
    """The chips of a TPU topology, 'v5e:2x2', to compile for.

    Raises:
      NoTopology: libtpu is not installed, or knows no such topology.
    """
    try:
        return np.array(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:  # libtpu's own errors have no common type
        why = " ".join(str(error).split())[:200]
        raise NoTopology(f"no topology {name!r} here ({why}); names are like v5e:2x2, v6e:4x4, v5p:2x2x1, and the compiler is "
                         "libtpu: pip install libtpu in the version that `pip show jax` asks for") from None  # fmt: skip


@dataclass(frozen=True)
class Compiled:
    """What a compiler says of one program on one device.

    Fields:
      seconds: of lowering and compiling.
      cpu_seconds: of all threads of this process; what is left of the seconds where a machine has other work.
      use: bytes; None where it was refused.
      refused: the compiler's own words, where it does not fit the device's memory; else "".
      collectives: kind -> {"count": in the program's text (one in a loop counts once), "bytes": of their results on a device}.
    """

    seconds: float
    cpu_seconds: float
    use: Use | None
    refused: str
    collectives: dict[str, dict[str, int]]

    def row(self) -> dict[str, Any]:
        """As it is written down; GB are 1e9 bytes."""
        found: dict[str, Any] = {
            "fits": self.use is not None, "compile_seconds": round(self.seconds, 1),
            "compile_cpu_seconds": round(self.cpu_seconds, 1),
        }  # fmt: skip
        if self.use is None:
            return found | {"refused": self.refused}
        bytes_of = {part: getattr(self.use, part) for part in ("arguments", "temporary", "returned", "all")}
        gb = {part: round(value / GB, 3) for part, value in bytes_of.items()}
        return found | {"gb_a_device": gb, "collectives": self.collectives}


def compiled(lower: Callable[[], jax.stages.Lowered]) -> Compiled:
    """Compiles what `lower` gives. A program that does not fit is a finding, no error."""
    wall, cpu = time.monotonic(), time.process_time()
    program, refused = None, ""
    try:
        program = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refused = str(error).splitlines()[0]
    took = time.monotonic() - wall, time.process_time() - cpu
    return Compiled(*took, used(program), "", collectives(program.as_text())) if program else Compiled(*took, None, refused, {})


def collectives(text: str) -> dict[str, dict[str, int]]:
    """Of a compiled program's text, by kind. The started half of an asynchronous one counts, with what it will have made."""
    found: dict[str, dict[str, int]] = {}
    for shapes, kind in _MADE.findall(_COMMENT.sub("", text)):
        row = found.setdefault(kind, {"count": 0, "bytes": 0})
        row["count"] += 1
        row["bytes"] += sum(_bytes(*array) for array in _ARRAY.findall(shapes))
    return found


def _bytes(kind: str, sizes: str) -> int:
    bits = re.search(r"\d+", kind)
    each = 1 if kind == "pred" else int(bits.group()) / 8 if bits else 0
    return int(each * math.prod(int(size) for size in sizes.split(",") if size))
