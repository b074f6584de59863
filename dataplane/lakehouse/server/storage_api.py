"""The storage routes: objects by key, streamed both ways.

A key's segments come percent-escaped.  A slash inside a segment is not a separator: it is kept as `%2F` in
the stored key, which is also what a listing shows and what, escaped again, leads back to the object. What
this module does not do: conditional writes; those belong to the engine alone.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from lakehouse.core.errors import Invalid, Outcome, StorageFull, Unavailable
from lakehouse.core.names import RESERVED_PREFIXES, checked_key
from lakehouse.runtime import Runtime
from lakehouse.server import auth
from lakehouse.server.http import BINARY, AnyResponse, Request, Response, StreamedResponse, json_response
from lakehouse.server.routes import decoded
from lakehouse.settings import Right
from lakehouse.store.base import ObjectStore

MEMORY_BYTES_MAX = 8 << 20
"""A larger or unannounced body goes through a file."""
WRITE_BYTES = 1 << 20


class StorageApi:
    """Handlers named as the routes are."""

    def __init__(
        self, store: ObjectStore, runtime: Runtime, body_bytes_max: int, scratch: Path | None
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._body_bytes_max = body_bytes_max
        self._scratch = scratch

    async def put(self, request: Request) -> Response:
        """Write or overwrite an object."""
        key = _writable_key(request)
        announced = request.check_body(self._body_bytes_max)
        if announced is not None and announced <= MEMORY_BYTES_MAX:
            data = await request.body(announced)
            await self._store.put(key, data)
            return json_response({"key": key, "size": len(data)})
        return json_response({"key": key, "size": await self._put_through_file(key, request)})

    async def get(self, request: Request) -> AnyResponse:
        """An object's bytes; a small one with its length, a large one in chunks."""
        chunks = self._store.stream(stored_key(request.params["key"]))
        first = await anext(chunks, b"")
        second = await anext(chunks, b"")
        if not second:
            return Response(200, first, BINARY)
        return StreamedResponse(200, _joined(first, second, chunks), [(b"content-type", BINARY)])

    async def delete(self, request: Request) -> Response:
        """Remove an object; the same answer when it is missing."""
        await self._store.delete(_writable_key(request))
        return Response(204)

    async def list(self, request: Request) -> Response:
        """Objects whose key starts with a prefix."""
        prefix = request.query().get("prefix", "")
        _check_prefix(prefix)
        objects = [{"Key": info.key, "Size": info.size} for info in await self._store.list(prefix)]
        return json_response({"prefix": prefix, "objects": objects})

    async def _put_through_file(self, key: str, request: Request) -> int:
        run = self._runtime.run_io
        try:
            fd, name = await run(tempfile.mkstemp, ".upload", "lakehouse-", self._scratch)
            path = Path(name)
            try:
                size = await _spool(request.stream(self._body_bytes_max), fd, self._runtime)
                await self._store.upload(key, path)
            finally:
                os.close(fd)
                with contextlib.suppress(FileNotFoundError):
                    await run(path.unlink)
        except OSError as error:
            raise spool_failed(error) from error
        return size


async def _spool(chunks: AsyncIterator[bytes], fd: int, runtime: Runtime) -> int:
    """Write `chunks` to `fd` in pieces of about a mebibyte."""
    size, waiting = 0, bytearray()
    async for chunk in chunks:
        waiting += chunk
        size += len(chunk)
        if len(waiting) >= WRITE_BYTES:
            await runtime.run_io(_write_all, fd, bytes(waiting))
            waiting.clear()
    await runtime.run_io(_write_all, fd, bytes(waiting))
    return size


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def spool_failed(error: OSError) -> Unavailable:
    """The error for a body that the disk does not take."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("no room for the body on its way to the store", outcome=Outcome.NOT_COMMITTED)
    reason = error.strerror or type(error).__name__
    return Unavailable(
        f"the body cannot be kept on its way to the store. error=`{reason}`", outcome=Outcome.NOT_COMMITTED
    )


async def _joined(first: bytes, second: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    yield second
    async for chunk in rest:
        yield chunk


def stored_key(raw: str) -> str:
    """The store's key for an escaped path.  Raises `Invalid`."""
    return checked_key("/".join(decoded(segment).replace("/", "%2F") for segment in raw.split("/")))


def _writable_key(request: Request) -> str:
    key = stored_key(request.params["key"])
    if key.startswith(RESERVED_PREFIXES):
        auth.require(request.caller.right, Right.ADMIN)
    return key


def _check_prefix(prefix: str) -> None:
    segments = prefix.split("/")
    if "\x00" in prefix or any(segment in ("", ".", "..") for segment in segments[:-1]):
        raise Invalid(
            f"a prefix has no empty, `.` or `..` segment and does not start with `/`. prefix=`{prefix}`"
        )
