"""Programs as ONNX: one file with all weights, for one object at a time, which onnxruntime runs on a CPU without JAX.

It is written by rules of this project (decomposed.py, onnx_ops.py). Both writing and reading take the extra `[onnx]`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batch import Batch
from gsclip_jax.inspection.program import OUTPUTS, Program
from gsclip_jax.runtime.keys import WeightsError, plain

FILE = "model.onnx"
WEIGHTS_APART = False
LARGEST = (1 << 31) - 1  # bytes of a file: what the format can hold
# What `written` makes. Nothing else is run: no operators of other makers, no functions, no files beside the model's.
OPERATORS = frozenset(
    "Abs Acos Add And ArgMax ArgMin BitCast BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Concat Cos Div Equal Erf Exp "
    "Expand Floor Gather GatherElements Greater GreaterOrEqual Identity IsNaN Less LessOrEqual Log Loop MatMul Max Min Mod Mul "
    "Neg Not Or Pad Pow Reciprocal ReduceMax ReduceMin ReduceSum Reshape Round Sigmoid Sign Sin Slice Split Sqrt Sub Tanh Tile "
    "TopK Transpose Unsqueeze Where Xor".split()
)


def written(program: Program) -> bytes:
    """The serialised model; it takes the batch of one object by the names of its fields and gives `OUTPUTS`.

    Raises:
      WeightsError: a package is missing, the method has something without a form in ONNX, or it is too large.
    """
    with _extra():
        import onnx  # noqa: F401  (onnx_graph.py writes with it)
    from gsclip_jax.inspection.decomposed import NoForm, decomposed
    from gsclip_jax.inspection.onnx_ops import graph_of

    specs = program.specs(1)

    def predict(*arrays):
        found = program.run(program.weights, dict(zip(specs, arrays, strict=True)))
        return tuple(found[name] for name in OUTPUTS)

    try:
        closed = decomposed(predict, list(specs.values()))
        model = graph_of(closed, {name: (spec.shape, spec.dtype.name) for name, spec in specs.items()}, list(OUTPUTS))
    except NoForm as error:
        raise WeightsError(f"--format onnx: {error} has no form in ONNX here; use --format stablehlo") from error
    if (size := sum(len(tensor.raw_data) for tensor in model.graph.initializer)) > 0.95 * LARGEST:
        raise WeightsError(f"--format onnx: weights of {size / 1e9:.1f} GB are more than one file of ONNX holds; use --format "
                           "stablehlo")  # fmt: skip
    return model.SerializeToString()


def load(folder: Path, data: bytes, specs: Mapping[str, Any]) -> Callable[[Batch], dict[str, np.ndarray]]:
    """The model of `written`, on the CPU.

    Args:
      data: the file.
      specs: what it is given, of one object.

    Raises:
      WeightsError: a package is missing, damaged, hostile, or it takes other arrays.
    """
    file = folder / FILE
    with _extra():
        import onnx
        import onnxruntime as runtime
    if len(data) > LARGEST:
        raise WeightsError(f"{file}: {len(data) / 1e9:.1f} GB, more than a file of ONNX holds; export the model again")
    try:
        model = onnx.ModelProto.FromString(data)
        strange = sorted(set(_strange(onnx, model)))
    except Exception as error:  # of the reader of its messages
        raise WeightsError(f"{file}: not a file of ONNX ({plain(error, 200)}); fetch or export the model again") from error
    if strange:
        raise WeightsError(f"{file}: has {plain(', '.join(strange), 300)}, which no exported model does; do not use it")
    try:
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # what it raises is told below, its warnings are of no use here
        session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:
        raise WeightsError(f"{file}: not a model that this onnxruntime ({runtime.__version__}) runs ({plain(error, 200)}); "
                           "upgrade it (pip install --upgrade onnxruntime), or export the model again") from error  # fmt: skip
    takes = {one.name: (tuple(one.shape), one.type) for one in session.get_inputs()}
    gives = [one.name for one in session.get_outputs()]
    said = {name: "float" if spec.dtype == np.float32 else spec.dtype.name for name, spec in specs.items()}
    wanted = {name: (tuple(spec.shape), f"tensor({said[name]})") for name, spec in specs.items()}
    if takes != wanted or gives != list(OUTPUTS):
        raise WeightsError(f"{file}: does not take the batches of its recipe, or gives no scores; export the model again")

    def run(batch: Batch) -> dict[str, np.ndarray]:
        given = {name: np.ascontiguousarray(batch[name]) for name in wanted}
        counts = {len(array) for array in given.values()}
        if counts != {1}:
            raise WeightsError(f"{file}: scores one object at a time, not {max(counts)}")
        try:
            return dict(zip(OUTPUTS, session.run(list(OUTPUTS), given), strict=True))
        except Exception as error:
            raise WeightsError(f"{file}: onnxruntime cannot run it ({plain(error, 200)}); export the model again") from error

    return run


def _strange(onnx: Any, model: Any) -> Iterator[str]:
    """What `written` makes none of."""
    if model.functions or model.training_info:
        yield "functions or training"
    yield from (f"operators of {one.domain}" for one in model.opset_import if one.domain)
    yield from _strange_graph(onnx, model.graph)


def _strange_graph(onnx: Any, graph: Any) -> Iterator[str]:
    if graph.sparse_initializer:
        yield "sparse weights"
    for tensor in graph.initializer:
        size = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for length in tensor.dims:
            size *= max(length, 0)
        if tensor.external_data or tensor.data_location != onnx.TensorProto.DEFAULT:
            yield "weights in another file"
        elif size != len(tensor.raw_data):
            yield "weights of another size than they say"
    for node in graph.node:
        if node.domain or node.op_type not in OPERATORS:
            yield f"the operator {' '.join(filter(None, (node.domain, node.op_type)))}"
        for attribute in node.attribute:
            if attribute.HasField("g") and node.op_type == "Loop":
                yield from _strange_graph(onnx, attribute.g)
            elif attribute.type not in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
                yield f"an attribute {attribute.name} of {node.op_type}"


@contextlib.contextmanager
def _extra() -> Iterator[None]:
    """Imports in it are of packages that the extra `[onnx]` brings."""
    try:
        yield
    except ImportError as error:
        raise WeightsError(f"models in ONNX need {error.name}, which is not installed here: pip install "
                           "'gsclip-jax[onnx]'") from error  # fmt: skip
