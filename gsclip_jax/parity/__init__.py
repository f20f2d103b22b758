"""Compares our converters and modules with arrays recorded from the authors' code: `python -m gsclip_jax.parity DIR`.

DIR holds a manifest.json (configurations, seeds, inputs, tolerances), params_<config>.json (names and shapes of the
weights) and npz files. Nothing from DIR is run. Layers: weights (names -> the recorded weights and inputs), recording
(DIR, models), compare (judging), names (our gradients under the authors' names), one module for each group of items,
check (which item is whose; runs them).
"""
