"""The routes of the service. What is behind them is in `jobs.py`."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import shutil
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query
from fastapi.exceptions import RequestValidationError
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response

from gsclip_jax.runtime.names import one_line
from gsclip_jax.service import answers
from gsclip_jax.service.edge import Edge
from gsclip_jax.service.jobs import Full, Job, Jobs
from gsclip_jax.service.scoring import ply_file, summary
from gsclip_jax.service.uploads import Refused, check_length, receive

WAIT = 600.0  # seconds that a request may wait for its result
HERE = ("localhost", "127.0.0.1", "[::1]")
ABOUT = """Send a scan to `POST /scans`; the answer has links to the result, to the scan with a score a point, and to a
page with a heat map. Whoever has a link may follow it, and nobody can guess one; all of them lead nowhere after a time."""
BODY = {
    "description": "the scan: as it is, with its name as `?name=`, or as a form with one file",
    "required": True,
    "content": {
        "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {"schema": {"type": "object", "required": ["scan"],
                                           "properties": {"scan": {"type": "string", "format": "binary"}}}},
    },
}  # fmt: skip
PROBLEMS = {
    400: "no name, no file, or no form", 401: "no token, or a wrong one", 404: "no such result, or its time is over",
    408: "the body comes too slowly",
    413: "too many bytes or points", 415: "unknown scan format", 422: "the scan cannot be read; the line says why",
    429: "the queue is full; `Retry-After` says when to try again", 503: "not ready, or stopping",
}  # fmt: skip


def make_app(jobs: Jobs, token: str | None, local: bool, failed: Callable[[BaseException], None]) -> FastAPI:
    """The service as an ASGI application.

    Args:
      token: what `Authorization: Bearer` has to say to send scans and to see figures; None for no such thing.
      local: whether requests must have this machine in their Host line: a page of a stranger in a browser here has not.
      failed: is told why the model could not be loaded.
    """
    @contextlib.asynccontextmanager
    async def life(app: FastAPI):
        loading = asyncio.create_task(jobs.start())
        loading.add_done_callback(lambda task: task.cancelled() or not task.exception() or failed(task.exception()))
        yield
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        await jobs.close()

    def known(request: Request) -> None:
        host = request.headers.get("host", "")
        if local and (host if host.endswith("]") else host.rpartition(":")[0] or host) not in HERE:
            raise Refused(400, f"{one_line(host)[:80]}: without a token this service answers to localhost and 127.0.0.1 alone")

    def trusted(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if token is not None and not hmac.compare_digest(given, b"Bearer " + token.encode()):
            raise Refused(401, "a token is needed; send it as: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(title="gsclip serve", description=ABOUT, version="1", docs_url=None, redoc_url=None, lifespan=life,
                  dependencies=[Depends(known)])  # fmt: skip
    app.add_middleware(Edge, metrics=jobs.metrics)
    problems = {status: {"model": answers.Problem, "description": what} for status, what in PROBLEMS.items()}

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return problem(error.status, error.line, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return problem(400, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    def of(name: str) -> Job:
        job = jobs.get(name)
        if job is None:
            raise Refused(404, "no such result, or its time is over")
        return job

    def done(name: str) -> Job:
        job = of(name)
        if job.state == "failed":
            raise Refused(job.status, job.error)
        if job.state != "done":
            raise Refused(409, f"{job.name}: is not inspected yet; ask again", {"Retry-After": "1"})
        return job

    def check_room() -> None:
        if jobs.stopping:
            raise Refused(503, "the service is stopping; send the scan again later", {"Retry-After": "30"})
        if not jobs.ready:
            raise Refused(503, "the model is being loaded; send the scan again in a moment", {"Retry-After": "5"})
        if jobs.full or jobs.uploading >= jobs.limits.uploads:
            raise Refused(429, "too many scans at a time; send this one again later", {"Retry-After": str(jobs.retry_after)})

    @app.post("/scans", summary="Inspect a scan", openapi_extra={"requestBody": BODY}, dependencies=[Depends(trusted)],
              responses={200: {"model": answers.Result}, 202: {"model": answers.Pending}, **problems})  # fmt: skip
    async def inspect(
        request: Request,
        name: Annotated[str | None, Query(description="the scan's file name; its ending says the format")] = None,
        wait: Annotated[float, Query(ge=0, le=WAIT, description="seconds to wait for the result; 202 and a link after them")] = 0,
    ) -> Response:
        check_room()
        check_length(request, jobs.limits)
        folder = jobs.upload()
        try:
            with jobs.upload_counted():
                scan, shown = await receive(request, name, jobs.limits, folder)
            check_room()
            job = jobs.add(folder, scan, shown)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, Full):
                check_room()
            raise
        if wait and await _left(request, job, wait):
            jobs.drop(job)
        return answer(job, jobs)

    @app.get("/results/{id}", summary="What became of a scan",
             responses={200: {"model": answers.Result}, 202: {"model": answers.Pending}, **problems})  # fmt: skip
    async def result(id: str) -> Response:
        return answer(of(id), jobs)

    @app.get("/results/{id}/page", summary="The page of a result", response_class=Response)
    async def page(id: str) -> Response:
        job = done(id)
        async with job.page:
            path = await asyncio.to_thread(jobs.scorer.page, job.folder, job.name)
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": "frame-ancestors 'none'"})

    @app.get("/results/{id}/parts/{number}.ply", summary="The scan with a score a point", response_class=Response)
    async def ply(id: str, number: int) -> Response:
        job = done(id)
        if not 1 <= number <= len(job.parts):
            raise Refused(404, f"the result has parts 1 to {len(job.parts)}")
        stem = job.name.partition(".")[0] or "scan"
        name = f"{stem}_{number}_scored.ply" if len(job.parts) > 1 else f"{stem}_scored.ply"
        return FileResponse(job.folder / ply_file(number), media_type="application/octet-stream", filename=name)

    @app.delete("/results/{id}", status_code=204, summary="Forget a scan and its result", dependencies=[Depends(trusted)])
    async def forget(id: str) -> Response:
        jobs.drop(of(id))
        return Response(status_code=204)

    @app.get("/health", summary="Whether it is alive, and ready for scans",
             responses={200: {"model": answers.Health}, 503: {"model": answers.Health}})  # fmt: skip
    async def health() -> Response:
        ready = jobs.ready and not jobs.stopping
        model = jobs.scorer.detector.model.name if jobs.scorer else None
        told = {"alive": True, "ready": ready, "model": model, "waiting": jobs.waiting}
        return JSONResponse(told, 200 if ready else 503)

    @app.get("/health/live", summary="Whether it is alive")
    async def live() -> Response:
        return JSONResponse({"alive": True})

    @app.get("/metrics", summary="Figures for Prometheus", dependencies=[Depends(trusted)], response_class=Response)
    async def metrics() -> Response:
        return Response(jobs.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return app


def problem(status: int, line: str, headers: dict[str, str] | None = None) -> Response:
    """An error as one line."""
    return JSONResponse({"detail": one_line(line)}, status, headers)


def answer(job: Job, jobs: Jobs) -> Response:
    """What is to be said of a scan now."""
    link = f"/results/{job.id}"
    if job.state == "failed":
        return problem(job.status, job.error, {"Retry-After": "30"} if job.status == 503 else None)
    about: dict[str, Any] = {"id": job.id, "state": job.state, "name": job.name, "link": link}
    if job.state != "done":
        return JSONResponse(about | {"ahead": jobs.ahead(job)}, 202, {"Location": link, "Retry-After": "1"})
    parts = [{**row, "ply": f"{link}/parts/{number}.ply"} for number, row in enumerate(job.parts, 1)]
    about |= {**summary(job.parts), "parts": parts, "page": f"{link}/page", "expires_in": jobs.left(job)}
    return JSONResponse(about, 200, {"Location": link})


async def _left(request: Request, job: Job, seconds: float) -> bool:
    """Waits for the end of a job. Returns whether the one who asked went away before."""
    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    ended, left = asyncio.create_task(job.ended.wait()), asyncio.create_task(disconnected())
    try:
        await asyncio.wait({ended, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return left.done() and not ended.done()
    finally:
        ended.cancel(), left.cancel()
        await asyncio.gather(ended, left, return_exceptions=True)
