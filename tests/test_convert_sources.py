"""A file of every kind, made in the genuine format, through the command line and back: bit-equal, every key accounted for."""

import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from gsclip_jax.clip import ClipConfig, clip_module, encode_image, encode_tokens
from gsclip_jax.convert import load as load_module
from gsclip_jax.convert import load_checkpoint, load_clip, load_pointnet2
from gsclip_jax.convert.__main__ import main
from gsclip_jax.convert.authors import plain_names, recognise
from gsclip_jax.convert.files import load_state
from gsclip_jax.convert.fusion_names import gddm_to_torch, srm_to_torch
from gsclip_jax.convert.keys import WeightsError
from gsclip_jax.convert.openai_names import clip_from_state_dict
from gsclip_jax.convert.pointnet2_names import to_torch
from gsclip_jax.convert.store import flatten, load_params, save_params

torch = pytest.importorskip("torch", reason="torch writes the files that are converted here")
rng = np.random.default_rng(0)

VISION, TEXT, EMBED, VOCAB = 128, 64, 48, 300  # widths; 64 channels a head, as OpenAI's


def values(shapes, half=False):
    made = {name: torch.tensor(rng.standard_normal(shape) * 0.05, dtype=torch.float32) for name, shape in shapes.items()}
    return {name: tensor.half() if half else tensor for name, tensor in made.items()}


