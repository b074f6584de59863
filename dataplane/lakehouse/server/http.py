"""Requests and responses over raw ASGI: what a handler needs, and nothing a search has to pay for.

Bodies are counted while they stream in and never buffered past their limit; what all requests hold at once is
bounded too.  What this module does not do: routing, rights, or knowing what a body means.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
import orjson

from lakehouse.core.errors import Busy, Invalid, Outcome, TooLarge, Unavailable
from lakehouse.runtime import Runtime
from lakehouse.server.auth import ANYBODY

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

JSON = b"application/json"
PROBLEM = b"application/problem+json"
BINARY = b"application/octet-stream"
ARROW = b"application/vnd.apache.arrow.stream"
ARROW_FILE = b"application/vnd.apache.arrow.file"

IDEMPOTENCY_KEY_MAX = 255
_VISIBLE = re.compile(rb"[\x21-\x7e]+")


class ClientGoneError(Exception):
    """The client hung up before its body was whole; there is nobody to answer."""


class UnsupportedMediaError(Exception):
    """The body is in a form this route does not read."""


class BodyBudget:
    """Bytes of bodies that all requests together hold in memory."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self.held = 0

    def take(self, size: int) -> None:
        """Raises `Busy` when the budget is spent."""
        if self.held + size > self._bytes_max:
            raise Busy(f"too many request bodies at once: try again. bytes_in_flight=`{self.held}`")
        self.held += size

    def give(self, size: int) -> None:
        self.held -= size


class Request:
    """One request as its handler sees it."""

    __slots__ = (
        "_budget",
        "_held",
        "_receive",
        "_whole",
        "caller",
        "headers",
        "params",
        "request_id",
        "scope",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        headers: dict[bytes, bytes],
        request_id: str,
        budget: BodyBudget,
    ) -> None:
        self.scope = scope
        self.headers = headers
        self.request_id = request_id
        self.params: dict[str, str] = {}
        self.caller = ANYBODY
        self._receive = receive
        self._budget = budget
        self._held = 0
        self._whole: bytes | None = None

    @property
    def media_type(self) -> bytes:
        """The body's media type without parameters, in lower case; empty when the client said nothing."""
        return self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()

    def query(self) -> dict[str, str]:
        """Query parameters; of a repeated one the last.  Raises `Invalid`."""
        raw: bytes = self.scope.get("query_string", b"")
        if not raw:
            return {}
        try:
            return dict(parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict"))
        except ValueError as error:
            raise Invalid("the query string is not percent-encoded UTF-8") from error

    def flag(self, name: str) -> bool:
        """A query parameter that is `true` or `false`; its name alone means `true`.  Raises `Invalid`."""
        value = self.query().get(name)
        if value is None or value == "false":
            return False
        if value in ("", "true"):
            return True
        raise Invalid(f"{name} is `true` or `false`. {name}=`{value}`")

    def check_body(self, bytes_max: int) -> int | None:
        """The announced length.  Raises `TooLarge`, or `UnsupportedMediaError` for a compressed body."""
        encoding = self.headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b""):
            raise UnsupportedMediaError(
                f"send the body without content-encoding. content-encoding=`{encoding.decode('latin-1')}`"
            )
        announced = self.headers.get(b"content-length")
        if announced is None or not announced.isdigit():
            return None
        if int(announced) > bytes_max:
            raise TooLarge(f"the body is over {bytes_max} bytes. bytes=`{int(announced)}`")
        return int(announced)

    async def body(self, bytes_max: int) -> bytes:
        """The whole body, in memory, each time it is asked for.  Raises `TooLarge` as soon as it is over the limit."""
        if self._whole is None:
            self._whole = await self._read_whole(bytes_max)
        return self._whole

    async def _read_whole(self, bytes_max: int) -> bytes:
        self.check_body(bytes_max)
        first, more = await self._next(0, bytes_max)
        if not more:
            return first
        whole = bytearray(first)
        while more:
            chunk, more = await self._next(len(whole), bytes_max)
            whole += chunk
        return bytes(whole)

    async def _next(self, before: int, bytes_max: int) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        if before + len(chunk) > bytes_max:
            raise TooLarge(f"the body is over {bytes_max} bytes")
        self._budget.take(len(chunk))
        self._held += len(chunk)
        return chunk, message.get("more_body", False)

    async def stream(self, bytes_max: int) -> AsyncIterator[bytes]:
        """The body as it arrives, held only until the next chunk is asked for."""
        self.check_body(bytes_max)
        seen, more = 0, True
        while more:
            chunk, more = await self._next(seen, bytes_max)
            seen += len(chunk)
            if chunk:
                yield chunk
            self.release()

    async def hung_up(self) -> None:
        """Return once the client has hung up, or has its answer; only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def release(self) -> None:
        """Give back what the body held of the budget."""
        self._budget.give(self._held)
        self._held = 0

    def idempotency_key(self) -> str | None:
        """The client's key for this write.  Raises `Invalid`."""
        raw = self.headers.get(b"idempotency-key")
        if raw is None:
            return None
        if len(raw) > IDEMPOTENCY_KEY_MAX or not _VISIBLE.fullmatch(raw):
            raise Invalid(f"Idempotency-Key has 1 to {IDEMPOTENCY_KEY_MAX} visible ASCII characters")
        return raw.decode("ascii")


async def while_there(request: Request, runtime: Runtime, work: Coroutine[Any, Any, T], name: str) -> T:
    """What `work` gives; when the client hangs up it ends, so that nothing is made that nobody wants.

    Only after the body was read.  Raises `Unavailable` when it ends so.
    """
    task = runtime.spawn(work, name=name)
    gone = runtime.spawn(request.hung_up(), name=f"watch {name}")
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Unavailable(f"the client hung up during the {name}", outcome=Outcome.UNKNOWN)
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


@dataclass(slots=True)
class Response:
    """An answer whose body is in memory."""

    status: int
    body: bytes = b""
    media_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    async def send(self, send: Send, request_id: bytes) -> None:
        """Send head and body."""
        head: Headers = [(b"x-request-id", request_id)]
        if self.status != 204:  # which has neither, by RFC 9110
            head += [(b"content-length", b"%d" % len(self.body)), (b"content-type", self.media_type)]
        head += self.headers
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(slots=True)
class StreamedResponse:
    """An answer whose body is made while it is sent; a failure in the middle cuts the connection."""

    status: int
    chunks: AsyncIterator[bytes]
    headers: Headers

    async def send(self, send: Send, request_id: bytes) -> None:
        """Send the head, then each chunk as it comes."""
        head = [*self.headers, (b"x-request-id", request_id)]
        await send({"type": "http.response.start", "status": self.status, "headers": head})
        async for chunk in self.chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


AnyResponse = Response | StreamedResponse
Handler = Callable[[Request], Awaitable[AnyResponse]]


def json_response(
    value: object, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Response:
    """`value` as JSON."""
    return Response(status, orjson.dumps(value), JSON, headers)


_encode_any = msgspec.json.Encoder().encode


def whole_json_response(value: object, status: int = 200) -> Response:
    """`value` as JSON, integers beyond 64 bits included; orjson refuses those."""
    return Response(status, _encode_any(value), JSON)


def media_types(accept: bytes) -> Iterator[bytes]:
    """The media types an Accept header names, in its order, without parameters."""
    for part in accept.split(b","):
        yield part.partition(b";")[0].strip().lower()
