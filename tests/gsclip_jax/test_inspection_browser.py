"""The page of inspected parts in a browser, by clicking."""

import csv
import json
import time

import pytest

from gsclip_jax.inspection import page as pages
from gsclip_jax.inspection.page import part_record, write_pages
from tests import firefox
from tests.browser import opened, picture, ready, warm
from tests.parts import GOOD, HOSTILE, part


def names(page) -> list[str]:
    return page.locator("tbody tr:not([hidden]) a").all_inner_texts()


def test_an_engineer_finds_the_dent_and_notes_it(tmp_path):
    for number in range(3):
        part_record(part(f"sound {number}", seed=number), tmp_path)
    part_record(part("dented", dented=True, notes=("3000 points, millimetres",)), tmp_path)
    write_pages(tmp_path, "Parts of today", GOOD, failures=["x.ply: no points"])
    with opened(tmp_path / "index.html") as page:
        assert names(page)[0] == "dented" and page.locator("[data-is=verdict]").inner_text() == "defective"
        assert "3000 points, millimetres" in page.locator("[data-is=read]").inner_text()
        assert "Not inspected: x.ply" in page.locator("header").inner_text()
        dent = picture(page)
        assert warm(dent) > 500, "the dent faces the engineer, in colours of alarm"

        box = page.locator("[data-is=canvas]").bounding_box()
        page.mouse.move(box["x"] + 200, box["y"] + 150)
        page.mouse.down()
        page.mouse.move(box["x"] + 420, box["y"] + 170, steps=4)
        page.mouse.up()
        page.wait_for_timeout(150)
        assert (picture(page) != dent).any(-1).mean() > 0.02, "a drag turns it"
        page.click("[data-is=face]")
        page.wait_for_timeout(150)
        assert abs(warm(picture(page)) - warm(dent)) < 0.02 * warm(dent), "and a button turns it back"

        page.locator("[data-is=slider]").fill("1000")
        page.wait_for_timeout(150)
        assert warm(picture(page)) < 0.5 * warm(dent) and "coloured from" in page.locator("[data-is=above]").inner_text()
        page.click("[data-is=reset]")
        page.locator("[data-is=gone]").check()
        page.wait_for_timeout(150)
        assert (picture(page) != dent).any(-1).mean() > 0.002, "what was taken away is shown"

        page.locator("[data-is=canvas]").click(position={"x": box["width"] / 2, "y": box["height"] / 2})
        assert "score 0.7" in page.locator("[data-is=picked]").inner_text()

        page.click("th:has-text('score') button")
        page.click("th:has-text('score') button")
        assert names(page)[-1] == "dented", "sorted by score, rising"
        page.click("th:has-text('verdict') button")
        assert names(page)[0] == "dented"
        page.click("text=sound 1")
        ready(page)
        assert page.locator("[data-is=verdict]").inner_text() == "sound" and warm(picture(page)) == 0, "a sound part looks sound"
        assert page.locator("[data-is=gone]").is_checked() is False

        page.fill("[data-is=note]", '=1+1, "scratched"')
        page.select_option("[data-is=decision]", "look again")
        assert page.locator("tr[aria-current] .noted").inner_text() == "look again"
        kept = {}
        for kind in ("json", "csv"):
            with page.expect_download() as download:
                page.click(f"[data-is=export-{kind}]")
            kept[kind] = download.value.path().read_text(encoding="utf-8-sig")
        (note,) = json.loads(kept["json"])["notes"]
        assert (note["name"], note["decision"], note["text"]) == ("sound 1", "look again", '=1+1, "scratched"')
        (row,) = csv.DictReader(kept["csv"].splitlines())
        assert row["text"] == """'=1+1, "scratched\"""" and float(row["score"]) == pytest.approx(0.21)
        page.reload()
        ready(page)
        assert page.locator("[data-is=note]").input_value() == '=1+1, "scratched"', "kept by the browser; the part is still open"


