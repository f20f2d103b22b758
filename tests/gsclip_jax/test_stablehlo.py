"""Programs as StableHLO: every method, and the authors' code's variants, give what JAX gives without exporting them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from gsclip_jax.convert.store import save_params, unflatten
from gsclip_jax.inspection import stablehlo
from gsclip_jax.inspection.program import OUTPUTS
from gsclip_jax.methods import METHODS
from tests.gsclip_jax.test_onnx import a_batch, a_program

RELEASED = ("gsclip", "align3d")
CASES = [*((name, "paper") for name in METHODS), *((name, "released") for name in RELEASED)]


def loaded(program, folder: Path):
    save_params(folder, unflatten(program.weights), config={}, dtype="smallest")
    return stablehlo.load(folder, stablehlo.written(program), program.specs(1))


@pytest.mark.parametrize(
    ("name", "variant"), [pytest.param(*case, marks=[pytest.mark.slow] * (case[0] != "surface_variation")) for case in CASES]
)
def test_every_method_gives_the_same_scores(name, variant, tmp_path):
    program = a_program(name, variant)
    run, wanted_of = loaded(program, tmp_path), jax.jit(program.run)
    batches = [a_batch(program, organised) for organised in (False, True)]
    both = {field: np.concatenate([batch[field] for batch in batches]) for field in program.inputs}
    for batch in (*batches, both):
        wanted, found = wanted_of(program.weights, batch), run(batch)
        assert np.ptp(wanted["points"]) > 1e-3
        for output in OUTPUTS:
            np.testing.assert_allclose(found[output], wanted[output], rtol=0, atol=1e-5, err_msg=output)
