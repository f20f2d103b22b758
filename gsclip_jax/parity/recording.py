"""A directory of recorded arrays: what it lists, its inputs, and the models whose weights it names."""

from __future__ import annotations

import functools
import math
import re
import tokenize
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from gsclip_jax.convert import fusion_names, openai_names, pointnet2_names
from gsclip_jax.convert.unpickle import DAMAGED
from gsclip_jax.methods.gsclip.config import Config
from gsclip_jax.methods.gsclip.config import Model as ModelConfig
from gsclip_jax.methods.gsclip.fidelity import Switched, Switches
from gsclip_jax.methods.gsclip.srm import SrmConfig
from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.parity.weights import agrees, normal_input, weight
from gsclip_jax.runtime.documents import read_json
from gsclip_jax.runtime.keys import WeightsError

ITEMS = "abcdefghijklmnopqrstuvwxyz"  # a to p: GS-CLIP; q to z: Align3D-AD
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


class ParityError(WeightsError):
    """A directory that cannot be checked. One line: what is wrong, where, what to do."""


@dataclass(frozen=True)
class Entry:
    """One array of the manifest. `key` is its name within `item`, e.g. item 'b', key 'patch_l6'."""

    name: str
    item: str
    key: str
    config: str
    seed: int
    about: Mapping[str, Any]

    @property
    def is_input(self) -> bool:
        return self.key.startswith("in_")


class Recording:
    """The directory; every array and input is checked against what the manifest says of it when it is first read."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = self.json("manifest.json")
        absent = [name for name in ("arrays", "configs", "inputs", "weight_seed") if name not in self.manifest]
        if absent:
            raise ParityError(f"{self.folder / 'manifest.json'}: no {', '.join(absent)}; it is no manifest of recorded arrays")
        self.fingerprints = self.json("weights_check.json") if (self.folder / "weights_check.json").is_file() else {}
        self.entries = [self._entry(name, about) for name, about in self.manifest["arrays"].items()]
        self._named = {entry.name: entry for entry in self.entries}
        self._files: dict[str, Any] = {}

    def json(self, name: str) -> Any:
        return read_json(self.folder / name, "directory of recorded arrays", ParityError)

    # ---- which item an array belongs to

    def _entry(self, name: str, about: Mapping[str, Any]) -> Entry:
        config = about.get("config", "SMALL")
        if config not in self.manifest["configs"]:
            raise ParityError(f"{self.folder / 'manifest.json'}: {name} is of configuration {config}, which is not described")
        item, key = split_name(name)
        if not item:
            item = self._item_like(key, about)
        return Entry(name, item, key, config, about.get("weight_seed", self.manifest["weight_seed"].get(config)), about)

    def _item_like(self, key: str, about: Mapping[str, Any]) -> str:
        """The item of a name without an item's letter: that of the array described most alike; '?' where there is none."""

        def plain(text: str) -> str:
            return re.sub(r"\d+", "#", text)

        best, item = 0.6, "?"
        for name, other in self.manifest["arrays"].items():
            if split_name(name)[0] and plain(split_name(name)[1]) == plain(key):
                alike = SequenceMatcher(None, plain(about.get("what", "")), plain(other.get("what", ""))).ratio()
                if alike > best:
                    best, item = alike, split_name(name)[0]
        return item

    # ---- arrays

    def array(self, name: str) -> np.ndarray:
        """A stored array by its manifest name, of the dtype and shape the manifest gives."""
        about = self._named[name].about
        array = self._npz(about["file"]).get(about["key"])
        if array is None:
            raise ParityError(f"{self.folder / about['file']}: holds no {about['key']!r} ({name}); the directory is incomplete")
        if list(array.shape) != list(about["shape"]) or str(array.dtype) != about["dtype"]:
            raise ParityError(f"{self.folder / about['file']}: {name} is {array.dtype} {array.shape}, the manifest says "
                              f"{about['dtype']} {tuple(about['shape'])}")  # fmt: skip
        return array

    def _npz(self, file: str) -> dict[str, np.ndarray]:
        if file not in self._files:
            path = self.folder / file
            try:
                _fits(path)
                with np.load(path, allow_pickle=False) as arrays:
                    self._files[file] = {name: arrays[name] for name in arrays.files}
            except (*DAMAGED, KeyError, TypeError, SyntaxError, tokenize.TokenError) as error:
                raise ParityError(f"{path}: cannot be read ({error}); the directory is incomplete") from error
        return self._files[file]

    def unlisted(self, items: Iterable[str]) -> list[str]:
        """Arrays in the files of `items` that the manifest does not list (nor their float64 twins)."""
        files = {entry.about["file"] for entry in self.entries if entry.item in items}
        listed = {(entry.about["file"], entry.about["key"]) for entry in self.entries}
        twins = {(file, f"{key}__f64") for file, key in listed}
        twins |= {(entry.about["file"], entry.about["f64_key"]) for entry in self.entries if "f64_key" in entry.about}
        found = {(file, key) for file in sorted(files) for key in self._npz(file)}
        return sorted(f"{file}:{key}" for file, key in found - listed - twins if not key.startswith("in_"))

    def value(self, name: str) -> np.ndarray:
        """An input: regenerated where the manifest gives a recipe (and its fingerprint fits), else the stored array."""
        recipe = self.manifest["inputs"].get(name)
        if recipe is None:
            return self.array(name)
        x = normal_input(recipe["seed"], recipe["shape"], recipe.get("unit", False), recipe.get("scale", 1.0))
        if not agrees(x, recipe["fingerprint"]):
            raise ParityError(f"input {name} was regenerated differently from the recorded one; is numpy's generator another?")
        return x

    def sources(self, entry: Entry) -> list[str]:
        """Inputs that the array's entry names, in its order."""
        words = re.findall(r"[A-Za-z]\w*(?:[/:][\w.]+)+", str(entry.about.get("inputs", "")))
        return [word for word in dict.fromkeys(words) if word in self.manifest["inputs"] or word in self._named]

    def source(self, entry: Entry, leaf: str, item: str | None = None) -> str:
        """The name of the input `leaf` ('render', 'in_cor', ...) for an array: of its own configuration where there is one."""
        item = item or entry.item
        candidates = [name for name in self.sources(entry) if split_name(name)[1] == leaf]
        for name in (*self._named, *self.manifest["inputs"]):
            if split_name(name) in ((item, leaf), ("", leaf)):
                known = self._named.get(name)
                if (known.config if known else _config_of(name)) == entry.config:
                    candidates.append(name)
        if not candidates:
            raise ParityError(f"{self.folder}: no input {leaf!r} for {entry.name}")
        return candidates[0]


