"""A gateway with a routing table: declared indexes are served by their own pods or not at all, the rest by the pool."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import orjson
import pytest

from lakehouse.server.auth import new_key
from live_server import LiveServer
from ports import free_port

KEY, KEY_SHA256 = new_key()
KEYS = orjson.dumps([{"name": "tests", "right": "admin", "sha256": KEY_SHA256}]).decode()
POOL_ROLES = "storage,catalog,ingest,vectors"
SEEN_S_MAX = 120.0

pytestmark = pytest.mark.xdist_group("routed")


class Deployment:
    """A gateway, a pool, a process for SQL, and the pods of `products` and of `fresh`, each on data of its own."""

    def __init__(self, home: Path) -> None:
        self.table = home / "routes.json"
        data = {name: str(home / name) for name in ("pool", "products", "fresh")}
        self.pool = LiveServer(
            data["pool"], home / "pool.log", args=["--roles", POOL_ROLES], env={"LAKEHOUSE_KEYS": KEYS}
        )
        vectors = ["--roles", "vectors"]
        self.products = LiveServer(
            data["products"], home / "products.log", args=vectors, env={"LAKEHOUSE_KEYS": KEYS}
        )
        port = free_port()
        urls = {
            f"LAKEHOUSE_{role}_URL": self.pool.url for role in ("STORAGE", "CATALOG", "INGEST", "VECTORS")
        }
        query_port = free_port()
        urls |= {"LAKEHOUSE_KEYS": KEYS, "LAKEHOUSE_QUERY_URL": f"http://127.0.0.1:{query_port}"}
        self.gateway = LiveServer(
            data["pool"],
            home / "gateway.log",
            port=port,
            args=["--roles", "gateway"],
            env={**urls, "LAKEHOUSE_ROUTES": str(self.table)},
        )
        self.query = LiveServer(
            data["pool"],
            home / "query.log",
            port=query_port,
            args=["--roles", "query"],
            env={"LAKEHOUSE_KEYS": KEYS, "LAKEHOUSE_VECTORS_URL": f"http://127.0.0.1:{port}"},
        )

    @property
    def servers(self) -> tuple[LiveServer, ...]:
        return self.pool, self.products, self.query, self.gateway

    def write(self, **changes: object) -> None:
        """The table, with `products` as it is but for the changes."""
        self.write_text(json.dumps({"version": 1, "indexes": {"products": self.place(**changes)}}))

    def place(self, **changes: object) -> dict[str, object]:
        return {
            "url": self.products.url,
            "resource": "VectorIndex/shop/products",
            "ready": True,
            "read_only": False,
            **changes,
        }

    def write_text(self, text: str) -> None:
        """Whole or not at all, as a mounted ConfigMap changes."""
        new = self.table.with_suffix(".new")
        new.write_text(text)
        new.replace(self.table)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("routed"))
    made.write()
    with ExitStack() as stack:
        for server in made.servers:
            stack.enter_context(server)
            server.spawn()
        for server in made.servers:
            server.wait_ready()
        with client_of(made.products) as direct:
            direct.post("/vectors/index", json={"name": "products", "dimension": 2}).raise_for_status()
        yield made


def client_of(server: LiveServer) -> httpx.Client:
    return httpx.Client(base_url=f"{server.url}/v1", timeout=60, headers={"authorization": f"Bearer {KEY}"})


@pytest.fixture
def through(deployment: Deployment) -> Iterator[httpx.Client]:
    deployment.write()
    with client_of(deployment.gateway) as client:
        seen(client, 200)
        yield client


def seen(client: httpx.Client, status: int) -> httpx.Response:
    """The answer about `products` once it has this status: the gateway looks at its table now and then."""
    deadline = time.monotonic() + SEEN_S_MAX
    while (answer := client.get("/vectors/index/products")).status_code != status:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return answer


ITEM = {"items": [{"id": "a", "vector": [1, 0]}]}


def test_a_declared_index_is_served_by_its_own_pods_and_others_by_the_pool(
    deployment: Deployment, through: httpx.Client
) -> None:
    assert through.post("/vectors/index", json={"name": "loose", "dimension": 2}).status_code == 201
    for name in ("products", "loose"):
        assert through.post(f"/vectors/index/{name}/add", json=ITEM).json() == {"added": 1, "length": 1}
        found = through.post(f"/vectors/index/{name}/search", json={"vector": [1, 0]}).json()
        assert [hit["id"] for hit in found["results"]] == ["a"]
        assert through.get(f"/vectors/index/{name}/items/a").status_code == 200
    with client_of(deployment.pool) as pool, client_of(deployment.products) as pods:
        assert pool.get("/vectors/index").json()["names"] == ["loose"]
        assert pods.get("/vectors/index").json()["names"] == ["products"]


def test_the_list_holds_the_pools_indexes_and_the_declared_ones_that_answer(
    deployment: Deployment, through: httpx.Client
) -> None:
    through.post("/vectors/index", json={"name": "listed", "dimension": 2})
    names = through.get("/vectors/index").json()
    assert {"listed", "products"} <= set(names["names"])
    assert names["count"] == len(names["names"])
    deployment.write(ready=False)
    seen(through, 503)
    assert "products" not in through.get("/vectors/index").json()["names"]


def test_what_is_declared_and_not_ready_is_503_even_where_the_pool_has_that_name(
    deployment: Deployment, through: httpx.Client
) -> None:
    with client_of(deployment.pool) as pool:
        assert pool.post("/vectors/index", json={"name": "products", "dimension": 2}).status_code == 201
        deployment.write(ready=False)
        answer = seen(through, 503)
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["outcome"] == "not_committed"
        assert "VectorIndex/shop/products" in answer.json()["detail"]
        searched = through.post("/vectors/index/products/search", json={"vector": [1, 0]})
        assert searched.status_code == 503
        assert pool.delete("/vectors/index/products").status_code == 204


@pytest.mark.parametrize("ready", [True, False])
def test_creating_and_deleting_a_declared_index_is_its_resources(
    deployment: Deployment, through: httpx.Client, ready: bool
) -> None:
    deployment.write(ready=ready)
    seen(through, 200 if ready else 503)
    created = through.post("/vectors/index", json={"name": "products", "dimension": 2})
    deleted = through.delete("/vectors/index/products")
    for answer in (created, deleted):
        assert answer.status_code == 409, answer.text
        assert "VectorIndex/shop/products" in answer.json()["detail"]


def test_a_create_that_cannot_be_read_is_the_pools_to_refuse(through: httpx.Client) -> None:
    assert through.post("/vectors/index", content=b"{").status_code == 400
    assert through.post("/vectors/index", json={"dimension": 2}).status_code == 400
    large = b'{"name": "large", "dimension": 2' + b" " * (2 << 20) + b"}"
    assert through.post("/vectors/index", content=large).status_code == 201
    assert through.post("/vectors/index", content=iter([large])).status_code == 409


def test_sql_searches_declared_indexes_through_the_gateway(through: httpx.Client) -> None:
    through.post("/vectors/index/products/add", json=ITEM)
    asked = {"sql": "SELECT id FROM vector_search('products', [1, 0], k := 1)"}
    assert through.post("/sql", json=asked).json()["rows"] == [["a"]]


def test_a_table_that_cannot_be_read_changes_nothing(deployment: Deployment, through: httpx.Client) -> None:
    for text in ("{", '{"version": 9, "indexes": {}}', '{"version": 1, "indexes": {"products": {}}}'):
        deployment.write_text(text)
        time.sleep(1.2)  # a look at the file comes between
        assert through.get("/vectors/index/products").status_code == 200
    deployment.table.unlink()
    time.sleep(1.2)
    assert through.get("/vectors/index/products").status_code == 200
    deployment.write(ready=False)
    seen(through, 503)


def test_pods_that_moved_are_found_and_a_write_waits_for_them(
    deployment: Deployment, through: httpx.Client
) -> None:
    """The address stays, as a Service's does; a request that arrives in between is not lost."""
    through.post("/vectors/index/products/add", json=ITEM)
    deployment.products.terminate()
    assert through.post("/vectors/index/products/add", json=ITEM).status_code == 503
    deployment.products.start()
    assert through.post("/vectors/index/products/add", json=ITEM).status_code == 200


