"""Floating-point operations of a function, counted from its jaxpr: nothing is computed or allocated, and loops count as often as
they run. XLA's own `cost_analysis` counts the body of a scan once.

Convention: a product of [M,K] with [K,N] has 2 M K N operations, as in roofline figures; everything else has one for each element
that it makes (reductions: that they read). Moving data has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from jax.interpreters.partial_eval import dce_jaxpr

Known = Any  # the value of a variable, where it follows from the program alone: numpy array or None
SMALL = 4096  # elements of a value that is followed

# No arithmetic: places, shapes, types.
MOVING = frozenset("""
    reshape broadcast_in_dim transpose slice dynamic_slice dynamic_update_slice concatenate pad gather squeeze rev copy copy_p
    iota convert_element_type bitcast_convert_type stop_gradient sharding_constraint device_put split expand_dims
    optimization_barrier random_wrap random_unwrap random_seed mesh_cast reshard pvary pbroadcast create_token empty name
    """.split())
READING = ("reduce_", "arg", "cum", "sort", "top_k", "scatter")  # work goes by what is read


@dataclass(frozen=True)
class Flops:
    """Counts of one call.

    Fields:
      products: of matrix products and convolutions.
      other: of everything else.
      open_loops: `while` loops whose number of turns does not follow from the program; their bodies are counted once.
      half: of the products, those of 16-bit operands alone; devices take them faster.
    """

    products: int = 0
    other: int = 0
    open_loops: int = 0
    half: int = 0

    def __add__(self, more: Flops) -> Flops:
        loops = self.open_loops + more.open_loops
        return Flops(self.products + more.products, self.other + more.other, loops, self.half + more.half)

    def __mul__(self, times: int) -> Flops:
        return Flops(self.products * times, self.other * times, self.open_loops, self.half * times)

    @property
    def all(self) -> int:
        return self.products + self.other


def flops(function: Callable, *args: Any) -> Flops:
    """Of one call of `function` with arguments like `args` (arrays or `jax.ShapeDtypeStruct`).

    A branch (`lax.cond`) whose index follows from the program alone counts as the branch that is taken, in every turn of a scan;
    else the dearest counts. What no result depends on is not counted, as no compiler computes it.
    """
    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    known = dict(zip(closed.jaxpr.constvars, map(_followed, closed.consts), strict=True))
    return _count(jaxpr, [None] * len(jaxpr.invars), [known.get(var) for var in jaxpr.constvars])[0]


def _followed(value: Any) -> Known:
    """The value, if it can decide a branch or a number of turns: whole numbers and truth values, few of them."""
    dtype = getattr(value, "dtype", None)
    return np.asarray(value) if dtype is not None and _decides(dtype) and np.size(value) <= SMALL else None


def _decides(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.integer) or jnp.issubdtype(dtype, jnp.bool_)


def _count(jaxpr: Jaxpr, inputs: Sequence[Known], consts: Sequence[Known] = ()) -> tuple[Flops, list[Known]]:
    """Operations of a jaxpr, and those of its results that are known."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *inputs], strict=True))
    total = Flops()
    for eqn in jaxpr.eqns:
        given = [_followed(np.asarray(var.val)) if isinstance(var, Literal) else values.get(var) for var in eqn.invars]
        found, made = _equation(eqn, given)
        total += found
        values.update(zip(eqn.outvars, made, strict=True))
    return total, [np.asarray(var.val) if isinstance(var, Literal) else values.get(var) for var in jaxpr.outvars]


def _equation(eqn: Any, given: list[Known]) -> tuple[Flops, list[Known]]:
    name, params, unknown = eqn.primitive.name, eqn.params, [None] * len(eqn.outvars)
    if name == "scan":
        return _scan(params, given)
    if name == "cond":
        branches = params["branches"]
        if given[0] is not None:
            return _closed(branches[int(np.clip(given[0], 0, len(branches) - 1))], given[1:])
        return max((_closed(branch, given[1:])[0] for branch in branches), key=lambda found: found.all), unknown
    if name == "while":
        body = _closed(params["body_jaxpr"], [None] * len(params["body_jaxpr"].in_avals))[0]
        return body + Flops(open_loops=1), unknown
    if inner := list(_inner(params)):
        times = _devices(params) if name == "shard_map" else 1
        if len(inner) == 1 and len(inner[0].in_avals) == len(given) and len(inner[0].out_avals) == len(eqn.outvars):
            found, made = _closed(inner[0], given)
            return found * times, made
        return sum((_closed(one, [None] * len(one.in_avals))[0] for one in inner), Flops()) * times, unknown
    return _leaf(eqn), _evaluated(eqn, given)


