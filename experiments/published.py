"""Published results, as data: what a table shows beside ours.

Mean over test categories, per cent; O-AUROC, O-AP, P-AUROC, P-PRO, None where not public. Protocols: "one-vs-rest", trained
on one category of the data set and tested on the others, mean over three auxiliary categories; "cross", trained on MVTec3D-AD.
Sources: "digest", summaries of the GS-CLIP paper; "authors", a paper's own tables or logs; "other", another paper's table.
"""

from __future__ import annotations

from typing import NamedTuple

METRICS = ("o_auroc", "o_ap", "p_auroc", "p_pro")
TUNED = "settings differ by auxiliary category"


class Published(NamedTuple):
    method: str
    dataset: str
    protocol: str
    values: tuple[float | None, float | None, float | None, float | None]
    source: str
    note: str = ""


ROWS = (
    Published("GS-CLIP", "mvtec3d", "one-vs-rest", (83.6, 96.5, 96.3, 86.4), "digest"),
    Published("GS-CLIP", "eyecandies", "one-vs-rest", (71.5, None, None, 73.8), "digest"),
    Published("GS-CLIP", "real3d", "one-vs-rest", (76.4, None, None, None), "digest"),
    Published("GS-CLIP", "anomaly_shapenet", "one-vs-rest", (84.1, None, 75.2, None), "digest"),
    Published("GS-CLIP", "eyecandies", "cross", (70.3, 75.3, 92.9, 73.4), "digest"),
    Published("PointAD", "mvtec3d", "one-vs-rest", (82.0, 94.2, 95.5, 84.4), "authors"),
    Published("PointAD", "eyecandies", "one-vs-rest", (69.1, 73.8, 92.1, 71.3), "authors"),
    Published("PointAD", "real3d", "one-vs-rest", (74.8, 76.9, 73.5, None), "authors"),
    Published("PointAD", "anomaly_shapenet", "one-vs-rest", (82.6, None, 74.1, None), "other"),
    Published("PointAD", "eyecandies", "cross", (69.5, 74.3, 91.8, 71.4), "authors"),
    Published("PointAD", "real3d", "cross", (75.9, 77.9, 71.6, None), "authors"),
    Published("Align3D-AD", "mvtec3d", "one-vs-rest", (83.0, 94.3, 95.9, 86.5), "authors", TUNED),
    Published("Align3D-AD", "eyecandies", "one-vs-rest", (71.3, 76.6, 92.6, 74.2), "authors", TUNED),
    Published("Align3D-AD", "eyecandies", "cross", (70.7, 75.3, 92.0, 72.6), "authors", TUNED),
    Published("Align3D-AD", "real3d", "cross", (76.1, 79.3, 76.7, None), "authors", TUNED),
    Published("CLIP on renderings", "mvtec3d", "one-vs-rest", (61.2, 85.8, None, 54.4), "authors"),
    Published("AnomalyCLIP", "mvtec3d", "one-vs-rest", (56.4, 83.5, 88.9, 60.9), "authors"),
)

# The paper's ablation on MVTec3D-AD by the row of sweeps/modules.py it belongs to (digest).
MODULES = {
    "prompt": (80.9, 91.7, 93.5, 83.1),
    "srm": (82.3, 93.9, 94.6, 84.8),
    "srm-shape": (82.5, 94.8, 95.2, 85.1),
    "srm-defect": (82.9, 94.4, 95.6, 85.6),
    "srm-both": (83.1, 96.2, 96.0, 86.2),
    "full": (83.6, 96.5, 96.3, 86.4),
}
METHODS = {"gsclip": "GS-CLIP", "pointad": "PointAD", "align3d": "Align3D-AD", "plain_clip": "CLIP on renderings"}
