"""One step of each stage at ViT-L/14@336 size with random weights: it fits, is finite, and trains exactly what should train.

    make test-slow          # several minutes on two cores
"""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys, time
import jax, jax.numpy as jnp, numpy as np
from experiments.configs import common
from gsclip_jax.methods import METHODS, Parts, read_config
from gsclip_jax.models.clip import ClipConfig, init_clip
from gsclip_jax.models.pointnet2 import PointNet2Config
from gsclip_jax.training.train import partition

name, number = sys.argv[1], int(sys.argv[2])
config = common.with_method(common.paper("mvtec3d"), name)
cfg = ClipConfig(remat=True, dtype="float32")

class Words:  # ids of any words: the embeddings are random too
    def encode(self, text):
        return [320 + len(word) for word in text.split()]

row = METHODS[name]
method = row.build(read_config(row.config, config), Parts(cfg, PointNet2Config(), Words, "mvtec3d"))
params, stats = jax.jit(method.init)(jax.random.key(0))
params["clip"] = init_clip(jax.random.key(1), cfg)
rng, size, points, views = np.random.default_rng(0), 336, 336 * 336, 9
xyz = rng.standard_normal((1, points, 3)).astype(np.float32)
batch = {
    "render": rng.integers(0, 256, (1, views, size, size), dtype=np.uint8),
    "depth": rng.integers(0, 256, (1, views, size, size), dtype=np.uint8),
    "cloud": (rng.standard_normal((1, 3000, 3)) / 4).astype(np.float32),
    "pixel": rng.integers(0, size, (1, views, points, 2)).astype(np.int16),
    "visible": rng.random((1, views, points)) < 0.5, "xyz": xyz,
    "neighbours": rng.integers(0, points, (1, points, 8)).astype(np.int32),
    "valid": np.ones((1, points), bool), "point_mask": rng.random((1, points)) < 0.03, "organised": np.zeros(1, bool),
    "view_mask": rng.random((1, views, size, size)) < 0.03, "view_label": np.ones((1, views), np.int32),
    "label": np.ones(1, np.int32),
}
if row.fields:
    batch["rgb_render"] = rng.integers(0, 256, (1, views, size, size, 3), dtype=np.uint8)
stage = method.stages[number - 1]
trainable, frozen = partition(params, stage)
if "lora" in trainable:  # the zero start of the second factor stops the first one's gradient
    trainable["lora"] = jax.tree.map(lambda x: x + 1e-3, trainable["lora"])
# As a run does it: what the stage leaves as it is, is computed once an object and stored.
batch |= jax.device_get(jax.jit(stage.features)(params, stats, batch))
late = {"epoch": jnp.int32(stage.epochs - 1)} if stage.by_epoch else {}  # with all that joins late
def loss(trainable, frozen, stats, batch):  # all as arguments, as in a run: as constants of the program they take gigabytes more
    return stage.loss(trainable, frozen, stats, batch, jax.random.key(2), **late)[0]
began = time.monotonic()
step = jax.jit(jax.value_and_grad(loss)).lower(trainable, frozen, stats, batch).compile()
memory, flops = step.memory_analysis(), step.cost_analysis()["flops"]
value, grads = step(trainable, frozen, stats, batch)
largest = {
    jax.tree_util.keystr(path, simple=True, separator="/"): float(jnp.abs(leaf).max())
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"loss": float(value), "largest": largest, "peak_gb": peak, "seconds": time.monotonic() - began,
                  "tflop": flops / 1e12, "program_gb": memory.temp_size_in_bytes / 1e9}))
"""


ROWS = [
    ("gsclip", 1, {"prompts", "gddm", "pointnet2"}), ("gsclip", 2, {"srm", "lora"}),
    ("align3d", 1, {"aligner"}), ("align3d", 2, {"rgb_prompts", "prompts"}), ("pointad", 1, {"prompts"}),
]
NEVER_SILENT = {
    ("gsclip", 1): ["gddm/prototypes"], ("gsclip", 2): ["srm/render/kernel", "srm/depth/kernel", "lora/fc/a", "lora/proj/b"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method, stage, groups", ROWS)
def test_one_step_at_full_size(method, stage, groups):
    done = subprocess.run([sys.executable, "-c", PROGRAM, method, str(stage)], capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print({name: found[name] for name in ("loss", "peak_gb", "program_gb", "tflop", "seconds")})
    assert 0 < found["loss"] < 1e3
    assert found["peak_gb"] < 12
    assert {name.split("/")[0] for name in found["largest"]} == groups
    # Biases before a BatchNorm have no influence in training mode.
    silent = [name for name, value in found["largest"].items() if not value > 0 and not name.endswith("bias")]
    assert silent == []
    assert all(value < float("inf") for value in found["largest"].values())
    assert all(found["largest"][name] > 0 for name in NEVER_SILENT.get((method, stage), ()))
