"""A gateway without roles of its own passes everything on, byte for byte."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from lakehouse.server.auth import new_key
from lakehouse.settings import PROXIED_ROLES, Role
from live_server import LiveServer
from ports import free_port

KEY, KEY_SHA256 = new_key()
KEYS = orjson.dumps([{"name": "tests", "right": "admin", "sha256": KEY_SHA256}]).decode()
CSV = b'id,price,embedding\na,1.5,"[1, 0]"\nb,20,"[0, 1]"\nc,30,"[1, 1]"\n'

pytestmark = pytest.mark.xdist_group("roles")


class Deployment:
    """A process per role, on one directory; each knows where the others are."""

    def __init__(self, home: Path) -> None:
        data = str(home / "data")
        ports = {role: free_port() for role in PROXIED_ROLES}
        urls = {f"LAKEHOUSE_{role.upper()}_URL": f"http://127.0.0.1:{port}" for role, port in ports.items()}
        urls |= {"LAKEHOUSE_KEYS": KEYS}
        self.roles = {
            role: LiveServer(data, home / f"{role}.log", port=port, args=["--roles", role], env=urls)
            for role, port in ports.items()
        }
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
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=f"{deployment.gateway.url}/v1", timeout=60, headers=headers) as client:
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


def test_a_file_that_one_process_ingests_another_lists_and_a_third_queries(through: httpx.Client) -> None:
    for version, rows in ((1, CSV), (2, CSV + b'd,40,"[2, 0]"\n')):
        files = {"file": ("products.csv", rows)}
        done = through.post("/ingest?name=products&types=embedding:FLOAT[]", files=files)
        assert (done.status_code, done.json()["manifest"]["version"]) == (200, version), done.text
    assert through.get("/ingest").json() == {"running": [], "count": 0}
    assert through.get("/catalog/manifest/products").json()["row_count"] == 4
    count = {"sql": 'SELECT (SELECT count(*) FROM products), (SELECT count(*) FROM "products@v1")'}
    answer = through.post("/sql", json=count)
    assert answer.json()["rows"] == [[4, 3]], answer.text
    assert through.delete("/catalog/dataset/products").status_code == 204
    gone = through.post("/sql", json=count)
    assert (gone.status_code, gone.json()["kind"]) == (400, "dataset")
    again = through.post("/ingest?name=products", content=b"other\n1\n").json()
    assert (again["published"], again["existing"]) == (True, False)


def test_sql_searches_the_indexes_of_another_process(through: httpx.Client) -> None:
    through.post("/vectors/index", json={"name": "near", "dimension": 2, "distance": "euclidean"})
    items = [{"id": f"p{n}", "vector": [n, 1], "metadata": {"n": n} if n else None} for n in range(40)]
    assert through.post("/vectors/index/near/add", json={"items": items}).status_code == 200

    def rows(sql: str, *parameters: object) -> object:
        answer = through.post("/sql", json={"sql": sql, "parameters": parameters})
        return answer.json().get("rows", answer.text)

    assert rows("FROM vector_search('near', $1, k := 2)", [0, 1]) == [["p0", 0, None], ["p1", 1, {"n": 1}]]
    filtered = "SELECT id FROM vector_search('near', [0, 1], k := 1, filter := 'n > 20')"
    assert rows(filtered) == [["p21"]]
    by_item = "SELECT id FROM vector_search('near', 'p5', k := 2) ORDER BY id"
    assert rows(by_item) == [["p4"], ["p6"]]
    each = (
        "SELECT t.n, v.id FROM range(40) t(n), vector_search('near', [t.n, 1]::FLOAT[], k := 1) v ORDER BY n"
    )
    assert rows(each) == [[n, f"p{n}"] for n in range(40)]
    named = "SELECT t.id, v.id FROM (VALUES ('p0'), ('p39')) t(id), vector_search('near', t.id, k := 1) v"
    assert rows(named) == [["p0", "p1"], ["p39", "p38"]]
    many = "SELECT count(*) FROM range(3000) t(n), vector_search('near', [t.n, 1]::FLOAT[], k := 2) v"
    assert rows(many) == [[6000]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("vector_search('none', [1, 2])", "none"),
        ("vector_search('../index', [1, 2])", "../index"),
        ("vector_search('wrong', [1, 2, 3])", "dimension"),
        ("vector_search('wrong', 'nobody')", "nobody"),
        ("vector_search('wrong', [1, 2], filter := 'n >')", "filter"),
    ],
)
def test_what_another_process_refuses_is_told(through: httpx.Client, call: str, said: str) -> None:
    through.post("/vectors/index", json={"name": "wrong", "dimension": 2})
    answer = through.post("/sql", json={"sql": f"SELECT * FROM {call}"})
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["detail"]


def test_a_search_while_the_vectors_role_is_down_is_503(
    deployment: Deployment, through: httpx.Client
) -> None:
    through.post("/vectors/index", json={"name": "down", "dimension": 2})
    asked = {"sql": "SELECT * FROM vector_search('down', [1, 2])"}
    deployment.roles[Role.VECTORS].kill()
    answer = through.post("/sql", json=asked)
    assert (answer.status_code, answer.json()["outcome"]) == (503, "not_committed"), answer.text
    assert through.post("/sql", json={"sql": "SELECT 1 AS one"}).json()["rows"] == [[1]]
    deployment.roles[Role.VECTORS].start()
    assert through.post("/sql", json=asked).json()["rows"] == []


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
    assert through.post("/sql", json={}).status_code == 400
    assert httpx.get(f"{deployment.gateway.url}/vectors/index", timeout=60).status_code == 404


def test_a_role_that_is_down_is_503_and_nothing_happened(tmp_path: Path) -> None:
    urls = {
        f"LAKEHOUSE_{role}_URL": f"http://127.0.0.1:{free_port()}" for role in map(str.upper, PROXIED_ROLES)
    }
    with LiveServer("memory:", tmp_path / "log", args=["--roles", "gateway"], env=urls) as server:
        server.start()
        answer = httpx.post(f"{server.url}/v1/vectors/index", json={"name": "g", "dimension": 2}, timeout=60)
        assert (answer.status_code, answer.json()["outcome"]) == (503, "not_committed")
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{server.url}/livez", timeout=60).status_code == 200
