"""The processes of a run among themselves: they meet, wait for each other, share decisions, and end together.

One TCP connection from every process to process 0, a JSON object a line. A process that dies closes it, whatever killed it, so
that the others know at once; one whose machine is gone falls silent. JAX's own service notices the first late and the second with
a stack trace and no status of ours, which is why it is reached through `relay`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from data_pipelines.command import STOPPED, plain, stopping

ALIVE_S = 3.0  # between two signs of life
SILENT_S = 40.0  # without any, a process is lost
GRACE_S = 3.0  # that a process has to end by its own error, before it ends by another's
STOP_S = 30.0  # that a process has to stop by itself, once another was stopped


class Peers:
    """The connections of one process of several.

    Args:
      number: of this process, of so many.
      links: process -> its socket; process 0 has all others', they have its alone.
    """

    def __init__(self, number: int, count: int, links: dict[int, socket.socket]):
        self.number, self.count, self._links = number, count, links
        self._changed = threading.Condition()
        self._write = threading.Lock()
        self._arrived: dict[int, dict[int, bool]] = {}  # turn -> processes that wait there, and whether they agree
        self._values: dict[int, Any] = {}  # turn -> process 0's value
        self._turn = 0
        self._heard = dict.fromkeys(links, time.monotonic())
        self.leaving = False
        for peer in links:
            threading.Thread(target=self._read, args=(peer,), daemon=True).start()
        threading.Thread(target=self._tick, daemon=True).start()

    def agree(self, what: str, good: bool, limit: float) -> bool:
        """Returns once every process is here: whether all say `good`. Raises TimeoutError: after `limit` seconds one is not."""
        turn = self._next()
        if self.number:
            self._tell({"at": turn, "good": good})
            return self._value(turn, what, limit)
        everybody = set(self._links)
        self._until(lambda: self._arrived.get(turn, {}).keys() == everybody, limit, lambda: (
            f"process {min(everybody - self._arrived.get(turn, {}).keys())} of {self.count} did not come to {what!r}"
        ))  # fmt: skip
        good = good and all(self._arrived.pop(turn).values())
        self._tell({"go": turn, "what": what, "value": good})
        return good

    def share(self, what: str, make: Callable[[], Any], limit: float) -> Any:
        """What `make` returns in process 0 (as JSON has it), in every process; called there alone. Errors: as `agree`."""
        turn = self._next()
        if self.number == 0:
            value = json.loads(json.dumps(make()))
            self._tell({"go": turn, "what": what, "value": value})
            return value
        return self._value(turn, what, limit)

    def _value(self, turn: int, what: str, limit: float) -> Any:
        self._until(lambda: turn in self._values, limit, lambda: f"process 0 of {self.count} did not come to {what!r}")
        said, value = self._values.pop(turn)
        if said != what:
            raise AssertionError(f"process {self.number} is at {what!r}, process 0 at {said!r}")
        return value

    def _next(self) -> int:
        self._turn += 1
        return self._turn

    def _until(self, ready: Callable[[], bool], limit: float, late: Callable[[], str]) -> None:
        end = time.monotonic() + limit
        with self._changed:
            while not ready():
                if time.monotonic() > end:
                    raise TimeoutError(f"{late()} within {limit:.0f} s; the same command continues where this one was")
                self._changed.wait(0.2)  # so that signals are handled

    # ---- leaving

    def leave(self, status: int, why: str = "") -> None:
        """Says goodbye; nobody takes this process for lost from here on."""
        self.leaving = True
        self._tell({"bye": status, "why": why, "of": self.number})

    def settle(self, seconds: float) -> None:
        """Waits so long for word of another process whose end explains an error here; this process then ends by that."""
        time.sleep(seconds)

    def _tell(self, message: dict, *, but: int = -1) -> None:
        line = json.dumps(message).encode() + b"\n"
        with self._write:
            for peer, link in self._links.items():
                if peer != but:
                    try:
                        link.sendall(line)
                    except OSError:  # gone: its reader says so
                        continue

    # ---- threads

    def _read(self, peer: int) -> None:
        ended = False
        try:
            for line in self._links[peer].makefile("rb"):
                message = json.loads(line)
                self._heard[peer] = time.monotonic()
                if "at" in message:
                    with self._changed:
                        self._arrived.setdefault(message["at"], {})[peer] = message["good"]
                        self._changed.notify_all()
                elif "go" in message:
                    with self._changed:
                        self._values[message["go"]] = message["what"], message["value"]
                        self._changed.notify_all()
                elif "bye" in message:
                    ended = ended or message["of"] == peer
                    self._gone(message)
                elif "lost" in message:
                    self._end(message["lost"])
        except OSError:
            pass
        if not ended:
            self._lost(peer)

    def _tick(self) -> None:
        while True:
            before = time.monotonic()
            time.sleep(ALIVE_S)
            self._tell({"alive": self.number})
            now = time.monotonic()
            for peer in self._heard:
                if now - before > 3 * ALIVE_S:  # this process itself was paused
                    self._heard[peer] = now
                elif now - self._heard[peer] > SILENT_S and self._links[peer].fileno() >= 0 and not self.leaving:
                    self._lost(peer)

    def _lost(self, peer: int) -> None:
        if not self.leaving:
            self._tell({"lost": peer}, but=peer)
            self._end(peer)

    def _end(self, peer: int) -> None:
        if not self.leaving:
            why = "its own log may say why; this one ends too, and the same command for all continues where they were"
            _exit(1, f"error: process {peer} of {self.count} is gone ({why})")

    def _gone(self, message: dict) -> None:
        """Another process ended by itself, and said how."""
        if self.number == 0:
            self._tell(message, but=message["of"])
        if message["bye"] == 0 or self.leaving:
            return
        if message["bye"] == 130:
            if not stopping():
                os.kill(os.getpid(), signal.SIGTERM)
            threading.Thread(target=self._after, args=(STOP_S, 130, STOPPED), daemon=True).start()
        else:
            text = f"error: process {message['of']} of {self.count}: {message['why'] or 'failed, its own log says why'}"
            threading.Thread(target=self._after, args=(GRACE_S, message["bye"], text), daemon=True).start()

    def _after(self, seconds: float, status: int, text: str) -> None:
        time.sleep(seconds)
        if not self.leaving:
            _exit(status, text)


def _exit(status: int, text: str) -> None:
    """Ends the process from any thread, whatever the main one waits for."""
    print(plain(text), file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(status)


def meet(address: str, count: int, number: int, about: dict[str, Any], limit: float) -> tuple[Peers, str]:
    """Connects the processes of a run.

    Args:
      address: 'host:port', which process 0 listens at.
      about: what has to be the same in all of them, by name.

    Returns:
      The connections, and where process 0 will start JAX's service.

    Raises:
      ConnectionError: not all came within `limit` seconds, or they do not fit each other; the same line in every process that
        is there.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + limit
    if number:
        return _join(host.strip("[]"), int(port), address, count, number, about, end)
    return _invite(host.strip("[]"), int(port), address, count, about, end)


