"""Grids of runs: `get_config(preset)` is what the rows share, `rows(config)` what each changes (experiments/sweep.py)."""

from experiments.configs import protocol, stage2


def base(preset: str | None = None):
    """One run on the embedded data; with a preset the published protocol, so that published numbers can stand beside the rows."""
    return protocol.get_config(preset) if preset else stage2.get_config()
