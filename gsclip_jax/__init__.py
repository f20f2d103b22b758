"""GS-CLIP in JAX: models, training and evaluation. Of data_pipelines it sees the plumbing alone (docs/architecture.md).

`load()` is for one's own parts: `detector = gsclip_jax.load(); result = detector(points)`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gsclip_jax.inspection.detector import Detector


def load(model: str | os.PathLike | None = None) -> Detector:
    """A detector of defects on scans of any part: `gsclip_jax.inspection.detector.load`.

    Args:
      model: a work directory of a training, what `gsclip export` wrote, a URL of either, 'owner/name' on the Hugging Face hub
        (downloaded once), or None for the embedded model.

    Raises:
      ValueError: one line: no model there, a damaged one, one that cannot be fetched, or Open3D cannot draw here.
    """
    from gsclip_jax.inspection.detector import load as load_detector  # JAX and what draws take seconds

    return load_detector(model)
