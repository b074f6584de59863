"""A gateway with a routing table: declared indexes are served by their own pods or not at all, the rest by the pool.

What a resource declares, an index or a dataset, is changed by that resource only.
"""

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

    def write(self, *datasets: str, **changes: object) -> None:
        """The table, with `products` as it is but for the changes, and these datasets."""
        indexes = {"products": self.place(**changes)}
        table = {"version": 1, "namespace": "shop", "indexes": indexes, "datasets": datasets}
        self.write_text(json.dumps(table))

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


def test_an_index_that_is_suspended_is_refused_as_that(deployment: Deployment, through: httpx.Client) -> None:
    deployment.write(ready=False, suspended=True)
    refused = seen(through, 503)
    assert "the index is suspended, as VectorIndex/shop/products says" in refused.text
    assert refused.headers["retry-after"] == "30"
    deployment.write(ready=True, suspended=True)  # its pods have not gone yet
    seen(through, 200)


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


ROWS = b"id\n1\n"
REFUSED = (
    "the dataset is declared by Dataset/shop/clicks: change, apply or delete that resource. dataset=`clicks`"
)


@pytest.fixture
def declaring(deployment: Deployment, through: httpx.Client) -> httpx.Client:
    """A client of the gateway, which knows that the dataset `clicks` is declared."""
    deployment.write("clicks")
    deadline = time.monotonic() + SEEN_S_MAX
    while (answer := through.delete("/catalog/dataset/clicks")).status_code != 409:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.05)
    return through


def form(*parts: tuple[str, bytes], chunks: int = 1) -> tuple[dict[str, str], Iterator[bytes]]:
    """Headers and body of a form with these fields in this order, sent in so many chunks."""
    body = b"--x" + b"".join(
        b'\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n--x'
        % (name.encode(), b'; filename="a.csv"' if name == "file" else b"", value)
        for name, value in parts
    )
    body += b"--\r\n"
    size = -(-len(body) // chunks)
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return {"content-type": "multipart/form-data; boundary=x"}, pieces


def post_form(
    client: httpx.Client, *parts: tuple[str, bytes], query: str = "", chunks: int = 1
) -> httpx.Response:
    headers, pieces = form(*parts, chunks=chunks)
    return client.post(f"/ingest{query}", headers=headers, content=pieces)


NAMED = ("name", b"clicks")
FILE = ("file", ROWS)
LARGE = ("file", b"id\n" + b"1234567\n" * (1 << 18))
"""2 MiB: more than the gateway keeps of a body."""


def test_a_declared_dataset_takes_no_file_and_no_deletion_through_the_gateway(
    deployment: Deployment, declaring: httpx.Client
) -> None:
    answers = [
        declaring.post("/ingest?name=clicks", content=ROWS),
        declaring.post("/ingest?name=%63licks", content=ROWS),
        declaring.post("/ingest?name=clicks", files={"file": ("a.csv", ROWS)}),
        declaring.post("/ingest", files={"file": ("a.csv", ROWS)}, data={"name": "clicks"}),
        post_form(declaring, NAMED, LARGE, chunks=9),
        post_form(declaring, LARGE, NAMED, chunks=9),
        post_form(declaring, ("name", b"other"), NAMED, FILE),
        declaring.delete("/catalog/dataset/clicks"),
        declaring.delete("/catalog/dataset/cl%69cks"),
        declaring.post("/catalog/register", json={"name": "clicks", "schema_fingerprint": "f"}),
    ]
    assert [(answer.status_code, answer.json()["detail"]) for answer in answers] == [(409, REFUSED)] * 10
    with client_of(deployment.pool) as pool:
        assert pool.get("/catalog/manifest/clicks").status_code == 404
        assert pool.get("/ingest").json()["running"] == []
    assert declaring.get("/catalog/manifest/clicks").status_code == 404  # reading it is everybody's


def test_datasets_that_nobody_declares_pass_the_gateway(declaring: httpx.Client) -> None:
    answers = [
        declaring.post("/ingest?name=loose", content=ROWS),
        post_form(declaring, ("name", b"clicks2"), FILE),
        post_form(declaring, LARGE, ("name", b"large"), chunks=9),
        post_form(declaring, NAMED, FILE, query="?name=asked"),
        post_form(declaring, NAMED, ("name", b"last"), FILE),
        declaring.post("/catalog/register", json={"name": "told", "schema_fingerprint": "f"}),
    ]
    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    names = [answer.json()["manifest"]["name"] for answer in answers]
    assert names == ["loose", "clicks2", "large", "asked", "last", "told"]
    assert [declaring.delete(f"/catalog/dataset/{name}").status_code for name in names] == [204] * 6


def test_an_ingest_that_cannot_be_read_is_refused_as_ever(declaring: httpx.Client) -> None:
    answers = [
        declaring.post("/ingest", content=ROWS),
        declaring.post("/ingest?name=%ff", content=ROWS),
        declaring.post("/ingest", content=ROWS, headers={"content-type": "multipart/form-data"}),
        declaring.post(
            "/ingest", content=b"--x", headers={"content-type": "multipart/form-data; boundary=x"}
        ),
        post_form(declaring, NAMED, ("transform", b"\xff"), FILE),
        post_form(declaring, FILE),
        declaring.post("/catalog/register", content=b"{"),
        declaring.post("/catalog/register", json={"name": "clicks"}),
    ]
    assert [answer.status_code for answer in answers] == [400] * 8, [answer.text for answer in answers]


def test_a_gateway_that_keeps_the_catalog_itself_goes_by_the_table_too(
    deployment: Deployment, declaring: httpx.Client, tmp_path: Path
) -> None:
    urls = {f"LAKEHOUSE_{role}_URL": deployment.pool.url for role in ("QUERY", "VECTORS")}
    env = {**urls, "LAKEHOUSE_ROUTES": str(deployment.table), "LAKEHOUSE_KEYS": KEYS}
    roles = ["--roles", "gateway,storage,catalog,ingest"]
    with LiveServer("memory:", tmp_path / "log", args=roles, env=env) as server:
        server.spawn()
        server.wait_ready()
        with client_of(server) as client:
            answers = [
                client.post("/ingest?name=clicks", content=ROWS),
                client.delete("/catalog/dataset/clicks"),
            ]
            assert [(each.status_code, each.json()["detail"]) for each in answers] == [(409, REFUSED)] * 2
            assert client.post("/ingest?name=loose", content=ROWS).status_code == 200


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
            asked = [
                client.get("/vectors/index/loose"),
                client.post("/ingest?name=loose", content=ROWS),
                client.delete("/catalog/dataset/loose"),
            ]
            assert [(each.status_code, each.json()["outcome"]) for each in asked] == [
                (503, "not_committed")
            ] * 3
            (tmp_path / "routes.json").write_text('{"version": 1, "indexes": {}}')
            server.wait_ready()
            assert client.get("/vectors/index/nothing").status_code == 404
            assert client.delete("/catalog/dataset/nothing").status_code == 404


def test_routes_and_the_vectors_role_exclude_each_other(tmp_path: Path) -> None:
    env = {"LAKEHOUSE_ROUTES": str(tmp_path / "routes.json")}
    with LiveServer("memory:", tmp_path / "log", env=env) as server:
        server.spawn()
        assert server.process.wait(60) == 2
        assert "routes are for a process that runs the gateway role" in server.log_tail()
