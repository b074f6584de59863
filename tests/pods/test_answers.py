"""Any pod answers for the whole index, and says what one process over the same data says."""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from lakehouse import incarnations
from lakehouse.collection import Collection
from lakehouse.core import names
from lakehouse.core.types import Consistency
from lakehouse.engine_settings import EngineSettings
from lakehouse.indexes import Indexes
from lakehouse.placement import Neighbours, Pods
from lakehouse.remote.peer_key import PeerKey
from lakehouse.runtime import SystemRuntime
from lakehouse.store.memory import MemoryStore
from lakehouse.store.open import open_store
from live_server import LiveServer, serving
from minio_server import MinioServer
from pods.pods import DIMENSION, PEER_KEY, Pod, PodSet

pytestmark = [pytest.mark.minio, pytest.mark.timeout(300), pytest.mark.xdist_group("answers")]
ITEMS = 700
PATH = "/v1/vectors/index/products"


def _items() -> list[dict[str, Any]]:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(ITEMS, DIMENSION)).astype(np.float32)
    return [
        {"id": f"item-{n}", "vector": vectors[n].tolist(), "metadata": {"price": n, "even": n % 2 == 0}}
        for n in range(ITEMS)
    ]


def _post(server: LiveServer, verb: str, body: dict[str, Any], **headers: str) -> Any:
    answer = httpx.post(f"{server.url}{PATH}/{verb}", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.fixture(scope="module")
def both(minio: MinioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PodSet, LiveServer]]:
    """Six pods of three shards, and one process alone with the same items in as many shards."""
    home = tmp_path_factory.mktemp("both")
    with (
        PodSet(minio, home) as pods,
        serving(str(home / "data"), home / "alone.log", args=("--roles", "vectors")) as alone,
    ):
        pods.create()
        pods.start()
        body = {"name": "products", "dimension": DIMENSION, "shards": 3}
        assert httpx.post(f"{alone.url}/v1/vectors/index", json=body, timeout=60).status_code == 201
        items = _items()
        for start in range(0, ITEMS, 100):
            part = {"items": items[start : start + 100]}
            pod = pods.all[(start // 100) % len(pods.all)]
            assert _post(pod, "add", part) == _post(alone, "add", part)
        yield pods, alone


def _everything(server: LiveServer) -> list[dict[str, Any]]:
    found, after = [], None
    while True:
        page = _post(server, "scroll", {"limit": 300, "after": after, "include": ["vectors", "metadata"]})
        found += page["items"]
        after = page["after"]
        if after is None:
            return found


def test_every_pod_answers_as_one_process_does(both: tuple[PodSet, LiveServer]) -> None:
    pods, alone = both
    rng = random.Random(3)
    queries = [[rng.gauss(0, 1) for _ in range(DIMENSION)] for _ in range(5)]
    asked: list[tuple[str, dict[str, Any]]] = [
        *(("search", {"vector": query, "k": 7, "include": ["vectors", "metadata"]}) for query in queries),
        ("search/batch", {"vectors": queries, "k": 3}),
        ("search", {"vector": queries[0], "k": 5, "filter": "price < 300 AND even"}),
        ("search", {"id": "item-17", "k": 4}),
        ("count", {}),
        ("count", {"filter": "price BETWEEN 100 AND 199"}),
        ("scroll", {"limit": 50, "after": "item-2", "filter": "NOT even"}),
    ]
    item = httpx.get(f"{alone.url}{PATH}/items/item-42", timeout=60).json()
    description = httpx.get(f"{alone.url}{PATH}", timeout=60).json()
    for pod in pods.all:
        for verb, body in asked:
            body = {**body, "explain": True} if verb == "search" else body
            mine, theirs = _post(pod, verb, body), _post(alone, verb, body)
            assert mine.get("results", mine) == theirs.get("results", theirs), (pod.url, verb, body)
            if "plan" in mine:
                assert mine["plan"]["matched"] == theirs["plan"]["matched"]
        assert httpx.get(f"{pod.url}{PATH}/items/item-42", timeout=60).json() == item
        assert httpx.get(f"{pod.url}{PATH}", timeout=60).json() == description
    assert _everything(pods.all[3]) == _everything(alone)


def test_recall_stats_and_a_missing_item(both: tuple[PodSet, LiveServer]) -> None:
    pods, _ = both
    recall = _post(pods.all[1], "recall", {"samples": 60, "k": 5})
    assert recall["samples"] == 60
    assert recall["recall"] > 0.99
    stats = httpx.get(f"{pods.all[2].url}{PATH}/stats", timeout=30).json()
    assert stats["length"] == ITEMS
    assert sum(shard["live"] for shard in stats["shards"]) == ITEMS
    assert len(stats["shards"]) == 3
    missing = httpx.get(f"{pods.all[0].url}{PATH}/items/nobody", timeout=60)
    assert missing.status_code == 404
    wrong = httpx.post(f"{pods.all[0].url}{PATH}/search", json={"vector": [1.0]}, timeout=60)
    assert wrong.status_code == 400
    unknown = httpx.post(
        f"{pods.all[0].url}{PATH}/search",
        json={"vector": [1.0] * DIMENSION, "filter": "colour = 'red'"},
        timeout=60,
    )
    assert unknown.status_code == 400
    assert "colour" in unknown.json()["detail"]


def test_a_write_at_one_pod_is_seen_by_strong_reads_at_all(both: tuple[PodSet, LiveServer]) -> None:
    pods, _ = both
    for turn, pod in enumerate(pods.all):
        added = httpx.post(
            f"{pod.url}{PATH}/add",
            json={
                "items": [{"id": f"turn-{turn}-{n}", "vector": [turn + 1.0] * DIMENSION} for n in range(4)]
            },
            headers={"idempotency-key": f"turn-{turn}"},
            timeout=60,
        )
        assert added.status_code == 200, added.text
        position = added.headers["lakehouse-position"]
        for other in pods.all:
            count = httpx.post(
                f"{other.url}{PATH}/count", json={"filter": "price IS NULL"}, timeout=60
            ).json()["count"]
            assert count == 4 * (turn + 1), (pod.url, other.url)
            eventual = httpx.post(
                f"{other.url}{PATH}/count",
                json={"filter": "price IS NULL", "consistency": "eventual"},
                headers={"lakehouse-min-position": position},
                timeout=60,
            )
            assert eventual.json()["count"] == 4 * (turn + 1)
        again = httpx.post(
            f"{pods.all[(turn + 1) % 6].url}{PATH}/add",
            json={
                "items": [{"id": f"turn-{turn}-{n}", "vector": [turn + 1.0] * DIMENSION} for n in range(4)]
            },
            headers={"idempotency-key": f"turn-{turn}"},
            timeout=60,
        )
        assert again.status_code == 200
        assert again.json() == added.json()
        differs = httpx.post(
            f"{pods.all[(turn + 2) % 6].url}{PATH}/add",
            json={"items": [{"id": "another", "vector": [1.0] * DIMENSION}]},
            headers={"idempotency-key": f"turn-{turn}"},
            timeout=60,
        )
        assert differs.status_code == 409
    removed = _post(pods.all[4], "delete", {"filter": "price IS NULL"})
    assert removed == {"deleted": 24, "length": ITEMS}


def test_one_replica_of_each_shard_writes_whoever_is_asked(both: tuple[PodSet, LiveServer]) -> None:
    pods, _ = both
    before = _fences(pods)
    for turn in range(30):
        item = {
            "id": f"item-{turn}",
            "vector": _items()[turn]["vector"],
            "metadata": _items()[turn]["metadata"],
        }
        _post(pods.all[turn % 6], "add", {"items": [item]})
    for shard in range(3):
        writers = [_state(pods.pods[shard, replica])["shards"][0]["writer"] for replica in range(2)]
        assert writers.count(True) == 1
    assert _fences(pods) - before <= 3


def _fences(pods: PodSet) -> int:
    found = 0
    for pod in pods.all:
        text = httpx.get(f"{pod.url}{PATH}/stats", timeout=60).json()
        found = max(found, sum(shard["fences"] for shard in text["shards"]))
    return found


def _state(pod: Pod) -> dict[str, Any]:
    answer = pod.internal("/state")
    assert answer.status_code == 200, answer.text
    state: dict[str, Any] = answer.json()
    assert state["ready"] is True
    [index] = state["indexes"]
    return dict(index)


def test_a_named_snapshot_covers_every_shard(both: tuple[PodSet, LiveServer]) -> None:
    pods, _ = both
    taken = _post(pods.all[5], "snapshot", {"name": "monday"})
    assert [file["shard"] for file in taken["files"]] == [0, 1, 2]
    twice = httpx.post(f"{pods.all[0].url}{PATH}/snapshot", json={"name": "monday"}, timeout=60)
    assert twice.status_code == 409
    plain = _post(pods.all[0], "snapshot", {})
    assert plain["name"] is None
    for shard in range(3):
        told = [_state(pods.pods[shard, replica])["shards"][0] for replica in range(2)]
        [writer] = [state for state in told if state["writer"]]
        assert 0 < writer["snapshot_position"] <= writer["position"]


def test_what_is_declared_is_not_created_or_dropped_and_others_are_not_here(
    both: tuple[PodSet, LiveServer],
) -> None:
    pods, _ = both
    base = f"{pods.all[0].url}/v1/vectors/index"
    created = httpx.post(base, json={"name": "products", "dimension": 3}, timeout=60)
    assert (created.status_code, httpx.delete(f"{base}/products", timeout=60).status_code) == (409, 409)
    assert "VectorIndex/shop/products" in created.json()["detail"]
    assert httpx.post(base, json={"name": "other", "dimension": 3}, timeout=60).status_code == 404
    assert httpx.get(f"{base}/other", timeout=60).status_code == 404
    assert httpx.delete(f"{base}/other", timeout=60).status_code == 404
    assert httpx.get(base, timeout=60).json() == {"names": ["products"], "count": 1}


def test_internal_routes_want_the_peer_key(both: tuple[PodSet, LiveServer]) -> None:
    pods, alone = both
    url = f"{pods.all[0].url}/internal/state"
    assert httpx.get(url, timeout=60).status_code == 401
    assert httpx.get(url, headers={"authorization": f"Bearer {PEER_KEY}x"}, timeout=60).status_code == 401
    assert httpx.get(url, headers={"authorization": f"Bearer {PEER_KEY}"}, timeout=60).status_code == 200
    assert httpx.get(f"{alone.url}/internal/state", timeout=60).json()["ready"] is True
    assert httpx.get(f"{alone.url}/v1/internal/state", timeout=60).status_code == 404


def test_ef_search_and_renewal(both: tuple[PodSet, LiveServer]) -> None:
    pods, _ = both
    changed = pods.all[0].internal("/indexes/products/ef-search", {"ef_search": 99})
    assert changed.json()["ef_search"] == 99
    assert pods.all[0].internal("/indexes/products/ef-search", {"ef_search": 0}).status_code == 400
    renewed = pods.all[0].internal("/indexes/products/renew", {})
    assert renewed.status_code == 200
    assert renewed.json()["serving"] is True
    assert renewed.json()["owner"] == "VectorIndex/shop/products"
    assert pods.all[0].internal("/indexes/other/renew", {}).status_code == 404


def test_a_writer_that_hangs_is_replaced_within_the_deadline_and_nothing_is_done_twice(
    both: tuple[PodSet, LiveServer],
) -> None:
    pods, _ = both
    item = {"items": [{"id": "item-1", "vector": _items()[1]["vector"], "metadata": _items()[1]["metadata"]}]}
    shard = names.shard_of("item-1", 3)
    _post(pods.all[0], "add", item)
    writer = next(
        pods.pods[shard, replica]
        for replica in range(2)
        if _state(pods.pods[shard, replica])["shards"][0]["writer"]
    )
    others = [pod for pod in pods.all if pod is not writer]
    os.kill(writer.process.pid, signal.SIGSTOP)
    try:
        asked = {**item, "items": [*item["items"], {"id": "late", "vector": [1.0] * DIMENSION}]}
        for pod in (pods.pods[(shard + 1) % 3, 0], *others):
            answer = httpx.post(
                f"{pod.url}{PATH}/add", json=asked, headers={"idempotency-key": "late-1"}, timeout=60
            )
            assert answer.status_code == 200, answer.text
            assert answer.json()["added"] == 2
    finally:
        os.kill(writer.process.pid, signal.SIGCONT)
    assert _post(writer, "count", {})["count"] == ITEMS + 1
    assert _post(writer, "delete", {"ids": ["late"]}) == {"deleted": 1, "length": ITEMS}


async def test_an_index_that_is_wholly_elsewhere_is_exported_and_copied(
    both: tuple[PodSet, LiveServer], minio: MinioServer, tmp_path: Path
) -> None:
    pods, _ = both
    runtime = SystemRuntime(1)
    store = await open_store(pods.data, runtime, s3=minio.settings(), probed=False)
    near = Neighbours(runtime, PeerKey(runtime, PEER_KEY))
    record = await incarnations.current(store, "products")
    assert record is not None
    far = Collection(
        store, runtime, EngineSettings(), "products", record, Pods(near, shard_url=pods.shard_url)
    )
    await far.open()
    await far.refresh(Consistency.STRONG)
    assert (far.length, far.shard_list, far.is_whole) == (ITEMS, (), False)
    await far.export(tmp_path / "v2.lhv1", 2)
    local = Indexes(MemoryStore(), runtime)
    copy = await local.import_snapshot("copy", tmp_path / "v2.lhv1")
    want = {item["id"]: item for item in _items()}
    held, after = [], None
    while True:
        page, after = await copy.scroll(after, 500)
        held += page
        if after is None:
            break
    assert {item.id for item in held} == want.keys()
    for item in held[::50]:
        np.testing.assert_array_equal(item.vector, np.float32(want[item.id]["vector"]))
    await local.close()
    await far.close()
    await near.close()
    await store.close()
    runtime.close()
