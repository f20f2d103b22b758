"""`gsclip serve` as a module: python -m gsclip_jax.service."""

from __future__ import annotations

from gsclip_jax.service.command import finish, main

if __name__ == "__main__":
    finish(main)
