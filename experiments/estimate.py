"""What a run would cost, told before anything is rendered or trained: objects, operations, bytes, memory, disk, hours.

python -m experiments.run --config stage2.py[:preset] --estimate

Operations are counted from the programs of the configuration (`programs.py`), by their shapes: no weights are needed, and nothing
is written. Hours here follow from rates that are measured for a few seconds, hours elsewhere from published peak rates.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from data_pipelines import storage
from data_pipelines.scan import DataError
from experiments import checks, identity, protocol
from experiments.compared import compared_with
from experiments.data import target, wants_rgb
from experiments.estimated_page import memory_line, text
from experiments.planned import Scans, scans_of
from experiments.programs import Programs, batch_shapes, bytes_of
from experiments.rates import Rates, Rendered, rates, rendering
from gsclip_jax.methods import METHODS
from gsclip_jax.parts import ConfigError
from gsclip_jax.runtime import memory
from gsclip_jax.runtime.devices import MACHINES, Chip, Machine
from gsclip_jax.runtime.flops import Flops, flops
from gsclip_jax.runtime.sharding import make_mesh
from gsclip_jax.training.train import partition

HERE = 0.6  # share of the measured product rate that whole programs are taken to reach on this machine
PEAK = 0.4  # share of a published peak rate
READ = 0.6e9  # bytes of batches that one process reads and decodes a second (35 objects of 17 MB: benchmarks/input.json)
SCORES = 10  # bytes of a scored point on disk: score, region, two flags


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a run, on the devices.

    Fields:
      objects: that go through it, every epoch counted.
      batch: objects computed together; 0: any number.
      flops: of all of them.
      bytes: that are read as batches and written.
    """

    name: str
    objects: int
    batch: int
    flops: Flops
    bytes: int

    def __add__(self, more: Phase) -> Phase:
        return dataclasses.replace(self, objects=self.objects + more.objects, flops=self.flops + more.flops,
                                   bytes=self.bytes + more.bytes)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Work:
    """What one training and its evaluation ask for: its phases, bytes of its stored features, of its checkpoints and scores."""

    phases: tuple[Phase, ...]
    features: int
    kept: int


def show(config: ConfigDict, workdir: Path, how: Collection[str] = ()) -> None:
    """Prints the estimate of a configuration: a table, and below it the memory of one program after another, as each is compiled.

    Args:
      how: `command_line.ESTIMATES`: "json" (all at the end), "quick" (nothing is compiled).

    Raises: as `estimate`.
    """
    found = estimate(config, workdir)
    plans = iter(()) if "quick" in how else memory_plans(config)
    if "json" in how:
        return print(json.dumps(found | {"memory": list(plans)}, indent=1))
    print(text(found), flush=True)
    if "quick" not in how:
        print("\nmemory, by compiling for the devices that are here (--estimate=quick: without):", flush=True)
    for row in plans:
        print(memory_line(row), flush=True)
    return None


