"""The real TPU compiler takes both training steps and the prediction of the embedded default, for four chips, without a TPU.

    pip install libtpu==0.0.42.*; make test-slow          # skipped, saying so, without libtpu
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

PROGRAM = """
import json, sys
import jax, numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
from data_pipelines.batch import FIELDS
from experiments.build import build_model
from experiments.configs import stage2
from gsclip_jax.sharding import specs
from gsclip_jax.train import State, make_optimiser, make_step, partition

devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices)
mesh = Mesh(devices.reshape(2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
config = stage2.get_config()
data = config.data
sizes = {"B": 4, "V": data.views, "H": data.image_size, "W": data.image_size, "N": data.cloud_points, "M": data.points,
         "K": data.neighbours, 2: 2, 3: 3}
def shaped(tree, shardings):
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=s), tree, shardings)
def whole(tree):
    return shaped(tree, jax.tree.map(lambda x: NamedSharding(mesh, P()), tree))
batch = {
    name: jax.ShapeDtypeStruct([sizes[axis] for axis in axes], dtype, sharding=NamedSharding(mesh, P("data")))
    for name, (axes, dtype, _) in FIELDS.items() if name != "rgb"
}
method, params, stats, _ = build_model(config)
params = jax.tree.map(jax.numpy.asarray, params)
key = whole(jax.random.key(0))
def program(name):
    if name == "predict":
        return jax.jit(method.predict).lower(shaped(params, specs(params, mesh)), whole(stats), batch)
    stage = next(stage for stage in method.stages if stage.name == name)
    trainable, frozen = (shaped(part, specs(part, mesh)) for part in partition(params, stage))
    optimiser = make_optimiser(stage, 10)
    state = State(jax.numpy.zeros((), "int32"), trainable, jax.eval_shape(optimiser.init, trainable), stats)
    state = State(whole(state.step), trainable, whole(state.opt_state), whole(stats))
    return make_step(method, stage, optimiser).lower(state, frozen, batch, key)
used = program(sys.argv[1]).compile().memory_analysis()
print(json.dumps({"device": devices.flat[0].device_kind, "bytes": used.temp_size_in_bytes + used.argument_size_in_bytes}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage1", "stage2", "predict"])
def test_compiles_for_four_chips_and_fits(name):
    if find_spec("libtpu") is None:
        pytest.skip("no libtpu here: the TPU compiler is not at hand")
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    found = subprocess.run([sys.executable, "-c", PROGRAM, name], capture_output=True, text=True, env=env)
    assert found.returncode == 0, found.stderr[-2000:]
    used = json.loads(found.stdout.splitlines()[-1])
    assert "TPU" in used["device"] and 0 < used["bytes"] < 16e9  # what one chip has
    print(f"{name}: {used['bytes'] / 1e6:.0f} MB a chip")
