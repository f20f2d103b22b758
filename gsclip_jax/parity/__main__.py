"""`python -m gsclip_jax.parity DIR [--only a,b,...] [--json OUT]`: exit status 0 where every recorded array is met."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipelines.command import Parser, command, guarded
from data_pipelines.files import write_atomic
from gsclip_jax.parity.check import check
from gsclip_jax.parity.compare import table
from gsclip_jax.parity.recording import ITEMS, ParityError, Recording


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status: 1 on any miss, any array not checked, or a directory of another kind; 2 for
    wrong options."""
    parser = Parser(prog="python -m gsclip_jax.parity", description="Compares converters and modules with arrays recorded "
                    "from the authors' code, within the directory's own bounds.")  # fmt: skip
    parser.add_argument("directory", help="manifest.json, params_<config>.json and npz files: of GS-CLIP (items a to p) "
                        "or Align3D-AD (q to z)")
    parser.add_argument("--only", metavar="a,b,...", help=f"items to check (default: all of {ITEMS[0]} to {ITEMS[-1]})")
    parser.add_argument("--json", metavar="OUT", help="also write the rows to this file; overwrites an earlier report only")
    options = parser.parse_args(arguments)
    return guarded(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    items = list(ITEMS) if options.only is None else [item.strip() for item in options.only.split(",")]
    unknown = [item for item in items if item not in list(ITEMS)]
    if unknown:
        raise ParityError(f"--only: no item {', '.join(map(repr, unknown))}; known: {', '.join(ITEMS)}")
    out = None if options.json is None else _report_file(options.json)
    try:
        rows = check(Recording(options.directory), items, lambda text: print(text, file=sys.stderr, flush=True))
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # of entries that are not what a manifest holds
        raise ParityError(f"{options.directory}: manifest.json is no manifest of recorded arrays ({type(error).__name__}: "
                          f"{error}); fetch the directory again") from error  # fmt: skip
    if not rows:
        raise ParityError(f"{options.directory}: records nothing of {', '.join(items)}")
    if out is not None:
        write_atomic(out, json.dumps({"arrays": [row.to_json() for row in rows]}, indent=1) + "\n")
    print(table(rows))
    return 0 if all(row.ok for row in rows) else 1


def _report_file(name: str) -> Path:
    """The file to write, looked at before minutes are spent. Raises ParityError where it is anything but new or our own."""
    path = Path(name)
    if not name or "\0" in name or path.is_dir() or not path.parent.is_dir():
        raise ParityError(f"--json {name!r}: name a file in a directory that is there")
    if path.exists() or path.is_symlink():
        try:
            rows = json.loads(path.read_text())["arrays"]
            ours = isinstance(rows, list) and all({"name", "ok", "max_abs"} <= row.keys() for row in rows)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            ours = False
        if not ours or path.is_symlink():
            raise ParityError(f"--json {path}: is there and no report of this command; name another file")
    return path


if __name__ == "__main__":
    sys.exit(command(main))
