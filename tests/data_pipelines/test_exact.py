"""The embedded data set is the same to the bit on processors of other features; the functions that this rests on."""

import ast
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.solids import exact, synthetic
from data_pipelines.solids.synthetic import ALL_DEFECTS, SETS, make_coloured, write
from experiments.configs.common import embedded

ROOT = Path(synthetic.__file__).parents[2]
GENERATOR = "exact colour defects fields finish meshing shapes eval_families families pretrain_families synthetic".split()
RECORDED = "19ef00382b7fd4ef66803f9dca2e75e7c3443bf9a59ec412cfdc00c80a2a5739"  # of few_scans
COLOURS = "a088b8b100f20a25b4323f1b03891584c2154bb91a910c326cd330209524f920"  # of their colours


def few_scans() -> tuple[str, str]:
    """SHA-256 over a scan of every category, kinds of defect and difficulties in turn, half with relief, half with grafts; and
    over their colours."""
    seen, dyed = hashlib.sha256(), hashlib.sha256()
    for i, category in enumerate(c for name in ("test", "train", "dev", "pretrain") for c in SETS[name]):
        options = {"difficulty": list(synthetic.DIFFICULTIES)[i % 4], "relief": float(i % 2), "grafts": float(i % 4 > 1)}
        xyz, labels, colours, _ = make_coloured(category, 5, 0, ("good", *ALL_DEFECTS)[i % 7], points=400, **options)
        seen.update(xyz.astype("<f4").tobytes() + labels.tobytes())
        dyed.update(colours.tobytes())
    return seen.hexdigest(), dyed.hexdigest()


