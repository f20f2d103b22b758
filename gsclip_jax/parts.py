"""What methods are built of beside their own settings: shapes of the loaded networks, and the CLIP's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from data_pipelines.scan import did_you_mean
from gsclip_jax.models.clip_config import ClipConfig
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.models.tokenizer import Tokenizer


class ConfigError(ValueError):
    """A configuration that cannot run; one line that says why and what to set."""


def check_known(key: str, value: object, known: Iterable[str]) -> None:
    """Raises ConfigError where config.KEY is none of those known, with the nearest."""
    if value not in known:
        raise ConfigError(f"config.{key} is {value!r}{did_you_mean(str(value), known)} Known: {', '.join(known)}")


def check_shares(model: object, *names: str) -> None:
    """Raises ConfigError where one of these fields of config.model is no share."""
    for name in names:
        if not 0 <= getattr(model, name) <= 1:
            raise ConfigError(f"config.model.{name} is {getattr(model, name)}; it has to be between 0 and 1")


class Parts(NamedTuple):
    """Nothing of it holds parameters: those come later (Method.loads)."""

    clip: ClipConfig
    net: PointNet2Config
    tokenizer: Callable[[], Tokenizer]  # loads it, or says in one line that there is none
    data_set: str = ""  # that is trained on: the released code differs between them
    category: str = ""  # the auxiliary one
    target: str = ""  # the data set that is evaluated, where it is another one
