"""`gsclip inspect` under its earlier name: python -m experiments.predict PATHS... --out DIR [--workdir RUN]."""

from __future__ import annotations

from gsclip_jax.inspection.command import finish, main

if __name__ == "__main__":
    finish(main)
