"""Whatever the bytes: the readers of pictures, depths and side files give a result or one line, and ask for little memory."""

import contextlib
import io
import itertools
import json
import shutil
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from data_pipelines.clouds.tiff import read_xyz
from data_pipelines.datasets import open_reader, pictures, prerendered
from data_pipelines.scan import DataError
from tests.data_pipelines import test_eyecandies, test_prerendered

ROUNDS = [pytest.param(300, id="quick"), pytest.param(10_000, id="long", marks=pytest.mark.slow)]
WORDS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"9999", b"\0\0\1\0")
MEMORY = 64 << 20  # bytes; the files have kilobytes


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """The content with a few bytes, bits, words or stretches changed, cut, doubled or put elsewhere."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        at = int(rng.integers(len(data))) if data and rng.random() < 0.5 else int(rng.integers(min(len(data), 200) or 1))
        kind = rng.integers(7)
        if not data:
            break
        if kind == 0:
            data[at] = rng.integers(256)
        elif kind == 1:
            data[at] ^= 1 << rng.integers(8)
        elif kind == 2:
            data[at : at + 4] = WORDS[rng.integers(len(WORDS))]
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 20))]
        elif kind == 5:
            data[at:at] = rng.bytes(int(rng.integers(1, 20)))
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 200))]
    return bytes(data)


def tiff(**options) -> bytes:
    buffer = io.BytesIO()
    xyz = np.random.default_rng(0).normal(size=(12, 14, 3)).astype(options.pop("dtype", np.float32))
    tifffile.imwrite(buffer, xyz, **options)
    return buffer.getvalue()


def picture(kind, mode="L", **options) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 14, 3), np.uint8)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def array(values, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, **options)
    return buffer.getvalue()


def tells(read, *, shape=None, dtype=None):
    """Reads; returns what was wrong, or None. Anything but a DataError of one line, or a result of the wrong kind, fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = read()
        except DataError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 700, str(error)
            return str(error)
    assert dtype is None or found.dtype == dtype
    assert shape is None or all(wanted in (None, got) for wanted, got in zip(shape, found.shape, strict=True))
    assert dtype is None or np.isfinite(found).all()
    return None


@contextlib.contextmanager
def little_memory():
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()


READS = {
    "tiff": (read_xyz, [tiff(), tiff(dtype=np.float64), tiff(compression="zlib"), tiff(compression="lzma"),
                                 tiff(bigtiff=True, byteorder=">"), tiff(tile=(16, 16)),
                                 tiff(rowsperstrip=2)], (None, None, 3), None),
    "flags": (pictures.read_flags, [picture("PNG"), picture("PNG", "P"), picture("PNG", "RGBA"), picture("PNG", "1"),
                                    picture("BMP"), picture("TIFF", compression="tiff_adobe_deflate"), picture("TIFF")],
              (None, None), bool),
    "rgb": (pictures.read_rgb, [picture("PNG", "RGB"), picture("PNG", "LA"), picture("JPEG", "RGB"), picture("BMP", "RGB")],
            (None, None, 3), np.uint8),
    "levels": (pictures.read_levels, [picture("PNG", "I;16"), picture("TIFF", "I;16")], (None, None), np.float64),
    "array": (prerendered._array, [array(np.arange(30).reshape(10, 3)), array(np.arange(30, dtype=np.int16))], None, np.int64),
}  # fmt: skip


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", READS)
def test_pictures(kind, rounds, tmp_path):
    read, whole, shape, dtype = READS[kind]
    path = tmp_path / {"tiff": "a.tiff", "array": "a.npy"}.get(kind, "a.png")
    for content in whole:  # as they are, they are read
        path.write_bytes(content)
        assert tells(lambda: read(path), shape=shape, dtype=dtype) is None
    rng, wrong = np.random.default_rng(1), 0
    with little_memory():
        for i in range(rounds):
            path.write_bytes(mutated(whole[i % len(whole)], rng))
            wrong += tells(lambda: read(path), shape=shape, dtype=dtype) is not None
    assert rounds / 4 < wrong < rounds


