"""Runs a grid of configurations, each with several seeds: here, in parallel, or through SLURM.

python -m experiments.sweep --config sweeps/modules.py[:preset] [--workdir DIR] [--config.section.key=value ...]
    [--seeds 0,1,2] [--jobs N] [--row I] [--list] [--slurm key=value,...] [--pod [--chips-per-row C] [--worker I]]

Runs the rows of a grid, each with every seed, in DIR/ROW-sSEED. What is complete is not run again, what was interrupted
continues. A failed row is reported at the end and runs again with the same command. `--row I` runs a single one (another
machine, a SLURM array task); `--slurm partition=gpu,timeout_min=240` submits all of them as an array through submitit; with
`nodes` or `tasks_per_node` the tasks of a row are one run. `--pod`, started on any number of machines that share DIR, shares the
rows among them.

A sweep file has `get_config(preset)`, the configuration common to all rows, and `rows(config)`: name -> {key: value} to change
in it (`config` has the seed already, for rows that do not depend on it).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.command import command, guarded
from data_pipelines.progress import span
from data_pipelines.scan import did_you_mean
from experiments import pod
from experiments.checks import Seen, check_all
from experiments.command_line import find_config, load_config, set_keys
from experiments.configs.common import set_method
from experiments.grid import LOG, Row, bring, last_words, line, note_order
from experiments.run import set_devices, whole_run
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime import distributed

SEEDS = (0, 1, 2)


def expand(name: str, changes: list[tuple[str, str]], seeds: list[int] | None, workdir: Path | None) -> list[Row]:
    """All runs of the sweep file `name` (`file.py[:preset]`), seed by seed.

    Args:
      changes: keys and values of the command line, for every row; a row's own values come after them.
      seeds: None for those of the embedded default (SEEDS), or the preset's own one.

    Raises:
      ConfigError: no such file, preset or key, a file without rows, two seeds alike.
    """

    base, module = load_config(name), _module(name)
    if not hasattr(module, "rows"):
        raise ConfigError(f"{name} is no sweep: it has no rows(config); run it with experiments.run, or see configs/sweeps/")
    set_keys(base, changes)
    if seeds is None:
        seeds = [base.seed] if base.preset else list(SEEDS)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {','.join(map(str, seeds))}: name each once, one at least")
    stem = name.partition(":")[0].removesuffix(".py").rpartition("/")[2]
    across = f"-on-{base.target.name}" if base.target.name != load_config(name).target.name else ""
    folder = workdir or Path("runs") / f"sweep-{stem}{'-' + base.preset if base.preset else ''}{across}"
    found = []
    for seed in seeds:
        base.seed, base.compare = seed, ()
        for row, values in module.rows(base).items():
            config = base.copy_and_resolve_references()
            apply(config, values)
            found.append(Row(len(found), row, config, folder / f"{row}-s{seed}"))
    return found


def _module(name: str):

    path = find_config(name.partition(":")[0])
    spec = importlib.util.spec_from_file_location(f"gsclip_sweep_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def apply(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """config.a.b = value for every "a.b" of a row.

    Raises:
      ConfigError: no such key (with the nearest).
    """

    if "method" in values:
        set_method(config, values["method"])
    for key, value in values.items():
        *path, last = key.split(".")
        place = config
        for part in path:
            place = place.get(part) if hasattr(place, "get") else None
        if not hasattr(place, "keys") or (last not in place and len(place)):
            known = place.keys() if hasattr(place, "keys") else config.keys()
            hint = did_you_mean(last, known)
            raise ConfigError(f"the sweep changes config.{key}, which is no key{hint} Known: {', '.join(known)}")
        with place.unlocked(), place.ignore_type():
            place[last] = value


def run_row(row: Row, own_process: bool = False) -> int:
    """Runs one row in this process. Returns its exit status. `own_process`: as in `run.whole_run`; tasks of a job are one run."""
    return guarded(lambda: whole_run(row.config, row.workdir, own_process))


def refusals(rows: list[Row], devices: bool) -> dict[int, str]:
    """number -> why, of the rows that cannot run, before any of them does. Arguments: as `checks.check_before`."""
    found, seen = {}, Seen()
    for row in rows:
        if row.results() is None:
            try:
                check_all(row.config, row.workdir, seen, devices)
            except (ValueError, OSError) as error:
                found[row.number] = " ".join(str(error).split())
    return found


def refused(rows: list[Row], command: list[str], where: str, environment: Mapping[str, str] = os.environ) -> list[Row]:
    """The rows that cannot run, each told in a line; found in a process that ends, as this one leaves the devices to the rows.

    Args:
      where: "here", or "elsewhere" for rows that will have other devices.

    Raises:
      ConfigError: the check itself failed.
    """

    done = subprocess.run([*command, "--check", where], capture_output=True, text=True, env=environment)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()] or ["no word"]
        raise ConfigError(f"the rows could not be checked: {words[-1].removeprefix('error: ')}")
    why = {int(number): text for number, text in json.loads(done.stdout.splitlines()[-1]).items()}
    for row in rows:
        if row.number in why:
            print(f"{row.label}: REFUSED before anything ran: {why[row.number]}", flush=True)
    return [row for row in rows if row.number in why]


def run_rows(rows: list[Row], command: list[str], jobs: int) -> list[Row]:
    """Runs what is missing in processes of its own, `jobs` at a time; a line for each. Returns those that failed."""
    left = [row for row in rows if row.results() is None]
    for row in rows:
        if row not in left:
            print(line(row) + "  (was there)", flush=True)
    began, failed = time.monotonic(), []

    def one(row: Row) -> tuple[Row, int, float]:
        start = time.monotonic()
        row.workdir.mkdir(parents=True, exist_ok=True)
        with (row.workdir / LOG).open("ab") as log:
            child = subprocess.Popen([*command, "--row", str(row.number)], stdout=log, stderr=subprocess.STDOUT)
            children.append(child)
            return row, child.wait(), time.monotonic() - start

    children: list[subprocess.Popen] = []
    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(one, row) for row in left]
        for done, future in enumerate(as_completed(futures), 1):
            row, status, seconds = future.result()
            remaining = (time.monotonic() - began) / done * (len(left) - done)
            note = f", {span(remaining)} left" if done < len(left) else ""
            if status or row.results() is None:
                failed.append(row)
                print(f"[{done}/{len(left)}{note}] {row.label}: FAILED, status {status}: {last_words(row)}", flush=True)
            else:
                print(f"[{done}/{len(left)}{note}] {line(row, seconds)}", flush=True)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in children:
            child.terminate()  # they keep their checkpoints
        raise
    finally:
        pool.shutdown(wait=True)
    return failed


def submit(rows: list[Row], command: list[str], options: dict[str, Any], folder: Path) -> list[str]:
    """Submits the rows that are not complete as one array of jobs; returns their ids.

    Raises:
      ConfigError: submitit is not installed, or does not know an option.
    """

    try:
        import submitit
    except ImportError:
        raise ConfigError("--slurm needs submitit: pip install -r requirements-slurm.txt") from None
    cluster = options.pop("cluster", "slurm")
    executor = submitit.AutoExecutor(folder=str(folder / "slurm"), cluster=cluster)
    try:
        executor.update_parameters(name=folder.name, **{k if k in _COMMON else f"slurm_{k}": v for k, v in options.items()})
    except (NameError, ValueError, TypeError, AssertionError) as error:  # how submitit refuses
        raise ConfigError(f"--slurm: {error}") from None
    left = [row for row in rows if row.results() is None]
    jobs = executor.map_array(subprocess.check_call, [[*command, "--row", str(row.number)] for row in left])
    return [job.job_id for job in jobs]


_COMMON = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node")  # submitit's own names


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 when every row asked for is complete."""
    given = sys.argv[1:] if arguments is None else arguments
    return distributed.program(lambda: guarded(lambda: _main(given, own_process=arguments is None)))


