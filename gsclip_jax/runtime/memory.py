"""Memory by measurement: what a compiled program needs of a device, what the device has, and the cheapest plan that fits.

A plan changes what is kept and what is computed again, never a number. It is no part of a run: a stage that died of memory goes
on with another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import psutil

GB = 1e9
SPARE = 0.1  # of what is free: the next batch on its way, fragments, other programs


class DoesNotFit(ValueError):
    """No plan fits the memory; the message says what was needed and what there is."""


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