SIDE = {"_info_depth.yaml": b"normalization:\n  min: 1.2\n  max: 2.5\n", "_metadata.yaml": b"anomalous: 1\nbumps: 1\n",
        "_pose.txt": b"1 0 0 0\n0 0 1 2\n0 -1 0 1e-1\n0 0 0 1\n"}  # fmt: skip


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("ending", SIDE)
def test_side_files_of_eyecandies(ending, rounds, tmp_path):
    from data_pipelines.datasets import eyecandies

    path, rng = tmp_path / f"0{ending}", np.random.default_rng(2)
    key = "normalization" if "info" in ending else "anomalous"
    read = {"_info_depth.yaml": lambda: str(eyecandies._yaml(path).get(key))[:9], "_pose.txt": lambda: eyecandies._pose(path),
            "_metadata.yaml": lambda: eyecandies._number(eyecandies._yaml(path), path, key)}[ending]  # fmt: skip
    path.write_bytes(SIDE[ending])
    assert tells(read) is None
    assert any([path.write_bytes(mutated(SIDE[ending], rng)) and tells(read) for _ in range(rounds)])


def test_meta_lists(tmp_path):
    test_prerendered.write_scan(tmp_path / "tire" / "test" / "good", "9", "loose", 0, False)
    path, rng = tmp_path / "all_meta.json", np.random.default_rng(3)
    whole = json.dumps({"test": {"tire": [{"d2_render_img_path": "tire/test/good/2d_rendering/9/", "anomaly": 1}]}}).encode()
    hostile = [b"[" * 100_000, b'{"test": ' * 50_000, whole.replace(b": 1}", b": 1e999}"), whole.replace(b": 1}", b": -1}"),
               whole.replace(b": 1}", b": " + b"9" * 6000 + b"}"), b"\xff\xfe", b'{"test": {"a": ["b"]}}', b"null",
               whole.replace(b": 1}", b": {}}")]  # fmt: skip
    for content in [*hostile, *(mutated(whole, rng) for _ in range(200))]:
        path.write_bytes(content)
        labels = []
        wrong = tells(lambda labels=labels: labels.extend(s.label for s in open_reader("prerendered", tmp_path).samples("tire")))
        assert set(labels) <= {0, 1} and (wrong or content not in hostile)


LETTERS = "abcdefghijklm"
DEEP = "".join(f"{here}: &{here} [{','.join(['*' + before] * 9)}]\n" for before, here in itertools.pairwise(LETTERS))
MERGED = "".join(f"{here}: &{here} {{<<: [{','.join(['*' + before] * 9)}]}}\n" for before, here in itertools.pairwise(LETTERS))


@pytest.mark.parametrize("text", [
    f"a: &a [x]\n{DEEP}anomalous: *m\n", f"a: &a {{x: 1}}\n{MERGED}", "anomalous: &a [*a]\n", "[" * 400, "a" * 200_000,
    "anomalous: " + "9" * 9_000, "? [1]\n: 2\n", "anomalous: 2001-99-99\n", "anomalous: .inf\n", "anomalous: .nan\n",
    "!!python/object/apply:os.system [id]\n", "\0", "anomalous: 1e400", "- " * 400])  # fmt: skip
def test_yaml_that_grows(text, tmp_path):
    from data_pipelines.datasets import eyecandies

    path = tmp_path / "0_metadata.yaml"
    path.write_text(text)
    with little_memory():
        assert tells(lambda: eyecandies._number(eyecandies._yaml(path), path, "anomalous"))


def png(width, height, data=b"") -> bytes:
    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data or zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def huge_tiff(**changes) -> bytes:
    """A tiff whose tags claim other values."""
    with io.BytesIO(tiff(**changes.pop("options", {}))) as buffer:
        with tifffile.TiffFile(buffer, mode="r+b") as file:
            for name, value in changes.items():
                file.pages[0].tags[name].overwrite(value)
        return buffer.getvalue()