def elsewhere(code: str) -> str:
    """What `code` prints in a process whose numpy, OpenBLAS and C library do without this processor's features."""
    core = np._core._multiarray_umath
    features = [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]
    env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(features), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    if platform.machine() in ("x86_64", "AMD64"):
        env |= {"OPENBLAS_CORETYPE": "Prescott", "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F,-AVX512VL,-AVX"}
    # A line of numpy's own first: the features are really off, so its results differ where a processor has any of them.
    check = "import numpy as np; print(np.exp(np.linspace(0, 9, 9999)).tobytes().hex()[-20000:], end='|');"
    done = subprocess.run([sys.executable, "-c", check + code], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    numpys, result = done.stdout.split("|")
    if "X86_V4" in features:
        assert numpys != np.exp(np.linspace(0, 9, 9999)).tobytes().hex()[-20000:]
    return result.strip()


@pytest.mark.slow
def test_same_scans_whatever_the_processor_offers():
    here = few_scans()
    assert elsewhere("from tests.data_pipelines.test_exact import few_scans; print(few_scans())") == str(here)
    assert here[0] == RECORDED, "other scans than before: raise synthetic.FORMAT, make published.json and the figures again"
    assert here[1] == COLOURS, "other colours than before: raise records.store.VERSION, so that no cache keeps the old ones"


def published() -> list[dict]:
    return json.loads(synthetic.PUBLISHED.read_text())


def test_the_published_settings_are_the_defaults():
    made = embedded().data.synthetic
    shown = [kind for kind in ALL_DEFECTS if kind not in made.held_out]
    common = {"format": synthetic.FORMAT, "seed": made.seed, "points": made.scan_points, "difficulty": made.difficulty}
    test, train = published()
    assert test["settings"] == {**common, "defects": list(ALL_DEFECTS), "good": made.good, "defective": made.defective}
    assert train["settings"] == {**common, "defects": shown, "good": made.train_good, "defective": made.train_defective}
    assert (tuple(test["categories"]), tuple(train["categories"])) == (SETS["test"], (embedded().data.train_category,))


def test_manifest_has_the_files_hashes_and_other_scans_are_named(tmp_path, monkeypatch):
    settings = {"categories": ["nut", "bolt"], "seed": 1, "good": 1, "defective": 1, "points": 300}
    assert write(tmp_path / "a", **settings) == ()
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    for row in manifest["samples"]:
        cloud = tmp_path / "a" / row["file"]
        truth = tmp_path / "a" / row["category"] / "gt" / f"{cloud.stem}.txt"
        assert hashlib.sha256(cloud.read_bytes()).hexdigest() == row["sha256"]
        assert truth.exists() == ("truth_sha256" in row) == bool(row["label"])
        assert not truth.exists() or hashlib.sha256(truth.read_bytes()).hexdigest() == row["truth_sha256"]
    prints = synthetic.fingerprints(manifest["samples"])
    monkeypatch.setattr(synthetic, "PUBLISHED", tmp_path / "published.json")
    for categories, other in ((prints, ()), ({**prints, "nut": "0" * 64}, ("nut",))):
        synthetic.PUBLISHED.write_text(json.dumps([{"settings": manifest["settings"], "categories": categories}]))
        assert write(tmp_path / "a", **settings) == other


def whole_default(root: Path) -> list[str]:
    """Writes the embedded default under `root`; the categories that are not as published."""
    other = []
    for i, part in enumerate(published()):
        options = {key: value for key, value in part["settings"].items() if key != "format"}
        other += write(root / str(i), categories=tuple(part["categories"]), **options)
    return other


@pytest.mark.slow
def test_the_whole_default_is_as_published(tmp_path):
    assert whole_default(tmp_path / "here") == []
    code = "from pathlib import Path; from tests.data_pipelines.test_exact import whole_default; "
    code += f"print(whole_default(Path({str(tmp_path)!r})))"
    assert elsewhere(code) == "[]"


def test_the_generator_uses_nothing_that_differs_between_processors():
    """No operation of numpy or scipy whose last bits follow the processor; sparse products by powers of two are exact."""
    banned = set("sin cos tan arcsin arccos arctan arctan2 exp exp2 expm1 log log2 log10 log1p power float_power hypot cbrt "
                 "einsum matmul dot inner vdot tensordot linalg "
                 "sum mean var std average convolve interpolate map_coordinates".split())
    sparse, integer, boolean = {"lift", "spread", "smooth"}, {"active", "_CORNERS"}, {"amount", "curving", "labels", "cut"}
    found = []
    for name in GENERATOR:
        for node in ast.walk(ast.parse((ROOT / "data_pipelines" / "solids" / f"{name}.py").read_text())):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
                allowed = isinstance(node.left, ast.Name) and node.left.id in sparse | integer
            elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
                allowed = name == "exact" and ast.unparse(node.left) == "-1"
            elif isinstance(node, ast.Attribute) and node.attr in banned:
                owner = ast.unparse(node.value)
                counts = node.attr == "sum" and any(word in owner for word in boolean | {"_CORNERS"})
                allowed = owner == "exact" or counts or (owner == "math" and name == "exact" and node.attr == "log")
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("np.argsort", "np.lexsort"):
                allowed = any(k.arg == "kind" and ast.unparse(k.value) == "'stable'" for k in node.keywords)
            else:
                continue
            if not allowed:
                found.append(f"{name}.py:{node.lineno}: {ast.unparse(node)}")
    assert found == []


# ---------------------------------------------------------------- the functions


@pytest.mark.parametrize("name, low, high", [("sin", -1000, 1000), ("cos", -1000, 1000), ("exp", -600, 600)])
def test_functions_of_one_number(name, low, high):
    x = np.concatenate([np.random.default_rng(0).uniform(low, high, 20000), [0, math.pi, -math.pi / 2, 1e-9]])
    expected = np.array([getattr(math, name)(v) for v in x])
    found = getattr(exact, name)(x)
    scale = expected if name == "exp" else 1
    assert np.abs((found - expected) / scale).max() < 1e-15 and found.dtype == np.float64
    single = getattr(exact, name)((x % 10).astype(np.float32))
    assert single.dtype == np.float32 and getattr(exact, name)(0.5) == pytest.approx(getattr(math, name)(0.5), abs=1e-15)


def test_functions_of_two_numbers():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20000))
    angle = np.array([math.atan2(b, a) for a, b in zip(x, y, strict=True)])
    assert np.abs(exact.arctan2(y, x) - angle).max() < 1e-15
    assert [exact.arctan2(*p) for p in ((0.0, 0.0), (0.0, 1.0), (-0.0, -1.0), (-2.0, 0.0))] == [0, 0, math.pi, -math.pi / 2]
    base, exponent = np.abs(x) * 8, np.abs(y) * 4 + 0.1
    powers = np.array([math.pow(a, b) for a, b in zip(base, exponent, strict=True)])
    assert np.abs(exact.power(base, exponent) / powers - 1).max() < 2e-14
    assert exact.power(0.0, 2.5) == 0 and exact.hypot(3.0, -4.0) == 5


def test_sums_and_axes():
    rng = np.random.default_rng(0)
    a, m = rng.normal(size=(50, 3)), rng.normal(size=(3, 4))
    np.testing.assert_allclose(exact.times(a, m), a @ m, atol=1e-14)
    np.testing.assert_allclose(exact.times(a, m[:, 0]), a @ m[:, 0], atol=1e-14)
    np.testing.assert_allclose(exact.norm(a), np.linalg.norm(a, axis=1), atol=1e-14)
    np.testing.assert_allclose(exact.mean(a), a.mean(0), atol=1e-14)
    points = rng.normal(size=(400, 3)) * [1, 3, 2] @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    found, expected = exact.principal_axes(points), np.linalg.svd(points - points.mean(0), full_matrices=False)[2]
    np.testing.assert_allclose(found * np.sign((found * expected).sum(1))[:, None], expected, atol=1e-12)
