"""What programs need of the memory, what there is, and which plan is taken."""

import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import psutil
import pytest

from gsclip_jax.runtime import memory


def test_a_program_is_measured():
    """Four products of 4 MB are held at once; the sum of all is a number."""

    def held(x):
        found = [x]
        for _ in range(4):
            found.append(jnp.tanh(found[-1] @ x))
        return sum((a @ b).sum() for a in found[1:] for b in found[1:])

    use = memory.used(jax.jit(held).lower(jnp.ones((1000, 1000))).compile())
    assert use.arguments == 4_000_000 and 12_000_000 <= use.temporary < 40_000_000 and use.returned < 100
    assert use.all == use.arguments + use.more


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back in its own way")
def test_what_was_freed_goes_back_to_the_machine():
    program = """
import psutil
from gsclip_jax.runtime.memory import give_back
resident = lambda: psutil.Process().memory_info().rss
many = [bytearray(30_000) for _ in range(20_000)]
last = bytearray(30_000)  # on top of them: what lies below is kept
most = resident()
del many
kept = resident()
give_back()
assert most - kept < 1e8 and kept - resident() > 4e8, (most, kept, resident())
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_devices_of_a_cpu_share_what_is_available():
    left = memory.free(jax.devices("cpu")[0])
    assert 0 < left <= psutil.virtual_memory().total / len(jax.devices("cpu"))


@pytest.mark.parametrize("line, folder, files", [
    ("0::/job/step", "job", ("memory.max", "memory.current", "inactive_file")),
    ("4:cpu,cpuacct:/x\n9:memory:/job", "memory/job", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
])  # fmt: skip
def test_the_limit_of_a_container_counts(tmp_path, line, folder, files):
    (own := tmp_path / "cgroup").write_text(line + "\n")
    limit, now, cache = files
    there = tmp_path / "fs" / Path(folder)
    there.mkdir(parents=True)
    for name, text in ((limit, "8000"), (now, "3000"), ("memory.stat", f"anon 2\n{cache} 500")):
        (there / name).write_text(text + "\n")
    assert list(memory._group_memory(own, tmp_path / "fs")) == [5500]
    (there / limit).write_text("max\n")
    if limit == "memory.max":
        assert not list(memory._group_memory(own, tmp_path / "fs"))
