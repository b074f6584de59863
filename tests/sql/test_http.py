"""The SQL routes of a live server."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from live_server import LiveServer, serving
from sql_lake import PACKAGES

FOREVER = "SELECT sum(i) FROM range(100000000000000) t(i)"

pytestmark = pytest.mark.xdist_group("sql over http")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home: Path = tmp_path_factory.mktemp("sql-server")
    with serving(str(home / "data"), home / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as connected:
        assert connected.put("/storage/put/files/p.parquet", content=PACKAGES.read_bytes()).status_code == 200
        registered = {"name": "packages", "schema_fingerprint": "f", "objects": [{"key": "files/p.parquet"}]}
        assert connected.post("/catalog/register", json=registered).status_code == 200
        yield connected


def test_the_old_contract(client: httpx.Client) -> None:
    answer = client.post("/sql", json={"sql": "SELECT count(*) AS n FROM packages"})
    assert answer.json() == {
        "columns": [{"name": "n", "type": "BIGINT"}],
        "rows": [[5115]],
        "row_count": 1,
        "truncated": False,
    }
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["lakehouse-truncated"] == "false"
    assert answer.headers["lakehouse-row-count"] == "1"
    assert len(answer.headers["lakehouse-query-id"]) == 32


def test_a_failed_query_is_a_problem_with_its_place(client: httpx.Client) -> None:
    answer = client.post("/sql", json={"sql": "SELECT *\nFROM nix"})
    assert answer.status_code == 400
    problem = answer.json()
    assert (problem["kind"], problem["line"], problem["column"]) == ("dataset", 2, 6)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["lakehouse-query-id"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"sql": 1},
        {"sql": "SELECT 1", "timeout_s": 0},
        {"sql": "SELECT 1", "timeout_s": 5e-324, "wait_s": 0},
        {"sql": "SELECT 1", "parameters": "text", "wait_s": 0},
        {"sql": "SELECT 1", "parameters": False, "wait_s": 0},
        {"sql": "SELECT 1", "row_limit": 0},
        {"sql": "SELECT 1", "wait_s": 1e9},
        {"sql": "SELECT 1", "parameters": 5},
        {"sql": "SELECT 1; SELECT 2"},
        {"sql": ""},
    ],
)
def test_a_wrong_request_is_400(client: httpx.Client, body: dict[str, object]) -> None:
    assert client.post("/sql", json=body).status_code == 400


def test_accept_chooses_the_form(client: httpx.Client) -> None:
    sql = {"sql": "SELECT id FROM packages ORDER BY id LIMIT 2"}
    csv = client.post("/sql", json=sql, headers={"accept": "text/csv"})
    assert csv.text == '"id"\n"0ad"\n"0install-core"\n'
    arrow = client.post("/sql", json=sql, headers={"accept": "application/vnd.apache.arrow.stream"})
    assert pa.ipc.open_stream(arrow.content).read_all().column("id").to_pylist() == ["0ad", "0install-core"]
    refused = client.post("/sql", json=sql, headers={"accept": "image/png"})
    assert refused.status_code == 406
    assert "text/csv" in refused.json()["detail"]


def test_a_large_result_streams_and_its_status_tells_the_rest(client: httpx.Client) -> None:
    body = {"sql": "SELECT * FROM range(1000000)", "row_limit": 500_000}
    answer = client.post("/sql", json=body, headers={"accept": "text/csv"})
    assert answer.headers["lakehouse-truncated"] == "maybe"
    assert len(answer.text.splitlines()) == 500_001
    status = client.get(f"/sql/{answer.headers['lakehouse-query-id']}").json()
    assert (status["status"], status["row_count"], status["truncated"]) == ("succeeded", 500_000, True)


def test_a_result_that_fails_after_it_began_is_cut_off(client: httpx.Client) -> None:
    sql = "SELECT CASE WHEN i < 900000 THEN '123' ELSE 'x' END::INTEGER FROM range(1000000) t(i)"
    with pytest.raises(httpx.RemoteProtocolError):
        client.post("/sql", json={"sql": sql}, headers={"accept": "text/csv"})


def test_a_query_that_takes_long_is_fetched_by_its_id(client: httpx.Client) -> None:
    body = {"sql": "SELECT count(*) FROM range(100000000) t(i) WHERE i % 7 = 1", "wait_s": 0}
    asked = client.post("/sql", json=body)
    assert asked.status_code == 202
    assert asked.json()["status"] in ("queued", "running")
    place = asked.headers["location"].removeprefix("/v1")
    assert place == f"/sql/{asked.headers['lakehouse-query-id']}"
    while (answer := client.get(place, params={"wait_s": 20})).status_code == 202:
        assert answer.json()["seconds"] < 30
    assert answer.json()["rows"] == [[14285715]]
    assert client.get(place).content == answer.content
    assert client.delete(place).status_code == 204
    assert client.get(place).status_code == 404


def test_a_kept_result_is_in_the_form_asked_at_first(client: httpx.Client) -> None:
    body = {"sql": "SELECT 1 AS a", "wait_s": 20}
    answer = client.post("/sql", json=body, headers={"accept": "text/csv"})
    assert (answer.status_code, answer.text) == (200, '"a"\n1\n')
    again = client.get(f"/sql/{answer.headers['lakehouse-query-id']}")
    assert (again.text, again.headers["content-type"]) == ('"a"\n1\n', "text/csv; charset=utf-8")


def test_a_failure_is_kept_too(client: httpx.Client) -> None:
    asked = client.post("/sql", json={"sql": "SELECT nope", "wait_s": 20})
    assert asked.status_code == 400
    again = client.get(f"/sql/{asked.headers['lakehouse-query-id']}")
    assert again.status_code == 400
    assert again.json()["column"] == 8


def test_delete_ends_a_running_query(client: httpx.Client) -> None:
    asked = client.post("/sql", json={"sql": FOREVER, "wait_s": 0.2}).json()
    shown = {one["id"]: one for one in client.get("/sql").json()["queries"]}
    assert shown[asked["id"]]["status"] == "running"
    assert client.delete(f"/sql/{asked['id']}").status_code == 204
    assert client.delete(f"/sql/{asked['id']}").status_code == 404


def test_a_client_that_hangs_up_ends_its_query(client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/sql", json={"sql": FOREVER}, timeout=0.5)
    give_up = time.monotonic() + 20
    while client.get("/sql").json()["queries"][0]["status"] != "cancelled":
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.parametrize("attempt", range(5))
def test_a_reader_that_stops_at_the_end_of_the_rows_was_served(client: httpx.Client, attempt: int) -> None:
    """An Arrow reader does not wait for the end of the HTTP answer, which says nothing more to it."""
    body = {"sql": "SELECT i, repeat('x', 50) AS x FROM range(3000000) t(i)", "row_limit": 100_000 + attempt}
    headers = {"accept": "application/vnd.apache.arrow.stream"}
    with httpx.stream("POST", f"{client.base_url}sql", json=body, headers=headers, timeout=60) as answer:
        assert answer.headers["lakehouse-truncated"] == "maybe"
        received = bytearray()
        for chunk in answer.iter_raw():
            received += chunk
            if received.endswith(b"\xff\xff\xff\xff\x00\x00\x00\x00"):  # of an Arrow stream the end
                break
    place = f"/sql/{answer.headers['lakehouse-query-id']}"
    while (told := client.get(place, params={"status": True}).json())["status"] == "running":
        time.sleep(0.01)
    assert (told["status"], told["row_count"], told["truncated"]) == ("succeeded", 100_000 + attempt, True)


def test_time_out_is_told_by_its_kind(client: httpx.Client) -> None:
    answer = client.post("/sql", json={"sql": FOREVER, "timeout_s": 0.3})
    assert (answer.status_code, answer.json()["kind"]) == (400, "timeout")


def test_parameters_come_as_json(client: httpx.Client) -> None:
    body = {"sql": "SELECT $name || '!', $n", "parameters": {"name": 'a"b', "n": 12345678901234567890123}}
    assert b'["a\\"b!",12345678901234567890123]' in client.post("/sql", json=body).content


def test_explain_comes_with_the_answer(client: httpx.Client) -> None:
    profile = client.post("/sql", json={"sql": "SELECT 1", "explain": True}).json()["profile"]
    assert profile["seconds"] > 0


def test_vector_search_reaches_the_indexes_of_the_process(client: httpx.Client) -> None:
    client.post("/vectors/index", json={"name": "near", "dimension": 2})
    items = [{"id": "a", "vector": [1, 0], "metadata": {"n": 1}}, {"id": "b", "vector": [0, 1]}]
    client.post("/vectors/index/near/add", json={"items": items})
    body = {"sql": "SELECT id, metadata FROM vector_search('near', $1, k := 1)", "parameters": [[1, 0.1]]}
    assert client.post("/sql", json=body).json()["rows"] == [["a", {"n": 1}]]


def test_metrics_tell_how_queries_ended(client: httpx.Client, server: LiveServer) -> None:
    client.post("/sql", json={"sql": "SELECT 1"})
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    assert 'lakehouse_sql_queries_ended_total{outcome="succeeded"}' in text
    assert 'lakehouse_sql_queries{state="running"}' in text


def test_more_than_the_queue_holds_is_429(client: httpx.Client) -> None:
    statuses: list[int] = []

    def ask() -> None:
        answer = client.post("/sql", json={"sql": FOREVER, "timeout_s": 2.0})
        statuses.append(answer.status_code)
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + 20
    while 429 not in statuses:
        assert time.monotonic() < give_up
        time.sleep(0.02)
    for query in client.get("/sql").json()["queries"]:
        client.delete(f"/sql/{query['id']}")
    for thread in threads:
        thread.join()
    assert set(statuses) <= {400, 429}


def test_the_end_of_the_server_is_the_end_of_its_workers(tmp_path: Path) -> None:
    with serving(str(tmp_path / "data"), tmp_path / "server.log") as server:
        asked = httpx.post(f"{server.url}/v1/sql", json={"sql": FOREVER, "wait_s": 0.5}, timeout=60)
        assert asked.status_code == 202
        children = _descendants(server.process.pid)
        assert children
        server.kill()
        give_up = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in children):
            assert time.monotonic() < give_up
            time.sleep(0.02)


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found
