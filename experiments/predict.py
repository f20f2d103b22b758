"""Scores single scans of any object with a trained model: points in colour, heat maps, numbers.

python -m experiments.predict SCAN... --out DIR [--workdir RUN]

Scores scans of any object: DIR/NAME.ply is the scan coloured by its point scores, DIR/NAME.png shows the views and where the
scores are high, DIR/NAME.npy holds one score a point in the scan's own order, DIR/scores.json the object scores. Without
--workdir the embedded model is used.

NAME is the scan's; where DIR holds such a file already, also a scan itself, it gets a number: nothing is written over but what an
earlier call wrote for the same scan. Further calls add to scores.json. Stopped by Ctrl-C, what is scored so far is there.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from pathlib import Path

import numpy as np

from data_pipelines import storage
from data_pipelines.command import command, guarded, interruptible, stopping
from data_pipelines.rendering.projection import RASTERISERS
from gsclip_jax.runtime.names import of_model, one_line

FORMATS = ".pcd .ply .xyz .txt .csv .npy"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when a scan could not be scored (the others are), or 130 when stopped."""

    parser = argparse.ArgumentParser(prog="python -m experiments.predict", description=__doc__.split("\n\n", 2)[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("scans", nargs="+", metavar="SCAN", type=Path, help=f"point clouds ({FORMATS})")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the results, made where there is none")
    parser.add_argument(
        "--workdir", metavar="RUN", help="a work directory of experiments.run (default: embedded model)"
    )
    parser.add_argument("--rasteriser", choices=RASTERISERS, help="what draws the views (default: what drew the model's)")

    def work() -> int:
        args = parser.parse_args(arguments)
        try:
            if storage.is_url(args.out):
                raise ValueError(f"--out {args.out}: results of single scans are written into a folder of this machine; name one")
            workdir = storage.opened(args.workdir, write=False) if args.workdir else None
            if workdir:
                storage.pull(workdir, of_model)
            return 1 if predict(args.scans, args.out, workdir, args.rasteriser) else 0
        except KeyboardInterrupt as stopped:
            print(f"\n{stopped}", file=sys.stderr)
            return 130

    return guarded(work)


def predict(scans: list[Path], out: Path, workdir: Path | None = None, rasteriser: str | None = None) -> list[str]:
    """Scores the scans and writes DIR; returns the lines that say which scans could not be scored.

    Raises:
      ValueError: DIR cannot be written or holds a scores.json of something else, no such model, or Open3D cannot
        draw here; nothing is scored then.
      KeyboardInterrupt: stopped, saying where; what was scored is written.
    """
    from experiments.outputs import Outputs

    outputs, failures = Outputs(out, scans), []
    scans = list({os.path.abspath(path): path for path in scans}.values())
    try:
        with interruptible():
            for failure in _scored(scans, outputs, workdir, rasteriser):
                if stopping():
                    raise KeyboardInterrupt
                if failure:
                    failures.append(failure)
                    print(f"error: {one_line(failure)}", file=sys.stderr)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped: {outputs.done} of {len(scans)} scans are scored, in {one_line(str(out))}") from None
    return failures


def _scored(scans: list[Path], outputs, workdir: Path | None, draw: str | None):
    """Scores one scan after the other; yields for each why it could not be scored, or None."""
    model = f"the model of {workdir}" if workdir else "the embedded model"
    _say(f"loading {model}")
    from data_pipelines.clouds.files import read_cloud
    from gsclip_jax.inspection.detector import Detector, saved_model
    from gsclip_jax.runtime.compiled import keep_compiled

    cache, ready = keep_compiled(), False
    detector = Detector(saved_model(workdir), draw)
    for path in scans:
        try:
            xyz = read_cloud(path)
            if not ready:
                began = time.monotonic()
                _say(cache)
            part = detector.inspect(xyz, path.stem, str(path))
        except (ValueError, OSError, MemoryError) as error:
            yield _reason(error, path)
            continue
        for note in part.notes:
            _say(f"{path}: {note}")
        if not ready:
            _say(f"ready after {time.monotonic() - began:.0f} s")
            ready = True
        highest = float(np.nanmax(part.points))
        files, hidden = rendered(part)
        about = {"score": round(part.score, 6), "max_point_score": round(highest, 6)}
        name = outputs.keep(path, about, files)
        told = "; its highest scores are on points that no view shows" if hidden else ""
        _say(f"{path}: object score {part.score:.3f}, highest point score {highest:.3f}{told}"
             f" -> {outputs.folder / name}.ply, .npy, .png")  # fmt: skip
        yield None


def _say(line: str) -> None:
    print(one_line(line), flush=True)


def _reason(error: Exception, path: Path) -> str:
    """One line, naming the scan."""
    if isinstance(error, MemoryError):
        return f"{path}: not enough memory for a scan of this size; thin it out"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or path}: {error.strerror}"
    text = " ".join(str(error).split())
    return text if str(path) in text else f"{path}: {text}"


def rendered(part) -> tuple[dict[str, bytes], bool]:
    """What is written of a `Part`, by ending: its scores, the coloured cloud and the picture; and whether no view shows its top.

    Colours run from the scan's median score to its top. The picture has the three views that show most of the top hundredth.
    """
    from experiments import pictures

    points = part.points
    low, high = (float(v) for v in np.nanquantile(points, [0.5, 0.999]))
    scores = io.BytesIO()
    np.save(scores, points)
    colours = pictures.heat_colours(np.nan_to_num((points - low) / max(high - low, 1e-12)))
    colours[np.isnan(points)] = 128  # no points: grey
    hits = (part.heat >= np.nanquantile(points, 0.99)).sum((1, 2))
    order = np.argsort(-hits, kind="stable")[:3]
    rows = [[*(np.repeat(view[..., None], 3, -1) for view in (part.render[v], part.depth[v])),
             pictures.painted_over(part.render[v], part.heat[v], low, high)] for v in order]  # fmt: skip
    title = Path(part.source).name
    sheet = pictures.sheet(rows, ["rendered view", "depth view", "point scores"], [f"{title}\nview {v + 1}" for v in order])
    return {".npy": scores.getvalue(), ".ply": coloured_ply(part.xyz, colours), ".png": pictures.png(sheet)}, not hits.any()


def coloured_ply(xyz: np.ndarray, colours: np.ndarray) -> bytes:
    """A binary PLY file of points [S,3], in doubles, with colours uint8 [S,3]."""
    names = [("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("red", "u1"), ("green", "u1"), ("blue", "u1")]
    rows = np.empty(len(xyz), names)
    for (name, _), column in zip(names, [*np.asarray(xyz).T, *colours.T], strict=True):
        rows[name] = column
    kinds = "".join(f"property {'double' if kind == '<f8' else 'uchar'} {name}\n" for name, kind in names)
    return f"ply\nformat binary_little_endian 1.0\nelement vertex {len(xyz)}\n{kinds}end_header\n".encode() + rows.tobytes()


if __name__ == "__main__":
    status = command(main)
    if status == 130:  # stopped while compiling, JAX ends in a segmentation fault when Python takes it down
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)