BOMB = zlib.compress(bytes(200 << 20), 9)


CLAIMS = {"wide": png(100_000, 100_000), "widest": png(2**31 - 1, 2**31 - 1), "large": png(9000, 9000),
          "bomb": png(20_000, 5_000, BOMB)}  # fmt: skip


@pytest.mark.parametrize("content", CLAIMS.values(), ids=list(CLAIMS))
def test_pictures_that_claim_much(content, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with little_memory():
        for read in (pictures.read_flags, pictures.read_rgb, lambda path: pictures.read_grey(path, (12, 14))):
            assert tells(lambda read=read: read(path))


def bomb(compression) -> bytes:
    """12 x 14 pixels whose data unpack to 200 MB."""
    content = tiff(compression=compression, rowsperstrip=12, metadata=None)
    import lzma

    data = BOMB if compression == "zlib" else lzma.compress(bytes(200 << 20))
    buffer = io.BytesIO(content + data)
    with tifffile.TiffFile(buffer, mode="r+b") as file:
        file.pages[0].tags["StripOffsets"].overwrite([len(content)])
        file.pages[0].tags["StripByteCounts"].overwrite([len(data)])
    return buffer.getvalue()


TIFFS = {"both": lambda: huge_tiff(ImageLength=2**31 - 1, ImageWidth=2**31 - 1), "long": lambda: huge_tiff(ImageLength=60_000),
         "large": lambda: huge_tiff(ImageLength=8000, ImageWidth=8000), "deflate bomb": lambda: bomb("zlib"),
         "packed": lambda: huge_tiff(ImageLength=8000, options={"compression": "zlib"}),
         "lzma bomb": lambda: bomb("lzma")}


@pytest.mark.parametrize("make", TIFFS.values(), ids=list(TIFFS))
def test_tiffs_that_claim_much(make, tmp_path):
    path = tmp_path / "a.tiff"
    path.write_bytes(make())
    with little_memory():
        assert tells(lambda: read_xyz(path))


@pytest.mark.parametrize("head", [
    "{'descr': '<i8', 'fortran_order': False, 'shape': (100000000000, 3), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", "{'descr': '<i8', 'fortran_order': False, 'shape': (-1, 3), }",
    "{'descr': '<i8', 'shape': ", "[" * 5000, "{'descr': '<i8', 'fortran_order': False, 'shape': (2**63, 3), }"])  # fmt: skip
def test_arrays_that_claim_much(head, tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"\x93NUMPY\x01\0" + len(head).to_bytes(2, "little") + head.encode() + bytes(64))
    assert tells(lambda: prerendered._array(path))
    np.savez(tmp_path / "b.npz", np.arange(3))
    (tmp_path / "b.npz").rename(path)
    assert tells(lambda: prerendered._array(path))


@pytest.mark.parametrize("rounds", [pytest.param(12, id="quick"), pytest.param(400, id="long", marks=pytest.mark.slow)])
def test_whole_scans_of_eyecandies(rounds, tmp_path):
    """Any file of a scan damaged: a scan, or one line."""
    whole = tmp_path / "whole"
    test_eyecandies.write_scan(whole / "Candy" / "test_public" / "data", "00", ("dents",))
    rng = np.random.default_rng(4)
    for i in range(rounds):
        root = shutil.copytree(whole, tmp_path / str(i))
        paths = sorted(path for path in root.rglob("00_*") if "image" not in path.name or "_4" in path.name)
        path = paths[i % len(paths)]
        path.write_bytes(mutated(path.read_bytes(), rng))

        def load(root=root):
            reader = open_reader("eyecandies", root)
            return [reader.load(sample).xyz for sample in reader.samples("Candy")][0]

        tells(load, shape=(512 * 512, 3))
        shutil.rmtree(root)
