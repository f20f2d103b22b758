"""How many tokens the defect prompt has; the paper uses one.

    python -m experiments.sweep --config sweeps/defect_tokens.py[:preset]
"""

from experiments.configs.sweeps import base


def get_config(preset: str | None = None):
    return base(preset)


def rows(config) -> dict[str, dict]:
    return {f"tokens{n}": {"model.defect_tokens": n} for n in (1, 2, 4)}
