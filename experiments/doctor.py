"""What this machine has for a run, and what is missing: devices, packages, weights with their hashes, data. One line each.

python -m experiments.doctor [--weights FILE ...] [--data NAME=ROOT ...]
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

from data_pipelines.command import command, guarded
from data_pipelines.datasets import AUXILIARY, open_reader
from data_pipelines.files import checksum
from experiments.summary import versions
from gsclip_jax.convert.files import KNOWN_FILES
from gsclip_jax.runtime.memory import free
from gsclip_jax.runtime.metric_writer import LOGGERS, missing


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 where something that was named is missing or is not what its name says."""
    parser = argparse.ArgumentParser(prog="python -m experiments.doctor", description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", nargs="*", default=[], type=Path, metavar="FILE", help="weights to look at")
    parser.add_argument("--data", nargs="*", default=[], metavar="NAME=ROOT", help=f"data sets: {', '.join(AUXILIARY)}")

    def work() -> int:
        given = parser.parse_args(arguments)
        for line in (*devices(), *packages()):
            print(line)
        wrong = 0
        for good, line in (*map(weights, given.weights), *map(data, given.data)):
            print(line)
            wrong += not good
        return 1 if wrong else 0

    return guarded(work)


def devices() -> Iterator[str]:
    import jax  # a wrong command line is said at once

    for device in jax.local_devices():
        left = free(device)
        yield f"device: {device.device_kind} ({device.platform})" + ("" if left is None else f", {left / 1e9:.1f} GB free")
    found = shutil.which("nvidia-smi")
    if found:
        asked = [found, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        yield f"driver: {' '.join(subprocess.run(asked, capture_output=True, text=True).stdout.split())}"
    if found and jax.default_backend() == "cpu":
        yield "driver: there is a GPU that JAX does not see; pip install 'gsclip-jax[cuda12]'"
    disk, memory = shutil.disk_usage(Path.cwd()).free / 1e9, psutil.virtual_memory().total / 1e9
    yield f"machine: {os.cpu_count()} cores, {memory:.1f} GB of memory, {disk:.1f} GB of disk free here"


def packages() -> Iterator[str]:
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in versions().items())
    if not importlib.util.find_spec("tensorflow"):
        yield "tensorflow: missing; scans can be scored, but nothing trained: pip install 'gsclip-jax[train]'"
    for name in LOGGERS:
        yield f"logger {name}: {missing(name) or 'installed'}"


def weights(path: Path) -> tuple[bool, str]:
    """Whether the file is there and, where its name is a published one, is what it says; and the line that says so."""
    if not path.exists():
        return False, f"weights {path}: missing; download them, or give another path (docs/running.md)"
    if path.is_dir():
        return True, f"weights {path}: a folder; python -m gsclip_jax.convert checks it"
    found, known = checksum(path), KNOWN_FILES.get(path.name)
    if known and known != found:
        return False, f"weights {path}: SHA-256 {found}, published {known}; download the file again"
    return True, f"weights {path}: SHA-256 {found}{', as published' if known else ''}"


def data(given: str) -> tuple[bool, str]:
    """The same for NAME=ROOT: categories and scans that a reader finds, and what the published protocol trains on."""
    name, _, root = given.partition("=")
    try:
        reader = open_reader(name, Path(root).expanduser())
        counts = {category: len(reader.samples(category)) for category in reader.categories()}
    except ValueError as error:
        return False, f"data {name}: {error}"
    lacking = [category for category in AUXILIARY.get(name, ()) if category not in counts]
    more = f"; missing of the published protocol: {', '.join(lacking)}" if lacking else ""
    return not lacking, f"data {name}: {sum(counts.values())} test scans of {len(counts)} categories under {root}{more}"


if __name__ == "__main__":
    sys.exit(command(main))
