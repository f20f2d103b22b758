"""Checkpoints of published training code -> groups of our parameters, every key accounted for.

| kind | written by | holds |
|---|---|---|
| gsclip_stage1 | GS-CLIP `train.py` | {prompt_learner}: prompts, PointNet++, GDDM |
| gsclip_stage2 | GS-CLIP `train2.py` | {fusion, visual_depth}: SRM, depth tower with LoRA |
| pointad | PointAD `train.py` (AnomalyCLIP's are alike); Align3D-AD `epoch_N_rendering.pth` | {prompt_learner}: prompts alone |
| align3d_rgb | Align3D-AD `epoch_N_rgb.pth` | {rgb_prompt_learner, aligner}: the other learner's prompts, aligner |
| pointnet2 | Pointnet_Pointnet2_pytorch `train_semseg.py` | {model_state_dict, optimizer_state_dict, ...}: PointNet++ |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gsclip_jax.convert import fusion_names, openai_names, pointnet2_names
from gsclip_jax.convert.files import State
from gsclip_jax.methods.gsclip.gddm import GddmConfig
from gsclip_jax.methods.gsclip.srm import SrmConfig
from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.runtime.keys import WeightsError, check_keys, listed

WRAPPERS = ("state_dict.", "model_state_dict.", "model.", "net.")
KINDS = ("openai", "huggingface", "gsclip_stage1", "gsclip_stage2", "pointad", "align3d_rgb", "pointnet2")
TAKEN = ("OpenAI, open_clip or Hugging Face CLIP (ViT), GS-CLIP's stage 1 or stage 2, PointAD, Align3D-AD, or "
         "PointNet++ (single-scale semantic segmentation, S3DIS)")


@dataclass
class Converted:
    """Groups of parameters and of running statistics (numpy), what else is known of them, and keys without use."""

    kind: str
    params: dict[str, Any]
    stats: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def plain_names(tensors: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Names without what training scripts wrap around them ('module.' of DataParallel, 'state_dict.', ...)."""
    names = {name: re.sub(r"^((?:\w+\.)??)module\.", r"\1", name) for name in tensors}
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in names.values()):
            names = {old: re.sub(r"^module\.", "", name.removeprefix(wrapper)) for old, name in names.items()}
    if len(set(names.values())) != len(names):
        raise WeightsError(f"{where}: holds the same names twice, once wrapped in 'module.'; save one state_dict")
    return {names[old]: array for old, array in tensors.items()}


def recognise(names: Iterable[str], where: str) -> str:
    """One of KINDS. Raises WeightsError, saying what the file holds, for anything else."""
    names = set(names)
    starts = {name.split(".")[0] for name in names}
    if "rgb_prompt_learner" in starts:
        return "align3d_rgb"
    if "prompt_learner" in starts:
        return "gsclip_stage1" if any(name.startswith("prompt_learner.pointnet.") for name in names) else "pointad"
    if starts & {"fusion", "visual_depth"} and "visual" not in starts:
        return "gsclip_stage2"
    if any(name.startswith(("visual.layer1.", "visual.attnpool.")) for name in names):
        raise WeightsError(f"{where}: a CLIP with a ResNet tower; GS-CLIP needs a ViT (ViT-L-14-336px.pt)")
    if "visual.conv1.weight" in names:
        return "openai"
    if any("vision_model." in name or "text_model." in name for name in names):
        return "huggingface"
    if any(name.startswith("sa1.conv_blocks.") for name in names):
        raise WeightsError(f"{where}: PointNet++ with multi-scale grouping; the method needs the single-scale "
                           "`pointnet2_sem_seg` checkpoint")
    if "sa1.mlp_convs.0.weight" in names and any(name.startswith("fp1.") for name in names):
        return "pointnet2"
    raise WeightsError(f"{where}: not weights that can be converted (holds {len(names)} tensors: "
                       f"{listed(sorted(names), 4)}); known are {TAKEN}")


def convert(state: State) -> Converted:
    """Converts the training checkpoints; a CLIP needs more than its arrays (`load.convert_source`).

    Raises:
        WeightsError: all keys that do not fit, in one line with the file's name.
    """
    where = str(state.path)
    tensors = plain_names(state.tensors, where)
    kind = recognise(tensors, where)
    if kind not in _CONVERTERS:
        raise WeightsError(f"{where}: a CLIP ({kind}), not a checkpoint of training code")
    return _CONVERTERS[kind](tensors, where)


