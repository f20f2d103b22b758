"""Scores scans of any part, says where they look defective and, with good parts at hand, which are.

gsclip inspect PATHS... --out DIR [--good DIR] [--model DIR]

PATHS are scans, folders, patterns or - (names on standard input). DIR gets results.csv and results.jsonl, which grow as parts
finish, parts/NAME.ply (every row of the scan with all it had, and its score), parts/NAME.json, and index.html, the page of all.

Without --good or --calibration scores are a ranking; with them every part is sound, defective, or one of which nothing can be
said. Stopped in any way, the same command goes on. No scan is ever written over, nor what this command did not write.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipelines import storage
from data_pipelines.clouds.loading import LOADERS, UNITS
from data_pipelines.command import Parser, command, guarded, interruptible, stopping
from data_pipelines.files import checksum
from data_pipelines.progress import Progress
from data_pipelines.rendering.projection import RASTERISERS
from data_pipelines.scan import DataError
from gsclip_jax.inspection.inputs import STDIN, scans_of
from gsclip_jax.inspection.store import Store, check_writable
from gsclip_jax.runtime.names import one_line

if TYPE_CHECKING:
    from gsclip_jax.inspection.detector import Detector
    from gsclip_jax.inspection.prepare import Reading

CALIBRATION = "calibration.json"
LISTED = 20  # failures that the summary repeats


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 when a scan could not be inspected (the others are), or 130 when stopped."""
    parser = Parser(prog="gsclip inspect", description=__doc__.split("\n\n", 2)[2],
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the results, made where there is none")
    add_good(parser)
    add_scans(parser)
    _add_references(parser)
    add_reading(parser)
    return ended(lambda: inspect(parser.parse_args(arguments)))


def calibrate_main(arguments: list[str] | None = None) -> int:
    """`gsclip calibrate`; returns the exit status."""
    parser = Parser(prog="gsclip calibrate", description="Scores good parts, once; gsclip inspect --calibration FILE then gives "
                    "verdicts by them. Refuses nothing but another model and other options of reading.")  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="a small JSON file")
    parser.add_argument("--rate", type=float, default=0.1, help="false alarms: share of good parts called defective (0.1)")
    add_scans(parser)
    _add_references(parser)
    add_reading(parser)
    return ended(lambda: calibrate_only(parser.parse_args(arguments)))


def add_scans(parser: argparse.ArgumentParser) -> None:
    """The options of both commands: which scans, and how many at a time."""
    known = " ".join(LOADERS)
    parser.add_argument("scans", nargs="+", metavar="PATHS", help=f"scans ({known}, text also .gz), folders, patterns, -")
    parser.add_argument("-r", "--recursive", action="store_true", help="folders with all folders below them")
    parser.add_argument("--workers", type=int, default=0, help="threads that read and draw (default: one a core, less one)")


def _add_references(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--references", action="store_true",
                        help="some of the good parts (12 or more) are compared with, which finds places better")  # fmt: skip


def add_good(parser: argparse.ArgumentParser) -> None:
    """By which good parts verdicts are given."""
    parser.add_argument("--good", nargs="+", metavar="PATH", help="scans or folders of good parts, 5 to 50: gives verdicts")
    parser.add_argument("--calibration", type=Path, metavar="FILE",
                        help="of gsclip calibrate, instead of --good; none: not even that of an exported model")  # fmt: skip
    parser.add_argument("--rate", type=float, help="false alarms: share of good parts that may be called defective (0.1)")


def check_good(args: argparse.Namespace) -> None:
    """Raises DataError for what `add_good` cannot mean."""
    if args.good and args.calibration:
        raise DataError("--good and --calibration: give one of them")
    _check_rate(args)


def chosen_calibration(args: argparse.Namespace, detector) -> Path | None:
    """The file by which verdicts are given: the named one, none for `none` or where good parts were given, else the model's."""
    own = detector.model.calibration
    if str(args.calibration) == "none":
        return None
    if args.good or args.calibration or own is None:
        return args.calibration
    say(f"verdicts by the calibration of the model ({own}); --calibration none for a ranking")
    return own


