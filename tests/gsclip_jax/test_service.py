"""`gsclip serve` over real HTTP, with a real model: right answers, refusals in one line, bounds, nothing left."""

import asyncio
import contextlib
import dataclasses
import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import numpy as np
import pytest

from data_pipelines.clouds.loading import load_scan
from gsclip_jax.inspection.calibration import Calibration
from gsclip_jax.inspection.detector import Detector
from gsclip_jax.inspection.formats import saved_model
from gsclip_jax.inspection.prepare import Reading, ready_parts
from gsclip_jax.runtime.compiled import keep_compiled
from gsclip_jax.service import command, server
from gsclip_jax.service.app import make_app
from gsclip_jax.service.jobs import Jobs
from gsclip_jax.service.limits import Limits
from gsclip_jax.service.metrics import Metrics
from gsclip_jax.service.scoring import Scorer
from tests.cloud_writers import ply
from tests.parts import light_model

LIMITS = Limits(bytes=400_000, points=5000, seconds=120, memory=256 << 20, queue=2, uploads=8, body_seconds=2, keep=600)
HELD = 3  # scans that the service has in hand while the model is busy, with one process that reads
WAIT = {"wait": 300}


class Service(NamedTuple):
    url: str
    jobs: Jobs
    server: Any
    detector: Detector
    calibration: Calibration
    thread: threading.Thread
    loop: asyncio.AbstractEventLoop


def points(seed: int = 0, count: int = 800) -> np.ndarray:
    xyz = np.random.default_rng(seed).standard_normal((count, 3))
    return xyz * [3, 1, 1] / np.linalg.norm(xyz, axis=1, keepdims=True)


def scan(seed: int = 0) -> bytes:
    return ply([*[(name, points(seed)[:, at]) for at, name in enumerate("xyz")], ("deviation", np.arange(800, dtype="f4"))])


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    keep_compiled()
    detector = Detector(saved_model(str(light_model(tmp_path_factory.mktemp("light") / "model"))), "numpy")
    calibration = Calibration(detector.model.digest, {}, 0.2, (0.1, 0.2, 0.3, 0.4, 0.5), (0.6,) * 5, 0.3)
    jobs = Jobs(lambda folder: Scorer(detector, calibration), Reading(), LIMITS, 1, Metrics())
    errors, ready = [], threading.Event()
    jobs.on_ready = ready.set
    app = make_app(jobs, None, True, errors.append)
    sock = server.listening("127.0.0.1", 0)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve(app, jobs, sock, print)))
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    thread.start()
    try:
        while not ready.wait(0.05):
            assert not errors, errors
            with contextlib.suppress(httpx2.TransportError):
                assert httpx2.get(f"{url}/health").status_code in (503, 200)
        yield Service(url, jobs, app.state.server, detector, calibration, thread, loop)
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(app.state.server.end)
        thread.join(60)
        loop.close()


@contextlib.contextmanager
def busy(service: Service):
    """Nothing is under way, and the model is in use by another."""
    until(lambda: not service.jobs.waiting and not service.jobs.under_way)
    with service.detector._alone:
        yield


def test_what_reads_scans_of_strangers_has_no_model():
    program = "import sys, gsclip_jax.service.reader; print(sorted({'jax', 'tensorflow', 'fastapi'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done


