"""The embedded data set: procedural solids with defects, written in the layout of Real3D-AD.

    python -m data_pipelines.solids.synthetic --out DIR [--set test | --categories vase,pawn] [--seed 0] [--good
    10] ...

DIR/<category>/train/*_template*.pcd   two good objects
DIR/<category>/test/<n>_good.pcd, <n>_<defect>.pcd   binary clouds, x y z float32, millimetres
DIR/<category>/gt/<n>_<defect>.txt     "x y z label", the same coordinates in the same order
DIR/<category>/colour/<stem>.npy       uint8 [S, 3], the points' colours, with --colour; the other files are the same without
DIR/manifest.json                      settings and, for every object, defect, counts, size, depth, seed and the files' SHA-256

Nothing but the defect tells the classes apart: every number has its own dimensions, pose, warp, scale, point count and
range noise, which its good and its defective object share (a matched design: such quantities have one distribution in both
classes); clouds are sampled anew from the deformed surface. With `relief`, a share of objects
carries sound detail (`finish.py`), so that a defect is not the only fine relief. Noise varies over the surface, as it does in
real scans.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.command import command, guarded
from data_pipelines.files import write_atomic
from data_pipelines.solids import defects as kinds
from data_pipelines.solids import exact
from data_pipelines.solids.colour import material
from data_pipelines.solids.defects import ALL_DEFECTS, DIFFICULTIES, THRESHOLD, waves
from data_pipelines.solids.fields import about
from data_pipelines.solids.finish import finish
from data_pipelines.solids.meshing import Mesh, fitting_resolution, mesh_field, on_faces, sample_surface
from data_pipelines.solids.shapes import GENERATORS, SETS, graft, solid

TEMPLATES = 2
HALF_DIAGONAL = 20.0  # of a typical object, in millimetres
FORMAT = 4  # raised when the same seed makes other objects
# The settings of the embedded default and the `fingerprints` of the scans that the published figures were measured on.
PUBLISHED = Path(__file__).with_name("published.json")
# Oblique, so that a ring of cameras about x sees every side.
_UPRIGHT = exact.times(exact.times(about("y", 25), about("z", 35)), about("x", -65))


def make_object(
    category: str, seed: int, index: int, defect: str, *, points: int, difficulty: str, split: str = "test",
    relief: float = 0.0, grafts: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """One scan: xyz float64 [S, 3] in millimetres rounded to 0.001, labels bool [S], and what was done (a manifest
    row). Arguments and more: `make_coloured`.
    """
    xyz, labels, _, row = make_coloured(
        category, seed, index, defect, points=points, difficulty=difficulty, split=split, relief=relief, grafts=grafts,
        colour=False,
    )  # fmt: skip
    return xyz, labels, row


def make_coloured(
    category: str, seed: int, index: int, defect: str, *, points: int, difficulty: str, split: str = "test",
    relief: float = 0.0, grafts: float = 0.0, colour: bool = True,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, Any]]:
    """One scan as `make_object`, with the points' colours uint8 [S, 3] before the manifest row (None without `colour`).

    `index` names the object inside its category: the good and the defective object of one index are the same body in the
    same pose, with the same warp, number of points and noise; only the defect and the drawn points differ. S lies within 10% of
    `points`; a share `relief` of numbers carries sound relief, a share `grafts` has a part of another kind
    grown on. Raises ValueError for an unknown
    category, and when a defect finds no place.
    """
    root = (seed, zlib.crc32(category.encode()), {"test": 0, "train": 1}[split], index)
    shape_rng = np.random.default_rng(np.random.SeedSequence((*root, 0)))
    pair_rng = np.random.default_rng(np.random.SeedSequence((*root, 2)))
    kind_rng = np.random.default_rng(np.random.SeedSequence((*root, 1, zlib.crc32(defect.encode()))))
    body = solid(category, shape_rng)
    if grafts:
        body = graft(body, category, grafts, np.random.default_rng(np.random.SeedSequence((*root, 4))))
    body = finish(body, relief, np.random.default_rng(np.random.SeedSequence((*root, 3))))
    mesh = mesh_field(*body, fitting_resolution(*body))
    unit = 0.5 * exact.norm(np.ptp(mesh.vertices, axis=0))
    scale = HALF_DIAGONAL / unit * exact.exp(shape_rng.normal(0, 0.12))
    count = int(round(points * shape_rng.uniform(0.9, 1.1)))
    noise, bending = shape_rng.uniform(0.0006, 0.002), shape_rng.uniform(0.006, 0.014)
    pose = exact.times(_jitter(pair_rng, 8.0), _UPRIGHT)
    rough = waves(pair_rng, 6, (0.5 * unit, 1.5 * unit))
    row: dict[str, Any] = {
        "category": category,
        "defect": defect,
        "label": int(defect != "good"),
        "size": 0.0,
        "depth": 0.0,
    }
    amount, before = np.zeros(len(mesh.vertices)), mesh.vertices
    if defect != "good":
        severity = kind_rng.uniform()
        made = _defective(defect, body, mesh, difficulty, severity, kind_rng, pose, category)
        mesh, amount, before = made.mesh, made.amount, made.before
        row.update(size=round(made.size * scale, 3), depth=round(made.depth * scale, 3), severity=round(severity, 3))
    mesh = Mesh(_warp(mesh.vertices, unit, bending, pair_rng), mesh.faces)
    face, weights = sample_surface(mesh, count, kind_rng)
    corners = mesh.faces[face]
    xyz = on_faces(mesh.vertices, corners, weights)
    level = noise * unit * exact.exp(0.5 * np.clip(rough(xyz), -2, 2))
    xyz = xyz + level[:, None] * kind_rng.normal(size=(count, 3))
    labels = on_faces(amount, corners, weights) > THRESHOLD
    row.update(points=count, defective_points=int(labels.sum()), seed=list(root))
    colours = None
    if colour:
        dye = material(category, unit, np.random.default_rng(np.random.SeedSequence((*root, 5))))
        colours = dye(on_faces(before, corners, weights))
    return np.round(exact.times(scale * xyz, pose.T), 3) + 0.0, labels, colours, row


def _defective(defect, body, mesh, difficulty, severity, rng, pose, category) -> kinds.Defective:
    """Draws places until one holds the defect and shows at least a little of it."""
    for attempt in range(40):
        try:
            made = kinds.apply(defect, body, mesh, difficulty, min(severity + 0.1 * (attempt // 8), 1.0), rng, pose)
        except kinds.NoPlace:
            continue
        if _share(made) > 0.002:
            return made
    raise ValueError(
        f"no place for a {defect} on a '{category}' at difficulty '{difficulty}': leave the defect out or change the seed"
    )


def _share(made: kinds.Defective) -> float:
    a, b, c = (made.mesh.vertices[made.mesh.faces[:, i]] for i in range(3))
    area = exact.norm(np.cross(b - a, c - a))
    return float(exact.total(area * (made.amount > THRESHOLD)[made.mesh.faces].all(1)) / exact.total(area))


def _jitter(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """Small random rotation [3, 3]."""
    angles = rng.normal(0, degrees, 3).clip(-2.5 * degrees, 2.5 * degrees)
    return exact.times(exact.times(about("x", angles[0]), about("y", angles[1])), about("z", angles[2]))


def _warp(vertices: np.ndarray, unit: float, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Low-frequency displacement by a few waves as long as the object, as castings show."""
    wave = rng.normal(size=(5, 3))
    wave *= (np.pi / unit * rng.uniform(0.5, 1.4, 5) / exact.norm(wave))[:, None]
    swing = exact.sin(exact.times(vertices, wave.T) + rng.uniform(0, 2 * np.pi, 5))
    return vertices + strength * unit / np.sqrt(5) * exact.times(swing, rng.normal(size=(5, 3)))


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class Settings:
    """What the objects of a data set are made by; its manifest keeps it."""

    seed: int
    points: int = 10_000  # of a scan, within 10%
    difficulty: str = "middle"
    defects: Sequence[str] = ALL_DEFECTS
    good: int = 10  # sound test objects of each category
    defective: int = 10
    relief: float = 0.0  # share of objects with sound relief
    grafts: float = 0.0  # share of objects with a part of another kind grown on

    def json(self) -> dict[str, Any]:
        """As the manifest has it; `relief` and `grafts` only where there are any."""
        values = {"format": FORMAT, **asdict(self), "seed": int(self.seed), "defects": list(self.defects)}
        return {key: value for key, value in values.items() if value or key not in ("relief", "grafts")}


