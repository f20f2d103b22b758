"""The paper's ablation: what each module adds, in the six rows of its table.

    python -m experiments.sweep --config sweeps/modules.py[:preset]
"""

from experiments.configs import common
from experiments.configs.sweeps import base

PROMPT = {"model.streams": "render", "model.shape_prompt": False, "model.defect_prompt": False, "model.consistency": 0.0}
FUSED = {**PROMPT, "model.streams": "both"}


def get_config(preset: str | None = None):
    return base(preset)


def rows(config) -> dict[str, dict]:
    # Ours; only the embedded CLIP comes with it.
    surface = {} if config.preset else {"full-surface": {"model.surface_share": common.embedded().model.surface_share}}
    return {
        "prompt": PROMPT,  # learned prompts, render stream
        "srm": FUSED,
        "srm-shape": {**FUSED, "model.shape_prompt": True},
        "srm-defect": {**FUSED, "model.defect_prompt": True},
        "srm-both": {**FUSED, "model.shape_prompt": True, "model.defect_prompt": True},
        "full": {"model.streams": "both", "model.shape_prompt": True, "model.defect_prompt": True,
                 "model.consistency": config.model.consistency or 0.3},
        **surface,
    }  # fmt: skip