def _pointnet2(tensors: dict[str, np.ndarray], where: str) -> Converted:
    params, stats, unused = pointnet2_names.from_torch(tensors, where=where)
    return Converted("pointnet2", {"pointnet2": params}, {"pointnet2": stats}, unused=unused)


def _inside(tensors: Mapping[str, np.ndarray], group: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{group}."): array for name, array in tensors.items() if name.startswith(f"{group}.")}


def _together(where: str, kind: str, parts: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Results of all parts, or one error that holds what every part has to say."""
    results, problems = {}, []
    for name, part in parts.items():
        try:
            results[name] = part()
        except WeightsError as error:
            problems.append(str(error))
    if problems:
        raise WeightsError(f"{where}: not a whole {kind} checkpoint: " + " | ".join(problems))
    return results


def _others(tensors: Mapping[str, np.ndarray], groups: tuple[str, ...]) -> None:
    check_keys({name: array.shape for name, array in tensors.items() if name.split(".")[0] not in groups}, {}, "beside "
               + " and ".join(groups))


def _stage1(tensors: dict[str, np.ndarray], where: str) -> Converted:
    learner = _inside(tensors, "prompt_learner")
    parts = _together(where, "stage-1", {
        "prompts": lambda: openai_names.prompts_from_state_dict(learner, "prompts"),
        "pointnet2": lambda: pointnet2_names.from_torch(learner, prefix="pointnet.", where="PointNet++"),
        "gddm": lambda: fusion_names.gddm_from_torch(learner, _gddm_config(learner), where="GDDM"),
        "others": lambda: _others(tensors, ("prompt_learner",))})
    prompts = parts["prompts"]
    pointnet2, stats, unused = parts["pointnet2"]
    unused = [*unused, *(name for name in learner if openai_names.UNUSED_PROMPT_KEYS.match(name))]
    config = {"prompts": _prompt_sizes(prompts), "gddm": asdict(_gddm_config(learner))}
    return Converted("gsclip_stage1", {"prompts": prompts, "pointnet2": pointnet2, "gddm": parts["gddm"]},
                     {"pointnet2": stats}, config, [f"prompt_learner.{name}" for name in unused])


def _gddm_config(learner: Mapping[str, np.ndarray]) -> GddmConfig:
    """Sizes from the shapes; heads (4), top-k and the number of tokens are the released settings."""
    prefix = fusion_names.GDDM_PREFIX
    prototypes = learner.get(f"{prefix}normal_prototypes_module.prototypes")
    project = learner.get(f"{prefix}outlier_aggregator.point_feat_proj.weight")
    if prototypes is None or project is None or prototypes.ndim != 2 or project.ndim != 2 or project.shape[0] % 4:
        return GddmConfig()  # the comparison with the default sizes then says what is missing
    return GddmConfig(text_dim=project.shape[0], point_dim=project.shape[1], prototypes=prototypes.shape[0])


def _prompt_sizes(prompts: Mapping[str, Any]) -> dict[str, int]:
    context, width = prompts["ctx_normal"].shape
    return {"context": context, "text_width": width, "depth": prompts["deep"].shape[0] + 1,
            "deep_tokens": prompts["deep"].shape[1]}


def fixed_words(learner: Mapping[str, np.ndarray], where: str) -> dict[str, Any]:
    """The prompts of a learner whose prompts hold words and nothing of the cloud; its keys without use are left out."""
    first = learner.get("ctx_pos", np.zeros((1, 1, 12, 768)))
    if first.ndim != 4:
        raise WeightsError(f"{where}: ctx_pos has shape {first.shape} instead of (1, 1, tokens, width)")
    context, width = first.shape[2:]
    depth = max(openai_names.count(learner, r"compound_prompts_text\.(\d+)$", where), 1)
    tokens = (learner.get("compound_prompts_text.0", np.zeros((4, 1))).shape or (1,))[0]
    wanted: dict[str, tuple[int, ...]] = {name: (1, 1, context, width) for name in ("ctx_pos", "ctx_neg")}
    wanted |= {f"compound_prompts_text.{number}": (tokens, width) for number in range(depth)}
    unused = _unused(learner)
    check_keys({name: array.shape for name, array in learner.items() if name not in unused}, wanted, "prompts")
    return {"ctx_normal": learner["ctx_pos"][0, 0], "ctx_abnormal": learner["ctx_neg"][0, 0],
            "deep": np.stack([learner[f"compound_prompts_text.{number}"] for number in range(depth)])}


def _unused(learner: Mapping[str, np.ndarray]) -> list[str]:
    return [name for name in learner if openai_names.UNUSED_PROMPT_KEYS.match(name)]


def _pointad(tensors: dict[str, np.ndarray], where: str) -> Converted:
    learner = _inside(tensors, "prompt_learner")
    parts = _together(where, "PointAD", {
        "prompts": lambda: fixed_words(learner, where), "others": lambda: _others(tensors, ("prompt_learner",))})
    return Converted("pointad", {"prompts": parts["prompts"]}, config={"prompts": _prompt_sizes(parts["prompts"])},
                     unused=[f"prompt_learner.{name}" for name in _unused(learner)])


def _align3d_rgb(tensors: dict[str, np.ndarray], where: str) -> Converted:
    learner, first = _inside(tensors, "rgb_prompt_learner"), tensors.get("aligner.global_mlp.input.bias", np.zeros(768))
    parts = _together(where, "Align3D-AD", {
        "prompts": lambda: fixed_words(learner, where),
        "aligner": lambda: fusion_names.aligner_from_torch(tensors, first.size, where="aligner"),
        "others": lambda: _others(tensors, ("rgb_prompt_learner", "aligner"))})
    config = {"prompts": _prompt_sizes(parts["prompts"]), "aligner": {"embed_dim": first.size}}
    return Converted("align3d_rgb", {"rgb_prompts": parts["prompts"], "aligner": parts["aligner"]}, config=config,
                     unused=[f"rgb_prompt_learner.{name}" for name in _unused(learner)])


def _stage2(tensors: dict[str, np.ndarray], where: str) -> Converted:
    cfg = _tower_config(tensors, where)
    parts = _together(where, "stage-2", {
        "srm": lambda: fusion_names.srm_from_torch(tensors, SrmConfig(cfg.embed_dim), where="SRM"),
        "tower": lambda: openai_names.vision_from_state_dict(tensors, cfg, where="depth tower"),
        "others": lambda: _others(tensors, ("fusion", "visual_depth"))})
    tower, lora = parts["tower"]
    if lora is None:
        raise WeightsError(f"{where}: the depth tower has no LoRA factors (lora_A, lora_B); is it of stage 2?")
    sizes = ("image_size", "patch", "vision_width", "vision_layers", "vision_heads", "embed_dim")
    config = {"clip_depth": {name: getattr(cfg, name) for name in sizes},
              "lora": {"rank": int(lora["fc"]["a"].shape[-1])}, "srm": {"embed_dim": cfg.embed_dim}}
    return Converted("gsclip_stage2", {"srm": parts["srm"], "lora": lora, "clip_depth": tower}, config=config)


def _tower_config(tensors: Mapping[str, np.ndarray], where: str) -> ClipConfig:
    """Sizes of the depth tower from its shapes (64 channels a head); ViT-L/14@336's where the keys are missing."""
    conv, place = tensors.get("visual_depth.conv1.weight"), tensors.get("visual_depth.positional_embedding")
    proj = tensors.get("visual_depth.proj")
    layers = openai_names.count(tensors, r"visual_depth\.transformer\.resblocks\.(\d+)\.", where)
    if conv is None or place is None or proj is None or [conv.ndim, place.ndim, proj.ndim] != [4, 2, 2] or not layers:
        return ClipConfig()
    width, _, patch, _ = conv.shape
    try:
        return ClipConfig(image_size=round(max(place.shape[0] - 1, 0) ** 0.5) * patch, patch=patch, vision_width=width,
                          vision_layers=layers, vision_heads=max(width // 64, 1), embed_dim=proj.shape[-1], vv_blocks=0)
    except ValueError as error:
        raise WeightsError(f"{where}: a depth tower of impossible sizes: {error}") from error


_CONVERTERS: dict[str, Callable[[dict[str, np.ndarray], str], Converted]] = {
    "pointnet2": _pointnet2, "gsclip_stage1": _stage1, "gsclip_stage2": _stage2, "pointad": _pointad,
    "align3d_rgb": _align3d_rgb}
