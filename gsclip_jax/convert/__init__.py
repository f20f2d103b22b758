"""Weights of others -> our parameter trees, without torch and without running code from the files.

`python -m gsclip_jax.convert FILE_OR_DIRECTORY_OR_HUBNAME --to DIR` writes our own format (store.py); `load_clip`,
`load_pointnet2` and `load_checkpoint` take either that or the original files. Layers: keys (one message for all keys
that do not fit), machine + unpickle + files (bytes -> named arrays), *_names (names -> trees), huggingface, authors,
load.
"""

from typing import Any

__all__ = ["convert_source", "load_checkpoint", "load_clip", "load_params", "load_pointnet2", "save_params"]


def __getattr__(name: str) -> Any:
    # Lazy, because the models import `convert.keys` and `load` imports the models.
    if name in ("load_params", "save_params"):
        from gsclip_jax.convert import store

        return getattr(store, name)
    if name in __all__:
        from gsclip_jax.convert import load

        return getattr(load, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
