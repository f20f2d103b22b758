"""Hugging Face CLIP: a directory (config.json and weights) or a hub name -> OpenAI's names, and the configuration.

Names and defaults are those of transformers' CLIPModel (the same in versions 4 and 5; before 4.31 also `position_ids`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gsclip_jax.convert.files import INDEX, OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, WEIGHTS
from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.runtime.documents import part, read_json, triple
from gsclip_jax.runtime.keys import WeightsError, check_keys, plain

# Commits of the public repositories, so that a name means the same weights tomorrow.
PINNED = {
    "openai/clip-vit-large-patch14-336": "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "openai/clip-vit-base-patch16": "57c216476eefef5ab752ec549e440a49ae4ae5f3",
    "openai/clip-vit-base-patch32": "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
COMPANIONS = ("config.json", "preprocessor_config.json", "processor_config.json", *TOKENIZER)

# transformers' CLIPTextConfig and CLIPVisionConfig leave their defaults out of older files
TEXT_DEFAULTS = {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "vocab_size": 49408,
                 "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
VISION_DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
                   "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_channels": 3}


# --- from the hub ----------------------------------------------------------------------------------------------------


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
                                            allow_patterns=["config.json", OPEN_CLIP_CONFIG]))
        if _complete(folder):
            return folder, folder.name
    except (LocalEntryNotFoundError, ValueError):
        pass  # not in the cache: ask the network
    try:
        info = hub.HfApi().model_info(name, revision=revision)
        files = {file.rfilename for file in info.siblings or ()}
        if {"config.json", OPEN_CLIP_CONFIG} <= files:  # which of the two layouts, the configuration tells
            folder = Path(hub.snapshot_download(name, revision=revision, cache_dir=cache_dir, allow_patterns=["config.json"]))
            if not is_huggingface(folder):
                files -= {"config.json"}
        wanted = _needed(files, name)
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
        main = next((file for file in OPEN_CLIP_WEIGHTS if file in files), None)
        if main and OPEN_CLIP_CONFIG in files:
            return [OPEN_CLIP_CONFIG, *(file for file in TOKENIZER if file in files), main]
        raise WeightsError(f"{name}: the repository has no config.json with model.safetensors or pytorch_model.bin, and no "
                           f"{OPEN_CLIP_CONFIG} with {' or '.join(OPEN_CLIP_WEIGHTS)}")
    wanted = [file for file in COMPANIONS if file in files] + [main]
    if main.endswith(INDEX):
        stem, suffix = main.removesuffix(INDEX).rsplit(".", 1)
        wanted += sorted(file for file in files if re.fullmatch(rf"{stem}-\d+-of-\d+\.{suffix}", file))
    return wanted


def _complete(folder: Path) -> bool:
    """Whether a snapshot holds the configuration and one whole set of weights."""
    if not is_huggingface(folder):
        return (folder / OPEN_CLIP_CONFIG).is_file() and any((folder / file).is_file() for file in OPEN_CLIP_WEIGHTS)
    main = next((folder / file for file in WEIGHTS if (folder / file).is_file()), None)
    if main is None or not main.name.endswith(INDEX):
        return main is not None
    return all((folder / str(shard)).is_file() for shard in part(read_json(main), "weight_map", main).values())


# --- configuration ---------------------------------------------------------------------------------------------------


def is_huggingface(folder: Path) -> bool:
    """Whether a directory looks like a transformers model (of any type: `clip_config` tells which are not CLIP)."""
    try:
        return "model_type" in read_json(folder / "config.json")
    except WeightsError:
        return False


def clip_config(folder: Path) -> tuple[ClipConfig, dict[str, Any]]:
    """(ClipConfig, its fields that the files say) of a directory's config.json, preprocessor and tokenizer files.

    Raises:
        WeightsError: no CLIP with two ViT towers, or one our towers cannot express; all reasons in one line.
    """
    file = folder / "config.json"
    document = read_json(file)
    if document.get("model_type") != "clip":
        raise WeightsError(f"{file}: model_type {plain(document.get('model_type'), 60)}, only 'clip' can be converted")
    text = TEXT_DEFAULTS | _part(document, "text_config", file)
    vision = VISION_DEFAULTS | _part(document, "vision_config", file)
    embed_dim = document.get("projection_dim", 512)
    sizes = {f"text_config.{name}": text[name] for name in TEXT_DEFAULTS} | {
        f"vision_config.{name}": vision[name] for name in VISION_DEFAULTS} | {"projection_dim": embed_dim}
    problems = [f"{name} is {plain(value, 60)} and not a whole number from 1" for name, value in sizes.items()
                if not name.endswith(("_act", "_eps")) and (type(value) is not int or not 0 < value < 1 << 24)]
    for tower, group in (("text", text), ("vision", vision)) if not problems else ():
        if group.get("intermediate_size", 4 * group["hidden_size"]) != 4 * group["hidden_size"]:
            problems.append(f"{tower} MLP width {plain(group['intermediate_size'], 60)} is not four times {group['hidden_size']}")
        if not isinstance(group["layer_norm_eps"], int | float) or abs(group["layer_norm_eps"] - 1e-5) > 1e-12:
            problems.append(f"{tower} layer_norm_eps {plain(group['layer_norm_eps'], 60)} instead of 1e-05")
    if text["hidden_act"] != vision["hidden_act"]:
        problems.append(f"activations differ: {plain(text['hidden_act'], 60)}, {plain(vision['hidden_act'], 60)}")
    if vision["num_channels"] != 3:
        problems.append(f"{vision['num_channels']} image channels instead of 3")
    if problems:
        raise WeightsError(f"{file}: this CLIP cannot be expressed here: {'; '.join(problems)}")
    vocab, depth = text["vocab_size"], vision["num_hidden_layers"]
    said: dict[str, Any] = dict(
        image_size=vision["image_size"], patch=vision["patch_size"], vision_width=vision["hidden_size"],
        vision_layers=depth, vision_heads=vision["num_attention_heads"], embed_dim=embed_dim,
        text_width=text["hidden_size"], text_layers=text["num_hidden_layers"], text_heads=text["num_attention_heads"],
        vocab=vocab, context=text["max_position_embeddings"], activation=text["hidden_act"]) | _normalisation(folder)
    ends = {} if vocab == ClipConfig.vocab else dict(sos=vocab - 2, eos=vocab - 1, dot=min(ClipConfig.dot, vocab - 1))
    try:
        return ClipConfig(**said | {"vv_blocks": round(depth * 19 / 24)} | ends | special_ids(folder, vocab)), said
    except WeightsError:
        raise
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{file}: {error}") from error


def _part(document: dict[str, Any], name: str, file: Path) -> dict[str, Any]:
    # files of early versions repeat a part as NAME_dict, which wins
    return part(document, name, file) | part(document, f"{name}_dict", file)


def special_ids(folder: Path, vocab: int) -> dict[str, int]:
    """{sos, eos, dot} of the tokenizer's files in a folder; {} where there are none, or they have other tokens.

    (eos_token_id in config.json is 2 in the public files, a known mistake.)

    Raises:
        WeightsError: broken files, or ids outside of a vocabulary of `vocab` tokens.
    """
    vocabulary: dict[str, Any] = {}
    file = folder / "vocab.json"
    if file.is_file():
        vocabulary = read_json(file, "vocabulary")
    elif (folder / "tokenizer.json").is_file():
        file = folder / "tokenizer.json"
        document = read_json(file, "tokenizer")
        found, added = part(document, "model", file).get("vocab"), document.get("added_tokens")
        vocabulary = dict(found) if isinstance(found, dict) else {}
        for token in added if isinstance(added, list) else ():
            if isinstance(token, dict) and isinstance(token.get("content"), str):
                vocabulary[token["content"]] = token.get("id")
    names = {"sos": "<|startoftext|>", "eos": "<|endoftext|>", "dot": ".</w>"}
    ids = {field: vocabulary[name] for field, name in names.items() if name in vocabulary}
    wrong = [f"{names[field]} {plain(number, 60)}" for field, number in ids.items()
             if type(number) is not int or not 0 <= number < vocab]
    if wrong:
        raise WeightsError(f"{file}: does not belong to these weights: {', '.join(wrong)} is not in 0..{vocab - 1} (vocabulary)")
    return ids


def _normalisation(folder: Path) -> dict[str, tuple[float, ...]]:
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = folder / name
        if file.is_file():
            document = read_json(file)
            document = part(document, "image_processor", file) or document
            return {ours: triple(document[theirs], theirs, file)
                    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")) if theirs in document}
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
    if cfg.vision_layers + cfg.text_layers > len(tensors):
        raise WeightsError(f"{where}: {len(tensors)} tensors, config.json says {cfg.vision_layers} and {cfg.text_layers} layers")
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
