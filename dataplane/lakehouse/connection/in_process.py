"""A server without a socket: it runs on a thread of its own, with its own event loop, and is handed requests.

To the application a request looks as it does over the wire, hanging up included; to the HTTP library it is one more
transport.  What this module does not do: know what is asked.
"""

import asyncio
import atexit
import logging
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx
import uvloop

from lakehouse.core import errors
from lakehouse.embedded.controller import Embedded
from lakehouse.server.app import App, create_app
from lakehouse.server.http import Scope
from lakehouse.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")
Message = dict[str, Any]

CHUNKS_HELD_MAX = 8
"""Of a body between the two threads, each way: enough that neither waits at every chunk."""


class InProcess:
    """A server on a thread of its own; it begins to start at once, and `started` says how that went."""

    def __init__(self, settings: Settings, *, declared: bool) -> None:
        """`declared`: look after declared resources too."""
        self.started: Future[None] = Future()
        self.ended: Future[None] = Future()
        self._app: App = create_app(settings, controller=Embedded if declared else None)
        self._where = settings.data
        self._pid = os.getpid()
        self._closing = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="lakehouse", daemon=True)
        self._thread.start()
        _running.add(self)

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run `work` on the server's loop.  Raises `Invalid` after a fork, or when it is closed."""
        try:
            self._check()
            assert self._loop is not None, "started"
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException:
            work.close()
            raise

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise errors.Invalid(
                "this connection belongs to the process that made it: after a fork, connect to a server's URL "
                f"instead. process=`{self._pid}`"
            )
        if self._closing.locked():
            raise errors.Invalid(f"this connection is closed. data=`{self._where}`")

    def soon(self, act: Callable[[], None]) -> None:
        """Run `act` on the server's loop, some time; never when that has ended."""
        if os.getpid() == self._pid and self._loop is not None and not self.ended.done():
            self._loop.call_soon_threadsafe(act)

    def close(self) -> "Future[None]":
        """Begin to end; the future is done when writes that were taken are finished and the lock is free."""
        if os.getpid() != self._pid:
            ended: Future[None] = Future()
            ended.set_result(None)
            return ended
        if self._closing.acquire(blocking=False):
            self.soon(self._stop.set)
        return self.ended

    def _live(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except Exception as error:  # noqa: BLE001 - handed to whoever waits, if anybody does
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)
        finally:
            _running.discard(self)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            await self._app.start()
        except BaseException as error:  # noqa: BLE001 - raised by `started`, in the caller's thread
            self._closing.acquire(blocking=False)
            try:
                await self._app.close()
            finally:
                self.started.set_exception(error)
            return
        self.started.set_result(None)
        await self._stop.wait()
        await self._app.close()

    # --- requests

    def exchange(self, request: httpx.Request, body: bytes | None) -> "Exchange":
        """The request on its way; `body` None when it is fed piece by piece."""
        return Exchange(self._app, _scope(request), body)


_running: "weakref.WeakSet[InProcess]" = weakref.WeakSet()


def _close_all() -> None:
    """At the end of the program: end workers, remove scratch files; nothing acknowledged depends on it."""
    for server in tuple(_running):
        try:
            server.close().result()
        except Exception:
            logger.exception("the server in this process did not end well")


# Python ends its thread pools before it runs what `atexit` holds, and ending a server needs them.
getattr(threading, "_register_atexit", atexit.register)(_close_all)


def _scope(request: httpx.Request) -> Scope:
    raw_path, _, query = request.url.raw_path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.url.path,
        "raw_path": raw_path,
        "query_string": query,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": None,
        "server": None,
    }


# --- one request --------------------------------------------------------------------------------------------