def test_without_a_table_a_gateway_is_not_ready_and_guesses_nothing(
    deployment: Deployment, tmp_path: Path
) -> None:
    urls = {
        f"LAKEHOUSE_{role}_URL": deployment.pool.url
        for role in ("STORAGE", "CATALOG", "INGEST", "QUERY", "VECTORS")
    }
    env = {**urls, "LAKEHOUSE_ROUTES": str(tmp_path / "routes.json"), "LAKEHOUSE_KEYS": KEYS}
    with LiveServer("memory:", tmp_path / "log", args=["--roles", "gateway"], env=env) as server:
        server.spawn()
        said = ""
        deadline = time.monotonic() + SEEN_S_MAX
        while "routes.json" not in said:
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
            with suppress(httpx.TransportError):
                answer = httpx.get(f"{server.url}/readyz", timeout=60)
                assert answer.status_code == 503, answer.text
                said = answer.json()["checks"]["routes"]
        with client_of(server) as client:
            asked = client.get("/vectors/index/loose")
            assert asked.status_code == 503, asked.text
            (tmp_path / "routes.json").write_text('{"version": 1, "indexes": {}}')
            server.wait_ready()
            assert client.get("/vectors/index/nothing").status_code == 404


def test_routes_and_the_vectors_role_exclude_each_other(tmp_path: Path) -> None:
    env = {"LAKEHOUSE_ROUTES": str(tmp_path / "routes.json")}
    with LiveServer("memory:", tmp_path / "log", env=env) as server:
        server.spawn()
        assert server.process.wait(60) == 2
        assert "routes are for a process that runs the gateway role" in server.log_tail()
