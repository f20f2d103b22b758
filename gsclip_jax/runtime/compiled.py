"""Compiled programs that later calls find again."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from data_pipelines.files import user_cache


class Jitted(NamedTuple):
    """A jitted function of fixed arrays and a batch: a batch -> what it gives, on the host.

    Fields:
      function: jitted, of `fixed` and a batch.
      specs: the batch that it is compiled for ahead of its first call.
    """

    function: jax.stages.Wrapped
    fixed: tuple[Any, ...]
    specs: Mapping[str, jax.ShapeDtypeStruct]

    def __call__(self, batch: Mapping[str, Any]) -> Any:
        return jax.device_get(self.function(*self.fixed, batch))

    def ahead(self) -> None:
        """Compiles it; the next call with such a batch finds that."""
        self.function.lower(*self.fixed, self.specs).compile()


def keep_compiled() -> str:
    """Has JAX keep what it compiles in the user's cache folder, for later calls; returns what to say of it.

    A folder the user chose (JAX_COMPILATION_CACHE_DIR) stays. Where none can be written, nothing is kept.
    """
    folder = jax.config.jax_compilation_cache_dir
    if not folder:
        try:
            folder = user_cache("xla")
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError) as error:  # no home, or none that can be written
            return f"compiling the model (every time: {getattr(error, 'strerror', None) or error}: {folder})"
        if not os.access(folder, os.W_OK | os.X_OK):
            return f"compiling the model (every time: {folder} cannot be written)"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if any(Path(folder).glob("jit_predict*")):
        return f"taking the compiled model from {folder}"
    return f"compiling the model (once; kept in {folder})"
