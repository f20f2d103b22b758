"""Which processes a run has: as told, or as the cluster that it was started by says. Nothing here starts JAX."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PORTS = (61440, 4096)  # first, how many: jobs of one machine take one by their number, as JAX does


class ClusterError(ValueError):
    """Processes that cannot be one run; one line."""


@dataclass(frozen=True)
class Place:
    """One process of a run.

    Fields:
      address: 'host:port' of process 0, where all of them meet.
      devices: numbers of the host's GPUs that are this process's; None: all.
    """

    address: str
    count: int
    number: int
    devices: tuple[int, ...] | None = None


def place(coordinator: str = "", processes: int = 0, process: int = -1, env: Mapping[str, str] = os.environ) -> Place | None:
    """This process among those of its run; None where it is alone.

    Args:
      coordinator, processes, process: config.mesh.*; processes = 1 is one process, whatever the cluster says.

    Raises:
      ClusterError: they contradict each other, or what the cluster says cannot be used.
    """
    if processes == 1 and not coordinator and process in (-1, 0):
        return None
    if coordinator or processes or process != -1:
        return told(coordinator, processes, process)
    return found(env)


def told(coordinator: str, processes: int, process: int) -> Place:
    """The place that the configuration names. Raises ClusterError: as `place`."""
    keys = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"config.mesh.{key}" for key, value in keys.items() if value == {"process": -1}.get(key, type(value)())]
    if missing:
        raise ClusterError(f"{' and '.join(missing)} missing: several processes need config.mesh.coordinator=HOST:PORT, "
                           "config.mesh.processes and config.mesh.process, each of them")
    if processes < 1 or not 0 <= process < processes:
        raise ClusterError(f"config.mesh.process={process} of config.mesh.processes={processes}: they count from 0")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ClusterError(f"config.mesh.coordinator={coordinator!r} is not of the form HOST:PORT")
    return Place(coordinator, processes, process)


def found(env: Mapping[str, str] = os.environ) -> Place | None:
    """The place by the cluster's own variables; None where there is none, or one process. Raises ClusterError: as `place`."""
    # JAX's variables, which XPK and others set.
    if int(env.get("JAX_NUM_PROCESSES", 1)) > 1:
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID")
        if missing := [name for name in names if name not in env]:
            raise ClusterError(f"JAX_NUM_PROCESSES is {env['JAX_NUM_PROCESSES']}, but {' and '.join(missing)} not set")
        return Place(env[names[0]], int(env["JAX_NUM_PROCESSES"]), int(env[names[1]]))
    if _has_tpu(env):
        return _of_jax("GkeTpuCluster") or _of_jax("GceTpuCluster")
    if "SLURM_STEP_NODELIST" in env and int(env.get("SLURM_NTASKS", 1)) > 1:  # within srun; a batch script alone is one process
        return _of_jax("SlurmCluster", _own_device(env.get("SLURM_STEP_TASKS_PER_NODE", ""), env.get("SLURM_LOCALID")))
    if int(env.get("SUBMITIT_LOCAL_NTASKS", 1)) > 1:  # submitit's stand-in for SLURM, on this machine
        first, many = PORTS
        port = first + int(env["SUBMITIT_LOCAL_JOB_ID"].partition("_")[0]) % many
        return Place(f"127.0.0.1:{port}", int(env["SUBMITIT_LOCAL_NTASKS"]), int(env["SUBMITIT_LOCAL_GLOBALID"]))
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        local = env.get("OMPI_COMM_WORLD_LOCAL_RANK") if int(env.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1)) > 1 else None
        return _of_jax("OmpiCluster", local)
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:  # an indexed Job or JobSet
        try:
            import kubernetes  # noqa: F401  with clusters alone
        except ImportError:
            raise ClusterError(
                "an indexed job of Kubernetes: pip install 'jax[k8s]' finds its processes, or name them with config.mesh.*; "
                "config.mesh.processes=1 makes each pod a run of its own"
            ) from None
        return _of_jax("K8sCluster")
    return None


def _has_tpu(env: Mapping[str, str]) -> bool:
    """Whether this host has TPU chips that JAX may use: asking a cloud's metadata elsewhere takes minutes."""
    allowed = env.get("JAX_PLATFORMS", "tpu").split(",")
    chips = [*Path("/dev").glob("accel[0-9]*"), *Path("/dev/vfio").glob("[0-9]*")]
    return ("tpu" in allowed or "" in allowed) and bool(chips)


def _own_device(tasks: str, number: str | None) -> str | None:
    """SLURM: a task that shares its node takes the GPU of its number, one that has it alone takes all."""
    alone = {part.partition("(")[0] for part in tasks.split(",")} == {"1"}
    return None if alone else number


def _of_jax(name: str, device: str | None = None) -> Place | None:
    """By JAX's own detection (no public name leads to it without starting JAX as well); None where it finds one process or none.

    Raises:
      ClusterError: it cannot tell.
    """
    from jax._src import clusters  # JAX takes seconds

    cluster = next(kind for kind in clusters.ClusterEnv._cluster_types if kind.__name__ == name)
    try:
        if not cluster.is_env_present() or cluster.get_process_count() < 2:
            return None
        port = os.environ.get("JAX_COORDINATOR_PORT")
        address = cluster.get_coordinator_address(timeout_secs=60, override_coordinator_port=port)
        return Place(address, cluster.get_process_count(), cluster.get_process_id(), None if device is None else (int(device),))
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise ClusterError(f"{name} of JAX cannot tell which processes belong to this run ({error}); name them with "
                           "config.mesh.coordinator, .processes and .process") from error
