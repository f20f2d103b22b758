"""The page of inspected parts: what it holds comes back, however much it is; names are text."""

import base64
import io
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from gsclip_jax.inspection import compact, page
from gsclip_jax.inspection.page import part_record, scale, write_pages
from tests.parts import GOOD, HOSTILE, part


def columns(found: dict) -> dict[str, np.ndarray]:
    """The columns of a packed cloud, in coordinates and scores: what the script of the page does."""
    raw, count = zlib.decompress(base64.b64decode(found["data"])), found["n"]
    made = {}
    for number, name in enumerate(found["columns"]):
        low, high = (np.frombuffer(raw, np.uint8, count, (2 * number + i) * count).astype(np.int64) for i in (0, 1))
        folded = low | high << 8
        made[name] = np.cumsum((folded >> 1) ^ -(folded & 1)) % 65536
    made["xyz"] = np.stack([made[axis] for axis in "xyz"], 1) * found["step"] + found["low"]
    if "scores" in found:
        low, high = found["scores"]
        made["points"] = low + made["score"] / 65535 * (high - low)
    return made


def records(path) -> list[tuple[dict, dict]]:
    script = re.compile(r'<script type="application/json" class="part" data-id="[0-9a-f]*">(.*?)</script>', re.DOTALL)
    return [tuple(json.loads(text)) for text in script.findall(path.read_text(encoding="utf-8"))]


def test_a_cloud_comes_back_within_half_a_step():
    rng = np.random.default_rng(0)
    xyz, points = rng.uniform(-5, 5, (4000, 3)) + 3e6, rng.random(4000).astype(np.float32)
    colours = rng.integers(0, 256, (4000, 3), dtype=np.uint8)
    found = compact.cloud(xyz, points, colours, points > 0.9)
    back = columns(json.loads(json.dumps(found)))
    here, there = np.lexsort(back["xyz"].T), np.lexsort((np.rint((xyz - xyz.min(0)) / found["step"])).T)
    assert np.abs(back["xyz"][here] - xyz[there]).max() <= 0.5001 * found["step"] and found["step"] < 10.01 / 65535
    assert np.abs(back["points"][here] - points[there]).max() < 1e-5
    assert (back["mask"][here] == (points > 0.9)[there]).all() and (back["green"][here] == colours[there, 1]).all()


def test_thinning_keeps_the_small_defect_and_says_so():
    xyz = np.random.default_rng(0).random((5000, 3))
    points = np.full(5000, 0.1, np.float32)
    points[40:60] = 0.9
    found = compact.cloud(xyz, points, limit=500)
    assert found["n"] == 500 and (columns(found)["points"] > 0.8).sum() == 20


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_clouds_of_no_or_few_points(count):
    found = compact.cloud(np.zeros((count, 3)), np.zeros(count, np.float32))
    assert found["n"] == count and found["spacing"] > 0 and len(columns(found)["points"]) == count


def test_views_come_back_with_their_scores():
    heat = np.full((2, 8, 8), np.nan, np.float32)
    heat[1, 2:4, 2:4] = [[0.2, 0.4], [0.6, 0.8]]
    grey = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
    found = compact.views(grey, 255 - grey, heat)
    stack = {name: np.asarray(Image.open(io.BytesIO(base64.b64decode(found[name])))) for name in ("render", "depth", "heat")}
    assert (stack["render"].reshape(2, 8, 8) == grey).all() and (stack["depth"] == 255 - stack["render"]).all()
    low, high = found["scores"]
    back = np.where(stack["heat"] > 0, low + (stack["heat"].astype(float) - 1) / 254 * (high - low), np.nan).reshape(2, 8, 8)
    np.testing.assert_allclose(back, heat, atol=0.002)
    assert found["hottest"] == 1


def test_parts_come_back_the_most_suspicious_first(tmp_path):
    part_record(part("a", notes=("3000 points",)), tmp_path)
    part_record(part("b", dented=True), tmp_path)
    assert [path.name for path in write_pages(tmp_path, "parts", GOOD)] == ["index.html"]
    (first, body), (second, _) = records(tmp_path / "index.html")
    assert [first["name"], second["name"]] == ["b", "a"] and second["notes"] == ["3000 points"]
    assert first["verdict"]["kind"] == "defective" and first["rows"] == 3000 and first["removed"] == 300
    whole = part("b", dented=True)
    shown = np.isfinite(whole.points)
    back = columns(body["cloud"])
    assert len(back["xyz"]) == shown.sum() and columns(body["removed"])["xyz"].shape == (300, 3)
    np.testing.assert_allclose(np.sort(back["points"]), np.sort(whole.points[shown]), atol=1e-5)
    np.testing.assert_allclose(back["xyz"].mean(0), whole.xyz[shown].mean(0), atol=1e-3)


def test_pages_of_a_hundred_and_none_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "PARTS", 2)
    for number in range(5):
        part_record(part(f"part {number}", seed=number, count=200), tmp_path)
    assert [path.name for path in write_pages(tmp_path, "parts", GOOD)] == ["index.html", "index-2.html", "index-3.html"]
    assert [about["name"] for about, _ in records(tmp_path / "index-2.html")] == ["part 2", "part 1"]
    (tmp_path / "index-of-mine.html").touch()
    monkeypatch.setattr(page, "PARTS", 3)
    write_pages(tmp_path, "parts", GOOD)
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["index-2.html", "index-of-mine.html", "index.html"]
    size = (tmp_path / page.KEPT / "part 1.json").stat().st_size
    monkeypatch.setattr(page, "BYTES", int(2.5 * size))
    assert len(write_pages(tmp_path, "parts", GOOD)) == 3, "large parts: fewer a page"


def test_names_are_text(tmp_path):
    for number, name in enumerate(HOSTILE):
        part_record(part(name.replace("/", "∕"), notes=HOSTILE, seed=number, count=100), tmp_path)
    write_pages(tmp_path, HOSTILE[0], GOOD, about={HOSTILE[1]: HOSTILE[0]}, failures=HOSTILE)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in text and "<img src=x" not in text and "‮" not in text
    assert len(records(tmp_path / "index.html")) == len(HOSTILE)


def test_the_scale_is_one_for_all_parts(tmp_path):
    part_record(part("a"), tmp_path)
    part_record(part("b", dented=True), tmp_path)
    kept = list(page._kept(tmp_path))
    with_good = scale(kept, GOOD)
    assert with_good["low"] == GOOD.point_middle and with_good["threshold"] == 0.5 and with_good["high"] == pytest.approx(0.68)
    points = np.concatenate([p.points[np.isfinite(p.points)] for p in (part("a"), part("b", dented=True))])
    low, high = np.quantile(points, [0.5, 0.998])
    pooled = scale(kept, None)
    assert pooled["threshold"] is None and pooled["low"] == pytest.approx(low, abs=2e-3)
    assert pooled["high"] == pytest.approx(high, abs=5e-3)
    even = {"quantiles": list(page.SHARES), "highest": 1.0}
    assert scale([even], None)["low"] == pytest.approx(0.5, abs=0.02) and scale([even], None)["high"] == pytest.approx(0.998)
    assert scale([], None) == {"low": 0.0, "high": 1.0, "threshold": None}


def test_no_parts_and_parts_without_points(tmp_path):
    assert write_pages(tmp_path, "none")[0].exists()
    empty = part("empty", count=10, judged=False)
    empty.points[:] = np.nan
    part_record(empty, tmp_path)
    write_pages(tmp_path, "none")
    assert records(tmp_path / "index.html")[0][0]["shown"] == 0
