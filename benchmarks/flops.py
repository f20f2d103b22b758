"""Floating-point operations of every program of the paper's size, counted from the programs; nothing is computed or allocated.

    python benchmarks/flops.py                       # prints what benchmarks/flops.md has
    python benchmarks/flops.py --write               # writes it
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
OUT = ROOT / "benchmarks" / "flops.md"
ROWS = (("real3d", "gsclip"), ("mvtec3d", "align3d"), ("mvtec3d", "pointad"), ("", "gsclip"))
HEAD = """# Operations of a full-size step

Written by `python benchmarks/flops.py --write`: counted from the programs that a run compiles (`gsclip_jax/runtime/flops.py`),
an object, at the preset's batch size. A product of [M,K] with [K,N] has 2 M K N; "other" is one for each element that an
elementwise operation makes or a reduction reads. Loops count every turn, branches where they are taken, and what is computed
again (rematerialisation) counts again. The paper's presets have ViT-L/14@336, nine views and 112 896 scored points; they have
one size, so one of them stands for all.

"Encoded" is done once an object, "step" once an object and epoch.

| preset, method | program | products, TFLOP an object | other, TFLOP | |
|---|---|---|---|---|
"""
WHAT = {
    "features1": "encoded for stage 1", "stage1": "step of stage 1", "features2": "encoded for stage 2",
    "stage2": "step of stage 2", "predict": "predict",
}  # fmt: skip


def table() -> str:
    from experiments.configs import stage2
    from experiments.configs.common import with_method
    from experiments.programs import Programs

    lines, notes = [], []
    for preset, method in ROWS:
        config = with_method(stage2.get_config(preset or None), method)
        programs = Programs(config)
        found = {}
        for name in programs.names:
            program = programs.program(name)
            count = program.flops()
            if count.open_loops:
                raise SystemExit(f"{method} {name}: {count.open_loops} loops without a number of turns; their count is no count")
            found[name] = count.products / program.rows
            again = programs.config.clip.remat and (method, name) == ("gsclip", "stage2")
            note = "each block computed again (`clip.remat`)" if again else ""
            lines.append(f"| {preset or 'embedded'}, {method} | {WHAT[name]} | {found[name] / 1e12:.4f} | "
                         f"{count.other / program.rows / 1e12:.4f} | {note} |")  # fmt: skip
        times = found["features1"] / found["stage1"]
        notes.append(f"{preset or 'embedded'}, {method}: encoding an object costs {times:.0f} times its step of stage 1.")
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help="write benchmarks/flops.md instead of printing")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    text = table()
    if options.write:
        OUT.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
