"""Anomaly-ShapeNet's folder layout: `<cls>/train`, `<cls>/test/<cls>_<kind><k>.pcd`, `<cls>/GT/<cls>_<kind><k>.txt`.

As in Real3D-AD, defective scans take their points from the ground-truth text: its rows (`x,y,z,label`) are not always in the
cloud's order, and some have one row more. Source: the data set's README; names and separators as its users' loaders found them.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_pipelines.datasets.data_set import UNORGANISED, DataSet, Published
from data_pipelines.datasets.real3d import Real3D


class AnomalyShapeNet(Real3D):
    """Reader of Anomaly-ShapeNet. Point it at `pcd/` or a folder above that holds no second set (`new_pcd/`)."""

    layout = "<class>/test/<class>_<kind><number>.pcd"
    truth_folders = ("GT", "gt")

    def __init__(self, root: str | Path, name: str = "anomaly_shapenet"):
        super().__init__(root, name)

    def is_template(self, stem: str) -> bool:
        return self._kind(stem) == "template"

    def defect_of(self, stem: str) -> str:
        """'vase0_concavity1' -> 'concavity', 'vase0_positive3' -> 'good'."""
        kind = self._kind(stem)
        return "good" if kind in ("positive", "good") else kind

    @staticmethod
    def _kind(stem: str) -> str:
        """The last word: classes have names of their own, sometimes of several words or without their number (desk_bulge0)."""
        words = [word for word in re.split(r"[_\-\s]+|\d+", stem.lower()) if word]
        return words[-1] if words else "defect"


PUBLISHED = Published(1312, 40, 57_000, of={"ashtray0": 29})
DATA_SET = DataSet(AnomalyShapeNet, UNORGANISED, ("ashtray0", "bag0", "bottle0"), PUBLISHED)