def _main(arguments: list[str], own_process: bool) -> int:

    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__.split("\n\n")[2],
                                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("--config", required=True, metavar="FILE[:PRESET]", help="a file of configs/sweeps, or your own")
    parser.add_argument("--workdir", metavar="DIR", help="default: runs/sweep-NAME")
    parser.add_argument("--seeds", metavar="A,B", help="default 0,1,2; with a preset, its own seed")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="rows at the same time on this machine (default 1)")
    parser.add_argument("--row", type=int, metavar="I", help="run this row alone, here")
    parser.add_argument("--pod", action="store_true", help="share the rows with whoever runs this command too, here or elsewhere")
    parser.add_argument("--chips-per-row", type=int, metavar="C", help="of --pod: rows side by side on this machine, with C "
                        "chips each (TPU chips, GPUs; on a CPU virtual devices)")  # fmt: skip
    parser.add_argument("--worker", type=int, metavar="I", help="of --pod: with which row it begins (default: by the cluster)")
    parser.add_argument("--leased", metavar="SIGN", help="of --row, for --pod's own use: hold the row's lease meanwhile")
    parser.add_argument("--check", choices=("here", "elsewhere"), help="say which rows cannot run, as JSON")
    parser.add_argument("--list", action="store_true", help="print the rows and what is there of them")
    parser.add_argument("--slurm", metavar="KEY=VALUE,...", help="submit an array through submitit with these parameters")
    options, rest = parser.parse_known_args(arguments)
    changes = []
    for word in rest:
        key, equals, value = word.partition("=")
        if not key.startswith("--config.") or not equals:
            raise ConfigError(f"unknown option {word!r}; --help lists them all, values are given as --config.key=value")
        changes.append((key.removeprefix("--config."), value))
    try:
        seeds = [int(word) for word in options.seeds.split(",")] if options.seeds is not None else None
    except ValueError:
        raise ConfigError(f"--seeds {options.seeds!r}: whole numbers with commas between") from None
    workdir = storage.opened(options.workdir) if options.workdir else None
    rows = expand(options.config, changes, seeds, workdir)
    for name in ("chips_per_row", "worker"):
        if getattr(options, name) is not None and not options.pod:
            raise ConfigError(f"--{name.replace('_', '-')} goes with --pod")
    if options.pod and (options.slurm is not None or options.row is not None):
        raise ConfigError("--pod starts rows itself; give it without --slurm and --row")
    if options.jobs < 1:
        raise ConfigError(f"--jobs {options.jobs}: one at least")
    if options.row is not None and not 0 <= options.row < len(rows):
        raise ConfigError(f"--row {options.row}: the sweep has rows 0 to {len(rows) - 1}")
    if options.row is None and not options.check and not options.pod:  # a worker looks for itself at what others left
        bring(rows)
    if options.list:
        for row in rows:
            print(f"{row.number:3}  {line(row) if row.results() else row.label + ': missing'}")
        return 0
    if options.check:
        if own_process:  # JAX has not started yet
            set_devices(rows[0].config)
        print(json.dumps(refusals(rows, options.check == "here")))
        return 0
    note_order(rows)
    if options.row is not None and options.leased is not None:
        return pod.run_leased(rows[options.row], options.leased, partial(run_row, own_process=own_process))
    if options.row is not None:
        return run_row(rows[options.row], own_process)
    folder = rows[0].workdir.parent
    own = _without(arguments, ("--jobs", "--slurm", "--chips-per-row", "--worker"), ("--pod",))
    command = [sys.executable, "-m", "experiments.sweep", *own]
    parameters = None if options.slurm is None else _options(options.slurm)
    places = pod.shares(options.chips_per_row, options.jobs) if options.pod else [pod.Share()]
    check = [*command, *places[0].keys]
    failed = refused(rows, check, "here" if parameters is None else "elsewhere", {**os.environ, **places[0].environment})
    able = [row for row in rows if row not in failed]
    if parameters is not None:
        ids = submit(able, command, parameters, folder)
        print(f"submitted {len(ids)} jobs: {', '.join(ids)}" if ids else "every row is complete" if able else "no row can run")
        return 1 if failed else 0
    if options.pod:
        failed += pod.Worker(able, command, places, pod.worker_number(options.worker)).run() if able else []
    else:
        failed += run_rows(able, command, options.jobs)
    if failed:
        names = ", ".join(row.label for row in failed)
        text = f"{len(failed)} of {len(rows)} rows failed: {names}; logs: {folder}/ROW/{LOG}; the same command runs them again"
        print(storage.named(text), file=sys.stderr)
        return 1
    print(storage.named(f"all {len(rows)} rows are complete: python -m experiments.tables {folder}"))
    return 0


def _without(arguments: list[str], names: tuple[str, ...], flags: tuple[str, ...] = ()) -> list[str]:
    """The command line without the options `names` and their values, and without `flags`, which have none."""
    kept, skip = [], False
    for word in arguments:
        if word in flags:
            continue
        if skip:
            skip = False
        elif word in names:
            skip = True
        elif not word.startswith(tuple(f"{name}=" for name in names)):
            kept.append(word)
    return kept


def _options(text: str) -> dict[str, Any]:

    found: dict[str, Any] = {}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--slurm {word!r} is not of the form key=value")
        found[key] = int(value) if value.isdigit() else value
    return found


if __name__ == "__main__":
    sys.exit(command(main))
