"""HTTP/1.1 to near processes, kept open: httptools parses, one request at a time runs on a connection.

A general client costs 0.4 ms of CPU per call, several times what the search costs that is asked for.  What this module
does not do: TLS, redirects, proxies, or deciding what may be repeated.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import cast
from urllib.parse import urlsplit

import httptools

from lakehouse.runtime import Runtime

IDLE_S = 30.0
"""Below the 75 s after which a server hangs up, so that we hang up first."""
PORT_DEFAULT = 80
IDLE_MAX = 128
"""Idle connections kept to one address."""
HELD_BYTES_MAX = 4 << 20
"""Bytes of a streamed answer held before its sender is slowed down."""


class NotConnected(Exception):
    """Nobody listens there."""


class Broken(Exception):
    """The connection ended before the answer did; `silent`: before its first byte, on one that was used before."""

    def __init__(self, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.silent = silent


class Connection(asyncio.Protocol):
    """One connection and the answer that is coming in on it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._pieces: deque[bytes] = deque()
        self._held = 0
        self._paused = False
        self._headed = self._ended = False
        self._heard = False
        self._reused = False
        self._asked = False
        """Whether a request was sent whose answer has not ended in a way that lets another follow."""
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.idle_since = 0.0

    # --- what the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(Broken(f"its answer is not HTTP: {error}"))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        silent = self._reused and not self._heard
        self._fail(Broken("it hung up before it had answered", silent=silent))

    # --- what the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._headed = True
        self._wake()

    def on_body(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._held += len(piece)
        if self._held > HELD_BYTES_MAX and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def on_message_complete(self) -> None:
        self._ended = True
        self._asked = not self._parser.should_keep_alive()
        self._wake()

    # --- what a call does

    @property
    def usable(self) -> bool:
        """Whether another request may follow on it."""
        return not self._asked and self._error is None and not self._pieces

    def send(self, head: bytes, body: bytes) -> None:
        """Send a request; the answer before it has been read."""
        assert self._transport is not None
        self._reused = self._headed
        self._asked = True
        if self._reused:
            self._parser = httptools.HttpResponseParser(self)
        self._headed = self._ended = self._heard = False
        self.headers = {}
        self._transport.write(head + body)

    async def headed(self) -> None:
        """Wait for the answer's head.  Raises `Broken`."""
        while not self._headed:
            await self._wait()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes.  Raises `Broken`."""
        while True:
            while self._pieces:
                piece = self._pieces.popleft()
                self._held -= len(piece)
                if self._paused and self._held < HELD_BYTES_MAX // 2:
                    assert self._transport is not None
                    self._paused = False
                    self._transport.resume_reading()
                yield piece
            if self._ended:
                return
            await self._wait()

    async def body(self) -> bytes:
        """The answer's whole body.  Raises `Broken`."""
        return b"".join([piece async for piece in self.pieces()])

    def close(self) -> None:
        """Hang up."""
        self._fail(Broken("it was hung up here"))
        if self._transport is not None:
            self._transport.close()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()


class Connections:
    """Open connections by address (`http://ip:port`)."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._idle: dict[str, list[Connection]] = {}
        self._busy: set[Connection] = set()

    async def take(self, address: str, connect_s: float, *, fresh: bool = False) -> Connection:
        """A connection for one request, to be given back.  Raises `NotConnected`."""
        idle = self._idle.get(address, [])
        oldest = self._runtime.monotonic() - IDLE_S
        while idle and not fresh:
            connection = idle.pop()
            if connection.usable and connection.idle_since > oldest:
                self._busy.add(connection)
                return connection
            connection.close()
        place = urlsplit(address)
        try:
            async with asyncio.timeout(connect_s):
                _, connection = await asyncio.get_running_loop().create_connection(
                    Connection, str(place.hostname), place.port or PORT_DEFAULT
                )
        except (OSError, TimeoutError) as error:
            raise NotConnected(f"nobody answers there. address=`{address}`") from error
        self._busy.add(connection)
        return connection

    def give(self, address: str, connection: Connection) -> None:
        """Take a connection back; one whose answer was not read to its end is closed."""
        self._busy.discard(connection)
        idle = self._idle.setdefault(address, [])
        if not connection.usable or len(idle) >= IDLE_MAX:
            connection.close()
            return
        connection.idle_since = self._runtime.monotonic()
        idle.append(connection)

    async def close(self) -> None:
        """Hang up everywhere."""
        for connection in (*self._busy, *(each for idle in self._idle.values() for each in idle)):
            connection.close()
        self._busy.clear()
        self._idle.clear()
