"""The views of an object on several devices: the same losses, gradients and scores, whether they divide among them or not."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from gsclip_jax.runtime.sharding import make_mesh, place, put_batch, specs
from gsclip_jax.training.plan import gradient
from gsclip_jax.training.train import partition
from tests import tiny

QUICK = {"xla_backend_optimization_level": 0}  # most of the time here is compilation
NAMES = ("data", "view", "model")


def mesh_of(*shape: int) -> Mesh:
    return Mesh(np.array(jax.devices()[: np.prod(shape)]).reshape(shape), NAMES, axis_types=(AxisType.Auto,) * 3)


def everything(mesh: Mesh, views: int = 3, remat: bool = False) -> dict:
    """The loss of stage 2 with its dropout, its gradients by halves of the batch, and the scores of a batch of two objects."""
    gsclip = tiny.method(lora_dropout=0.3).with_remat(remat)
    params, stats = tiny.params(gsclip)
    params["lora"] = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), params["lora"])
    params, batch = place(params, mesh), put_batch(tiny.batch(2, views=views), mesh)
    trainable, frozen = partition(params, tiny.STAGE2)
    with jax.set_mesh(mesh):
        rows = 1 if mesh.shape["data"] == 1 else 0
        step = jax.jit(gradient(gsclip.stages[1], rows), compiler_options=QUICK)
        (loss, _), grads = step(trainable, frozen, stats, batch, jax.random.key(1))
        scores = jax.jit(gsclip.predict, compiler_options=QUICK)(params, stats, batch)
    return jax.device_get({"loss": loss, "grads": grads, "scores": scores._asdict()})


def differing(ours: dict, theirs: dict) -> dict[str, float]:
    """Leaf -> how far apart, in shares of its largest number (of the scores and the loss, which are about 1: themselves)."""
    leaves = zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    apart = {jax.tree_util.keystr(p): float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-3)) for (p, x), y in leaves}
    return {name: value for name, value in apart.items() if not value < 1e-5}


@pytest.fixture(scope="module")
def alone():
    return everything(mesh_of(1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 2, 1), (1, 3, 1)])
def test_views_on_several_devices_change_nothing(alone, shape):
    assert differing(everything(mesh_of(*shape)), alone) == {}


@pytest.mark.slow
def test_any_mesh_of_eight_devices_changes_nothing():
    """Three views on 2, 3 and 8 devices, with objects and widths split as well."""
    program = (
        "import jax, json; jax.config.update('jax_num_cpu_devices', 8)\n"
        "from tests.gsclip_jax.test_views_axis import differing, everything, mesh_of\n"
        "alone = everything(mesh_of(1, 1, 1))\n"
        "shapes = ((1, 2, 1), (2, 2, 1), (2, 2, 2), (1, 3, 1), (1, 8, 1))\n"
        "print(json.dumps({str(shape): differing(everything(mesh_of(*shape)), alone) for shape in shapes}))"
    )
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 5 and not any(found.values()), found


def test_every_device_encodes_its_own_views():
    mesh = mesh_of(1, 3, 1)
    put = put_batch(tiny.batch(2), mesh)
    assert put["render"].sharding.spec == P("data", "view") and put["cloud"].sharding.spec == P("data")
    assert {shard.data.shape for shard in put["depth"].addressable_shards} == {(2, 1, 32, 32)}
    # Views that do not divide come whole, and are split within the program.
    assert put_batch(tiny.batch(2), mesh_of(1, 2, 1))["render"].sharding.spec == P("data")
    # Two objects with three views each are three images on each of two devices, in every block.
    gsclip = tiny.method()
    params, stats = tiny.params(gsclip)
    mesh = mesh_of(1, 2, 1)
    with jax.set_mesh(mesh):
        encode = jax.jit(gsclip.stage1_features, compiler_options=QUICK)
        program = encode.lower({"clip": params["clip"]}, stats, put_batch(tiny.batch(2), mesh)).compile().as_text()
    assert program.count("f32[3,17,32]") > 10 and "f32[6,17,32]" not in program


def test_every_parameter_is_claimed():
    gsclip = tiny.method()
    params, _ = tiny.params(gsclip)
    assert jax.tree.structure(specs(params, mesh_of(1, 2, 1))) == jax.tree.structure(params)
    params["clip"]["visual"]["registers"] = jnp.zeros((4, 32))
    with pytest.raises(ValueError, match="no rule of runtime/sharding.py says how the parameter clip/visual/registers is split"):
        specs(params, mesh_of(1, 2, 1))


def test_a_mesh_takes_all_devices():
    assert dict(make_mesh(view=2).shape) == {"data": len(jax.devices()) // 2, "view": 2, "model": 1}
    with pytest.raises(ValueError, match="data=1 x view=3 x model=1 does not use the 4 devices"):
        make_mesh(1, view=3)
