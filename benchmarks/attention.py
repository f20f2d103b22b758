"""Ways to compute the attention of a CLIP's image tower: seconds, with gradients or without, and their peak of temporary memory.

    python benchmarks/attention.py [--images 9] [--dtype float32] [--runs 7] [--out benchmarks/attention.md]
    python benchmarks/attention.py --images 36 --dtype bfloat16               # on a GPU: flash kernels against plain products

ViT-L/14 at 336 pixels: 577 tokens, 16 heads of 64. The ways take turns; figures are medians. All have to give the same values, or
nothing is said of their speed. On a GPU in half precision `ours` is cuDNN's kernels (`gsclip_jax/models/attention.py`).
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from gsclip_jax.models.attention import attend, flash  # noqa: E402

TOKENS, HEADS, WIDTH = 577, 16, 64
BLOCK = 145  # queries at a time


def plain(q, k, v):
    """One product over all heads, float32 softmax."""
    scores = jnp.einsum("bthd,bshd->bhts", q * WIDTH**-0.5, k, preferred_element_type=jnp.float32)
    return jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores, -1).astype(v.dtype), v)


def by_image(q, k, v):
    """One image after the other."""
    return jax.lax.map(lambda one: plain(*(x[None] for x in one))[0], (q, k, v))


def by_queries(q, k, v):
    """Some queries of all images after the others, computed again for the gradient."""
    count = -(-TOKENS // BLOCK)
    padded = jnp.pad(q, ((0, 0), (0, count * BLOCK - TOKENS), (0, 0), (0, 0)))
    blocks = jnp.moveaxis(padded.reshape(len(q), count, BLOCK, HEADS, WIDTH), 1, 0)
    found = jax.lax.map(jax.checkpoint(lambda part: plain(part, k, v)), blocks)
    return jnp.moveaxis(found, 0, 1).reshape(padded.shape)[:, :TOKENS]


def by_heads(q, k, v):
    """Two heads of one image after the others, computed again for the gradient: their weights stay in a core's cache."""
    groups = len(q) * HEADS // 2
    apart = [jnp.swapaxes(x, 1, 2).reshape(groups, 2, TOKENS, WIDTH) for x in (q, k, v)]

    def two(q, k, v):  # `plain` with the heads behind the tokens took 1.5 times as long here, twice with gradients
        scores = jnp.einsum("htd,hsd->hts", q * WIDTH**-0.5, k, preferred_element_type=jnp.float32)
        return jnp.einsum("hts,hsd->htd", jax.nn.softmax(scores, -1).astype(v.dtype), v)

    found = jax.lax.map(lambda part: jax.checkpoint(two, prevent_cse=False)(*part), apart)
    return jnp.swapaxes(found.reshape(len(q), HEADS, TOKENS, WIDTH), 1, 2)


WAYS = {
    "ours": attend, "plain products": plain, "jax.nn, xla": functools.partial(jax.nn.dot_product_attention, implementation="xla"),
    "one image at a time": by_image, f"{BLOCK} queries at a time": by_queries, "two heads at a time": by_heads,
}  # fmt: skip


def _squares(way, q, k, v):
    return (way(q, k, v).astype(jnp.float32) ** 2).sum()


def measured(arrays, runs: int, gradient: bool, bound: float) -> list[str]:
    """Rows of the table."""
    programs, wanted, seconds = {}, None, {name: [] for name in WAYS}
    for name, way in WAYS.items():
        function = jax.grad(functools.partial(_squares, way), (0, 1, 2)) if gradient else way
        programs[name] = jax.jit(function).lower(*arrays).compile()
        found = jax.tree.leaves(programs[name](*arrays))
        wanted = found if wanted is None else wanted
        for a, b in zip(found, wanted, strict=True):
            if not float(jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max()) <= bound * float(jnp.abs(b).max()):
                raise SystemExit(f"error: {name} gives other values")
    for _ in range(runs):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(*arrays))
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    what = "with gradients" if gradient else "forward"
    memory = {name: program.memory_analysis().temp_size_in_bytes / 1e6 for name, program in programs.items()}
    return [f"| {name} | {what} | {1e3 * median:.1f} | {median / medians['ours']:.2f} | {memory[name]:.0f} |"
            for name, median in medians.items()]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=9)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    keys, shape = jax.random.split(jax.random.key(0), 3), (options.images, TOKENS, HEADS, WIDTH)
    arrays = [jax.random.normal(key, shape, options.dtype) for key in keys]
    load = os.getloadavg()[0]
    bound = 1e-5 if options.dtype == "float32" else 3e-2
    rows = [row for gradient in (False, True) for row in measured(arrays, options.runs, gradient, bound)]
    place = f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores, load {load:.1f} at the start"
    kernels = "cuDNN's kernels" if flash(arrays[0].dtype, WIDTH) else "plain products"
    command = f"python benchmarks/attention.py --images {options.images} --dtype {options.dtype} --runs {options.runs}"
    text = f"""# Attention of an image tower

Made by `{command}` (see there) on {place}. Here `ours` is {kernels}. Medians of {options.runs} runs in turn.

| way | what | ms | share of ours | temporary memory, MB |
|---|---|---|---|---|
""" + "\n".join(rows) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
