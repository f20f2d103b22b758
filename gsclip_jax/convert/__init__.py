"""Weights of others -> our parameter trees, without torch and without running code from the files.

`python -m gsclip_jax.convert FILE_OR_DIRECTORY_OR_HUBNAME --to DIR` writes our own format (store.py); `load.load_clip`,
`load.load_pointnet2` and `load.load_checkpoint` take either that or the original files. Layers: keys (one message for all keys
that do not fit), machine + unpickle + files (bytes -> named arrays), *_names (names -> trees), huggingface, authors,
load.

Nothing is imported here: `store` is read where no model is built, and the rest brings the models along.
"""
