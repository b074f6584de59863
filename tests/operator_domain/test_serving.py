"""Declared things served by real processes: what the operator wrote for pods and Jobs is what they run with."""

import contextlib
from typing import Any

import httpx
import pytest

from kube_api_server import KubeApiServer
from lakehouse import lives
from lakehouse.control.kinds import DATASET, INDEX_SNAPSHOT, VECTOR_INDEX
from lakehouse_operator import names
from lakehouse_operator.peers import Peers
from minio_server import MinioServer
from operator_domain.lake import Lake, lake, until
from operator_domain.little_kubelet import LittleKubelet, pods
from operator_frame.running import Place, condition

pytestmark = [pytest.mark.kubernetes, pytest.mark.minio, pytest.mark.timeout(600)]
ROWS = b'{"id": "a", "embedding": [1, 0, 0]}\n{"id": "b", "embedding": [0, 1, 0]}\n'


class Pod:
    """One pod over HTTP."""

    def __init__(self, it: Lake, kubelet: LittleKubelet, shard: int = 0, index: str = "products") -> None:
        self._it = it
        self._kubelet, self._name = kubelet, names.shard(index, shard)
        self._url = f"http://{kubelet.address(index, str(shard))}:{names.PORT}"

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        key = await Peers(self._it.where.kube, self._it.operator._runtime).key(self._it.where.namespace)
        async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
            headers = {"authorization": f"Bearer {key}"}
            response = await client.request(method, f"{self._url}{path}", json=body, headers=headers)
        assert response.is_success, f"{response.text}\n{self._kubelet.log(self._name)[-3000:]}"
        return response.json()


async def test_an_index_of_two_shards_is_served_changed_snapshotted_and_suspended(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it) as kubelet:
        await where.index(shards=2)
        body = await it.told(VECTOR_INDEX, "products", "Ready", "AllReplicasServing")
        assert body["status"]["readyReplicas"] == body["status"]["replicas"] == 1
        pod = Pod(it, kubelet)
        items = [{"id": f"item-{n}", "vector": [1.0, float(n), 0.0]} for n in range(20)]
        await pod.ask("POST", "/v1/vectors/index/products/add", {"items": items})
        await where.patch(VECTOR_INDEX, "products", {"hnsw": {"efSearch": 77}})

        async def counted() -> bool:
            found = await where.get(VECTOR_INDEX, "products")
            return bool(found and found["status"].get("items") == 20)

        await until(counted)

        async def applied() -> bool:
            said = [await Pod(it, kubelet, shard).ask("GET", "/internal/state") for shard in (0, 1)]
            return [one["indexes"][0]["ef_search"] for one in said] == [77, 77]

        await until(applied)
        await where.create(INDEX_SNAPSHOT, "one", {"indexRef": {"name": "products"}})
        snapshot = await it.told(INDEX_SNAPSHOT, "one", "Complete", "Verified")
        assert snapshot["status"]["items"] == 20
        assert snapshot["status"]["uri"].endswith("/named/one.json")
        await where.index("copy", bootstrap={"snapshot": {"name": "one"}})  # of one shard, from two
        await it.told(VECTOR_INDEX, "copy", "Restored", "Verified")
        copy = await it.told(VECTOR_INDEX, "copy", "Ready", "AllReplicasServing")
        assert copy["status"]["items"] == 20
        await where.patch(VECTOR_INDEX, "products", {"suspend": True})
        await it.told(VECTOR_INDEX, "products", "Ready", "Suspended")
        await until(lambda: names.shard("products", 0) not in kubelet.processes)
        await where.patch(VECTOR_INDEX, "products", {"suspend": False})
        await it.told(VECTOR_INDEX, "products", "Ready", "AllReplicasServing")


async def test_a_dataset_is_read_an_index_built_from_it_and_rebuilt_by_jobs(
    kube_api: KubeApiServer, where: Place, minio: MinioServer
) -> None:
    client = minio.client()
    with contextlib.closing(client):
        client.put_object(Bucket=minio.bucket, Key=f"{where.namespace}/in/rows.ndjson", Body=ROWS)
    async with lake(kube_api, where, minio) as it, pods(it) as kubelet:
        await where.create(DATASET, "rows", {"sources": [{"uri": "in/rows.ndjson"}]})
        source = {"name": "rows", "idColumn": "id", "vectorColumn": "embedding", "follow": "Latest"}
        await where.index(shards=2, source={"dataset": source})
        body = await it.told(VECTOR_INDEX, "products", "Ready", "AllReplicasServing")
        assert condition(await where.get(DATASET, "rows"), "Fresh")["reason"] == "Refreshed"
        body = await it.told(VECTOR_INDEX, "products", "UpToDate", "Current")
        assert body["status"]["source"] == {"dataset": "rows", "version": 1}
        await where.patch(VECTOR_INDEX, "products", {"hnsw": {"m": 8}})

        async def rebuilt() -> bool:
            record = await lives.current(it.store, "products")
            return bool(record and record.params and record.params.m == 8)

        await until(rebuilt)
        await it.told(VECTOR_INDEX, "products", "UpToDate", "Current")
        found = await Pod(it, kubelet).ask(
            "POST", "/v1/vectors/index/products/search", {"vector": [1, 0, 0], "k": 1}
        )
        assert found["results"][0]["id"] == "a"
        await where.annotate(DATASET, "rows", {"lakehouse.agentview.dev/refresh": "now"})
        await it.told(DATASET, "rows", "Fresh", "Unchanged")  # found out without a Job
        assert len([one for one in await it.jobs() if "-ingest-" in one["metadata"]["name"]]) == 1


async def test_a_fresh_tier_is_drained_into_its_target(
    kube_api: KubeApiServer, where: Place, minio: MinioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lake(kube_api, where, minio) as it, pods(it) as kubelet:
        # There is no DNS: the target's pods are at an address instead of a Service's name.
        monkeypatch.setattr(
            names, "shard_url", lambda index, _: f"http://{kubelet.address(index, '{shard}')}:{names.PORT}"
        )
        await where.index("workers")
        await where.index("fresh", drain={"into": "workers", "maxItems": 2})
        for name in ("workers", "fresh"):
            await it.told(VECTOR_INDEX, name, "Ready", "AllReplicasServing")
        items = [{"id": f"item-{n}", "vector": [1.0, float(n), 0.0]} for n in range(3)]
        await Pod(it, kubelet, index="fresh").ask("POST", "/v1/vectors/index/fresh/add", {"items": items})

        async def drained() -> bool:
            fresh, workers = await where.get(VECTOR_INDEX, "fresh"), await where.get(VECTOR_INDEX, "workers")
            assert fresh is not None
            assert workers is not None
            merged = fresh["status"].get("drain", {}).get("lastMerged")
            return bool(merged == 3 and workers["status"].get("items") == 3)

        await until(drained)
