"""How many points GDDM picks (k of the paper).

    python -m experiments.sweep --config sweeps/top_k.py[:preset]
"""

from experiments.configs.sweeps import base


def get_config(preset: str | None = None):
    return base(preset)


def rows(config) -> dict[str, dict]:
    return {f"k{k}": {"model.top_k": k} for k in (1, 4, 8, 12, 16, 24)}
