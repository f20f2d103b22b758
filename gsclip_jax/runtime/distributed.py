"""Several processes, one run: JAX across them, who writes, and what they decide together.

Process 0 alone writes to the work directory; what it wrote, or decided, the others learn from it (`shared`, `after_first`). With
one process everything here is what its name says, at no cost.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import combinations
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from data_pipelines import progress
from gsclip_jax.runtime.clusters import Place
from gsclip_jax.runtime.peers import SILENT_S, Peers, meet

T = TypeVar("T")
START_S = 120.0  # that processes wait for each other at the start
SOON_S = 1800.0  # that they wait at a point which all reach at about the same time
LONG_S = 7 * 86400.0  # that they wait for what one of them does alone: rendering takes as long as it takes
GO_ON, SAVE, STOP = 0, 1, 2  # what processes vote for; the most wins

_peers: Peers | None = None
_why = ""  # this process fails


def start(here: Place | None, about: Mapping[str, Any], limit: float = START_S) -> None:
    """Joins the processes of the run, before anything touches JAX's devices; nothing where `here` is None.

    Args:
      about: what all of them have to agree on, JSON by name.

    Raises:
      ConnectionError: one line, within `limit` seconds: as `peers.meet`.
    """
    global _peers
    if here is None:
        return
    _peers, service = meet(here.address, here.count, here.number, dict(about), limit)
    progress.speaks = here.number == 0
    # Its handler of SIGTERM would take the place of ours (data_pipelines.command).
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        service, here.count, here.number, None if here.devices is None else list(here.devices),
        cluster_detection_method="deactivate", initialization_timeout=int(limit) + 1,
        coordinator_bind_address=f"[::]:{service.rpartition(':')[2]}" if here.number == 0 else None,
    )  # fmt: skip


def count() -> int:
    """Processes of the run."""
    return 1 if _peers is None else _peers.count


def is_first() -> bool:
    """Whether this process writes."""
    return _peers is None or _peers.number == 0


def wait(what: str, limit: float = SOON_S) -> None:
    """Returns once every process is here. Raises TimeoutError: one did not come."""
    agreed(what, True, limit)


def agreed(what: str, good: bool, limit: float = SOON_S) -> bool:
    """Whether it is good in every process, once all are here. Raises TimeoutError: one did not come."""
    return good if _peers is None else _peers.agree(what, good, limit)


def shared(what: str, make: Callable[[], T], limit: float = LONG_S) -> T:
    """What `make` returns in process 0, in every process: plain JSON. Raises TimeoutError: it did not come."""
    return make() if _peers is None else _peers.share(what, make, limit)


def after_first(what: str, work: Callable[[], T], limit: float = LONG_S) -> T:
    """Process 0 does the work, then every other does it, to find what is there. Raises TimeoutError: it was not done."""
    if _peers is None:
        return work()
    if is_first():
        found = work()
        wait(what, limit)
        return found
    wait(what, limit)
    return work()


class Votes:
    """What the processes want, agreed on without a wait: the votes of a step are counted on the devices behind it, and read when
    the next step is on its way. All processes read the same, at the same step."""

    def __init__(self, mesh: jax.sharding.Mesh):
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._count = jax.jit(lambda votes: votes.max(), out_shardings=NamedSharding(mesh, P()))
        self._here = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)
        self._before: jax.Array | None = None

    def cast(self, wanted: int) -> int:
        """Takes this process's vote; returns the outcome of the one before (of this one, where there is one process)."""
        if count() == 1:
            return wanted
        votes = jax.make_array_from_process_local_data(self._sharding, np.full(self._here, wanted, np.int32))
        before, self._before = self._before, self._count(votes)
        return GO_ON if before is None else int(before)


def connected(mesh: jax.sharding.Mesh) -> jax.sharding.Mesh:
    """The mesh, once the devices of every group that it sums over have reached each other. All processes have to call it.

    On CPUs a group is connected by its first sum, for which its processes have half a minute: the first step, after minutes of
    compilation that take one of them longer than the other, would come too late.
    """
    names = [name for name, size in mesh.shape.items() if size > 1]
    for axes in (axes for size in range(len(names) if count() > 1 else 0) for axes in combinations(names, size + 1)):
        ones = jax.make_array_from_callback((mesh.size,), NamedSharding(mesh, P(mesh.axis_names)), lambda _: np.ones(1, np.int32))
        others = P(tuple(name for name in mesh.axis_names if name not in axes))
        add = partial(jax.lax.psum, axis_name=axes)
        add = jax.jit(jax.shard_map(add, mesh=mesh, in_specs=P(mesh.axis_names), out_specs=others)).lower(ones).compile()
        wait(f"connect {', '.join(axes)}")
        add(ones).block_until_ready()
    return mesh


def whole(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """The tree with every leaf readable in every process. All of them have to call it."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in leaves):
        return tree
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))(tree)


# ---- how a run of several processes ends


@contextmanager
def attended() -> Iterator[None]:
    """An error inside may be that another process ended: then this one ends with a line that says so."""
    global _why
    try:
        yield
    except Exception as error:
        if _peers is not None:
            # A collective breaks at the moment in which a process dies; a machine that is gone takes longer to notice.
            broken = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
            _peers.settle(SILENT_S + 10 if broken else 1.0)
            _why = " ".join(str(error).split())[:1000]
        raise


def program(work: Callable[[], int]) -> int:
    """The exit status of `work`. One of several processes ends here, once the others know of it."""
    try:
        status = work()
        if _peers is not None and status == 0:
            wait("end")
    except BaseException:
        if _peers is None:
            raise
        traceback.print_exc()
        status = 1
    if _peers is not None:
        _peers.leave(status, _why)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # the usual way out waits for the others, in JAX's service, which may be gone
    return status