def until(what, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def one_line(answer: httpx2.Response, status: int) -> str:
    told = answer.json()
    assert answer.status_code == status and list(told) == ["detail"] and "\n" not in told["detail"], (answer.status_code, told)
    return told["detail"]


def test_the_score_of_inspect_with_page_and_ply_whatever_the_name(service, tmp_path):
    path = tmp_path / "part.ply"
    path.write_bytes(scan())
    (ready,) = ready_parts(service.detector, path, Reading())
    expected = service.detector.finish(ready.prepared)
    answer = httpx2.post(f"{service.url}/scans", params=WAIT | {"name": "part.ply"}, content=scan(), timeout=300)
    told = answer.json()
    assert answer.status_code == 200 and told["state"] == "done" and told["score"] == pytest.approx(expected.score, abs=1e-6)
    assert told["verdict"] == service.calibration.judge(expected).kind == told["parts"][0]["verdict"]["kind"]
    assert told["parts"][0]["highest_at"] == expected.xyz[int(np.nanargmax(expected.points))].tolist()
    (tmp_path / "scored.ply").write_bytes(httpx2.get(service.url + told["parts"][0]["ply"]).content)
    found = load_scan(tmp_path / "scored.ply")
    np.testing.assert_array_equal(found.xyz, load_scan(path).xyz)
    np.testing.assert_array_equal(found.attributes["deviation"], np.arange(800))
    np.testing.assert_allclose(found.attributes["score"], expected.points, atol=1e-6)
    hostile = "../../etc/<script>alert(1)</script> ü.ply"
    answer = httpx2.post(f"{service.url}/scans", params=WAIT, files={"scan": (hostile, scan())}, timeout=300)
    told = answer.json()
    assert answer.status_code == 200 and told["name"] == "script> ü.ply" and abs(told["score"] - expected.score) < 1e-6
    page = httpx2.get(service.url + told["page"])
    assert page.status_code == 200 and "text/html" in page.headers["content-type"] and "script> ü" not in page.text
    assert page.headers["referrer-policy"] == "no-referrer" and page.headers["cache-control"] == "no-store"
    assert str(service.jobs.folder) not in page.text and str(service.jobs.folder) not in answer.text
    assert httpx2.get(service.url + told["link"]).json() | {"expires_in": 0} == told | {"expires_in": 0}
    assert httpx2.get(service.url + told["link"] + "/parts/2.ply").status_code == 404
    assert httpx2.delete(service.url + told["link"]).status_code == 204
    for link in ("link", "page"):
        assert "no such result" in one_line(httpx2.get(service.url + told[link]), 404)


@pytest.mark.parametrize("name, body, status, said", [
    ("bad.csv", b"x,y,z\n1,2\n", 422, "bad.csv: the line of names"), ("a.ply", b"", 400, "the body is empty"),
    (None, b"x", 400, "no file name"), ("a.exe", b"x", 415, "unknown scan format '.exe'"), ("..", b"x", 415, "unknown scan"),
    ("cut.ply", scan()[:-100], 422, "cut.ply: truncated"), ("a\nb\x1b[2J.ply", b"junk", 422, "a\\nb\\x1b[2J.ply: not a PLY"),
    ("many.xyz", b"1 2 3\n" * 6000, 413, "many.xyz: has 6,000 points"), ("long.npy", b"0" * 400_001, 413, "400,000 bytes"),
    ("said.ply", scan().replace(b"vertex 800", b"vertex 80000000000"), 413, "said.ply: says it has 80,000,000,000 points"),
])  # fmt: skip
def test_what_is_refused_is_one_line(service, name, body, status, said):
    params = WAIT if name is None else WAIT | {"name": name}
    assert said in one_line(httpx2.post(f"{service.url}/scans", params=params, content=body, timeout=300), status)


def test_forms_and_parameters_that_are_none(service):
    url, kind = f"{service.url}/scans", {"content-type": "multipart/form-data"}
    assert "not understood" in one_line(httpx2.post(url, content=b"x", headers=kind), 400)
    kind["content-type"] += "; boundary=b"
    assert "no file" in one_line(httpx2.post(url, content=b"--b--\r\n", headers=kind), 400)
    assert "not understood" in one_line(httpx2.post(url, files=[("a", ("a.ply", b"x")), ("b", ("b.ply", b"x"))]), 400)
    assert "bytes" in one_line(httpx2.post(url, files={"a": ("a.npy", b"0" * 450_000)}), 413)
    chunks = (b"0" * 50_000 for _ in range(40))  # says nothing of its length
    assert "bytes" in one_line(httpx2.post(url, params={"name": "a.npy"}, content=chunks), 413)
    assert one_line(httpx2.post(url, params={"wait": "long"}), 400).startswith("wait: ")
    assert "localhost" in one_line(httpx2.get(f"{service.url}/health", headers={"host": "evil.example"}), 400)
    told = httpx2.get(f"{service.url}/openapi.json").json()
    assert set(told["paths"]["/scans"]["post"]["responses"]) >= {"200", "202", "408", "413", "415", "422", "429", "503"}
    assert httpx2.get(f"{service.url}/docs").status_code == 404


def test_a_scan_that_takes_too_much_memory_or_the_process_down_costs_itself_alone(service):
    post = {"params": WAIT | {"name": "big.xyz.gz"}, "timeout": 300}
    packed = gzip.compress(bytes(380_000_000), 9)
    assert len(packed) < LIMITS.bytes
    assert "not enough memory" in one_line(httpx2.post(f"{service.url}/scans", content=packed, **post), 413)
    (reader,) = service.jobs.readers
    for seconds, number, said in ((0.3, signal.SIGSTOP, "takes more than 0.3 seconds"), (120, signal.SIGKILL, "went down")):
        before = httpx2.post(f"{service.url}/scans", params=WAIT | {"name": "a.ply"}, content=scan(), timeout=300)
        assert before.status_code == 200
        pid = reader.pid
        os.kill(pid, number)
        reader.seconds = seconds
        answer = httpx2.post(f"{service.url}/scans", params=WAIT | {"name": "a.ply"}, content=scan(), timeout=300)
        reader.seconds = LIMITS.seconds
        assert said in one_line(answer, 422) and not Path(f"/proc/{pid}").exists()


def test_slow_senders_are_cut(service, monkeypatch):
    port = int(service.url.rpartition(":")[2])
    for begin, status in ((b"POST /scans?name=a.ply HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", b"408"),
                          (b"POST /scans?name=a.ply HTTP/1.1\r\nHost: loc", b"408")):  # fmt: skip
        monkeypatch.setattr(server, "HEAD_SECONDS", 1.0)
        with socket.create_connection(("127.0.0.1", port), 30) as line:
            line.sendall(begin)
            answer, end = b"", time.monotonic() + 30
            line.settimeout(0.2)
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    line.sendall(b"x")
                try:
                    received = line.recv(4096)
                except TimeoutError:
                    continue
                except ConnectionResetError:  # it closed before the last sign came
                    break
                if not received:
                    break
                answer += received
            assert answer.startswith(b"HTTP/1.1 " + status) and time.monotonic() < end, answer
    until(lambda: service.jobs.uploading == 0)


def in_hand(service: Service) -> list[str]:
    """Links of scans that are under way while the model is busy: one is being scored, one is read, one is held by its reader."""
    links = []
    for _ in range(HELD):
        answer = httpx2.post(f"{service.url}/scans", params={"name": "a.ply"}, content=scan())
        links.append(service.url + answer.headers["location"])
        until(lambda: httpx2.get(links[-1]).json()["state"] == "working")
    return links


def test_a_full_queue_says_when_to_come_again_and_what_nobody_waits_for_is_dropped(service):
    send = {"params": {"name": "b.ply"}, "content": scan()}
    dropped = service.jobs.metrics.scans.labels("failed 410")
    with busy(service):
        links = in_hand(service)
        for number in range(LIMITS.queue):
            answer = httpx2.post(f"{service.url}/scans", **send)
            links.append(service.url + answer.headers["location"])
            assert answer.status_code == 202 and answer.json()["state"] == "waiting" and answer.json()["ahead"] == number
        full = httpx2.post(f"{service.url}/scans", **send)
        assert "too many scans" in one_line(full, 429) and 1 <= int(full.headers["retry-after"]) <= 60
        assert httpx2.get(links[-1] + "/page").status_code == 409 and httpx2.delete(links[-1]).status_code == 204
    until(lambda: all(httpx2.get(link).status_code == 200 for link in links[:-1]))
    assert "given up" in one_line(httpx2.get(links[-1]), 410)
    with busy(service):
        in_hand(service)
        before = dropped._value.get()
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{service.url}/scans", params={"name": "b.ply"} | WAIT, content=scan(), timeout=1)
        until(lambda: dropped._value.get() == before + 1)
    figures = httpx2.get(f"{service.url}/metrics").text
    assert 'gsclip_requests_total{method="POST",status="429"}' in figures and "process_open_fds" in figures


def test_results_go_after_a_time_or_when_there_are_too_many(service):
    def kept() -> list[str]:
        return [path.name for path in service.jobs.folder.iterdir() if path.is_dir()]

    def post() -> str:
        answer = httpx2.post(f"{service.url}/scans", params=WAIT | {"name": "a.ply"}, content=scan(), timeout=300)
        return service.url + answer.json()["link"]

    limits = service.jobs.limits
    try:
        service.jobs.limits = dataclasses.replace(limits, results=1)
        one, two = post(), post()
        until(lambda: httpx2.get(one).status_code == 404)
        assert httpx2.get(two).status_code == 200 and len(kept()) == 1
        service.jobs.limits = dataclasses.replace(limits, keep=0.5)
        three = post()
        until(lambda: httpx2.get(three).status_code == 404)
        until(lambda: len(kept()) == 1)
    finally:
        service.jobs.limits = limits


def test_a_token_lets_in_and_health_needs_none(service):
    async def asked() -> list[int]:
        app = make_app(service.jobs, "s" * 20, False, print)
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://any") as client:
            given = [None, "Bearer " + "s" * 19, "Bearer " + "s" * 20, "Bearer \xe9", "s" * 20]
            headers = [{} if one is None else {"authorization": one.encode("latin-1")} for one in given]
            found = [(await client.get("/metrics", headers=one)).status_code for one in headers]
            return [*found, (await client.post("/scans", params={"name": "a.ply"}, content=b"x")).status_code,
                    (await client.get("/health")).status_code]  # fmt: skip

    assert asyncio.run(asked()) == [401, 401, 200, 401, 401, 401, 200]


def test_ending_finishes_what_is_under_way_and_leaves_nothing(service):
    """The last test of this service."""
    answers: list[httpx2.Response] = []
    pids = [reader.pid for reader in service.jobs.readers]
    done = service.jobs.metrics.scans.labels("done")._value.get()
    folder, send = service.jobs.folder, {"params": WAIT | {"name": "a.ply"}, "content": scan(), "timeout": 300}
    with busy(service):
        in_hand(service)
        asking = [threading.Thread(target=lambda: answers.append(httpx2.post(f"{service.url}/scans", **send))) for _ in range(2)]
        for one in asking:
            one.start()
        until(lambda: service.jobs.waiting == LIMITS.queue)
        service.loop.call_soon_threadsafe(service.server.end)
        until(lambda: httpx2.get(f"{service.url}/health").status_code == 503)
        assert "stopping" in one_line(httpx2.post(f"{service.url}/scans", **send), 503)
    for one in asking:
        one.join(60)
    service.thread.join(300)
    assert not service.thread.is_alive() and [answer.status_code for answer in answers] == [503, 503]
    assert service.jobs.metrics.scans.labels("done")._value.get() == done + HELD
    assert not folder.exists() and not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("model")]
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{service.url}/health")


