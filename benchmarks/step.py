"""Stage 1, stage 2 and predict against an equivalent PyTorch program with the same weights: ratios of medians in one run.

    pip install -r requirements-test.txt                                     # torch
    python benchmarks/step.py --size tiny
    python benchmarks/step.py --size base --objects 2
    python benchmarks/step.py --size large --objects 1 --only stage1,predict --repeats 3 --json benchmarks/step.json
    python benchmarks/step.py --size large --objects 1 --views 3 --only stage2 --json benchmarks/step.json    # 9: over 24 GB
    python benchmarks/step.py --size large --objects 4 --dtype bfloat16 --device gpu

The last is for a GPU and was not run where this was written; wanted on an H100: predict <= 18 ms an object, stage 2 >= 45 % of
the measured matrix rate (`ours_flops_a_second` over `matrix_flops_a_second`).

Both compute the same loss from the same batch first, or nothing is measured. PyTorch is benchmarks/torch_gsclip.py: in stage 1 it
encodes the views in every epoch, as the published program does; ours encodes once and then reads what it stored. In stage 2 and
predict PyTorch is given its best: stored render tokens and text, fused attention. The two take turns; figures are medians (and
minima), in seconds. Other work on the machine slows threads that wait for each other: `load` is its load average at the start.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.modules["triton"] = None  # its LLVM and JAX's do not go together in one process
EPOCHS = 15


def sizes(name: str, dtype: str):
    """The shape of the CLIP, of PointNet++, scored points."""
    from gsclip_jax.models.clip import ClipConfig
    from gsclip_jax.models.pointnet2 import PointNet2Config

    large = PointNet2Config()
    small = PointNet2Config(centroids=(128, 32), radii=(0.3, 0.6), down=((32, 64), (64, 128)), up=((128,), (64,)))
    tiny = ClipConfig(image_size=64, patch=16, vision_width=128, vision_layers=4, vision_heads=4, embed_dim=64, text_width=64,
                      text_layers=4, text_heads=4, vocab=64, vv_blocks=2, sos=1, eos=2, dot=3)  # fmt: skip
    found = {"tiny": (tiny, small, 1024, 512), "base": (ClipConfig.preset("ViT-B/16"), large, 16384, 2048),
             "large": (ClipConfig.preset("ViT-L/14@336"), large, 336 * 336, 3000)}  # fmt: skip
    clip, net, points, cloud = found[name]
    return dataclasses.replace(clip, dtype=dtype), net, points, cloud


def make_batch(objects: int, views: int, size: int, points: int, cloud: int) -> dict:
    import numpy as np

    rng = np.random.default_rng(0)
    label = np.arange(objects) % 2 if objects > 1 else np.ones(1, int)
    point_mask = np.zeros((objects, points), bool)
    point_mask[label == 1, : points // 20] = True
    view_mask = np.zeros((objects, views, size, size), bool)
    view_mask[label == 1, :, : size // 4, : size // 4] = True
    return {
        "render": rng.integers(0, 256, (objects, views, size, size), dtype=np.uint8),
        "depth": rng.integers(0, 256, (objects, views, size, size), dtype=np.uint8),
        "cloud": (rng.standard_normal((objects, cloud, 3)) / 3).astype(np.float32),
        "pixel": rng.integers(0, size, (objects, views, points, 2)).astype(np.int16),
        "visible": rng.random((objects, views, points)) < 0.6,
        "xyz": rng.standard_normal((objects, points, 3)).astype(np.float32),
        "neighbours": rng.integers(0, points, (objects, points, 16)).astype(np.int32), "valid": np.ones((objects, points), bool),
        "point_mask": point_mask, "organised": np.zeros(objects, bool), "view_mask": view_mask,
        "view_label": view_mask.any((2, 3)).astype(np.int32), "label": label.astype(np.int32),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--size", choices=("tiny", "base", "large"), default="tiny", help="large is ViT-L/14@336 (default: tiny)")
    parser.add_argument("--objects", type=int, default=2, help="of a batch (default: 2)")
    parser.add_argument("--views", type=int, default=9, help="of an object (default: 9)")
    parser.add_argument("--repeats", type=int, default=5, help="of every figure; the median is given (default: 5)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of both vision towers")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--remat", action="store_true", help="ours computes each block again in the backward pass")
    parser.add_argument("--only", default="stage1,stage2,predict", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="puts the figures there, beside those of other sizes")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if options.device == "cpu" else "cuda")
    row = measured(options)
    print(json.dumps(row, indent=1))
    if options.json:
        rows = json.loads(options.json.read_text()) if options.json.exists() else []
        key = ("size", "objects", "views", "dtype", "device", "remat")
        rows = [old for old in rows if [old[k] for k in key] != [row[k] for k in key]] + [row]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def measured(options: argparse.Namespace) -> dict:
    import jax
    import jax.numpy as jnp
    import torch

    from benchmarks.torch_gsclip import TorchGsClip, leaves
    from gsclip_jax.methods.gsclip import GsClip
    from gsclip_jax.methods.gsclip.config import Config, Model
    from gsclip_jax.models.clip import init_clip
    from gsclip_jax.runtime.flops import flops
    from gsclip_jax.training.train import State, make_optimiser, make_step, partition

    clip, net, points, cloud = sizes(options.size, options.dtype)
    clip = dataclasses.replace(clip, remat=options.remat)
    method = GsClip(Config(model=Model(lora_dropout=0.0)), clip, net)
    params, stats = jax.jit(method.init)(jax.random.key(0))
    params["clip"] = init_clip(jax.random.key(1), clip)
    factors = jax.random.split(jax.random.key(2), 2)  # LoRA begins at nothing: give it something to do
    for key, name in zip(factors, ("fc", "proj"), strict=True):
        params["lora"][name]["b"] = 0.01 * jax.random.normal(key, params["lora"][name]["b"].shape)
    host = make_batch(options.objects, options.views, clip.image_size, points, cloud)
    batch, device = jax.device_put(host), "cuda" if options.device == "gpu" else "cpu"
    torch.set_default_device(device)
    theirs = TorchGsClip(jax.device_get(params), jax.device_get(stats), method)
    given = {name: torch.from_numpy(value).to(device) for name, value in host.items()}
    given |= {name: given[name].long() for name in ("label", "view_label")}
    alone = method.for_inference()
    row = {name: getattr(options, name) for name in ("size", "objects", "views", "dtype", "device", "remat", "repeats")}
    row |= {"machine": f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].device_kind}",
            "load": round(os.getloadavg()[0], 1), "versions": {"jax": jax.__version__, "torch": torch.__version__}}  # fmt: skip

    def wait(value):
        jax.block_until_ready(value)
        if device == "cuda":
            torch.cuda.synchronize()

    def in_turns(what: str, **works: Callable) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in works}
        for turn in range(options.repeats + 1):  # the first one compiles and warms up
            for name, work in works.items():
                start = time.perf_counter()
                wait(work())
                times[name] += [time.perf_counter() - start] if turn else []
        row.setdefault("minima", {}).update({f"{what} {name}": min(values) for name, values in times.items()})
        return {name: statistics.median(values) for name, values in times.items()}

    def same(name: str, ours, other, bound: float) -> None:
        apart = abs(float(ours) - float(other)) / abs(float(other))
        row.setdefault("losses", {})[name] = {"ours": float(ours), "torch": float(other), "apart": apart}
        if not apart < bound:
            raise SystemExit(f"{name}: ours {float(ours)}, PyTorch {float(other)}; nothing is measured")

    bound = 1e-4 if options.dtype == "float32" else 3e-2
    stored = {}
    for number, stage in enumerate(method.stages):
        if stage.name not in options.only:
            continue
        encode = jax.jit(alone.stages[number].features)
        stored = encode(params, stats, batch)
        trainable, frozen = partition(params, stage)
        optimiser = make_optimiser(stage, 10)
        step, key = make_step(stage, optimiser), jax.random.key(0)
        copied = jax.tree.map(jnp.copy, trainable), optimiser.init(trainable), jax.tree.map(jnp.copy, stats)  # a step takes them
        state = State(jnp.zeros((), jnp.int32), *copied)
        learned = [leaf.requires_grad_() for group in stage.train for leaf in leaves(theirs.p[group])]
        adam = torch.optim.Adam(learned, lr=1e-9, betas=(0.5, 0.999))  # as it stays: stage 2 begins with the same weights
        if stage.name == "stage1":
            loss_of = lambda: theirs.stage1_loss(given)  # noqa: E731
        else:
            known = [jax.device_get(stored[name].astype(jnp.float32)) for name in ("render_tokens", "text")]
            render, text = (torch.from_numpy(value).to(device) for value in known)
            render = torch.nn.functional.normalize(render, dim=-1)
            loss_of = lambda: theirs.stage2_loss(given, render, text)  # noqa: E731, B023

        def torch_step():
            adam.zero_grad(set_to_none=True)  # noqa: B023
            loss_of().backward()  # noqa: B023
            adam.step()  # noqa: B023

        def our_step():
            nonlocal state
            state, metrics = step(state, frozen, batch | stored, key)  # noqa: B023
            return metrics

        ours = jax.jit(stage.loss)(trainable, frozen, stats, batch | stored, key)[0]
        with torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            same(stage.name, ours, loss_of().detach(), bound)
            if stage.name == "stage1":
                found = in_turns("stage1", torch=torch_step, ours=our_step, encode=lambda: encode(params, stats, batch))  # noqa: B023
                whole = found["encode"] + EPOCHS * found["ours"]
                row["stage1"] = {**found, "ratio_of_an_epoch": found["torch"] / found["ours"],
                                 f"ratio_of_{EPOCHS}_epochs_with_encoding": EPOCHS * found["torch"] / whole}  # fmt: skip
            else:
                found = in_turns("stage2", torch=torch_step, ours=our_step)
                count = flops(step, state, frozen, batch | stored, key).products
                row["stage2"] = {**found, "ratio": found["torch"] / found["ours"], "ours_flops_a_second": count / found["ours"]}
        for leaf in learned:
            leaf.requires_grad_(False)
    if "predict" in options.only:
        predict = jax.jit(alone.predict)
        with torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            ours, other = predict(params, stats, batch), theirs.predict(given)
            same("predict", ours.object.sum(), other[0].sum(), bound)
            theirs_once, ours_once = lambda: theirs.predict(given)[0].sum().item(), lambda: predict(params, stats, batch)
            found = in_turns("predict", torch=theirs_once, ours=ours_once)
        count = flops(predict, params, stats, batch).products
        row["predict"] = {**found, "ratio": found["torch"] / found["ours"], "ours_an_object": found["ours"] / options.objects,
                          "ours_flops_a_second": count / found["ours"]}  # fmt: skip
    side = jnp.ones((4096, 4096), options.dtype)
    multiply = jax.jit(jnp.matmul)
    rate = in_turns("matrix", product=lambda: multiply(side, side))
    return row | {"matrix_flops_a_second": 2 * 4096**3 / rate["product"]}


if __name__ == "__main__":
    from data_pipelines.command import command

    sys.exit(command(main))
