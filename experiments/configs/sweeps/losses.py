"""Weight of the consistency loss, and stage 2's objective in the released code.

    python -m experiments.sweep --config sweeps/losses.py[:preset]
"""

from experiments.configs.sweeps import base


def get_config(preset: str | None = None):
    return base(preset)


def rows(config) -> dict[str, dict]:
    return {
        **{f"con{weight:g}": {"model.consistency": weight} for weight in (0.0, 0.1, 0.3, 1.0)},
        "released-objective": {"model.switches": {"stage2_losses": "point_view"}},
    }
