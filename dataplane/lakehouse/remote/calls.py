"""One call to one process: sent, and answered, or not.

Whether an unanswered call may be repeated is its caller's to know; here it is only said whether it was sent.  What
this module does not do: choose an address, or retry elsewhere.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec

from lakehouse.core.errors import Busy, LakehouseError, Outcome, Unavailable
from lakehouse.remote import wire
from lakehouse.remote.connections import Broken, Connection, Connections, NotConnected
from lakehouse.remote.peer_key import PeerKey
from lakehouse.remote.wire import INSTANCE, MEDIA_TYPE, Failure
from lakehouse.runtime import Runtime

CONNECT_S = 1.0
"""Processes of one deployment are near, or gone."""
PIECE_S = 30.0
"""Most seconds between two pieces of a stream."""
ADDRESSES_MAX = 4_096
UNAUTHORIZED = 401
_INSTANCE = INSTANCE.encode()


class Unsent(Exception):
    """Nothing was sent: nobody listens there."""


class Unanswered(Exception):
    """It was sent, wholly or in part, and no whole answer came."""


class Calls:
    """Connections to other processes; `instance` is who this one is, `peer_key` what they show each other."""

    def __init__(self, runtime: Runtime, instance: UUID, peer_key: PeerKey | None = None) -> None:
        self.instance = instance.hex
        self._connections = Connections(runtime)
        self._peer_key = peer_key or PeerKey(runtime)
        self._instances: dict[str, bytes] = {}

    def is_here(self, address: str) -> bool:
        """Whether an address is known to lead back to this process."""
        return self._instances.get(address) == self.instance.encode()

    async def close(self) -> None:
        """Hang up everywhere."""
        await self._connections.close()

    async def post(
        self, address: str, path: str, body: bytes, timeout_s: float, *, twice: bool = True
    ) -> bytes:
        """The answer's bytes.

        `twice`: doing it twice is doing it once, so it is sent again when a connection that had been idle turns out to
        be closed.  Raises `Unsent`, `Unanswered`, or the error that the other process answered.
        """
        return await self._answered("POST", address, path, body, timeout_s, twice=twice)

    async def get(self, address: str, path: str, timeout_s: float) -> Any:
        """A JSON answer.  Raises as `post` does."""
        return msgspec.json.decode(await self._answered("GET", address, path, b"", timeout_s, twice=True))

    async def _answered(
        self, method: str, address: str, path: str, body: bytes, timeout_s: float, *, twice: bool
    ) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._begun(method, address, path, body, twice=twice)
                content = await self._whole(address, connection)
        except TimeoutError as error:
            raise Unanswered(f"no answer within {timeout_s:.1f} s. address=`{address}`") from error
        except Broken as error:
            raise Unanswered(f"{error}. address=`{address}`") from error
        if connection.status != 200:
            raise refusal(connection.status, content)
        return content

    async def _whole(self, address: str, connection: Connection) -> bytes:
        """The rest of an answer, after which another request may follow.  Raises `Broken`."""
        try:
            return await connection.body()
        finally:
            self._connections.give(address, connection)

    async def _begun(self, method: str, address: str, path: str, body: bytes, *, twice: bool) -> Connection:
        """A connection on which the answer has begun, to a key that is not refused if we have one.

        Raises `Unsent`, `Broken`.
        """
        first, *others = [
            _head(method, address, path, len(body), key).encode() for key in self._peer_key.shown()
        ]
        connection = await self._sent(address, first, body, twice=twice)
        for head in others:
            if connection.status != UNAUTHORIZED:
                break
            await self._whole(address, connection)
            connection = await self._sent(address, head, body, twice=twice)
        return connection

    async def _sent(self, address: str, head: bytes, body: bytes, *, twice: bool) -> Connection:
        """A connection on which the answer has begun.  Raises `Unsent`, `Broken`."""
        try:
            return await self._tried(address, head, body, fresh=False)
        except NotConnected as error:
            raise Unsent(str(error)) from error
        except Broken as error:
            if not (error.silent and twice):
                raise
        try:
            return await self._tried(address, head, body, fresh=True)
        except NotConnected as error:  # the first attempt may have arrived all the same
            raise Broken(str(error)) from error

    async def _tried(self, address: str, head: bytes, body: bytes, *, fresh: bool) -> Connection:
        connection = await self._connections.take(address, CONNECT_S, fresh=fresh)
        try:
            connection.send(head, body)
            await connection.headed()
        except BaseException:
            connection.close()
            self._connections.give(address, connection)
            raise
        instance = connection.headers.get(_INSTANCE)
        if instance is not None and self._instances.get(address) != instance:
            if len(self._instances) >= ADDRESSES_MAX:
                self._instances.clear()
            self._instances[address] = instance
        return connection

    @contextlib.asynccontextmanager
    async def stream(
        self, address: str, path: str, body: bytes, timeout_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The pieces of a streamed answer, which has begun when this is entered.

        Raises as `post` does, and `Unanswered` while it is read when it breaks off.
        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._begun("POST", address, path, body, twice=True)
        except TimeoutError as error:
            raise Unanswered(f"no answer within {timeout_s:.1f} s. address=`{address}`") from error
        except Broken as error:
            raise Unanswered(f"{error}. address=`{address}`") from error
        try:
            if connection.status != 200:
                raise refusal(connection.status, await connection.body())
            yield _pieces(connection, address)
        except Broken as error:
            raise Unanswered(f"{error}. address=`{address}`") from error
        finally:
            self._connections.give(address, connection)


def _head(method: str, address: str, path: str, size_bytes: int, key: str) -> str:
    shown = f"authorization: Bearer {key}\r\n" if key else ""
    return (
        f"{method} {path} HTTP/1.1\r\nhost: {address[7:]}\r\ncontent-length: {size_bytes}\r\n"
        f"content-type: {MEDIA_TYPE}\r\n{shown}\r\n"
    )


async def _pieces(connection: Connection, address: str) -> AsyncIterator[bytes]:
    """The pieces of a stream, up to the empty one that ends it."""
    buffer = bytearray()
    received = connection.pieces()
    while True:
        try:
            async with asyncio.timeout(PIECE_S):
                data = await anext(received)
        except (Broken, TimeoutError, StopAsyncIteration) as error:
            raise Unanswered(f"a stream broke off. address=`{address}`") from error
        buffer += data
        while len(buffer) >= wire.FRAME_BYTES:
            size = int.from_bytes(buffer[: wire.FRAME_BYTES], "big")
            if not size:
                async for _ in received:  # to the end of the answer, so that another request may follow
                    pass
                return
            end = wire.FRAME_BYTES + size
            if len(buffer) < end:
                break
            piece = bytes(buffer[wire.FRAME_BYTES : end])
            del buffer[:end]
            yield piece


def refusal(status: int, content: bytes) -> LakehouseError:
    """The error that an answer is."""
    try:
        return wire.error_of(wire.decode(content, type=Failure))
    except (msgspec.MsgspecError, ValueError):
        pass
    if status in (UNAUTHORIZED, 403):
        return Unavailable(
            "another process of this deployment does not take our peer key: try again if it was changed within the "
            "last 90 s, else give every process the same LAKEHOUSE_PEER_KEY or LAKEHOUSE_PEER_KEY_FILE. "
            f"status=`{status}`",
            outcome=Outcome.NOT_COMMITTED,
        )
    if status == 429:
        return Busy("another process of this deployment has too much to do: try again")
    outcome = Outcome.NOT_COMMITTED if status < 500 else Outcome.UNKNOWN
    return Unavailable(
        f"another process of this deployment gave an answer that is not understood. status=`{status}`",
        outcome=outcome,
    )
