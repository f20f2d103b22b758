"""Evaluation alone of a work directory that stage2.py has trained (--workdir), with the settings it was trained with.

    python -m experiments.run --config eval.py --workdir RUN --config.target.name=real3d --config.target.root=Real3D-AD-PCD
    python -m experiments.run --config eval.py --workdir RUN --config.target.name=folder --config.target.root=my_scans
    python -m experiments.run --config eval.py --workdir RUN --config.eval.rgb=True       # the same data, other columns

Presets find the default work directory of stage2.py: mvtec3d, eyecandies, real3d, anomaly_shapenet (the paper's settings).
"""

from experiments.configs import common


def get_config(preset: str | None = None):
    config = common.preset(preset)
    config.task = "eval"
    return config
