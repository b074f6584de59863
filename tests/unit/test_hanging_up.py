"""Who hangs up while a named snapshot is being taken: an attended one ends there and leaves no record."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from lakehouse.core.errors import Unavailable
from lakehouse.core.types import IndexParams
from lakehouse.indexes import Indexes
from lakehouse.placement import Neighbours
from lakehouse.remote import wire
from lakehouse.runtime import SystemRuntime
from lakehouse.server.http import BodyBudget, Request, Response
from lakehouse.server.internal_api import InternalApi
from lakehouse.server.vectors_api import VectorsApi
from lakehouse.store.base import BytesLike
from lakehouse.store.memory import MemoryStore

BODY = b'{"name": "kept"}'


class SlowStore(MemoryStore):
    """Holds the file of a named snapshot back until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.goes_on = asyncio.Event(), asyncio.Event()

    async def put(self, key: str, data: BytesLike) -> None:
        if "/named/" in key:
            self.reached.set()
            await self.goes_on.wait()
        await super().put(key, data)

    async def named(self) -> list[str]:
        return [info.key for info in await self.list("") if "/named/" in info.key]


class Client:
    """Sends one request, and hangs up when it is told to."""

    def __init__(self, body: bytes, query: bytes = b"", **params: str) -> None:
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        self.gone = asyncio.Event()
        scope = {"type": "http", "method": "POST", "query_string": query}
        self.request = Request(scope, self._receive, {}, "r-1", BodyBudget(1 << 20))
        self.request.params = {"name": "a", **params}

    async def _receive(self) -> dict[str, object]:
        if self._messages:
            return dict(self._messages.pop())
        await self.gone.wait()
        return {"type": "http.disconnect"}


@pytest.fixture
async def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
async def indexes(store: SlowStore, runtime: SystemRuntime) -> AsyncIterator[Indexes]:
    indexes = Indexes(store, runtime)
    await indexes.create(IndexParams("a", 4))
    yield indexes
    await indexes.close()


async def test_an_attended_snapshot_ends_when_its_client_hangs_up_and_can_be_taken_again(
    store: SlowStore, indexes: Indexes, runtime: SystemRuntime
) -> None:
    api = VectorsApi(indexes, runtime, 1 << 20)
    client = Client(BODY, b"attended=true")
    answer = asyncio.ensure_future(api.snapshot(client.request))
    await store.reached.wait()
    client.gone.set()
    with pytest.raises(Unavailable, match="hung up"):
        await answer
    assert await store.named() == []
    store.goes_on.set()
    assert (await api.snapshot(Client(BODY, b"attended=true").request)).status == 200
    assert [one.name for one in await indexes.named_snapshots("a")] == ["kept"]


async def test_one_that_is_not_attended_goes_on_without_its_client(
    store: SlowStore, indexes: Indexes, runtime: SystemRuntime
) -> None:
    client = Client(BODY)
    answer = asyncio.ensure_future(VectorsApi(indexes, runtime, 1 << 20).snapshot(client.request))
    await store.reached.wait()
    client.gone.set()
    await asyncio.sleep(0)
    store.goes_on.set()
    assert (await answer).status == 200
    assert [one.name for one in await indexes.named_snapshots("a")] == ["kept"]


async def test_a_shard_gives_up_its_part_when_the_process_that_asked_for_it_hangs_up(
    store: SlowStore, indexes: Indexes, runtime: SystemRuntime
) -> None:
    api = InternalApi(indexes, runtime, Neighbours(runtime), lambda: (True, ""), lambda name: None, 1 << 20)
    life = (await indexes.open("a")).record.uuid
    assert life is not None
    key = f"_vectors/a/{life.hex}/named/kept/00000000/0000.lhv1"
    body = wire.encode(wire.SnapshotUnder(key))
    client = Client(body, life=life.hex, shard="0", verb="snapshot-under")
    answer = asyncio.ensure_future(api.shard(client.request))
    await store.reached.wait()
    client.gone.set()
    refused = await answer
    assert isinstance(refused, Response)
    assert refused.status == 503
    store.goes_on.set()
    assert await store.named() == []
