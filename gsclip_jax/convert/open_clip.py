"""CLIPs under OpenAI's names: what of them the arrays do not say, from open_clip's configuration, OpenAI's own or the user.

The files of OpenAI and of open_clip have the same names and, at the same sizes, the same shapes. They differ in the
activation, in the channels of an attention head and in the normalisation of images; nothing of that is guessed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gsclip_jax.convert import openai_names
from gsclip_jax.convert.files import OPEN_CLIP_CONFIG, State
from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.runtime.documents import part, read_json, triple
from gsclip_jax.runtime.keys import WeightsError, plain

# Defaults of open_clip's CLIPVisionCfg and CLIPTextCfg (src/open_clip/model.py, transformer.py), which configurations leave out
VISION = {"image_size": 224, "layers": 12, "width": 768, "head_width": 64, "patch_size": 16, "mlp_ratio": 4.0}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0, "pad_id": 0}
# What our towers compute; every other key must be off (null, false, 0, empty)
FIXED: dict[str, tuple[Any, ...]] = {
    "pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "proj_type": ("linear",), "block_type": ("default",),
    "norm_kwargs": ({"eps": 1e-5},), "act_kwargs": ({"approximate": "none"},)}
# What does not change the computation: of training, or of parts that have a key of their own
WITHOUT_EFFECT = frozenset({
    "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "n_queries", "timm_model_pretrained",
    "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "hf_model_pretrained", "hf_proj_type",
    "hf_pooler_type", "pooler_type", "bos_id", "eos_id", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale",
    "cast_dtype", "output_dict", "custom_text"})
TOKENIZING = ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs")
SIZES = {"embed_dim": "embed_dim", "vision_cfg.image_size": "image_size", "vision_cfg.patch_size": "patch",
         "vision_cfg.width": "vision_width", "vision_cfg.layers": "vision_layers", "text_cfg.width": "text_width",
         "text_cfg.layers": "text_layers", "text_cfg.vocab_size": "vocab", "text_cfg.context_length": "context"}
# Vision heads of open_clip's larger towers by width, for the message alone: 80, 88 and 104 channels a head
LARGER = {1280: 16, 1408: 16, 1664: 16}


@dataclass(frozen=True)
class Said:
    """What the user says of a CLIP (None: nothing). heads: of vision and text; config: an open_clip configuration file."""

    activation: str | None = None
    heads: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    config: Path | None = None

    def fields(self) -> dict[str, Any]:
        """Of ClipConfig."""
        heads = {} if self.heads is None else dict(zip(("vision_heads", "text_heads"), self.heads))
        rest = {name: getattr(self, name) for name in ("activation", "mean", "std")}
        return heads | {name: value for name, value in rest.items() if value is not None}

    def agree(self, cfg: ClipConfig, fields: Mapping[str, Any], where: str) -> ClipConfig:
        """`cfg` with what the user says. Raises WeightsError where the file's own `fields` say something else."""
        ours = self.fields()
        for name, value in ours.items():
            if name in fields and fields[name] != value:
                raise WeightsError(f"{where}: says {name} {fields[name]}, the command says {value}; leave the option out, or "
                                   "correct the file")
        return _checked(where, lambda: replace(cfg, **ours))


# --- the configuration file ------------------------------------------------------------------------------------------


def plain_text_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names of a text tower that open_clip keeps apart ('text.ln_final.weight': `custom_text`) as OpenAI's."""
    if "text.token_embedding.weight" not in tensors:
        return tensors
    return {name.removeprefix("text."): array for name, array in tensors.items()}


