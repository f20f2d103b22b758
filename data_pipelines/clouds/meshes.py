"""Meshes: surfaces, read by trimesh and sampled evenly."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from data_pipelines.clouds.kinds import contents, said
from data_pipelines.scan import DataError

MESHES = (".stl", ".obj", ".off", ".glb")
POINTS = 60_000  # of a surface; more than the embedded model scores


def load_mesh(path: Path, kind: str) -> tuple[np.ndarray, str]:
    """(points [POINTS,3] float64 evenly over the surface, what was read) of a mesh, always the same ones; the corners of a
    file without faces.

    Args:
      kind: its ending: one of MESHES, or .ply.

    Raises:
      DataError: missing, truncated, damaged, or without a surface.
    """
    content = contents(path)
    if kind == ".stl":
        check_stl(content, path)
    import trimesh  # half a second; few scans are meshes

    try:
        # From memory: no other file, which its text may name, is read.
        found = trimesh.load(io.BytesIO(content), file_type=kind[1:], skip_materials=True, process=False)
        if isinstance(found, trimesh.Scene):
            found = found.to_geometry()
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        raise DataError(f"{path}: not a readable mesh ({said(error)}); export it again, or its points as ply") from error
    corners = np.asarray(getattr(found, "vertices", ()), np.float64)
    faces = np.asarray(getattr(found, "faces", ()))
    name = kind[1:].upper()
    if len(corners) and not len(faces):
        return corners, f"corners of a mesh file ({name}) without faces"
    area = float(found.area) if len(faces) else 0.0
    if not np.isfinite(corners).all() or not area > 0:
        raise DataError(f"{path}: a mesh without a surface ({len(faces)} faces); export it again, or its points as ply")
    # About their middle: trimesh's random points keep the digits of survey coordinates.
    middle = (corners.min(0) + corners.max(0)) / 2
    points, _ = trimesh.sample.sample_surface(trimesh.Trimesh(corners - middle, faces, process=False), POINTS, seed=0)
    return np.asarray(points, np.float64) + middle, f"mesh ({name}) of {len(faces)} faces, sampled at {POINTS} points"


def is_binary_stl(content: bytes) -> bool:
    """Whether an STL file that begins with `content` is binary: some of these begin with "solid", too."""
    return not content.lstrip().startswith(b"solid") or b"facet" not in content[:1024]


def check_stl(content: bytes, path: Path) -> None:
    """Raises DataError for an STL file cut short."""
    promised = 84 + 50 * int.from_bytes(content[80:84], "little")
    if len(content) < promised if is_binary_stl(content) else b"endsolid" not in content[-256:]:
        raise DataError(f"{path}: truncated, or no STL file; export the mesh again")
