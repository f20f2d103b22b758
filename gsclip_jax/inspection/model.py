"""What a trained model is to inspection, whatever folder it came from (formats.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from data_pipelines.batch import Batch
from data_pipelines.records.objects import Recipe
from gsclip_jax.method import Scores, Tokens

EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "demo"
EXPORTED = "gsclip program"  # kind of a folder (in its config.json) with a program, and not with the parameters of a method


@dataclasses.dataclass(frozen=True)
class Model:
    """What a trained model is to inspection.

    Fields:
      name: for messages.
      digest: SHA-256, 64 hex digits, of all that its scores depend on: weights, settings, recipe. An exported program has that of
        the model it was made of.
      recipe: how a scan becomes what it reads.
      score: a batch of one object (`data_pipelines.batch`) -> `method.Scores`.
      described: the same batch -> the same scores, and the tokens that references are compared by (`method.Tokens`); None where
        the model gives none, as exported programs.
      ahead: compiles `score` (False) or `described` (True) for a batch of one object, if that takes time; their next call finds
        it. May run in a thread of its own.
      calibration: the file that lies with it, where there is one.
    """

    name: str
    digest: str
    recipe: Recipe
    score: Callable[[Batch], Scores]
    calibration: Path | None = None
    described: Callable[[Batch], tuple[Scores, Tokens]] | None = None
    ahead: Callable[[bool], None] = lambda tokens: None
