"""Lives of an index over its pods: none yet, one after another without a gap or a mixture, and none any more."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lakehouse import building
from lakehouse.core.types import Batch, IndexParams
from lakehouse.indexes import Indexes
from minio_server import MinioServer
from pods.pods import DIMENSION, Pod, PodSet, with_store

pytestmark = [pytest.mark.minio, pytest.mark.timeout(300)]
ITEMS = 240
WAIT_S_MAX = 90.0
PATH = "/v1/vectors/index/products"


def _publish(minio: MinioServer, pods: PodSet, version: int) -> None:
    """Build the version's content and begin its life, as Jobs of the operator do."""

    async def batches() -> AsyncIterator[Batch]:
        vectors = np.random.default_rng(version).normal(size=(ITEMS, DIMENSION)).astype(np.float32)
        ids = tuple(f"item-{n}" for n in range(ITEMS))
        yield Batch(ids, vectors, (b'{"v":%d}' % version,) * ITEMS)

    async def act(indexes: Indexes) -> None:
        origin = {
            "dataset": "catalogue",
            "version": version,
            "id_column": "id",
            "metadata_columns": ["v"],
        }
        await building.build(
            indexes,
            IndexParams(pods.index, DIMENSION),
            pods.shards,
            batches(),
            owner=f"VectorIndex/shop/{pods.index}",
            origin=origin,
            replaces=version > 1,
        )

    with_store(minio, pods.data, act)


class Readers:
    """Searches at every pod without a pause, each answer held against itself."""

    def __init__(self, pods: PodSet) -> None:
        self._pods = pods
        self.versions: Counter[int] = Counter()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Readers":
        self._tasks = [asyncio.create_task(self._read(pod)) for pod in self._pods.all]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _read(self, pod: Pod) -> None:
        seen = 0
        async with httpx.AsyncClient(base_url=pod.url, timeout=60) as http:
            while not self._stopping:
                found = await http.post(f"{PATH}/search", json={"vector": [1.0] * DIMENSION, "k": 100})
                assert found.status_code == 200, (pod.url, found.text)
                versions = {hit["metadata"]["v"] for hit in found.json()["results"]}
                assert len(found.json()["results"]) == 100
                assert len(versions) == 1, f"one answer of two lives: {versions}"
                [version] = versions
                assert version >= seen, "an older life than before"
                seen = version
                self.versions[version] += 1

    async def until(self, version: int) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            while self.versions[version] < 5:
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.02)


async def test_versions_follow_each_other_without_a_gap_or_a_mixture(
    minio: MinioServer, tmp_path: Path
) -> None:
    env = {"LAKEHOUSE_READ_ONLY": "it follows dataset catalogue"}
    with PodSet(minio, tmp_path, shards=2, net=83, env=env) as pods:
        await asyncio.to_thread(_publish, minio, pods, 1)
        await asyncio.to_thread(pods.start)
        async with Readers(pods) as readers:
            await readers.until(1)
            for version in range(2, 6):
                await asyncio.to_thread(_publish, minio, pods, version)
                renewed = await asyncio.gather(
                    *(asyncio.to_thread(pod.internal, "/indexes/products/renew", {}) for pod in pods.all)
                )
                assert {answer.status_code for answer in renewed} == {200}
                assert len({answer.json()["life"] for answer in renewed}) == 1
                await readers.until(version)
        print(dict(readers.versions))
        written = httpx.post(
            f"{pods.all[0].url}{PATH}/add", json={"items": [{"id": "x", "vector": [1.0] * 8}]}, timeout=60
        )
        assert written.status_code == 409
        assert "it follows dataset catalogue" in written.json()["detail"]


def test_a_pod_waits_for_its_index_and_is_unready_without_one(minio: MinioServer, tmp_path: Path) -> None:
    with PodSet(minio, tmp_path, shards=2, replicas=1, net=84) as pods:
        for pod in pods.all:
            pod.spawn()
        for pod in pods.all:
            body = _until_says(pod, "there is no such index yet")
            assert body["status"] == "not ready"
            state = pod.internal("/state").json()
            assert (state["ready"], state["indexes"]) == (False, [])
            assert httpx.get(f"{pod.url}{PATH}", timeout=60).status_code == 503
        pods.create()
        for pod in pods.all:
            pod.wait_ready()
            assert httpx.get(f"{pod.url}{PATH}", timeout=60).json()["length"] == 0

        async def drop(indexes: Indexes) -> None:
            await indexes.drop("products")

        with_store(minio, pods.data, drop)
        assert pods.all[0].internal("/indexes/products/renew", {}).status_code == 404
        for pod in pods.all:
            _until_says(pod, "there is no such index yet")


def _until_says(pod: Pod, text: str) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S_MAX
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{pod.url}/readyz", timeout=10)
        except httpx.TransportError:
            time.sleep(0.05)
            continue
        if answer.status_code == 503 and text in answer.json()["checks"]["indexes"]:
            return dict(answer.json())
        time.sleep(0.05)
    raise AssertionError(f"never said {text!r}\n{pod.log_tail()}")


def test_merging_into_an_index_that_other_pods_serve(minio: MinioServer, tmp_path: Path) -> None:
    with (
        PodSet(minio, tmp_path, index="main", shards=2, replicas=1, net=85) as main,
        PodSet(minio, tmp_path, index="fresh", shards=1, replicas=2, net=86, data=main.data) as fresh,
    ):
        main.create()
        fresh.create()
        main.start()
        fresh.start()
        rows = np.random.default_rng(1).normal(size=(60, DIMENSION)).tolist()
        items = [{"id": f"i{n}", "vector": rows[n], "metadata": {"n": n}} for n in range(60)]
        old = [{"id": f"i{n}", "vector": [1.0] * DIMENSION, "metadata": {"old": True}} for n in range(10)]
        _add(main, old)
        _add(fresh, items)
        asked = {"dest": "main", "dest_url": main.shard_url, "clear_source": True, "replace": False}
        merged = fresh.all[1].internal("/indexes/fresh/merge", asked)
        assert merged.status_code == 200, merged.text
        counts = merged.json()
        assert (counts["merged"], counts["skipped_already_present"], counts["failed"]) == (50, 10, 0)
        assert (counts["length_dest"], counts["length_source"]) == (60, 0)
        _add(fresh, items)
        merged = fresh.all[0].internal("/indexes/fresh/merge", {**asked, "replace": True})
        assert merged.json()["merged"] == 60
        assert merged.json()["length_source"] == 0
        for pod in main.all:
            base = f"{pod.url}/v1/vectors/index/main"
            assert httpx.get(base, timeout=60).json()["length"] == 60
            item = httpx.get(f"{base}/items/i3", timeout=60).json()
            assert item["metadata"] == {"n": 3}
            np.testing.assert_array_equal(np.float32(item["vector"]), np.float32(rows[3]))
        nobody = fresh.all[0].internal("/indexes/fresh/merge", {**asked, "dest": "other"})
        assert nobody.status_code == 503
        assert nobody.json()["outcome"] == "not_committed"


def _add(pods: PodSet, items: list[dict[str, Any]]) -> None:
    answer = httpx.post(
        f"{pods.all[0].url}/v1/vectors/index/{pods.index}/add", json={"items": items}, timeout=30
    )
    assert answer.status_code == 200, answer.text
