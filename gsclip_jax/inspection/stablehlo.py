"""Programs as StableHLO: `jax.export`, for any number of objects, on CPUs, CUDA GPUs and TPUs. Weights lie beside the program and
are its first argument, so that every array is there once and compilers need not carry them."""

from __future__ import annotations

import re
from pathlib import Path

import jax
from jax import export

from gsclip_jax.convert.store import flatten, load_params
from gsclip_jax.inspection.program import Program
from gsclip_jax.runtime.compiled import Jitted
from gsclip_jax.runtime.keys import WeightsError, plain

FILE = "model.stablehlo"
WEIGHTS_APART = True
PLATFORMS = ("cpu", "cuda", "tpu")
# Functions outside of StableHLO that a program may call: decompositions, sorting and hints of JAX's own. Anything else may run
# what it likes (Python callbacks by their address, for one).
CALLS = re.compile(r"(lapack_\w+|cusolver_\w+|cublas_\w+|hipsolver_\w+|cu_lu_pivots_to_permutation|LuDecomposition|Eigh|Qr|"
                   r"ProductOfElementaryHouseholderReflectors|TopK|ApproxTopK|stablehlo\.dynamic_\w+|mhlo\.\w+|"
                   r"Sharding|shape_assertion|annotate_device_placement)")  # fmt: skip
CALLED = re.compile(r"custom_call @?\"?([^\s\"(]+)")


def written(program: Program) -> bytes:
    """The serialised program; its weights are stored apart."""
    (count,) = export.symbolic_shape("batch")
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in program.weights.items()}

    def predict(weights, batch):
        return program.run(weights, batch)

    return export.export(jax.jit(predict), platforms=PLATFORMS)(weights, program.specs(count)).serialize()


def load(folder: Path, data: bytes, specs: dict[str, jax.ShapeDtypeStruct]) -> Jitted:
    """The program of `written`, with the weights that lie beside it.

    Args:
      data: the program.
      specs: what it is given, of one object.

    Raises:
      WeightsError: no such program, of a JAX that this one does not read, or one that asks for other arrays.
    """
    file = folder / FILE
    weights = flatten(load_params(folder)[0])
    try:
        exported = export.deserialize(bytearray(data))
        called = set(CALLED.findall(exported.mlir_module()))
    except Exception as error:  # its readers raise what they meet
        raise WeightsError(f"{file}: not a program that this JAX ({jax.__version__}) reads ({plain(error, 200)}); export it "
                           "again, or use the JAX that config.json names") from error  # fmt: skip
    strange = sorted(name for name in called if not CALLS.fullmatch(name))
    if strange:
        raise WeightsError(f"{file}: calls {plain(', '.join(strange), 200)}, which no exported model does; do not use it")
    if (here := jax.default_backend()) not in (names := _names(exported.platforms)):
        raise WeightsError(f"{file}: made for {', '.join(names)}, and here is {here}; set JAX_PLATFORMS=cpu")

    @jax.jit
    def predict(weights, batch):
        return exported.call(weights, batch)

    try:
        jax.eval_shape(predict, weights, specs)
    except Exception as error:
        raise WeightsError(f"{file}: does not take its weights and the batches of its recipe ({plain(error, 200)}); export the "
                           "model again") from error  # fmt: skip
    return Jitted(predict, (weights,), specs)


def _names(platforms) -> tuple[str, ...]:
    """As `jax.default_backend` says them."""
    return tuple("gpu" if name in ("cuda", "rocm") else name for name in platforms)

