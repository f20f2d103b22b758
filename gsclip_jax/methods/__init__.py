"""The methods: a folder or file each, and one line here. Nothing else lists them.

`METHODS[name]` says which sections of the configuration are the method's (its Config dataclass, the only list of its keys) and
how it is built from them; docs/add_a_method.md adds one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from data_pipelines.scan import did_you_mean
from gsclip_jax.method import Method
from gsclip_jax.methods import align3d, gsclip, plain_clip, pointad, surface
from gsclip_jax.parts import ConfigError, Parts


@dataclasses.dataclass(frozen=True)
class NoKeys:
    """Of methods without settings."""


class Entry(NamedTuple):
    """A method of the registry."""

    config: type  # dataclass whose fields are sections (dataclasses) and values of the configuration
    build: Callable[[Any, Parts], Method]
    clip: bool = True  # False: no CLIP is loaded for it
    trains: bool = True  # False: it has no stages
    colour: bool = False  # whether it has `predict_rgb`
    fields: Callable[[Any], tuple[str, ...]] = lambda cfg: ()  # optional fields of a batch (`batch.OPTIONAL`) that it trains on


METHODS: dict[str, Entry] = {
    "gsclip": Entry(gsclip.Config, gsclip.build, colour=True),
    "pointad": Entry(pointad.Config, pointad.build),
    "align3d": Entry(align3d.Config, align3d.build, fields=align3d.fields),
    "plain_clip": Entry(plain_clip.Config, plain_clip.build, trains=False),
    "surface_variation": Entry(NoKeys, lambda cfg, parts: surface.SurfaceVariation(), clip=False, trains=False),
    "broken_symmetry": Entry(NoKeys, lambda cfg, parts: surface.BrokenSymmetry(), clip=False, trains=False),
}


def entry_of(name: str) -> Entry:
    """The registry's row of a method. Raises ConfigError: there is none, with the nearest."""
    if name not in METHODS:
        raise ConfigError(f"no method {name!r}{did_you_mean(name, METHODS)} Known: {', '.join(METHODS)}")
    return METHODS[name]


def trains_on(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The optional fields of a batch that the configuration's method trains on."""
    row = entry_of(config["method"])
    return row.fields(read_config(row.config, config))


def read_config(kind: type, values: Mapping[str, Any]) -> Any:
    """A Config dataclass from the configuration's values: an absent key takes its default, a key of another method is passed
    over, a list becomes a tuple where the default is one.

    Raises:
      ValueError: what the dataclass refuses.
    """
    found = {}
    for field in dataclasses.fields(kind):
        if field.name not in values:
            continue
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        value = values[field.name]
        if dataclasses.is_dataclass(default):
            value = read_config(type(default), value)
        elif isinstance(default, tuple):
            value = tuple(value)
        elif isinstance(default, Mapping):
            value = dict(value)
        found[field.name] = value
    return kind(**found)


__all__ = ["Entry", "METHODS", "Parts", "entry_of", "read_config", "trains_on"]
