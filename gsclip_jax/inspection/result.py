"""What inspection says of one part: its scores, what was read of it, and the verdict where there is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Verdict:
    """What good parts let one say of a part.

    Fields:
      kind: 'cannot tell' where there are too few good parts for the rate asked, or good and incoming scores do not separate.
      p_value: split-conformal: the share of good parts, this one counted, that score at least as high; in (0, 1].
      threshold: object score above which a part is called defective; None where there cannot be one.
      point_threshold: the same for the score of a point.
      reason: one plain sentence.
    """

    kind: Literal["sound", "defective", "cannot tell"]
    p_value: float
    threshold: float | None
    point_threshold: float | None
    reason: str


@dataclass(frozen=True)
class Part:
    """One scored part.

    Fields:
      name: unique in the folder of the results; safe in file names.
      source: the file as it was given; with --split followed by ' part 2'.
      score: the object score.
      xyz: float64 [S,3], the rows of the scan in its own order and unit; NaN stays NaN.
      points: float32 [S], one score a row; NaN for rows that hold no point or were taken away.
      colours: uint8 [S,3], where the scan has colours.
      removed: bool [S], the rows that cleaning took away.
      render, depth: uint8 [V,H,W], the views.
      heat: float32 [V,H,W], scores of the pixels; NaN where a view shows no scored point.
      notes: what was understood of the file and taken away, a sentence each.
      verdict: None without good parts: scores then are a ranking.
    """

    name: str
    source: str
    score: float
    xyz: np.ndarray
    points: np.ndarray
    colours: np.ndarray | None
    removed: np.ndarray
    render: np.ndarray
    depth: np.ndarray
    heat: np.ndarray
    notes: tuple[str, ...] = ()
    verdict: Verdict | None = None
