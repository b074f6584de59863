"""Pods come and go while the gateway passes requests on: what may be sent again is, and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from lakehouse import settings
from lakehouse.core.errors import Outcome, Unavailable
from lakehouse.remote.peer_key import PeerKey
from lakehouse.runtime import SystemRuntime
from lakehouse.server.forwarding import (
    BROKEN_MAX,
    RENEWED_EVERY,
    RETRY_S,
    Address,
    Body,
    Forwarder,
    Replayed,
    Streamed,
    path_of,
)
from lakehouse.server.gateway import REPLAYED_BYTES_MAX, Gateway
from lakehouse.server.http import BodyBudget, Request, StreamedResponse
from lakehouse.server.routes import ROUTES
from lakehouse.settings import PROXIED_ROLES
from ports import free_port

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CUT = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"


@dataclass
class Scripted:
    """A server that treats each request as the script says, and counts; without a script it answers."""

    script: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    (
                        int(line[16:])
                        for line in head.lower().split(b"\r\n")
                        if line.startswith(b"content-length: ")
                    ),
                    0,
                )
                body = await reader.readexactly(length)
                self.requests.append(head + body)
                act = self.script.pop(0) if self.script else "answer"
                if act == "break":
                    break
                writer.write(CUT if act == "cut" else ANSWER)
                await writer.drain()
                if act == "cut" or b"connection: close" in head:
                    break
        writer.close()


class Watched(SystemRuntime):
    """Time passes only in sleeps, and each can be told of."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0
        self.on_sleep: Callable[[], Awaitable[None]] | None = None

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.at += seconds
        if self.on_sleep is not None:
            await self.on_sleep()


@pytest.fixture
async def runtime() -> AsyncIterator[Watched]:
    made = Watched()
    yield made
    made.close()


@pytest.fixture
async def forwarder(runtime: Watched) -> AsyncIterator[Forwarder]:
    made = Forwarder(runtime, 2.0, 30.0)
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def listening(scripted: Scripted, port: int = 0) -> AsyncIterator[Address]:
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", port)
    async with server:
        yield Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "the pod")


def request(method: str = "POST", path: bytes = b"/v1/vectors/index/x/search", **headers: str) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.disconnect"}

    given = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    scope = {"type": "http", "method": method, "raw_path": path, "query_string": b"", "headers": given}
    return Request(scope, receive, given, "r-1", BodyBudget(1 << 20))


async def sent(
    forwarder: Forwarder, to: Address, body: Body, *, twice: bool, asked: Request | None = None
) -> bytes:
    asked = asked or request()
    answer = await forwarder.send(to, asked, path_of(asked), body, twice=twice)
    return b"".join([chunk async for chunk in answer.chunks])


async def test_any_request_waits_for_an_address_that_nobody_listens_on_yet(
    forwarder: Forwarder, runtime: Watched
) -> None:
    """A write too, and one whose body streams: nothing was sent."""
    port, scripted = free_port(), Scripted()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"whole"

    async with contextlib.AsyncExitStack() as stack:

        async def arrive() -> None:
            runtime.on_sleep = None
            await stack.enter_async_context(listening(scripted, port))

        runtime.on_sleep = arrive
        to = Address(f"http://127.0.0.1:{port}", "the pod")
        asked = request(content_length="5")
        assert await sent(forwarder, to, Streamed(chunks()), twice=False, asked=asked) == b"ok"
    assert [one.endswith(b"\r\n\r\nwhole") for one in scripted.requests] == [True]


async def test_an_address_that_stays_empty_is_not_committed_after_the_budget(
    forwarder: Forwarder, runtime: Watched
) -> None:
    to = Address(f"http://127.0.0.1:{free_port()}", "the pod")
    with pytest.raises(Unavailable, match="the pod does not answer") as raised:
        await sent(forwarder, to, Replayed(b"x"), twice=False)
    assert raised.value.outcome is Outcome.NOT_COMMITTED
    assert RETRY_S / 2 < runtime.at <= RETRY_S


async def test_a_harmless_request_outlives_connections_that_break(forwarder: Forwarder) -> None:
    scripted = Scripted(["answer"] + ["break"] * BROKEN_MAX)
    async with listening(scripted) as to:
        assert await sent(forwarder, to, Replayed(b"first"), twice=True) == b"ok"
        assert await sent(forwarder, to, Replayed(b"second"), twice=True) == b"ok"
    assert [one[-6:] for one in scripted.requests[1:]] == [b"second"] * (BROKEN_MAX + 1)


async def test_a_request_that_breaks_every_connection_is_given_up(forwarder: Forwarder) -> None:
    scripted = Scripted(["break"] * 9)
    async with listening(scripted) as to:
        with pytest.raises(Unavailable, match="broke off") as raised:
            await sent(forwarder, to, Replayed(b"poison"), twice=True)
    assert raised.value.outcome is Outcome.UNKNOWN
    assert len(scripted.requests) == BROKEN_MAX + 1


async def test_what_may_have_been_done_is_not_done_again(forwarder: Forwarder) -> None:
    scripted = Scripted(["break"])
    async with listening(scripted) as to:
        with pytest.raises(Unavailable) as raised:
            await sent(forwarder, to, Replayed(b"write"), twice=False)
    assert raised.value.outcome is Outcome.UNKNOWN
    assert len(scripted.requests) == 1


async def test_a_body_that_passed_through_is_not_sent_again(forwarder: Forwarder) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"whole"

    scripted = Scripted(["break"])
    async with listening(scripted) as to:
        with pytest.raises(Unavailable):
            await sent(forwarder, to, Streamed(chunks()), twice=True, asked=request(content_length="5"))
    assert len(scripted.requests) == 1


