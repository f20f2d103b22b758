"""The published protocol: train on each auxiliary category in turn, evaluate on every other category, report the means.

    python -m experiments.run --config protocol.py                # embedded data and CLIP
    python -m experiments.run --config protocol.py:mvtec3d --config.data.root=mvtec_3d_anomaly_detection \
        --config.clip.name=ViT-L-14-336px.pt
    ... --config.target.name=eyecandies --config.target.root=Eyecandies        # cross-data-set: evaluate there instead

Presets: mvtec3d, eyecandies, real3d, anomaly_shapenet (the paper's settings and auxiliary categories).
"""

from experiments.configs import common

EMBEDDED = ("bottle", "bracket", "nut")


def get_config(preset: str | None = None):
    config = common.preset(preset)
    config.task = "protocol"
    config.auxiliary = common.AUXILIARY.get(preset or "", EMBEDDED)
    return config