@pytest.mark.slow
def test_ranking_keys_small_screens_and_hostile_names(tmp_path):
    for number, name in enumerate(HOSTILE):
        part_record(part(name, seed=number, count=500, judged=False, notes=HOSTILE, dented=number == 2), tmp_path)
    write_pages(tmp_path, HOSTILE[0], about={HOSTILE[1]: HOSTILE[0]}, failures=HOSTILE)
    with opened(tmp_path / "index.html", width=390, height=800) as page:
        assert "A ranking, not a verdict" in page.locator("header").inner_text()
        assert names(page)[0] == HOSTILE[2] and page.locator("[data-is=verdict]").inner_text() == "rank 1 of 6"
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "no sideways scrolling on a telephone"
        before = picture(page)
        assert warm(before) == 0, "no alarm without good parts"
        page.focus("[data-is=canvas]")
        for key in ("ArrowLeft", "ArrowLeft", "ArrowUp", "+"):
            page.keyboard.press(key)
        page.wait_for_timeout(150)
        assert (picture(page) != before).any(-1).mean() > 0.02
        page.focus("tbody tr:first-child a")
        for _ in range(len(HOSTILE)):
            page.keyboard.press("ArrowDown")
            ready(page)
        assert page.locator("[data-is=name]").inner_text() == names(page)[-1]
        page.fill("[data-is=filter]", "script")
        assert names(page) == [HOSTILE[0]]


@pytest.mark.slow
def test_pages_lead_to_each_other_and_notes_are_common(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "PARTS", 2)
    for number in range(5):
        part_record(part(f"part {number}", seed=number, count=500), tmp_path)
    write_pages(tmp_path, "many", GOOD)
    with opened(tmp_path / "index.html") as page:
        assert names(page) == [f"part {number}" for number in (4, 3, 2, 1, 0)], "the table has all parts"
        page.fill("[data-is=note]", "first")
        page.click("text=part 0")
        page.wait_for_url("**/index-3.html*")
        ready(page)
        assert page.locator("[data-is=name]").inner_text() == "part 0"
        assert "1 note, kept" in page.locator("[data-is=kept]").inner_text()


@pytest.mark.slow
def test_two_hundred_thousand_points_turn_smoothly(tmp_path, capsys):
    large = part("large", dented=True, count=1_200_000)
    part_record(large, tmp_path)
    write_pages(tmp_path, "large", GOOD)
    with opened(tmp_path / "index.html") as page:
        assert "200,000 of " in page.locator("[data-is=facts]").inner_text()
        frames, fewest = page.evaluate(
            """() => new Promise((done) => { const began = performance.now(), before = viewer.frames; let half = 0, then = 0;
            const step = (now) => { viewer.turn(0.05, 0);
              if (!half && now - began > 2000) { half = viewer.frames; then = now; }
              if (now - began < 5000) requestAnimationFrame(step);
              else done([1000 * (viewer.frames - half) / (now - then), viewer.fewer]); };
            requestAnimationFrame(step); })"""
        )  # the rate once the number of points has settled
        size = (tmp_path / "index.html").stat().st_size / 2**20
        with capsys.disabled():
            print(f"\n200 000 points drawn by the CPU alone, {min(fewest, 200_000):.0f} of them in motion: {frames:.1f} frames a "
                  f"second; {size:.1f} MB")  # fmt: skip
        page.wait_for_timeout(1500)
        assert frames > 0 and page.evaluate("!viewer.partly"), "at rest all points are drawn"


@pytest.mark.slow
def test_firefox_shows_the_dent(tmp_path):
    part_record(part("dented", dented=True), tmp_path)
    part_record(part("sound"), tmp_path)
    write_pages(tmp_path, "Parts of today", GOOD)
    with firefox.opened(tmp_path / "index.html") as page:
        time.sleep(1)
        assert warm(page.picture("canvas")) > 500 and warm(page.picture("view-heat")) > 500
        page.run("document.querySelector('[data-is=slider]').value = 1000;"
                 "document.querySelector('[data-is=slider]').dispatchEvent(new Event('input'))")  # fmt: skip
        time.sleep(1)
        assert warm(page.picture("canvas")) < 100
        page.run("document.querySelector('tbody tr:last-child a').click()")
        page.wait("document.querySelector('[data-is=verdict]').textContent === 'sound'")
        page.wait("document.querySelector('[data-is=detail][aria-busy=false]')")
        time.sleep(1)
        assert warm(page.picture("canvas")) == 0


@pytest.mark.slow
def test_without_webgl_the_rest_of_the_page_works(tmp_path):
    part_record(part("dented", dented=True), tmp_path)
    write_pages(tmp_path, "Parts of today", GOOD)
    with firefox.opened(tmp_path / "index.html", webgl=False) as page:
        assert "no WebGL 2" in page.run("return document.querySelector('[data-is=without]').innerText")
        assert warm(page.picture("view-heat")) > 500 and page.run("return document.querySelector('[data-is=plot] svg') !== null")
