"""Chromium without a window, for pages of this project; tests that need it are skipped, saying so, where it is missing."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DRAWN_BY_CPU = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@contextlib.contextmanager
def opened(path: Path, width: int = 1300, height: int = 1000, said: list[str] | None = None) -> Iterator:
    """A Playwright page that shows the file, from file://, its first object open. At the end nothing may have been said to the
    console and nothing fetched; `said` is for tests that expect it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here: pip install playwright")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        pytest.skip(f"none of {', '.join(NAMES)} is installed here")
    said = [] if said is None else said
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(DRAWN_BY_CPU))
        try:
            page = browser.new_page(viewport={"width": width, "height": height}, accept_downloads=True)
            # "performance" lines come from tests that read the canvas drawn by the CPU.
            page.on("console", lambda message: said.append(message.text) if "GPU stall" not in message.text else None)
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda r: said.append(r.url) if r.url.split(":")[0] not in ("file", "data", "blob") else None)
            page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.accept()))
            page.goto(path.as_uri())
            ready(page)
            yield page
            assert not said
        finally:
            browser.close()


def ready(page) -> None:
    """Waits until the opened object is drawn."""
    page.wait_for_selector("[data-is=detail][aria-busy=false]")
    page.wait_for_timeout(150)


def picture(page, name: str = "canvas") -> np.ndarray:
    """What an element of the page shows, uint8 [H,W,3]."""
    shot = page.locator(f"[data-is={name}]").screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def warm(pixels: np.ndarray) -> int:
    """How many pixels are yellow to red: the colours from the threshold on."""
    red, green, blue = (pixels[..., i].astype(int) for i in range(3))
    return int(((red > 100) & (red - blue > 60) & (red > green + 10)).sum())
