"""What passes the fusion: all tokens (the paper), or the class tokens alone (the released code).

    python -m experiments.sweep --config sweeps/srm_tokens.py[:preset]
"""

from experiments.configs.sweeps import base


def get_config(preset: str | None = None):
    return base(preset)


def rows(config) -> dict[str, dict]:
    return {
        "all": {"model.switches": {"srm_tokens": "all"}},
        "cls": {"model.switches": {"srm_tokens": "cls"}},
    }
