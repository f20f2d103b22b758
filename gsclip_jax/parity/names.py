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
        shape = tree["prompts"]["shape"]
        state |= prompts_to_torch(tree["prompts"])
        state |= {
            "point_feature_to_prompt_pos.0.weight": np.asarray(shape["kernel"]).T,
            "point_feature_to_prompt_pos.0.bias": np.asarray(shape["bias"]),
            "point_feature_to_prompt_pos.2.weight": np.asarray(shape["ln"]["scale"]),
            "point_feature_to_prompt_pos.2.bias": np.asarray(shape["ln"]["bias"]),
        }
    if "gddm" in tree:
        state |= fusion_names.gddm_to_torch(tree["gddm"])
    if "pointnet2" in tree:
        state |= pointnet2_names.to_torch(tree["pointnet2"], cfg=network, prefix="pointnet.")
    return state


def prompts_to_torch(prompts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Contexts and deep prompts -> the prompt learner's names."""
    contexts = {"ctx_pos": "ctx_normal", "ctx_neg": "ctx_abnormal"}
    contexts = {theirs: np.asarray(prompts[ours])[None, None] for theirs, ours in contexts.items()}
    return contexts | {f"compound_prompts_text.{i}": row for i, row in enumerate(np.asarray(prompts["deep"]))}


def fusion_to_torch(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{srm, lora} -> the names of the fusion block and of the depth tower's low-rank factors."""
    state = fusion_names.srm_to_torch(tree["srm"])
    for ours, layer in (("fc", "c_fc"), ("proj", "c_proj")):
        for factor, theirs in (("a", "lora_A"), ("b", "lora_B")):
            for block, value in enumerate(np.asarray(tree["lora"][ours][factor])):
                state[f"visual_depth.transformer.resblocks.{block}.mlp.{layer}.{theirs}"] = value.T
    return state
