"""From a configuration to the model with its loaded weights. Nothing trains here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from gsclip_jax.convert.load import load_clip, load_pointnet2, load_surface
from gsclip_jax.convert.store import content_hash
from gsclip_jax.method import Method, Params, Stats
from gsclip_jax.methods import Parts, entry_of, read_config
from gsclip_jax.models.clip import ClipConfig, init_clip
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.models.tokenizer import Tokenizer, load_tokenizer
from gsclip_jax.parts import ConfigError


def clip_changes(config: ConfigDict) -> dict:
    """The fields of ClipConfig that the weights do not determine."""
    changes = {"dtype": config.clip.dtype, "remat": remat_of(config) is True}
    return changes | ({"vv_blocks": config.clip.vv_blocks} if config.clip.vv_blocks >= 0 else {})


def remat_of(config: ConfigDict) -> bool | str:
    """config.clip.remat: True, False or "auto" (what the memory asks for). Raises ConfigError for anything else."""
    found = {"auto": "auto", "true": True, "false": False}.get(str(config.clip.remat).lower())
    if found is None:
        raise ConfigError(f"config.clip.remat is {config.clip.remat!r}; it has to be auto, True or False")
    return found


def net_config(config: ConfigDict) -> PointNet2Config:
    """The point network of the configuration."""
    p = config.pointnet2
    return PointNet2Config(centroids=tuple(p.centroids), radii=tuple(p.radii), neighbours=p.neighbours)


def make_method(config: ConfigDict, clip: ClipConfig | None, tokenizer: Path | Callable[[], Tokenizer] | None = None) -> Method:
    """The method without its parameters.

    Args:
      clip: the loaded CLIP's shape; None for a method without one.
      tokenizer: the file beside the weights, unless config.clip.tokenizer names another; or what gives one instead of both.

    Raises:
      ConfigError, or the one-line errors of what it is made of.
    """

    def load() -> Tokenizer:
        source = config.clip.tokenizer or tokenizer
        if source is None:
            raise ConfigError(
                f"no tokenizer lies beside {config.clip.name}, and sentences need one: name its file with config.clip.tokenizer "
                "(or config.model.start=() for prompts without sentences)"
            )
        return load_tokenizer(source, context=clip.context, pad=clip.pad)

    row = entry_of(config.method)
    names = config.data.name, config.data.train_category, config.target.name
    parts = Parts(clip, net_config(config), tokenizer if callable(tokenizer) else load, *names)
    return row.build(read_config(row.config, config), parts)


def build_model(config: ConfigDict) -> tuple[Method, Params, Stats, dict]:
    """The method, its parameters with the loaded weights, statistics, and a record of where the weights came from.

    Raises:
      ConfigError, or the converters' one-line errors.
    """
    method, loaded, weights = load_frozen(config)
    params, stats = jax.jit(method.init)(jax.random.key(config.seed))
    params = method.start(params | loaded)
    if "pointnet2" in params and (source := config.pointnet2.weights):
        params["pointnet2"], stats["pointnet2"], weights["pointnet2"] = load_pointnet2(source, net_config(config))
    return method, params, stats, weights


def load_frozen(config: ConfigDict) -> tuple[Method, Params, dict]:
    """The method, those of its groups of parameters that are loaded and not initialised, and where their weights came from.

    Raises:
      ConfigError, or the converters' one-line errors.
    """
    clip_cfg, clip, tokenizer, weights, params = None, None, None, {}, {}
    if entry_of(config.method).clip:
        clip_cfg, clip, tokenizer, weights["clip"] = load_clip(config.clip.name, **clip_changes(config))
        if config.clip.random:
            clip = init_clip(jax.random.key(config.seed + 1), clip_cfg)
            weights["clip"] = content_hash(clip)
    method = make_method(config, clip_cfg, tokenizer)
    weights |= {name: content_hash(tree) for name, tree in method.begins_with.items()}
    for group in method.loads:
        if group == "clip":
            params[group] = clip
        elif group == "clip_depth":  # released: random, as it is copied before the weights are loaded
            params[group] = {"visual": init_clip(jax.random.key(config.seed + 2), clip_cfg)["visual"]}
            weights[group] = content_hash(params[group])
        else:  # networks that lie with an embedded CLIP
            params[group], weights[group] = load_surface(config.clip.name, clip_cfg.embed_dim)
    return method, params, weights


def parameter_count(params: Params) -> dict[str, int]:
    """Numbers of each group."""
    return {group: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree)) for group, tree in params.items()}
