"""Presets as they stand, compiled for TPU chips that are not here: seconds, memory of a chip, operations, collectives, as JSON.

    pip install 'libtpu==0.0.42.*'                                      # the compiler; no TPU is needed
    python benchmarks/tpu_aot.py --topology v5e:16x16 --config real3d
    python benchmarks/tpu_aot.py --topology v5e:2x2 --stage 2 --batch-per-chip 1 --config mvtec3d
    python benchmarks/tpu_aot.py --topology v6e:4x4 --config real3d --record      # also into benchmarks/tpu_aot.json
    python benchmarks/tpu_aot.py --table                                # all presets and topologies: what the JSON lacks
    python benchmarks/tpu_aot.py --write                                # the tables of benchmarks/tpu_aot.md, from the JSON

A stage is two programs: what is encoded once for each object, and a step. The plans of a program are compiled in the order in
which a run tries them, until one leaves a tenth of a chip's memory free: the row names the one taken and those that were too
large. A program that fits in no way is a row that says so (`fits` false). FLOPs are those of one call on all chips together,
counted from the program. Collectives are those in the program's text: one in a loop counts once; bytes are of their results on
one chip.

`--table` can be stopped at any time; the same command goes on. Rows are known by the program itself (a hash of its operations,
shapes and places, without the values of its constants), by JAX and by the compiler: a changed program is compiled again, one that
several presets share once.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import re
import sys
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RECORD, PAGE = ROOT / "benchmarks" / "tpu_aot.json", ROOT / "benchmarks" / "tpu_aot.md"
PRESETS = ("", "mvtec3d", "eyecandies", "real3d", "anomaly_shapenet")
PROGRAMS = {"1": ("features1", "stage1"), "2": ("features2", "stage2"), "predict": ("predict",)}
KEY = ("topology", "method", "program", "program_hash", "model", "batch", "jax", "libtpu")
TOPOLOGIES = ("v5e:2x2", "v5e:16x16", "v6e:4x4", "v5p:2x2x1")
ORDER = ("predict", "stage2", "stage1", "features1", "features2")
MARK = "<!-- rows -->"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--topology", help=f"{', '.join(TOPOLOGIES)}, ... (of --table: this one alone)")
    parser.add_argument("--config", default="", metavar="PRESET", help="real3d, ...; default: the embedded default")
    parser.add_argument("--method", default="", help="another method than the preset's (config.method)")
    parser.add_argument("--stage", choices=tuple(PROGRAMS), help="default: all three")
    parser.add_argument("--program", default="", help="one program alone: features1, stage1, features2, stage2, predict")
    parser.add_argument("--batch-per-chip", type=int, default=0, metavar="N", help="objects a chip (default: the preset's batch)")
    parser.add_argument("--model", type=int, default=1, metavar="N", help="config.mesh.model: chips that share widths")
    parser.add_argument("--remat", choices=("yes", "no"), help="default: what the memory asks for, as in a run")
    parser.add_argument("--record", action="store_true", help="put the rows into benchmarks/tpu_aot.json, instead of those alike")
    parser.add_argument("--table", action="store_true", help="every preset on every topology, into the JSON, without rows it has")
    parser.add_argument("--lock", type=Path, metavar="FILE", help="of --table: held while a row is compiled")
    parser.add_argument("--write", action="store_true", help="write the tables of benchmarks/tpu_aot.md and compile nothing")
    options = parser.parse_args()
    if not (options.topology or options.table or options.write):
        parser.error("name a --topology, or ask for the whole --table")
    return options


def programs_of(preset: str, options: argparse.Namespace, topology: str = ""):
    """The programs of a preset for the chips of a topology, on the mesh that a run makes of them; without one, nowhere."""
    from jax.sharding import AxisType, Mesh

    from experiments.configs import stage2
    from experiments.configs.common import with_method
    from experiments.programs import Programs
    from gsclip_jax.runtime import ahead

    config = stage2.get_config(preset or None)
    config = with_method(config, options.method) if options.method else config
    if options.remat:
        with config.clip.ignore_type():
            config.clip.remat = options.remat == "yes"
    if not topology:
        return Programs(config)
    chips = ahead.topology(topology)
    mesh = Mesh(chips.reshape(-1, 1, options.model), ("data", "view", "model"), axis_types=(AxisType.Auto,) * 3)
    return Programs(config, mesh)


def content(programs, name: str, batch_size: int = 0) -> str:
    """Hash of a program: its operations, shapes and places. A learning rate is no other program."""
    import jax

    program = programs.program(name, batch_size)
    places = [str(leaf.sharding and leaf.sharding.spec) for leaf in jax.tree.leaves(program.arguments)]
    text = re.sub(r"0x[0-9a-f]+", "", str(jax.make_jaxpr(program.run)(*program.arguments)))
    text = re.sub(r"-?\d+\.\d+(e[-+]?\d+)?", "#", text)
    found = hashlib.sha256(json.dumps([text, places, programs.auto, programs.config.clip.remat]).encode())
    return found.hexdigest()[:16]


def about(programs, name: str, presets: list[str], topology: str, batch_size: int = 0) -> dict:
    """What a row is known by."""
    import jax

    program, mesh = programs.program(name, batch_size), programs.mesh
    return {
        "topology": topology, "device": mesh.devices.flat[0].device_kind, "chips": mesh.devices.size, "presets": presets,
        "method": programs.config.method, "model": mesh.shape["model"], "program": name,
        "program_hash": content(programs, name, batch_size), "batch": program.counted, "rows": program.rows,
        "jax": jax.__version__, "libtpu": importlib.metadata.version("libtpu"),
    }  # fmt: skip


def measured(programs, name: str, batch_size: int = 0) -> dict:
    """The compiler's account of a program, by the first plan that a chip has the memory for."""
    import jax

    from gsclip_jax.runtime import ahead, devices, memory

    chip = devices.chip_of(programs.mesh.devices.flat[0].device_kind)
    there = chip and int(chip.memory) - programs.program(name, batch_size).placed()
    done, refused = [], []

    def compiled(plan) -> jax.stages.Compiled:
        began = time.monotonic(), time.process_time()
        try:
            found = programs.program(name, batch_size, plan).lower().compile()
        except jax.errors.JaxRuntimeError as error:
            refused.append({"plan": str(plan), "said": str(error).splitlines()[0][:300]})
            raise
        took = time.monotonic() - began[0], time.process_time() - began[1]
        done.append((plan, ahead.Compiled(*took, memory.used(found), "", ahead.collectives(found.as_text()))))
        return found

    try:
        taken = memory.choose(name, programs.plans(name, batch_size), compiled, programs.mesh, there).plan
    except memory.DoesNotFit as error:
        return {"fits": False, "refused": str(error), "too_large": refused}
    (last,) = (found for plan, found in done if plan == taken)
    large = [{"plan": str(plan), "gb_a_device": round(found.use.all / memory.GB, 3)} for plan, found in done if plan != taken]
    flops = programs.program(name, batch_size, taken).flops().products
    return {"plan": str(taken), "too_large": refused + large, "flops": flops, **last.row()}


