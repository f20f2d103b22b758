"""How many views an object is seen from.

    python -m experiments.sweep --config sweeps/views.py[:preset]
"""

from experiments.configs.sweeps import base


def get_config(preset: str | None = None):
    return base(preset)


def rows(config) -> dict[str, dict]:
    return {f"views{n}": {"data.views": n} for n in (3, 5, 7, 9, 11)}
