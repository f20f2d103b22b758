"""Hugging Face CLIP: a directory (config.json and weights) or a hub name -> OpenAI's names, and the configuration.

Names and defaults are those of transformers' CLIPModel (the same in versions 4 and 5; before 4.31 also `position_ids`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gsclip_jax.clip import ClipConfig
from gsclip_jax.convert.files import INDEX
from gsclip_jax.convert.keys import WeightsError, check_keys

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Commits of the public repositories, so that a name means the same weights tomorrow.
PINNED = {
    "openai/clip-vit-large-patch14-336": "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "openai/clip-vit-base-patch16": "57c216476eefef5ab752ec549e440a49ae4ae5f3",
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
}
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
COMPANIONS = ("config.json", "preprocessor_config.json", "processor_config.json", *TOKENIZER)

# transformers' CLIPTextConfig and CLIPVisionConfig leave their defaults out of older files
TEXT_DEFAULTS = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "vocab_size": 49408,
                 "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
VISION_DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
                   "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3}


# --- from the hub ----------------------------------------------------------------------------------------------------


def is_hub_name(name: str) -> bool:
    """'owner/model' that is no path on this machine."""
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).exists()


def fetch(name: str, revision: str | None = None, cache_dir: str | Path | None = None) -> tuple[Path, str]:
    """A directory with the files of a hub repository that are needed, and the commit they are of.

    What the cache holds is used without asking the network; else only the configuration, the tokenizer and one set of
    weights are downloaded (safetensors before bin), with the client's progress bars.

    Args:
        revision: a commit, branch or tag; default: the commit in `PINNED`, else the branch `main`.

    Raises:
        WeightsError: no network and not in the cache, no such repository, or no weights in it.
    """
    import huggingface_hub as hub  # here: a slow import, needed for hub names only
    from huggingface_hub.errors import LocalEntryNotFoundError

    revision = revision or PINNED.get(name, "main")
    try:
        # one pattern: without any, the client wants the files that we never fetch, too
        folder = Path(hub.snapshot_download(name, revision=revision, cache_dir=cache_dir, local_files_only=True,
                                            allow_patterns=["config.json"]))
        if _complete(folder):
            return folder, folder.name
    except (LocalEntryNotFoundError, ValueError):
        pass  # not in the cache: ask the network
    try:
        info = hub.HfApi().model_info(name, revision=revision)
        wanted = _needed({file.rfilename for file in info.siblings or ()}, name)
        folder = Path(hub.snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=wanted))
    except WeightsError:
        raise
    except Exception as error:  # the client passes on whatever its HTTP library raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{name}: cannot be fetched at {revision} ({type(error).__name__}: {reason[:160]}); "
                           "without a network give a directory with config.json and weights, or an OpenAI .pt file"
                           ) from error
    return folder, folder.name


def _needed(files: set[str], name: str) -> list[str]:
    main = next((file for file in WEIGHTS if file in files), None)
    if main is None or "config.json" not in files:
        raise WeightsError(f"{name}: the repository has no config.json with model.safetensors or pytorch_model.bin")
    wanted = [file for file in COMPANIONS if file in files] + [main]
    if main.endswith(INDEX):
        stem, suffix = main.removesuffix(INDEX).rsplit(".", 1)
        wanted += sorted(file for file in files if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", file))
    return wanted


def _complete(folder: Path) -> bool:
    """Whether a snapshot holds the configuration and one whole set of weights."""
    main = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if main is None or not (folder / "config.json").is_file():
        return False
    if not main.name.endswith(INDEX):
        return True
    return all((folder / shard).is_file() for shard in set(json.loads(main.read_text())["weight_map"].values()))


# --- configuration ---------------------------------------------------------------------------------------------------


def is_huggingface(folder: Path) -> bool:
    """Whether a directory looks like a transformers model (of any type: `clip_config` tells which are not CLIP)."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return False


def clip_config(folder: Path) -> ClipConfig:
    """The ClipConfig of a directory's config.json, preprocessor and tokenizer files.

    Raises:
        WeightsError: no CLIP with two ViT towers, or one our towers cannot express; all reasons in one line.
    """
    file = folder / "config.json"
    document = _json(file)
    if document.get("model_type") != "clip":
        raise WeightsError(f"{file}: model_type {document.get('model_type')!r}, only 'clip' can be converted")
    text = TEXT_DEFAULTS | _part(document, "text_config")
    vision = VISION_DEFAULTS | _part(document, "vision_config")
    problems = []
    for tower, part in (("text", text), ("vision", vision)):
        if part.get("intermediate_size", 4 * part["hidden_size"]) != 4 * part["hidden_size"]:
            problems.append(f"{tower} MLP width {part['intermediate_size']} is not four times {part['hidden_size']}")
        if abs(part["layer_norm_eps"] - 1e-5) > 1e-12:
            problems.append(f"{tower} layer_norm_eps {part['layer_norm_eps']} instead of 1e-05")
    if text["hidden_act"] != vision["hidden_act"]:
        problems.append(f"activations differ: {text['hidden_act']}, {vision['hidden_act']}")
    if vision["num_channels"] != 3:
        problems.append(f"{vision['num_channels']} image channels instead of 3")
    if problems:
        raise WeightsError(f"{file}: this CLIP cannot be expressed here: {'; '.join(problems)}")
    vocab, depth = text["vocab_size"], vision["num_hidden_layers"]
    fields: dict[str, Any] = dict(
        image_size=vision["image_size"], patch=vision["patch_size"], vision_width=vision["hidden_size"],
        vision_layers=depth, vision_heads=vision["num_attention_heads"], embed_dim=document.get("projection_dim", 512),
        text_width=text["hidden_size"], text_layers=text["num_hidden_layers"], text_heads=text["num_attention_heads"],
        vocab=vocab, context=text["max_position_embeddings"], vv_blocks=round(depth * 19 / 24),
        activation=text["hidden_act"])
    if vocab != ClipConfig.vocab:
        fields |= dict(sos=vocab - 2, eos=vocab - 1, dot=min(ClipConfig.dot, vocab - 1))
    fields |= _special_ids(folder) | _normalisation(folder)
    try:
        return ClipConfig(**fields)
    except ValueError as error:
        raise WeightsError(f"{file}: {error}") from error