@pytest.mark.parametrize("options, has", [([], True), (["--calibration", "none"], False)])
def test_verdicts_by_the_calibration_that_lies_in_the_model(service, tmp_path, capsys, monkeypatch, options, has):
    service.calibration.save(tmp_path / "calibration.json")
    model = dataclasses.replace(service.detector.model, calibration=tmp_path / "calibration.json")
    monkeypatch.setattr(command, "opened", lambda args: types.SimpleNamespace(model=model))
    asked = []
    monkeypatch.setattr(command, "serve", lambda args: asked.append(args) or 0)
    assert command.main(options) == 0
    scorer = command._scorer(asked[0], [], tmp_path)
    assert (scorer.calibration is not None) == has == ("calibration of the model" in capsys.readouterr().out)
    assert not has or scorer.calibration.scores == service.calibration.scores


@pytest.mark.parametrize("arguments, said", [
    (["--host", "0.0.0.0"], "--host 0.0.0.0: others can reach this; set a token"), (["--queue", "0"], "--queue 0"),
    (["--good", "a", "--calibration", "b"], "give one of them"), (["--rate", "2"], "--rate 2.0"), (["--tokem", "x"], "--tokem"),
    (["--token-file", "none"], "No such file"), (["--good", "none/*.ply"], "none/*.ply"),
    (["--model", "none"], "no trained model"),
])  # fmt: skip
def test_wrong_options_are_one_line(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    try:
        status = command.main([*arguments, "--port", "0"])
    except SystemExit as stopped:
        status = stopped.code
    error = capsys.readouterr().err
    assert status in (1, 2) and said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_short_token_is_none(capsys, monkeypatch):
    monkeypatch.setenv("GSCLIP_TOKEN", "secret")
    assert command.main(["--port", "0"]) == 1
    error = capsys.readouterr().err
    assert "at least 16" in error and "secret" not in error


def test_a_port_in_use_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert command.main(["--port", str(taken.getsockname()[1])]) == 1
    assert "cannot listen there" in capsys.readouterr().err


def test_what_a_killed_service_left_is_removed_by_the_next(tmp_path, monkeypatch):
    from gsclip_jax.service import folders

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(folders, "YOUNG", 0.0)
    left, other = tmp_path / f"{folders.PREFIX}dead", tmp_path / "another"
    for path in (left, other):
        path.mkdir()
        (path / "scan.ply").touch()
    (tmp_path / f"{folders.PREFIX}link").symlink_to(other)
    living = folders.Folder()
    next_one = folders.Folder()
    assert not left.exists() and living.path.exists() and (other / "scan.ply").exists()
    living.remove(), next_one.remove()
    assert json.dumps(sorted(path.name for path in tmp_path.iterdir())) == json.dumps(["another", f"{folders.PREFIX}link"])
