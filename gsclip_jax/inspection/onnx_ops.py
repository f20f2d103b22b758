"""The graph of ONNX operators for a jaxpr that `decomposed` made: one rule a primitive."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax import lax
from jax.extend import core

from gsclip_jax.inspection.decomposed import NoForm
from gsclip_jax.inspection.onnx_graph import BOOL, DOUBLE, FLOAT, INPUTS, INT32, INT64, NARROW, TYPES, Scope, names_in, type_of

if TYPE_CHECKING:
    import onnx

OPSET = 26  # the first with BitCast
# Terms from which a sum is taken in doubles, and numbers that a product of matrices may have for that: onnxruntime adds one term
# after the other, which XLA does not.
LONG, FEW = 256, 64
UNARY = {"neg": "Neg", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "floor": "Floor", "ceil": "Ceil", "sin": "Sin",
         "cos": "Cos", "acos": "Acos", "tanh": "Tanh", "erf": "Erf", "sign": "Sign", "logistic": "Sigmoid"}  # fmt: skip
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "pow": "Pow"}
COMPARED = {"lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual", "eq": "Equal"}
LOGICAL = {"and": ("And", "BitwiseAnd"), "or": ("Or", "BitwiseOr"), "not": ("Not", "BitwiseNot"), "xor": ("Xor", "BitwiseXor")}
REDUCED = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


def graph_of(
    closed: core.ClosedJaxpr, inputs: Mapping[str, tuple[Sequence[int], str]], outputs: Sequence[str]
) -> onnx.ModelProto:
    """The model with these names.

    Args:
      inputs: name -> (shape, dtype), in the order of the jaxpr's arguments.
      outputs: names, in the order of its results.

    Raises:
      NoForm: it has a primitive, a form of one or a dtype without a rule here.
    """
    scope, given = Scope(), []
    helper = scope.shared.onnx.helper
    for name, (_, dtype) in inputs.items():
        given.append(scope.op("Cast", name, to=TYPES[NARROW[dtype]]) if dtype in NARROW else name)
    found = evaluated(scope, closed, given)
    for name, value in zip(outputs, found, strict=True):
        scope.nodes.append(helper.make_node("Identity", [value], [name]))
    takes = [scope.info(name, INPUTS[dtype], shape) for name, (shape, dtype) in inputs.items()]
    gives = [
        scope.info(name, type_of(v.aval.dtype), v.aval.shape)
        for name, v in zip(outputs, closed.jaxpr.outvars, strict=True)
    ]
    nodes = scope.read(outputs)
    used = {name for node in nodes for name in names_in(node)}
    nodes = [cast for cast in scope.shared.casts if cast.output[0] in used] + nodes
    used = {name for node in nodes for name in names_in(node)}
    weights = [tensor for tensor in scope.shared.tensors if tensor.name in used]
    graph = helper.make_graph(nodes, "scores", takes, gives, initializer=weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="gsclip_jax")


def evaluated(scope: Scope, closed: core.ClosedJaxpr, given: Sequence[str]) -> list[str]:
    """Names of the results of a jaxpr that is given arrays of these names."""
    jaxpr = closed.jaxpr
    env: dict[Any, str] = dict(zip(jaxpr.invars, given, strict=True))
    consts = dict(zip(jaxpr.constvars, closed.consts, strict=True))

    def name_of(value: Any) -> str:
        if isinstance(value, core.Literal):
            return scope.constant(value.val, value.aval.dtype)
        if value not in env:
            env[value] = scope.constant(consts[value])
        return env[value]

    for equation in jaxpr.eqns:
        rule = RULES.get(equation.primitive.name)
        if rule is None:
            raise NoForm(f"the primitive {equation.primitive.name}")
        found = rule(scope, [name_of(v) for v in equation.invars], equation)
        env.update(zip(equation.outvars, [found] if isinstance(found, str) else found, strict=True))
    return [name_of(v) for v in jaxpr.outvars]


def _shapes(equation: core.JaxprEqn) -> list[tuple[int, ...]]:
    return [v.aval.shape for v in equation.invars]


def _is_bool(equation: core.JaxprEqn, number: int = 0) -> bool:
    return equation.invars[number].aval.dtype == bool


def _aligned(scope: Scope, given: list[str], equation: core.JaxprEqn) -> list[str]:
    """Operators broadcast by themselves: what only was spread to the shape of another operand need not be."""
    narrow, shape = [scope.shared.narrow.get(name, name) for name in given], equation.outvars[0].aval.shape
    whole = [name == less and at == shape for name, less, at in zip(given, narrow, _shapes(equation), strict=True)]
    return narrow if any(whole) else given


def _elementwise(kind: str) -> Callable:
    return lambda scope, given, equation: scope.op(kind, *_aligned(scope, given, equation))


def _compared(kind: str, negated: bool = False) -> Callable:
    def rule(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
        if _is_bool(equation) and kind != "Equal":
            given = [scope.op("Cast", name, to=INT32) for name in given]
        found = _elementwise(kind)(scope, given, equation)
        return scope.op("Not", found) if negated else found

    return rule


def _logical(kinds: tuple[str, str]) -> Callable:
    return lambda scope, given, equation: _elementwise(kinds[0] if _is_bool(equation) else kinds[1])(scope, given, equation)


def _select(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    which, *cases = given
    if not _is_bool(equation) or len(cases) != 2:
        raise NoForm("select_n by numbers")
    if _is_bool(equation, 1):  # onnxruntime has no Where of booleans
        no, yes = scope.op("And", scope.op("Not", which), cases[0]), scope.op("And", which, cases[1])
        return scope.op("Or", no, yes)
    which, no, yes = _aligned(scope, given, equation)
    return scope.op("Where", which, yes, no)


def _convert(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    source, target = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
    if target.name in NARROW and not np.can_cast(source, target):
        raise NoForm(f"{source.name} as {target.name}")
    return given[0] if type_of(source) == type_of(target) else scope.op("Cast", given[0], to=type_of(target))


def _reduced(kind: str) -> Callable:
    def rule(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
        return scope.op(kind, given[0], scope.constant(equation.params["axes"], "int64"), keepdims=0)

    return rule


def _sum(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    axes, aval = equation.params["axes"], equation.invars[0].aval
    if aval.dtype != np.float32 or math.prod(aval.shape[axis] for axis in axes) < LONG:
        return _reduced("ReduceSum")(scope, given, equation)
    wide = _reduced("ReduceSum")(scope, [scope.op("Cast", given[0], to=DOUBLE)], equation)
    return scope.op("Cast", wide, to=FLOAT)


def _reduced_bool(kind: str) -> Callable:
    def rule(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
        number = _reduced(kind)(scope, [scope.op("Cast", given[0], to=INT32)], equation)
        return scope.op("Cast", number, to=BOOL)

    return rule


def _arg(kind: str) -> Callable:
    def rule(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
        (axis,) = equation.params["axes"]
        return scope.op("Cast", scope.op(kind, given[0], axis=axis, keepdims=0), to=INT32)

    return rule


def _broadcast(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    (before, *_), after = _shapes(equation), equation.params["shape"]
    aligned = [1] * len(after)
    for axis, place in enumerate(equation.params["broadcast_dimensions"]):
        aligned[place] = before[axis]
    name = scope.reshaped(given[0], before, aligned)
    if tuple(aligned) == tuple(after):
        return name
    spread = scope.op("Expand", name, scope.constant(after, "int64"))
    scope.shared.narrow[spread] = name
    return spread


def _to_shape(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        raise NoForm("reshape of other dimensions")
    return scope.reshaped(given[0], _shapes(equation)[0], equation.outvars[0].aval.shape)


def _slice(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    params = equation.params
    steps = params["strides"] or [1] * len(params["start_indices"])
    bounds = [params["start_indices"], params["limit_indices"], range(len(steps)), steps]
    return scope.op("Slice", given[0], *(scope.constant(list(values), "int64") for values in bounds))


def _split(scope: Scope, given: list[str], equation: core.JaxprEqn) -> list[str]:
    sizes = equation.params["sizes"]
    return scope.ops("Split", [given[0], scope.constant(sizes, "int64")], len(sizes), axis=equation.params["axis"])


def _stack(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    axis = equation.params["axis"]
    rows = [scope.op("Unsqueeze", name, scope.constant([axis], "int64")) for name in given]
    return scope.op("Concat", *rows, axis=axis)


def _pad(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    low, high, inside = zip(*equation.params["padding_config"], strict=True)
    if any(inside):
        raise NoForm("pad between elements")
    return scope.op("Pad", given[0], scope.constant([*low, *high], "int64"), given[1])


def _dot(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    """As MatMul of [batch, rows, common] and [batch, common, columns]."""
    (left, right), dims = _shapes(equation), equation.params["dimension_numbers"]
    (at_left, at_right), (batch_left, batch_right) = dims
    rows = [axis for axis in range(len(left)) if axis not in (*at_left, *batch_left)]
    columns = [axis for axis in range(len(right)) if axis not in (*at_right, *batch_right)]

    def matrices(name: str, shape: tuple[int, ...], *groups: Sequence[int]) -> str:
        order = [axis for group in groups for axis in group]
        ordered = [shape[axis] for axis in order]
        batch = [shape[axis] for axis in groups[0]]
        wanted = batch + [math.prod(shape[axis] for axis in group) for group in groups[1:]]
        return scope.reshaped(scope.transposed(name, order), ordered, wanted)

    factors = [matrices(given[0], left, batch_left, rows, at_left), matrices(given[1], right, batch_right, at_right, columns)]
    sizes = [left[axis] for axis in rows], [right[axis] for axis in columns]
    wide = math.prod(left[axis] for axis in at_left) >= LONG and math.prod(sizes[0] + sizes[1]) <= FEW
    found = scope.op("MatMul", *(scope.op("Cast", name, to=DOUBLE) if wide else name for name in factors))
    found = scope.op("Cast", found, to=FLOAT) if wide else found
    made = [*(left[axis] for axis in batch_left), math.prod(sizes[0]), math.prod(sizes[1])]
    return scope.reshaped(found, made, equation.outvars[0].aval.shape)


def _gather(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    """The one form that `decomposed.rows_of` makes."""
    (table, rows), numbers = _shapes(equation), equation.params["dimension_numbers"]
    offset = tuple(range(len(rows) - 1, len(rows) + len(table) - 2))
    if numbers.collapsed_slice_dims != (0,) or numbers.start_index_map != (0,) or numbers.offset_dims != offset:
        raise NoForm("gather that is no choice of rows")
    return scope.op("Gather", given[0], scope.reshaped(given[1], rows, rows[:-1]), axis=0)


def _square(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    return scope.op("Mul", given[0], given[0])


def _power(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    power, out = equation.params["y"], given[0]
    if not 1 <= power <= 4:
        return scope.op("Pow", given[0], scope.constant(power, "float32"))
    for _ in range(power - 1):
        out = scope.op("Mul", out, given[0])
    return out


def _rsqrt(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    return scope.op("Reciprocal", scope.op("Sqrt", given[0]))


def _erfc(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    return scope.op("Sub", scope.constant(1, "float32"), scope.op("Erf", given[0]))


def _log1p(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    return scope.op("Log", scope.op("Add", scope.constant(1, "float32"), given[0]))


def _round(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    if equation.params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise NoForm("round away from zero")
    return scope.op("Round", given[0])


def _clamp(scope: Scope, given: list[str], equation: core.JaxprEqn) -> str:
    low, value, high = given
    return scope.op("Min", scope.op("Max", value, low), high)


def _order(scope: Scope, name: str, aval: Any, axis: int, count: int, largest: int) -> list[str]:
    """Values and their places, int64; the first of equal ones first."""
    if aval.dtype == bool:
        name = scope.op("Cast", name, to=INT32)
    elif aval.dtype == np.float32 and not largest:  # JAX has NaN last
        name = scope.op("Where", scope.op("IsNaN", name), scope.constant(np.inf, "float32"), name)
    return scope.ops("TopK", [name, scope.constant([count], "int64")], 2, axis=axis, largest=largest, sorted=1)


def _sort(scope: Scope, given: list[str], equation: core.JaxprEqn) -> list[str]:
    axis, first = equation.params["dimension"], equation.invars[0].aval
    if equation.params["num_keys"] != 1:
        raise NoForm("sort by several keys")
    places = _order(scope, given[0], first, axis, first.shape[axis], 0)[1]
    return [scope.op("GatherElements", name, places, axis=axis) for name in given]


def _top_k(scope: Scope, given: list[str], equation: core.JaxprEqn) -> list[str]:
    operand, count = equation.invars[0].aval, equation.params["k"]
    axis = equation.params.get("axis", operand.ndim - 1) % operand.ndim
    values, places = _order(scope, given[0], operand, axis, count, 1)
    return [values, scope.op("Cast", places, to=INT32)]


def _loop(scope: Scope, given: list[str], equation: core.JaxprEqn) -> list[str]:
    params, closed = equation.params, equation.params["jaxpr"]
    fixed, carried = params["num_consts"], params["num_carry"]
    if params["reverse"]:
        raise NoForm("scan from the end")
    body, step, go = Scope(scope.shared), scope.fresh(), scope.fresh()
    states = [scope.fresh() for _ in range(carried)]
    rows = [body.op("Gather", name, step, axis=0) for name in given[fixed + carried :]]
    found = evaluated(body, closed, [*given[:fixed], *states, *rows])
    results = [body.op("Identity", name) for name in [go, *found]]
    avals = [v.aval for v in closed.jaxpr.outvars]

    def info(name: str, aval: Any) -> onnx.ValueInfoProto:
        return scope.info(name, type_of(aval.dtype), aval.shape)

    takes = [scope.info(step, INT64, []), scope.info(go, BOOL, []), *map(info, states, avals[:carried])]
    gives = [scope.info(results[0], BOOL, []), *map(info, results[1:], avals)]
    graph = scope.shared.onnx.helper.make_graph(body.read(results), scope.fresh(), takes, gives)
    inputs = [scope.constant(params["length"], "int64"), "", *given[fixed : fixed + carried]]
    return scope.ops("Loop", inputs, len(found), body=graph)


RULES: dict[str, Callable[[Scope, list[str], core.JaxprEqn], str | list[str]]] = {
    **{name: _elementwise(kind) for name, kind in (UNARY | BINARY).items()},
    **{name: _compared(kind) for name, kind in COMPARED.items()}, "ne": _compared("Equal", negated=True),
    **{name: _logical(kinds) for name, kinds in LOGICAL.items()}, **{name: _reduced(kind) for name, kind in REDUCED.items()},
    "reduce_sum": _sum, "reduce_or": _reduced_bool("ReduceMax"), "reduce_and": _reduced_bool("ReduceMin"),
    "argmax": _arg("ArgMax"), "argmin": _arg("ArgMin"), "select_n": _select, "convert_element_type": _convert,
    "broadcast_in_dim": _broadcast, "reshape": _to_shape, "squeeze": _to_shape, "expand_dims": _to_shape, "slice": _slice,
    "split": _split, "stack": _stack, "pad": _pad, "dot_general": _dot, "gather": _gather, "square": _square,
    "integer_pow": _power, "rsqrt": _rsqrt, "erfc": _erfc, "log1p": _log1p, "clamp": _clamp, "round": _round, "sort": _sort,
    "top_k": _top_k, "scan": _loop,
    "rem": lambda scope, given, e: scope.op("Mod", *given, fmod=1),
    "transpose": lambda scope, given, e: scope.transposed(given[0], e.params["permutation"]),
    "concatenate": lambda scope, given, e: scope.op("Concat", *given, axis=e.params["dimension"]),
    "tile": lambda scope, given, e: scope.op("Tile", given[0], scope.constant(e.params["reps"], "int64")),
    "bitcast_convert_type": lambda scope, given, e: scope.op("BitCast", given[0], to=type_of(e.params["new_dtype"])),
}  # fmt: skip
