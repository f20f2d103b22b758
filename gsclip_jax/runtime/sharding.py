"""The device mesh, and which parameter is split how.

`pjit` is `jax.jit` with `NamedSharding`s today. Three mesh axes: `data` splits the objects of a batch, `view` the views of each
object, `model` the widths of the frozen encoders. With `model` = 1 (the default) every weight is replicated.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Path of a parameter -> how its axes are split; first match wins. Both encoders and both towers share the names, so the rows
# cover them all: attention is split by head, the feed-forward by its hidden width. What a CLIP has more needs a row of its own.
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
    (r"(^|/)clip(_depth)?/.*(ln_\w+/(scale|bias)|(out|proj)_bias|(pos|class)_embedding|patch_embed|(visual|text)/proj)$", P()),
    (r"(^|/)clip(_depth)?/logit_scale$", P()),
    (r"/inner_state/\d+/ns_coeffs$", P()),  # of the optimiser Muon
    (r"^(?!(.*/)?clip(_depth)?/)", P()),  # all other groups: small, and whole on every device
)


def make_mesh(data: int = -1, model: int = 1, view: int = 1) -> Mesh:
    """A mesh `data` x `view` x `model` over all devices of all processes; `data` = -1 takes what the others leave.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    count = jax.device_count()
    if data == -1:
        data = count // (view * model)
    if data * view * model != count:
        raise ValueError(
            f"mesh data={data} x view={view} x model={model} does not use the {count} devices here; set config.mesh.*"
        )
    return jax.make_mesh((data, view, model), ("data", "view", "model"), axis_types=(AxisType.Auto,) * 3)


def path_name(path: tuple) -> str:
    """'clip/visual/proj' for a key path of jax.tree_util."""
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)


def specs(params: Any, mesh: Mesh) -> Any:
    """The NamedSharding of every leaf by RULES; an axis that its mesh axis does not divide stays whole.

    Raises:
      ValueError: a parameter that no rule claims.
    """

    def spec(path, leaf):
        name = path_name(path)
        # A number, such as the optimiser's count of steps, cannot be split.
        rule = next((rule for pattern, rule in RULES if re.search(pattern, name)), None) if leaf.shape else ()
        if rule is None:
            raise ValueError(f"no rule of runtime/sharding.py says how the parameter {name} is split; add one to RULES")
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
    evaluation `real`). Processes that lie along `view` or `model` alone read the same rows.
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


def split_rows(mesh: Mesh) -> NamedSharding:
    """Of arrays whose first axis is a batch's."""
    return NamedSharding(mesh, P("data"))


def local_rows(array: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The rows that this process has of an array split by `split_rows`, in order (those of `batch_places`), and which of them
    are its own to write: of processes that have the same rows one alone."""
    shards: dict[int, jax.Shard] = {}
    for shard in sorted(array.addressable_shards, key=lambda shard: shard.replica_id):
        shards.setdefault(shard.index[0].start or 0, shard)
    parts = [shards[start] for start in sorted(shards)]
    mine = [np.full(len(shard.data), shard.replica_id == 0) for shard in parts]
    return np.concatenate([np.asarray(shard.data) for shard in parts]), np.concatenate(mine)


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits every field's first axis over `data`, and that of the views over `view` where it divides them; each process gives
    its own rows of the global batch (`batch_places`), filled up with repeats where they do not divide among its devices
    (`pad_batch`)."""
    batch, mine = pad_batch(batch, mesh), _places(mesh, jax.process_index())
    views, size = batch["view_label"].shape[1] if "view_label" in batch else 0, mesh.shape.get("view", 1)

    def whole(value: np.ndarray) -> jax.Array:
        each, rest = len(value) // len(mine), value.shape[1:]
        # Views that do not divide are split within the program (`spread_images`).
        split = size > 1 and value.ndim > 2 and rest[0] == views and views % size == 0
        sharding, rows = NamedSharding(mesh, P("data", "view") if split else P("data")), each * mesh.shape["data"]

        def part(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(rows)
            return value[(slice(start - mine.start * each, stop - mine.start * each), *index[1:])]

        return jax.make_array_from_callback((rows, *rest), sharding, part)

    return {name: whole(np.asarray(value)) for name, value in batch.items()}


def spread_images(x: jax.Array) -> jax.Array:
    """x[N,...], the views of all objects, split over `data` and `view` of the mesh that is set (`jax.set_mesh`): filled up with
    zeros to what the devices divide, [N',...]. Without a `view` axis x itself. What fills up takes no part where the result is
    cut to N again."""
    shape = jax.sharding.get_abstract_mesh().shape
    if shape.get("view", 1) == 1:
        return x
    x = jnp.pad(x, [(0, -len(x) % (shape["data"] * shape["view"]))] + [(0, 0)] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, P(("data", "view")))
