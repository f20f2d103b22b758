"""Bodies of requests into files, within bounds of bytes and of seconds: raw, or as a form (multipart)."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from data_pipelines.clouds.loading import LOADERS, ending
from data_pipelines.scan import did_you_mean
from gsclip_jax.runtime.names import decoded, one_line
from gsclip_jax.service.limits import Limits

LONGEST = 200  # signs of a name
FORM = 64 << 10  # bytes of a form beside its file


class Refused(Exception):
    """A request that is not taken on: a status, one line, and headers."""

    def __init__(self, status: int, line: str, headers: dict[str, str] | None = None):
        super().__init__(line)
        self.status, self.line, self.headers = status, line, headers or {}


def shown(name: str) -> str:
    """A file's name from outside as one line of text, without folders; it is shown, and is the name of no file."""
    last = decoded(name).replace("\\", "/").rstrip("/").rpartition("/")[2]
    return one_line(last)[:LONGEST]


def stored(name: str) -> str:
    """The name under which a scan lies here: its ending is all that is taken over. Raises Refused: no name, unknown ending."""
    if not name.strip():
        raise Refused(400, "the scan has no file name; give one with ?name=part.ply, or post a form with a file")
    kind = ending(name)
    if kind not in LOADERS:
        raise Refused(415, f"{name}: unknown scan format {kind!r}{did_you_mean(kind, LOADERS)}; use one of {' '.join(LOADERS)}")
    return f"scan{kind}" + (".gz" if name.lower().endswith(".gz") else "")


def check_length(request: Request, limits: Limits) -> None:
    """Raises Refused for a body that says it is too long, before any of it is read."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.bytes + (FORM if is_form(request) else 0):
        raise _too_long(limits)


def is_form(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def receive(request: Request, name: str | None, limits: Limits, folder: Path) -> tuple[Path, str]:
    """Writes the scan in a request's body into a folder.

    Args:
      name: of a raw body; of a form it stands before the name of its file.

    Returns: the file, and the scan's name as it is shown.

    Raises:
      Refused: 400 no form or no name, 408 too slow, 413 too long, 415 unknown ending.
      ClientDisconnect: the client went away.
    """
    try:
        async with asyncio.timeout(limits.body_seconds):
            if is_form(request):
                return await _form(request, name, limits, folder)
            told = shown(name or "")
            path = folder / stored(told)
            with path.open("wb") as file:
                async for chunk in _limited(request, limits.bytes, limits):
                    file.write(chunk)
            return _filled(path, told)
    except TimeoutError:
        late = f"the body was not there after {limits.body_seconds:g} seconds; send it faster, or a smaller one"
        raise Refused(408, late) from None
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise Refused(507, "no room on the service's disk; send it again later", {"Retry-After": "60"}) from None


async def _form(request: Request, name: str | None, limits: Limits, folder: Path) -> tuple[Path, str]:
    form = None
    try:
        stream = _limited(request, limits.bytes + FORM, limits)
        form = await MultiPartParser(request.headers, stream, max_files=1, max_fields=8, max_part_size=FORM).parse()
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if not files:
            raise Refused(400, "the form has no file; add one, as with: curl -F scan=@part.ply")
        (scan,) = files
        if (scan.size or 0) > limits.bytes:
            raise _too_long(limits)
        told = shown(name or scan.filename or "")
        path = folder / stored(told)
        await asyncio.to_thread(_copied, scan.file, path)
        return _filled(path, told)
    except (MultiPartException, KeyError, ValueError) as error:
        what = one_line(getattr(error, "message", "") or str(error))[:LONGEST]
        raise Refused(400, f"the form is not understood ({what}); send multipart/form-data with one file") from None
    finally:
        if form is not None:
            await form.close()


def _copied(source, path: Path) -> None:
    with path.open("wb") as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)


def _filled(path: Path, told: str) -> tuple[Path, str]:
    if not path.stat().st_size:
        raise Refused(400, f"{told}: the body is empty; send the scan's file")
    return path, told


async def _limited(request: Request, most: int, limits: Limits) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise _too_long(limits)
        yield chunk


def _too_long(limits: Limits) -> Refused:
    return Refused(413, f"the scan has more than {limits.bytes:,} bytes, which is what this service takes; thin it out")
