"""CLIPs in every genuine format, through the command line and back: bit-equal, and computing what transformers does."""

import json

import jax
import numpy as np
import pytest

from gsclip_jax.convert import load as load_module
from gsclip_jax.convert.__main__ import main
from gsclip_jax.convert.files import load_state
from gsclip_jax.convert.load import load_clip
from gsclip_jax.convert.openai_names import clip_from_state_dict
from gsclip_jax.convert.store import load_params, save_params
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_image, encode_tokens
from gsclip_jax.runtime.keys import WeightsError
from tests.weight_files import VISION, VOCAB, equal, openai_file, openai_shapes, values

torch = pytest.importorskip("torch", reason="torch writes the files that are converted here")
rng = np.random.default_rng(0)


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
    cfg, params, _, _ = load_clip(tmp_path / "w.pt", activation="quick_gelu", heads=(2, 1))
    assert (cfg.vision_heads, cfg.text_heads, cfg.activation) == (2, 1, "quick_gelu")
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
    from gsclip_jax.models.clip import init_clip

    params = init_clip(jax.random.key(0), cfg)
    save_params(tmp_path / "clip.safetensors", {"clip": params}, config={"clip": cfg.to_json()}, dtype="bfloat16")
    (tmp_path / "tokenizer.json").write_text("{}")
    found, tree, tokenizer, _ = load_clip("mini", remat=True)
    assert found.vocab == 20 and found.remat and tokenizer == tmp_path
    np.testing.assert_array_equal(tree["visual"]["proj"], params["visual"]["proj"].astype("bfloat16").astype("float32"))