def _check_rate(args: argparse.Namespace) -> None:
    if args.rate is not None and not 0 < args.rate < 1:
        raise DataError(f"--rate {args.rate}: a share between 0 and 1")


def add_reading(parser: argparse.ArgumentParser) -> None:
    """The model, and how scans are read and cleaned: what scores depend on."""
    parser.add_argument("--model", "--workdir", metavar="DIR", dest="model",
                        help="a work directory of experiments.run, what gsclip export wrote, or owner/name on the Hugging Face "
                        "hub (default: the embedded model)")  # fmt: skip
    parser.add_argument("--columns", metavar="X,Y,Z", help="which columns of a table are coordinates, by name or number from 1")
    parser.add_argument("--unit", choices=UNITS, default="", help="of the coordinates; scores do not depend on it")
    parser.add_argument("--remove-plane", action="store_true", help="take away the table under the part")
    parser.add_argument("--clean", action="store_true", help="take away stray points")
    parser.add_argument("--split", action="store_true", help="several parts in one scan, each on its own")
    parser.add_argument("--rasteriser", choices=RASTERISERS, help="what draws the views (default: what drew the model's)")


def reading_of(args: argparse.Namespace) -> Reading:
    """What `add_reading` asked for, but the model."""
    from gsclip_jax.inspection.prepare import Reading

    columns = tuple(word.strip() for word in args.columns.split(",")) if args.columns else None
    return Reading(columns, args.unit, args.remove_plane, args.clean, args.split)


def ended(work: Callable[[], int]) -> int:
    """The exit status of a command: what it returns, 1 for what was wrong, 130 when stopped; both with one line."""
    def stopped() -> int:
        try:
            return work()
        except KeyboardInterrupt as error:
            print(f"\n{error or 'stopped; the same command goes on'}", file=sys.stderr)
            return 130

    return guarded(stopped)


def inspect(args: argparse.Namespace) -> int:
    """What `main` does with its options.

    Raises:
      ValueError: what is refused before any scan is read: no scans, a folder that cannot be written or is another's, no such
        model, a calibration that does not fit.
      KeyboardInterrupt: stopped, saying where.
    """
    check_good(args)
    if storage.is_url(args.out):
        raise DataError(f"--out {args.out}: results are written into a folder of this machine; name one")
    scans = _scans(args, below=args.out)
    good = scans_of(args.good, args.recursive, (), args.out) if args.good else []
    check_writable(args.out)
    detector, reading, workers = opened(args), reading_of(args), _workers(args)
    from gsclip_jax.inspection.calibration import RATE
    from gsclip_jax.inspection.references import ENDING

    args.calibration = chosen_calibration(args, detector)
    rate = RATE if args.rate is None else args.rate
    settings = {"model": detector.model.digest, "rasteriser": detector.recipe.rasteriser, **reading.settings()}
    given = [*scans, *good, *([args.calibration, args.calibration.with_suffix(ENDING)] if args.calibration else [])]
    if args.calibration:
        detector, calibration = _known(detector, reading, args.calibration, args.rate)
        settings |= {"calibration": checksum(args.calibration), "rate": calibration.rate}
    elif good:
        settings |= {"good": _digest(good), "rate": rate, **({"references": True} if args.references else {})}
    store = Store(args.out, settings, given)
    try:
        warnings = []
        if good:
            path = args.out / CALIBRATION
            detector, calibration, failed = compared(detector, reading, good, rate, workers, path, args.references)
            warnings += [f"a good part could not be used: {line}" for line in failed]
        elif not args.calibration:
            calibration = None
        if calibration:
            say(calibration.told())
            warnings += [] if calibration.threshold is not None else [calibration.told()]
        return _all(detector, reading, scans, store, calibration, workers, warnings)
    finally:
        store.close()


