"""Align3D-AD (2026): model.py and aligner.py are the method, config.py its keys and what the released scripts set."""

from __future__ import annotations

from gsclip_jax.methods.align3d.config import Config, resolved
from gsclip_jax.methods.align3d.model import Align3d
from gsclip_jax.methods.pointad import word_ids
from gsclip_jax.parts import Parts


def build(cfg: Config, parts: Parts) -> Align3d:
    """Align3D-AD of a configuration, without parameters. Raises ConfigError: unknown variant, or no tokenizer."""
    return Align3d(resolved(cfg, parts), parts.clip, word_ids(parts), parts.data_set)


def fields(cfg: Config) -> tuple[str, ...]:
    """Coloured views, but for the ablation that aligns nothing."""
    return () if cfg.model.branches == "render" else ("rgb_render",)


__all__ = ["Align3d", "Config", "build", "fields"]