def blocks(prefix, width, layers):
    shapes = {}
    for layer in range(layers):
        here = f"{prefix}transformer.resblocks.{layer}"
        shapes |= {
            f"{here}.attn.in_proj_weight": (3 * width, width),
            f"{here}.attn.in_proj_bias": (3 * width,),
            f"{here}.attn.out_proj.weight": (width, width),
            f"{here}.attn.out_proj.bias": (width,),
            f"{here}.mlp.c_fc.weight": (4 * width, width),
            f"{here}.mlp.c_fc.bias": (4 * width,),
            f"{here}.mlp.c_proj.weight": (width, 4 * width),
            f"{here}.mlp.c_proj.bias": (width,),
        }
        shapes |= {f"{here}.{norm}.{kind}": (width,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
    return shapes


def tower(prefix=""):
    shapes = {
        "conv1.weight": (VISION, 3, 8, 8),
        "class_embedding": (VISION,),
        "positional_embedding": (17, VISION),
        "proj": (VISION, EMBED),
    }
    shapes |= {f"{norm}.{kind}": (VISION,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")}
    return {f"{prefix}{name}": shape for name, shape in shapes.items()} | blocks(prefix, VISION, 3)


def openai_shapes():
    return (
        tower("visual.")
        | blocks("", TEXT, 2)
        | {
            "token_embedding.weight": (VOCAB, TEXT),
            "positional_embedding": (77, TEXT),
            "text_projection": (TEXT, EMBED),
            "ln_final.weight": (TEXT,),
            "ln_final.bias": (TEXT,),
            "logit_scale": (),
        }
    )


def module_of(state):
    """A torch module tree with these parameters under these names, and OpenAI's three sizes as buffers."""
    root = torch.nn.Module()
    for name, tensor in state.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            if not hasattr(node, part):
                node.add_module(part, torch.nn.Module())
            node = getattr(node, part)
        node.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    for name, size in {"input_resolution": 32, "context_length": 77, "vocab_size": VOCAB}.items():
        root.register_buffer(name, torch.tensor(size))
    return root


class Wrapped(torch.nn.Module):
    """Makes a bare module tree traceable."""

    def __init__(self, tree):
        super().__init__()
        for name, child in [*tree.named_children(), *tree.named_parameters(recurse=False)]:
            setattr(self, name, child)
        for name, buffer in tree.named_buffers(recurse=False):
            self.register_buffer(name, buffer)

    def forward(self, x):
        return x * self.logit_scale


def openai_file(folder):
    state = values(openai_shapes(), half=True)
    file = folder / "ViT-L-14-336px.pt"
    torch.jit.trace(Wrapped(module_of(state)), torch.ones(2).half()).save(str(file))
    return file, {name: tensor.float().numpy() for name, tensor in state.items()}


def equal(a, b):
    a, b = flatten(a), flatten(b)
    assert list(a) == list(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and np.array_equal(np.asarray(a[name]), np.asarray(b[name])), name


# --- CLIP ------------------------------------------------------------------------------------------------------------


def test_openai_torchscript_archive(tmp_path, capsys):
    file, state = openai_file(tmp_path)
    assert main([str(file), "--to", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "openai: clip" in said and "torchscript" in said and "unused: input_resolution" in said and "note: " in said
    cfg, params, tokenizer, sha256 = load_clip(tmp_path / "out")
    assert (cfg.image_size, cfg.patch, cfg.vision_heads, cfg.text_heads, cfg.vocab, tokenizer) == (32, 8, 2, 1, VOCAB, None)
    equal(params, jax.tree.map(jax.numpy.asarray, clip_from_state_dict(state, cfg)))
    # one leaf by hand: the second block's value projection, [out,in] there, [in,heads,channels] here
    kernel = state["visual.transformer.resblocks.1.attn.in_proj_weight"][2 * VISION :].T.reshape(VISION, 2, 64)
    np.testing.assert_array_equal(params["visual"]["blocks"]["attn"]["qkv_kernel"][1][:, 2], kernel)
    direct = load_clip(file, dtype="bfloat16", vv_blocks=1)
    equal(params, direct[1])
    assert direct[3] == sha256 and (direct[0].dtype, direct[0].vv_blocks) == ("bfloat16", 1)
    source = json.loads((tmp_path / "out" / "config.json").read_text())["source"]
    assert source["unused"] == ["input_resolution", "context_length", "vocab_size"] or sorted(source["unused"]) == [
        "context_length",
        "input_resolution",
        "vocab_size",
    ]
    assert source["sha256"] == load_state(file).sha256 and source["known"] is None


def test_half_precision_storage_loses_nothing_of_half_weights(tmp_path):
    file, _ = openai_file(tmp_path)
    assert main([str(file), "--to", str(tmp_path / "half"), "--dtype", "float16"]) == 0
    whole, half = load_clip(file), load_clip(tmp_path / "half")
    equal(whole[1], half[1])
    assert whole[3] == half[3]  # the hash names the parameters, not how they were stored


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module", "state_dict+module"])
def test_plain_state_dicts_of_clip(tmp_path, wrap):
    state = values(openai_shapes())
    saved = {f"module.{name}" if "module" in wrap else name: tensor for name, tensor in state.items()}
    torch.save({"state_dict": saved, "epoch": 1} if "state_dict" in wrap else saved, tmp_path / "w.pt")
    cfg, params, _, _ = load_clip(tmp_path / "w.pt")
    equal(params, jax.tree.map(jax.numpy.asarray, clip_from_state_dict({k: v.numpy() for k, v in state.items()}, cfg)))


def huggingface_model(**vision):
    transformers = pytest.importorskip("transformers", reason="transformers writes the directory that is converted here")
    config = transformers.CLIPConfig(
        text_config=dict(
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=VOCAB,
            bos_token_id=VOCAB - 2,
            eos_token_id=VOCAB - 1,
        ),
        vision_config=dict(
            hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=3, image_size=32, patch_size=8
        )
        | vision,
        projection_dim=48,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the initial ones and zeros, so that any mix-up shows
            parameter.add_(0.03 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("layout", ["safetensors", "sharded", "bin", "bin-half"])
def test_huggingface_directory_computes_what_transformers_does(tmp_path, layout, capsys):
    model = huggingface_model()
    folder = tmp_path / "clip"
    if layout.startswith("bin"):
        model.config.save_pretrained(folder)
        state = model.state_dict() | {
            "text_model.embeddings.position_ids": torch.arange(77)[None],
            "vision_model.embeddings.position_ids": torch.arange(17)[None],
        }  # before 4.31
        if layout == "bin-half":
            model.half().float()
            state = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        torch.save(state, folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder, max_shard_size="300KB" if layout == "sharded" else "5GB")
        assert (folder / "model.safetensors.index.json").exists() == (layout == "sharded")
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}))
    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 298, "<|endoftext|>": 299, ".</w>": 13}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    cfg, params, tokenizer, _ = load_clip(folder)
    assert (cfg.vision_heads, cfg.text_heads, cfg.sos, cfg.eos, cfg.dot) == (3, 4, 298, 299, 13)
    assert cfg.mean == (0.5, 0.4, 0.3) and tokenizer == folder
    assert main([str(folder), "--to", str(tmp_path / "out")]) == 0
    assert ("unused: text_model.embeddings.position_ids" in capsys.readouterr().out) == layout.startswith("bin")
    again = load_clip(tmp_path / "out")
    equal(params, again[1])
    assert again[0] == cfg and again[2] == tmp_path / "out"

    images = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    ids = np.array([[298, 5, 9, 13, 299] + [0] * 72, [298, 7, 299] + [0] * 74], np.int32)
    with torch.no_grad():
        vision = model.vision_model(torch.tensor(images).permute(0, 3, 1, 2)).pooler_output
        text = model.text_model(torch.tensor(ids, dtype=torch.long)).pooler_output
        wanted = model.visual_projection(vision).numpy(), model.text_projection(text).numpy()
    clip = clip_module(cfg, params)
    np.testing.assert_allclose(encode_image(clip, images).cls, wanted[0], atol=2e-5 * np.abs(wanted[0]).max())
    np.testing.assert_allclose(encode_tokens(clip, ids), wanted[1], atol=2e-5 * np.abs(wanted[1]).max())


def test_huggingface_directories_that_do_not_fit(tmp_path, capsys):
    model = huggingface_model()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())

    def fails(change, *words):
        (tmp_path / "config.json").write_text(json.dumps(change(json.loads(json.dumps(config)))))
        with pytest.raises(WeightsError) as info:
            load_clip(tmp_path)
        assert all(word in str(info.value) for word in words) and "\n" not in str(info.value), str(info.value)

    def vision(**changes):
        return lambda document: document | {"vision_config": document["vision_config"] | changes}

    fails(lambda document: document | {"model_type": "siglip"}, "siglip", "config.json")
    fails(vision(hidden_act="gelu"), "activations differ")
    fails(vision(intermediate_size=100, layer_norm_eps=1e-6), "MLP width 100", "1e-06")
    fails(vision(num_hidden_layers=4), "missing: vision_model.encoder.layers.3.self_attn.q_proj.weight")
    fails(vision(num_hidden_layers=2), "unexpected: vision_model.encoder.layers.2")
    fails(vision(image_size=40), "position_embedding.weight (17, 96) instead of (26, 96)")
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(WeightsError, match="config.json"):
        load_clip(tmp_path)
    (tmp_path / "config.json").unlink()
    assert main([str(tmp_path), "--to", str(tmp_path / "out")]) == 1
    assert "give the directory that also holds config.json" in capsys.readouterr().err


def test_a_lost_shard_is_named(tmp_path):
    huggingface_model().save_pretrained(tmp_path, max_shard_size="300KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(WeightsError, match=f"shards are missing: {shard.name}"):
        load_clip(tmp_path)


# --- the authors' checkpoints ----------------------------------------------------------------------------------------


def prompt_learner(shared_reference, width=128, suffixes=(63, 62)):
    """The state dict that GS-CLIP's train.py saves, from the generator of the recorded arrays, with its buffers."""
    spec = importlib.util.spec_from_file_location("reference_weights", shared_reference / "weights.py")
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    shapes = json.loads((shared_reference / "params_small.json").read_text())
    ours = ("ctx_", "pointnet.", "point_feature_", "compound_")
    state = {name: torch.tensor(weights.fill(name, tuple(shape))) for name, shape in shapes.items() if name.startswith(ours)}
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        state[name] = torch.tensor(0)
    for sign, length in zip(("pos", "neg"), suffixes):
        state |= {
            f"token_prefix_{sign}": torch.zeros(1, 1, 1, width),
            f"token_suffix_{sign}": torch.zeros(1, 1, length, width),
            f"tokenized_prompts_{sign}": torch.zeros(1, 1, 77, dtype=torch.int32),
        }
    return state, shapes, weights


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


def test_stored_clip_of_another_configuration_is_refused(tmp_path):
    file, _ = openai_file(tmp_path)
    main([str(file), "--to", str(tmp_path / "out")])
    tree, config = load_params(tmp_path / "out")
    config["clip"]["embed_dim"] = 47
    save_params(tmp_path / "out", tree, config=config)
    with pytest.raises(WeightsError, match=r"text/proj \(64, 48\) instead of \(64, 47\)"):
        load_clip(tmp_path / "out")


def test_mini_is_read_from_the_assets(tmp_path, monkeypatch):
    cfg = ClipConfig(
        image_size=16,
        patch=8,
        vision_width=64,
        vision_layers=2,
        vision_heads=1,
        embed_dim=32,
        text_width=64,
        text_layers=1,
        text_heads=1,
        vocab=20,
        context=16,
        vv_blocks=1,
        sos=18,
        eos=19,
        dot=3,
    )
    monkeypatch.setattr(load_module, "MINI", tmp_path)
    with pytest.raises(WeightsError, match="embedded weights are missing"):
        load_clip("mini")
    from gsclip_jax.clip import init_clip

    params = init_clip(jax.random.key(0), cfg)
    save_params(tmp_path / "clip.safetensors", {"clip": params}, config={"clip": cfg.to_json()}, dtype="bfloat16")
    (tmp_path / "tokenizer.json").write_text("{}")
    found, tree, tokenizer, _ = load_clip("mini", remat=True)
    assert found.vocab == 20 and found.remat and tokenizer == tmp_path
    np.testing.assert_array_equal(tree["visual"]["proj"], params["visual"]["proj"].astype("bfloat16").astype("float32"))


def test_names_given_twice_are_refused():
    arrays = {"module.a": np.zeros(1), "a": np.ones(1)}
    with pytest.raises(WeightsError, match="twice"):
        plain_names(arrays, "w.pt")
    assert list(plain_names({"prompt_learner.module.ctx_pos": 0}, "w")) == ["prompt_learner.ctx_pos"]
    assert recognise(["prompt_learner.ctx_pos"], "w") == "pointad"
