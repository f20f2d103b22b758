"""Memory that every program of a preset needs, by its compiler's own account: nothing runs, no weights and no data are needed.

    python benchmarks/memory.py --chips v5e:2x2                      # needs `pip install libtpu`; no TPU
    python benchmarks/memory.py --cpu 1 --batch 2 --presets real3d
    python benchmarks/memory.py --chips v5e:2x2 --json benchmarks/tpu_memory.json

Presets are taken as they stand. A program's figure is its arguments (parameters, optimiser state, batch), what it returns beyond
them, and the most that it holds at once in between, on one device.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> int:
    from data_pipelines.datasets import AUXILIARY

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--chips", metavar="TOPOLOGY", help="of TPU chips, for instance v5e:2x2 (needs libtpu)")
    where.add_argument("--cpu", type=int, metavar="N", help="virtual CPU devices")
    parser.add_argument("--presets", default=",".join(AUXILIARY), help="default: %(default)s; '' is the embedded default")
    parser.add_argument("--programs", default="", help="default: all that the preset's method has")
    parser.add_argument("--batch", type=int, default=0, help="objects a batch (default: the preset's)")
    parser.add_argument("--model", type=int, default=1, help="devices that share the encoders' widths (config.mesh.model)")
    parser.add_argument("--remat", choices=("yes", "no"), help="default: yes for presets, no for the embedded default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    from gsclip_jax.runtime import ahead  # before any device is asked for

    os.environ |= ahead.WITHOUT_TPU
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from experiments.configs import stage2
    from experiments.programs import Programs

    jax.config.update("jax_num_cpu_devices", options.cpu or 1)
    devices = ahead.topology(options.chips) if options.chips else np.array(jax.devices()[: options.cpu])
    mesh = Mesh(devices.reshape(-1, options.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    device, rows = devices.flat[0].device_kind, []
    for preset in options.presets.split(","):
        config = stage2.get_config(preset or None)
        if options.remat:
            with config.clip.ignore_type():
                config.clip.remat = options.remat == "yes"
        programs = Programs(config, mesh)
        for name in filter(None, options.programs.split(",")) if options.programs else programs.names:
            row = ahead.compiled(programs.program(name, options.batch).lower).row()
            rows.append({"preset": preset, "program": name, "remat": programs.config.clip.remat, **row})
            shown = (
                f"does not fit: {row['refused']}" if not row["fits"]
                else "GB a device: " + ", ".join(f"{part} {value:.2f}" for part, value in row["gb_a_device"].items())
            )  # fmt: skip
            print(f"{preset or 'embedded'} {name}, {device} x {devices.size}: {shown}", flush=True)
    if options.json:
        about = {"command": "python " + " ".join(["benchmarks/memory.py", *sys.argv[1:]]), "jax": jax.__version__}
        options.json.write_text(json.dumps({**about, "device": device, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