def _fits(path: Path) -> None:
    """Raises ValueError where an array claims more than its part of the archive can hold: numpy takes the memory first."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as member:
                shape, _, dtype = readers[np.lib.format.read_magic(member)](member)
            # deflate makes a byte of at most 1032
            if math.prod(shape) * dtype.itemsize > min(entry.file_size, 1032 * (entry.compress_size + 1)):
                raise ValueError(f"{entry.filename} claims to be {shape} {dtype}")


def split_name(name: str) -> tuple[str, str]:
    """'b/patch_l6' -> ('b', 'patch_l6'); the word 'full' is left out: 'full/b/cls', 'full/b_cls', 'b/full_cls', 'b/cls_full';
    ('', rest) without an item's letter."""
    name = re.sub(r"(?i)(?<![A-Za-z])full[/_:.]|[_.]full$", "", name)
    match = re.match(rf"([{ITEMS}])[/_:](.+)$", name)
    return (match[1], match[2]) if match else ("", name.rpartition("/")[2])


def _config_of(name: str) -> str:
    return "FULL" if re.search(r"(?i)(?<![A-Za-z])full(?![A-Za-z])", name) else "SMALL"


def recorded_method(cfg: Config, clip: ClipConfig, net: PointNet2Config, **switches: Any) -> Switched:
    """GS-CLIP with the switches of all recorded arrays (weighting, padding) and those given."""
    always = {"weight_by_score": False, "dice_padding": True, "score_padding": True}
    return Switched(Switches(**always | switches), cfg, clip, net)


