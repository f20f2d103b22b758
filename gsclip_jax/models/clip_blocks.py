"""Residual attention blocks of the CLIP towers: one NNX block, parameters with a leading layer axis, run by `lax.scan`.

Axes: B images or texts, T tokens, W width, H heads, D width of a head, F = 4W width of the MLP, L layers, R LoRA rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax.contrib
from flax import nnx

from gsclip_jax.models.attention import attend
from gsclip_jax.models.layers import layer_norm
from gsclip_jax.models.lora import Dropout, lora_delta
from gsclip_jax.models.precision import product

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {  # those of clip_config
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


class Draw:
    """Hands out the initial values: consecutive pieces of one vector of normals (one random call compiles in a second,
    one per parameter in half a minute). Without a vector it hands out zeros and counts what would be used."""

    def __init__(self, normals: jax.Array | None = None):
        self.normals, self.used = normals, 0

    def __call__(self, shape: tuple[int, ...], std: float) -> nnx.Param:
        start, self.used = self.used, self.used + math.prod(shape)
        if self.normals is None:
            return nnx.Param(jnp.zeros(shape))
        return nnx.Param(self.normals[start : self.used].reshape(shape) * std)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis; statistics in float32 whatever the input's dtype, result in the input's dtype."""

    def __init__(self, width: int, leading: tuple[int, ...] = ()):
        self.scale = nnx.Param(jnp.ones((*leading, width)))
        self.bias = nnx.Param(jnp.zeros((*leading, width)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm({"scale": self.scale[...], "bias": self.bias[...]}, x)


def rows_of(x: jax.Array, only: jax.Array | int | None) -> jax.Array:
    """Those of x[B,T,...] that are read: all, the first so many, or int [B,K] of them."""
    if only is None:
        return x
    return x[:, :only] if isinstance(only, int) else jnp.take_along_axis(x, only[..., None], axis=1)


class Attention(nnx.Module):
    """Multi-head self-attention; query, key and value share one kernel [W,3,H,D]."""

    def __init__(self, width: int, heads: int, layers: int, draw: Draw):
        head = width // heads
        self.qkv_kernel = draw((layers, width, 3, heads, head), width**-0.5)
        self.qkv_bias = nnx.Param(jnp.zeros((layers, 3, heads, head)))
        self.out_kernel = draw((layers, heads, head, width), (2 * layers * width) ** -0.5)
        self.out_bias = nnx.Param(jnp.zeros((layers, width)))

    def project_in(self, x: jax.Array, only: jax.Array | int | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries (of the rows `only`), keys and values [B,T,H,D]."""
        kernel, bias = self.qkv_kernel[...].astype(x.dtype), self.qkv_bias[...].astype(x.dtype)[:, None, None]
        if only is None:
            q, k, v = product("btw,wnhd->nbthd", x, kernel) + bias
            return q, k, v
        (q,) = product("btw,wnhd->nbthd", rows_of(x, only), kernel[:, :1]) + bias[:1]
        k, v = product("btw,wnhd->nbthd", x, kernel[:, 1:]) + bias[1:]
        return q, k, v

    def project_out(self, mixed_bthd: jax.Array) -> jax.Array:
        y = product("bthd,hdw->btw", mixed_bthd, self.out_kernel[...].astype(mixed_bthd.dtype))
        return y + self.out_bias[...].astype(y.dtype)


class Mlp(nnx.Module):
    """Two linears around the activation; LoRA, when given, adds its low-rank product to both."""

    def __init__(self, width: int, layers: int, activation: str, draw: Draw):
        self.activation = activation
        self.fc_kernel = draw((layers, width, 4 * width), (2 * width) ** -0.5)
        self.fc_bias = nnx.Param(jnp.zeros((layers, 4 * width)))
        self.proj_kernel = draw((layers, 4 * width, width), (2 * layers * width) ** -0.5)
        self.proj_bias = nnx.Param(jnp.zeros((layers, width)))

    def __call__(self, x: jax.Array, lora: LoraStep | None) -> jax.Array:
        y = product("btw,wf->btf", x, self.fc_kernel[...].astype(x.dtype)) + self.fc_bias[...].astype(x.dtype)
        if lora is not None:
            y = (y + lora.delta("fc", x)).astype(x.dtype)
        y = jax.checkpoint(ACTIVATIONS[self.activation], prevent_cse=False)(y)  # its input is kept, not its intermediates
        z = product("btf,fw->btw", y, self.proj_kernel[...].astype(y.dtype)) + self.proj_bias[...].astype(y.dtype)
        if lora is not None:
            z = (z + lora.delta("proj", y)).astype(y.dtype)
        return z


class LoraStep(NamedTuple):
    """What one layer's MLP needs of LoRA: its two pairs of factors, their factor, and the layer's own dropout."""

    params: Mapping[str, Any]
    scale: float
    dropout: Dropout | None

    def delta(self, name: str, x: jax.Array) -> jax.Array:
        own = self.dropout
        if own is not None:
            own = own._replace(key=jax.random.fold_in(own.key, ("fc", "proj").index(name)))
        return lora_delta(self.params[name], x, scale=self.scale, dropout=own)


class Block(nnx.Module):
    """Pre-norm residual block. A tower holds ONE, its parameters with a leading axis L for `run_blocks` to scan."""

    def __init__(self, width: int, heads: int, layers: int, activation: str, draw: Draw):
        self.ln_1 = LayerNorm(width, (layers,))
        self.attn = Attention(width, heads, layers, draw)
        self.ln_2 = LayerNorm(width, (layers,))
        self.mlp = Mlp(width, layers, activation, draw)

    def __call__(
        self,
        x: jax.Array,
        second: jax.Array | None = None,
        *,
        mask: jax.Array | None = None,
        lora: LoraStep | None = None,
        only: jax.Array | int | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
        """x[B,T,W] -> x after the block, all of it or the rows `only` (`rows_of`), and the V-V path `second` after it.

        The V-V path (AnomalyCLIP's surgery, as GS-CLIP's render stream uses it) adds value-value attention of the *original*
        path's normalised input.
        """
        q, k, v = self.attn.project_in(self.ln_1(x), only)
        if mask is not None and only is not None:
            mask = mask[:only] if isinstance(only, int) else mask[only]
        y = rows_of(x, only) + self.attn.project_out(attend(q, k, v, mask))
        y = y + self.mlp(self.ln_2(y), lora)
        if second is not None:
            second = second + self.attn.project_out(attend(v, v, v))
        return y, second


class Features(NamedTuple):
    """Tokens after the last block, and of the second (or only) path after the blocks asked for."""

    last: jax.Array  # [B,T,W], original path; of the rows `only` where they are given
    tokens: jax.Array | None  # [len(layers),B,T,W], V-V path where there is one; None where no layers are asked for


def run_blocks(
    blocks: Block,
    x: jax.Array,
    *,
    remat: bool,
    layers: tuple[int, ...],
    vv_start: int | None = None,
    mask: jax.Array | None = None,
    lora: Mapping[str, Any] | None = None,
    lora_scale: float = 2.0,
    dropout: Dropout | None = None,
    deep: jax.Array | None = None,
    only: jax.Array | int | None = None,
) -> Features:
    """Runs x[B,T,W] through all layers: a scan before the V-V path, one with it, and the last block, of which less is computed.

    Args:
      blocks: with a leading axis L on every parameter.
      remat: recompute each block in the backward pass instead of keeping its activations.
      layers: 1-based numbers of the blocks whose tokens to return; () for none.
      vv_start: 0-based first block of the V-V path; None for no such path.
      mask: bool [T,T], false where attention is forbidden (original path only).
      lora: {fc, proj: {a [L,.,R], b [L,R,.]}}; `dropout` is that of its input.
      deep: [n,K,W] in x's dtype; before block 2 + i (1-based) tokens 1..K are replaced by deep[i].
      only: the rows of the last block's output that are read (`rows_of`), where its tokens on this path are not asked for.
    """
    graph, state = nnx.split(blocks)
    depth = blocks.ln_1.scale.shape[0]
    keys = None if lora is None or dropout is None else jax.random.split(dropout.key, depth)
    wanted = jnp.asarray(layers) - 1 if layers and layers != (depth,) else None
    if deep is not None:
        n = deep.shape[0]
        deep = jnp.pad(deep, ((1, depth - 1 - n), (0, 0), (0, 0)))  # a row for each block

    def step(carry, number, only=None):
        x, second, kept = carry
        # From whole stacks, not a scan's own slices: half a stack would be a copy of the weights.
        layer_state, layer_lora, key, layer_deep = jax.tree.map(lambda stack: stack[number], (state, lora, keys, deep))
        if layer_deep is not None:
            replaced = x.at[:, 1 : 1 + layer_deep.shape[0]].set(layer_deep)
            x = jnp.where((number >= 1) & (number <= n), replaced, x)
        own = None if key is None else dropout._replace(key=key)
        step_lora = None if layer_lora is None else LoraStep(layer_lora, lora_scale, own)
        x, second = nnx.merge(graph, layer_state)(x, second, mask=mask, lora=step_lora, only=only)
        if kept is not None:
            tokens = x if second is None else second
            kept = jnp.where((wanted == number)[:, None, None, None], tokens, kept)
        return (x, second, kept), None

    def run(step, carry, first, end):
        """Blocks `first` to `end` - 1."""
        if depth <= 6 and not remat:  # a scan stacks what its backward pass needs; few blocks are a fifth faster without
            for number in range(first, end):
                carry, _ = step(carry, number)
            return carry
        return jax.lax.scan(step, carry, jnp.arange(first, end))[0] if first < end else carry

    scanned = jax.checkpoint(step, prevent_cse=False) if remat else step  # within a scan the two passes can share nothing
    begins = depth if vv_start is None else vv_start
    kept = None if wanted is None else jnp.zeros((len(layers), *x.shape), x.dtype)
    last = depth - 1 if only is not None else depth
    x, _, kept = run(scanned, (x, None, kept), 0, min(begins, last))
    x, second, kept = run(scanned, (x, None if vv_start is None else x, kept), begins, last)
    if only is not None:
        pruned = lambda carry: step(carry, last, only)[0]  # noqa: E731
        x, second, kept = (jax.checkpoint(pruned) if remat else pruned)((x, second, kept))
    if kept is None and layers:
        kept = (x if second is None else second)[None]
    return Features(x, kept)


# Which axes of a block's kernels (the first counts the layers) a matrix product sums over, and which it makes.
_AXES = {"qkv_kernel": ((1,), (3, 4)), "out_kernel": ((1, 2), (3,)), "fc_kernel": ((1,), (2,)), "proj_kernel": ((1,), (2,))}


def block_matrices(params: Any) -> Any:
    """MuonDimensionNumbers of the transformer blocks' kernels, None for everything else."""

    def axes(path, _):
        *above, last = (part.key for part in path)
        return optax.contrib.MuonDimensionNumbers(*_AXES[last]) if "blocks" in above and last in _AXES else None

    return jax.tree_util.tree_map_with_path(axes, params)
