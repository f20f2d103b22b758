"""Your own scans: `<category>/good/*`, `<category>/defective/*` or any other folder name as the kind of defect, and marks of the
defects in `<category>/masks/`, where there are any. A root that itself holds good/ or defective/ is a single category.

Scans: ply, pcd, npy and text: xyz, txt, csv, tsv, asc, pts (points; of a ply with faces the corners); stl, obj (meshes, sampled
evenly, seeded); tiff (organised; 0, 0, 0 or NaN = no data; with the background cut off already). A scan's marks are
`masks/<kind>/<stem>.*`, `masks/<stem>.*` or `<stem>_mask.*` beside it; `truth.read_marks` says what may be in them. Good/ and
Masks/ are good/ and masks/.

A defective scan without marks has label 1, no mask_path, is not `labelled`, and loads with an all-false mask: it counts for
object metrics; point metrics and training on points have to leave it out, because its defective points would pass for good ones.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from data_pipelines.clouds.files import TEXT, read_cloud
from data_pipelines.clouds.meshes import check_stl
from data_pipelines.clouds.sampling import clean, seed_of
from data_pipelines.clouds.tiff import TIFF, read_xyz
from data_pipelines.datasets.data_set import UNORGANISED, DataSet
from data_pipelines.datasets.listing import Listing, Partners, categories_in, find_root, is_good, unknown_category
from data_pipelines.datasets.truth import MARKS, read_marks
from data_pipelines.scan import DataError, Sample, Scan

MESHES = (".stl", ".obj")
SCANS = (".ply", ".pcd", ".npy", *TEXT, *MESHES, *TIFF)
GOOD, DEFECTIVE, MASKS, SUFFIX = "good", "defective", "masks", "_mask"
LAYOUT = "<category>/good/* and <category>/defective/*"
MESH_POINTS = 120_000  # sampled from a mesh; more than any preset scores


def _scans(folder: Path, listing: Listing) -> list[Path]:
    """The scans in a folder, without the marks that lie beside them."""
    found = listing.files(folder, SCANS, beside=True)
    stems = {path.stem for path in found}
    return [path for path in found if not (path.stem.endswith(SUFFIX) and path.stem.removesuffix(SUFFIX) in stems)]


def _kinds(folder: Path, listing: Listing) -> list[Path]:
    """The folders of a category that may hold scans."""
    return [kind for kind in listing.folders(folder) if kind.name.lower() != MASKS]


def _is_sorted(folder: Path, listing: Listing) -> bool:
    """Whether a folder is a category beyond doubt: it has a folder of that name with scans."""
    return any(_scans(kind, listing) for kind in _kinds(folder, listing) if kind.name.lower() in (GOOD, DEFECTIVE))


def _is_category(folder: Path, listing: Listing) -> bool:
    return any(_scans(kind, listing) for kind in _kinds(folder, listing))


class Folder:
    """Reader of scans sorted into folders by hand."""

    def __init__(self, root: str | Path, name: str = "folder"):
        self.name = name

        def holds(test):
            return lambda folder, listing: any(test(child, listing) for child in listing.folders(folder))

        # Any folder of scans may be a kind of defect; where one is called good or defective, that tells on which level they are.
        tests = [lambda folder, listing: _is_sorted(folder, listing) or holds(_is_sorted)(folder, listing), holds(_is_category),
                 _is_category]
        self.root = find_root(root, tests, LAYOUT)
        self.listing = Listing(self.root)
        if _is_sorted(self.root, Listing()) or not holds(_is_category)(self.root, Listing()):
            self._folders = {self.root.resolve().name or "scans": self.root}
        else:
            self._folders = {folder.name: folder for folder in categories_in(self.root, _is_category, LAYOUT, self.listing)}
            self._stray(self.root)

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
        self._stray(home)
        kinds = _kinds(home, self.listing)
        found = {kind.name: _scans(kind, self.listing) for kind in kinds}
        for kind in kinds:
            if not found[kind.name] and kind not in self.listing.barred:
                self.listing.leave(kind, "no scan in it")
        defective = Counter(stem for kind, paths in found.items() if not is_good(kind) for stem in {path.stem for path in paths})
        masks = [folder for folder in self.listing.folders(home) if folder.name.lower() == MASKS]
        marks = _Marks(masks[0] if masks else home / MASKS, self.listing)
        samples = []
        for kind, paths in found.items():
            stems = Counter(path.stem for path in paths)
            for path in paths:
                shared = defective[path.stem] > 1 or stems[path.stem] > 1
                mark = None if is_good(kind) else marks.of(path, shared)
                name = path.stem if stems[path.stem] == 1 else path.name
                samples.append(Sample(f"{kind}_{name}", category, GOOD if is_good(kind) else kind, int(not is_good(kind)), split,
                                      str(path), None if mark is None else str(mark)))
        marks.leave_others(kinds)
        return samples

    def _stray(self, folder: Path) -> None:
        for name in Partners(folder).names():
            if Path(name).suffix.lower() in SCANS and name[0] != ".":
                self.listing.leave(folder / name, "in no folder that says what kind of scan it is")

    def colour(self, sample: Sample) -> None:
        """None: clouds alone, without colour."""

    def load(self, sample: Sample) -> Scan:
        path = Path(sample.path)
        kind, grid = path.suffix.lower(), None
        if kind in TIFF:
            image = read_xyz(path)
            grid, points = image.shape[:2], image.reshape(-1, 3)
        else:
            points = sample_mesh(path, MESH_POINTS, seed_of(sample.category, sample.id)) if kind in MESHES else read_cloud(path)
        xyz, valid, note = clean(points, path)
        if grid:  # empty pixels are nothing to speak of
            valid, note = valid & xyz.any(1), ""
        if sample.mask_path is None:
            return Scan(xyz, np.zeros(len(xyz), bool), valid, grid, note=note)
        marks = Path(sample.mask_path)
        if not marks.is_file():
            raise DataError(f"{marks}: no such file")
        # Rows without a point take the place of one, so that they have no say in where the marks lie.
        mask = read_marks(marks, np.where(valid[:, None], xyz, xyz[valid][:1]), grid, ordered=kind not in MESHES)
        return Scan(xyz, mask & valid, valid, grid, note=note)


class _Marks:
    """The marks of a category's scans: every folder is listed once."""

    def __init__(self, masks: Path, listing: Listing):
        self._masks, self._listing = masks, listing
        self._names: dict[Path, dict[str, list[str]]] = {}  # folder -> stem -> names
        self._used: set[Path] = set()

    def _in(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            for name in Partners(folder, self._listing).names():
                names.setdefault(Path(name).stem, []).append(name)
            self._names[folder] = names
        return self._names[folder]

    def of(self, scan: Path, shared: bool) -> Path | None:
        """The marks of a defective scan; `shared`: another scan's name differs by its folder or ending alone.

        Raises:
          DataError: nobody can say which they are, or they are of an unknown format.
        """
        wanted = (scan.stem, scan.stem + SUFFIX)
        for folder, stems in ((self._masks / scan.parent.name, wanted), (self._masks, wanted), (scan.parent, wanted[1:])):
            found = sorted(name for stem in stems for name in self._in(folder).get(stem, ()))
            if not found:
                continue
            if len(found) > 1:
                raise DataError(f"{scan}: several masks in {folder} ({', '.join(found)}); keep one")
            path = folder / found[0]
            if path.suffix.lower() not in MARKS:
                raise DataError(f"{path}: unknown mask format; use {', '.join(kind[1:] for kind in MARKS)}")
            if shared and folder == self._masks:
                raise DataError(f"{path}: several defective scans are called {scan.stem}; put masks into "
                                f"{MASKS}/<kind of defect>/ and name scans apart")
            self._used.add(path)
            return path
        return None

    def leave_others(self, kinds: list[Path]) -> None:
        """Leaves out the marks that no scan took."""
        for folder in (self._masks, *(self._masks / kind.name for kind in kinds), *kinds):
            there = self._in(folder)
            for stem in there:
                if folder in kinds and not (stem.endswith(SUFFIX) and stem.removesuffix(SUFFIX) in there):
                    continue  # a scan
                for path in (folder / name for name in there[stem]):
                    if path not in self._used and path.name[0] != "." and path.suffix.lower() in MARKS:
                        self._listing.leave(path, "marks that no defective scan takes")


def sample_mesh(path: str | Path, count: int, seed: int) -> np.ndarray:
    """`count` points [count, 3] float64, evenly over the surface of an STL or OBJ mesh.

    Raises:
      DataError: missing, truncated or unreadable file, or one without a surface.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix.lower() == ".stl":
        check_stl(path.read_bytes(), path)
    import open3d as o3d

    with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
        mesh = o3d.io.read_triangle_mesh(str(path))
    if not len(mesh.triangles) or not mesh.get_surface_area() > 0:
        raise DataError(f"{path}: no triangles could be read; export the mesh again, or its points as ply")
    o3d.utility.random.seed(seed % 2**31)
    return np.asarray(mesh.sample_points_uniformly(count).points)


DATA_SET = DataSet(Folder, UNORGANISED)
