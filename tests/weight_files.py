"""Weight files of others, made with torch in the genuine formats, and a comparison of trees."""

import importlib.util
import json

import numpy as np
import pytest

from gsclip_jax.convert.store import flatten

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


def align3d_files(folder, width=128, embed=96, depth=3):
    """Align3D-AD's two checkpoints as its train_v12.py saves them, with the buffers; (rgb, rendering) state dicts."""
    saved = {}
    for learner in ("rgb_prompt_learner", "prompt_learner"):
        shapes = {name: (1, 1, 12, width) for name in ("ctx_pos", "ctx_neg")}
        shapes |= {f"compound_prompts_text.{i}": (4, width) for i in range(depth - 1)}
        shapes |= {f"compound_prompt_projections.{i}.{leaf}": shape for i in range(depth - 1)
                   for leaf, shape in (("weight", (896, width)), ("bias", (896,)))}  # fmt: skip
        shapes |= {f"{part}_{sign}": (1, 1, n, width) for sign, n in (("pos", 64), ("neg", 63))
                   for part in ("token_prefix", "token_suffix")}  # fmt: skip
        tokens = {f"tokenized_prompts_{sign}": torch.zeros(1, 1, 77, dtype=torch.int32) for sign in ("pos", "neg")}
        saved[learner] = values(shapes) | tokens
    layers = [f"{part}_mlp.{layer}" for part in ("global", "local") for layer in ("input", "projection", "output")]
    leaves = {"weight": (embed, embed), "bias": (embed,)}
    aligner = values({f"{name}.{leaf}": shape for name in layers for leaf, shape in leaves.items()})
    rgb = {"rgb_prompt_learner": saved["rgb_prompt_learner"], "aligner": aligner}
    rendering = {"prompt_learner": saved["prompt_learner"]}
    torch.save(rgb, folder / "epoch_15_rgb.pth")
    torch.save(rendering, folder / "epoch_15_rendering.pth")
    return rgb, rendering
