"""Damaged clouds and ground truth of every format: read, or refused in one line; never a crash, never memory as headers claim.

The default run damages a few hundred files, `make test-slow` ten thousand. Everything is seeded: a failure names its input.
"""

from __future__ import annotations

import re
import tracemalloc

import numpy as np
import pytest

from data_pipelines.clouds.files import read_cloud
from data_pipelines.datasets.truth import read_marks
from data_pipelines.scan import DataError
from tests import mutations
from tests.cloud_writers import pcd, ply
from tests.data_pipelines.test_text_tables import FOUR, GOOD, ONE, QUOTED_COMMAS, XYZ, lines

MEMORY = 16 << 20  # bytes at most for files of some ten thousand
NUMBERS = (b"0", b"-1", b"1", b"3", b"60", b"4294967295", b"9" * 30, b"", b"1e9", b"nan", b"0x10", b"1" * 5000)
WORDS = (b"\n", b"\r", b"\0", b"nan", b"inf", b"#", b"//", b";", b",", b"\t", b"PK\x03\x04", b"ply\n", b"<html>",
         b"\xff\xfe", b"[" * 5000,         b"\xaa", b"(" * 200, b"'", b'"', b"1.#QNAN", b"list", b"DATA binary\n",
         b"end_header\n", b"format ascii 1.0\n", b"x y z\n")


def files() -> dict[str, bytes]:
    """Whole files of each format, as name -> content."""
    xyz, colour = [(name, XYZ[:, at]) for at, name in enumerate("xyz")], np.arange(150).astype("u1")
    extra = [("rgb", np.arange(150).astype("u4")), ("_", np.zeros((150, 3), "u1")), ("hist", np.ones((150, 2), "f4"))]
    colours = [(name, colour) for name in ("red", "green", "blue")]
    found = {f"{data}.pcd": pcd([*xyz, *extra], data) for data in ("ascii", "binary", "binary_compressed")}
    for form in ("ascii", "binary_little_endian", "binary_big_endian"):
        found[f"{form}.ply"] = ply([*xyz, *colours], form)
        found[f"{form}_lists.ply"] = ply([*xyz, *colours], form, lists=[list(range(i % 3)) for i in range(150)])
    texts = [*GOOD.values(), QUOTED_COMMAS, lines(" ", FOUR), lines(" ", ONE)]
    found |= {f"{at}.txt": text.encode() for at, text in enumerate(texts)}
    found["wide.csv"] = GOOD["decimal comma;"].encode("utf-16")
    return found


def arrays(folder) -> dict[str, bytes]:
    for name, array in (("a", XYZ), ("b", np.asfortranarray(np.c_[XYZ, XYZ[:, :1] > 3])), ("c", XYZ[:, 0] > 100),
                        ("d", np.rec.fromarrays(XYZ.T, names="x,y,z"))):
        np.save(folder / f"{name}.npy", array)
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """A number of the header replaced, a word inserted, the end cut, or bytes changed anywhere."""
    kind = rng.integers(4)
    if kind == 0:
        spots = list(re.finditer(rb"(?<![\w.])-?\d+(?![\w.])", content[:400]))
        if spots:
            for spot in sorted(rng.choice(len(spots), min(len(spots), int(rng.integers(1, 4))), replace=False))[::-1]:
                start, end = spots[spot].span()
                content = content[:start] + NUMBERS[rng.integers(len(NUMBERS))] + content[end:]
            return content
    if kind == 1:
        at = int(rng.integers(min(len(content), 400 if rng.random() < 0.7 else 10**9)))
        return content[:at] + WORDS[rng.integers(len(WORDS))] + content[at:]
    if kind == 2:
        return content[: rng.integers(len(content))]
    return mutations.of_bytes(content, rng)


def try_one(path, content: bytes, what: str) -> bool:
    """Whether damaged bytes were read as a cloud, after a check that they were read or refused as they should be."""
    path.write_bytes(content)
    read = False
    for reader in (read_cloud, lambda path: read_marks(path, XYZ)):
        tracemalloc.reset_peak()
        try:
            found = reader(path)
        except DataError as error:
            assert str(error).startswith(str(path)) and len(str(error)) < 600 and str(error).isprintable(), (what, str(error))
        except Exception as error:
            raise AssertionError(f"{what}: {error!r}") from error
        else:
            if reader is read_cloud:
                assert found.dtype == np.float64 and found.ndim == 2 and found.shape[1] == 3 and len(found), what
                read = True
            else:
                assert found.dtype == bool and found.shape == (150,), what
        assert tracemalloc.get_traced_memory()[1] < MEMORY, what
    return read


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_damaged_files_are_read_or_refused(tmp_path, count):
    whole = files() | arrays(tmp_path)
    names = sorted(whole)
    binary = [name for name in names if not name.endswith((".txt", ".csv"))]
    read = 0
    tracemalloc.start()
    try:
        for number in range(count):
            rng = np.random.default_rng(number)
            pool = binary if number % 2 else names
            name = pool[rng.integers(len(pool))]
            read += try_one(tmp_path / f"damaged.{name.split('.')[1]}", damaged(whole[name], rng), f"input {number} of {name}")
    finally:
        tracemalloc.stop()
    assert 0.05 * count < read < 0.9 * count  # damage that matters, and damage that does not
