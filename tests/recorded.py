"""Arrays recorded from the authors' code: regenerates their weights and inputs, and judges ours by the recorded bounds."""

from __future__ import annotations

import importlib.util
import json
from functools import cached_property
from pathlib import Path

import numpy as np


class Recorded:
    """One folder of recorded arrays (README.md there), of the small configuration."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.names = {k: tuple(v) for k, v in json.loads((folder / "params_small.json").read_text()).items()}
        spec = importlib.util.spec_from_file_location("recorded_weights", folder / "weights.py")
        self.weights = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.weights)

    def state(self, *prefixes: str, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """State dict (PyTorch names and layouts) of the keys that begin with one of `prefixes` and none of `without`."""
        seed = self.manifest["weight_seed"]["SMALL"]
        return {
            name: self.weights.fill(name, shape, seed)
            for name, shape in self.names.items()
            if name.startswith(prefixes) and not name.startswith(without)
        }

    @cached_property
    def clip_state(self) -> dict[str, np.ndarray]:
        """The CLIP inside the model: both towers, without the depth encoder."""
        return self.state("visual.", "transformer.", "token_embedding", "ln_final", "positional_", "text_proj", "logit_")

    def input(self, name: str) -> np.ndarray:
        """A regenerated input, checked against its recorded fingerprint; images NCHW as recorded."""
        recipe = self.manifest["inputs"][name]
        x = self.weights.normal_input(recipe["seed"], recipe["shape"], recipe["unit"], recipe["scale"])
        ours, theirs = self.weights.fingerprint(x), recipe["fingerprint"]
        assert np.allclose(ours, theirs, rtol=0, atol=1e-9 * theirs[1]), f"{name} was regenerated differently"
        return x

    def array(self, name: str) -> np.ndarray:
        item, _, key = name.partition("/")
        entry = self.manifest["arrays"].get(name, {"file": f"{item}.npz", "key": key})
        with np.load(self.folder / entry["file"]) as arrays:
            return arrays[entry["key"]]

    def check(self, name: str, ours) -> None:
        """Fails where `ours` leaves the recorded array's bounds: shape, largest and root-mean-square difference."""
        entry, theirs, ours = self.manifest["arrays"][name], self.array(name), np.asarray(ours)
        assert ours.shape == theirs.shape, f"{name}: shape {ours.shape}, recorded {theirs.shape}"
        if not np.issubdtype(theirs.dtype, np.floating):
            assert np.array_equal(ours, theirs), f"{name}: integers differ"
            return
        difference = ours.astype(np.float64) - theirs
        largest, rms = np.abs(difference).max(), np.sqrt(np.square(difference).mean())
        assert largest <= entry["accept_atol"], f"{name}: largest difference {largest:.2e} > {entry['accept_atol']:.2e}"
        assert rms <= entry["accept_rms"], f"{name}: rms difference {rms:.2e} > {entry['accept_rms']:.2e}"


def nhwc(images: np.ndarray) -> np.ndarray:
    """[B,C,H,W] -> [B,H,W,C]."""
    return images.transpose(0, 2, 3, 1)