def calibrate_only(args: argparse.Namespace) -> int:
    """What `calibrate_main` does with its options. Errors: as `inspect`."""
    from gsclip_jax.inspection.references import ENDING

    _check_rate(args)
    scans = _scans(args, below=None)
    for path in (args.out, args.out.with_suffix(ENDING)):
        if os.path.lexists(path):
            raise DataError(f"--out {args.out}: {path} exists and stays as it is; name another file")
    detector, reading, workers = opened(args), reading_of(args), _workers(args)
    _, calibration, failures = compared(detector, reading, scans, args.rate, workers, args.out, args.references)
    say(calibration.told())
    return 1 if failures else 0


def _scans(args: argparse.Namespace, below: Path | None) -> list[Path]:
    return scans_of(args.scans, args.recursive, sys.stdin if STDIN in args.scans else (), below)


def opened(args: argparse.Namespace) -> Detector:
    """The detector of the options of `add_reading`. Raises ValueError: no such model, or Open3D cannot draw here."""
    say(f"loading {f'the model of {args.model}' if args.model else 'the embedded model'}")
    from gsclip_jax.inspection import detector
    from gsclip_jax.runtime.compiled import keep_compiled

    say(keep_compiled())
    return detector.opened(args.model, args.rasteriser)


def _workers(args: argparse.Namespace) -> int:
    from gsclip_jax.inspection.batch import cores

    return args.workers or max(1, cores() - 1)


def compared(detector, reading, good: Sequence[Path], rate: float, workers: int, path: Path, compare: bool):
    """`by_good`, and before it the detector: with `compare`, and where there are enough good parts, some of them are references
    that it compares with, and the calibration is by the others. The references lie beside `path`."""
    from gsclip_jax.inspection.batch import refer
    from gsclip_jax.inspection.calibration import needed
    from gsclip_jax.inspection.references import ENDING, reference_parts

    if path.exists():
        return *_known(detector, reading, path, rate), []
    chosen, references, failed = reference_parts(len(good), needed(rate)) if compare else [], None, []
    if chosen:
        progress = Progress("references", len(chosen))
        references, failed = refer(detector, [good[at] for at in chosen], reading, workers, progress.update)
    if not references:
        return detector, *by_good(detector, reading, good, rate, workers, path)
    for line in failed:
        _complain(line)
    say(references.told())
    references.save(path.with_suffix(ENDING))
    others, detector = [scan for at, scan in enumerate(good) if at not in chosen], detector.with_references(references)
    calibration, more = by_good(detector, reading, others, rate, workers, path, checksum(path.with_suffix(ENDING)))
    return detector, calibration, [*failed, *more]


def _known(detector, reading, path: Path, rate: float | None):
    """The detector, with the references of a calibration file where it has any, and that calibration."""
    from gsclip_jax.inspection.calibration import load_calibration
    from gsclip_jax.inspection.references import references_beside

    calibration = load_calibration(path, detector.model.digest, reading.settings(), rate, references=True)
    if calibration.references:
        references = references_beside(path, calibration.references, detector.model.digest, reading.settings())
        say(references.told())
        detector = detector.with_references(references)
    return detector, calibration


def by_good(detector, reading, good: Sequence[Path], rate: float, workers: int, path: Path, references: str = ""):
    """The calibration by good parts, kept in `path`, and the lines of those that could not be used.

    Args:
      references: SHA-256 of those that the detector compares with.
    """
    from gsclip_jax.inspection.batch import calibrate

    progress = Progress("good parts", len(good))
    calibration, failures = calibrate(detector, good, reading, rate, workers, progress.update)
    for line in failures:
        _complain(line)
    calibration = dataclasses.replace(calibration, references=references)
    calibration.save(path)
    return calibration, failures


