"""Scores good parts once, for verdicts on others: python -m gsclip_jax.inspection.calibrate PATHS... --out FILE."""

from __future__ import annotations

from gsclip_jax.inspection.command import calibrate_main as main
from gsclip_jax.inspection.command import finish

if __name__ == "__main__":
    finish(main)
