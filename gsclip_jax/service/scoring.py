"""From prepared parts to the files of a result. The one thread that has the model does this."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

import numpy as np

from gsclip_jax.inspection.calibration import Calibration
from gsclip_jax.inspection.detector import Detector
from gsclip_jax.inspection.page import VERDICTS, part_record, write_pages
from gsclip_jax.inspection.part_files import row_of, scored_ply
from gsclip_jax.service.parcel import parcels, unpack

PAGE = "index.html"
WARM = 500  # points of the scan that has the model compiled


@dataclasses.dataclass(frozen=True)
class Scorer:
    """The model, and the good parts that its scores are compared with."""

    detector: Detector
    calibration: Calibration | None = None

    def score(self, folder: Path, scan: Path, shown: str) -> list[dict[str, Any]]:
        """Scores the parcels in a folder and leaves a PLY file a part and what the page needs; takes the parcels away.

        Args:
          scan: the file as it lies here; shown: its name.

        Returns: of every part what `row_of` says of it.
        """
        rows, found = [], parcels(folder)
        for number, path in enumerate(found, 1):
            prepared, attributes = unpack(path)
            path.unlink()
            name = f"{shown} part {number}" if len(found) > 1 else shown
            told = tuple(note.replace(str(scan), shown) for note in prepared.notes)
            part = self.detector.finish(prepared._replace(name=name, source=shown, notes=told))
            if self.calibration:
                part = dataclasses.replace(part, verdict=self.calibration.judge(part))
            (folder / ply_file(number)).write_bytes(scored_ply(part, attributes))
            part_record(part, folder)
            rows.append(row_of(part))
        return rows

    def page(self, folder: Path, shown: str) -> Path:
        """The page of a result, written when it is first asked for."""
        path = folder / PAGE
        if not path.exists():
            warnings = []
            if self.calibration and self.calibration.threshold is None:
                warnings = [self.calibration.told()]
            about = {"model": self.detector.model.name, "date": datetime.date.today().isoformat(),
                     "model digest": self.detector.model.digest[:12]}  # fmt: skip
            write_pages(folder, shown, self.calibration and self.calibration.for_page(warnings), about)
        return path


def ply_file(number: int) -> str:
    """The file of a part, counted from 1; no name from outside is a name of a file."""
    return f"{number}.ply"


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The highest score of the parts of a scan, and the verdict that says most."""
    kinds = [row["verdict"]["kind"] for row in rows if row["verdict"]]
    return {"score": max(row["score"] for row in rows), "verdict": min(kinds, key=VERDICTS.index) if kinds else None}


def warm_scan(path: Path) -> None:
    """Writes a small scan that any model takes."""
    xyz = np.random.default_rng(0).standard_normal((WARM, 3))
    np.save(path, xyz * [3, 1, 1] / np.linalg.norm(xyz, axis=1, keepdims=True))
