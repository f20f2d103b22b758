"""Programs in ONNX: every rule and every method gives what JAX gives; hostile and damaged files are one line."""

import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from data_pipelines.records.objects import Recipe
from experiments.configs.common import embedded, with_method
from gsclip_jax.build import build_model
from gsclip_jax.inspection import onnx as format_of
from gsclip_jax.inspection.program import OUTPUTS, Program, program_of
from gsclip_jax.inspection.saved import recipe_in
from gsclip_jax.methods import METHODS
from gsclip_jax.methods.surface import SurfaceVariation
from tests import tiny

REASON = "ONNX is optional: requirements-onnx.txt"
SMALL = {"points": 100, "image_size": 40, "views": 2, "cloud_points": 512, "neighbours": 8, "window": 64, "rasteriser": "numpy"}


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime", reason=REASON)
    return pytest.importorskip("onnx", reason=REASON)


def both(function, *arrays):
    """What JAX and onnxruntime make of a function that gives an array or several."""
    import onnxruntime

    from gsclip_jax.inspection.decomposed import decomposed
    from gsclip_jax.inspection.onnx_ops import graph_of

    def several(*given):
        found = function(*given)
        return tuple(found) if isinstance(found, tuple | list) else (found,)

    closed = decomposed(several, [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays])
    names = [f"x{number}" for number in range(len(arrays))]
    outputs = [f"y{number}" for number in range(len(closed.jaxpr.outvars))]
    model = graph_of(closed, {name: (array.shape, array.dtype.name) for name, array in zip(names, arrays)}, outputs)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return jax.device_get(jax.jit(several)(*arrays)), session.run(outputs, dict(zip(names, arrays)))


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def whole(*shape, low=0, high=9, dtype=np.int32):
    return np.random.default_rng(1).integers(low, high, shape).astype(dtype)


