"""`python -m gsclip_jax.parity DIR [--only a,b,...] [--json OUT]`: exit status 0 where every recorded array is met."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gsclip_jax.parity.check import check
from gsclip_jax.parity.compare import table
from gsclip_jax.parity.recording import ITEMS, ParityError, Recording


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the comparison; returns the exit status: 1 on any miss, any array not checked, or a directory of another kind."""
    parser = argparse.ArgumentParser(prog="python -m gsclip_jax.parity", description="Compares converters and modules with "
                                     "arrays recorded from the authors' code, within the directory's own bounds.")  # fmt: skip
    parser.add_argument("directory", help="manifest.json, params_<config>.json and npz files")
    parser.add_argument("--only", metavar="a,b,...", help=f"items to check (default: all of {ITEMS[0]} to {ITEMS[-1]})")
    parser.add_argument("--json", metavar="OUT", type=Path, help="also write the rows to this file")
    options = parser.parse_args(arguments)
    items = [item.strip() for item in options.only.split(",")] if options.only else list(ITEMS)
    try:
        unknown = [item for item in items if item not in list(ITEMS)]
        if unknown:
            raise ParityError(f"--only: no item {', '.join(map(repr, unknown))}; known: {', '.join(ITEMS)}")
        rows = check(Recording(options.directory), items, lambda text: print(text, file=sys.stderr, flush=True))
        if not rows:
            raise ParityError(f"{options.directory}: records nothing of {', '.join(items)}")
        print(table(rows))
        if options.json:
            options.json.write_text(json.dumps({"arrays": [row.to_json() for row in rows]}, indent=1) + "\n")
    except (ParityError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
