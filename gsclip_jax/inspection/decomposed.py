"""A function as a jaxpr of simpler primitives, which formats of programs have operators for (onnx_ops.py).

What depends on constants alone is computed here. Calls are inlined. Decompositions of small matrices become arithmetic, indexing
becomes a choice of rows, and arrays without elements go.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

FOLDED = 1 << 16  # bytes: larger arrays are computed here only where they are no larger than what they are computed from
LARGEST_MATRIX = 8  # rows, of a decomposition; its arithmetic is written out
SWEEPS = 6  # of Jacobi rotations: float32 is exact after five at most
CALLS = {"jit": "jaxpr", "closed_call": "call_jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
         "remat2": "jaxpr", "checkpoint": "jaxpr"}  # primitive -> its parameter with what is called  # fmt: skip


class NoForm(ValueError):
    """Something that has no simpler form here; one line."""


def decomposed(function: Callable, specs: Sequence[jax.ShapeDtypeStruct]) -> core.ClosedJaxpr:
    """The jaxpr of `function`, which takes arrays of these shapes and gives a tuple of arrays.

    Raises:
      NoForm: it has a primitive, or a form of one, that is not decomposed here.
    """
    closed = jax.make_jaxpr(function)(*specs)
    for _ in range(2):  # the second time what the rules below made of the first
        before = closed
        closed = jax.make_jaxpr(lambda *arrays: tuple(_evaluated(before.jaxpr, before.consts, arrays)))(*specs)  # noqa: B023
    read = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)[0]
    return core.ClosedJaxpr(read, closed.consts)


def _evaluated(jaxpr: core.Jaxpr, consts: Sequence, arrays: Sequence) -> list:
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arrays], strict=True))
    for equation in jaxpr.eqns:
        given = [v.val if isinstance(v, core.Literal) else env[v] for v in equation.invars]
        env.update(zip(equation.outvars, _applied(equation, given), strict=True))
    return [v.val if isinstance(v, core.Literal) else env[v] for v in jaxpr.outvars]


def _applied(equation: core.JaxprEqn, given: list) -> Sequence:
    name, params = equation.primitive.name, equation.params
    shapes = [v.aval for v in equation.outvars]
    if all(0 in shape.shape for shape in shapes):
        return [np.zeros(shape.shape, shape.dtype) for shape in shapes]
    if name in CALLS:
        called = params[CALLS[name]]
        return _evaluated(getattr(called, "jaxpr", called), getattr(called, "consts", ()), given)
    size = sum(shape.size * shape.dtype.itemsize for shape in shapes)
    if all(map(_known, given)) and size <= max(FOLDED, sum(np.asarray(x).nbytes for x in given)):
        with jax.ensure_compile_time_eval():
            return [np.asarray(x) for x in _bound(equation, given)]
    return RULES[name](given, params) if name in RULES else _bound(equation, given)


def _bound(equation: core.JaxprEqn, given: list) -> Sequence:
    out = equation.primitive.bind(*given, **equation.params)
    return out if equation.primitive.multiple_results else [out]


def _known(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer)


def _scan(given: list, params: dict) -> list:
    fixed, carried, body = params["num_consts"], params["num_carry"], params["jaxpr"]

    def step(carry, row):
        out = _evaluated(body.jaxpr, body.consts, [*given[:fixed], *carry, *row])
        return tuple(out[:carried]), tuple(out[carried:])

    carry, rows = lax.scan(step, tuple(given[fixed : fixed + carried]), tuple(given[fixed + carried :]),
                           length=params["length"], reverse=params["reverse"])  # fmt: skip
    return [*carry, *rows]


def _solve(given: list, params: dict) -> list:
    lengths, solve = params["const_lengths"], params["jaxprs"].solve
    first = lengths.matvec + lengths.vecmat
    return _evaluated(solve.jaxpr, solve.consts, [*given[first : first + lengths.solve], *given[sum(lengths) :]])


def _concatenate(given: list, params: dict) -> list:
    return [lax.concatenate([x for x in given if 0 not in x.shape], params["dimension"])]


def _iota(given: list, params: dict) -> list:
    shape, axis = params["shape"], params["dimension"]
    return [lax.broadcast_in_dim(np.arange(shape[axis], dtype=params["dtype"]), shape, (axis,))]


def _gather(given: list, params: dict) -> list:
    """As a choice of rows: of the operand with the indexed axes first and as one."""
    operand, indices = given
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    at = [int(axis) for axis in numbers.start_index_map]
    batched = [int(axis) for axis in numbers.operand_batching_dims]
    whole = [axis for axis in range(operand.ndim) if axis not in (*at, *batched)]
    for axis in whole:
        operand = lax.slice_in_dim(operand, 0, sizes[axis], axis=axis)
    shape, math_of = operand.shape, np if _known(indices) else jnp
    if _known(indices):
        indices = np.asarray(indices)
    leading, wide = indices.shape[:-1], tuple(sizes[axis] for axis in at)
    rows, good = math_of.zeros(leading + (1,) * len(at), "int32"), np.array(True)
    for axis, place in zip(batched, numbers.start_indices_batching_dims, strict=True):
        along = np.arange(leading[place], dtype="int32").reshape([-1 if n == place else 1 for n in range(rows.ndim)])
        rows = rows * np.int32(shape[axis]) + along
    mode = lax.GatherScatterMode.from_any(params["mode"])
    for number, axis in enumerate(at):
        start = indices[..., number].reshape(leading + (1,) * len(at)).astype("int32")
        last = np.int32(shape[axis] - sizes[axis])
        if mode != lax.GatherScatterMode.PROMISE_IN_BOUNDS:
            if mode == lax.GatherScatterMode.FILL_OR_DROP:
                good = good & (start >= 0) & (start <= last)
            start = math_of.clip(start, np.int32(0), last)
        window = np.arange(sizes[axis], dtype="int32").reshape([-1 if n == number else 1 for n in range(len(at))])
        rows = rows * np.int32(shape[axis]) + (start + window)
    rows = math_of.broadcast_to(rows, leading + wide)
    first = math.prod(shape[axis] for axis in (*batched, *at))
    table = lax.transpose(operand, (*batched, *at, *whole)).reshape(first, *(shape[axis] for axis in whole))
    found = rows_of(table, rows)
    if mode == lax.GatherScatterMode.FILL_OR_DROP and not (_known(good) and np.all(good)):
        good = good.reshape(good.shape + (1,) * len(whole))
        found = jnp.where(good, found, _fill(params["fill_value"], found.dtype))
    # So far: what the indices have, windows over indexed axes, the other axes.
    collapsed = [int(axis) for axis in numbers.collapsed_slice_dims]
    kept = [axis for axis in range(operand.ndim) if axis not in (*collapsed, *batched)]
    gone = [len(leading) + n for n, axis in enumerate(at) if axis in collapsed]
    places = {axis: len(leading) + n for n, axis in enumerate([*at, *whole])}
    dropped = lax.squeeze(found, gone + [places[axis] for axis in whole if axis in collapsed])
    order = [axis for axis in [*at, *whole] if axis in kept]
    offset, out = [int(axis) for axis in numbers.offset_dims], dropped.ndim
    source = {place: len(leading) + order.index(axis) for place, axis in zip(offset, kept, strict=True)}
    rest = iter(range(len(leading)))
    return [lax.transpose(dropped, [source[n] if n in source else next(rest) for n in range(out)])]


def rows_of(table: jax.Array, rows: jax.Array) -> jax.Array:
    """Rows [...,*R] of a table [N,*R] by their numbers int32 [...]: the one form of `gather` that is left."""
    rest = table.ndim - 1
    numbers = lax.GatherDimensionNumbers(tuple(range(rows.ndim, rows.ndim + rest)), (0,), (0,))
    return lax.gather(table, rows[..., None], numbers, (1, *table.shape[1:]), mode="promise_in_bounds")


def _fill(value: Any, dtype: np.dtype) -> Any:
    if value is not None:
        return np.asarray(value, dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return np.asarray(np.nan, dtype)
    return np.asarray(jnp.iinfo(dtype).min if jnp.issubdtype(dtype, jnp.integer) else True, dtype)


def _scatter(given: list, params: dict, primitive: Any) -> list:
    """With indices that are known, a choice among the elements of both; else into one place, as loops do."""
    operand, indices, updates = given
    if not _known(indices):
        return [_set(operand, indices, updates, params["dimension_numbers"])]
    with jax.ensure_compile_time_eval():
        olds = jnp.arange(operand.size, dtype=jnp.int32).reshape(operand.shape)
        news = jnp.arange(operand.size, operand.size + updates.size, dtype=jnp.int32).reshape(updates.shape)
        chosen = np.asarray(primitive.bind(olds, indices, news, **params))
    return [rows_of(lax.concatenate([jnp.ravel(operand), jnp.ravel(updates)], 0), chosen)]


def _set(operand: jax.Array, indices: jax.Array, updates: jax.Array, numbers: lax.ScatterDimensionNumbers) -> jax.Array:
    """The operand with one row, column, ... of another number replaced; there is none where the number is out of bounds."""
    gone = tuple(int(axis) for axis in numbers.inserted_window_dims)
    row = tuple(1 if axis in gone else size for axis, size in enumerate(operand.shape))
    if indices.ndim != 1 or gone != tuple(numbers.scatter_dims_to_operand_dims) or updates.size != math.prod(row):
        raise NoForm("scatter to several places that depend on the input")
    there = np.array(True)
    for number, axis in enumerate(gone):
        there = there & (_iota([], {"shape": operand.shape, "dimension": axis, "dtype": np.int32})[0] == indices[number])
    return jnp.where(there, updates.reshape(row), operand)


def _dynamic_slice(given: list, params: dict) -> list:
    operand, starts = given[0], given[1:]
    for axis, (start, size) in enumerate(zip(starts, params["slice_sizes"], strict=True)):
        last = operand.shape[axis] - size
        if last == 0:
            continue
        if _known(start):
            start = min(max(int(start), 0), last)
            operand = lax.slice_in_dim(operand, start, start + size, axis=axis)
        else:
            rows = jnp.clip(start, 0, last).astype(jnp.int32) + np.arange(size, dtype=np.int32)
            operand = jnp.moveaxis(rows_of(jnp.moveaxis(operand, axis, 0), rows), 0, axis)
    return [operand]


def _small(matrices: jax.Array, name: str) -> int:
    size = matrices.shape[-1]
    if size > LARGEST_MATRIX:
        raise NoForm(f"{name} of {size} x {size} matrices")
    return size


def _eigh(given: list, params: dict) -> list:
    """Vectors [...,N,N], one a column, and values [...,N], ascending, of symmetric [...,N,N] by Jacobi's rotations."""
    (left,) = given
    size = _small(left, "eigh")
    vectors, eye = jnp.broadcast_to(jnp.eye(size, dtype=left.dtype), left.shape), np.eye(size, dtype=left.dtype)
    for p, q in list(itertools.combinations(range(size), 2)) * SWEEPS:
        off = left[..., p, q]
        ratio = (left[..., q, q] - left[..., p, p]) / (2 * jnp.where(off == 0, 1, off))
        tangent = jnp.where(ratio < 0, -1, 1) / (jnp.abs(ratio) + jnp.sqrt(jnp.square(ratio) + 1))
        tangent = jnp.where(off == 0, 0, tangent)[..., None, None]
        cosine = lax.rsqrt(jnp.square(tangent) + 1)
        both, across = np.diag(eye[p] + eye[q]), np.outer(eye[p], eye[q]) - np.outer(eye[q], eye[p])
        turn = (eye - both) + cosine * both + cosine * tangent * across
        left = _product(jnp.swapaxes(turn, -1, -2), _product(left, turn))
        vectors = _product(vectors, turn)
    values = jnp.stack([left[..., number, number] for number in range(size)], -1)
    ours, others, number = values[..., :, None], values[..., None, :], np.arange(size)
    rank = ((others < ours) | ((others == ours) & (number < number[:, None]))).sum(-1)
    chosen = (rank[..., :, None] == number).astype(left.dtype)  # [..., before, after]
    return [_product(vectors, chosen), _product(values[..., None, :], chosen)[..., 0, :]]


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


