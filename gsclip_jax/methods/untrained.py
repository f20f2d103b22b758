"""What methods share that learn nothing: the members of `method.Method` that then say nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from gsclip_jax.method import Params, Stage, Stats


class Untrained:
    """A Method without stages; `predict` is left to the subclass."""

    stages: tuple[Stage, ...] = ()
    loads: tuple[str, ...] = ()
    scores_only: tuple[str, ...] = ()
    begins_with: Mapping[str, Any] = {}

    def init(self, key: jax.Array) -> tuple[Params, Stats]:
        return {}, {}

    def start(self, params: Params) -> Params:
        return params

    def for_inference(self) -> Untrained:
        return self
