"""GDDM, SRM and Align3D-AD's aligner: names in the authors' state dicts <-> our trees.

GDDM lives in the prompt learner's dict under `point_feature_to_neg_point.`, SRM in the model's under `fusion.`, the aligner
under `aligner.`. torch keeps linear weights (out, in), we keep [in, out]; its packed attention projection (3 H D, W) becomes
[W, 3, H, D].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gsclip_jax.methods.align3d.aligner import LAYERS
from gsclip_jax.methods.gsclip.gddm import GddmConfig
from gsclip_jax.methods.gsclip.srm import SrmConfig
from gsclip_jax.runtime.keys import check_keys

GDDM_PREFIX = "point_feature_to_neg_point."
SRM_PREFIX = "fusion."
ALIGNER_PREFIX = "aligner."
_GDDM_LINEAR = {"proj": "outlier_aggregator.point_feat_proj", "ffn": "outlier_aggregator.ffn.0"}
_ATTENTION = "outlier_aggregator.aggregator_attention"
_NORM = "outlier_aggregator.norm"
_PROTOTYPES = "normal_prototypes_module.prototypes"
_SRM_LINEAR = {"render": "bidirectional_attention.k1_layer", "depth": "bidirectional_attention.k2_layer",
               "out": "final_proj"}


def gddm_shapes(cfg: GddmConfig) -> dict[str, tuple[int, ...]]:
    """torch key (without prefix) -> torch shape."""
    width = cfg.text_dim
    return {
        _PROTOTYPES: (cfg.prototypes, cfg.point_dim),
        f"{_GDDM_LINEAR['proj']}.weight": (width, cfg.point_dim), f"{_GDDM_LINEAR['proj']}.bias": (width,),
        f"{_ATTENTION}.in_proj_weight": (3 * width, width), f"{_ATTENTION}.in_proj_bias": (3 * width,),
        f"{_ATTENTION}.out_proj.weight": (width, width), f"{_ATTENTION}.out_proj.bias": (width,),
        f"{_NORM}.weight": (width,), f"{_NORM}.bias": (width,),
        f"{_GDDM_LINEAR['ffn']}.weight": (width, width), f"{_GDDM_LINEAR['ffn']}.bias": (width,),
    }


def srm_shapes(cfg: SrmConfig) -> dict[str, tuple[int, ...]]:
    """torch key (without prefix) -> torch shape."""
    width = cfg.embed_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for ours, theirs in _SRM_LINEAR.items():
        shapes[f"{theirs}.weight"] = (width, 2 * width if ours == "out" else width)
        shapes[f"{theirs}.bias"] = (width,)
    return shapes


def _selected(state: Mapping[str, np.ndarray], prefix: str, shapes: Mapping[str, tuple[int, ...]],
              where: str) -> dict[str, np.ndarray]:
    found = {name: np.asarray(value) for name, value in state.items() if name.startswith(prefix)}
    check_keys({name: value.shape for name, value in found.items()},
               {prefix + name: shape for name, shape in shapes.items()}, where)
    return {name[len(prefix):]: np.asarray(value, np.float32) for name, value in found.items()}


def _linear(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {"kernel": np.ascontiguousarray(state[f"{name}.weight"].T), "bias": state[f"{name}.bias"]}


def _linear_back(tree: Mapping[str, Any], name: str) -> dict[str, np.ndarray]:
    kernel = np.ascontiguousarray(np.asarray(tree["kernel"]).T)
    return {f"{name}.weight": kernel, f"{name}.bias": np.asarray(tree["bias"])}


def gddm_from_torch(state: Mapping[str, np.ndarray], cfg: GddmConfig, *, prefix: str = GDDM_PREFIX,
                    where: str = "GDDM weights") -> dict:
    """`prefix`ed names -> the tree of `init_gddm`. Raises WeightsError listing every key that does not fit."""
    state = _selected(state, prefix, gddm_shapes(cfg), where)
    width, heads = cfg.text_dim, cfg.heads
    packed = state[f"{_ATTENTION}.in_proj_weight"].reshape(3, heads, width // heads, width)
    return {
        "prototypes": state[_PROTOTYPES],
        "proj": _linear(state, _GDDM_LINEAR["proj"]),
        "attn": {"qkv_kernel": np.ascontiguousarray(np.moveaxis(packed, -1, 0)),
                 "qkv_bias": state[f"{_ATTENTION}.in_proj_bias"].reshape(3, heads, width // heads),
                 "out_kernel": np.ascontiguousarray(state[f"{_ATTENTION}.out_proj.weight"].T).reshape(heads, -1, width),
                 "out_bias": state[f"{_ATTENTION}.out_proj.bias"]},
        "norm": {"scale": state[f"{_NORM}.weight"], "bias": state[f"{_NORM}.bias"]},
        "ffn": _linear(state, _GDDM_LINEAR["ffn"]),
    }


def gddm_to_torch(params: Mapping[str, Any], *, prefix: str = GDDM_PREFIX) -> dict[str, np.ndarray]:
    """The reverse, for parameters or gradients."""
    attn, width = params["attn"], np.asarray(params["attn"]["out_bias"]).shape[0]
    state = {
        _PROTOTYPES: np.asarray(params["prototypes"]),
        **_linear_back(params["proj"], _GDDM_LINEAR["proj"]),
        f"{_ATTENTION}.in_proj_weight": np.ascontiguousarray(
            np.moveaxis(np.asarray(attn["qkv_kernel"]), 0, -1)).reshape(3 * width, width),
        f"{_ATTENTION}.in_proj_bias": np.asarray(attn["qkv_bias"]).reshape(3 * width),
        f"{_ATTENTION}.out_proj.weight": np.ascontiguousarray(np.asarray(attn["out_kernel"]).reshape(width, width).T),
        f"{_ATTENTION}.out_proj.bias": np.asarray(attn["out_bias"]),
        f"{_NORM}.weight": np.asarray(params["norm"]["scale"]), f"{_NORM}.bias": np.asarray(params["norm"]["bias"]),
        **_linear_back(params["ffn"], _GDDM_LINEAR["ffn"]),
    }
    return {prefix + name: value for name, value in state.items()}


def srm_from_torch(state: Mapping[str, np.ndarray], cfg: SrmConfig, *, prefix: str = SRM_PREFIX,
                   where: str = "SRM weights") -> dict:
    """`prefix`ed names -> the tree of `init_srm`. Raises WeightsError listing every key that does not fit."""
    state = _selected(state, prefix, srm_shapes(cfg), where)
    return {ours: _linear(state, theirs) for ours, theirs in _SRM_LINEAR.items()}


def srm_to_torch(params: Mapping[str, Any], *, prefix: str = SRM_PREFIX) -> dict[str, np.ndarray]:
    """The reverse, for parameters or gradients."""
    state: dict[str, np.ndarray] = {}
    for ours, theirs in _SRM_LINEAR.items():
        state |= _linear_back(params[ours], theirs)
    return {prefix + name: value for name, value in state.items()}


def aligner_from_torch(state: Mapping[str, np.ndarray], width: int, *, where: str = "aligner weights") -> dict[str, Any]:
    """Names under `aligner.` -> the tree of `init_aligner`. Raises WeightsError listing every key that does not fit."""
    names = [f"{part}_mlp.{layer}" for part in ("global", "local") for layer in LAYERS]
    shapes = {f"{name}.{leaf}": shape for name in names for leaf, shape in (("weight", (width, width)), ("bias", (width,)))}
    state = _selected(state, ALIGNER_PREFIX, shapes, where)
    return {part: {layer: _linear(state, f"{part}_mlp.{layer}") for layer in LAYERS} for part in ("global", "local")}


def aligner_to_torch(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The reverse, for parameters or gradients."""
    state: dict[str, np.ndarray] = {}
    for part, layers in params.items():
        for layer, tree in layers.items():
            state |= _linear_back(tree, f"{ALIGNER_PREFIX}{part}_mlp.{layer}")
    return state
