"""kill -9 of the pod that writes, under load: no acknowledged write is lost, and no request fails a patient client.

Clients are the documented ones, with their retries, behind a Service that learns of a death late.  Each keeps a journal
of its own ids; after every kill all journals must explain, bit for bit, what each pod holds.
"""

import asyncio
import json
import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import pytest

from journal import Delete, Journal, Upsert, Value, Verdict
from lakehouse.client import AsyncClient, vectors
from lakehouse.client.vectors import Stored
from lakehouse.client.wire import Call
from minio_server import MinioServer
from pods.pods import DIMENSION, Pod, PodSet, pool
from pods.service import Service

KILLS = int(os.environ.get("LAKEHOUSE_POD_KILLS", "3"))
WRITERS = 5
ACKS_BETWEEN = 25
"""Acknowledgements before a kill, and again while the pod is dead: no clock decides."""
LIFE_S_MAX = 120.0
PAGE = 500

pytestmark = [pytest.mark.minio, pytest.mark.kill, pytest.mark.timeout(200 + 60 * KILLS)]


class Writer:
    """Upserts and deletes over its own ids, and expects every write to be acknowledged in the end."""

    def __init__(self, number: int, index: str, seed: int) -> None:
        self.name = f"w{number}"
        self.index = index
        self.journal = Journal()
        self._rng = random.Random(seed)
        self._ids = 0

    async def write(self, client: AsyncClient) -> None:
        known = list(self.journal.present())
        if len(known) > 30 and self._rng.random() < 0.2:
            ids = tuple(self._rng.sample(known, 5))
            await client.delete(self.index, ids)
            self.journal.record(Delete(ids), Verdict.COMMITTED)
            return
        ids = tuple(self._rng.sample(known, min(3, len(known)))) + tuple(self._fresh() for _ in range(4))
        vectors = [np.array([self._rng.gauss(0, 1) for _ in range(DIMENSION)], np.float32) for _ in ids]
        metadata = [{"n": self._rng.randrange(1 << 40)} for _ in ids]
        await client.add(self.index, list(ids), np.stack(vectors), metadata)
        texts = [json.dumps(each, sort_keys=True) for each in metadata]
        items = tuple(
            (each, vector.tobytes(), text) for each, vector, text in zip(ids, vectors, texts, strict=True)
        )
        self.journal.record(Upsert(items), Verdict.COMMITTED)

    def _fresh(self) -> str:
        self._ids += 1
        return f"{self.name}-{self._ids}"


class Load:
    """Writers and readers through one Service, and what they counted."""

    def __init__(self, service: Service, indexes: Sequence[str], seed: int) -> None:
        self.service = service
        self.writers = [Writer(n, indexes[n % len(indexes)], seed + n) for n in range(WRITERS)]
        self.indexes = indexes
        self.done: Counter[str] = Counter()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._write(writer)) for writer in self.writers]
        self._tasks += [asyncio.create_task(self._read(index)) for index in self.indexes]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def acknowledged(self, more: int) -> None:
        """Return after so many more writes were acknowledged."""
        wanted = self.done["writes"] + more
        async with asyncio.timeout(LIFE_S_MAX):
            while self.done["writes"] < wanted:
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.01)

    async def _write(self, writer: Writer) -> None:
        async with AsyncClient(self.service.url) as client:
            while not self._stopping:
                await writer.write(client)
                self.done["writes"] += 1

    async def _read(self, index: str) -> None:
        async with AsyncClient(self.service.url) as client:
            while not self._stopping:
                found = await client.search(index, [1.0] * DIMENSION, k=5)
                count = await client.count(index)
                assert len(found) == min(5, len(found))
                self.done["reads"] += 1 if count >= 0 else 0