def write(
    root: str | Path, *, categories: Sequence[str], workers: int = 2, colour: bool = False, **made_by: Any
) -> tuple[str, ...]:
    """Writes the data set, or what is missing of it: same arguments, same bytes, whatever the processor, workers, interruptions.
    With `colour` the points' colours too, also to a folder that was written without.

    `made_by` are the fields of `Settings`. Good objects get even numbers, defective ones odd, kinds in turn. Categories may be
    added to a folder later. Returns the categories whose files are not those of `PUBLISHED`, where it has the settings. Raises
    ValueError for unknown names, numbers out of range, and a folder that holds a set of other settings.
    """
    root, categories, settings = Path(root), tuple(dict.fromkeys(categories)), Settings(**made_by)
    check(categories, settings)
    kept = settings.json()
    manifest = root / "manifest.json"
    old = json.loads(manifest.read_text()) if manifest.exists() else None
    if old is not None and old["settings"] != kept:
        changed = ", ".join(
            f"{k} {old['settings'].get(k)} -> {v}" for k, v in kept.items() if old["settings"].get(k) != v
        )
        raise ValueError(
            f"{manifest}: holds synthetic data of other settings ({changed}); choose another folder or remove this one"
        )
    everything = tuple(dict.fromkeys([*(old["categories"] if old else ()), *categories]))
    if old is None or not set(categories) <= set(old["categories"]):
        root.mkdir(parents=True, exist_ok=True)
        write_atomic(
            manifest,
            json.dumps({"settings": kept, "categories": list(everything), "samples": []}, indent=1).encode(),
        )
    jobs = [job for c in categories for job in _jobs(c, settings)]
    missing = [job for job in jobs if not (_row_path(root, job).exists() and (not colour or _colour_path(root, job).exists()))]
    if missing:
        _run(root, missing, settings, workers, colour)
    rows = [path for c in everything for path in sorted((root / c / "meta").glob("*.json"))]
    samples = [json.loads(p.read_text()) for p in rows]
    text = json.dumps({"settings": kept, "categories": list(everything), "samples": samples}, indent=1)
    if not manifest.exists() or manifest.read_text() != text:
        write_atomic(manifest, text.encode())
    known = [part["categories"] for part in json.loads(PUBLISHED.read_text()) if part["settings"] == kept]
    made = fingerprints(samples)
    return tuple(c for part in known for c in categories if c in part and part[c] != made[c])