EQUAL = [  # to the bit
    ("comparisons", lambda a, b: (a < b, a <= b, a > b, a >= b, a == b, a != b), numbers(3, 4), np.round(numbers(3, 4))),
    ("booleans", lambda a, b: (a & b, a | b, a ^ b, ~a, a < b, jnp.where(a, b, ~b), a.any(0), a.all(1)), whole(3, 4) > 4,
     whole(3, 4) > 3),
    ("integers", lambda a: (a // 3, lax.div(a, 2), a & 6, a | 1, ~a, a.max(1), a.min(0), a >> 2), whole(3, 4, low=-9)),
    ("narrow", lambda a, b: (a.astype(jnp.float32) / 256, jnp.clip(b, 0, 7).astype(jnp.int32)),
     whole(5, high=256, dtype=np.uint8), whole(5, low=-300, high=300, dtype=np.int16)),
    ("bits", lambda a: lax.bitcast_convert_type(lax.bitcast_convert_type(a, jnp.int32) & ~7, jnp.float32), numbers(9)),
    ("powers of two", lambda a: jnp.ldexp(jnp.float32(1), jnp.frexp(a)[1]), np.abs(numbers(9)) * 100),
    ("rounding", lambda a: (jnp.round(a), jnp.floor(a), jnp.ceil(a), jnp.clip(a, -1, 2)),
     np.float32([-1.5, -.5, .5, 1.5, 2.5, 3])),
    ("shapes", lambda a: (a.T, a[:, None], a.reshape(2, -1), jnp.broadcast_to(a[0], (2, 4)), a[1:, ::2], jnp.tile(a, (2, 1)),
                          jnp.pad(a, ((1, 0), (0, 2)), constant_values=5), jnp.stack([a, a], 1), jnp.split(a, 2, 1)[1],
                          jnp.concatenate([a, a[:0], a])), numbers(3, 4)),
    ("firsts", lambda a: (a.argmax(1), a.argmin(0), *lax.top_k(a, 3)), np.round(numbers(5, 6)) + 0.0),
    ("orders", lambda a: (jnp.sort(a), jnp.argsort(a, stable=True), jnp.argsort(a > 0, stable=True)), np.round(numbers(5, 6))),
    ("orders with NaN", lambda a: jnp.sort(a, 0), np.where(numbers(5, 6) > 1, np.nan, numbers(5, 6))),
    ("rows", lambda a, i: (a[i], jnp.take(a, i, axis=1), jnp.take_along_axis(a, i[:, None] % 4, 1)), numbers(5, 6),
     whole(5, high=5)),
    ("rows of each", lambda a, i: jax.vmap(lambda x, at: x[at])(a, i), numbers(3, 5, 2), whole(3, 4, high=5)),
    ("out of bounds", lambda a, i: (a.at[i].get(mode="fill", fill_value=7), a.at[i].get(mode="clip"), jnp.take(a > 0, i)),
     numbers(5), whole(8, low=-4, high=9)),
    ("windows", lambda a, i: (lax.dynamic_slice(a, (i[0], i[1]), (2, 3)), lax.dynamic_slice_in_dim(a, 9, 2),
                              jax.vmap(lambda at: lax.dynamic_slice(a, (at, 1), (2, 3)))(i)), numbers(5, 6), whole(3, low=-2)),
    ("places that are known", lambda a: (a.at[1].set(0), a.at[:, 2].set(a[:, 0]), a.at[np.array([0, 2])].set(1)), numbers(3, 4)),
    ("a place that is not", lambda a, i: (a.at[i[0]].set(0), a.at[:, i[1]].set(a[:, 0])), numbers(3, 4), whole(2, high=3)),
    ("nothing", lambda a: (a[:0].sum() + a, jnp.zeros((0, 3)).sum(0) + a[:3]), numbers(4)),
]
CLOSE = [  # to float32's round-off
    ("functions", lambda a: (jnp.exp(a), jnp.log(a * a + 1), jnp.log1p(a * a), jnp.sqrt(a * a), lax.rsqrt(a * a + 1), jnp.sin(a),
                             jnp.cos(a), jnp.arccos(jnp.tanh(a)), jax.nn.sigmoid(a), jax.nn.gelu(a), lax.erf(a), lax.erfc(a),
                             jnp.sign(a), jnp.abs(a), a**3, a**-2, a**6, -a, a / (a * a + 1)), numbers(4, 5)),
    ("products", lambda a, b: (jnp.einsum("bij,bjk->bik", a, b), jnp.einsum("bij,bjk->kb", a, b), a[0] @ b[0], a[0, 0] @ b[0],
                               jnp.einsum("bij,bkj->ik", a, a)), numbers(2, 3, 4), numbers(2, 4, 5)),
    ("sums", lambda a: (a.sum(), a.mean(0), a.sum(1), a.T @ a), numbers(2000, 3)),
    ("quantiles", lambda a: (jnp.nanquantile(a, 0.8), jnp.nanmedian(a, 1), jnp.median(a)), numbers(4, 9)),
    ("eigenvectors", lambda a: jnp.abs(jnp.linalg.eigh(jnp.einsum("bij,bkj->bik", a, a))[1]), numbers(6, 3, 3)),
    ("eigenvalues", lambda a: jnp.linalg.eigh(jnp.einsum("bij,bkj->bik", a, a))[0], numbers(6, 3, 3)),
    ("solutions", lambda a, b: (jnp.linalg.solve(a, b), jnp.linalg.solve(a[0], b[0])), numbers(4, 6, 6), numbers(4, 6, 2)),
    ("solutions with swaps", lambda a: jnp.linalg.solve(a, jnp.arange(3.0)), np.float32([[0, 2, 1], [1, 0, 0], [3, 1, 0]])),
    ("loops", lambda a: (lax.fori_loop(0, 4, lambda i, x: x * 0.5 + i, a), lax.map(lambda x: x.sum() + a, a),
                         lax.scan(lambda c, x: (c + x, (c, c * x)), jnp.zeros(3), a)), numbers(5, 3)),
    ("loops in loops", lambda a: lax.map(
        lambda x: lax.fori_loop(0, 3, lambda i, y: y + jnp.broadcast_to(x, (4, 3)).sum(0), x), a), numbers(5, 3)),
]  # fmt: skip


@pytest.mark.parametrize("case", EQUAL, ids=lambda case: case[0])
def test_forms_that_are_equal(onnx, case):
    wanted, found = both(*case[1:])
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_array_equal(b, a)


@pytest.mark.parametrize("case", CLOSE, ids=lambda case: case[0])
def test_forms_that_are_close(onnx, case):
    wanted, found = both(lambda *given: jax.tree.leaves(case[1](*given)), *case[2:])
    for a, b in zip(wanted, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=5e-6)


def a_program(name, variant="paper", **changes):
    """A method of the registry around the embedded CLIP, with a LoRA that says something, for small objects."""
    config = with_method(embedded(), name)
    config.update({"variant": variant} if "variant" in config else {})
    config.data.update(SMALL)
    if changes:
        config.model.update(changes)
    method, params, stats, _ = build_model(config)
    if "lora" in params:
        params["lora"] = jax.tree.map(lambda x: 0.1 * numbers(*x.shape), params["lora"])
    return program_of(method, params, stats, recipe_in(config))


def a_batch(program, organised):
    rng, places = np.random.default_rng(0), numbers(100, 3)
    xyz = places / np.linalg.norm(places, axis=1, keepdims=True) * np.float32([1, 0.6, 0.3])
    near = np.linalg.norm(xyz[:, None] - xyz, axis=-1).argsort(1)[:, :8]
    fields = {"xyz": xyz, "neighbours": near, "valid": np.arange(100) < 90, "organised": np.array(organised)}
    fields |= {name: rng.integers(0, 256, (2, 40, 40)) for name in ("render", "depth")}
    fields |= {"cloud": numbers(512, 3) / 4, "pixel": rng.integers(0, 40, (2, 100, 2)), "visible": rng.random((2, 100)) < 0.6}
    return {name: fields[name][None].astype(dtype) for name, (_, dtype) in program.inputs.items()}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "surface_variation")) for name in METHODS]
)
def test_every_method_gives_the_same_scores(onnx, name):
    """GS-CLIP without its surface stream, whose search for symmetries makes more of round-off (docs/inspection.md)."""
    program = a_program(name, **({"surface_share": 0.0} if name == "gsclip" else {}))
    data = format_of.written(program)
    run, wanted_of = format_of.load(Path("."), data, program.specs(1)), jax.jit(program.run)
    for organised in (False, True):
        batch = a_batch(program, organised)
        wanted, found = wanted_of(program.weights, batch), run(batch)
        assert np.ptp(wanted["points"]) > 1e-3
        for output in OUTPUTS:
            np.testing.assert_allclose(found[output], wanted[output], rtol=0, atol=1e-5, err_msg=output)
    stored = [math.prod(tensor.dims) for tensor in onnx.ModelProto.FromString(data).graph.initializer]
    assert sum(stored) < 1.1 * sum(array.size for array in program.weights.values()) + 20_000  # every weight once


