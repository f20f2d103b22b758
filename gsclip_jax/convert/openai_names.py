"""State-dict names of OpenAI CLIP, and of GS-CLIP's released model, to our parameter tree. numpy only; reads no files.

The state dicts keep PyTorch's layouts (a linear is [out,in], a convolution [out,in,h,w]); our leaves are float32.
Sources: OpenAI CLIP's `clip/model.py`; GS-CLIP's released model (`visual_depth.*` with LoRA, the prompt learner).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gsclip_jax.models.clip import ClipConfig
from gsclip_jax.runtime.keys import WeightsError, check_keys

State = Mapping[str, np.ndarray]
# The array's shape in the file, and the way to our layout.
Leaf = tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]

# Sizes that OpenAI's archives store beside the weights.
STORED_SIZES = ("input_resolution", "context_length", "vocab_size")
NOT_NEEDED = (*STORED_SIZES, "attn_mask")  # the causal mask, a buffer that some versions save


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    return x.T


def _norm(name: str, width: int) -> dict[str, tuple[str, Leaf]]:
    return {"scale": (f"{name}.weight", ((width,), _same)), "bias": (f"{name}.bias", ((width,), _same))}


def _block(prefix: str, width: int, heads: int, lora: bool) -> dict[str, Any]:
    head = width // heads
    linear = ".original_layer" if lora else ""
    attn, fc, proj = f"{prefix}.attn", f"{prefix}.mlp.c_fc{linear}", f"{prefix}.mlp.c_proj{linear}"
    return {
        "ln_1": _norm(f"{prefix}.ln_1", width),
        "attn": {
            "qkv_kernel": (
                f"{attn}.in_proj_weight",
                ((3 * width, width), lambda x: x.T.reshape(width, 3, heads, head)),
            ),
            "qkv_bias": (f"{attn}.in_proj_bias", ((3 * width,), lambda x: x.reshape(3, heads, head))),
            "out_kernel": (f"{attn}.out_proj.weight", ((width, width), lambda x: x.T.reshape(heads, head, width))),
            "out_bias": (f"{attn}.out_proj.bias", ((width,), _same)),
        },
        "ln_2": _norm(f"{prefix}.ln_2", width),
        "mlp": {
            "fc_kernel": (f"{fc}.weight", ((4 * width, width), _transposed)),
            "fc_bias": (f"{fc}.bias", ((4 * width,), _same)),
            "proj_kernel": (f"{proj}.weight", ((width, 4 * width), _transposed)),
            "proj_bias": (f"{proj}.bias", ((width,), _same)),
        },
    }


def _lora_block(prefix: str, width: int, rank: int) -> dict[str, Any]:
    # Assumes the released layer's x @ A.T @ B.T, with A [rank,in] and B [out,rank].
    sizes = {"fc": ("c_fc", width, 4 * width), "proj": ("c_proj", 4 * width, width)}
    return {
        name: {
            "a": (f"{prefix}.mlp.{layer}.lora_A", ((rank, d_in), _transposed)),
            "b": (f"{prefix}.mlp.{layer}.lora_B", ((d_out, rank), _transposed)),
        }
        for name, (layer, d_in, d_out) in sizes.items()
    }


def _stack(blocks: list[dict[str, Any]]) -> Any:
    """A list of equal trees -> one tree whose leaves are lists: the leading layer axis of the result."""
    if isinstance(blocks[0], dict):
        return {name: _stack([block[name] for block in blocks]) for name in blocks[0]}
    return blocks


def _vision(prefix: str, cfg: ClipConfig, lora: bool = False) -> dict[str, Any]:
    width, patch = cfg.vision_width, cfg.patch
    blocks = [
        _block(f"{prefix}transformer.resblocks.{i}", width, cfg.vision_heads, lora) for i in range(cfg.vision_layers)
    ]
    return {
        "patch_embed": (f"{prefix}conv1.weight", ((width, 3, patch, patch), lambda x: x.transpose(2, 3, 1, 0))),
        "class_embedding": (f"{prefix}class_embedding", ((width,), _same)),
        "pos_embedding": (f"{prefix}positional_embedding", ((1 + cfg.grid**2, width), _same)),
        "ln_pre": _norm(f"{prefix}ln_pre", width),
        "blocks": _stack(blocks),
        "ln_post": _norm(f"{prefix}ln_post", width),
        "proj": (f"{prefix}proj", ((width, cfg.embed_dim), _same)),
    }


def _text(cfg: ClipConfig) -> dict[str, Any]:
    width = cfg.text_width
    blocks = [_block(f"transformer.resblocks.{i}", width, cfg.text_heads, False) for i in range(cfg.text_layers)]
    return {
        "token_embedding": ("token_embedding.weight", ((cfg.vocab, width), _same)),
        "pos_embedding": ("positional_embedding", ((cfg.context, width), _same)),
        "blocks": _stack(blocks),
        "ln_final": _norm("ln_final", width),
        "proj": ("text_projection", ((width, cfg.embed_dim), _same)),
    }


def _entries(node: Any) -> dict[str, tuple[int, ...]]:
    """Every name of a map with the shape it has in the file."""
    if isinstance(node, dict):
        return {name: shape for child in node.values() for name, shape in _entries(child).items()}
    if isinstance(node, list):
        return {name: shape for child in node for name, shape in _entries(child).items()}
    name, (shape, _) = node
    return {name: shape}


def _fill(node: Any, state: State) -> Any:
    if isinstance(node, dict):
        return {name: _fill(child, state) for name, child in node.items()}
    if isinstance(node, list):
        return np.stack([_fill(child, state) for child in node])
    name, (_, convert) = node
    return np.array(convert(np.asarray(state[name])), dtype=np.float32, order="C")


def _convert(names: dict[str, Any], state: State, where: str, advice: str) -> dict[str, Any]:
    wanted = _entries(names)
    check_keys({name: np.shape(value) for name, value in state.items()}, wanted, where, advice)
    return _fill(names, state)


def clip_from_state_dict(state: State, cfg: ClipConfig, where: str = "CLIP weights") -> dict[str, Any]:
    """The tree of `init_clip` (numpy float32 leaves) from OpenAI CLIP's state dict.

    Args:
      state: name -> array in PyTorch layout; half precision is widened, the sizes OpenAI stores beside are skipped.
      cfg: e.g. of `clip_config_from_state_dict(state)`.
      where: the file, for the message.

    Raises:
      WeightsError (a ValueError): naming missing, unexpected and misshapen keys together.
    """
    names = {"visual": _vision("visual.", cfg), "text": _text(cfg), "logit_scale": ("logit_scale", ((), _same))}
    state = {name: value for name, value in state.items() if name not in NOT_NEEDED}
    if np.shape(state.get("logit_scale")) == (1,):  # open_clip's `nonscalar_logit_scale`
        state["logit_scale"] = np.reshape(state["logit_scale"], ())
    return _convert(names, state, where, "Is it a CLIP of this architecture?")


def vision_from_state_dict(
    state: State, cfg: ClipConfig, prefix: str = "visual_depth.", where: str = "vision tower weights"
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """One vision tower, all keys of `state` that begin with `prefix`: ({'visual': tree}, LoRA factors or None).

    The released depth encoder keeps its linears as `original_layer` beside `lora_A`, `lora_B`.

    Raises:
      WeightsError (a ValueError): naming missing, unexpected and misshapen keys together.
    """
    state = {name: value for name, value in state.items() if name.startswith(prefix)}
    first = state.get(f"{prefix}transformer.resblocks.0.mlp.c_fc.lora_A")
    names: dict[str, Any] = {"visual": _vision(prefix, cfg, lora=first is not None)}
    if first is not None:
        rank, blocks = _length(first, 0), f"{prefix}transformer.resblocks."
        names["lora"] = _stack([_lora_block(f"{blocks}{i}", cfg.vision_width, rank) for i in range(cfg.vision_layers)])
    tree = _convert(names, state, where, "Is it a tower of this architecture?")
    return {"visual": tree["visual"]}, tree.get("lora")


# Keys of the released prompt learner that its forward pass never reads, and those of modules converted elsewhere.
UNUSED_PROMPT_KEYS = re.compile(
    r"(point_feature_to_prompt_neg|compound_prompt_projections)\.|(token_prefix|token_suffix|tokenized_)"
)
OTHER_MODULES = re.compile(r"(pointnet|point_feature_to_neg_point)\.")


def _length(array: np.ndarray, axis: int) -> int:
    """Of an axis; 1 of a single number, which the comparison of shapes then tells."""
    return np.shape(array)[axis] if np.ndim(array) else 1


def prompts_from_state_dict(state: State, where: str = "prompt learner weights") -> dict[str, Any]:
    """The tree of `init_prompts` (numpy float32) from the released prompt learner; 'pos' is the normal prompt there.

    Keys the released forward pass never reads, the template's buffers, PointNet++'s and GDDM's keys are skipped.

    Raises:
      WeightsError (a ValueError): naming missing, unexpected and misshapen keys together.
    """
    state = {k: v for k, v in state.items() if not UNUSED_PROMPT_KEYS.match(k) and not OTHER_MODULES.match(k)}
    if np.ndim(state.get("ctx_pos")) != 4:
        raise WeightsError(f"{where}: no ctx_pos [1,1,n,W]; is it the prompt learner of a GS-CLIP checkpoint?")
    context, width = np.shape(state["ctx_pos"])[2:]
    depth = sum(name.startswith("compound_prompts_text.") for name in state)
    deep_n = _length(state.get("compound_prompts_text.0", np.zeros((4, width))), 0)
    shape_dim = _length(state.get("point_feature_to_prompt_pos.0.weight", np.zeros((width, 512))), -1)
    ctx: Callable[[str], tuple[str, Leaf]] = lambda name: (name, ((1, 1, context, width), lambda x: x[0, 0]))  # noqa: E731
    names: dict[str, Any] = {
        "ctx_normal": ctx("ctx_pos"),
        "ctx_abnormal": ctx("ctx_neg"),
        "shape": {
            "kernel": ("point_feature_to_prompt_pos.0.weight", ((width, shape_dim), _transposed)),
            "bias": ("point_feature_to_prompt_pos.0.bias", ((width,), _same)),
            "ln": _norm("point_feature_to_prompt_pos.2", width),
        },
        "deep": [(f"compound_prompts_text.{i}", ((deep_n, width), _same)) for i in range(max(depth, 1))],
    }
    return _convert(names, state, where, "Is it the prompt learner of a GS-CLIP checkpoint?")


# Arrays that tell the sizes, with their number of axes.
SIZED = {"visual.conv1.weight": 4, "visual.positional_embedding": 2, "visual.proj": 2, "token_embedding.weight": 2,
         "positional_embedding": 2, "text_projection": 2}  # fmt: skip


def count(names: Iterable[str], pattern: str, where: str) -> int:
    """One more than the largest number in names that begin with `pattern`; 0 without any.

    Raises:
      WeightsError (a ValueError): numbers beyond the names there are: whatever is made for each would not end.
    """
    names = list(names)
    numbers = [match[1] for name in names if (match := re.match(pattern, name))]
    if any(len(number) > 9 or int(number) >= len(names) for number in numbers):
        raise WeightsError(f"{where}: {len(names)} tensors, and one is numbered {max(numbers, key=len)[:40]}; not a whole file")
    return 1 + max(map(int, numbers), default=-1)


def clip_config_from_state_dict(state: State, where: str = "CLIP weights", **changes: Any) -> ClipConfig:
    """The configuration whose shapes a CLIP state dict has, with 64 channels a head as OpenAI's; `changes` overrides any field.

    For OpenAI's own weights: what others publish under the same names, `open_clip.clip_config` takes care of.

    Raises:
      WeightsError (a ValueError): naming the keys it needs and does not find.
    """
    sizes = sizes_from_state_dict(state, where)
    heads = {f"{tower}_heads": max(sizes[f"{tower}_width"] // 64, 1) for tower in ("vision", "text")}
    return ClipConfig(**(sizes | heads | changes))


def sizes_from_state_dict(state: State, where: str = "CLIP weights") -> dict[str, int]:
    """Fields of ClipConfig by a state dict's shapes: all sizes but the number of heads.

    Not in the shapes either, and set here: the V-V blocks (19 of 24, in proportion), token ids (OpenAI's for its
    vocabulary of 49408; else start and end are the last two).

    Raises:
      WeightsError (a ValueError): naming the keys it needs and does not find.
    """
    missing = [name for name in SIZED if name not in state]
    if missing:
        raise WeightsError(f"{where}: no CLIP with a ViT, missing {', '.join(missing)}; give an OpenAI CLIP file")
    shape = {name: np.shape(state[name]) for name in SIZED}
    wrong = [f"{name} {shape[name]}" for name, axes in SIZED.items() if len(shape[name]) != axes or 0 in shape[name]]
    if wrong:
        raise WeightsError(f"{where}: no CLIP with a ViT, of impossible shape: {', '.join(wrong)}; give an OpenAI CLIP file")

    vision_width, _, patch, _ = shape["visual.conv1.weight"]
    vocab, text_width = shape["token_embedding.weight"]
    grid = round((shape["visual.positional_embedding"][0] - 1) ** 0.5)
    depth = count(state, r"visual\.transformer\.resblocks\.(\d+)\.", where)
    fields = dict(
        image_size=grid * patch, patch=patch, vision_width=vision_width, vision_layers=depth,
        embed_dim=shape["text_projection"][1], text_width=text_width, vocab=vocab,
        text_layers=count(state, r"transformer\.resblocks\.(\d+)\.", where),
        context=shape["positional_embedding"][0], vv_blocks=round(depth * 19 / 24),
    )  # fmt: skip
    if vocab != ClipConfig.vocab:
        fields |= dict(sos=vocab - 2, eos=vocab - 1, dot=min(ClipConfig.dot, vocab - 1))
    return fields
