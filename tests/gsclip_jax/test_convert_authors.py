"""The authors' checkpoints, PointAD's and the S3DIS PointNet++: every key accounted for; wrong files are one line."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from gsclip_jax.convert.__main__ import main
from gsclip_jax.convert.authors import plain_names, recognise
from gsclip_jax.convert.files import load_state
from gsclip_jax.convert.fusion_names import aligner_to_torch, gddm_to_torch, srm_to_torch
from gsclip_jax.convert.load import load_checkpoint, load_clip, load_pointnet2
from gsclip_jax.convert.pointnet2_names import to_torch
from gsclip_jax.methods.align3d import Align3d, Config
from gsclip_jax.methods.align3d.config import Model
from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.runtime.keys import WeightsError
from tests.weight_files import align3d_files, equal, openai_file, prompt_learner

torch = pytest.importorskip("torch", reason="torch writes the files that are converted here")


def test_stage1_checkpoint(tmp_path, shared_reference, capsys):
    state, _, _ = prompt_learner(shared_reference)
    torch.save({"prompt_learner": state}, tmp_path / "epoch_15.pth")
    assert main([str(tmp_path / "epoch_15.pth"), "--to", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "gsclip_stage1" in said and "unused: prompt_learner.compound_prompt_projections.*.weight (2 keys)" in said
    back = load_checkpoint(tmp_path / "out")
    assert set(back.params) == {"prompts", "pointnet2", "gddm"} and set(back.stats) == {"pointnet2"}
    equal(
        {"p": back.params, "s": back.stats}, (lambda c: {"p": c.params, "s": c.stats})(load_checkpoint(tmp_path / "epoch_15.pth"))
    )
    # every tensor is either found again, by the way back, or listed as unused
    found = to_torch(back.params["pointnet2"], back.stats["pointnet2"], prefix="pointnet.")
    found |= gddm_to_torch(back.params["gddm"])
    prompts = back.params["prompts"]
    found |= {
        "ctx_pos": prompts["ctx_normal"][None, None],
        "ctx_neg": prompts["ctx_abnormal"][None, None],
        "point_feature_to_prompt_pos.0.weight": prompts["shape"]["kernel"].T,
        "point_feature_to_prompt_pos.0.bias": prompts["shape"]["bias"],
        "point_feature_to_prompt_pos.2.weight": prompts["shape"]["ln"]["scale"],
        "point_feature_to_prompt_pos.2.bias": prompts["shape"]["ln"]["bias"],
    }
    found |= {f"compound_prompts_text.{i}": deep for i, deep in enumerate(prompts["deep"])}
    unused = [name.removeprefix("prompt_learner.") for name in back.unused]
    assert sorted([*found, *unused]) == sorted(state)
    for name, array in found.items():
        np.testing.assert_array_equal(np.asarray(array), state[name].numpy(), err_msg=name)
    assert {name.split(".")[0] for name in unused} == {
        "pointnet",
        "point_feature_to_prompt_neg",
        "compound_prompt_projections",
        "token_prefix_pos",
        "token_prefix_neg",
        "token_suffix_pos",
        "token_suffix_neg",
        "tokenized_prompts_pos",
        "tokenized_prompts_neg",
    }
    assert {name for name in unused if name.startswith("pointnet.") and "num_batches" not in name} == {
        "pointnet.conv2.weight",
        "pointnet.conv2.bias",
    }
    assert back.config["prompts"] == {"context": 12, "text_width": 128, "depth": 3, "deep_tokens": 4}
    params, stats, _ = load_pointnet2(tmp_path / "epoch_15.pth")  # the fine-tuned PointNet++ inside
    equal({"p": params, "s": stats}, {"p": back.params["pointnet2"], "s": back.stats["pointnet2"]})


def test_stage1_tells_all_that_is_wrong_at_once(tmp_path, shared_reference):
    state, _, _ = prompt_learner(shared_reference)
    del state["ctx_neg"], state["pointnet.sa2.mlp_bns.1.running_var"]
    state["point_feature_to_neg_point.outlier_aggregator.norm.bias"] = torch.zeros(7)
    state["surprise"] = torch.zeros(1)
    torch.save({"prompt_learner": state, "extra": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError) as info:
        load_checkpoint(tmp_path / "w.pth")
    for word in ("w.pth", "ctx_neg", "sa2.mlp_bns.1.running_var", "norm.bias (7,) instead of (128,)", "surprise", "extra"):
        assert word in str(info.value)
    assert "\n" not in str(info.value)


def test_stage2_checkpoint(tmp_path, shared_reference, capsys):
    _, shapes, weights = prompt_learner(shared_reference)
    state = {
        name: torch.tensor(weights.fill(name, tuple(shape)))
        for name, shape in shapes.items()
        if name.startswith(("fusion.", "visual_depth."))
    }
    groups = {
        group: {name.removeprefix(f"{group}."): tensor for name, tensor in state.items() if name.startswith(group)}
        for group in ("fusion", "visual_depth")
    }
    torch.save(groups, tmp_path / "epoch_10.pth")
    assert main([str(tmp_path / "epoch_10.pth"), "--to", str(tmp_path / "out")]) == 0
    assert "gsclip_stage2: srm" in capsys.readouterr().out
    back = load_checkpoint(tmp_path / "out")
    assert set(back.params) == {"srm", "lora", "clip_depth"} and back.unused == []
    equal(back.params, load_checkpoint(tmp_path / "epoch_10.pth").params)
    for name, array in srm_to_torch(back.params["srm"]).items():
        np.testing.assert_array_equal(array, state[name].numpy(), err_msg=name)
    layer = "visual_depth.transformer.resblocks.4.mlp"
    np.testing.assert_array_equal(back.params["lora"]["fc"]["a"][4], state[f"{layer}.c_fc.lora_A"].numpy().T)
    np.testing.assert_array_equal(back.params["lora"]["proj"]["b"][4], state[f"{layer}.c_proj.lora_B"].numpy().T)
    np.testing.assert_array_equal(
        back.params["clip_depth"]["visual"]["blocks"]["mlp"]["fc_kernel"][4],
        state[f"{layer}.c_fc.original_layer.weight"].numpy().T,
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(back.params)) == sum(tensor.numel() for tensor in state.values())
    assert back.config["lora"] == {"rank": 8} and back.config["clip_depth"]["vision_layers"] == 6
    groups["fusion"].pop("final_proj.bias")
    groups["visual_depth"]["proj"] = torch.zeros(128, 95)
    torch.save(groups, tmp_path / "broken.pth")
    with pytest.raises(WeightsError, match="final_proj.bias"):
        load_checkpoint(tmp_path / "broken.pth")


def test_pointad_checkpoint(tmp_path, shared_reference):
    state, _, _ = prompt_learner(shared_reference, suffixes=(64, 64))
    state = {name: tensor for name, tensor in state.items() if not name.startswith("point")}
    torch.save({"prompt_learner": state}, tmp_path / "epoch_15.pth")
    assert main([str(tmp_path / "epoch_15.pth"), "--to", str(tmp_path / "out")]) == 0
    back = load_checkpoint(tmp_path / "out")
    assert back.kind == "pointad" and set(back.params) == {"prompts"} and "shape" not in back.params["prompts"]
    np.testing.assert_array_equal(back.params["prompts"]["ctx_abnormal"], state["ctx_neg"][0, 0].numpy())
    np.testing.assert_array_equal(back.params["prompts"]["deep"][1], state["compound_prompts_text.1"].numpy())
    kept = {"ctx_pos", "ctx_neg", "compound_prompts_text.0", "compound_prompts_text.1"}
    assert {name.removeprefix("prompt_learner.") for name in back.unused} == state.keys() - kept
    state["compound_prompts_text.5"] = torch.zeros(4, 128)
    torch.save({"prompt_learner": state}, tmp_path / "gap.pth")
    with pytest.raises(WeightsError, match="3 missing: compound_prompts_text.2, compound_prompts_text.3"):
        load_checkpoint(tmp_path / "gap.pth")


def test_align3d_checkpoints(tmp_path, capsys):
    """Every tensor is found again or listed as unused; both files together are what the method trains."""
    rgb, rendering = align3d_files(tmp_path)
    found = {}
    for name, saved, kind in (("rgb", rgb, "align3d_rgb"), ("rendering", rendering, "pointad")):
        assert main([str(tmp_path / f"epoch_15_{name}.pth"), "--to", str(tmp_path / name)]) == 0
        assert kind in capsys.readouterr().out
        back = load_checkpoint(tmp_path / name)
        equal(back.params, load_checkpoint(tmp_path / f"epoch_15_{name}.pth").params)
        assert back.kind == kind and back.config["prompts"] == {"context": 12, "text_width": 128, "depth": 3, "deep_tokens": 4}
        found |= back.params
        learner, group = ("rgb_prompt_learner", "rgb_prompts") if name == "rgb" else ("prompt_learner", "prompts")
        prompts, theirs = back.params[group], saved[learner]
        again = {"ctx_pos": prompts["ctx_normal"][None, None], "ctx_neg": prompts["ctx_abnormal"][None, None]}
        again |= {f"compound_prompts_text.{i}": deep for i, deep in enumerate(prompts["deep"])}
        for key, array in again.items():
            np.testing.assert_array_equal(array, theirs[key].numpy(), err_msg=key)
        assert sorted(back.unused) == sorted(f"{learner}.{key}" for key in theirs if key not in again)
    for key, array in aligner_to_torch(found["aligner"]).items():
        np.testing.assert_array_equal(array, rgb["aligner"][key.removeprefix("aligner.")].numpy(), err_msg=key)
    clip = ClipConfig(image_size=32, patch=8, vision_width=32, vision_layers=2, vision_heads=2, embed_dim=96, text_width=128,
                      text_layers=4, text_heads=2, vocab=16, context=24, vv_blocks=1, sos=1, eos=2, dot=3)  # fmt: skip
    method = Align3d(Config(model=Model(deep_depth=3)), clip, ([5], [6, 5]))
    wanted = jax.eval_shape(lambda key: method.init(key)[0], jax.random.key(0))
    assert jax.tree.map(lambda x: x.shape, found) == jax.tree.map(lambda x: x.shape, wanted)


def test_align3d_tells_all_that_is_wrong_at_once(tmp_path):
    rgb, _ = align3d_files(tmp_path)
    del rgb["aligner"]["local_mlp.output.bias"], rgb["rgb_prompt_learner"]["ctx_neg"]
    rgb["aligner"]["global_mlp.projection.weight"] = torch.zeros(96, 95)
    torch.save(rgb | {"extra": {"w": torch.zeros(2)}}, tmp_path / "epoch_15_rgb.pth")
    with pytest.raises(WeightsError) as info:
        load_checkpoint(tmp_path / "epoch_15_rgb.pth")
    shapes = "projection.weight (96, 95) instead of (96, 96)"
    for word in ("epoch_15_rgb.pth", "ctx_neg", "local_mlp.output.bias", shapes, "extra.w"):
        assert word in str(info.value)
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_s3dis_checkpoint(tmp_path, shared_reference, zipped, capsys):
    state, _, _ = prompt_learner(shared_reference)
    state = {name.removeprefix("pointnet."): tensor for name, tensor in state.items() if name.startswith("pointnet.")}
    parameter = torch.nn.Parameter(torch.ones(3))
    saved = {
        "epoch": 42,
        "class_avg_iou": np.float64(0.535),
        "model_state_dict": state,
        "optimizer_state_dict": torch.optim.Adam([parameter]).state_dict(),
    }
    torch.save(saved, tmp_path / "best_model.pth", _use_new_zipfile_serialization=zipped)
    assert main([str(tmp_path / "best_model.pth"), "--to", str(tmp_path / "out")]) == 0
    assert "unused: conv2.weight" in capsys.readouterr().out
    params, stats, sha256 = load_pointnet2(tmp_path / "out")
    assert sha256 == load_pointnet2(tmp_path / "best_model.pth")[2]
    found = to_torch(params, stats)
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked") and not name.startswith("conv2."):
            np.testing.assert_array_equal(found.pop(name), tensor.numpy(), err_msg=name)
    assert not found
    state["sa1.mlp_convs.0.weight"] = torch.zeros(32, 6, 1, 1)
    torch.save(saved, tmp_path / "best_model.pth")
    with pytest.raises(WeightsError, match=r"sa1.mlp_convs.0.weight \(32, 6, 1, 1\) instead of \(32, 12, 1, 1\)"):
        load_pointnet2(tmp_path / "best_model.pth")


# --- wrong files, one line each --------------------------------------------------------------------------------------


def test_every_wrong_file_is_one_line_and_leaves_nothing(tmp_path, capsys):
    """Status 1 (once through a real process), one line on standard error, no traceback, no output directory."""
    import os
    import pickle
    import zipfile

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    (tmp_path / "text.pt").write_text("not weights")
    with zipfile.ZipFile(tmp_path / "hostile.pt", "w") as file:
        file.writestr("hostile/data.pkl", pickle.dumps({"prompt_learner": Hostile()}, 2))
    done = subprocess.run(
        [sys.executable, "-m", "gsclip_jax.convert", tmp_path / "hostile.pt", "--to", tmp_path / "out"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "posix.system" in done.stderr and "hostile.pt" in done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    for name, words in {"text.pt": "not a torch file", "absent.pt": "no such file"}.items():
        assert main([str(tmp_path / name), "--to", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert words in error and name in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "names, words",
    [
        (["visual.layer1.0.conv1.weight", "visual.attnpool.q_proj.weight"], "ResNet"),
        (["sa1.conv_blocks.0.0.weight"], "multi-scale"),
        (["feat.stn.conv1.weight"], "not weights that can be converted"),
        (["vision_model.embeddings.class_embedding"], "config.json"),
        (["visual.conv1.weight"], "missing"),
        (["prompt_learner.ctx_pos", "ctx_pos"], "not a whole PointAD checkpoint"),
    ],
)
def test_other_architectures_are_named(tmp_path, names, words, capsys):
    torch.save({name: torch.zeros(1, 1, 2, 3) for name in names}, tmp_path / "w.pt")
    assert main([str(tmp_path / "w.pt"), "--to", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert words in error and "w.pt" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_targets_with_other_files_are_left_alone(tmp_path, capsys):
    file, _ = openai_file(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    for target, words in ((tmp_path / "out", "thesis.tex"), (file, "is a file")):
        assert main([str(file), "--to", str(target)]) == 1
        assert words in capsys.readouterr().err
    assert main([str(file), "--to", str(tmp_path / "new"), "--sha256", "00"]) == 1
    assert "not the one asked for" in capsys.readouterr().err and not (tmp_path / "new").exists()
    right = load_state(file).sha256[file.name].upper()
    for _ in range(2):  # its own directory may be written again
        assert main([str(file), "--to", str(tmp_path / "new"), "--sha256", right]) == 0


def test_loaders_say_what_a_wrong_kind_is(tmp_path, shared_reference):
    file, _ = openai_file(tmp_path)
    with pytest.raises(WeightsError, match="a openai checkpoint without PointNet"):
        load_pointnet2(file)
    state, _, _ = prompt_learner(shared_reference)
    torch.save({"prompt_learner": state}, tmp_path / "epoch_15.pth")
    with pytest.raises(WeightsError, match="gsclip_stage1 checkpoint, not a whole CLIP"):
        load_clip(tmp_path / "epoch_15.pth")
    main([str(tmp_path / "epoch_15.pth"), "--to", str(tmp_path / "out")])
    with pytest.raises(WeightsError, match="gsclip_stage1.*no CLIP"):
        load_clip(tmp_path / "out")
    with pytest.raises(ValueError, match="image_size, vision_width cannot be changed"):
        load_clip(file, image_size=64, vision_width=3)
    with pytest.raises(WeightsError, match="revision is for hub names"):
        load_clip(file, revision="main")


def test_names_given_twice_are_refused():
    arrays = {"module.a": np.zeros(1), "a": np.ones(1)}
    with pytest.raises(WeightsError, match="twice"):
        plain_names(arrays, "w.pt")
    assert list(plain_names({"prompt_learner.module.ctx_pos": 0}, "w")) == ["prompt_learner.ctx_pos"]
    assert recognise(["prompt_learner.ctx_pos"], "w") == "pointad"
