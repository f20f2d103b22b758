"""What every answer has in common: headers, counts, and a decent end for bodies that nobody wants to read."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gsclip_jax.service.metrics import Metrics

LINGER = 2.0  # seconds in which a body that is not wanted is read and dropped: closing at once may take the answer along
METHODS = ("GET", "HEAD", "POST", "DELETE")
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


class Edge:
    """ASGI middleware around the whole service."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        names = {name for name, value in scope["headers"] if value != b"0"}
        whole = not {b"content-length", b"transfer-encoding"} & names

        async def receiving() -> Message:
            nonlocal whole
            message = await receive()
            whole = whole or message["type"] == "http.disconnect" or not message.get("more_body")
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if not whole:
                    headers["Connection"] = "close"
                method = scope["method"] if scope["method"] in METHODS else "other"
                self._metrics.requests.labels(method, str(message["status"])).inc()
            elif not message.get("more_body") and not whole:
                await send({**message, "more_body": True})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER):
                        while not whole:
                            await receiving()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, receiving, sending)