def fingerprints(samples: Sequence[dict[str, Any]]) -> dict[str, str]:
    """One SHA-256 a category, over the names and SHA-256 of its files; `samples` are the rows of a manifest."""
    lines: dict[str, list[str]] = {}
    for row in samples:
        lines.setdefault(row["category"], []).append(f"{row['file']} {row['sha256']} {row.get('truth_sha256', '')}\n")
    return {name: hashlib.sha256("".join(sorted(files)).encode()).hexdigest() for name, files in lines.items()}


def check(categories: Sequence[str], settings: Settings) -> None:
    """Raises ValueError for what `write` cannot write; the arguments are its own."""
    seed, good, defective, points = settings.seed, settings.good, settings.defective, settings.points
    for what, names, known in (
        ("category", categories, GENERATORS),
        ("defect", settings.defects, ALL_DEFECTS),
        ("difficulty", [settings.difficulty], DIFFICULTIES),
    ):
        for name in names:
            if name not in known:
                raise ValueError(f"unknown synthetic {what} '{name}': choose from {', '.join(known)}")
    if not categories:
        raise ValueError("no categories given: name at least one synthetic category")
    if seed < 0 or good < 0 or defective < 0 or points < 200 or (defective and not settings.defects):
        raise ValueError(
            f"seed={seed}, good={good}, defective={defective}, points={points}: seed and counts must not be negative, "
            "points at least 200, and defective objects need at least one kind of defect"
        )
    for name, share, of in (("relief", settings.relief, "sound relief"), ("grafts", settings.grafts, "a part of another kind")):
        if not 0 <= share <= 1:
            raise ValueError(f"{name}={share}: the share of objects with {of} lies between 0 and 1")


Job = tuple[str, str, int, str, str]  # category, split, index, defect, file stem


def _jobs(category: str, settings: Settings) -> list[Job]:
    start, defects = zlib.crc32(f"{category}/{settings.seed}".encode()), settings.defects
    jobs = [(category, "train", i, "good", f"{category}_template{i}") for i in range(TEMPLATES)]
    jobs += [(category, "test", i, "good", f"{2 * i:03d}_good") for i in range(settings.good)]
    turn = [defects[(start + i) % len(defects)] for i in range(settings.defective)]
    return jobs + [(category, "test", i, kind, f"{2 * i + 1:03d}_{kind}") for i, kind in enumerate(turn)]