def read_config(file: Path) -> tuple[dict[str, Any], list[str]]:
    """(fields of ClipConfig, notes) of an `open_clip_config.json`, or of one of open_clip's own model_configs.

    Raises:
        WeightsError: not such a file, or a model that our towers do not compute; all reasons in one line, by key.
    """
    document = read_json(file, "open_clip configuration")
    model = part(document, "model_cfg", file) if "model_cfg" in document else document
    if not isinstance(model.get("vision_cfg"), dict) or not isinstance(model.get("text_cfg"), dict):
        raise WeightsError(f"{file}: no open_clip configuration (no model_cfg with vision_cfg and text_cfg)")
    vision, text = part(model, "vision_cfg", file), part(model, "text_cfg", file)
    problems = _asks_for(model, ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"), "")
    problems += _asks_for(vision, VISION, "vision_cfg.") + _asks_for(text, (*TEXT, *TOKENIZING), "text_cfg.")
    quick = model.get("quick_gelu") or False
    if not isinstance(quick, bool):
        problems.append(f"quick_gelu {plain(quick, 40)} is not true or false")
    if problems:
        raise WeightsError(f"{file}: this model cannot be run here: {'; '.join(problems)}")
    vision, text = VISION | vision, TEXT | text
    fields: dict[str, Any] = {"embed_dim": _size(model, "embed_dim", "", file), "activation": "quick_gelu" if quick else "gelu",
                              "pad": _size(text, "pad_id", "text_cfg.", file, least=0)}
    for name, field in SIZES.items():
        group, _, key = name.rpartition(".")
        if group:
            fields[field] = _size(vision if group == "vision_cfg" else text, key, f"{group}.", file)
    fields["text_heads"] = _size(text, "heads", "text_cfg.", file)
    width, channels = fields["vision_width"], _size(vision, "head_width", "vision_cfg.", file)
    if width % channels:
        raise WeightsError(f"{file}: vision_cfg.width {width} is no multiple of vision_cfg.head_width {channels}")
    fields["vision_heads"] = width // channels
    images = part(document, "preprocess_cfg", file)
    fields |= {name: triple(images[name], f"preprocess_cfg.{name}", file) for name in ("mean", "std") if name in images}
    return fields, [f"{file.name}: text_cfg.{key} {plain(text[key], 60)} is not applied; the tokenizer is the one beside the "
                    "weights or the one you name" for key in TOKENIZING if text.get(key)]


def _asks_for(group: Mapping[str, Any], known: Any, prefix: str) -> list[str]:
    """What of a group is neither of `known` nor off nor without effect."""
    problems = []
    for key, value in group.items():
        if key == "mlp_ratio":
            if not isinstance(value, int | float) or abs(value - 4) > 1e-6:
                problems.append(f"{prefix}{key} {plain(value, 60)} (only 4)")
        elif key in known or key in WITHOUT_EFFECT or not value or any(value == fine for fine in FIXED.get(key, ())):
            continue
        else:
            problems.append(f"{prefix}{plain(key, 60)} {plain(value, 60)}")
    return problems


def _size(group: Mapping[str, Any], key: str, prefix: str, file: Path, least: int = 1) -> int:
    value = group.get(key)
    if isinstance(value, list) and key in ("image_size", "patch_size") and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if type(value) is not int or not least <= value < 1 << 24:
        raise WeightsError(f"{file}: {prefix}{key} is {plain(value, 60)}; a whole number"
                           + (" (square pictures and patches)" if isinstance(value, list) else "") + " is needed")
    return value


# --- what the arrays do not say --------------------------------------------------------------------------------------


def clip_config(tensors: Mapping[str, np.ndarray], state: State, folder: Path, said: Said) -> tuple[ClipConfig, list[str]]:
    """(configuration, notes on where it is from) of a CLIP in OpenAI's names.

    From `said.config` or the `open_clip_config.json` in `folder`; OpenAI's own archives say what they are by the sizes
    stored beside the weights or by their hash; of anything else the user has to say it.

    Raises:
        WeightsError: a configuration that contradicts the arrays or the command; or nothing says it: what to pass.
    """
    where = str(state.path)
    sizes = openai_names.sizes_from_state_dict(tensors, where)
    file = said.config or folder / OPEN_CLIP_CONFIG
    original = state.known or all(name in tensors for name in openai_names.STORED_SIZES)
    if said.config or file.is_file():
        fields, notes = read_config(file)
        wrong = [f"{name} {fields[field]}, the arrays have {sizes[field]}" for name, field in SIZES.items()
                 if fields[field] != sizes[field]]
        if original and fields["activation"] != "quick_gelu":
            wrong.append("quick_gelu false, and the weights are an archive of OpenAI's, which has it")
        if wrong:
            raise WeightsError(f"{file}: contradicts {where}: {'; '.join(wrong)}. Do they belong together?")
        cfg = said.agree(_checked(str(file), lambda: ClipConfig(**(sizes | fields))), fields, str(file))
        return cfg, [*notes, f"{file.name}: {_told(cfg)}"]
    asked = said.fields()
    unique = sizes.items() >= _sizes_of("ViT-L/14@336").items()
    ordinary = any(sizes.items() >= _sizes_of(name).items() for name in ClipConfig.PRESETS)
    heads = {f"{tower}_heads": max(sizes[f"{tower}_width"] // 64, 1) for tower in ("vision", "text")}
    if original or unique:
        asked = {**heads, "activation": "quick_gelu"} | asked
        reason = "an archive of OpenAI's" if original else "sizes that OpenAI alone has published (ViT-L/14@336)"
    else:
        if ordinary:  # every published CLIP of these sizes has 64 channels a head; the activations differ
            asked = heads | asked
        reason = "the command"
    missing = [option for option, name in (("--heads", "vision_heads"), ("--activation", "activation")) if name not in asked]
    if missing:
        raise WeightsError(_question(state, folder, sizes, missing))
    cfg = _checked(where, lambda: ClipConfig(**(sizes | asked)))
    return cfg, [f"from {reason}: {_told(cfg)}"]


def _sizes_of(preset: str) -> dict[str, int]:
    cfg = ClipConfig.preset(preset)
    return {field: getattr(cfg, field) for field in SIZES.values()}


def _checked(where: str, build: Any) -> ClipConfig:
    try:
        return build()
    except ValueError as error:
        raise WeightsError(f"{where}: {error}") from error


def _told(cfg: ClipConfig) -> str:
    def numbers(values: tuple[float, ...]) -> str:
        return ", ".join(f"{value:g}" for value in values)

    return (f"activation {cfg.activation}, heads {cfg.vision_heads} and {cfg.text_heads}, image mean {numbers(cfg.mean)}, "
            f"std {numbers(cfg.std)}")


def _question(state: State, folder: Path, sizes: Mapping[str, int], missing: list[str]) -> str:
    vision, text = sizes["vision_width"], sizes["text_width"]
    example = f"{LARGER.get(vision, max(vision // 64, 1))},{max(text // 64, 1)}"
    pass_on = {"--heads": f"--heads VISION,TEXT (of widths {vision} and {text}; {example} are usual)",
               "--activation": "--activation quick_gelu (OpenAI's, DFN's, MetaCLIP's) or --activation gelu (LAION's, DataComp's)"}
    what = {"--heads": "the number of attention heads", "--activation": "the activation"}
    unsaid = " and ".join(what[option] for option in missing)
    return (f"{state.path}: nothing says {unsaid} of this CLIP (no {OPEN_CLIP_CONFIG} in {folder}, no archive of OpenAI's); "
            f"convert with `python -m gsclip_jax.convert {state.path.name} --to DIR` and "
            f"{' and '.join(pass_on[option] for option in missing)}, or --config FILE")
