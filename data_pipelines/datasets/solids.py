"""The embedded data set (`data_pipelines/solids`) as it lies on disk: Real3D-AD's layout, and the points' colours beside it."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.datasets.real3d import Real3D
from data_pipelines.scan import Sample


class Solids(Real3D):
    """Reader of the embedded data set."""

    def colour(self, sample: Sample) -> Path:
        """The colours of its points, written when they are asked for."""
        return self.root / sample.category / "colour" / f"{Path(sample.path).stem}.npy"
