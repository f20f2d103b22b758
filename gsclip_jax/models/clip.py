"""CLIP's two towers as Flax NNX modules over a plain dict of arrays, and the pure functions that encode with them.

One set of weights serves both image streams of GS-CLIP: the render stream takes the tokens of the V-V attention path
(`vv=True`), the depth stream adds LoRA (`lora=...`). The text tower takes embedded prompts and learned deep prompts.

Axes: ... any leading axes (B objects, V views), H W pixels, P patches, T tokens, W width, E joint embedding, L layers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from gsclip_jax.models.clip_blocks import Block, Draw, LayerNorm, run_blocks
from gsclip_jax.models.clip_config import ClipConfig
from gsclip_jax.models.lora import Dropout
from gsclip_jax.models.precision import product
from gsclip_jax.runtime.keys import check_keys
from gsclip_jax.runtime.sharding import spread_images


class Vision(nnx.Module):
    """Vision transformer; parameters as in the tree of `init_clip`."""

    def __init__(self, cfg: ClipConfig, draw: Draw):
        p, width, scale = cfg.patch, cfg.vision_width, cfg.vision_width**-0.5
        self.patch_embed = draw((p, p, 3, width), (3 * p * p) ** -0.5)
        self.class_embedding = draw((width,), scale)
        self.pos_embedding = draw((1 + cfg.grid**2, width), scale)
        self.ln_pre = LayerNorm(width)
        self.blocks = Block(width, cfg.vision_heads, cfg.vision_layers, cfg.activation, draw)
        self.ln_post = LayerNorm(width)
        self.proj = draw((width, cfg.embed_dim), scale)

    def embed(self, x: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """Images x[B,H,W,3] -> tokens [B,1+P,width] after ln_pre, the class token first; `keep` [B,K]: of those patches."""
        p, _, _, width = self.patch_embed.shape
        batch, height, across, _ = x.shape
        rows, columns = height // p, across // p
        x = x.reshape(batch, rows, p, columns, p, 3)
        kernel, positions = self.patch_embed[...].astype(x.dtype), self.positions(rows, columns).astype(x.dtype)
        if keep is None:
            x = product("brpsqc,pqcw->brsw", x, kernel).reshape(batch, -1, width) + positions[1:]
        else:  # chosen before they are embedded: no work, and no gradient to scatter, for the others
            x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, p * p * 3)
            x = jnp.take_along_axis(x, keep[..., None], 1)
            x = product("bkc,cw->bkw", x, kernel.reshape(-1, width)) + positions[1:][keep]
        first = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype) + positions[0], (batch, 1, width))
        return self.ln_pre(jnp.concatenate([first, x], 1))

    def positions(self, rows: int, columns: int) -> jax.Array:
        """Positional embedding [1+rows*columns,width]; the trained grid is resized bilinearly for other image sizes."""
        embedding = self.pos_embedding[...]
        grid = round((embedding.shape[0] - 1) ** 0.5)
        if (rows, columns) == (grid, grid):
            return embedding
        cells = embedding[1:].reshape(grid, grid, -1)
        # half-pixel centres and no antialiasing, as torch's interpolate(align_corners=False) in the released code
        cells = jax.image.resize(cells, (rows, columns, cells.shape[-1]), "bilinear", antialias=False)
        return jnp.concatenate([embedding[:1], cells.reshape(rows * columns, -1)])

    def project(self, x: jax.Array) -> jax.Array:
        """[...,width] -> [...,E] through ln_post and the projection."""
        return product("...w,we->...e", self.ln_post(x), self.proj[...].astype(x.dtype))


class Text(nnx.Module):
    """Causal text transformer; parameters as in the tree of `init_clip`."""

    def __init__(self, cfg: ClipConfig, draw: Draw):
        width = cfg.text_width
        self.token_embedding = draw((cfg.vocab, width), 0.02)
        self.pos_embedding = draw((cfg.context, width), 0.01)
        self.blocks = Block(width, cfg.text_heads, cfg.text_layers, cfg.activation, draw)
        self.ln_final = LayerNorm(width)
        self.proj = draw((width, cfg.embed_dim), width**-0.5)


class Clip(nnx.Module):
    """Both towers, or (`parts`) the vision tower alone."""

    def __init__(self, cfg: ClipConfig, draw: Draw, parts: Iterable[str] = ("visual", "text", "logit_scale")):
        self.cfg = cfg
        if "visual" in parts:
            self.visual = Vision(cfg, draw)
        if "text" in parts:
            self.text = Text(cfg, draw)
        if "logit_scale" in parts:
            self.logit_scale = nnx.Param(jnp.log(jnp.float32(1 / 0.07)))


def init_clip(key: jax.Array, cfg: ClipConfig) -> dict[str, Any]:
    """Random parameters, float32, with OpenAI CLIP's initial scales.

    visual {patch_embed [p,p,3,W], class_embedding [W], pos_embedding [1+G*G,W], ln_pre, blocks, ln_post, proj [W,E]};
    text {token_embedding [vocab,W], pos_embedding [context,W], blocks, ln_final, proj [W,E]}; logit_scale [].
    A LayerNorm is {scale, bias}. blocks are {ln_1, attn {qkv_kernel [L,W,3,H,D], qkv_bias [L,3,H,D],
    out_kernel [L,H,D,W], out_bias [L,W]}, ln_2, mlp {fc_kernel [L,W,4W], fc_bias, proj_kernel [L,4W,W], proj_bias}}.
    """

    counter = Draw()
    nnx.eval_shape(lambda: Clip(cfg, counter))
    build = jax.jit(lambda normals: nnx.to_pure_dict(nnx.state(Clip(cfg, Draw(normals)))))
    return build(jax.random.normal(key, (counter.used,)))


@functools.lru_cache(maxsize=32)
def _skeleton(cfg: ClipConfig, parts: frozenset[str]) -> tuple[nnx.GraphDef, nnx.State]:
    return nnx.split(nnx.eval_shape(lambda: Clip(cfg, Draw(), parts)))


def _named(tree: Mapping[str, Any]) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(dict(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def clip_shapes(cfg: ClipConfig) -> dict[str, Any]:
    """The parameter tree of `init_clip` with `jax.ShapeDtypeStruct` leaves: what a converter must fill."""
    return nnx.to_pure_dict(_skeleton(cfg, frozenset(("visual", "text", "logit_scale")))[1])


def clip_module(cfg: ClipConfig, params: Mapping[str, Any]) -> Clip:
    """The module of `cfg` holding `params` (or {'visual': ...}, a vision tower alone). Costs nothing under jit.

    Raises:
      ValueError: naming the missing, unexpected and misshapen parameters.
    """
    graph, state = _skeleton(cfg, frozenset(params.keys() & {"visual", "text", "logit_scale"}))
    wanted, given = _named(nnx.to_pure_dict(state)), _named(params)
    shapes = {name: jnp.shape(leaf) for name, leaf in given.items()}
    check_keys(shapes, {name: leaf.shape for name, leaf in wanted.items()}, "CLIP parameters")
    state = jax.tree.unflatten(jax.tree.structure(state), [jnp.asarray(given[name]) for name in wanted])
    return nnx.merge(graph, state)


class Encoded(NamedTuple):
    """What `encode_image` returns; neither is normalised."""

    cls: jax.Array  # [...,E], class token of the original path after the last block
    tokens: jax.Array  # [len(layers),...,1+P,E], class token first; of the V-V path where it was asked for


def preprocess_views(cfg: ClipConfig, grey: jax.Array) -> jax.Array:
    """Grey views uint8 [...,H,W] -> network input [...,H,W,3], as `preprocess_rgb`."""
    return preprocess_rgb(cfg, grey[..., None])


def preprocess_rgb(cfg: ClipConfig, rgb: jax.Array) -> jax.Array:
    """Colour images uint8 [...,H,W,3] -> network input [...,H,W,3]: (x / 255 - mean) / std in the configuration's dtype.

    Images that are no whole number of patches are reduced or enlarged to the size the CLIP was trained at.

    Raises:
      ValueError: another dtype than uint8.
    """
    if rgb.dtype != jnp.uint8:
        raise ValueError(f"images are {rgb.dtype}; preprocessing takes uint8")
    x = rgb.astype(jnp.float32)
    if x.shape[-3] % cfg.patch or x.shape[-2] % cfg.patch:
        x = jax.image.resize(x, (*x.shape[:-3], cfg.image_size, cfg.image_size, x.shape[-1]), "linear")
    x = (x / 255 - jnp.asarray(cfg.mean)) / jnp.asarray(cfg.std)
    return x.astype(cfg.dtype)


def encode_image(
    clip: Clip,
    x: jax.Array,
    *,
    lora: Mapping[str, Any] | None = None,
    vv: bool = False,
    layers: tuple[int, ...] | None = None,
    lora_scale: float = 2.0,
    dropout: Dropout | None = None,
    keep: jax.Array | None = None,
) -> Encoded:
    """Encodes network inputs x[...,H,W,3] (any leading axes, any size that is a multiple of the patch).

    Args:
      lora: factors of `init_lora` for this stream; scaled by `lora_scale` (alpha / rank).
      vv: take the tokens from the V-V attention path of the last `cfg.vv_blocks` blocks (render stream).
      layers: 1-based numbers of the blocks whose tokens to return; the last by default, () for the class token alone.
      dropout: on the input of the LoRA factors, training only; its `images` are the numbers of x's, flattened.
      keep: int [...,K], the patches to encode and to return tokens of; the others are left out, as if they were not there.

    Raises:
      ValueError: image size no multiple of the patch, or a block number out of range.
    """
    cfg = clip.cfg
    *leading, height, width, channels = x.shape
    if channels != 3 or height % cfg.patch or width % cfg.patch:
        raise ValueError(f"images are {x.shape[-3:]}; the encoder takes [H,W,3] with H and W multiples of {cfg.patch}")
    layers = (cfg.vision_layers,) if layers is None else tuple(layers)
    if not all(1 <= layer <= cfg.vision_layers for layer in layers):
        raise ValueError(f"layers {layers}: give block numbers from 1 to {cfg.vision_layers}")
    given = x.reshape(-1, height, width, 3)
    x = spread_images(given).astype(cfg.dtype)
    if dropout is not None and x.shape[0] != given.shape[0]:
        images = jnp.arange(given.shape[0]) if dropout.images is None else dropout.images
        dropout = dropout._replace(images=spread_images(images))
    tokens = clip.visual.embed(x, None if keep is None else spread_images(keep.reshape(-1, keep.shape[-1])))
    vv_start = cfg.vision_layers - cfg.vv_blocks if vv and cfg.vv_blocks else None
    # Of the last block's original path nothing but the class token is read, unless it gives the tokens; and dropout is drawn for
    # all of them.
    read = cfg.vision_layers in layers and vv_start is None
    only = None if read or (lora is not None and dropout is not None) else 1
    features = run_blocks(
        clip.visual.blocks, tokens, remat=cfg.remat, layers=layers, vv_start=vv_start, lora=lora, lora_scale=lora_scale,
        dropout=dropout, only=only,
    )  # fmt: skip
    cls = clip.visual.project(features.last[:, 0])[: given.shape[0]]  # what filled up the images takes no part
    if not layers:
        return Encoded(cls.reshape(*leading, -1), jnp.zeros((0, *leading, tokens.shape[1], cls.shape[-1]), cls.dtype))
    tokens = clip.visual.project(features.tokens)[:, : given.shape[0]]
    return Encoded(cls.reshape(*leading, -1), tokens.reshape(len(layers), *leading, *tokens.shape[2:]))


def embed_tokens(clip: Clip, ids: jax.Array) -> jax.Array:
    """Token ids [...] -> their embeddings [...,W], without positions (those are added in `encode_text`)."""
    return clip.text.token_embedding[...][ids]


def encode_text(clip: Clip, embeds: jax.Array, eot: jax.Array, deep: jax.Array | None = None) -> jax.Array:
    """Embedded prompts [...,T,W] -> text features [...,E] at the positions `eot`, not normalised. All in float32.

    Args:
      embeds: T may be less than the context: the tower is causal, so tokens behind the end-of-text token do not matter.
      eot: int [...], position of the end-of-text token; broadcast against the leading axes of `embeds`.
      deep: [depth-1,n,W]: before block 2 + i the tokens 1..n are replaced by deep[i].

    Raises:
      ValueError: more tokens than the context, or deep prompts for more blocks than there are.
    """
    cfg = clip.cfg
    *leading, length, width = embeds.shape
    if length > cfg.context:
        raise ValueError(f"prompts of {length} tokens; the text tower holds {cfg.context}")
    if deep is not None and deep.shape[0] > cfg.text_layers - 1:
        raise ValueError(f"deep prompts for {deep.shape[0]} blocks; the text tower takes {cfg.text_layers - 1}")
    x = (embeds + clip.text.pos_embedding[:length]).astype(jnp.float32).reshape(-1, length, width)
    causal = jnp.tril(jnp.ones((length, length), bool))
    eot = jnp.broadcast_to(eot, tuple(leading)).reshape(-1, 1)
    features = run_blocks(clip.text.blocks, x, remat=cfg.remat, layers=(), mask=causal, deep=deep, only=eot)
    text = product("bw,we->be", clip.text.ln_final(features.last[:, 0]), clip.text.proj[...])
    return text.reshape(*leading, -1)


def encode_tokens(clip: Clip, ids: jax.Array) -> jax.Array:
    """Token ids int [...,T] -> text features float32 [...,E] at the first end-of-text token, not normalised."""
    return encode_text(clip, embed_tokens(clip, ids), jnp.argmax(ids == clip.cfg.eos, axis=-1))