@pytest.mark.slow
def test_the_surface_stream_gives_nearly_the_same_scores(onnx):
    program = a_program("gsclip")
    batch = a_batch(program, False)
    found = format_of.load(Path("."), format_of.written(program), program.specs(1))(batch)
    wanted = jax.jit(program.run)(program.weights, batch)
    for output, bound in {"object": 1e-5, "points": 1e-3, "views": 1e-5}.items():
        np.testing.assert_allclose(found[output], wanted[output], rtol=0, atol=bound, err_msg=output)


RECIPE = Recipe(points=64, image_size=32, views=3, cameras="ring", window=32, point_size=1.0, cloud_points=32, neighbours=4,
                sample_seed=0)  # fmt: skip


def variation() -> Program:
    return program_of(SurfaceVariation(), {}, {}, RECIPE)


def changed(onnx, data, change) -> bytes:
    model = onnx.ModelProto.FromString(data)
    change(model, onnx.helper)
    return model.SerializeToString()


def _beside(model, helper):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="../../secret")


def _in_a_loop(model, helper):
    body = helper.make_graph([helper.make_node("PyOp", ["a"], ["b"], domain="ai.onnx.contrib")], "g", [], [])
    model.graph.node.insert(0, helper.make_node("Loop", ["", ""], ["z"], body=body))


