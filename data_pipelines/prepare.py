"""Turns raw scans into records: every scan is rendered once, checked, and kept where `experiments.run` finds it.

The same command again continues after a kill and does nothing but check what is done. See docs/data.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from data_pipelines import storage
from data_pipelines.command import command, guarded
from data_pipelines.datasets import RECIPES, data_config
from data_pipelines.datasets.listing import printable
from data_pipelines.records.store import plan_of, prepare
from data_pipelines.records.verify import Report, folders, verify
from data_pipelines.rendering.cameras import PRESETS
from data_pipelines.scan import DataError, did_you_mean

USAGE = "python -m data_pipelines.prepare --data NAME --root DIR --out DIR [options] [--beam -- BEAM'S FLAGS]"
EPILOG = f"""\
data sets, by the layout of their folders: {", ".join(RECIPES)} (your own scans).
Options of the recipe that are not given are the published ones of the data set (data_pipelines/datasets). They are part of
the key of the records: a run finds them when its config.data has the same values, e.g. --points 4096 here and
--config.data.points=4096 there, and its config.cache is --out.

examples:
  python -m data_pipelines.prepare --data mvtec3d --root mvtec_3d --out cache --workers 8 --skip-bad
  python -m data_pipelines.prepare --data real3d --root Real3D-AD-PCD --out cache --categories seahorse,shell
  python -m data_pipelines.prepare --out cache --verify
  python -m data_pipelines.prepare --data folder --root scans --out cache --beam -- --runner=DirectRunner --direct_num_workers=2
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise DataError(message)


def main(arguments: list[str] | None = None, say: Callable[[str], None] = lambda line: print(line, flush=True)) -> int:
    """Returns the exit status: 0, 1 for whatever is wrong (a line each on standard error), 130 when stopped."""

    def told(line: str) -> None:
        say(storage.named(line))

    def work() -> int:
        options, changes, beam = parse(sys.argv[1:] if arguments is None else arguments)
        if options.verify and not options.root:
            out = storage.opened(options.out, write=False)
            for name in storage.published(out):
                storage.fetch(out / name)
            reports = [(folder, verify(folder, progress=told)) for folder in folders(out, options.data)]
        elif options.verify:
            folder = _planned(options, changes, told)
            storage.fetch(folder)
            reports = [(folder, verify(folder, options.root, told))]
        else:
            config = data_config(options.data, options.root, changes)
            records = prepare(config, options.out, workers=options.workers, progress=told, categories=options.categories,
                              skip_bad=options.skip_bad, beam=beam)
            reports = [(records.dir, verify(records.dir, options.root, told, draw=True))]
            storage.push(records.dir)  # the contact sheets
        for folder, report in reports:
            _show(folder, report, told)
        return int(any(report.problems for _, report in reports))

    return guarded(work, _in_options)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, Any], list[str] | None]:
    """Options, changed settings of the recipe, and Beam's flags (None: no Beam).

    Raises:
      DataError: unknown option or data set (with the nearest), a missing one, or a value of another type.
    """
    parser = _parser()
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options, unknown = parser.parse_known_args(arguments[:split])
    known = [name for action in parser._actions for name in action.option_strings]
    for word in unknown:
        name = word.split("=")[0]
        raise DataError(f"unknown option {word!r}{did_you_mean(name, known) if word[:1] == '-' else ''}; --help lists them all")
    flags = arguments[split + 1 :]
    if flags and not options.beam:
        raise DataError(f"what follows -- ({flags[0]} ...) goes to Beam; add --beam before it")
    if options.data is not None and options.data not in RECIPES:
        raise DataError(f"unknown data set {options.data!r}{did_you_mean(options.data, RECIPES)}; known: {', '.join(RECIPES)}")
    if not options.out:
        raise DataError("--out is missing: the folder for records, config.cache of the runs that use them")
    if not options.verify or options.root:
        for name in ("data", "root"):
            if not getattr(options, name):
                raise DataError(f"--{name} is missing; usage: {USAGE}")
    if options.verify and (options.skip_bad or options.beam):
        raise DataError("--verify changes nothing: leave out --skip-bad and --beam, or leave out --verify")
    changes = {key: getattr(options, key) for key in RECIPES["real3d"] if getattr(options, key, None) is not None}
    if options.verify and changes and not options.root:
        raise DataError(f"--verify without --root checks all records in --out, whatever made them; add --data and --root to have "
                        f"those of --{next(iter(changes)).replace('_', '-')}")
    if changes.get("back_off") == "preset":
        changes["back_off"] = None
    return options, changes, flags if options.beam else None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m data_pipelines.prepare", usage=USAGE, description=__doc__, epilog=EPILOG, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", metavar="NAME", help="layout of the scans: " + ", ".join(RECIPES))
    add("--root", metavar="DIR", help="folder that holds the category folders, or up to three levels above it")
    add("--out", metavar="DIR", help="folder for records, shared by data sets and recipes")
    add("--workers", type=_whole, default=os.cpu_count() or 1, metavar="N", help="rendering processes (default: one a core)")
    add("--categories", type=_words, metavar="A,B", help="only these, in this order: a run that names categories has the "
        "training category first (default: all, as a run that names none)")
    add("--skip-bad", action="store_true", help="leave out scans that cannot be read, name them, and list them in records.json "
        "(default: stop at the first)")
    add("--verify", action="store_true", help="prepare nothing; check the records in --out (with --data and --root: those alone)")
    add("--beam", action="store_true", help="render and write with Apache Beam; what follows -- are its own flags")
    recipe = parser.add_argument_group("recipe (default: the data set's own)").add_argument
    recipe("--points", type=_whole, metavar="M", help="scored points of an object; of organised scans a square number (the grid)")
    recipe("--image-size", type=_whole, metavar="PIXELS", help="side of the stored views")
    recipe("--views", type=_whole, metavar="V", help="number of views")
    recipe("--cameras", type=_cameras, metavar="LIST", help=f"from which sides: {', '.join(PRESETS)}, or a JSON list of views, "
           "each a list of [axis, degrees]")
    recipe("--window", type=_whole, metavar="PIXELS", help="side of the drawing, before it is reduced to the image size")
    recipe("--point-size", type=float, metavar="PIXELS", help="side of a drawn point")
    recipe("--point-sizes", type=_sizes, metavar="CATEGORY=PIXELS,...", help="where they differ; replaces the recipe's list")
    recipe("--cloud-points", type=_whole, metavar="N", help="points of the PointNet++ input")
    recipe("--neighbours", type=_whole, metavar="K", help="stored neighbours of every point")
    recipe("--sample-seed", type=_whole, metavar="SEED", help="of the choice of points")
    recipe("--back-off", type=_back_off, metavar="yes|no|preset",
           help="draw the camera back until the whole object is in the picture")
    recipe("--zoom", type=float, metavar="Z", help="of the camera: less is nearer")
    recipe("--cavity", type=float, metavar="SHARE", help="how far rough or sharp surface is darkened in shaded views, 0 to 1")
    recipe("--depth-relief", type=float, metavar="SHARE",
           help="share of a depth view's greys that shows height over the surroundings instead of distance, 0 to 1")
    recipe("--fill-gaps", action="store_const", const=True, help="no specks of the far side between the points of the near side")
    recipe("--rasteriser", metavar="NAME", help="what draws: open3d, or numpy where Open3D cannot: slower, not quite the same")
    recipe("--rgb-render", action="store_const", const=True,
           help="the views in the object's own colours as well, for methods that train on them (align3d)")
    recipe("--reader", type=_pairs, metavar="KEY=VALUE,...", help="options of the data set's reader (eyecandies: image=0 to 5)")
    return parser


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(word for word in text.split(",") if word))