async def _settle(load: Load, pods: Sequence[Pod]) -> None:
    """Every journal explains what every pod holds."""
    held = {}
    for pod in pods:
        async with AsyncClient(pod.url) as client:
            for index in load.indexes:
                stored, count = await _held(client, index)
                assert len(stored) == len({item.id for item in stored})
                assert count == len(stored), "nobody writes, and no answer says that it is behind"
                held[pod.url, index] = {item.id: _value(item) for item in stored}
    for writer in load.writers:
        seen = [
            {key: value for key, value in contents.items() if key.startswith(f"{writer.name}-")}
            for (_, index), contents in held.items()
            if index == writer.index
        ]
        assert all(each == seen[0] for each in seen), "two pods hold different things"
        writer.journal.settle(seen[0])


async def _held(client: AsyncClient, index: str) -> tuple[list[Stored], int]:
    """What a pod holds, and its count, as answers show that do not say that they are behind.

    The store may have been too slow for a pod while there was load; the first read after that says so at once.
    """
    async with asyncio.timeout(LIFE_S_MAX):
        while True:
            stored: list[Stored] = []
            after: str | None = None
            count, behind_s = await client.run(Call(vectors.count(str, index).request, _count))
            while not behind_s:
                page = await client.scroll(index, after=after, limit=PAGE, include=["vectors", "metadata"])
                stored += page.items
                after, behind_s = page.after, page.stale_s
                if after is None and not behind_s:
                    return stored, count
            await asyncio.sleep(0.1)


def _count(answer: httpx.Response) -> tuple[int, float]:
    """How many items there are, and seconds by which the answer says that this may be behind."""
    return answer.json()["count"], float(answer.headers.get("lakehouse-staleness", 0.0))


def _value(item: Stored) -> Value:
    assert item.vector is not None
    metadata = json.dumps(item.metadata, sort_keys=True) if item.metadata else ""
    return Value(np.asarray(item.vector, np.float32).tobytes(), metadata)


async def _run(
    pods: Sequence[Pod], indexes: Sequence[str], choose: Callable[[random.Random], Sequence[Pod]]
) -> None:
    seed = int(os.environ.get("LAKEHOUSE_SEED", secrets.randbits(31)))
    print(f"seed {seed}: repeat with LAKEHOUSE_SEED={seed}")
    rng = random.Random(seed)
    async with Service(pods, seed) as service:
        load = Load(service, indexes, seed)
        for kill in range(KILLS):
            async with load:
                await load.acknowledged(ACKS_BETWEEN)
                victim = await _writer(choose(rng))
                victim.kill()
                await load.acknowledged(ACKS_BETWEEN)
                await asyncio.to_thread(victim.start)
                await load.acknowledged(5)
            load._stopping = False
            await _settle(load, pods)
            print(f"kill {kill + 1}: {dict(load.done)}", flush=True)
    assert load.done["reads"] > KILLS


async def _writer(pods: Sequence[Pod]) -> Pod:
    """The pod of these that writes; there is none for the moment in which one takes over."""
    async with asyncio.timeout(LIFE_S_MAX):
        while True:
            for pod in pods:
                state = (await asyncio.to_thread(pod.internal, "/state")).json()
                if any(shard["writer"] for index in state["indexes"] for shard in index["shards"]):
                    return pod
            await asyncio.sleep(0.05)


async def test_the_writer_of_a_shard_is_killed(minio: MinioServer, tmp_path: Path) -> None:
    with PodSet(minio, tmp_path, net=81) as pods:
        await asyncio.to_thread(pods.create)
        await asyncio.to_thread(pods.start)

        def of_one_shard(rng: random.Random) -> Sequence[Pod]:
            shard = rng.randrange(pods.shards)
            return [pods.pods[shard, replica] for replica in range(2)]

        await _run(pods.all, ["products"], of_one_shard)


async def test_a_replica_of_the_pool_is_killed(minio: MinioServer, tmp_path: Path) -> None:
    with pool(minio, tmp_path, net=82) as pods:
        for name, shards in (("first", 1), ("second", 2)):
            body = {"name": name, "dimension": DIMENSION, "shards": shards}
            created = await asyncio.to_thread(httpx.post, f"{pods[0].url}/v1/vectors/index", json=body)
            assert created.status_code == 201, created.text
        await _run(pods, ["first", "second"], lambda rng: rng.sample(list(pods), len(pods)))