def _all(detector, reading, scans: Sequence[Path], store: Store, calibration, workers: int, warnings: list[str]) -> int:
    """Inspects what is not there yet, then writes the page and the summary."""
    from gsclip_jax.inspection.batch import prepared_ahead
    from gsclip_jax.inspection.page import write_pages
    from gsclip_jax.inspection.prepare import ready_parts

    left, failures = [scan for scan in scans if not store.done(scan)], []
    if len(left) < len(scans):
        say(f"{len(scans) - len(left)} of {len(scans)} scans are inspected already")
    progress, done = Progress("inspecting: {} of {} scans", len(scans), done=len(scans) - len(left)), len(scans) - len(left)
    try:
        with interruptible():
            for scan, found in prepared_ahead(lambda path: ready_parts(detector, path, reading), left, workers):
                if stopping():
                    raise KeyboardInterrupt
                try:
                    if isinstance(found, DataError):
                        raise found
                    _keep(detector, store, scan, found, calibration)
                except DataError as error:
                    failures.append(str(error))
                    _complain(str(error))
                done += 1
                progress.update(done)
    except KeyboardInterrupt:
        there = sum(map(store.done, scans))
        told = f"stopped: {there} of {len(scans)} scans are inspected, in {one_line(str(store.folder))}; the same command goes on"
        raise KeyboardInterrupt(told) from None
    store.failed(failures)
    rows = list(store.rows.values())
    drift = calibration.drift([row["score"] for row in rows]) if calibration else ""
    warnings = [*warnings, *filter(None, [drift])]
    about = {"model": detector.model.name, "date": datetime.date.today().isoformat(), "model digest": detector.model.digest[:12]}
    about |= {"references": detector.references.told()} if detector.references else {}
    pages = write_pages(store.folder, f"{len(rows)} parts", calibration and calibration.for_page(warnings), about, failures)
    _summary(store, rows, failures, warnings, pages[0])
    return 1 if failures else 0


def _keep(detector, store: Store, scan: Path, parts, calibration) -> None:
    """Scores the parts of a scan and writes what belongs to them; last of all the lines that say they are there."""
    from gsclip_jax.inspection.page import part_record
    from gsclip_jax.inspection.part_files import json_text, row_of, scored_ply

    names, rows = store.names_for(scan, len(parts)), []
    store.begin(scan, names)
    for name, (prepared, attributes) in zip(names, parts, strict=True):
        part = detector.finish(prepared._replace(name=name))
        if calibration:
            part = dataclasses.replace(part, verdict=calibration.judge(part))
        row = row_of(part)
        store.write(name, ".ply", scored_ply(part, attributes))
        store.write(name, ".json", json_text(row) + "\n")
        part_record(part, store.folder)
        rows.append(row)
        verdict = f", {part.verdict.kind} (p {part.verdict.p_value:.3g})" if part.verdict else ""
        say(f"{part.source}: score {part.score:.4f}{verdict}; {part.notes[0] if part.notes else ''}")
    store.commit(scan, rows)


def _summary(store: Store, rows: list[dict], failures: list[str], warnings: list[str], page: Path) -> None:
    kinds = [row["verdict"]["kind"] for row in rows if row["verdict"]]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in ("sound", "defective", "cannot tell"))
    for line in warnings:
        say(f"warning: {line}")
    told = counts if kinds else "ranked by score, without good parts no verdict"
    say(f"{len(rows)} parts in {store.folder}: {told}; see {page}")
    if failures:
        _complain(f"{len(failures)} could not be inspected (all in {store.folder / 'failures.txt'}):", prefix="")
        for line in failures[:LISTED]:
            _complain(line, prefix="  ")


def _digest(paths: Sequence[Path]) -> str:
    """Of which files they are and when they were changed."""
    found = [(os.path.abspath(path), os.stat(path)) for path in paths if path.exists()]
    known = sorted((place, about.st_size, about.st_mtime_ns) for place, about in found)
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def say(line: str) -> None:
    """One line on standard output."""
    print(one_line(line), flush=True)


def _complain(line: str, prefix: str = "error: ") -> None:
    print(prefix + one_line(line), file=sys.stderr, flush=True)


def finish(work) -> None:
    """Runs a command as a program and ends it. Stopped while compiling, JAX ends in a segmentation fault when Python takes it
    down, and threads that draw are not waited for."""
    status = command(work)
    if status == 130:
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    finish(main)