def record(row: dict) -> None:
    """Puts the row into benchmarks/tpu_aot.json, in place of those of the same program in an earlier version."""
    from data_pipelines.files import locked, write_json

    same = ("topology", "method", "program", "model", "batch")

    def replaced(old: dict) -> bool:
        return all(old.get(key) == row[key] for key in same) and bool(set(old["presets"]) & set(row["presets"]))

    with locked(RECORD.with_suffix(".lock")):
        rows = [old for old in recorded() if not replaced(old)] + [row]
        write_json(RECORD, sorted(rows, key=lambda one: [str(one[key]) for key in ("presets", *same)]))


def recorded() -> list[dict]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else []


def alike(options: argparse.Namespace, name: str) -> list[list[str]]:
    """The presets that have the program `name`, those of the same one together, the paper's first."""
    groups: dict[str, list[str]] = {}
    for preset in sorted(PRESETS, reverse=True):
        programs = programs_of(preset, options)
        if name in programs.names:
            groups.setdefault(content(programs, name), []).append(preset)
    return sorted(groups.values(), key=lambda group: "" in group)


def table(options: argparse.Namespace) -> int:
    """Compiles the rows that the JSON lacks, one at a time: steps and predictions first."""
    from data_pipelines.files import locked

    groups = {name: alike(options, name) for name in ORDER}
    topologies = [options.topology] if options.topology else TOPOLOGIES
    wanted = [(topology, group, name) for names in (ORDER[:3], ORDER[3:]) for of in (0, 1) for topology in topologies
              for name in names for group in groups[name] if ("" in group) == of]  # fmt: skip
    for number, (topology, group, name) in enumerate(wanted, 1):
        programs = programs_of(group[0], options, topology)
        row = about(programs, name, [preset or "embedded" for preset in group], topology)
        there = any(all(old.get(key) == row[key] for key in KEY) for old in recorded())
        what = f"{number} of {len(wanted)}: {topology} {name} of {', '.join(row['presets'])}"
        print(f"{what}: {'there' if there else 'compiling'}", file=sys.stderr, flush=True)
        if not there:
            with locked(options.lock) if options.lock else nullcontext():
                record(row | measured(programs, name))
    return 0


