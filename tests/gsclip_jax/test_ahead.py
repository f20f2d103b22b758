"""What a compiler says of a program: memory, collectives, refusals."""

import jax
import jax.numpy as jnp
import pytest

from gsclip_jax.runtime import ahead


def test_collectives_of_a_real_program():
    """A product whose summed axis lies on four devices: one sum over them, of the [8,16] result."""
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    place = lambda *axes: jax.NamedSharding(mesh, jax.P(*axes))  # noqa: E731
    left = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=place(None, "model"))
    right = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=place("model", None))
    found = ahead.compiled(lambda: jax.jit(jnp.matmul, out_shardings=place()).lower(left, right))
    assert found.collectives == {"all-reduce": {"count": 1, "bytes": 8 * 16 * 4}}
    row = found.row()
    assert row["fits"] and found.use.arguments == (8 * 16 + 16 * 16) * 4 and row["gb_a_device"]["all"] >= 0
    assert found.seconds > 0 and found.cpu_seconds > 0


def test_started_and_tupled_collectives_count_once():
    text = """
      %ag = (bf16[2,4]{1,0}, bf16[8,4]{1,0:T(8,128)}) all-gather-start(bf16[2,4]{1,0} %x), dimensions={0}
      %done = bf16[8,4]{1,0} all-gather-done((bf16[2,4]{1,0}, bf16[8,4]{1,0}) %ag)
      %r = (f32[3]{0}, pred[5]{0}) all-reduce(%a, %b), to_apply=%sum
      ROOT %fused = f32[3]{0} fusion(%r), calls=%all-reduce-like"""
    assert ahead.collectives(text) == {
        "all-gather": {"count": 1, "bytes": (8 + 32) * 2}, "all-reduce": {"count": 1, "bytes": 3 * 4 + 5},
    }  # fmt: skip


def test_what_does_not_fit_is_a_row_and_other_errors_are_errors():
    def refused(words: str):
        def lower():
            raise jax.errors.JaxRuntimeError(words)

        return lower

    row = ahead.compiled(refused("RESOURCE_EXHAUSTED: Used 17.1G of 15.7G hbm.\nmore")).row()
    assert row["fits"] is False and row["refused"] == "RESOURCE_EXHAUSTED: Used 17.1G of 15.7G hbm."
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        ahead.compiled(refused("INTERNAL: other"))


def test_an_unknown_topology_is_one_line():
    with pytest.raises(ahead.NoTopology, match="no topology 'v5e:3x7x9' here") as found:
        ahead.topology("v5e:3x7x9")
    assert "\n" not in str(found.value)


def test_a_long_tuple_has_comments():
    """Gradients are reduced together: six arrays, and the compiler numbers the fifth."""
    one = "f32[4,2]{1,0}, "
    text = f"  %all-reduce.1 = ({one * 5}/*index=5*/f32[3]{{0}}) all-reduce(%a, %b, %c, %d, %e, /*index=5*/%f), channel_id=1"
    assert ahead.collectives(text) == {"all-reduce": {"count": 1, "bytes": 5 * 32 + 12}}
