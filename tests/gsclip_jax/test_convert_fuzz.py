"""Damaged weights and tokenizers of every format: read, or refused in one line; never a crash, never more memory than is there.

The default run damages a few hundred files, `make test-slow` ten thousand. Everything is seeded: a failure names its input.
"""

from __future__ import annotations

import gzip
import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save as save_safetensors

from gsclip_jax.convert import authors
from gsclip_jax.convert.files import State
from gsclip_jax.convert.load import convert_source, load_checkpoint, load_clip
from gsclip_jax.convert.open_clip import Said
from gsclip_jax.convert.store import save_params
from gsclip_jax.models.clip import ClipConfig, init_clip
from gsclip_jax.models.tokenizer import EOS, SOS, load_tokenizer, vocabulary
from gsclip_jax.runtime.keys import WeightsError
from tests import mutations
from tests.torch_bytes import torch_legacy, torch_zip

SAID = Said("gelu", (1, 1))
BYTES, JSON, ZIP, TENSORS = mutations.of_bytes, mutations.of_json_text, mutations.of_zip, mutations.of_safetensors
SMALL = ClipConfig(image_size=16, patch=8, vision_width=16, vision_layers=1, vision_heads=1, embed_dim=8, text_width=16,
                   text_layers=1, text_heads=1, vocab=20, context=9, vv_blocks=1, sos=18, eos=19, dot=3)  # fmt: skip
rng = np.random.default_rng(0)
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")  # of archives damaged on purpose


@dataclass
class Kind:
    """Files of one format (name -> content and how it is damaged) and how they are read."""

    files: dict[str, tuple[bytes, Callable]]
    read: Callable[[Path], object]


# --- whole files of each format --------------------------------------------------------------------------------------


def clip_arrays() -> dict[str, np.ndarray]:
    """A CLIP in OpenAI's names."""
    shapes = {"visual.conv1.weight": (16, 3, 8, 8), "visual.class_embedding": (16,), "visual.positional_embedding": (5, 16),
              "visual.proj": (16, 8), "token_embedding.weight": (20, 16), "positional_embedding": (9, 16),
              "text_projection": (16, 8), "logit_scale": ()}  # fmt: skip
    for norm in ("visual.ln_pre", "visual.ln_post", "ln_final"):
        shapes |= {f"{norm}.{part}": (16,) for part in ("weight", "bias")}
    for block in ("visual.transformer.resblocks.0", "transformer.resblocks.0"):
        for name, outputs, inputs in (("attn.in_proj_", 48, 16), ("attn.out_proj.", 16, 16), ("mlp.c_fc.", 64, 16),
                                      ("mlp.c_proj.", 16, 64)):  # fmt: skip
            shapes |= {f"{block}.{name}weight": (outputs, inputs), f"{block}.{name}bias": (outputs,)}
        shapes |= {f"{block}.{norm}.{part}": (16,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}


def huggingface_arrays() -> dict[str, np.ndarray]:
    from gsclip_jax.convert.huggingface import _shapes

    return {name: rng.standard_normal(shape).astype(np.float16) for name, shape in _shapes(SMALL).items()}


def pointad_arrays() -> dict[str, np.ndarray]:
    shapes = {"ctx_pos": (1, 1, 3, 8), "ctx_neg": (1, 1, 3, 8)} | {f"compound_prompts_text.{i}": (2, 8) for i in range(3)}
    return {f"prompt_learner.{name}": np.ones(shape, np.float16) for name, shape in shapes.items()}


def stage2_arrays() -> dict[str, np.ndarray]:
    from gsclip_jax.convert.fusion_names import srm_shapes
    from gsclip_jax.methods.gsclip.srm import SrmConfig

    tower = {name.replace("visual.", "visual_depth.", 1): a for name, a in clip_arrays().items() if name.startswith("visual.")}
    for layer, outputs, inputs in (("c_fc", 64, 16), ("c_proj", 16, 64)):
        here = f"visual_depth.transformer.resblocks.0.mlp.{layer}."
        for part in ("weight", "bias"):
            tower[f"{here}original_layer.{part}"] = tower.pop(f"{here}{part}")
        tower |= {f"{here}lora_A": np.ones((2, inputs), np.float16), f"{here}lora_B": np.ones((outputs, 2), np.float16)}
    return tower | {f"fusion.{name}": np.ones(shape, np.float16) for name, shape in srm_shapes(SrmConfig(8)).items()}


def kinds(folder: Path) -> dict[str, Kind]:
    """Every format; each is read whole before it is damaged."""
    clip, words = clip_arrays(), {f"token{i}": i for i in range(20)} | {SOS: 18, EOS: 19}
    config = {"model_cfg": {"embed_dim": 8, "quick_gelu": True,
                            "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
                            "text_cfg": {"context_length": 9, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}},
              "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}  # fmt: skip
    transformers = {
        "model_type": "clip", "projection_dim": 8,
        "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 20,
                        "max_position_embeddings": 9, "hidden_act": "gelu"},
        "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 16, "patch_size": 8,
                          "hidden_act": "gelu"}}  # fmt: skip
    hub = huggingface_arrays()
    first = dict(list(hub.items())[::2])
    parts = {"one.safetensors": first, "two.safetensors": {name: a for name, a in hub.items() if name not in first}}
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    images = {"image_processor": {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]}}
    merges = [("o", "b"), ("ob", "j"), ("a", "n")]
    pairs = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges)
    bpe = {"added_tokens": [{"id": 515, "content": SOS}, {"id": 516, "content": EOS}],
           "model": {"type": "BPE", "vocab": vocabulary(merges), "merges": [list(pair) for pair in merges]}}  # fmt: skip
    mini = (Path(__file__).parents[2] / "gsclip_jax/assets/mini/tokenizer.json").read_bytes()
    save_params(folder / "kept", {"clip": jax.tree.map(np.asarray, init_clip(jax.random.key(0), SMALL))},
                config={"clip": SMALL.to_json(), "kind": "openai", "source": {"unused": []}})  # fmt: skip
    kept = {name: (folder / "kept" / name).read_bytes() for name in ("params.safetensors", "config.json")}
    dumped = lambda document: json.dumps(document).encode()  # noqa: E731
    convert = lambda path: convert_source(path, said=SAID)  # noqa: E731
    plain = lambda path: convert_source(path)  # noqa: E731
    one = lambda name, data, damage, read: Kind({name: (data, damage)}, lambda path: read(path / name))  # noqa: E731
    made = {
        "torch zip": one("w.pt", torch_zip(clip, "state_dict"), ZIP, convert),
        "torchscript": one("w.pt", torch_zip(clip, script=True), ZIP, convert),
        "torch legacy": one("w.pth", torch_legacy(clip), BYTES, convert),
        "safetensors": one("w.safetensors", save_safetensors(clip), TENSORS, convert),
        "pointad": one("w.pth", torch_zip(pointad_arrays()), ZIP, load_checkpoint),
        "stage 2": one("w.pth", torch_legacy(stage2_arrays()), BYTES, load_checkpoint),
        "open_clip": Kind({"open_clip_config.json": (dumped(config), JSON),
                           "open_clip_model.safetensors": (save_safetensors(clip), TENSORS)}, plain),
        "hugging face": Kind({"config.json": (dumped(transformers), JSON), "model.safetensors": (save_safetensors(hub), TENSORS),
                              "preprocessor_config.json": (dumped(images), JSON), "vocab.json": (dumped(words), JSON)}, plain),
        "shards": Kind({"config.json": (dumped(transformers), JSON), "model.safetensors.index.json": (dumped(index), JSON)}
                       | {file: (save_safetensors(part), TENSORS) for file, part in parts.items()}, plain),
        "store": Kind({"params.safetensors": (kept["params.safetensors"], TENSORS), "config.json": (kept["config.json"], JSON)},
                      load_clip),
        "store as checkpoint": Kind({"params.safetensors": (kept["params.safetensors"], TENSORS),
                                     "config.json": (kept["config.json"], JSON)}, load_checkpoint),
        "merges": one("bpe.txt.gz", gzip.compress(pairs.encode()), BYTES, load_tokenizer),
        "plain merges": one("merges.txt", pairs.encode(), BYTES, load_tokenizer),
        "vocabulary and merges": Kind({"vocab.json": (dumped(vocabulary(merges)), JSON), "merges.txt": (pairs.encode(), BYTES)},
                                      load_tokenizer),
        "byte pairs": one("tokenizer.json", dumped(bpe), JSON, load_tokenizer),
        "words": one("tokenizer.json", mini, JSON, load_tokenizer),
    }  # fmt: skip
    return made