def _row_path(root: Path, job: Job) -> Path:
    """The manifest row of an object, written last: the object is complete where it exists."""
    return root / job[0] / "meta" / f"{job[4]}.json"


def _colour_path(root: Path, job: Job) -> Path:
    return root / job[0] / "colour" / f"{job[4]}.npy"


def _run(root: Path, jobs: list[Job], settings: Settings, workers: int, colour: bool) -> None:
    """Here, or in child processes of this module: they inherit no threads and import neither TensorFlow nor JAX."""
    workers = min(workers, len(jobs) // 4)
    if workers <= 1:
        for job in jobs:
            _make(root, job, settings, colour)
        return
    package = str(Path(__file__).resolve().parents[2])
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "data_pipelines.solids.synthetic", "--part"]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=env, text=True)
        for _ in range(workers)
    ]
    try:
        for i, child in enumerate(children):
            part = {"root": str(root), "jobs": jobs[i::workers], "settings": asdict(settings), "colour": colour}
            child.stdin.write(json.dumps(part))
            child.stdin.close()
        failures = [child.stderr.read().strip() for child in children if child.wait()]
    finally:
        for child in children:
            child.kill()
            child.wait()
    if failures:
        raise ValueError(
            failures[0].splitlines()[-1]
            if failures[0]
            else "a worker writing synthetic data was killed (out of memory?)"
        )


def _make(root: Path, job: Job, settings: Settings, colour: bool) -> None:
    category, split, index, defect, stem = job
    xyz, labels, colours, row = make_coloured(
        category, settings.seed, index, defect, points=settings.points, difficulty=settings.difficulty, split=split,
        relief=settings.relief, grafts=settings.grafts, colour=colour,
    )  # fmt: skip
    if colours is not None:
        content = io.BytesIO()
        np.save(content, colours)
        write_atomic(_colour_path(root, job), content.getvalue())
    folder = root / category
    header = (
        "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\n"
        f"WIDTH {len(xyz)}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {len(xyz)}\nDATA binary\n"
    )
    cloud = header.encode() + xyz.astype("<f4").tobytes()
    row["sha256"] = hashlib.sha256(cloud).hexdigest()
    write_atomic(folder / split / f"{stem}.pcd", cloud)
    if defect != "good":
        lines = [
            f"{x:.3f} {y:.3f} {z:.3f} {label:d}\n"
            for (x, y, z), label in zip(xyz.tolist(), labels.tolist(), strict=True)
        ]
        truth = "".join(lines).encode()
        row["truth_sha256"] = hashlib.sha256(truth).hexdigest()
        write_atomic(folder / "gt" / f"{stem}.txt", truth)
    write_atomic(_row_path(root, job), json.dumps({"file": f"{category}/{split}/{stem}.pcd", **row}).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipelines.solids.synthetic", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", help="folder to write to")
    parser.add_argument("--set", choices=SETS, default="test", help="one of the four disjoint sets of categories")
    parser.add_argument("--categories", help="comma-separated names instead of a set")
    parser.add_argument("--defects", default=",".join(ALL_DEFECTS), help="comma-separated kinds")
    parser.add_argument("--difficulty", default="middle", help=", ".join(DIFFICULTIES))
    parser.add_argument("--relief", type=float, default=0.0, help="share of objects with sound relief")
    parser.add_argument("--grafts", type=float, default=0.0, help="share of objects with a part of another kind grown on")
    parser.add_argument("--colour", action="store_true", help="write the points' colours too")
    for name, default in (("seed", 0), ("good", 10), ("defective", 10), ("points", 10_000), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--part", action="store_true", help=argparse.SUPPRESS
    )  # a child of _run: jobs on standard input
    args = parser.parse_args(arguments)

    def work() -> None:
        if args.part:
            part = json.load(sys.stdin)
            for job in part["jobs"]:
                _make(Path(part["root"]), tuple(job), Settings(**part["settings"]), part["colour"])
            return
        if not args.out:
            parser.error("--out is needed: the folder to write to")
        names = args.categories.split(",") if args.categories else SETS[args.set]
        write(
            args.out, categories=names, workers=args.workers, seed=args.seed, points=args.points, difficulty=args.difficulty,
            defects=args.defects.split(","), good=args.good, defective=args.defective, relief=args.relief, grafts=args.grafts,
            colour=args.colour,
        )  # fmt: skip

    return guarded(work)


if __name__ == "__main__":
    sys.exit(command(main))
