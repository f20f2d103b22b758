"""The programs of a configuration by their shapes: which there are, for how many objects, and what they cost by hand."""

import jax

from experiments.configs.common import embedded, paper, with_method
from experiments.programs import Programs
from gsclip_jax.models.clip import ClipConfig


def test_programs_are_those_of_the_methods_stages():
    assert Programs(embedded()).names == ["features1", "stage1", "features2", "stage2", "predict"]
    pointad = with_method(embedded(), "pointad")
    assert Programs(pointad).names == ["features1", "stage1", "predict"]
    grey = with_method(paper("mvtec3d"), "align3d")
    grey.model.branches = "render"
    assert Programs(grey).names == ["features2", "stage2", "predict"]


def test_the_papers_encoding_by_hand():
    """Nine views of 336 pixels through ViT-L/14 with 19 V-V blocks, without its weights."""
    c, views, tokens = ClipConfig.preset("ViT-L/14@336"), 9, 577
    width, depth = 1024, 24
    block = 12 * 2 * tokens * width**2 + 4 * tokens**2 * width
    second = 2 * tokens * width**2 + 4 * tokens**2 * width
    project = 2 * (tokens + 1) * width * 768
    unread = 20 * (tokens - 1) * width**2 + 4 * (tokens - 1) * tokens * width  # of the last block token 0 alone
    each = 576 * 2 * 3 * 14 * 14 * width + depth * block - unread + c.vv_blocks * second + project
    program = Programs(paper("real3d")).program("features1")
    assert (program.rows, program.counted) == (4, 4)
    assert program.flops().products == 4 * views * each


def test_a_batch_is_filled_up_for_the_devices():
    mesh = jax.make_mesh((4, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    program = Programs(embedded(), mesh).program("stage1", 6)
    assert (program.rows, program.counted) == (8, 6)
    state, _, batch, _ = program.arguments
    assert batch["render_tokens"].shape[0] == 8 and batch["render_tokens"].sharding.spec == jax.P("data")
    assert all(leaf.sharding.mesh == mesh for leaf in jax.tree.leaves(state.trainable))