def _lu(given: list, params: dict) -> list:
    """L and U in one matrix [...,N,N], pivots and permutation int32 [...,N]; rows are swapped for the largest pivot."""
    (left,) = given
    size = _small(left, "lu")
    number = np.arange(size, dtype=np.int32)
    order, pivots = jnp.broadcast_to(number, left.shape[:-1]), []
    for k in range(size):
        pivot = jnp.where(number >= k, jnp.abs(left[..., :, k]), -1).argmax(-1).astype(jnp.int32)[..., None]
        swapped = jnp.where(number == k, pivot, jnp.where(number == pivot, k, number))
        chosen = swapped[..., :, None] == number
        left = jnp.where(chosen[..., None], left[..., None, :, :], 0).sum(-2)
        order = jnp.where(chosen, order[..., None, :], 0).sum(-1)
        share = jnp.where(number > k, left[..., :, k] / left[..., k, k][..., None], 0)[..., None]
        after = left - share * jnp.where(number > k, left[..., k, :], 0)[..., None, :]
        left = jnp.where((number[:, None] > k) & (number == k), share, after)
        pivots.append(pivot)
    return [left, jnp.concatenate(pivots, -1), order]


def _triangular_solve(given: list, params: dict) -> list:
    left, right = given
    lower, over = params["lower"], params["transpose_a"]
    if not params["left_side"] or params["conjugate_a"]:
        raise NoForm("triangular_solve from the right")
    size = _small(left, "triangular_solve")
    if over:
        left, lower = jnp.swapaxes(left, -1, -2), not lower
    found: dict[int, jax.Array] = {}
    for row in range(size) if lower else range(size - 1, -1, -1):
        value = right[..., row, :]
        for column, known in found.items():
            value = value - left[..., row, column, None] * known
        found[row] = value if params["unit_diagonal"] else value / left[..., row, row, None]
    return [jnp.stack([found[row] for row in range(size)], -2)]


def _shift(given: list, params: dict) -> list:
    """Division by a power of two that rounds down."""
    value, places = given
    if not _known(places) or np.ndim(places) or not 0 <= int(places) < 31:
        raise NoForm("shift by numbers that depend on the input")
    divisor = np.int32(1 << int(places))
    return [lax.div(value - jnp.where(value < 0, divisor - 1, 0), jnp.full_like(value, divisor))]


def _same(given: list, params: dict) -> list:
    return given


RULES: dict[str, Callable[[list, dict], Sequence]] = {
    "scan": _scan, "custom_linear_solve": _solve, "concatenate": _concatenate, "iota": _iota, "gather": _gather,
    "scatter": lambda given, params: _scatter(given, params, lax.scatter_p), "dynamic_slice": _dynamic_slice,
    "shift_right_arithmetic": _shift, "eigh": _eigh, "lu": _lu, "triangular_solve": _triangular_solve, "stop_gradient": _same,
    "copy": _same, "optimization_barrier": _same,
}  # fmt: skip
