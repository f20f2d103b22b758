"""Align3D-AD's ablation: what the alignment, its weights (SCR) and the contrastive term (DpCA) add, and what its numbers do.

    python -m experiments.sweep --config sweeps/align3d.py[:mvtec3d or :eyecandies]
"""

from experiments.configs import common
from experiments.configs.sweeps import base

NO_SCR, NO_CONTRAST = {"stage1.scr_epochs": 0}, {"stage2.contrast_epochs": 0}


def get_config(preset: str | None = None):
    config = base(preset)
    common.set_method(config, "align3d")
    return config


def rows(config) -> dict[str, dict]:
    return {
        "full": {},
        "render-branch": {"model.branches": "render"},  # no alignment: PointAD with the contrastive term left out
        "aligned-branch": {"model.branches": "aligned"},
        "no-scr": NO_SCR,
        "no-contrast": NO_CONTRAST,
        "neither": {**NO_SCR, **NO_CONTRAST},
        **{f"lambda{value:g}": {"stage1.scr_weight": value} for value in (0.01, 0.1, 0.5)},
        **{f"scale{value:g}": {"stage2.contrast_scale": value} for value in (0.01, 1.0)},
        **{f"weights{value:g}": {"model.image_weight": value, "model.point_weight": value} for value in (0.0, 1.0)},
    }
