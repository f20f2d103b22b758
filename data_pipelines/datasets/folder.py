"""Your own scans: `<category>/good/*`, `<category>/defective/*` or any other folder name as the kind of defect, and marks of the
defects in `<category>/masks/`, where there are any. A root that itself holds good/ or defective/ is a single category.

Scans: ply, pcd, xyz, txt, csv, npy (points; of a ply with faces the corners); stl, obj (meshes, sampled evenly, seeded); tiff
(organised; 0, 0, 0 or NaN = no data; with the background cut off already). A scan's marks are `masks/<kind>/<stem>.*`,
`masks/<stem>.*` or `<stem>_mask.*` beside it; `truth.read_marks` says what may be in them.

A defective scan without marks has label 1, no mask_path, is not `labelled`, and loads with an all-false mask: it counts for
object metrics; point metrics and training on points have to leave it out, because its defective points would pass for good ones.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from ..cloud_files import read_cloud
from ..clouds import clean, seed_of
from .base import DataError, Sample, Scan, files, find_root, folders, unknown_category
from .pictures import TIFF, read_xyz
from .truth import MARKS, read_marks

MESHES = (".stl", ".obj")
SCANS = (".ply", ".pcd", ".xyz", ".txt", ".csv", ".npy", *MESHES, *TIFF)
GOOD, DEFECTIVE, MASKS, SUFFIX = "good", "defective", "masks", "_mask"
LAYOUT = "<category>/good/* and <category>/defective/*"
MESH_POINTS = 120_000  # sampled from a mesh; more than any preset scores


def _scans(folder: Path) -> list[Path]:
    """The scans in a folder, without the marks that lie beside them."""
    found = files(folder, SCANS)
    stems = {path.stem for path in found}
    return [path for path in found if not (path.stem.endswith(SUFFIX) and path.stem.removesuffix(SUFFIX) in stems)]


def _is_category(folder: Path) -> bool:
    return any(_scans(folder / kind) for kind in (GOOD, DEFECTIVE))


class Folder:
    """Reader of scans sorted into folders by hand."""

    def __init__(self, root: str | Path, name: str = "folder"):
        self.name = name
        self.root = find_root(root, lambda folder: _is_category(folder) or any(map(_is_category, folders(folder))), LAYOUT)
        if _is_category(self.root):
            self._folders = {self.root.resolve().name or "scans": self.root}
        else:
            self._folders = {folder.name: folder for folder in folders(self.root) if _is_category(folder)}

    def categories(self) -> list[str]:
        return sorted(self._folders)

    def samples(self, category: str, split: str = "test") -> list[Sample]:
        """All scans of a category; there is the split 'test' alone.

        Raises:
          DataError: unknown category, or marks of which nobody can say whose they are, or of an unknown format.
        """
        if category not in self._folders:
            raise unknown_category(category, self.categories(), self.root)
        if split != "test":
            return []
        home = self._folders[category]
        found = {kind.name: _scans(kind) for kind in folders(home) if kind.name != MASKS}
        defective = Counter(stem for kind, paths in found.items() if kind != GOOD for stem in {path.stem for path in paths})
        samples = []
        for kind, paths in found.items():
            stems = Counter(path.stem for path in paths)
            for path in paths:
                marks = None if kind == GOOD else self._marks(home, path, defective[path.stem] > 1 or stems[path.stem] > 1)
                name = path.stem if stems[path.stem] == 1 else path.name
                samples.append(Sample(f"{kind}_{name}", category, kind, int(kind != GOOD), split, str(path),
                                      None if marks is None else str(marks)))
        return samples

    @staticmethod
    def _marks(home: Path, scan: Path, shared: bool) -> Path | None:
        """The marks of a defective scan; `shared`: another scan's name differs by its folder or ending alone."""
        wanted = (scan.stem, scan.stem + SUFFIX)
        places = [(home / MASKS / scan.parent.name, wanted), (home / MASKS, wanted), (scan.parent, wanted[1:])]
        for folder, stems in places:
            found = [path for path in folder.iterdir() if path.stem in stems and path.is_file()] if folder.is_dir() else []
            if not found:
                continue
            if len(found) > 1:
                names = ", ".join(sorted(path.name for path in found))
                raise DataError(f"{scan}: several masks in {folder} ({names}); keep one")
            if found[0].suffix.lower() not in MARKS:
                raise DataError(f"{found[0]}: unknown mask format; use {', '.join(kind[1:] for kind in MARKS)}")
            if shared and folder == home / MASKS:
                raise DataError(f"{found[0]}: several defective scans are called {scan.stem}; put masks into "
                                f"{MASKS}/<kind of defect>/ and name scans apart")
            return found[0]
        return None

    def load(self, sample: Sample) -> Scan:
        path = Path(sample.path)
        kind, grid = path.suffix.lower(), None
        if kind in TIFF:
            image = read_xyz(path)
            grid, xyz = image.shape[:2], image.reshape(-1, 3)
            valid = xyz.any(1)
            clean(xyz[valid], path)
        else:
            points = sample_mesh(path, MESH_POINTS, seed_of(sample.category, sample.id)) if kind in MESHES else read_cloud(path)
            xyz = clean(points, path)
            valid = np.ones(len(xyz), bool)
        if sample.mask_path is None:
            return Scan(xyz, np.zeros(len(xyz), bool), valid, grid)
        marks = Path(sample.mask_path)
        if not marks.is_file():
            raise DataError(f"{marks}: no such file")
        return Scan(xyz, read_marks(marks, xyz, grid, ordered=kind not in MESHES), valid, grid)


def sample_mesh(path: str | Path, count: int, seed: int) -> np.ndarray:
    """`count` points [count, 3] float64, evenly over the surface of an STL or OBJ mesh.

    Raises:
      DataError: missing, truncated or unreadable file, or one without a surface.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    content = path.read_bytes() if path.suffix.lower() == ".stl" else b""
    binary = not content.lstrip().startswith(b"solid") or b"facet" not in content[:1024]
    promised = 84 + 50 * int.from_bytes(content[80:84], "little")
    if content and (len(content) < promised if binary else b"endsolid" not in content[-256:]):
        raise DataError(f"{path}: truncated, or no STL file; export the mesh again")
    import open3d as o3d

    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        mesh = o3d.io.read_triangle_mesh(str(path))
    if not len(mesh.triangles) or not mesh.get_surface_area() > 0:
        raise DataError(f"{path}: no triangles could be read; export the mesh again, or its points as ply")
    o3d.utility.random.seed(seed % 2**31)
    return np.asarray(mesh.sample_points_uniformly(count).points)