def _pairs(text: str) -> dict[str, Any]:
    pairs = {}
    for word in _words(text):
        key, equals, value = word.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{word!r} is not of the form key=value")
        try:
            pairs[key] = json.loads(value)
        except ValueError:
            pairs[key] = value
    return pairs


def _sizes(text: str) -> dict[str, float]:
    try:
        return {key: float(value) for key, value in _pairs(text).items()}
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} has a size that is no number") from None


def _cameras(text: str) -> str | list:
    if not text.startswith("["):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"no JSON list of views ({error})") from None


def _back_off(text: str) -> bool | str:
    if text not in ("yes", "no", "preset"):
        raise argparse.ArgumentTypeError(f"{text!r}; use yes, no or preset")
    return text if text == "preset" else text == "yes"


def _planned(options: argparse.Namespace, changes: dict[str, Any], say: Callable[[str], None]) -> Path:
    """The folder in which the records of these options lie."""
    out = storage.opened(options.out, write=False).expanduser().absolute()
    root = Path(options.root).expanduser().absolute()
    plan = plan_of(data_config(options.data, options.root, changes), root, out, options.categories, say)
    for line in plan.left_out():
        say(line)
    return plan.folder


def _in_options(message: str) -> str:
    """A configuration's keys as this command's options."""
    message = re.sub(r"config\.data\.(\w+)", lambda match: "--" + match[1].replace("_", "-"), message)
    return printable(" ".join(message.split()))


def _show(folder: Path, report: Report, say: Callable[[str], None]) -> None:
    """The table, what is noteworthy, and on standard error what is wrong."""
    rows = [(name, c.good, c.defective, c.skipped, c.bytes) for name, c in report.counts.items()]
    rows.append(("all", *(sum(column) for column in list(zip(*rows, strict=True))[1:])))
    rows = [(printable(name), *counts) for name, *counts in rows]
    wide = max(8, *(len(row[0]) for row in rows))
    say(f"{'category':{wide}}  good  defective  skipped  MB an object")
    for name, good, defective, skipped, size in rows:
        each = f"{size / max(good + defective, 1) / 1e6:12.3f}" if size else f"{'-':>12}"
        say(f"{name:{wide}}  {good:4}  {defective:9}  {skipped:7}  {each}")
    for path in report.sheets:
        say(f"contact sheet: {path}")
    for note in report.notes:
        say(f"note: {printable(note)}")
    for problem in report.problems:
        print(f"error: {printable(problem)}", file=sys.stderr)
    say(f"{'NOT as prepared' if report.problems else 'verified'}: {folder}")


if __name__ == "__main__":
    sys.exit(command(main))
