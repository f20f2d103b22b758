"""How fast this machine is now, in a few seconds: products, elementwise operations, one scan to a record. Nothing is written."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from data_pipelines.datasets.colours import coloured
from data_pipelines.datasets.data_set import Published
from data_pipelines.datasets.listing import Reader
from data_pipelines.records.objects import Recipe, make_object, pack
from data_pipelines.rendering.views import rasteriser
from data_pipelines.scan import Sample, Scan
from gsclip_jax.models.precision import product

SIDE, TURNS, WORTH = 1024, 8, 0.7  # of the matrices; products in a call; seconds that a rate is measured for
SHORT = 3.0  # seconds: what took less is done once more, without what a first time costs


@dataclass(frozen=True)
class Rates:
    """Operations a second of this machine's devices together, as measured.

    Fields:
      half, single: of products of bfloat16 and float32.
      other: of elementwise operations, several on each number that is read.
    """

    half: float
    single: float
    other: float


def rates(half: bool) -> Rates:
    """Measured now, with whatever else runs here. `half`: whether products of bfloat16 are asked for."""
    devices = jax.devices()

    def products(dtype: jnp.dtype) -> float:
        def call(x: jax.Array) -> jax.Array:
            for _ in range(TURNS):
                x = product("ij,jk->ik", x, x) * dtype(1 / SIDE)
            return x

        return TURNS * 2 * SIDE**3 * _calls(call, jnp.ones((SIDE, SIDE), dtype), devices)

    def chain(x: jax.Array) -> jax.Array:
        for _ in range(TURNS):
            x = x * 0.5 + 1.0
        return x

    single = products(jnp.float32)
    numbers = 2**22
    other = 2 * TURNS * numbers * _calls(chain, jnp.ones(numbers, jnp.float32), devices)
    return Rates(products(jnp.bfloat16) if half else single, single, other)


def _calls(function: Callable, value: jax.Array, devices: list) -> float:
    """Calls a second on all devices together."""
    run, given = jax.jit(function), [jax.device_put(value, device) for device in devices]
    jax.block_until_ready([run(one) for one in given])
    began, calls = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < WORTH:
        jax.block_until_ready([run(one) for one in given])
        calls += len(given)
    return calls / took


@dataclass(frozen=True)
class Rendered:
    """What one record cost: seconds of one core, bytes, and which scan it was made of."""

    seconds: float
    bytes: int
    scan: str


def rendering(recipe: Recipe, scan: Scan, category: str, what: str) -> Rendered:
    """Makes one record in memory.

    Raises:
      DataError: the scan cannot be used, or nothing can draw here.
    """
    draw = rasteriser(recipe.window, recipe.rasteriser)
    process = psutil.Process()
    while True:
        began, first = _cpu_seconds(process), time.perf_counter()
        made = make_object(scan, recipe, category, "estimate", draw)
        np.savez(buffer := io.BytesIO(), **pack(made))
        seconds, took = _cpu_seconds(process) - began, time.perf_counter() - first
        if took > SHORT or what.endswith("again"):
            break
        what += ", again"
    return Rendered(seconds, buffer.tell(), what.removesuffix(", again"))


def _cpu_seconds(process: psutil.Process) -> float:
    """Of this process and those that draw for it: what is left of the time where the machine has other work."""
    own = sum(os.times()[:2])
    for child in process.children():
        try:
            own += sum(child.cpu_times()[:2])
        except psutil.Error:  # it has just ended
            continue
    return own


def scan_of(reader: Reader, sample: Sample, recipe: Recipe) -> Scan:
    """A scan of a data set that is here. Raises DataError, OSError: it cannot be read."""
    scan = reader.load(sample)
    return coloured(scan, reader.colour(sample), reader.name) if recipe.rgb_render else scan


def stand_in(published: Published) -> Scan:
    """A lumpy ball, or a lump on a grid, with as many points as a typical scan of a data set that is not here."""
    if published.grid:
        height, width = published.grid
        y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
        inside = x**2 + y**2 < 0.8
        z = 2 - 0.3 * np.sqrt(np.maximum(0.8 - x**2 - y**2, 0)) + 0.01 * np.sin(20 * x) * np.sin(17 * y)
        xyz, valid = np.stack([x, y, z], -1).reshape(-1, 3) * 0.05, inside.ravel()
        xyz[~valid] = 0
    else:
        number = np.arange(published.points) + 0.5
        up, turn = 1 - 2 * number / published.points, np.pi * (1 + 5**0.5) * number
        across = np.sqrt(1 - up**2)
        ball = np.stack([across * np.cos(turn), across * np.sin(turn), up], -1)
        xyz = 15 * ball * (1 + 0.1 * np.sin(5 * ball[:, :1]) * np.sin(7 * ball[:, 1:2]))
        valid = np.ones(len(xyz), bool)
    return Scan(xyz=xyz, mask=np.zeros(len(xyz), bool), valid=valid, grid=published.grid,
                colours=np.full((len(xyz), 3), 128, np.uint8))  # fmt: skip
