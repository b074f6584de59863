"""Long calls of pods: waited for as long as the pod answers otherwise."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lakehouse.core.errors import Outcome, Unavailable
from lakehouse.runtime import SystemRuntime
from lakehouse_operator import attending, names
from lakehouse_operator.attending import attended
from lakehouse_operator.pods import Pods, PodState
from operator_domain.test_buckets import parts
from operator_domain.test_pods import Peers

POD = PodState("p", 0, address="127.0.0.1", ready=True, answers=True)


class Server:
    """A pod that takes its time with long work, and may fall silent as a whole."""

    def __init__(self) -> None:
        self.silent = False
        self.asked = 0
        self.ended = asyncio.Event()
        """The connection of the long call was ended from the other side."""
        self.finish = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        long = head.startswith(b"POST")
        self.asked += not long
        if long and not self.silent:
            await asyncio.wait(
                [asyncio.create_task(self.finish.wait()), asyncio.create_task(reader.read())],
                return_when=asyncio.FIRST_COMPLETED,
            )
        elif self.silent:
            await reader.read()
        if long:
            self.ended.set()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()


@pytest.fixture
async def pods(runtime: SystemRuntime) -> AsyncIterator[Pods]:
    untyped: Any = Peers()
    found = Pods(parts(runtime), untyped)
    yield found
    await found.close()


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    found = Server()
    listening = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    monkeypatch.setattr(names, "PORT", listening.sockets[0].getsockname()[1])
    monkeypatch.setattr(attending, "ASK_S", 0.01)
    yield found
    found.finish.set()
    listening.close()
    await listening.wait_closed()


async def test_who_answers_otherwise_may_take_long(
    runtime: SystemRuntime, pods: Pods, server: Server
) -> None:
    async def asked_often() -> None:
        while server.asked < 3 * attending.SILENCES_MAX:
            await asyncio.sleep(0.001)
        server.finish.set()

    often = asyncio.create_task(asked_often())
    asked = pods.call("n", POD, "POST", "/long", {}, timeout_s=60.0)
    assert await attended(runtime, pods, "n", POD, asked) == {}
    await often


async def test_who_falls_silent_is_not_waited_for(
    runtime: SystemRuntime, pods: Pods, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attending, "STATE_S", 0.05)
    server.silent = True
    asked = pods.call("n", POD, "POST", "/long", {}, timeout_s=3_600.0)
    with pytest.raises(Unavailable, match="stopped answering") as raised:
        await attended(runtime, pods, "n", POD, asked)
    assert raised.value.outcome is Outcome.UNKNOWN
    assert server.asked == attending.SILENCES_MAX
    await server.ended.wait()


async def test_what_the_call_raises_is_raised(
    runtime: SystemRuntime, pods: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PORT", 9)  # nobody listens there
    asked = pods.call("n", POD, "POST", "/long", {}, timeout_s=60.0)
    with pytest.raises(Unavailable, match="does not answer"):
        await attended(runtime, pods, "n", POD, asked)


async def test_who_stops_waiting_ends_the_call(runtime: SystemRuntime, pods: Pods, server: Server) -> None:
    asked = pods.call("n", POD, "POST", "/long", {}, timeout_s=60.0)
    waiting = asyncio.create_task(attended(runtime, pods, "n", POD, asked))
    while not server.asked:
        await asyncio.sleep(0.001)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await server.ended.wait()
