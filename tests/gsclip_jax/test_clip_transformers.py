"""Both towers and the name map against transformers' torch CLIP, built small and random."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gsclip_jax.convert.openai_names import clip_config_from_state_dict, clip_from_state_dict
from gsclip_jax.models.clip import clip_module, encode_image, encode_tokens
from tests.recorded import nhwc


@pytest.fixture(scope="module")
def hugging_face():
    torch = pytest.importorskip("torch", reason="torch is not installed: transformers' CLIP is a test oracle only")
    import transformers

    torch.manual_seed(0)
    shared = dict(hidden_act="quick_gelu", layer_norm_eps=1e-5, num_attention_heads=2)
    model = transformers.CLIPModel(transformers.CLIPConfig(
        projection_dim=16,
        vision_config=dict(shared, hidden_size=32, intermediate_size=128, num_hidden_layers=4, image_size=24, patch_size=8),
        text_config=dict(shared, hidden_size=24, intermediate_size=96, num_hidden_layers=3, vocab_size=50,
                         max_position_embeddings=20, bos_token_id=1, eos_token_id=49),
    )).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # away from zero biases and unit scales
            parameter.add_(0.1 * torch.randn_like(parameter))
    return torch, model


def _openai_names(model) -> dict[str, np.ndarray]:
    """A transformers CLIP under OpenAI's names, written down here by itself so that it checks the converter's layouts."""
    theirs = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    state = {"logit_scale": theirs["logit_scale"], "visual.proj": theirs["visual_projection.weight"].T,
             "text_projection": theirs["text_projection.weight"].T}  # fmt: skip
    towers = (("visual.", "vision_model.", "ln_pre:pre_layrnorm ln_post:post_layernorm", 4),
              ("", "text_model.", "ln_final:final_layer_norm", 3))  # fmt: skip
    for ours, prefix, norms, layers in towers:
        for pair in norms.split():
            name, other = pair.split(":")
            for part in ("weight", "bias"):
                state[f"{ours}{name}.{part}"] = theirs[f"{prefix}{other}.{part}"]
        for i in range(layers):
            to, layer = f"{ours}transformer.resblocks.{i}.", f"{prefix}encoder.layers.{i}."
            for part in ("weight", "bias"):
                qkv = [theirs[f"{layer}self_attn.{x}_proj.{part}"] for x in "qkv"]
                state[f"{to}attn.in_proj_{part}"] = np.concatenate(qkv)
                for name, other in (("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                                    ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
                    state[f"{to}{name}.{part}"] = theirs[f"{layer}{other}.{part}"]
    embeddings = "vision_model.embeddings."
    state["visual.class_embedding"] = theirs[f"{embeddings}class_embedding"]
    state["visual.conv1.weight"] = theirs[f"{embeddings}patch_embedding.weight"]
    state["visual.positional_embedding"] = theirs[f"{embeddings}position_embedding.weight"]
    state["token_embedding.weight"] = theirs["text_model.embeddings.token_embedding.weight"]
    state["positional_embedding"] = theirs["text_model.embeddings.position_embedding.weight"]
    return state


def test_both_towers_equal_transformers(hugging_face):
    torch, model = hugging_face
    state = _openai_names(model)
    cfg = clip_config_from_state_dict(state, vision_heads=2, text_heads=2)
    assert (cfg.vision_layers, cfg.text_layers, cfg.image_size, cfg.eos) == (4, 3, 24, 49)
    params = clip_from_state_dict(state, cfg)

    rng = np.random.default_rng(0)
    images = rng.standard_normal((5, 3, 24, 24)).astype(np.float32)
    ids = rng.integers(3, 49, (4, 20))
    ids[np.arange(4), [4, 9, 13, 19]] = 49
    with torch.no_grad():
        pooled = model.get_image_features(torch.from_numpy(images), return_dict=True)
        hidden = model.vision_model(torch.from_numpy(images)).last_hidden_state
        tokens = model.visual_projection(model.vision_model.post_layernorm(hidden))
        text = model.get_text_features(torch.from_numpy(ids))
    pooled, text = (x if torch.is_tensor(x) else x.pooler_output for x in (pooled, text))
    encode = jax.jit(lambda params, x, ids: (
        encode_image(clip_module(cfg, params), x), encode_tokens(clip_module(cfg, params), ids)
    ))  # fmt: skip
    found, found_text = encode(params, nhwc(images), ids)
    np.testing.assert_allclose(found.cls, pooled, atol=2e-5)
    np.testing.assert_allclose(found.tokens[0], tokens, atol=2e-5)
    np.testing.assert_allclose(found_text, text, atol=2e-5)
