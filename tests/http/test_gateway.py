"""A gateway without roles of its own passes everything on, byte for byte."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from live_server import LiveServer, free_port


class Deployment:
    """A process per role."""

    def __init__(self, home: Path) -> None:
        data = str(home / "data")
        self.roles = {
            role: LiveServer(data, home / f"{role}.log", args=["--roles", role])
            for role in ("storage", "catalog", "vectors")
        }
        urls = {f"LAKEHOUSE_{role.upper()}_URL": server.url for role, server in self.roles.items()}
        self.gateway = LiveServer(data, home / "gateway.log", args=["--roles", "gateway"], env=urls)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("roles"))
    with ExitStack() as stack:
        for server in (*made.roles.values(), made.gateway):
            stack.enter_context(server)
            server.spawn()
        for server in (*made.roles.values(), made.gateway):
            server.wait_ready()
        yield made


@pytest.fixture
def through(deployment: Deployment) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{deployment.gateway.url}/v1", timeout=60) as client:
        yield client


def test_every_role_is_reached(through: httpx.Client) -> None:
    assert through.post("/vectors/index", json={"name": "g", "dimension": 2}).status_code == 201
    items = [{"id": "a/b", "vector": [1, 0], "metadata": {"n": 1}}, {"id": "c", "vector": [0, 1]}]
    added = through.post("/vectors/index/g/add", json={"items": items}, headers={"idempotency-key": "k"})
    assert added.json() == {"added": 2, "length": 2}
    assert added.headers["lakehouse-position"]
    query = np.array([1, 0], dtype="<f4").tobytes()
    found = through.post(
        "/vectors/index/g/search?k=1&filter=n%20%3D%201",
        content=query,
        headers={"content-type": "application/octet-stream"},
    )
    assert found.json()["results"] == [{"id": "a/b", "distance": 0.0, "metadata": {"n": 1}}]
    assert through.get("/vectors/index/g/items/a%2Fb").json()["vector"] == [1, 0]
    assert through.put("/storage/put/x%2Fy/z", content=b"bytes").json()["key"] == "x%2Fy/z"
    assert through.get("/storage/get/x%2Fy/z").content == b"bytes"
    assert through.delete("/storage/delete/x%2Fy/z").status_code == 204
    registered = through.post("/catalog/register", json={"name": "d", "schema_fingerprint": "f"})
    assert registered.json()["existing"] is False
    assert through.get("/catalog/list").json()["count"] == 1


def test_a_large_object_streams_through(through: httpx.Client) -> None:
    content = bytes(range(256)) * (40 << 12)

    def chunks() -> Iterator[bytes]:
        for at in range(0, len(content), 1 << 20):
            yield content[at : at + (1 << 20)]

    assert through.put("/storage/put/large", content=chunks()).json()["size"] == len(content)
    assert through.get("/storage/get/large").content == content


def test_one_request_id_goes_all_the_way(through: httpx.Client) -> None:
    answer = through.get("/vectors/index/none", headers={"x-request-id": "trace-7"})
    assert answer.status_code == 404
    assert answer.headers.get_list("x-request-id") == ["trace-7"]
    assert answer.json()["request_id"] == "trace-7"
    assert answer.headers["content-type"] == "application/problem+json"


def test_limits_and_missing_routes_are_problems_at_the_gateway_too(
    through: httpx.Client, deployment: Deployment
) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield b" " * (1 << 20)

    assert through.post("/vectors/index/g/add", content=chunks()).status_code == 413
    assert through.get("/vectors/nothing").status_code == 404
    assert through.patch("/vectors/index").status_code == 405
    assert through.post("/sql", json={}).status_code == 501
    assert httpx.get(f"{deployment.gateway.url}/vectors/index").status_code == 404


def test_a_role_that_is_down_is_503_and_nothing_happened(tmp_path: Path) -> None:
    urls = {
        f"LAKEHOUSE_{role}_URL": f"http://127.0.0.1:{free_port()}"
        for role in ("STORAGE", "CATALOG", "VECTORS")
    }
    with LiveServer("memory:", tmp_path / "log", args=["--roles", "gateway"], env=urls) as server:
        server.start()
        answer = httpx.post(f"{server.url}/v1/vectors/index", json={"name": "g", "dimension": 2})
        assert (answer.status_code, answer.json()["outcome"]) == (503, "not_committed")
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{server.url}/livez").status_code == 200