class Exchange:
    """One request and its answer; after the constructor everything happens on the server's loop."""

    def __init__(self, app: App, scope: Scope, body: bytes | None) -> None:
        self._app = app
        self._scope = scope
        self._in: asyncio.Queue[tuple[bytes, bool]] = asyncio.Queue(CHUNKS_HELD_MAX)
        self._out: asyncio.Queue[tuple[bytes, bool] | None] = asyncio.Queue(CHUNKS_HELD_MAX)
        self._gone = asyncio.Event()
        self._told_all = False
        self._task: asyncio.Task[None] | None = None
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        if body is not None:
            self._in.put_nowait((body, False))

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="request")
        return self._task

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception:
            if not self._gone.is_set():  # else whoever asked has hung up, and this says so
                logger.exception("a request was cut short")
        if not self._gone.is_set():
            await self._out.put(None)

    async def _receive(self) -> Message:
        if not self._told_all and not self._gone.is_set():
            chunk, more = await self._in.get()
            self._told_all = not more
            if not self._gone.is_set():
                return {"type": "http.request", "body": chunk, "more_body": more}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
        else:
            await self._out.put((message.get("body", b""), message.get("more_body", False)))

    async def feed(self, chunk: bytes, more: bool) -> bool:
        """Hand over a piece of the body; False when nobody wants more of it."""
        task = self._begin()
        put = asyncio.ensure_future(self._in.put((chunk, more)))
        await asyncio.wait([task, put], return_when=asyncio.FIRST_COMPLETED)
        if put.done():
            return True
        put.cancel()
        return False

    async def next(self, patience_s: float | None) -> tuple[bytes, bool]:
        """The next piece of the answer, and whether there is more; with the first, `status` and `headers` are known.

        Raises httpx's errors, as a connection would.
        """
        self._begin()
        try:
            async with asyncio.timeout(patience_s):
                piece = await self._out.get()
        except TimeoutError as error:
            raise httpx.ReadTimeout("no answer in time") from error
        if piece is None:
            raise httpx.RemoteProtocolError("the answer ended in the middle")
        return piece

    def abandon(self) -> None:
        """As when a client hangs up: what was taken goes on to its end, and whoever listens for it is told."""
        self._gone.set()
        while not self._out.empty():
            self._out.get_nowait()
        if self._in.empty():
            self._in.put_nowait((b"", False))


def _patience(request: httpx.Request) -> float | None:
    timeout: float | None = request.extensions.get("timeout", {}).get("read")
    return timeout


class BlockingTransport(httpx.BaseTransport):
    """Hands requests from any thread to the server in this process."""

    def __init__(self, server: InProcess) -> None:
        self._server = server

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, its body still to come where it is long."""
        whole = b"".join(request.stream) if isinstance(request.stream, httpx.ByteStream) else None
        exchange = self._server.exchange(request, whole)
        try:
            if whole is None:
                self._feed(exchange, request.stream)
            chunk, more = self._server.submit(exchange.next(_patience(request))).result()
        except BaseException:
            self._server.soon(exchange.abandon)
            raise
        body = (
            BlockingBody(self._server, exchange, _patience(request), chunk)
            if more
            else httpx.ByteStream(chunk)
        )
        return httpx.Response(exchange.status, headers=exchange.headers, stream=body)

    def _feed(self, exchange: Exchange, stream: Any) -> None:
        for chunk in stream:
            if not self._server.submit(exchange.feed(chunk, True)).result():
                return
        self._server.submit(exchange.feed(b"", False)).result()

    def close(self) -> None:
        self._server.close().result()


class BlockingBody(httpx.SyncByteStream):
    """The rest of an answer, as it is made."""

    def __init__(self, server: InProcess, exchange: Exchange, patience_s: float | None, first: bytes) -> None:
        self._server = server
        self._exchange = exchange
        self._patience_s = patience_s
        self._first = first
        self._whole = False

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        while not self._whole:
            chunk, more = self._server.submit(self._exchange.next(self._patience_s)).result()
            self._whole = not more
            yield chunk

    def close(self) -> None:
        if not self._whole:
            self._server.soon(self._exchange.abandon)


class AwaitingTransport(httpx.AsyncBaseTransport):
    """Hands requests from any event loop to the server in this process."""

    def __init__(self, server: InProcess) -> None:
        self._server = server

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, its body still to come where it is long."""
        whole = b"".join(request.stream) if isinstance(request.stream, httpx.ByteStream) else None
        exchange = self._server.exchange(request, whole)
        try:
            if whole is None:
                await self._feed(exchange, request.stream)
            chunk, more = await self._on_server(exchange.next(_patience(request)))
        except BaseException:
            self._server.soon(exchange.abandon)
            raise
        body = (
            AwaitingBody(self._server, exchange, _patience(request), chunk)
            if more
            else httpx.ByteStream(chunk)
        )
        return httpx.Response(exchange.status, headers=exchange.headers, stream=body)

    async def _feed(self, exchange: Exchange, stream: Any) -> None:
        async for chunk in stream:
            if not await self._on_server(exchange.feed(chunk, True)):
                return
        await self._on_server(exchange.feed(b"", False))

    async def _on_server(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._server.submit(work))

    async def aclose(self) -> None:
        await asyncio.wrap_future(self._server.close())


class AwaitingBody(httpx.AsyncByteStream):
    """The rest of an answer, as it is made."""

    def __init__(self, server: InProcess, exchange: Exchange, patience_s: float | None, first: bytes) -> None:
        self._server = server
        self._exchange = exchange
        self._patience_s = patience_s
        self._first = first
        self._whole = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        while not self._whole:
            piece = self._server.submit(self._exchange.next(self._patience_s))
            chunk, more = await asyncio.wrap_future(piece)
            self._whole = not more
            yield chunk

    async def aclose(self) -> None:
        if not self._whole:
            self._server.soon(self._exchange.abandon)