def estimate(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """The cost of all that a configuration asks for, from nothing; what is done already is not taken off.

    Returns:
      What `--estimate=json` prints, without the memory; operations, bytes and seconds.

    Raises:
      ConfigError, DataError, WeightsError: one line each.
    """
    if config.task == "pretrain":
        raise ConfigError("--estimate is of runs that evaluate a method; docs/running.md says how long a pretraining takes")
    checks.check_values(config)
    runs = list(_runs(config, workdir))
    made: dict[Any, Scans] = {}
    works, seen, trained = [], {}, {}
    for name, one in runs:
        own = scans_of(one)
        tested = scans_of(target(one)) if one.target.name else own
        trains = METHODS[one.method].trains and one.task != "eval"
        if trains and not own.train:
            raise ConfigError(f"config.data.train_category is {one.data.train_category!r}, of which there is no scan to train on")
        for scans in ([own] if trains or not one.target.name else []) + ([tested] if one.task != "stage1" else []):
            made[scans.content] = scans
        if trains:
            trained.setdefault(own.content, []).extend([own.train] * (not name))
        count = 0 if one.task == "stage1" else tested.total - (0 if one.target.name else tested.train)
        say(f"counting the operations of {name or one.method}")
        works.append((name, work(one, own.train if trains else 0, count, seen)))
    records = list(made.values())
    say("measuring this machine")
    devices = jax.devices()
    speed = rates(half=any(phase.flops.half for _, each in works for phase in each.phases))
    record, why_not = _record(records[0], config)
    phases = _joined(("methods compared with" if name else phase.name, phase) for name, each in works for phase in each.phases)
    views = batch_shapes(config, 1)["render"].shape[1]
    cores = min(config.workers or os.cpu_count(), os.cpu_count())
    here = Machine("this machine", _chip(speed, len(devices)), len(devices), cores, 1)
    machines = {one.name: _machine(one, phases, views, records, record) for one in (here, *MACHINES)}
    return {
        "config": {"preset": config.preset, "task": config.task, "method": config.method, "variant": config.variant,
                   "runs": sum(not name for name, _ in runs), "compared": [name for name, _ in runs if name]},
        "objects": [{"records": one.total, "categories": one.categories, "train": trained.get(one.content, []),
                     "counted": one.said} for one in records],
        "record": {"seconds_a_core": record and record.seconds, "bytes": record and record.bytes,
                   "made_of": record.scan if record else f"not measured: {why_not}"},
        "phases": [_row(phase) for phase in phases],
        "disk": {"records": record and record.bytes * sum(one.total for one in records),
                 "features": sum(each.features for _, each in works),
                 "checkpoints_and_scores": sum(each.kept for _, each in works)},
        "machines": machines,
        "rates_here": {"bfloat16_products": speed.half, "float32_products": speed.single, "elementwise": speed.other,
                       "devices": f"{len(devices)} x {devices[0].device_kind}", "share": HERE, "share_of_peaks": PEAK,
                       "load": os.getloadavg()[0]},
        "notes": _notes(config, phases),
    }  # fmt: skip


def say(line: str) -> None:
    print(f"estimate: {line}", file=sys.stderr, flush=True)


def _runs(config: ConfigDict, workdir: Path) -> Iterator[tuple[str, ConfigDict]]:
    """Every training of a configuration: ("", itself), or those of a protocol; and (name, ...) of the methods put beside it."""
    for one, folder in protocol.rows(config, workdir) if config.task == "protocol" else [(config, workdir)]:
        yield "", one
        if config.task != "protocol":
            yield from ((name, other) for name, (other, _) in compared_with(one, folder).items())


def work(config: ConfigDict, train: int, tested: int, seen: dict[str, Flops] | None = None) -> Work:
    """The phases of one method, trained on `train` objects and evaluated on `tested`.

    Args:
      seen: what was counted already, of other runs too: the programs of a protocol's runs are the same.
    """
    programs, seen = Programs(config), {} if seen is None else seen
    values = identity.flat(config)
    about = json.dumps({key: values[key] for key in values if key != "data.train_category"}, sort_keys=True)

    def counted(name: str, function: Callable, arguments: tuple) -> Flops:
        key = f"{name} {about}"
        if key not in seen:
            seen[key] = flops(function, *arguments)
        return seen[key]

    each = bytes_of(batch_shapes(config, 1))
    phases, stored, kept, widest = [], {}, 0, 0
    for stage in programs.method.stages if train else ():
        if config.task == "stage1" != stage.name:
            continue
        program = programs.program(f"features{stage.name[-1]}")
        new = _new(program, stored)
        if new:
            fresh = lambda *given, new=new, run=program.run: {name: run(*given)[name] for name in new}  # noqa: E731
            count = counted(program.name, fresh, program.arguments)
            written = bytes_of(new) // program.rows
            phases.append(Phase(f"encode for {stage.name}", train, stage.batch_size, _times(count, train, program.rows),
                                train * (each + written)))  # fmt: skip
            stored |= new
            kept += train * written
        step = programs.program(stage.name)
        steps = stage.epochs * math.ceil(train / stage.batch_size)
        read = bytes_of(step.arguments[2]) // step.rows
        passes = steps * stage.batch_size
        count = counted(step.name, step.run, step.arguments) * steps
        phases.append(Phase(stage.name, passes, stage.batch_size, count, passes * read))
        widest = max(widest, bytes_of(partition(programs.params, stage)[0]))
    scores = SCORES * config.data.points
    if tested:
        program = programs.program("predict")
        count = _times(counted(program.name, program.run, program.arguments), tested, program.rows)
        phases.append(Phase("evaluation", tested, 0, count, tested * (each + scores)))
    return Work(tuple(phases), kept, 10 * widest + tested * scores)  # parameters, two moments, three checkpoints, the model


def _joined(named: Iterable[tuple[str, Phase]]) -> list[Phase]:
    """One phase of each name: the runs of a protocol together, and all that is compared."""
    found: dict[str, Phase] = {}
    for name, phase in named:
        found[name] = found[name] + phase if name in found else dataclasses.replace(phase, name=name)
    return list(found.values())


def _new(program, stored: dict) -> dict:
    """What a stage encodes that no stage before it has stored."""
    made = jax.eval_shape(program.run, *program.arguments)
    return {name: shape for name, shape in made.items() if name not in stored or stored[name] != shape}


def _times(count: Flops, objects: int, rows: int) -> Flops:
    """Of so many objects, by the count of a call with `rows`."""
    return Flops(count.products * objects // rows, count.other * objects // rows, count.open_loops, count.half * objects // rows)


def _record(scans: Scans, config: ConfigDict) -> tuple[Rendered | None, str]:
    """What one record costs here; or why that could not be tried."""
    say("making one record in memory")
    try:
        scan, category, seconds = scans.one()
        found = rendering(scans.recipe, scan, category, scans.what)
        return dataclasses.replace(found, seconds=found.seconds + seconds), ""
    except (DataError, OSError) as error:
        return None, str(error)


# ---- hours


def _chip(speed: Rates, count: int) -> Chip:
    """One device of this machine, by the measured rates of all of them."""
    return Chip("", speed.half / count, speed.single / count, speed.other / count, 0, "measured")


def _machine(machine: Machine, phases: list[Phase], views: int, records: list[Scans], record: Rendered | None) -> dict[str, Any]:
    share = HERE if machine.chip.source == "measured" else PEAK
    found: dict[str, float | None] = {}
    found["records"] = record and record.seconds * sum(one.total for one in records) / machine.cores
    view = 1
    for phase in phases:
        together, split = busy(machine.chips, phase.batch, views) if phase.batch else (machine.chips, 1)
        view = max(view, split)
        count = phase.flops
        products = count.half / machine.chip.half + (count.products - count.half) / machine.chip.single
        seconds = (products / share + count.other / machine.chip.bandwidth) / together
        found[phase.name] = max(seconds, phase.bytes / READ / machine.hosts)
    on_chips = sum(found[phase.name] for phase in phases)
    return {"seconds": found, "total": on_chips + (found["records"] or 0), "chip_hours": on_chips * machine.chips / 3600,
            "chips": machine.chips, "cores": machine.cores, "mesh_view": view, "source": machine.chip.source}  # fmt: skip


def busy(chips: int, batch: int, views: int) -> tuple[float, int]:
    """(how many times as fast as one chip, `mesh.view`) of a batch's encoding, by the mesh that keeps most chips at work."""
    best = (0.0, 1)
    for view in (view for view in range(1, min(chips, views) + 1) if chips % view == 0):
        images = math.ceil(batch * views / chips) if view > 1 else math.ceil(batch / chips) * views
        best = max(best, (batch * views / images, -view))
    return best[0], abs(best[1])


# ---- memory


def memory_plans(config: ConfigDict) -> Iterator[dict[str, Any]]:
    """For every program of a configuration, the plan that a run takes on the devices that are here, by compiling it for them."""
    one = protocol.rows(config, Path("."))[0][0] if config.task == "protocol" else config
    mesh = make_mesh(one.mesh.data, one.mesh.model, one.mesh.view)
    programs = Programs(one, mesh)
    for name in programs.names:
        if one.task == "eval" and name != "predict" or one.task == "stage1" and name not in ("features1", "stage1"):
            continue
        say(f"compiling {name}")
        began = time.monotonic()
        free = memory.least_free(mesh)
        there = None if free is None else max(0, free - programs.program(name).placed())

        def compiled(plan, name: str = name) -> jax.stages.Compiled:
            return programs.program(name, 0, plan).lower().compile()

        try:
            choice = memory.choose(name, programs.plans(name), compiled, mesh, there)
        except memory.DoesNotFit as error:
            yield {"program": name, "fits": False, "plan": str(error), "seconds": time.monotonic() - began}
            continue
        use = choice.use
        yield {"program": name, "fits": True, "plan": str(choice.plan), "arguments": use.arguments, "more": use.more,
               "free": free, "devices": mesh.devices.size, "seconds": time.monotonic() - began}  # fmt: skip


# ---- what is said


def _row(phase: Phase) -> dict[str, Any]:
    return {"phase": phase.name, "objects": phase.objects, "products": phase.flops.products, "bfloat16": phase.flops.half,
            "other": phase.flops.other, "bytes": phase.bytes, "batch": phase.batch}  # fmt: skip


def _notes(config: ConfigDict, phases: list[Phase]) -> list[str]:
    notes = []
    if any(phase.flops.open_loops for phase in phases):
        notes.append("a loop has no number of turns that could be counted: its body counts once")
    if config.preset and str(config.clip.remat) == "auto":
        notes.append("training steps are counted with each block computed again, as a chip of 16 GB needs it: with more memory a "
                     "quarter less")  # fmt: skip
    if wants_rgb(config):
        notes.append("scores of colour pictures (config.eval.rgb) are not counted")
    if storage.store_of(storage.opened(config.cache)):
        notes.append("transfers to and from the object store are not counted")
    return notes
