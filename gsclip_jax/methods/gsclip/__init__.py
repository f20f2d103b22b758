"""GS-CLIP (CVPR 2026): model.py is the paper, fidelity.py what the released code does otherwise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from data_pipelines.scan import did_you_mean
from gsclip_jax.method import Method
from gsclip_jax.methods.gsclip.config import Config
from gsclip_jax.methods.gsclip.fidelity import RELEASED, Switched, Switches
from gsclip_jax.methods.gsclip.model import GsClip
from gsclip_jax.methods.surface.fusion import with_surface
from gsclip_jax.parts import ConfigError, Parts, check_known

VARIANTS = {"paper": Switches(), "released": RELEASED}
CHOICES = {"srm_tokens": ("all", "cls"), "stage2_losses": ("all", "point_view")}  # of the switches that are words


def build(cfg: Config, parts: Parts) -> Method:
    """GS-CLIP of a configuration, without parameters.

    Raises:
      ConfigError: an unknown variant, switch or stream, or sentences that do not fill the contexts.
    """
    switches = switches_of(cfg, parts.data_set)
    sentences = _sentences(cfg, parts) if cfg.model.start else ()
    given = (cfg, parts.clip, parts.net, sentences)
    method = GsClip(*given) if switches == Switches() else Switched(switches, *given)
    if sentences:
        method.begins_with = {"sentences": {"ids": np.array(sentences)}}
    # The released code knows no third stream.
    return with_surface(method, cfg.model.surface_share if cfg.variant == "paper" else 0.0)


def switches_of(cfg: Config, data_set: str = "") -> Switches:
    """The departures that the configuration asks for, trained on that data set.

    Raises:
      ConfigError: unknown variant, switch or value of one, with what is known.
    """
    check_known("variant", cfg.variant, VARIANTS)
    start = VARIANTS[cfg.variant]
    if cfg.variant == "released" and data_set in ("real3d", "anomaly_shapenet"):
        start = replace(start, depth_through_render=True)
    known = Switches.__dataclass_fields__
    for name, value in cfg.model.switches.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise ConfigError(f"config.model.switches: no switch {name!r}{hint} Known: {', '.join(known)}")
        if name in CHOICES:
            check_known(f"model.switches.{name}", value, CHOICES[name])
    return replace(start, **dict(cfg.model.switches))


def _sentences(cfg: Config, parts: Parts) -> tuple[list[int], ...]:
    """Token ids of config.model.start, normal and abnormal, n_ctx each. Raises ConfigError where they are not."""
    if len(cfg.model.start) != 2:
        raise ConfigError("config.model.start takes two sentences, normal and abnormal, or none: ()")
    tokenizer, room = parts.tokenizer(), cfg.model.n_ctx
    found = tuple(tokenizer.encode(text) for text in cfg.model.start)
    for name, ids in zip(("normal", "abnormal"), found, strict=True):
        if len(ids) != room:
            raise ConfigError(
                f"config.model.start: the {name} sentence has {len(ids)} tokens, the context {room}: make them equal "
                "(config.model.n_ctx)"
            )
    return found


__all__ = ["Config", "GsClip", "RELEASED", "Switched", "Switches", "build"]
