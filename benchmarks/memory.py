"""Memory that every program of a preset needs, by its compiler's own account: nothing runs, no weights and no data are needed.

    python benchmarks/memory.py --chips v5e:2x2                      # needs `pip install libtpu`; no TPU
    python benchmarks/memory.py --cpu 1 --batch 2 --presets real3d
    python benchmarks/memory.py --chips v5e:2x2 --json benchmarks/tpu_memory.json

Presets are taken as they stand. A program's figure is its arguments (parameters, optimiser state, batch), what it returns beyond
them, and the most that it holds at once in between, on one device.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
PROGRAMS = ("features1", "stage1", "features2", "stage2", "predict")


def devices(chips: str | None, cpu: int):
    """The devices to compile for: those of a TPU topology, or `cpu` virtual CPU devices."""
    import jax
    import numpy as np

    if not chips:
        return np.array(jax.devices()[:cpu])
    from jax.experimental import topologies

    return np.array(topologies.get_topology_desc(platform="tpu", topology_name=chips).devices)


def clip_config(config):
    """The shape of the preset's CLIP, as `load_clip` would read it from the weights."""
    from gsclip_jax.convert.load import load_clip
    from gsclip_jax.models.clip import ClipConfig

    c = config.clip
    changes = {"dtype": c.dtype, "remat": c.remat, **({"vv_blocks": c.vv_blocks} if c.vv_blocks >= 0 else {})}
    if Path(c.name).name == "ViT-L-14-336px.pt":
        return dataclasses.replace(ClipConfig.preset("ViT-L/14@336"), **changes)
    return load_clip(c.name, **changes)[0]


def lowered(config, name: str, mesh, batch_size: int = 0):
    """The program `name` (of PROGRAMS) of a configuration, lowered for `mesh`; `batch_size` objects instead of its own."""
    import jax
    import numpy as np
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from data_pipelines.batch import FIELDS, OPTIONAL
    from experiments.build import make_method
    from gsclip_jax.methods.surface.descriptor import init_surface
    from gsclip_jax.models.clip import clip_shapes
    from gsclip_jax.runtime.sharding import specs
    from gsclip_jax.training.train import State, make_optimiser, make_step, partition

    def shaped(tree, shardings):
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s), tree, shardings)

    def whole(tree):
        return shaped(tree, jax.tree.map(lambda x: NamedSharding(mesh, P()), tree))

    def split(tree):
        return shaped(tree, jax.tree.map(lambda x: NamedSharding(mesh, P("data")), tree))

    clip_cfg, data = clip_config(config), config.data
    # Sentences only choose the start of the contexts, not the program.
    config.model.start = ()
    method = make_method(config, clip_cfg)
    params, stats = jax.eval_shape(method.init, jax.random.key(0))
    params["clip"] = clip_shapes(clip_cfg)
    if "surface" in method.loads:
        params["surface"] = jax.eval_shape(lambda key: init_surface(key, clip_cfg.embed_dim), jax.random.key(0))
    row = method.stages[0 if name.endswith("1") else 1]
    size = batch_size or (config.eval.batch_size if name == "predict" else row.batch_size)
    sizes = {"B": size, "V": data.views, "H": data.image_size, "W": data.image_size, "N": data.cloud_points, "M": data.points,
             "K": data.neighbours, 2: 2, 3: 3}  # fmt: skip
    batch = split({
        field: jax.ShapeDtypeStruct([sizes[axis] for axis in axes], dtype)
        for field, (axes, dtype, _) in FIELDS.items() if field not in OPTIONAL
    })  # fmt: skip
    placed = shaped(params, specs(params, mesh))
    if name == "predict":
        return jax.jit(method.predict).lower(placed, whole(stats), batch)
    encode = jax.jit(method.for_inference().stages[method.stages.index(row)].features)
    if name.startswith("features"):
        return encode.lower(placed, whole(stats), batch)
    batch |= split(jax.eval_shape(encode, params, stats, batch))  # as a run does it: stored, not computed in the step
    trainable, frozen = (shaped(part, specs(part, mesh)) for part in partition(params, row))
    optimiser = make_optimiser(row, 10)
    opt_state = jax.eval_shape(optimiser.init, trainable)
    step = jax.ShapeDtypeStruct((), "int32")
    state = State(whole(step), trainable, shaped(opt_state, specs(opt_state, mesh)), whole(stats))
    return make_step(row, optimiser).lower(state, frozen, batch, whole(jax.random.key(0)))


def gigabytes(compiled) -> dict[str, float]:
    """GB (1e9 bytes) on one device."""
    from gsclip_jax.runtime.memory import GB, used

    found = used(compiled)
    parts = {"arguments": found.arguments, "temporary": found.temporary, "returned": found.returned, "all": found.all}
    return {part: round(value / GB, 3) for part, value in parts.items()}


def main() -> int:
    from data_pipelines.datasets import AUXILIARY

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--chips", metavar="TOPOLOGY", help="of TPU chips, for instance v5e:2x2 (needs libtpu)")
    where.add_argument("--cpu", type=int, metavar="N", help="virtual CPU devices")
    parser.add_argument("--presets", default=",".join(AUXILIARY), help="default: %(default)s; '' is the embedded default")
    parser.add_argument("--programs", default=",".join(PROGRAMS), help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=0, help="objects a batch (default: the preset's)")
    parser.add_argument("--model", type=int, default=1, help="devices that share the encoders' widths (config.mesh.model)")
    parser.add_argument("--remat", choices=("yes", "no"), help="instead of the preset's own config.clip.remat")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    import jax
    from jax.sharding import AxisType, Mesh

    from experiments.configs import stage2

    jax.config.update("jax_num_cpu_devices", options.cpu or 1)
    found = devices(options.chips, options.cpu)
    mesh = Mesh(found.reshape(-1, options.model), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    rows = []
    for preset in options.presets.split(","):
        config = stage2.get_config(preset or None)
        if options.remat:
            config.clip.remat = options.remat == "yes"
        for name in options.programs.split(","):
            try:
                gb = gigabytes(lowered(config, name, mesh, options.batch).compile())
            except jax.errors.JaxRuntimeError as error:  # the TPU compiler refuses what does not fit a chip
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"{preset or 'embedded'} {name}: does not fit: {str(error).splitlines()[0]}", flush=True)
                rows.append({"preset": preset, "program": name, "remat": config.clip.remat, "refused": str(error)})
                continue
            rows.append({"preset": preset, "program": name, "remat": config.clip.remat, "gb_a_device": gb})
            shown = ", ".join(f"{part} {value:.2f}" for part, value in gb.items())
            print(f"{preset or 'embedded'} {name}, {found.flat[0].device_kind} x {found.size}: GB a device: {shown}", flush=True)
    if options.json:
        about = {"command": "python " + " ".join(["benchmarks/memory.py", *sys.argv[1:]]), "jax": jax.__version__}
        options.json.write_text(json.dumps({**about, "device": found.flat[0].device_kind, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
