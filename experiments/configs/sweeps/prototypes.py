"""How many defect prototypes GDDM has; the paper sees no gain beyond 32.

    python -m experiments.sweep --config sweeps/prototypes.py[:preset]
"""

from experiments.configs.sweeps import base


def get_config(preset: str | None = None):
    return base(preset)


def rows(config) -> dict[str, dict]:
    return {f"prototypes{n}": {"model.prototypes": n} for n in (8, 16, 32, 64)}