def _json(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{file}: cannot be read as JSON ({type(error).__name__}); fetch it again") from error
    if not isinstance(document, dict):
        raise WeightsError(f"{file}: not a JSON object; fetch it again")
    return document


def _part(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    # files of early versions repeat a part as NAME_dict, which wins
    return dict(document.get(name) or {}) | dict(document.get(f"{name}_dict") or {})


def _special_ids(folder: Path) -> dict[str, int]:
    """Token ids from the tokenizer's files. (eos_token_id in config.json is 2 in the public files, a known mistake.)"""
    vocabulary: dict[str, int] = {}
    if (folder / "vocab.json").is_file():
        vocabulary = _json(folder / "vocab.json")
    elif (folder / "tokenizer.json").is_file():
        document = _json(folder / "tokenizer.json")
        vocabulary = dict(document.get("model", {}).get("vocab", {}))
        vocabulary |= {token["content"]: token["id"] for token in document.get("added_tokens", [])}
    names = {"sos": "<|startoftext|>", "eos": "<|endoftext|>", "dot": ".</w>"}
    return {field: vocabulary[name] for field, name in names.items() if name in vocabulary}


def _normalisation(folder: Path) -> dict[str, tuple[float, ...]]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            document = _json(folder / name)
            document = document.get("image_processor", document)
            return {ours: tuple(document[theirs]) for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))
                    if theirs in document}
    return {}


# --- names -----------------------------------------------------------------------------------------------------------

_BLOCK = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
          "attn.out_proj": "self_attn.out_proj"}
_TOP = {"positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "ln_final.weight": "text_model.final_layer_norm.weight", "ln_final.bias": "text_model.final_layer_norm.bias",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
        "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
        "visual.ln_post.weight": "vision_model.post_layernorm.weight",
        "visual.ln_post.bias": "vision_model.post_layernorm.bias", "logit_scale": "logit_scale"}
_TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
_PACKED = "qkv"
_TOWERS = (("visual.transformer.resblocks", "vision_model.encoder.layers", "vision"),
           ("transformer.resblocks", "text_model.encoder.layers", "text"))


def _shapes(cfg: ClipConfig) -> dict[str, tuple[int, ...]]:
    """Every name of transformers' CLIPModel with its shape."""
    text, vision, patch = cfg.text_width, cfg.vision_width, cfg.patch
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys((name for name in _TOP.values() if "vision" in name), (vision,))
    shapes |= dict.fromkeys((name for name in _TOP.values() if "final_layer_norm" in name), (text,))
    shapes |= {
        "logit_scale": (), "text_model.embeddings.position_embedding.weight": (cfg.context, text),
        "text_model.embeddings.token_embedding.weight": (cfg.vocab, text),
        "vision_model.embeddings.patch_embedding.weight": (vision, 3, patch, patch),
        "vision_model.embeddings.position_embedding.weight": (1 + cfg.grid**2, vision),
        "text_projection.weight": (cfg.embed_dim, text), "visual_projection.weight": (cfg.embed_dim, vision)}
    for _, prefix, tower in _TOWERS:
        width = getattr(cfg, f"{tower}_width")
        for layer in range(getattr(cfg, f"{tower}_layers")):
            for name in (*(f"self_attn.{letter}_proj" for letter in _PACKED), *_BLOCK.values()):
                bias = (4 * width,) if name == "mlp.fc1" else (width,)
                inputs = (4 * width,) if name == "mlp.fc2" else (width,)
                shapes[f"{prefix}.{layer}.{name}.weight"] = bias if name.startswith("layer_norm") else bias + inputs
                shapes[f"{prefix}.{layer}.{name}.bias"] = bias
    return shapes


def to_openai(tensors: Mapping[str, np.ndarray], cfg: ClipConfig, where: str
              ) -> tuple[dict[str, np.ndarray], list[str]]:
    """transformers' names -> (state dict in OpenAI's names and layouts, names of buffers that are not needed).

    Raises:
        WeightsError: listing missing, unexpected and misshapen keys, in the file's own names.
    """
    tensors = {name.removeprefix("model.").removeprefix("clip."): array for name, array in tensors.items()}
    unused = [name for name in tensors if name.endswith("embeddings.position_ids")]
    check_keys({name: array.shape for name, array in tensors.items() if name not in unused}, _shapes(cfg), where,
               "Do config.json and weights belong together, and is it a whole CLIPModel?")
    state = {ours: tensors[theirs] for ours, theirs in _TOP.items()}
    state |= {ours: tensors[theirs].T for ours, theirs in _TRANSPOSED.items()}
    for ours, theirs, tower in _TOWERS:
        for layer in range(getattr(cfg, f"{tower}_layers")):
            here, there = f"{ours}.{layer}", f"{theirs}.{layer}"
            for kind in ("weight", "bias"):
                packed = [tensors[f"{there}.self_attn.{letter}_proj.{kind}"] for letter in _PACKED]
                state[f"{here}.attn.in_proj_{kind}"] = np.concatenate(packed)
                state |= {f"{here}.{name}.{kind}": tensors[f"{there}.{other}.{kind}"] for name, other in _BLOCK.items()}
    return state, unused
