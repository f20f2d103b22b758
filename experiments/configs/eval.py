"""Evaluation alone of a work directory that stage2.py has trained (--workdir).

    python -m experiments.run --config eval.py                  # embedded data and CLIP
    python -m experiments.run --config eval.py:real3d --config.data.root=Real3D-AD-PCD --config.clip.name=ViT-L-14-336px.pt

Presets: mvtec3d, eyecandies, real3d, anomaly_shapenet (the paper's settings).
"""

from experiments.configs import common


def get_config(preset: str | None = None):
    config = common.preset(preset)
    config.task = "eval"
    return config