def _devices(params: dict[str, Any]) -> int:
    """How many devices run the program of a `shard_map`, each on its part."""
    mesh = params["mesh"]
    return math.prod(mesh.shape[axis] for axis in params["newly_manual_axes"])


def _closed(closed: ClosedJaxpr, inputs: Sequence[Known]) -> tuple[Flops, list[Known]]:
    return _count(closed.jaxpr, inputs, [_followed(const) for const in closed.consts])


def _inner(params: dict[str, Any]) -> Iterator[ClosedJaxpr]:
    """The programs that an equation calls; of a function with a rule for its derivative, the function."""
    for key, value in params.items():
        if key in ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "jvp_jaxpr_thunk"):
            continue
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one
            elif isinstance(one, Jaxpr):
                yield ClosedJaxpr(one, [])


def _scan(params: dict[str, Any], given: list[Known]) -> tuple[Flops, list[Known]]:
    body, length = params["jaxpr"], params["length"]
    consts, carried = params["num_consts"], params["num_carry"]
    fixed, carry, rows = given[:consts], given[consts : consts + carried], given[consts + carried :]
    turned = len(body.out_avals) - carried
    if not _branches(body.jaxpr) or all(value is None for value in given):
        return _closed(body, [None] * len(body.in_avals))[0] * length, [None] * len(body.out_avals)
    total, made = Flops(), [[] for _ in range(turned)]
    for turn in reversed(range(length)) if params["reverse"] else range(length):
        row = [None if value is None else value[turn] for value in rows]
        found, out = _closed(body, [*fixed, *carry, *row])
        total, carry = total + found, out[:carried]
        for values, value in zip(made, out[carried:], strict=True):
            values.append(value)
    stacked = [
        None if any(value is None for value in values) else np.stack(values[::-1] if params["reverse"] else values)
        for values in made
    ]  # fmt: skip
    return total, [*carry, *stacked]


def _branches(jaxpr: Jaxpr) -> bool:
    """Whether anything in it depends on values: then the turns of a loop may differ."""
    return any(
        eqn.primitive.name == "cond" or any(_branches(one.jaxpr) for one in _inner(eqn.params)) for eqn in jaxpr.eqns
    )  # fmt: skip


def _evaluated(eqn: Any, given: list[Known]) -> list[Known]:
    """The results of an equation with known inputs."""
    out = [var.aval for var in eqn.outvars]
    worth = all(hasattr(aval, "dtype") and math.prod(aval.shape) <= SMALL and _decides(aval.dtype) for aval in out)
    if not worth or eqn.effects or any(value is None for value in given):
        return [None] * len(out)
    with jax.ensure_compile_time_eval():
        found = eqn.primitive.bind(*given, **eqn.params)
    return [_followed(value) for value in (found if eqn.primitive.multiple_results else [found])]


def _products(count: int, operands: Sequence[Any]) -> Flops:
    return Flops(products=count, half=count if all(one.dtype.itemsize == 2 for one in operands) else 0)


def _leaf(eqn: Any) -> Flops:
    name, params = eqn.primitive.name, eqn.params
    made = sum(math.prod(var.aval.shape) for var in eqn.outvars if hasattr(var.aval, "shape"))
    read = [var.aval for var in eqn.invars if hasattr(var.aval, "shape")]
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        return _products(2 * made * math.prod(read[0].shape[axis] for axis in summed), read)
    if name == "conv_general_dilated":
        numbers, kernel = params["dimension_numbers"], read[1].shape
        # A kernel is [output, input / groups, ...] in the order of rhs_spec.
        return _products(2 * made * math.prod(kernel) // kernel[numbers.rhs_spec[0]], read)
    if name in MOVING:
        return Flops()
    if name.startswith(READING):
        return Flops(other=math.prod(read[-1 if name.startswith("scatter") else 0].shape))
    return Flops(other=made)
