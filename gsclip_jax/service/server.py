"""uvicorn with time limits for those who send nothing and read nothing, and an end that lets the work in hand finish."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gsclip_jax.service.jobs import Jobs

HEAD_SECONDS = 10.0  # until the head of a request is there
READ_SECONDS = 60.0  # until the reader of an answer has taken what was sent
CONNECTIONS = 512
SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE = 10  # seconds for answers under way, once the work in hand is done
LATE = b"the head of the request was not there in time"


class Protocol(H11Protocol):
    """HTTP/1.1 that ends connections on which nothing moves."""

    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, self._no_head)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head = _cancelled(self._head)
        elif self._head is None:  # the next request on this connection has begun
            self._head = self.loop.call_later(HEAD_SECONDS, self._no_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head, self._reader = _cancelled(self._head), _cancelled(self._reader)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader = self._reader or self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader = _cancelled(self._reader)

    def _no_head(self) -> None:
        self._head = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            head = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n"
            self.transport.write(head % len(LATE) + LATE)
            self.transport.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """Ends in two steps: on a signal no scan is taken any more, results may still be fetched, and once what is under way has
    ended it stops listening. A second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, jobs: Jobs, say: Callable[[str], None]):
        super().__init__(config)
        self._jobs, self._say = jobs, say
        self._ending: asyncio.Task | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        here = threading.current_thread() is threading.main_thread()  # signals reach no other
        for number in SIGNALS if here else ():
            loop.add_signal_handler(number, self.end)
        try:
            yield
        finally:
            for number in SIGNALS if here else ():
                loop.remove_signal_handler(number)

    def end(self) -> None:
        """Begins to end."""
        if self._ending is not None:
            self.should_exit = self.force_exit = True
            return
        self._say("stopping: no more scans are taken; what is under way is finished")
        self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        await self._jobs.finish()
        self.should_exit = True


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises OSError: the port is taken, or no such address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen there ({error.strerror or error}); name another --host or --port",
                      f"{host}:{port}") from None  # fmt: skip


async def serve(app: Any, jobs: Jobs, sock: socket.socket, say: Callable[[str], None]) -> Server:
    """Serves until it is ended."""
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # "Invalid HTTP request" and faults of the program
    config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="on", access_log=False, log_config=None, server_header=False,
                            limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=GRACE)  # fmt: skip
    server = Server(config, jobs, say)
    app.state.server = server
    await server.serve([sock])
    return server
