"""Asking pods how they are: those that hang, and those that know another key."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest

from lakehouse.runtime import SystemRuntime
from lakehouse_operator import names
from lakehouse_operator import pods as pods_module
from lakehouse_operator.pods import Pods
from operator_domain.test_buckets import parts


class Clock(SystemRuntime):
    """Stands still until it is moved."""

    now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s


class Peers:
    """One key for all."""

    async def key(self, namespace: str) -> str:
        return "key"

    def refused(self, namespace: str) -> None:
        pass


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    yield clock
    clock.close()


@pytest.fixture
async def asked(clock: Clock) -> AsyncIterator[Pods]:
    """One pod, `p`, at the loopback address."""
    given, peers = parts(clock), Peers()
    labels = {**names.selector("products"), names.SHARD_LABEL: "0"}
    meta = {"name": "p", "namespace": "n", "uid": "p", "resourceVersion": "1", "labels": labels}
    status = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
    given.cache.put({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "status": status})
    untyped: Any = peers
    pods = Pods(given, untyped)
    yield pods
    await pods.close()


async def test_a_pod_that_hung_is_not_waited_for_as_long_again_for_a_while(
    asked: Pods, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[float] = []
    call = asked.call

    async def told(*what: Any, timeout_s: float) -> Any:
        patience.append(timeout_s)
        return await call(*what, timeout_s=0.05)

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    monkeypatch.setattr(names, "PORT", server.sockets[0].getsockname()[1])
    monkeypatch.setattr(asked, "call", told)
    for clock.now_s in (0.0, 1.0, pods_module.HUNG_S - 1, pods_module.HUNG_S + 1):
        [state] = await asked.states("n", "products")
        assert not state.answers
    short = pods_module.HUNG_STATE_S
    assert patience == [pods_module.STATE_S, short, short, pods_module.STATE_S]
    server.close()
    await server.wait_closed()


async def test_a_pod_that_is_not_there_is_asked_with_all_patience(
    asked: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "PORT", 9)
    for _ in range(2):
        [state] = await asked.states("n", "products")
        assert not state.answers
        assert asked._patience_s(state.address) == pods_module.STATE_S


async def test_a_pod_that_knows_another_key_is_told_of_with_what_becomes_of_it(
    asked: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setattr(names, "PORT", server.sockets[0].getsockname()[1])
    [state] = await asked.states("n", "products")
    assert "lakehouse-peer-key" in state.detail
    assert "within 90 s of a change" in state.detail
    server.close()
    await server.wait_closed()


async def test_a_pod_that_refuses_the_key_is_in_doubt_of_its_secret(
    asked: Pods, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have the key of before: once told of the Secret's version, it has the newest within seconds."""

    class Doubts:
        doubted: ClassVar[list[tuple[str, ...]]] = []

        def doubt(self, *what: str) -> None:
            self.doubted.append(what)

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    monkeypatch.setattr(names, "PORT", server.sockets[0].getsockname()[1])
    monkeypatch.setattr(asked, "_mounts", Doubts())
    [state] = await asked.states("n", "products")
    assert not state.answers
    assert Doubts.doubted == [("n", names.PEER_KEY_SECRET, "p")]
    server.close()
    await server.wait_closed()
