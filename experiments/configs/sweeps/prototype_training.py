"""Whether the task loss reaches the prototypes of GDDM: weighting the picked points by their scores lets it.

    python -m experiments.sweep --config sweeps/prototype_training.py[:preset]
"""

from experiments.configs.sweeps import base


def get_config(preset: str | None = None):
    return base(preset)


def rows(config) -> dict[str, dict]:
    return {
        "trained": {"model.switches": {"weight_by_score": True}},
        "random": {"model.switches": {"weight_by_score": False}},
    }
