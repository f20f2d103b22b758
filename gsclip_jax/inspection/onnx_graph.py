"""Graphs of ONNX as they are written: nodes with fresh names, constants that are there once. Writing one takes the package onnx.

Integers narrower than 32 bits are int32 inside, as onnxruntime has few operators for them. Constants lie in the outermost
graph, in half precision where that changes no value.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gsclip_jax.inspection.decomposed import NoForm

if TYPE_CHECKING:
    import onnx

FLOAT, UINT8, INT16, INT32, INT64, BOOL, DOUBLE = 1, 2, 5, 6, 7, 9, 11  # as onnx.TensorProto numbers them
TYPES = {"bool": BOOL, "float32": FLOAT, "int32": INT32}
INPUTS = {**TYPES, "int16": INT16, "uint8": UINT8}
NARROW = {"int8": "int32", "int16": "int32", "uint8": "int32", "uint16": "int32"}
HALVED = 1024  # elements, from which half precision is worth a Cast


class Shared:
    """What all scopes of a model share: its constants and the next free name."""

    def __init__(self):
        import onnx

        self.onnx = onnx
        self.numbers = itertools.count()
        self.tensors: list[onnx.TensorProto] = []
        self.casts: list[onnx.NodeProto] = []
        self.names: dict[Any, str] = {}
        self.narrow: dict[str, str] = {}  # what was spread to a shape -> the same before, with ones in its shape


class Scope:
    """Nodes of one graph, the outermost one or the body of a loop."""

    def __init__(self, shared: Shared | None = None):
        self.shared, self.nodes = shared or Shared(), []

    def fresh(self) -> str:
        return f"v{next(self.shared.numbers)}"

    def op(self, kind: str, *inputs: str, **attributes) -> str:
        """The one output of a new node."""
        return self.ops(kind, inputs, 1, **attributes)[0]

    def ops(self, kind: str, inputs: Sequence[str], count: int, **attributes) -> list[str]:
        names = [self.fresh() for _ in range(count)]
        self.nodes.append(self.shared.onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def info(self, name: str, kind: int, shape: Sequence[int]) -> onnx.ValueInfoProto:
        return self.shared.onnx.helper.make_tensor_value_info(name, kind, shape)

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of an array that is always the same."""
        array = np.asarray(value, dtype)
        array = np.ascontiguousarray(array.astype(NARROW.get(array.dtype.name, array.dtype))).reshape(array.shape)
        if array.dtype.name not in (*TYPES, "int64"):
            raise NoForm(f"arrays of {array.dtype.name}")
        key = array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest()
        if key not in self.shared.names:
            name = self.shared.names[key] = self.fresh()
            with np.errstate(over="ignore"):
                half = array.astype(np.float16 if array.dtype == np.float32 and array.size >= HALVED else array.dtype)
            halved = half.dtype != array.dtype and np.array_equal(half.astype(np.float32), array)
            stored = f"{name}_half" if halved else name
            self.shared.tensors.append(self.shared.onnx.numpy_helper.from_array(half if halved else array, stored))
            if halved:
                self.shared.casts.append(self.shared.onnx.helper.make_node("Cast", [stored], [name], to=FLOAT))
        return self.shared.names[key]

    def reshaped(self, name: str, before: Sequence[int], after: Sequence[int]) -> str:
        return name if tuple(before) == tuple(after) else self.op("Reshape", name, self.constant(after, "int64"))

    def transposed(self, name: str, order: Sequence[int]) -> str:
        return name if list(order) == list(range(len(order))) else self.op("Transpose", name, perm=list(order))

    def read(self, outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes that the outputs depend on."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if wanted & set(node.output):
                wanted |= names_in(node)
                kept.append(node)
        return kept[::-1]


def names_in(node: onnx.NodeProto) -> set[str]:
    """What a node reads, in its bodies, too."""
    bodies = [inner for attribute in node.attribute if attribute.HasField("g") for inner in attribute.g.node]
    return set(node.input).union(*map(names_in, bodies))


def type_of(dtype: Any) -> int:
    name = NARROW.get(np.dtype(dtype).name, np.dtype(dtype).name)
    if name not in TYPES:
        raise NoForm(f"arrays of {name}")
    return TYPES[name]
