"""The benchmark on real shapes: trained on the embedded auxiliary category, evaluated on scans in the layout of Real3D-AD.

    python -m experiments.sweep --config sweeps/real_shapes.py --config.target.root=../shared/data/real3d_ad
"""

from experiments.configs.sweeps import zero_shot


def get_config(preset: str | None = None):
    config = zero_shot.get_config(preset)
    config.target.name = "real3d"
    config.target.root = "../shared/data/real3d_ad"
    return config


def rows(config) -> dict[str, dict]:
    return {
        f"real-{name}": values
        for name, values in zero_shot.METHODS.items()
        if config.seed == 0 or name not in zero_shot.UNTRAINED
    }
