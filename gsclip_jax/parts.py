"""What methods are built of beside their own settings: shapes of the loaded networks, and the CLIP's tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gsclip_jax.models.clip_config import ClipConfig
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.models.tokenizer import Tokenizer


class ConfigError(ValueError):
    """A configuration that cannot run; one line that says why and what to set."""


class Parts(NamedTuple):
    """Nothing of it holds parameters: those come later (Method.loads)."""

    clip: ClipConfig
    net: PointNet2Config
    words: Callable[[], Tokenizer]  # loads it, or says in one line that there is none
    data_set: str = ""  # that is trained on: the released code differs between them
    category: str = ""  # the auxiliary one
    target: str = ""  # the data set that is evaluated, where it is another one
