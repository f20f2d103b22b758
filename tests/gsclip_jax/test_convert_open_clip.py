"""open_clip's weights and what lies beside them: computed as torch does by the configuration, refused where nothing says it."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from gsclip_jax.convert import authors, load
from gsclip_jax.convert.__main__ import main
from gsclip_jax.convert.files import State
from gsclip_jax.convert.load import load_clip
from gsclip_jax.convert.open_clip import Said, clip_config
from gsclip_jax.models.clip import ClipConfig, clip_module, encode_image, encode_tokens, preprocess_rgb
from gsclip_jax.runtime.keys import WeightsError
from tests.torch_bytes import torch_zip

WIDTH, TEXT, EMBED, LAYERS, VOCAB, CONTEXT = 128, 64, 24, 2, 50, 16


def state_of(seed=0, scale=0.15) -> dict[str, np.ndarray]:
    """A random CLIP in the names of open_clip: widths 128 and 64, pictures of 32 pixels in patches of 8."""
    rng = np.random.default_rng(seed)
    shapes = {
        "visual.conv1.weight": (WIDTH, 3, 8, 8),
        "visual.class_embedding": (WIDTH,),
        "visual.proj": (WIDTH, EMBED),
        "visual.positional_embedding": (17, WIDTH),
        "token_embedding.weight": (VOCAB, TEXT),
        "logit_scale": (),
        "positional_embedding": (CONTEXT, TEXT),
        "text_projection": (TEXT, EMBED),
    }
    for name, width in (("visual.ln_pre", WIDTH), ("visual.ln_post", WIDTH), ("ln_final", TEXT)):
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias")}
    for prefix, width in (("visual.", WIDTH), ("", TEXT)):
        for layer in range(LAYERS):
            here = f"{prefix}transformer.resblocks.{layer}"
            for name, out, into in (
                ("attn.in_proj_", 3, 1),
                ("attn.out_proj.", 1, 1),
                ("mlp.c_fc.", 4, 1),
                ("mlp.c_proj.", 1, 4),
            ):
                shapes |= {f"{here}.{name}weight": (out * width, into * width), f"{here}.{name}bias": (out * width,)}
            shapes |= {f"{here}.{norm}.{part}": (width,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
    return {name: np.asarray(scale * rng.standard_normal(shape), np.float32) for name, shape in shapes.items()}


def configuration(vision=None, text=None, images=None, **model) -> dict:
    return {
        "model_cfg": {
            "embed_dim": EMBED,
            **model,
            "vision_cfg": {"image_size": 32, "layers": LAYERS, "width": WIDTH, "patch_size": 8} | (vision or {}),
            "text_cfg": {"context_length": CONTEXT, "vocab_size": VOCAB, "width": TEXT, "heads": 4, "layers": LAYERS}
            | (text or {}),
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.3]} if images is None else images,
    }


@pytest.fixture
def folder(tmp_path):
    """make(config, ...) -> an open_clip repository as the hub has it."""

    def make(document, state=None):
        place = tmp_path / "hub"
        place.mkdir(exist_ok=True)
        save_file(state_of() if state is None else state, place / "open_clip_model.safetensors")
        if document is not None:
            (place / "open_clip_config.json").write_text(json.dumps(document))
        return place

    return make


def torch_features(state, cfg: dict, images: np.ndarray, ids: np.ndarray):
    """(image, text) features [n,E] by torch's own attention, from the configuration's numbers alone; images NCHW, normalised."""
    torch = pytest.importorskip("torch", reason="torch is not installed: it is the oracle here")
    model = cfg["model_cfg"]
    state = {name: torch.tensor(array, dtype=torch.float64) for name, array in state.items()}
    activation = (lambda x: x * torch.sigmoid(1.702 * x)) if model.get("quick_gelu") else torch.nn.functional.gelu

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    def tower(x, prefix, heads, mask):
        layer = 0
        while f"{prefix}transformer.resblocks.{layer}.ln_1.weight" in state:
            here = f"{prefix}transformer.resblocks.{layer}"
            attention = torch.nn.MultiheadAttention(x.shape[-1], heads, batch_first=True, dtype=torch.float64)
            attention.load_state_dict(
                {name.removeprefix(f"{here}.attn."): value for name, value in state.items() if name.startswith(f"{here}.attn.")}
            )
            y = norm(x, f"{here}.ln_1")
            x = x + attention(y, y, y, need_weights=False, attn_mask=mask)[0]
            y = activation(norm(x, f"{here}.ln_2") @ state[f"{here}.mlp.c_fc.weight"].T + state[f"{here}.mlp.c_fc.bias"])
            x = x + y @ state[f"{here}.mlp.c_proj.weight"].T + state[f"{here}.mlp.c_proj.bias"]
            layer += 1
        return x

    vision, text = model["vision_cfg"], model["text_cfg"]
    with torch.no_grad():
        x = (
            torch.nn.functional.conv2d(
                torch.tensor(images, dtype=torch.float64), state["visual.conv1.weight"], stride=vision["patch_size"]
            )
            .flatten(2)
            .transpose(1, 2)
        )
        x = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + state["visual.positional_embedding"]
        x = tower(norm(x, "visual.ln_pre"), "visual.", vision["width"] // vision.get("head_width", 64), None)
        seen = norm(x[:, 0], "visual.ln_post") @ state["visual.proj"]
        length = ids.shape[1]
        y = state["token_embedding.weight"][torch.tensor(ids, dtype=torch.long)] + state["positional_embedding"][:length]
        mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
        y = norm(tower(y, "", text["heads"], mask), "ln_final")
        read = y[torch.arange(len(ids)), torch.tensor(ids.argmax(1))] @ state["text_projection"]
    return seen.numpy(), read.numpy()


def cosine(a, b) -> float:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).min())


def agree_with_torch(source, state, document) -> ClipConfig:
    """Pictures and token ids through our towers as loaded from `source`, and through torch by the configuration."""
    cfg, params, _, _ = load_clip(source)
    rng = np.random.default_rng(3)
    pictures = rng.integers(0, 256, (6, cfg.image_size, cfg.image_size, 3), np.uint8)
    ids = rng.integers(1, cfg.vocab - 2, (4, cfg.context)).astype(np.int32)
    ids[np.arange(4), [3, 7, cfg.context - 1, 9]] = cfg.eos
    images = document["preprocess_cfg"]
    x = (pictures / 255 - np.array(images["mean"])) / np.array(images["std"])
    wanted = torch_features(state, document, x.transpose(0, 3, 1, 2), ids)
    clip = clip_module(cfg, params)
    with jax.default_matmul_precision("highest"):
        found = encode_image(clip, preprocess_rgb(cfg, pictures)).cls, encode_tokens(clip, ids)
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=3e-5 * np.abs(theirs).max())
        assert cosine(ours, theirs) > 1 - 1e-8
    return cfg


# --- computed as the configuration says ------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [None, False, True])
@pytest.mark.parametrize("channels", [None, 32, 16])
def test_features_are_those_of_torch(folder, tmp_path, quick, channels):
    document = configuration(vision={} if channels is None else {"head_width": channels})
    if quick is not None:
        document["model_cfg"]["quick_gelu"] = quick
    source = folder(document)
    cfg = agree_with_torch(source, state_of(), document)
    assert (cfg.activation, cfg.vision_heads, cfg.text_heads) == ("quick_gelu" if quick else "gelu", WIDTH // (channels or 64), 4)
    assert (cfg.mean, cfg.std) == ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    assert main([str(source), "--to", str(tmp_path / "out")]) == 0
    assert agree_with_torch(tmp_path / "out", state_of(), document) == cfg  # written and read again


def test_the_wrong_activation_or_heads_would_be_seen(folder):
    document = configuration(vision={"head_width": 32})
    source = folder(document)
    for wrong in (
        configuration(vision={"head_width": 32}, quick_gelu=True),
        configuration(),
        configuration({"head_width": 32}, {"heads": 2}),
    ):
        with pytest.raises(AssertionError):
            agree_with_torch(source, state_of(), wrong)


@pytest.mark.parametrize("name, heads, activation", [("gelu", 1, "gelu"), ("head_width32", 2, "quick_gelu")])
def test_given_cases(tmp_path, name, heads, activation):
    from safetensors.numpy import load_file

    from tests.conftest import SHARED

    source = SHARED / "cases" / "open_clip_config" / name
    if not source.is_dir():
        pytest.skip(f"no such folder beside the project ({source})")
    assert main([str(source), "--to", str(tmp_path / "out")]) == 0
    state = {key: array.astype(np.float32) for key, array in load_file(source / "open_clip_model.safetensors").items()}
    cfg = agree_with_torch(tmp_path / "out", state, json.loads((source / "open_clip_config.json").read_text()))
    assert (cfg.vision_heads, cfg.activation, cfg.mean, cfg.std) == (heads, activation, (0.5,) * 3, (0.5,) * 3)


def test_a_text_tower_of_its_own_and_the_forms_of_the_configuration(folder, tmp_path):
    document, state = configuration(vision={"head_width": 32}), state_of()
    text = ("transformer.", "token_embedding", "positional_embedding", "ln_final", "text_projection")
    apart = {f"text.{name}" if name.startswith(text) else name: array for name, array in state.items()}
    apart["logit_scale"] = apart["logit_scale"][None]
    document["model_cfg"]["custom_text"] = True
    agree_with_torch(folder(document, apart), state, document)
    bare = document["model_cfg"]  # as in open_clip's model_configs: without the envelope; then images are OpenAI's
    source = folder(bare)
    assert load_clip(source)[0].mean == ClipConfig.mean and load_clip(source)[0].vision_heads == 4
    for given in (source / "open_clip_model.safetensors", source / "open_clip_config.json"):  # the files themselves
        assert load_clip(given)[0] == load_clip(source)[0]
    (tmp_path / "elsewhere.json").write_text(json.dumps(document))
    (source / "open_clip_config.json").unlink()
    assert main([str(source), "--to", str(tmp_path / "out"), "--config", str(tmp_path / "elsewhere.json")]) == 0
    assert load_clip(tmp_path / "out")[0].mean == (0.5, 0.4, 0.3)


def test_open_clip_is_chosen_where_another_network_lies_beside_it(folder):
    source = folder(configuration())
    (source / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')  # timm's
    save_file({"blocks.0.attn.qkv.weight": np.zeros((2, 2), np.float32)}, source / "model.safetensors")
    (source / "open_clip_pytorch_model.bin").write_bytes(b"the same weights again")
    assert load_clip(source)[0].activation == "gelu"


def test_published_sizes(tmp_path):
    """ViT-H/14 by its shapes alone (a gigabyte of numbers is not needed): 16 heads of 80 channels, not 20 of 64."""
    shapes = {
        "visual.conv1.weight": (1280, 3, 14, 14),
        "visual.positional_embedding": (257, 1280),
        "visual.proj": (1280, 1024),
        "token_embedding.weight": (49408, 1024),
        "positional_embedding": (77, 1024),
        "text_projection": (1024, 1024),
    }
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    tensors |= {f"visual.transformer.resblocks.{i}.ln_1.bias": np.zeros(1) for i in range(32)}
    tensors |= {f"transformer.resblocks.{i}.ln_1.bias": np.zeros(1) for i in range(24)}
    document = {
        "model_cfg": {
            "embed_dim": 1024,
            "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
        }
    }
    state = State(tmp_path / "open_clip_pytorch_model.bin", "torch", {}, {})
    with pytest.raises(WeightsError, match=r"--heads VISION,TEXT \(of widths 1280 and 1024; 16,16 are usual\).*--activation"):
        clip_config(tensors, state, tmp_path, Said())
    (tmp_path / "open_clip_config.json").write_text(json.dumps(document))
    cfg, _ = clip_config(tensors, state, tmp_path, Said())
    assert (cfg.vision_heads, cfg.text_heads, cfg.activation, cfg.vv_blocks, cfg.eos) == (16, 16, "gelu", 25, 49407)


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, document",
    [
        ("vision_cfg.timm_model_name", configuration({"timm_model_name": "vit_base_patch16_siglip_224"})),
        ("vision_cfg.attentional_pool", configuration({"attentional_pool": True})),
        ("vision_cfg.no_ln_pre", configuration({"no_ln_pre": True})),
        ("vision_cfg.pool_type", configuration({"pool_type": "avg"})),
        ("vision_cfg.ls_init_value", configuration({"ls_init_value": 1e-5})),
        ("vision_cfg.pos_embed_type", configuration({"pos_embed_type": "sin_cos_2d"})),
        ("vision_cfg.mlp_ratio", configuration({"mlp_ratio": 4.9231})),
        ("vision_cfg.layers", configuration({"layers": [3, 4, 6, 3]})),
        ("vision_cfg.norm_kwargs", configuration({"norm_kwargs": {"eps": 1e-6}})),
        ("vision_cfg.something_new", configuration({"something_new": 7})),
        ("text_cfg.hf_model_name", configuration(text={"hf_model_name": "roberta-base"})),
        ("text_cfg.no_causal_mask", configuration(text={"no_causal_mask": True})),
        ("text_cfg.pool_type", configuration(text={"pool_type": "last"})),
        ("multimodal_cfg", configuration(multimodal_cfg={"width": 8})),
        ("quick_gelu", configuration(quick_gelu="yes")),
        ("head_width", configuration({"head_width": 48})),
        ("vision_cfg.width", configuration({"width": "wide"})),
        ("preprocess_cfg.mean", configuration(images={"mean": 0.5})),
        ("std", configuration(images={"std": [0.5, 0.5, 0]})),
        ("vision_cfg.width 256, the arrays have 128", configuration({"width": 256})),
        ("vision_cfg.image_size 64, the arrays have 32", configuration({"image_size": 64})),
        ("text_cfg.layers 3, the arrays have 2", configuration(text={"layers": 3})),
        ("embed_dim 25, the arrays have 24", configuration(embed_dim=25)),
        ("text_cfg.vocab_size 51, the arrays have 50", configuration(text={"vocab_size": 51})),
        ("text_heads 5", configuration(text={"heads": 5})),
        ("no open_clip configuration", {"name": "x"}),
        ("broken", None),
    ],
)
def test_what_we_do_not_compute_is_refused_by_its_key(folder, tmp_path, capsys, key, document):
    source = folder(document)
    if document is None:
        (source / "open_clip_config.json").write_text("{")
    assert main([str(source), "--to", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().err
    assert key in told and "open_clip_config.json" in told and told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_keys_without_effect_are_passed_over(folder):
    document = configuration(
        {"patch_dropout": 0.5, "timm_pool": "", "output_tokens": True, "pool_type": "tok", "ls_init_value": None},
        {"hf_tokenizer_name": "bert-base-uncased", "mlp_ratio": 4},
        init_logit_scale=2.3,
    )
    document["preprocess_cfg"] |= {"interpolation": "bicubic", "size": [32, 32]}
    assert load_clip(folder(document))[0].text_heads == 4


def test_bare_weights_need_to_be_told(folder, tmp_path, capsys):
    source = folder(None)
    arguments = [str(source), "--to", str(tmp_path / "out")]
    for given, wanted in (
        ([], ("--heads", "--activation")),
        (["--heads", "4,4"], ("--activation",)),
        (["--activation", "gelu"], ("--heads",)),
    ):
        assert main([*arguments, *given]) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and all(f"{word} " in told for word in wanted) and not (tmp_path / "out").exists()
    assert main([*arguments, "--heads", "4,4", "--activation", "gelu", "--mean", "0.5,0.4,0.3", "--std", "0.2,0.25,0.3"]) == 0
    agree_with_torch(tmp_path / "out", state_of(), configuration({"head_width": 32}))


def test_what_a_configuration_says_is_not_changed(folder, tmp_path, capsys):
    source = folder(configuration())
    for option in (["--activation", "quick_gelu"], ["--heads", "4,4"], ["--mean", "0.1,0.1,0.1"]):
        assert main([str(source), "--to", str(tmp_path / "out"), *option]) == 1
        told = capsys.readouterr().err
        assert "open_clip_config.json: says" in told and "the command says" in told and told.count("\n") == 1
    assert main([str(source), "--to", str(tmp_path / "out"), "--activation", "gelu", "--heads", "2,4"]) == 0


def test_openai_archives_say_what_they_are(tmp_path, capsys):
    sizes = {
        name: np.array(size) for name, size in (("input_resolution", 32), ("context_length", CONTEXT), ("vocab_size", VOCAB))
    }
    save_file(state_of() | sizes, tmp_path / "w.safetensors")
    cfg = load_clip(tmp_path / "w.safetensors")[0]
    assert (cfg.activation, cfg.vision_heads, cfg.text_heads, cfg.mean) == ("quick_gelu", 2, 1, ClipConfig.mean)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(configuration()))
    with pytest.raises(WeightsError, match="open_clip_config.json: contradicts .*w.safetensors: quick_gelu false"):
        load_clip(tmp_path / "w.safetensors")


@pytest.mark.parametrize("preset, asked", [("ViT-L/14@336", None), ("ViT-L/14", "--activation"), ("ViT-B/32", "--activation")])
def test_plain_state_dicts_of_published_sizes(tmp_path, preset, asked):
    """OpenAI alone has published ViT-L/14@336; the other sizes LAION has, too, with another activation."""
    cfg = ClipConfig.preset(preset)
    shapes = {
        "visual.conv1.weight": (cfg.vision_width, 3, cfg.patch, cfg.patch),
        "visual.proj": (cfg.vision_width, cfg.embed_dim),
        "visual.positional_embedding": (1 + cfg.grid**2, cfg.vision_width),
        "token_embedding.weight": (cfg.vocab, cfg.text_width),
        "positional_embedding": (cfg.context, cfg.text_width),
        "text_projection": (cfg.text_width, cfg.embed_dim),
    }
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    tensors |= {f"visual.transformer.resblocks.{i}.ln_1.bias": np.zeros(1) for i in range(cfg.vision_layers)}
    tensors |= {f"transformer.resblocks.{i}.ln_1.bias": np.zeros(1) for i in range(cfg.text_layers)}
    state = State(tmp_path / "w.pt", "torch", {}, {})
    if asked:
        with pytest.raises(WeightsError, match=asked) as info:
            clip_config(tensors, state, tmp_path, Said())
        assert "--heads" not in str(info.value)
    assert clip_config(tensors, state, tmp_path, Said("quick_gelu" if asked else None))[0] == cfg


def test_options_of_clips_are_refused_for_other_weights(tmp_path, capsys):
    arrays = {f"prompt_learner.{name}": np.ones((1, 1, 3, 8), np.float16) for name in ("ctx_pos", "ctx_neg")}
    (tmp_path / "w.pth").write_bytes(torch_zip(arrays | {"prompt_learner.compound_prompts_text.0": np.ones((2, 8), np.float16)}))
    assert main([str(tmp_path / "w.pth"), "--to", str(tmp_path / "out"), "--heads", "1,1"]) == 1
    assert "of kind pointad" in capsys.readouterr().err
    assert authors.convert(load.load_state(tmp_path / "w.pth")).kind == "pointad"