class Model:
    """The weights of one configuration and seed, made again and pushed through our converters; each group when asked for."""

    def __init__(self, recording: Recording, config: str, seed: int):
        self.recording, self.config, self.seed = recording, config, seed
        self.sizes = recording.manifest["configs"][config]
        self.names = {k: tuple(v) for k, v in recording.json(f"params_{config.lower()}.json").items()}

    def state(self, *prefixes: str) -> dict[str, np.ndarray]:
        """State dict of the names that begin with one of `prefixes`, compared with the recorded fingerprints."""
        known = self.recording.fingerprints.get(f"{self.config.lower()} seed {self.seed}", {})
        state = {}
        for name, shape in self.names.items():
            if name.startswith(prefixes):
                state[name] = weight(name, shape, self.seed)
                if name in known and not agrees(state[name], known[name]):
                    raise ParityError(f"weight {name} of {self.config} (seed {self.seed}) was regenerated differently from the "
                                      f"recorded one")  # fmt: skip
        return state

    @functools.cached_property
    def clip(self) -> ClipConfig:
        """Sizes as recorded."""
        s = self.sizes
        return ClipConfig(
            image_size=s["vision"]["image"], patch=s["vision"]["patch"], vision_width=s["vision"]["width"],
            vision_layers=s["vision"]["layers"], vision_heads=s["vision"]["heads"], embed_dim=s["embed_dim"],
            text_width=s["text"]["width"], text_layers=s["text"]["layers"], text_heads=s["text"]["heads"],
            vocab=s["text"]["vocab"], context=s["text"]["context"], vv_blocks=s["DPAM_layer"] - 1,
            # One block's activations at a time in the backward pass: the full tower's would not fit beside the weights.
            remat=s["vision"]["width"] >= 512,
        )  # fmt: skip

    @functools.cached_property
    def net(self) -> PointNet2Config:
        """The published sizes."""
        return PointNet2Config()

    @functools.cached_property
    def cfg(self) -> Config:
        """The settings as recorded."""
        g, lora = self.sizes["gddm"], self.sizes["lora"]
        return Config(model=ModelConfig(
            prototypes=g["prototypes"], top_k=g["top_k"], defect_tokens=g["defect_tokens"], gddm_heads=g["heads"],
            lora_rank=lora["rank"], lora_alpha=lora["alpha"], tau=self.sizes["temperature"],
        ))  # fmt: skip

    def method(self, **switches: Any) -> Switched:
        """The assembled method with these switches beside those of all recorded arrays (weighting, padding)."""
        return recorded_method(self.cfg, self.clip, self.net, **switches)

    # ---- groups of parameters, through the converters

    @functools.cached_property
    def visual(self) -> dict[str, Any]:
        """{'visual': tree}: the render stream's tower."""
        return openai_names.vision_from_state_dict(self.state("visual."), self.clip, "visual.")[0]

    @functools.cached_property
    def text(self) -> dict[str, Any]:
        """{'text': tree, 'logit_scale': []} of the whole CLIP; its vision tower is let go."""
        state = self.state("visual.", "transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection",
                           "logit_scale")  # fmt: skip
        tree = openai_names.clip_from_state_dict(state, self.clip)
        return {name: tree[name] for name in ("text", "logit_scale")}

    @functools.cached_property
    def depth(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """({'visual': tree}, LoRA factors): the depth stream's tower, which has weights of its own here."""
        return openai_names.vision_from_state_dict(self.state("visual_depth."), self.clip)

    @functools.cached_property
    def learner(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """({prompts, gddm, pointnet2}, {pointnet2: statistics}): stage 1's modules."""
        state = self.state("ctx_", "compound_", "point_feature_", "pointnet.")
        network, stats, _ = pointnet2_names.from_torch(state, self.net, prefix="pointnet.")
        gddm = fusion_names.gddm_from_torch(state, self.method().gddm)
        prompts = openai_names.prompts_from_state_dict(state)
        return {"prompts": prompts, "gddm": gddm, "pointnet2": network}, {"pointnet2": stats}

    @functools.cached_property
    def srm(self) -> dict[str, Any]:
        return fusion_names.srm_from_torch(self.state("fusion."), SrmConfig(self.clip.embed_dim))
