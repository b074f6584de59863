"""The two acceptance scripts of the earlier system, through the gateway Service against the pool of two replicas.

What was `kill -9` there is `kubectl delete pod --force` here, of every pod of the pool, or of one in turn.
"""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from e2e.release import Release
from e2e.waiting import until

DIMENSION = 64


@pytest.fixture
def http(lakehouse: Release) -> Iterator[httpx.Client]:
    with lakehouse.http() as client:
        yield client


def vectors(count: int, dimension: int) -> list[list[float]]:
    rows = np.random.default_rng(count).standard_normal((count, dimension)).astype(np.float32)
    return [[float(x) for x in row] for row in rows]


def items(count: int, dimension: int) -> list[dict[str, object]]:
    return [
        {"id": f"w-{n:03}", "vector": vector, "metadata": {"n": n}}
        for n, vector in enumerate(vectors(count, dimension))
    ]


def kill_pool(release: Release) -> None:
    """Every pod of the pool at once, without a word of warning, and wait for those that come after them."""
    pods = [pod["metadata"]["name"] for pod in release.pods("pool")]
    assert len(pods) == 2
    release.cluster.kubectl(
        "delete", "pod", *pods, "--force", "--grace-period=0", namespace=release.namespace
    )
    release.cluster.wait_for_rollout(release.namespace, f"{release.name}-pool")
    with release.http() as client:
        until("the gateway to reach the pool", lambda: client.get("/v1/vectors/index").status_code == 200)


def test_create_add_search_and_refuse(http: httpx.Client) -> None:
    created = http.post("/v1/vectors/index", json={"name": "workers_demo", "dimension": DIMENSION})
    assert created.status_code == 201
    assert created.json() == {
        "params": {
            "name": "workers_demo",
            "dimension": DIMENSION,
            "m": 16,
            "ef_search": created.json()["params"]["ef_search"],
            "distance": "cosine",
        },
        "length": 0,
    }
    added = http.post("/v1/vectors/index/workers_demo/add", json={"items": items(200, DIMENSION)})
    assert (added.status_code, added.json()) == (200, {"added": 200, "length": 200})

    query = {"vector": vectors(200, DIMENSION)[42], "k": 5}
    for _ in range(4):  # whichever pod answers
        found = http.post("/v1/vectors/index/workers_demo/search", json=query)
        assert found.status_code == 200
        results = found.json()["results"]
        assert len(results) == 5
        assert results[0]["id"] == "w-042"
        assert abs(results[0]["distance"]) < 1e-5
        assert results[0]["metadata"] == {"n": 42}
        assert [hit["distance"] for hit in results] == sorted(hit["distance"] for hit in results)

    narrow = http.post("/v1/vectors/index/workers_demo/search", json={"vector": [1.0, 2.0], "k": 5})
    assert narrow.status_code == 400
    assert narrow.headers["content-type"] == "application/problem+json"
    missing = http.post("/v1/vectors/index/nowhere/search", json=query)
    assert missing.status_code == 404
    again = http.post("/v1/vectors/index", json={"name": "workers_demo", "dimension": DIMENSION})
    assert again.status_code == 409
    assert http.get("/v1/vectors/index/workers_demo").json()["length"] == 200
    assert http.delete("/v1/vectors/index/workers_demo").status_code == 204


def test_an_index_outlives_its_pods_and_a_dropped_one_stays_dropped(
    lakehouse: Release, http: httpx.Client
) -> None:
    file = "/v1/storage/get/_vectors/persist_demo.lhv1"
    created = http.post(
        "/v1/vectors/index", json={"name": "persist_demo", "dimension": 8, "distance": "cosine"}
    )
    assert created.status_code == 201
    added = http.post("/v1/vectors/index/persist_demo/add", json={"items": items(50, 8)})
    assert (added.status_code, added.json()) == (200, {"added": 50, "length": 50})
    stored = http.get(file)
    assert stored.status_code == 200
    assert stored.content.startswith(b"LHV1")

    kill_pool(lakehouse)
    assert "persist_demo" in http.get("/v1/vectors/index").json()["names"]
    index = http.get("/v1/vectors/index/persist_demo").json()
    assert (index["length"], index["params"]["dimension"], index["params"]["distance"]) == (50, 8, "cosine")
    query = {"vector": vectors(50, 8)[1], "k": 3}
    first = http.post("/v1/vectors/index/persist_demo/search", json=query).json()["results"][0]
    assert first["id"] == "w-001"
    assert abs(first["distance"]) < 1e-5

    assert http.delete("/v1/vectors/index/persist_demo").status_code == 204
    assert http.get(file).status_code == 404
    kill_pool(lakehouse)
    assert "persist_demo" not in http.get("/v1/vectors/index").json()["names"]
    assert http.get("/v1/vectors/index/persist_demo").status_code == 404
    assert http.get(file).status_code == 404


def test_nothing_is_answered_without_a_key(lakehouse: Release) -> None:
    with lakehouse.http("") as nobody:
        assert nobody.get("/v1/vectors/index").status_code == 401
        assert nobody.get("/health").status_code == 200
    with lakehouse.http("read") as reader:
        refused = reader.post("/v1/vectors/index", json={"name": "refused", "dimension": 2})
        assert refused.status_code == 403
