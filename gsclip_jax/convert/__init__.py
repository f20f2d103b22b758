"""Weights of others -> our parameter trees, without torch and without running code from the files.

`python -m gsclip_jax.convert FILE_OR_DIRECTORY_OR_HUBNAME --to DIR` writes our own format (store.py); `load_clip`,
`load_pointnet2` and `load_checkpoint` take either that or the original files. Layers: keys (one message for all keys
that do not fit), machine + unpickle + files (bytes -> named arrays), *_names (names -> trees), huggingface, authors,
load.
"""

from gsclip_jax.convert.load import convert_source, load_checkpoint, load_clip, load_pointnet2
from gsclip_jax.convert.store import load_params, save_params

__all__ = ["convert_source", "load_checkpoint", "load_clip", "load_params", "load_pointnet2", "save_params"]
