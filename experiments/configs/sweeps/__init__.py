"""Grids of runs: `get_config(preset)` is what the rows share, `rows(config)` what each changes (experiments/sweep.py)."""

from experiments.configs import protocol, stage2


def base(preset: str | None = None):
    """One run on the embedded data; with a preset the published protocol, so that published numbers can stand beside the rows.

    Without the surface stream, which is not the paper's: what a grid changes lies in the views and the prompts."""
    if preset:
        return protocol.get_config(preset)
    config = stage2.get_config()
    config.model.surface_share = 0.0
    return config