HOSTILE = {
    "weights in another file": _beside, "the operator ai.onnx.contrib PyOp": _in_a_loop,
    "operators of evil": lambda model, helper: model.opset_import.append(helper.make_opsetid("evil", 1)),
    "functions or training": lambda model, helper: model.functions.add(name="f"),
    "the operator If": lambda model, helper: model.graph.node.append(helper.make_node("If", ["c"], ["z"])),
    "an attribute x of Abs": lambda model, helper: model.graph.node.append(helper.make_node("Abs", ["c"], ["z"], x=[0.5])),
    "weights of another size than they say": lambda model, helper: model.graph.initializer[0].dims.append(10**12),
    "not a model that this onnxruntime": lambda model, helper: model.graph.node.append(helper.make_node("Abs", ["none"], ["z"])),
    "does not take the batches": lambda model, helper: model.graph.output.pop(),
}  # fmt: skip


def refused(data, specs) -> str:
    with pytest.raises(ValueError) as error:
        format_of.load(Path("model"), data, specs)
    assert "\n" not in str(error.value) and str(error.value).startswith("model/model.onnx: ")
    return str(error.value)


def test_hostile_files_are_refused_before_they_are_run(onnx):
    program = variation()
    data, specs = format_of.written(program), program.specs(1)
    for said, change in HOSTILE.items():
        assert said in refused(changed(onnx, data, change), specs)
    assert "more than a file of ONNX holds" in _too_large(data, specs)
    assert "does not take the batches" in refused(data, program.specs(2))


def _too_large(data, specs) -> str:
    before, format_of.LARGEST = format_of.LARGEST, len(data) - 1
    try:
        return refused(data, specs)
    finally:
        format_of.LARGEST = before


def test_damaged_files_are_one_line_or_run(onnx):
    program, ran = variation(), 0
    data, rng = format_of.written(program), np.random.default_rng(0)
    batch = {name: tiny.batch(1)[name] for name in program.inputs}
    assert set(format_of.load(Path("model"), data, program.specs(1))(batch)) == set(OUTPUTS)
    for number in range(40):
        bad = bytearray(data)
        for place in rng.integers(0, len(bad), 20):
            bad[place] = rng.integers(256)
        bad = bytes(bad) if number % 2 else data[: rng.integers(len(data))]
        try:
            format_of.load(Path("model"), bad, program.specs(1))(batch)
            ran += 1
        except ValueError as error:
            assert "\n" not in str(error) and str(error).startswith("model/model.onnx: ")
    assert ran < 20


def test_one_object_at_a_time(onnx):
    program = variation()
    run = format_of.load(Path("model"), format_of.written(program), program.specs(1))
    with pytest.raises(ValueError, match="one object at a time, not 2"):
        run({name: tiny.batch(2)[name] for name in program.inputs})


def test_operators_that_are_written_are_those_that_are_read(onnx):
    from gsclip_jax.inspection import onnx_ops

    kinds = {*onnx_ops.UNARY.values(), *onnx_ops.BINARY.values(), *onnx_ops.COMPARED.values(), *onnx_ops.REDUCED.values()}
    assert kinds | {kind for both in onnx_ops.LOGICAL.values() for kind in both} <= format_of.OPERATORS


def test_what_has_no_form_is_named(onnx):
    def with_scores(function):
        def run(weights, batch):
            spread = function(batch["xyz"])
            return {name: spread for name in OUTPUTS}

        return Program(run, {}, {"xyz": ((64, 3), "float32")})

    assert format_of.written(with_scores(lambda x: jnp.linalg.eigh(x[0].T @ x[0])[0]))
    for function, said in {
        lambda x: lax.while_loop(lambda y: y.sum() < 5, lambda y: y + 1, x): "the primitive while",
        lambda x: x.astype(jnp.bfloat16) * 2: "arrays of bfloat16",
        lambda x: jnp.linalg.eigh(x[0] @ x[0].T)[0]: "eigh of 64 x 64 matrices",
    }.items():
        with pytest.raises(ValueError, match=f"--format onnx: .*{said}.* has no form in ONNX here; use --format stablehlo"):
            format_of.written(with_scores(function))


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_missing_packages_are_one_line(monkeypatch, missing):
    if missing == "onnxruntime":
        pytest.importorskip("onnx", reason=REASON)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=rf"need {missing}, which is not installed here: pip install 'gsclip-jax\[onnx\]'"):
        format_of.load(Path("model"), b"", variation().specs(1))
    if missing == "onnx":
        with pytest.raises(ValueError, match="need onnx, which is not installed here"):
            format_of.written(variation())