async def test_a_lost_attempt_is_remembered_when_the_next_finds_nobody(
    forwarder: Forwarder, runtime: Watched
) -> None:
    """The first may have been done, so nobody may say that nothing was."""
    scripted = Scripted(["break"])
    async with contextlib.AsyncExitStack() as stack:
        to = await stack.enter_async_context(listening(scripted))
        runtime.on_sleep = stack.aclose
        with pytest.raises(Unavailable) as raised:
            await sent(forwarder, to, Replayed(b"add"), twice=True)
    assert raised.value.outcome is Outcome.UNKNOWN


async def test_an_answer_that_has_begun_is_not_asked_for_again(forwarder: Forwarder) -> None:
    scripted = Scripted(["cut"])
    async with listening(scripted) as to:
        with pytest.raises(Exception, match=r"peer closed|incomplete"):
            await sent(forwarder, to, Replayed(b"q"), twice=True)
    assert len(scripted.requests) == 1


async def test_a_busy_connection_is_given_up_now_and_then(forwarder: Forwarder) -> None:
    """Else a pod that joins would get no share of what a gateway keeps open."""
    scripted = Scripted()
    async with listening(scripted) as to:
        for _ in range(RENEWED_EVERY + 1):
            await sent(forwarder, to, Replayed(b"q"), twice=True)
    assert scripted.connections == 2


# ---------------------------------------------------------------- which requests the gateway takes for harmless


@pytest.mark.parametrize(
    ("name", "body", "sends"),
    [
        ("vectors.search", b'{"vector": [1]}', 2),
        ("vectors.add", b'{"items": []}', 2),
        ("vectors.delete", b'{"ids": ["a"]}', 2),
        ("vectors.delete", b'{"filter": "price > 3"}', 1),
        ("vectors.delete", b'{"f\\u0069lter": "price > 3"}', 1),
        ("vectors.delete", b"{", 1),
        ("vectors.create", b'{"name": "x", "dimension": 2}', 1),
        ("vectors.merge", b'{"dest": "y"}', 1),
        ("vectors.snapshot", b"{}", 1),
        ("vectors.drop", b"", 1),
        ("vectors.stats", b"", 2),
        ("storage.put", b"bytes", 2),
        ("catalog.register", b"{}", 1),
        ("ingest.ingest", b"a,b", 1),
        ("query.sql", b'{"sql": "SELECT 1"}', 2),
    ],
)
async def test_what_is_sent_again_after_a_connection_broke(
    runtime: Watched, name: str, body: bytes, sends: int
) -> None:
    scripted = Scripted(["break"])
    route = next(route for route in ROUTES if route.name == name)
    async with listening(scripted) as to, passing(to, runtime) as gateway:
        asked = with_body(route.method, body)
        if sends > 1:
            answer = await gateway.handler(route)(asked)
            assert isinstance(answer, StreamedResponse)
            assert b"".join([chunk async for chunk in answer.chunks]) == b"ok"
        else:
            with pytest.raises(Unavailable):
                await gateway.handler(route)(asked)
    assert len(scripted.requests) == sends
    assert len(set(scripted.requests)) == 1, "the very same request"


@pytest.mark.parametrize("name", ["vectors.add", "vectors.delete", "vectors.search"])
async def test_a_write_without_an_idempotency_key_gets_one_and_keeps_its_own(
    runtime: Watched, name: str
) -> None:
    scripted = Scripted()
    route = next(route for route in ROUTES if route.name == name)
    async with listening(scripted) as to, passing(to, runtime) as gateway:
        for headers in ({}, {}, {"idempotency_key": "mine"}):
            answer = await gateway.handler(route)(with_body("POST", b"{}", **headers))
            assert isinstance(answer, StreamedResponse)
            assert [chunk async for chunk in answer.chunks] == [b"ok"]
    keys = [key_of(each) for each in scripted.requests]
    assert keys[2] == "mine"
    if name == "vectors.search":
        assert keys[:2] == ["", ""]
    else:
        assert len({*keys, ""}) == 4


async def test_a_large_body_streams_and_is_sent_once(runtime: Watched) -> None:
    scripted = Scripted(["break"])
    route = next(route for route in ROUTES if route.name == "vectors.add")
    async with listening(scripted) as to, passing(to, runtime) as gateway:
        asked = with_body("POST", b"x" * (REPLAYED_BYTES_MAX + 1))
        with pytest.raises(Unavailable):
            await gateway.handler(route)(asked)
    assert len(scripted.requests) == 1


@contextlib.asynccontextmanager
async def passing(to: Address, runtime: Watched) -> AsyncIterator[Gateway]:
    urls: dict[str, object] = {f"{role}_url": to.url for role in PROXIED_ROLES}
    gateway = Gateway(settings.load(None, roles="gateway", **urls), runtime, PeerKey(runtime))
    try:
        yield gateway
    finally:
        await gateway.close()


def with_body(method: str, body: bytes, **headers: str) -> Request:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, object]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    if body:
        headers["content_length"] = str(len(body))
    made = request(method, b"/v1/x", **headers)
    return Request(made.scope, receive, made.headers, "r-1", BodyBudget(8 << 20))


def key_of(sent: bytes) -> str:
    head = sent.partition(b"\r\n\r\n")[0].decode().lower()
    found = [line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("idempotency-key")]
    return found[0] if found else ""