def _invite(host: str, port: int, address: str, count: int, about: dict, end: float) -> tuple[Peers, str]:
    try:
        server = socket.create_server(("", port))
    except OSError as error:
        raise ConnectionError(f"process 0 cannot listen at {address} ({error.strerror}); choose another port") from None
    links: dict[int, socket.socket] = {}
    with server:
        while len(links) < count - 1:
            server.settimeout(max(end - time.monotonic(), 0.01))
            try:
                link, _ = server.accept()
                link.settimeout(5.0)
                hello = json.loads(_line(link))
                peer, problem = hello["number"], _problem(hello, links, count, about)
            except TimeoutError:
                if time.monotonic() < end:
                    continue  # somebody who says nothing
                missing = ", ".join(str(n) for n in range(1, count) if n not in links)
                problem = f"process {missing} of {count} did not come to {address}; start it, or set config.mesh.processes"
                return _refuse(links, problem)
            except (ValueError, KeyError, TypeError, OSError):  # a stranger
                continue
            if problem:
                return _refuse({**links, -1: link}, problem)
            link.settimeout(None)
            links[peer] = link
    with socket.create_server(("", 0)) as free:
        service = free.getsockname()[1]
    for link in links.values():
        link.sendall(json.dumps({"service": service}).encode() + b"\n")
    return Peers(0, count, links), f"{host}:{service}"


def _problem(hello: dict, links: dict, count: int, about: dict) -> str:
    peer = hello["number"]
    if hello["count"] != count:
        return f"process {peer} counts {hello['count']} processes, process 0 {count}; set config.mesh.processes alike"
    if peer in links or peer == 0:
        return f"two processes are number {peer}; give each its own config.mesh.process"
    if differing := sorted(k for k in about.keys() | hello["about"].keys() if about.get(k) != hello["about"].get(k)):
        return f"process {peer} has another {', '.join(differing[:4])} than process 0; start all with the same command"
    return ""


def _refuse(links: dict[int, socket.socket], problem: str):
    for link in links.values():
        link.sendall(json.dumps({"error": problem}).encode() + b"\n")
    raise ConnectionError(problem)


def _join(host: str, port: int, address: str, count: int, number: int, about: dict, end: float) -> tuple[Peers, str]:
    hello = json.dumps({"number": number, "count": count, "about": about}).encode() + b"\n"
    while True:
        left, why = end - time.monotonic(), "no answer"
        try:
            link = socket.create_connection((host, port), timeout=max(min(left, 5.0), 0.01))
            link.settimeout(max(left, 0.01))
            link.sendall(hello)
            answer = json.loads(_line(link))
            break
        except socket.gaierror as error:
            why = error.strerror
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "no answer"
        if time.monotonic() + 0.3 > end:
            raise ConnectionError(
                f"process {number} of {count} cannot reach process 0 at {address} ({why}); is it running, and is "
                "config.mesh.coordinator its address?"
            )
        time.sleep(0.3)
    if "error" in answer:
        raise ConnectionError(answer["error"])
    link.settimeout(None)
    return Peers(number, count, {0: link}), f"127.0.0.1:{relay(host, answer['service'])}"


def _line(link: socket.socket) -> bytes:
    """One line, byte by byte: what follows it is another reader's. Raises OSError, ValueError: it ends before."""
    found = b""
    while not found.endswith(b"\n"):
        piece = link.recv(1)
        if not piece or len(found) > 1 << 20:
            raise ValueError("no line")
        found += piece
    return found


def relay(host: str, port: int) -> int:
    """A port of this machine that leads to host:port, and stays open when that one closes.

    JAX's client aborts the process, with a stack trace, at the moment in which the service of process 0 closes the connection; a
    connection that stays open but silent it gives up later than `Peers` does.
    """
    server = socket.create_server(("127.0.0.1", 0))
    kept = [server]

    def serve() -> None:
        while True:
            near, _ = server.accept()
            try:
                far = _connected(host, port)
            except OSError:
                near.close()
                continue
            kept.extend((near, far))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(source, sink), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


def _connected(host: str, port: int) -> socket.socket:
    end = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((host, port))
        except OSError:  # process 0 is about to start it
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        return
