"""How far point scores move when the same points come in another order, place, unit, precision or attitude.

    python benchmarks/invariance.py [--real ../shared/data/real3d_ad] [--out benchmarks/invariance.md]

Scores one defective scan of every category by the detector of `gsclip inspect` with the embedded model, and by its surface stream
alone, as it is (in doubles) and changed; scores of the same points are compared. Rotated scans are seen from other sides: the
views' scores change. Fails where a change moves scores by more than its bound.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# The beginning of a change's name -> at most: mean and largest difference of points, difference of the object's score.
BOUNDS = {"rows permuted": (0.0, 0.0, 0.0), "moved to survey": (1e-5, 1e-3, 1e-3), "in inches, doubles": (1e-5, 1e-3, 1e-3),
          "rotated": (0.02, 0.2, 0.02), "": (0.005, 0.5, 0.005)}  # fmt: skip


def variants(xyz: np.ndarray, order: np.ndarray) -> dict[str, np.ndarray]:
    """The same points [S, 3] changed; 'rows permuted' and the last float32 one in the order given, the others in theirs."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    size = np.ptp(xyz, axis=0).max()
    aside = size * np.array([15.0, -1.0, 0.25])
    return {
        "rows permuted": xyz[order],
        "moved to survey coordinates, doubles": xyz + [450_000.0, 5_400_000.0, 120.0],
        "in inches, doubles": xyz / 25.4,
        "through float32": xyz.astype(np.float32),
        "moved by 15 sizes, through float32": (xyz + aside).astype(np.float32),
        "in inches, through float32": (xyz / 25.4).astype(np.float32),
        "permuted, moved, in inches, through float32": ((xyz + aside) / 25.4)[order].astype(np.float32),
        "rotated, doubles": xyz @ turn.T,
        "rotated, through float32": (xyz @ turn.T).astype(np.float32),
    }


def main() -> int:
    import jax

    from data_pipelines.clouds.files import read_cloud
    from data_pipelines.records.objects import to_batch
    from gsclip_jax.inspection.detector import Detector, to_rows
    from gsclip_jax.inspection.formats import saved_model
    from gsclip_jax.inspection.model import EMBEDDED
    from gsclip_jax.inspection.saved import load_model

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--real", type=Path, default=Path("../shared/data/real3d_ad"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "invariance.md")
    options = parser.parse_args()
    files = [next(path for path in sorted(folder.glob("test/*.pcd")) if "good" not in path.stem)
             for folder in sorted(options.real.iterdir()) if folder.is_dir()]  # fmt: skip
    detector = Detector(saved_model())
    method, params, stats, _ = load_model(EMBEDDED)

    def surface(params, stats, batch):
        found, _ = method.evidence(params, stats, batch)
        return method.surface_scores(found, batch)

    alone = jax.jit(surface)

    def scores(xyz: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Of the object, of its points, and by the surface stream."""
        prepared = detector.prepare(xyz)
        part, stream = detector.finish(prepared), np.asarray(alone(params, stats, to_batch([prepared.made])))[0]
        return part.score, part.points, to_rows(stream, prepared.made, prepared.xyz, prepared.valid)

    found: dict[str, list] = {}
    for number, path in enumerate(files, 1):
        xyz = np.round(read_cloud(path), 2)  # as the files have them
        order = np.random.default_rng(1).permutation(len(xyz))
        base, *points = scores(xyz)
        for name, changed in variants(xyz, order).items():
            want = [values[order] if "permuted" in name else values for values in points]
            score, *got = scores(changed)
            gap = np.abs(got[0] - want[0])
            ranks = [spearmanr(now, before)[0] for now, before in zip(got, want, strict=True)]
            found.setdefault(name, []).append((gap.mean(), gap.max(), abs(score - base), *ranks))
        print(f"{number} of {len(files)}: {path.name}", file=sys.stderr, flush=True)
    lines = [
        "# The same points in another order, place, unit, precision or attitude\n",
        f"Made by `python benchmarks/invariance.py` (see there): {len(files)} scans of real shapes, the detector of "
        "`gsclip inspect` with the embedded model; the worst of them.\n",
        "| change | points: mean of abs. difference | largest | object's score | Spearman of points | Spearman, surface stream |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    wrong = []
    for name, rows in found.items():
        mean, most, moved, rank, rank_surface = np.array(rows).T
        lines.append(f"| {name} | {mean.max():.6f} | {most.max():.6f} | {moved.max():.6f} | {rank.min():.5f} | "
                     f"{rank_surface.min():.5f} |")  # fmt: skip
        bounds = next(values for start, values in BOUNDS.items() if name.startswith(start))
        wrong += [name] if any(value.max() > bound for value, bound in zip((mean, most, moved), bounds, strict=True)) else []
    options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    for name in wrong:
        print(f"out of its bound: {name}", file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
