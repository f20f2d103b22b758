"""Memory by measurement: what a compiled program needs of a device, what the device has, and the cheapest plan that fits.

A plan changes what is kept and what is computed again, never a number. It is no part of a run: a stage that died of memory goes
on with another one.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
import psutil
from jax.experimental import multihost_utils

GB = 1e9
SPARE = 0.1  # of what is free: the next batch on its way, fragments
# A computer's memory is also that of its files and of other programs; a batch in parts is no more work there.
SPARE_OF_A_COMPUTER = 2 / 3


class DoesNotFit(ValueError):
    """No plan fits the memory; the message says what was needed and what there is."""


class Plan(Protocol):
    """A way to run a program; `str` says it in a few words."""

    @property
    def rows(self) -> int:
        """Objects that are computed at once."""

    @property
    def kind(self) -> Any:
        """Equal for plans that differ in `rows` alone."""


class Choice(NamedTuple):
    """The plan that was taken, its program, and what it needs (None where nobody says)."""

    plan: Any
    program: jax.stages.Compiled
    use: Use | None


@dataclass(frozen=True)
class Use:
    """Bytes of a program on one device: its arguments, the most that it holds at once beside them, and what it returns anew."""

    arguments: int
    temporary: int
    returned: int

    @property
    def more(self) -> int:
        """Beside the arguments, which lie there before it starts."""
        return self.temporary + self.returned

    @property
    def all(self) -> int:
        return self.arguments + self.more


def used(compiled: jax.stages.Compiled) -> Use:
    """By the compiler's own account."""
    found = compiled.memory_analysis()
    returned = found.output_size_in_bytes - found.alias_size_in_bytes
    return Use(found.argument_size_in_bytes, found.temp_size_in_bytes, max(returned, 0))


def give_back() -> None:
    """What this process has freed goes back to the machine. glibc keeps it otherwise: 2 GB after a ViT-L/14@336 was loaded."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def free(device: jax.Device) -> int | None:
    """Bytes that a device of this process has left; a CPU's devices share the memory of the machine. None where nobody says."""
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    if device.platform != "cpu":
        return None
    left = min([psutil.virtual_memory().available, *_group_memory(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])
    return left // len(jax.local_devices(backend="cpu"))


def _group_memory(own: Path, root: Path) -> Iterator[int]:
    """What the control groups of this process (a container, a job of a cluster) leave of their limits; of both versions."""
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, limit, now, cache = (
            (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file") if controllers
            else (root, "memory.max", "memory.current", "inactive_file")
        )  # fmt: skip
        # Inside a container the path may be that of the host, which is not there: then its own limit lies at the top.
        for folder in (top, *(top.joinpath(*Path(group).parts[1 : 1 + n]) for n in range(1, len(Path(group).parts)))):
            try:
                text = (folder / limit).read_text().strip()
                if text != "max":
                    held = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
                    yield int(text) - int((folder / now).read_text()) + int(held.get(cache, 0))
            except OSError:
                continue


def least_free(mesh: jax.sharding.Mesh) -> int | None:
    """Bytes that every device of the mesh has left, the same number for all processes; None where nobody says."""
    mine = [free(device) for device in mesh.local_devices]
    found = -1 if None in mine else min(mine)
    if jax.process_count() > 1:  # all take the same plan, or they wait for each other for ever
        found = int(np.min(multihost_utils.process_allgather(np.int64(found))))
    return None if found < 0 else found


def choose(
    what: str, plans: Sequence[Plan], compiled: Callable[[Any], jax.stages.Compiled], mesh: jax.sharding.Mesh,
    there: int | None = None,
) -> Choice:  # fmt: skip
    """Compiles programs until one fits, and says in one line on standard error which it is.

    Args:
      what: the work, for messages: 'stage2'.
      plans: from the cheapest to the smallest, at least one.
      compiled: makes the program of a plan.
      there: bytes that every device has left; None: what those of the mesh say.

    Returns:
      The first that leaves some of the memory free (`SPARE`); else the last, where it fits at all.

    Raises:
      DoesNotFit: not even the last fits.
    """
    give_back()
    there = least_free(mesh) if there is None else there
    spare = SPARE_OF_A_COMPUTER if mesh.devices.flat[0].platform == "cpu" else SPARE
    room = None if there is None else (1 - spare) * there
    needed: list[tuple[Plan, int]] = []  # of what was compiled and is too much
    for plan in plans:
        last = plan == plans[-1]
        # Half of a batch needs at least half of what the batch does: what cannot fit is not even compiled.
        alike = [bytes_ * plan.rows / other.rows for other, bytes_ in needed if other.kind == plan.kind]
        if not last and room is not None and max(alike, default=0) > room:
            continue
        try:
            program = compiled(plan)
        except jax.errors.JaxRuntimeError as error:  # the compilers of accelerators refuse what is too large
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            if last:
                raise DoesNotFit(f"{what}: {_too_much(plan, None, there)} ({str(error).splitlines()[0][:200]})") from None
            continue
        use = used(program)
        if room is None or use.more <= room or (last and use.more <= there):
            _say(what, plan, use, there, mesh.devices.size)
            return Choice(plan, program, use)
        needed.append((plan, use.more))
    raise DoesNotFit(f"{what}: {_too_much(plans[-1], needed[-1][1], there)}")


def _say(what: str, plan: Plan, use: Use, there: int | None, devices: int) -> None:
    if jax.process_index() == 0:
        left = "" if there is None else f" of {there / GB:.3g} GB that are free"
        print(f"{what}: {plan}; {use.more / GB:.2g} GB{left} on {each(devices)}", file=sys.stderr)


def each(devices: int) -> str:
    """Where a figure of one device holds, in words: virtual devices of one CPU take it as many times from one memory."""
    return f"each of {devices} devices" if devices > 1 else "the device"


def _too_much(plan: Plan, needed: int | None, there: int | None) -> str:
    need = "more memory than a device has" if needed is None else f"{needed / GB:.2g} GB of each device"
    left = "" if there is None else f", and {there / GB:.2g} GB are free"
    return f"even the smallest plan ({plan}) needs {need}{left}; use more devices, or smaller batches"