# --- the loop --------------------------------------------------------------------------------------------------------


def outcome(read: Callable[[], object], label: str) -> str:
    try:
        read()
        return "read"
    except WeightsError as error:
        told = str(error)
        assert told.isprintable() and 10 < len(told) < 5000, (label, told)
        return "refused"
    except BaseException as error:
        raise AssertionError(f"{label}: {type(error).__name__}: {error}") from error


def damage_files(folder: Path, rounds: int, seed: int) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, kind in kinds(folder).items():
        place = folder / name
        place.mkdir()
        for file, (data, _) in kind.files.items():
            (place / file).write_bytes(data)
        assert outcome(partial(kind.read, place), f"{name}, whole") == "read"
        found[name] = set()
        for number in range(rounds):
            draw = np.random.default_rng((seed, number))
            file = list(kind.files)[draw.integers(len(kind.files))]
            data, damage = kind.files[file]
            (place / file).write_bytes(damage(data, draw))
            found[name].add(outcome(partial(kind.read, place), f"{name}, {file}, seed {seed}, round {number}"))
            (place / file).write_bytes(data)
    return found


def damage_arrays(rounds: int, seed: int) -> set[str]:
    """Whole files of arrays with other names and shapes: what the byte damage seldom makes."""
    found = set()
    kept = {"openai": clip_arrays(), "pointad": pointad_arrays(), "stage2": stage2_arrays(), "hf": huggingface_arrays()}
    kept = {name: {key: array.astype(np.float32) for key, array in arrays.items()} for name, arrays in kept.items()}
    for name, arrays in kept.items():
        for number in range(rounds):
            damaged = mutations.of_arrays(arrays, np.random.default_rng((seed, number)))
            state = State(Path("w.pt"), "torch", damaged, {})
            if name in ("openai", "hf"):
                from gsclip_jax.convert import load

                read = lambda state=state: load._convert(state, Path("nowhere"), SAID)  # noqa: E731
            else:
                read = lambda state=state: authors.convert(state)  # noqa: E731
            found.add(outcome(read, f"{name}, arrays, seed {seed}, round {number}"))
    return found


def test_damaged_files_are_read_or_refused(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = damage_files(tmp_path, 25, seed=1)
    assert len(found) == 16 and all("refused" in outcomes for outcomes in found.values()), found
    assert damage_arrays(60, seed=1) == {"read", "refused"}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB: nothing as large as a header may claim


@pytest.mark.slow
def test_ten_thousand_damaged_files(tmp_path):
    damage_files(tmp_path, 560, seed=2)
    damage_arrays(400, seed=2)
