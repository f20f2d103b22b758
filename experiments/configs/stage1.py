"""Stage 1 alone: the geometry-aware prompts, on the auxiliary category.

    python -m experiments.run --config stage1.py                  # embedded data and CLIP
    python -m experiments.run --config stage1.py:real3d --config.data.root=Real3D-AD-PCD --config.clip.name=ViT-L-14-336px.pt

Presets: mvtec3d, eyecandies, real3d, anomaly_shapenet (the paper's settings).
"""

from experiments.configs import common


def get_config(preset: str | None = None):
    config = common.preset(preset)
    config.task = "stage1"
    return config
