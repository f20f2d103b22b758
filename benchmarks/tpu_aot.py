"""Presets as they stand, compiled for TPU chips that are not here: seconds, memory of a chip, operations, collectives, as JSON.

    pip install 'libtpu==0.0.42.*'                                      # the compiler; no TPU is needed
    python benchmarks/tpu_aot.py --topology v5e:16x16 --config real3d
    python benchmarks/tpu_aot.py --topology v5e:2x2 --stage 2 --batch-per-chip 1 --config mvtec3d
    python benchmarks/tpu_aot.py --topology v6e:4x4 --config real3d --record      # also into benchmarks/tpu_aot.json

A stage is two programs: what is encoded once for each object, and a step. A program that does not fit a chip is a row that says
so (`fits` false, with the compiler's words). FLOPs are those of one call on all chips together, counted from the program.
Collectives are those in the program's text: one in a loop counts once; bytes are of their results on one chip.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RECORD = ROOT / "benchmarks" / "tpu_aot.json"
PROGRAMS = {"1": ("features1", "stage1"), "2": ("features2", "stage2"), "predict": ("predict",)}
KEY = ("topology", "preset", "method", "program", "model", "batch", "remat")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--topology", required=True, help="v5e:2x2, v5e:16x16, v6e:4x4, v5p:2x2x1, ...")
    parser.add_argument("--config", default="", metavar="PRESET", help="real3d, ...; default: the embedded default")
    parser.add_argument("--method", default="", help="another method than the preset's (config.method)")
    parser.add_argument("--stage", choices=tuple(PROGRAMS), help="default: all three")
    parser.add_argument("--program", default="", help="one program alone: features1, stage1, features2, stage2, predict")
    parser.add_argument("--batch-per-chip", type=int, default=0, metavar="N", help="objects a chip (default: the preset's batch)")
    parser.add_argument("--model", type=int, default=1, metavar="N", help="config.mesh.model: chips that share widths")
    parser.add_argument("--remat", choices=("yes", "no"), help="default: yes for presets, no for the embedded default")
    parser.add_argument("--record", action="store_true", help="put the rows into benchmarks/tpu_aot.json, instead of those alike")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    from gsclip_jax.runtime import ahead  # before any device is asked for

    os.environ |= ahead.WITHOUT_TPU
    import jax
    from jax.sharding import AxisType, Mesh

    from experiments.configs import stage2
    from experiments.configs.common import with_method
    from experiments.programs import Programs

    config = stage2.get_config(options.config or None)
    config = with_method(config, options.method) if options.method else config
    if options.remat:
        with config.clip.ignore_type():
            config.clip.remat = options.remat == "yes"
    chips = ahead.topology(options.topology)
    mesh = Mesh(chips.reshape(-1, options.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    programs = Programs(config, mesh)
    stages = [options.stage] if options.stage else list(PROGRAMS)
    asked = [options.program] if options.program else [name for stage in stages for name in PROGRAMS[stage]]
    about = {"topology": options.topology, "device": chips.flat[0].device_kind, "chips": chips.size, "preset": options.config,
             "method": config.method, "model": options.model, "remat": programs.config.clip.remat}  # fmt: skip
    rows = []
    for name in programs.names:
        if name not in asked:
            continue
        program = programs.program(name, options.batch_per_chip * mesh.shape["data"])
        count = program.flops()
        row = {**about, "program": name, "batch": program.counted, "rows": program.rows, "flops": count.products,
               **ahead.compiled(program.lower).row(), "jax": jax.__version__}  # fmt: skip
        rows.append(row)
        print(f"{name}: {'fits' if row['fits'] else 'does not fit'}, {row['compile_seconds']:.0f} s", file=sys.stderr, flush=True)
        if options.record:
            record(row)
    print(json.dumps(rows, indent=1))
    return 0


def record(row: dict) -> None:
    """Puts the row into benchmarks/tpu_aot.json, in place of the one that it measures again."""
    from data_pipelines.files import locked, write_json

    with locked(RECORD.with_suffix(".lock")):
        rows = json.loads(RECORD.read_text()) if RECORD.exists() else []
        rows = [old for old in rows if [old[key] for key in KEY] != [row[key] for key in KEY]] + [row]
        write_json(RECORD, sorted(rows, key=lambda one: [str(one[key]) for key in KEY]))


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
