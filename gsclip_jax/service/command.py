"""Inspects scans that others send over HTTP.

gsclip serve --model DIR [--good DIR] [--port 8000]

POST /scans?name=part.ply takes a scan; its answer has links to the result, to the scan with a score a point and to a page with a
heat map. GET /health, /metrics (Prometheus) and /openapi.json say the rest. Nothing is fetched from the network.

It listens on 127.0.0.1 unless --host says otherwise, and elsewhere for those alone who send the token in GSCLIP_TOKEN or in
--token-file as `Authorization: Bearer TOKEN`. SIGTERM: no more scans are taken, what is under way is finished, all files go.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib.util
import ipaddress
import os
from pathlib import Path

from data_pipelines.command import Parser
from data_pipelines.scan import DataError
from gsclip_jax.inspection.command import (
    add_good,
    add_reading,
    by_good,
    check_good,
    chosen_calibration,
    ended,
    finish,
    opened,
    reading_of,
    say,
)
from gsclip_jax.inspection.inputs import scans_of

TOKEN = "GSCLIP_TOKEN"
SHORTEST = 16  # signs of a token
NEEDS = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart",
         "prometheus_client": "prometheus_client"}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 when it was ended by a signal, 1 where it could not begin."""
    parser = Parser(prog="gsclip serve", description=__doc__.split("\n\n", 2)[2],
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add_reading(parser)
    add_good(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (8000)")
    parser.add_argument("--token-file", type=Path, metavar="FILE", help=f"the token; or in the variable {TOKEN}")
    parser.add_argument("--no-token", action="store_true", help="let anybody in who reaches --host")
    parser.add_argument("--keep", type=float, default=60, metavar="MINUTES", help="after which a result goes (60)")
    parser.add_argument("--disk", type=float, default=4, metavar="GIB", help="of results; the oldest go first (4)")
    parser.add_argument("--queue", type=int, default=32, help="scans that wait; more are told when to come again (32)")
    parser.add_argument("--max-mib", type=float, default=100, help="of a scan's file (100)")
    parser.add_argument("--max-points", type=int, default=2_000_000, help="of a scan (2000000)")
    parser.add_argument("--max-seconds", type=float, default=60, help="to read and draw a scan (60)")
    parser.add_argument("--max-memory", type=float, default=4, metavar="GIB", help="to read and draw a scan (4)")
    parser.add_argument("--body-seconds", type=float, default=30, help="in which a scan has to be sent (30)")
    parser.add_argument("--readers", type=int, default=0, help="processes that read and draw (default: one a core, less one)")
    return ended(lambda: serve(parser.parse_args(arguments)))


def serve(args: argparse.Namespace) -> int:
    """What `main` does with its options.

    Raises:
      ValueError: options that make no sense or are not safe, a package that is missing, no such model, a calibration that does
        not fit. OSError: it cannot listen there.
    """
    missing = [package for module, package in NEEDS.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise DataError(f"gsclip serve takes {', '.join(missing)}, not installed here; `pip install gsclip-jax[serve]`")
    check_good(args)
    for name in ("keep", "disk", "queue", "max_mib", "max_points", "max_seconds", "max_memory", "body_seconds"):
        if not getattr(args, name) > 0:
            raise DataError(f"--{name.replace('_', '-')} {getattr(args, name)}: has to be above 0")
    token, local = _token(args), is_loopback(args.host)
    if not local and token is None and not args.no_token:
        raise DataError(f"--host {args.host}: others can reach this; set a token ({TOKEN}, or --token-file), or say --no-token")
    good = scans_of(args.good) if args.good else []
    from gsclip_jax.inspection.batch import cores
    from gsclip_jax.service.app import make_app
    from gsclip_jax.service.jobs import Jobs
    from gsclip_jax.service.limits import Limits
    from gsclip_jax.service.metrics import Metrics
    from gsclip_jax.service.server import listening
    from gsclip_jax.service.server import serve as served

    limits = Limits(
        bytes=int(args.max_mib * 2**20), points=args.max_points, seconds=args.max_seconds, memory=int(args.max_memory * 2**30),
        queue=args.queue, body_seconds=args.body_seconds, keep=args.keep * 60, disk=int(args.disk * 2**30),
    )  # fmt: skip
    sock = listening(args.host, args.port)
    errors: list[BaseException] = []
    jobs = Jobs(functools.partial(_scorer, args, good), reading_of(args), limits, args.readers or max(1, cores() - 1), Metrics())

    def failed(error: BaseException) -> None:
        errors.append(error)
        app.state.server.should_exit = True

    app = make_app(jobs, token, local and token is None, failed)
    host = f"[{args.host}]" if ":" in args.host else args.host
    jobs.on_ready = lambda: say(f"ready: http://{host}:{sock.getsockname()[1]}")
    say(f"listening on {host}:{sock.getsockname()[1]}" + ("" if token or local else "; anybody who reaches it may send scans"))
    try:
        asyncio.run(served(app, jobs, sock, say))
    finally:
        jobs.remove()
    if errors:
        raise errors[0]
    say("stopped")
    return 0


def _scorer(args: argparse.Namespace, good: list[Path], folder: Path):
    from gsclip_jax.inspection.calibration import RATE, load_calibration
    from gsclip_jax.service.scoring import Scorer

    detector, reading, calibration = opened(args), reading_of(args), None
    if path := chosen_calibration(args, detector):
        calibration = load_calibration(path, detector.model.digest, reading.settings(), args.rate)
    elif good:
        rate = RATE if args.rate is None else args.rate
        calibration, _ = by_good(detector, reading, good, rate, 1, folder / "calibration.json")
    if calibration:
        say(calibration.told())
    return Scorer(detector, calibration)


def _token(args: argparse.Namespace) -> str | None:
    """The token, where there is one."""
    if args.token_file is None:
        token, where = os.environ.get(TOKEN), TOKEN
    else:
        token, where = args.token_file.read_text(encoding="utf-8").strip(), f"--token-file {args.token_file}"
    if token is None:
        return None
    if len(token) < SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise DataError(f"{where}: a token has at least {SHORTEST} letters, digits or signs and no space; make one with: "
                        "openssl rand -hex 32")  # fmt: skip
    return token


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    finish(main)
