"""The two acceptance scripts of the earlier system, for whatever serves: its clients keep working."""

from collections.abc import Callable

import httpx
import numpy as np

DIMENSION = 64


def vectors(count: int, dimension: int) -> list[list[float]]:
    rows = np.random.default_rng(count).standard_normal((count, dimension)).astype(np.float32)
    return [[float(x) for x in row] for row in rows]


def items(count: int, dimension: int) -> list[dict[str, object]]:
    return [
        {"id": f"w-{n:03}", "vector": vector, "metadata": {"n": n}}
        for n, vector in enumerate(vectors(count, dimension))
    ]


def listed(http: httpx.Client) -> list[str]:
    """The names there are, sorted; their count is told with them."""
    answer = http.get("/v1/vectors/index").json()
    assert answer == {"names": answer["names"], "count": len(answer["names"])}
    return sorted(answer["names"])


def create_add_search_and_refuse(http: httpx.Client, rounds: int = 1) -> None:
    """The first script; the search is asked `rounds` times, so that each of several replicas answers one."""
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
    for _ in range(rounds):
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


def outlive_kills_and_stay_dropped(http: httpx.Client, kill: Callable[[], None]) -> None:
    """The second script; `kill` ends whoever serves, without a word of warning, and waits for those that come after."""
    before = listed(http)
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

    kill()
    assert listed(http) == sorted([*before, "persist_demo"])
    index = http.get("/v1/vectors/index/persist_demo").json()
    assert (index["length"], index["params"]["dimension"], index["params"]["distance"]) == (50, 8, "cosine")
    query = {"vector": vectors(50, 8)[1], "k": 3}
    first = http.post("/v1/vectors/index/persist_demo/search", json=query).json()["results"][0]
    assert first["id"] == "w-001"
    assert abs(first["distance"]) < 1e-5

    assert http.delete("/v1/vectors/index/persist_demo").status_code == 204
    assert http.get(file).status_code == 404
    kill()
    assert listed(http) == before
    assert http.get("/v1/vectors/index/persist_demo").status_code == 404
    assert http.get(file).status_code == 404
