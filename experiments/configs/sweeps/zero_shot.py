"""The benchmark on the embedded test categories: every method at three difficulties.

    python -m experiments.sweep --config sweeps/zero_shot.py
"""

from experiments.configs import stage2

PAPER = {"model.start": (), "model.srm_residual": False, "model.surface_share": 0.0}
METHODS = {
    "surface-variation": {"method": "surface_variation"},  # geometry alone, nothing learned
    "broken-symmetry": {"method": "broken_symmetry"},  # likewise
    "plain-clip": {"method": "plain_clip"},  # sentences and renderings, nothing learned on the auxiliary category
    "pointad": {"method": "pointad"},  # learned prompts, render stream
    "align3d": {"method": "align3d"},  # learned prompts, render stream and what coloured views would say
    "gsclip-released": {"variant": "released", **PAPER},
    "gsclip-paper": PAPER,
    "gsclip-views": {"model.surface_share": 0.0},  # the paper's, started from sentences and from the mean of the streams
    "gsclip": {},  # the embedded default: the same with the surface stream
}

UNTRAINED = ("surface-variation", "broken-symmetry", "plain-clip")


def get_config(preset: str | None = None):
    if preset:
        raise ValueError(f"zero_shot.py has no presets, got {preset!r}")
    config = stage2.get_config()
    config.eval.pictures = 0
    return config


def rows(config) -> dict[str, dict]:
    """Methods that learn nothing are run with the first seed alone."""
    return {
        f"{difficulty}-{name}": {"data.synthetic.difficulty": difficulty, **values}
        for difficulty in ("easy", "middle", "hard")
        for name, values in METHODS.items()
        if config.seed == 0 or name not in UNTRAINED
    }
