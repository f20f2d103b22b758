"""Our trees (parameters or gradients) under the names and in the layouts of the recorded code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gsclip_jax.convert import fusion_names, pointnet2_names
from gsclip_jax.models.pointnet2 import PointNet2Config


def learner_to_torch(tree: Mapping[str, Any], network: PointNet2Config) -> dict[str, np.ndarray]:
    """{prompts, gddm, pointnet2} (any of them) -> the prompt learner's names."""
    state: dict[str, np.ndarray] = {}
    if "prompts" in tree:
        prompts = {k: v for k, v in tree["prompts"].items() if k != "shape"}
        shape = tree["prompts"]["shape"]
        state |= {
            "ctx_pos": np.asarray(prompts["ctx_normal"])[None, None],
            "ctx_neg": np.asarray(prompts["ctx_abnormal"])[None, None],
            "point_feature_to_prompt_pos.0.weight": np.asarray(shape["kernel"]).T,
            "point_feature_to_prompt_pos.0.bias": np.asarray(shape["bias"]),
            "point_feature_to_prompt_pos.2.weight": np.asarray(shape["ln"]["scale"]),
            "point_feature_to_prompt_pos.2.bias": np.asarray(shape["ln"]["bias"]),
        }
        state |= {f"compound_prompts_text.{i}": row for i, row in enumerate(np.asarray(prompts["deep"]))}
    if "gddm" in tree:
        state |= fusion_names.gddm_to_torch(tree["gddm"])
    if "pointnet2" in tree:
        state |= pointnet2_names.to_torch(tree["pointnet2"], cfg=network, prefix="pointnet.")
    return state


def fusion_to_torch(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{srm, lora} -> the names of the fusion block and of the depth tower's low-rank factors."""
    state = fusion_names.srm_to_torch(tree["srm"])
    for ours, layer in (("fc", "c_fc"), ("proj", "c_proj")):
        for factor, theirs in (("a", "lora_A"), ("b", "lora_B")):
            for block, value in enumerate(np.asarray(tree["lora"][ours][factor])):
                state[f"visual_depth.transformer.resblocks.{block}.mlp.{layer}.{theirs}"] = value.T
    return state
