"""PointNet++: names of the public torch network (`pointnet2_sem_seg`, nine channels, thirteen classes) <-> our tree.

Convolutions with 1x1 kernels are linear layers: torch keeps them (out, in, 1[, 1]), we keep [in, out]. The classifier
(`conv2`) is never used by the method: its keys are accepted and reported, as are BatchNorm's batch counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gsclip_jax.models.pointnet2 import DEFAULT, PointNet2Config, layer_sizes
from gsclip_jax.runtime.keys import check_keys

CLASSES = 13
UNUSED = ("conv2.weight", "conv2.bias")


def _layers(cfg: PointNet2Config) -> Iterator[tuple[str, str, str, str, tuple[int, ...]]]:
    """(block, number, torch convolution, torch BatchNorm, torch kernel shape) of every layer."""
    for block, sizes in layer_sizes(cfg).items():
        for number, (inputs, outputs) in enumerate(sizes):
            if block == "head":
                yield block, str(number), "conv1", "bn1", (outputs, inputs, 1)
            else:
                ones = (1, 1) if block.startswith("sa") else (1,)  # grouped points are 2-D convolutions there
                yield (block, str(number), f"{block}.mlp_convs.{number}", f"{block}.mlp_bns.{number}",
                       (outputs, inputs, *ones))


def torch_shapes(cfg: PointNet2Config = DEFAULT) -> dict[str, tuple[int, ...]]:
    """Every key of the torch state dict that the forward pass uses, with its torch shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    for _, _, conv, norm, kernel in _layers(cfg):
        shapes[f"{conv}.weight"] = kernel
        for name in (f"{conv}.bias", f"{norm}.weight", f"{norm}.bias", f"{norm}.running_mean", f"{norm}.running_var"):
            shapes[name] = kernel[:1]
    return shapes


def from_torch(state: Mapping[str, np.ndarray], cfg: PointNet2Config = DEFAULT, *, prefix: str = "",
               where: str = "PointNet++ weights") -> tuple[dict, dict, list[str]]:
    """torch state dict -> (params, stats, unused keys).

    Args:
      state: name -> array. Only names beginning with `prefix` are looked at ('pointnet.' in the authors' checkpoints).
      where: the file, for messages.
    Raises: WeightsError listing missing, unexpected and misshapen keys together.
    """
    state = {name[len(prefix):]: np.asarray(value) for name, value in state.items() if name.startswith(prefix)}
    unused = [name for name in state if name in UNUSED or name.endswith(".num_batches_tracked")]
    check_keys({name: value.shape for name, value in state.items() if name not in unused}, torch_shapes(cfg), where,
               "expected is the 9-channel pointnet2_sem_seg network")

    def array(name: str) -> np.ndarray:
        return np.asarray(state[name], np.float32)

    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}
    for block, number, conv, norm, kernel in _layers(cfg):
        params.setdefault(block, {})[number] = {
            "kernel": np.ascontiguousarray(array(f"{conv}.weight").reshape(kernel[:2]).T),
            "bias": array(f"{conv}.bias"),
            "bn": {"scale": array(f"{norm}.weight"), "bias": array(f"{norm}.bias")}}
        stats.setdefault(block, {})[number] = {
            "mean": array(f"{norm}.running_mean"), "var": array(f"{norm}.running_var")}
    return params, stats, [prefix + name for name in unused]


def to_torch(params: Mapping[str, Any], stats: Mapping[str, Any] | None = None,
             cfg: PointNet2Config = DEFAULT, *, prefix: str = "") -> dict[str, np.ndarray]:
    """The reverse, for any tree shaped like the parameters (gradients too); no `stats`: no running statistics."""
    state: dict[str, np.ndarray] = {}
    for block, number, conv, norm, kernel in _layers(cfg):
        layer = params[block][number]
        state[f"{prefix}{conv}.weight"] = np.ascontiguousarray(np.asarray(layer["kernel"]).T).reshape(kernel)
        state[f"{prefix}{conv}.bias"] = np.asarray(layer["bias"])
        state[f"{prefix}{norm}.weight"] = np.asarray(layer["bn"]["scale"])
        state[f"{prefix}{norm}.bias"] = np.asarray(layer["bn"]["bias"])
        if stats is not None:
            state[f"{prefix}{norm}.running_mean"] = np.asarray(stats[block][number]["mean"])
            state[f"{prefix}{norm}.running_var"] = np.asarray(stats[block][number]["var"])
    return state