def main() -> int:
    options = arguments()
    if options.write:
        PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n\n" + tables() + "\n")
        return 0
    from gsclip_jax.runtime import ahead  # before any device is asked for

    os.environ |= ahead.WITHOUT_TPU
    if options.table:
        return table(options)
    programs = programs_of(options.config, options, options.topology)
    stages = [options.stage] if options.stage else list(PROGRAMS)
    asked = [options.program] if options.program else [name for stage in stages for name in PROGRAMS[stage]]
    rows = []
    for name in [name for name in programs.names if name in asked]:
        size = options.batch_per_chip * programs.mesh.shape["data"]
        row = about(programs, name, [options.config or "embedded"], options.topology, size)
        rows.append(row | measured(programs, name, size))
        fits = f"fits, {rows[-1]['compile_seconds']:.0f} s" if rows[-1]["fits"] else "does not fit"
        print(f"{name}: {fits}", file=sys.stderr, flush=True)
        if options.record:
            record(rows[-1])
    print(json.dumps(rows, indent=1))
    return 0


def tables() -> str:
    """The rows of the JSON as Markdown, a table for the presets of the same programs."""
    lines = []
    for presets in dict.fromkeys(tuple(row["presets"]) for row in recorded()):
        rows = [row for row in recorded() if tuple(row["presets"]) == presets]
        rows.sort(key=lambda row: (TOPOLOGIES.index(row["topology"]), ORDER.index(row["program"])))
        lines += [f"### {', '.join(presets)}", "", "| chips | program | objects a call | fits | GB a chip | plan | collectives | "
                  "compiling |", "|---|---|---|---|---|---|---|---|", *map(_line, rows), ""]  # fmt: skip
    return "\n".join(lines).rstrip()


def _line(row: dict) -> str:
    objects = f"{row['batch']}" + (f", filled up to {row['rows']}" if row["rows"] > row["batch"] else "")
    sizes = [(one["plan"], f"{one['gb_a_device']:.2f} GB" if "gb_a_device" in one else "refused") for one in row["too_large"]]
    tried = "".join(f"; too large: {plan} ({size})" for plan, size in sizes)
    if not row["fits"]:
        return f"| {row['topology']} | {row['program']} | {objects} | **no** | | {tried.removeprefix('; ')} | | |"
    made = row["collectives"]  # None: by a version that missed those of many arrays
    kinds = [f"{value['count']} {kind} ({value['bytes'] / 1e6:.3g} MB)" for kind, value in (made or {}).items()]
    shown = "not known" if made is None else ", ".join(kinds) or "none"
    gb, took = f"{row['gb_a_device']['all']:.2f}", f"{row['compile_cpu_seconds']:.0f} s of CPU"
    return (f"| {row['topology']} | {row['program']} | {objects} | yes | {gb} | {row['plan']}{tried} | "
            f"{shown} | {took} |")  # fmt: skip


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
