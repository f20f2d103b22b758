"""Firefox without a window, driven over its own remote protocol (Marionette), for pages of this project."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NAMES = ("firefox", "firefox-esr")


class Page:
    """An open page: `run` JavaScript in it, look at an element."""

    def __init__(self, port: int):
        self._file = self._connect(port).makefile("rwb")
        self._number = 0
        self._read()  # the greeting

    @staticmethod
    def _connect(port: int) -> socket.socket:
        for _ in range(300):
            with contextlib.suppress(OSError):
                return socket.create_connection(("127.0.0.1", port), timeout=60)
            time.sleep(0.1)
        raise RuntimeError("Firefox did not start")

    def _read(self):
        length = b""
        while not length.endswith(b":"):
            length += self._file.read(1)
        return json.loads(self._file.read(int(length[:-1])))

    def send(self, command: str, **values):
        self._number += 1
        text = json.dumps([0, self._number, f"WebDriver:{command}", values]).encode()
        self._file.write(f"{len(text)}:".encode() + text)
        self._file.flush()
        _, _, error, result = self._read()
        if error:
            raise RuntimeError(error["message"])
        return result["value"] if isinstance(result, dict) and "value" in result else result

    def run(self, script: str):
        return self.send("ExecuteScript", script=script, args=[])

    def wait(self, condition: str) -> None:
        for _ in range(300):
            if self.run(f"return Boolean({condition})"):
                return
            time.sleep(0.1)
        raise AssertionError(f"not within 30 s: {condition}")

    def picture(self, name: str) -> np.ndarray:
        found = self.send("FindElement", using="css selector", value=f"[data-is={name}]")
        shot = self.send("TakeScreenshot", id=next(iter(found.values())), full=False)
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"))


@contextlib.contextmanager
def screen() -> Iterator[dict[str, str]]:
    """An X server without a screen, as Firefox has WebGL in a window alone: the variables that lead to it."""
    if not shutil.which("Xvfb"):
        pytest.skip("Xvfb is not installed here")
    read, write = os.pipe()
    server = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", "1400x1100x24"], pass_fds=[write],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    os.close(write)
    try:
        with os.fdopen(read) as told:
            yield {"DISPLAY": f":{told.readline().strip()}", "LIBGL_ALWAYS_SOFTWARE": "1"}
    finally:
        server.terminate()
        server.wait(20)


@contextlib.contextmanager
def opened(path: Path, webgl: bool = True) -> Iterator[Page]:
    """Firefox with the file open, from file://; at the end the page may have caused no error."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if not program:
        pytest.skip(f"none of {', '.join(NAMES)} is installed here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {"marionette.port": port, "browser.dom.window.dump.enabled": True, "devtools.console.stdout.content": True,
                "webgl.force-enabled": webgl, "webgl.disabled": not webgl}  # fmt: skip
    prefs = "".join(f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in settings.items())
    with screen() as display, tempfile.TemporaryDirectory() as profile, tempfile.TemporaryFile() as said:
        (Path(profile) / "user.js").write_text(prefs)
        command = [program, "--marionette", "--profile", profile, "--width", "1300", "--height", "1000"]
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, "HOME": profile, **display})
        try:
            page = Page(port)
            page.send("NewSession")
            page.send("Navigate", url=path.as_uri())
            page.wait("document.querySelector('[data-is=detail][aria-busy=false]')")
            yield page
        finally:
            process.terminate()
            process.wait(20)
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()
        wrong = [line for line in lines if path.name in line and ("rror" in line or "blocked" in line)]
        assert not wrong, wrong
