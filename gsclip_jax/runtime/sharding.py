"""The device mesh, and which parameter is split how.

`pjit` is `jax.jit` with `NamedSharding`s today. Two mesh axes: `data` splits the objects of a batch, `model` splits the widths of
the frozen encoders. With `model` = 1 (the default) every weight is replicated and only the batch is split.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Path of a parameter -> how its axes are split; first match wins, the last row claims everything else. Both encoders and both
# towers share the names, so the rows cover them all: attention is split by head, the feed-forward by its hidden width.
RULES: tuple[tuple[str, P], ...] = (
    (r"(^|/)clip(_depth)?/.*attn/qkv_kernel$", P(None, None, None, "model", None)),
    (r"(^|/)clip(_depth)?/.*attn/qkv_bias$", P(None, None, "model", None)),
    (r"(^|/)clip(_depth)?/.*attn/out_kernel$", P(None, "model", None, None)),
    (r"(^|/)clip(_depth)?/.*mlp/fc_kernel$", P(None, None, "model")),
    (r"(^|/)clip(_depth)?/.*mlp/fc_bias$", P(None, "model")),
    (r"(^|/)clip(_depth)?/.*mlp/proj_kernel$", P(None, "model", None)),
    (r"(^|/)clip(_depth)?/text/token_embedding$", P(None, "model")),
    (r"(^|/)lora/fc/b$", P(None, None, "model")),
    (r"(^|/)lora/proj/a$", P(None, "model", None)),
    (r".*", P()),
)


def make_mesh(data: int = -1, model: int = 1) -> Mesh:
    """A mesh over all devices of all processes; `data` = -1 takes what `model` leaves.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    count = jax.device_count()
    if data == -1:
        data = count // model
    if data * model != count:
        raise ValueError(f"mesh data={data} x model={model} does not use the {count} devices here; set config.mesh.*")
    return jax.make_mesh((data, model), ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def path_name(path: tuple) -> str:
    """'clip/visual/proj' for a key path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def specs(params: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every leaf by RULES; an axis that its mesh axis does not divide stays whole."""

    def spec(path, leaf):
        name = path_name(path)
        rule = next(rule for pattern, rule in RULES if re.search(pattern, name))
        axes = [axis if axis and leaf.shape[i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(rule)]
        return NamedSharding(mesh, P(*axes))

    return jax.tree_util.tree_map_with_path(spec, params)


def place(params: Any, mesh: Mesh) -> Any:
    """Puts a tree on the mesh by RULES. Copies: donating the result never deletes the caller's arrays."""
    shardings = specs(params, mesh)
    return jax.jit(lambda tree: jax.tree.map(lambda x: x, tree), out_shardings=shardings)(params)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def pad_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, np.ndarray]:
    """The batch with its rows repeated in turn, marked real = False, until it divides among the devices of `data`.

    Raises:
      ValueError: it has no `real` that could say so (a pretraining's).
    """
    rows, local = len(next(iter(batch.values()))), len(_places(mesh, jax.process_index()))
    if not rows % local:
        return batch
    if "real" not in batch:
        raise ValueError(f"a batch of {rows} rows does not divide among {local} data devices; set the batch size to a multiple")
    take = _filled_up(rows, local)
    padded = {name: np.asarray(value)[take] for name, value in batch.items()}
    return padded | {"real": padded["real"] & (np.arange(len(take)) < rows)}


def batch_places(mesh: Mesh, rows: int) -> np.ndarray:
    """The rows of a batch of so many that this process reads: those of its devices' places on the `data` axis, in order.

    Every device has as many: past the last row they begin again. What they repeat takes no part (`train.make_step`; in
    evaluation `real`). Processes that lie along `model` alone read the same rows.
    """
    mine, devices = _places(mesh, jax.process_index()), mesh.shape["data"]
    return _filled_up(rows, devices).reshape(devices, -1)[mine.start : mine.stop].ravel()


def _filled_up(rows: int, devices: int) -> np.ndarray:
    """The rows 0, 1, ... of a batch, begun again until they divide among the devices."""
    return np.arange(rows + -rows % devices) % rows


@functools.lru_cache(maxsize=8)  # asked for every batch
def _places(mesh: Mesh, process: int) -> range:
    """The places on the `data` axis of a process's devices. Raises ValueError where they lie apart."""
    along = mesh.axis_names.index("data")
    found = sorted({at[along] for at, device in np.ndenumerate(mesh.devices) if device.process_index == process})
    places = range(found[0], found[-1] + 1)
    if found != list(places):
        raise ValueError(f"the devices of process {process} lie apart on the data axis ({found}); set config.mesh.*")
    return places


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits every field's first axis over `data`; each process gives its own part of the global batch (`batch_places`), filled
    up with repeats where it does not divide among its devices (`pad_batch`)."""
    sharding, places = NamedSharding(mesh, P("data")), len(_places(mesh, jax.process_index()))

    def whole(value: np.ndarray) -> jax.Array:
        shape = (len(value) // places * mesh.shape["data"], *value.shape[1:])
        return jax.make_array_from_process_local_data(sharding, value, shape)

    return {name: whole(np.asarray(value)) for name, value in pad_batch(batch, mesh).items()}
