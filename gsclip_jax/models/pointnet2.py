"""PointNet++ (single-scale grouping, semantic-segmentation form): per-point features and one shape vector of a cloud.

Qi et al. 2017; the layer sizes are those of the public nine-channel S3DIS network, which gets xyz three times here. All
shapes are static, so a batch compiles once: farthest points are a counted loop, ball query and 3-NN are `top_k`.

Axes: B batch, N cloud points, S centroids, R points to be interpolated, G neighbours in a ball, C channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from gsclip_jax.models.precision import EXACT

Params = Mapping[str, Any]


@dataclass(frozen=True)
class PointNet2Config:
    """Sizes of the network. The defaults are the published ones; a small model needs other `centroids` only."""

    centroids: tuple[int, ...] = (1024, 256, 64, 16)
    radii: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8)  # of clouds in the unit sphere
    neighbours: int = 32
    input_copies: int = 3  # xyz repeated to nine channels, as the S3DIS weights expect
    down: tuple[tuple[int, ...], ...] = ((32, 32, 64), (64, 64, 128), (128, 128, 256), (256, 256, 512))
    up: tuple[tuple[int, ...], ...] = ((256, 256), (256, 256), (256, 128), (128, 128, 128))  # deepest first: fp4 .. fp1
    head: int = 128
    norm_eps: float = 1e-5
    momentum: float = 0.1  # torch's: new = 0.9 old + 0.1 batch
    dropout: float = 0.5  # after the head; active only where a dropout key is given (released: in training mode)
    dtype: str = "float32"  # of the linear layers; geometry, BatchNorm and outputs stay float32

    def __post_init__(self) -> None:
        if not len(self.centroids) == len(self.radii) == len(self.down) == len(self.up):
            raise ValueError("PointNet2Config: centroids, radii, down and up must have the same length, have "
                             f"{len(self.centroids)}, {len(self.radii)}, {len(self.down)}, {len(self.up)}")

    @property
    def levels(self) -> int:
        return len(self.centroids)

    @property
    def point_dim(self) -> int:
        """Channels of the per-point features."""
        return self.head

    @property
    def shape_dim(self) -> int:
        """Length of the shape vector."""
        return self.down[-1][-1]


DEFAULT = PointNet2Config()


def layer_sizes(cfg: PointNet2Config) -> dict[str, tuple[tuple[int, int], ...]]:
    """Block ('sa1' ..., 'fp1', 'head') -> (input, output) channels of its layers, in the order of the forward pass."""
    skips = [3 * cfg.input_copies]
    blocks: dict[str, tuple[tuple[int, int], ...]] = {}

    def chain(channels: int, outs: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        return tuple(zip((channels, *outs[:-1]), outs, strict=True))

    for level, outs in enumerate(cfg.down, 1):
        blocks[f"sa{level}"] = chain(skips[-1] + 3, outs)
        skips.append(outs[-1])
    channels = skips.pop()
    for level, outs in zip(range(cfg.levels, 0, -1), cfg.up, strict=True):
        skip = skips.pop() if level > 1 else 0  # the raw coordinates are not fed to the last propagation
        blocks[f"fp{level}"] = chain(channels + skip, outs)
        channels = outs[-1]
    blocks["head"] = ((channels, cfg.head),)
    return blocks


@functools.partial(jax.jit, static_argnames="cfg")
def init_pointnet2(key: jax.Array, cfg: PointNet2Config = DEFAULT) -> tuple[dict, dict]:
    """Random parameters and fresh running statistics.

    Returns:
      params: block -> layer number as text -> {kernel [in, out], bias [out], bn: {scale [out], bias [out]}}, float32.
      stats: block -> layer number -> {mean [out], var [out]}, float32.
    """
    blocks = layer_sizes(cfg)
    drawn = jax.random.normal(key, (sum(a * b for sizes in blocks.values() for a, b in sizes),), jnp.float32)
    params: dict = {}
    stats: dict = {}
    used = 0
    for block, sizes in blocks.items():
        params[block], stats[block] = {}, {}
        for number, (inputs, outputs) in enumerate(sizes):
            # He: every layer is followed by BatchNorm and ReLU. One draw cut into pieces compiles in no time.
            kernel = drawn[used : used + inputs * outputs].reshape(inputs, outputs) * math.sqrt(2 / inputs)
            used += inputs * outputs
            params[block][str(number)] = {
                "kernel": kernel, "bias": jnp.zeros(outputs),
                "bn": {"scale": jnp.ones(outputs), "bias": jnp.zeros(outputs)}}
            stats[block][str(number)] = {"mean": jnp.zeros(outputs), "var": jnp.ones(outputs)}
    return params, stats


# ---------------------------------------------------------------- geometry


def squared_distances(a: jax.Array, b: jax.Array) -> jax.Array:
    """[B,S,3], [B,N,3] -> [B,S,N] as a sum of squared differences.

    The expanded form a^2 - 2ab + b^2 would be a matrix product, but loses the digits that decide who is in a ball.
    """
    return sum((a[:, :, None, axis] - b[:, None, :, axis]) ** 2 for axis in range(3))


def farthest_points(xyz: jax.Array, n: int, start: int | jax.Array = 0) -> jax.Array:
    """Farthest point sampling: each next point is the one farthest from all taken so far (lowest index among equals).

    Args:
      xyz: [B,N,3] float32.
      n: points to take.
      start: index of the first point, one for all or [B].
    Returns: int32 [B,n], in the order taken. Where a cloud has fewer than n distinct points, index 0 repeats.
    """
    batch, points, _ = xyz.shape
    columns = jnp.moveaxis(lax.stop_gradient(xyz), -1, 0)  # [3,B,N]: long rows, so that the loop's sums vectorise
    start = jnp.broadcast_to(jnp.asarray(start, jnp.int32), (batch,))

    def take(step: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        taken, nearest, last = state
        here = jnp.take_along_axis(columns, last[None, :, None], axis=2)  # [3,B,1]
        x, y, z = columns - here
        nearest = jnp.minimum(nearest, x * x + y * y + z * z)
        return taken.at[:, step].set(last), nearest, jnp.argmax(nearest, axis=-1).astype(jnp.int32)

    state = (jnp.zeros((batch, n), jnp.int32), jnp.full((batch, points), jnp.inf, xyz.dtype), start)
    return lax.fori_loop(0, n, take, state)[0]


def ball_query(centroids: jax.Array, xyz: jax.Array, radius: float, neighbours: int) -> jax.Array:
    """The first `neighbours` points, by index, within `radius` of every centroid; short rows repeat their first entry.

    Args: centroids [B,S,3], xyz [B,N,3], float32.
    Returns: int32 [B,S,neighbours], ascending before the repeats. A centroid without any point in reach gets index 0
    (in the network it is itself one of the points).
    """
    points = xyz.shape[1]
    inside = squared_distances(*lax.stop_gradient((centroids, xyz))) <= radius**2
    # Ranking by N - index finds the lowest indices without a sort of the row; in float32 because top_k is far faster
    # there on CPUs, and exact up to 2^24 points.
    rank = jnp.where(inside, points - jnp.arange(points, dtype=jnp.float32), 0.0)
    width = min(neighbours, points)
    rank = lax.top_k(rank, width)[0]
    index = jnp.where(rank > 0, points - rank.astype(jnp.int32), points)
    index = jnp.pad(index, ((0, 0), (0, 0), (0, neighbours - width)), constant_values=points)
    first = jnp.where(index[..., :1] < points, index[..., :1], 0)
    return jnp.where(index < points, index, first)


def gather(values: jax.Array, index: jax.Array) -> jax.Array:
    """values [B,N,C] at index [B,...] -> [B,...,C]."""
    return jax.vmap(lambda value, at: value[at])(values, index)


def interpolate(targets: jax.Array, sources: jax.Array, features: jax.Array) -> jax.Array:
    """Inverse-distance mean over the three nearest sources.

    Args: targets [B,R,3], sources [B,S,3], features [B,S,C]. Returns: [B,R,C].
    Weights are 1 / (squared distance + 1e-8), normalised. With fewer than three sources all of them are used.
    """
    distance = squared_distances(targets, sources)
    index = lax.top_k(-lax.stop_gradient(distance), min(3, sources.shape[1]))[1]
    weight = 1.0 / (jnp.take_along_axis(distance, index, axis=-1) + 1e-8)
    weight = weight / weight.sum(-1, keepdims=True)
    return jnp.einsum("brk,brkc->brc", weight, gather(features, index), precision=EXACT)


# ---------------------------------------------------------------- layers


def _layer(params: Params, stats: Params, x: jax.Array, train: bool, cfg: PointNet2Config) -> tuple[jax.Array, dict]:
    """ReLU(BatchNorm(linear)) over the last axis; the statistics run over all others (batch included).

    In training the linear's bias cancels: it is in the running mean alone, and has no gradient. Where it is added and taken away
    again its gradient is round-off, of which Adam makes full steps, and other ones on every number of devices.
    """
    dtype = jnp.dtype(cfg.dtype)
    kernel = params["kernel"].astype(dtype)
    y = jnp.dot(x.astype(dtype), kernel, precision=EXACT, preferred_element_type=jnp.float32)
    if train:
        axes = tuple(range(y.ndim - 1))
        count = math.prod(y.shape[:-1])
        mean = y.mean(axes)
        var = jnp.square(y - mean).mean(axes)
        # torch normalises with the biased variance and remembers the unbiased one
        unbiased = lax.stop_gradient(var) * (count / max(count - 1, 1))
        stats = {"mean": (1 - cfg.momentum) * stats["mean"] + cfg.momentum * lax.stop_gradient(mean + params["bias"]),
                 "var": (1 - cfg.momentum) * stats["var"] + cfg.momentum * unbiased}
    else:
        mean, var = stats["mean"] - params["bias"], stats["var"]
    scale = params["bn"]["scale"] * lax.rsqrt(var + cfg.norm_eps)
    return jax.nn.relu((y - mean) * scale + params["bn"]["bias"]), dict(stats)


def _block(params: Params, stats: Params, x: jax.Array, train: bool, cfg: PointNet2Config) -> tuple[jax.Array, dict]:
    new = {}
    for number in sorted(params, key=int):
        x, new[number] = _layer(params[number], stats[number], x, train, cfg)
    return x, new


def pointnet2(params: Params, stats: Params, cloud: jax.Array, *, train: bool, cfg: PointNet2Config = DEFAULT,
              start: int | jax.Array = 0, dropout_key: jax.Array | None = None,
              ) -> tuple[tuple[jax.Array, jax.Array], Params, dict[str, jax.Array]]:
    """Per-point features and the shape vector, with new statistics and the named intermediates.

    Args:
      params, stats: see `init_pointnet2`.
      cloud: [B,N,3] float32, centred and scaled to the unit sphere; N at least `cfg.centroids[0]`.
      train: normalise with the batch's statistics and return updated running ones.
      start: first point of the farthest point sampling (the public network draws it at random), one or [B]; deeper
        levels start at their centroid 0.
      dropout_key: drops head features at rate `cfg.dropout`, as the released code does in training mode; None: never.
    Returns:
      (points [B,N,head], shape [B,down[-1][-1]]), new_stats, named. Without `train` the statistics come back as they are.
      `named` is fps{l} [B,S], ball{l} [B,S,G], xyz{l} [B,S,3], sa{l} [B,S,C], fp{l}, l from 1; a compiled caller that reads
      none of it computes nothing more for it.
    Raises: ValueError where the cloud is not [B,N,3] or has fewer points than the first level has centroids.
    """
    if cloud.ndim != 3 or cloud.shape[-1] != 3:
        raise ValueError(f"pointnet2: cloud must be [batch, points, 3], is {cloud.shape}")
    if cloud.shape[1] < cfg.centroids[0]:
        raise ValueError(f"pointnet2: {cloud.shape[1]} points a cloud are fewer than the first level's "
                         f"{cfg.centroids[0]} centroids; give more points or a PointNet2Config with fewer centroids")
    cloud = cloud.astype(jnp.float32)
    new_stats, named = {}, {}
    xyz, features = [cloud], [jnp.tile(cloud, cfg.input_copies)]

    for level in range(1, cfg.levels + 1):
        centre_index = farthest_points(xyz[-1], cfg.centroids[level - 1], start if level == 1 else 0)
        centres = gather(xyz[-1], centre_index)  # [B,S,3]
        ball = ball_query(centres, xyz[-1], cfg.radii[level - 1], cfg.neighbours)
        grouped = jnp.concatenate([gather(xyz[-1], ball) - centres[:, :, None], gather(features[-1], ball)], axis=-1)
        out, new_stats[f"sa{level}"] = _block(params[f"sa{level}"], stats[f"sa{level}"], grouped, train, cfg)
        xyz.append(centres)
        features.append(out.max(axis=2))  # [B,S,C]
        named |= {f"fps{level}": centre_index, f"ball{level}": ball, f"xyz{level}": centres, f"sa{level}": features[-1]}
    shape = features[-1].max(axis=1)

    x = features[-1]
    for level in range(cfg.levels, 0, -1):
        x = interpolate(xyz[level - 1], xyz[level], x)
        if level > 1:
            x = jnp.concatenate([features[level - 1], x], axis=-1)
        x, new_stats[f"fp{level}"] = _block(params[f"fp{level}"], stats[f"fp{level}"], x, train, cfg)
        named[f"fp{level}"] = x
    x, new_stats["head"] = _block(params["head"], stats["head"], x, train, cfg)
    if dropout_key is not None:
        kept = jax.random.bernoulli(dropout_key, 1 - cfg.dropout, x.shape)
        x = jnp.where(kept, x / (1 - cfg.dropout), 0)
    return (x, shape), (new_stats if train else stats), named
