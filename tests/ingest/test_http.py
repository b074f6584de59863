"""Ingest over HTTP: raw bodies and forms, what is asked in the query string, and what the catalog then shows."""

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from lakehouse.ingest.formats import OPTIONS
from lakehouse.server.ingest_api import FILES_MAX, PARAMETERS
from live_server import LiveServer, serving

T = TypeVar("T")
CSV = b"id,name\n1,a\n2,b\n"
RAGGED = b"id,name\n1,a\n2\n3,c,d\n4,e\n"

pytestmark = pytest.mark.xdist_group("ingest over http")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    home: Path = tmp_path_factory.mktemp("ingest")
    with serving(
        str(home / "data"), home / "server.log", env={"LAKEHOUSE_INGEST_BODY_BYTES_MAX": "4000000"}
    ) as up:
        yield up


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as connected:
        yield connected


def test_a_raw_body_becomes_a_version(client: httpx.Client) -> None:
    answer = client.post("/ingest?name=raw", content=CSV)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["published"], body["existing"], body["rejects"]) == (True, False, {"count": 0, "rows": []})
    manifest = body["manifest"]
    assert (manifest["name"], manifest["version"], manifest["row_count"]) == ("raw", 1, 2)
    assert [column["type"] for column in manifest["schema"]] == ["BIGINT", "VARCHAR"]
    assert client.get("/catalog/manifest/raw").json() == manifest
    key = manifest["objects"][0]["key"]
    assert client.get(f"/storage/get/{key}").content[:4] == b"PAR1"


def test_a_form_with_a_file_becomes_a_version(client: httpx.Client) -> None:
    files = {"file": ("../orders.csv.gz", gzip.compress(CSV), "application/gzip")}
    answer = client.post("/ingest?name=form", files=files, data={"mode": "append"})
    assert answer.status_code == 200, answer.text
    [source] = answer.json()["manifest"]["sources"]
    assert source["uri"].startswith("upload:")
    assert source["uri"].endswith("/orders.csv.gz")
    assert answer.json()["manifest"]["mode"] == "append"


def test_several_files_of_a_form_are_one_version(client: httpx.Client) -> None:
    large = b"id,name\n" + b"".join(b"%d,x\n" % n for n in range(300_000))
    files = [
        ("file", ("a.csv", CSV, "text/csv")),
        ("file", ("b.ndjson", b'{"id": 3, "name": "c"}\n', "application/x-ndjson")),
        ("file", ("large.csv.gz", gzip.compress(large), "application/gzip")),
        ("file", ("header.csv", b"id,name\n", "text/csv")),
    ]
    done = client.post("/ingest?name=several", files=files)
    assert done.status_code == 200, done.text
    manifest = done.json()["manifest"]
    assert (manifest["version"], manifest["row_count"]) == (1, 300_003)
    assert [source["uri"].rpartition("/")[2] for source in manifest["sources"]] == [
        file[1][0] for file in files
    ]
    again = client.post("/ingest?name=several", files=files).json()
    assert (again["published"], again["manifest"]) == (False, manifest)
    fewer = client.post("/ingest?name=several", files=files[:2]).json()
    assert (fewer["manifest"]["version"], fewer["manifest"]["row_count"]) == (2, 3)
    added = client.post("/ingest?name=several&mode=append", files=files[1:3]).json()
    assert (added["manifest"]["version"], added["manifest"]["row_count"]) == (3, 300_003)


def test_one_transform_runs_over_all_files_of_a_form(client: httpx.Client) -> None:
    files = [("file", ("a.csv", CSV)), ("file", ("b.csv", b"id,name\n5,e\n"))]
    params = {"name": "summed", "transform": "SELECT sum(id)::BIGINT AS total FROM source"}
    done = client.post("/ingest", params=params, files=files).json()
    assert done["manifest"]["stats"]["total"]["max"] == 8


def test_one_bad_file_of_a_form_publishes_nothing(client: httpx.Client) -> None:
    files = [("file", ("a.csv", CSV)), ("file", ("b.csv", b"colour\nred\n"))]
    refused = client.post("/ingest?name=bad", files=files)
    assert refused.status_code == 409, refused.text
    assert "colour VARCHAR" in refused.json()["detail"]
    named = client.post("/ingest?name=bad&filename=x.csv", files=files)
    assert (named.status_code, "filename" in named.json()["detail"]) == (400, True)
    many = [("file", (f"{n}.csv", CSV)) for n in range(FILES_MAX + 1)]
    assert client.post("/ingest?name=bad", files=many).status_code == 413
    assert client.get("/catalog/manifest/bad").status_code == 404


def test_what_is_no_parquet_file_is_told_so_by_its_name(client: httpx.Client) -> None:
    for query, content in (("&format=parquet&filename=x.dat", CSV), ("&filename=x.parquet", CSV)):
        detail = client.post(f"/ingest?name=bad{query}", content=content).json()["detail"]
        assert detail.startswith("this is not a Parquet file. source=`upload:")
        assert "/x." in detail


def test_the_same_body_again_makes_no_version(client: httpx.Client) -> None:
    first = client.post("/ingest?name=again", content=CSV).json()
    second = client.post("/ingest?name=again", content=CSV).json()
    assert (second["published"], second["existing"]) == (False, True)
    assert second["manifest"] == first["manifest"]


def test_replace_is_the_default_and_append_adds(client: httpx.Client) -> None:
    client.post("/ingest?name=modes", content=CSV)
    replaced = client.post("/ingest?name=modes", content=b"id,name\n3,c\n").json()
    assert replaced["manifest"]["row_count"] == 1
    added = client.post("/ingest?name=modes&mode=append", content=CSV).json()
    assert (added["manifest"]["row_count"], added["manifest"]["version"]) == (3, 3)


def test_another_schema_is_409_with_the_difference_and_changes_nothing(client: httpx.Client) -> None:
    before = client.post("/ingest?name=schema", content=CSV).json()["manifest"]
    answer = client.post("/ingest?name=schema", content=b"id,price\n1,2.5\n")
    assert answer.status_code == 409
    assert "- name VARCHAR; + price DOUBLE" in answer.json()["detail"]
    assert answer.json()["changes"] == [
        {"change": "removed", "column": "name", "old": "VARCHAR", "new": None},
        {"change": "added", "column": "price", "old": None, "new": "DOUBLE"},
    ]
    assert client.get("/catalog/manifest/schema").json() == before
    added = client.post("/ingest?name=schema&schema_policy=AddOnly", content=b"id,name,price\n1,a,2.5\n")
    assert added.json()["changes"] == [{"change": "added", "column": "price", "old": None, "new": "DOUBLE"}]


def test_rejected_rows_are_counted_kept_and_shown_by_page(client: httpx.Client) -> None:
    answer = client.post("/ingest?name=ragged&filename=r.csv", content=RAGGED).json()
    assert (answer["manifest"]["row_count"], answer["rejects"]["count"]) == (2, 2)
    page = client.get("/catalog/rejects/ragged").json()
    assert (page["count"], [row["line"] for row in page["rejects"]]) == (2, [3, 4])
    assert page["rejects"][1]["text"] == "3,c,d"
    assert page["rejects"][0]["source"].endswith("/r.csv")
    lines = client.get("/catalog/rejects/ragged?offset=1&limit=1", headers={"accept": "application/x-ndjson"})
    assert [json.loads(line)["line"] for line in lines.text.splitlines()] == [4]
    client.post("/ingest?name=ragged", content=CSV)
    assert client.get("/catalog/rejects/ragged").json()["rejects"] == []
    assert client.get("/catalog/rejects/ragged?version=1").json()["count"] == 2
    assert client.get("/catalog/rejects/ragged@v1").json()["count"] == 2


def test_a_dry_run_shows_what_would_be_and_publishes_nothing(client: httpx.Client) -> None:
    answer = client.post("/ingest?name=dry&dry_run=true", content=RAGGED).json()
    assert answer["published"] is False
    assert answer["sample"] == [{"id": 1, "name": "a"}, {"id": 4, "name": "e"}]
    assert answer["rejects"]["count"] == 2
    assert client.get("/catalog/manifest/dry").status_code == 404
    assert client.get("/storage/list?prefix=_catalog/data/dry/").json()["objects"] == []


def test_a_transform_is_applied(client: httpx.Client) -> None:
    answer = client.post(
        "/ingest", params={"name": "few", "transform": "SELECT id * 10 AS ten FROM source"}, content=CSV
    )
    assert answer.json()["manifest"]["stats"]["ten"]["max"] == 20


def test_versions_are_listed_and_read(client: httpx.Client) -> None:
    for rows in (b"a\n1\n", b"a\n2\n", b"a\n3\n"):
        client.post("/ingest?name=kept", content=rows)
    listed = client.get("/catalog/versions/kept").json()
    assert (listed["count"], [each["version"] for each in listed["versions"]]) == (3, [1, 2, 3])
    second = client.get("/catalog/manifest/kept?version=2").json()
    assert second == listed["versions"][1] == client.get("/catalog/manifest/kept@v2").json()
    assert client.get("/catalog/manifest/kept?version=9").status_code == 404


def test_a_dropped_dataset_is_gone_and_its_name_can_live_again(client: httpx.Client) -> None:
    client.post("/ingest?name=gone", content=CSV)
    assert client.delete("/catalog/dataset/gone").status_code == 204
    assert client.get("/catalog/manifest/gone").status_code == 404
    assert client.get("/storage/list?prefix=_catalog/data/gone/").json()["objects"] == []
    assert client.delete("/catalog/dataset/gone").status_code == 404
    again = client.post("/ingest?name=gone", content=b"other\n1\n").json()
    assert (again["published"], again["existing"]) == (True, False)


@pytest.mark.parametrize(
    ("query", "content", "status"),
    [
        ("", CSV, 400),
        ("name=", CSV, 400),
        ("name=x.json", CSV, 400),
        ("name=bad&colour=red", CSV, 400),
        ("name=bad&mode=merge", CSV, 400),
        ("name=bad&format=xml", CSV, 400),
        ("name=bad&schema_policy=Loose", CSV, 400),
        ("name=bad&dry_run=maybe", CSV, 400),
        ("name=bad&max_rejects=-1", CSV, 400),
        ("name=bad&max_rejects=0", RAGGED, 400),
        ("name=bad&transform=DROP TABLE source", CSV, 400),
        ("name=bad&format=parquet", CSV, 400),
        ("name=bad&format=json", b'[{"a": 1}, 2]', 400),
        ("name=bad", b"", 400),
        ("name=bad", b"id,name\n" + b"1,a\n" * 1_000_001, 413),
        ("name=bad&types=a:BIGINT,id:FOO", CSV, 400),
    ],
)
def test_a_bad_request_is_refused_and_leaves_nothing(
    client: httpx.Client, server: LiveServer, query: str, content: bytes, status: int
) -> None:
    answer = client.post(f"/ingest?{query}", content=content)
    assert answer.status_code == status, answer.text
    assert client.get("/catalog/manifest/bad").status_code == 404
    assert client.get("/storage/list?prefix=_catalog/data/bad/").json()["objects"] == []
    assert client.get("/ingest").json() == {"running": [], "count": 0}


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("multipart/form-data", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x--\r\n"),
        ("multipart/form-data; boundary=x", b"nonsense"),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nid\n1',
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="f"\r\n\r\n1\r\n--x--\r\n',
        ),
    ],
)
def test_a_form_without_a_whole_file_is_refused(
    client: httpx.Client, content_type: str, content: bytes
) -> None:
    answer = client.post("/ingest?name=bad", content=content, headers={"content-type": content_type})
    assert answer.status_code == 400, answer.text


def test_nothing_is_left_in_scratch(client: httpx.Client, server: LiveServer) -> None:
    client.post("/ingest?name=clean", content=CSV)
    client.post("/ingest?name=clean", content=b"\x00\x01")
    left = [
        path for path in Path(server.data, ".tmp").rglob("*") if path.name.startswith(("ingest-", "rejects-"))
    ]
    assert left == []


def test_every_parameter_is_described(client: httpx.Client, server: LiveServer) -> None:
    document = httpx.get(f"{server.url}/openapi.json", timeout=60).json()
    described = {each["name"] for each in document["paths"]["/v1/ingest"]["post"]["parameters"]}
    assert described == PARAMETERS | OPTIONS


@pytest.mark.kill
def test_a_killed_server_takes_its_worker_along_and_serves_the_old_version_again(tmp_path: Path) -> None:
    """The transform never ends, so the kill comes in its middle."""
    endless = "SELECT sum(a.range * b.range) AS s FROM source, range(100000000) a, range(100000000) b"
    with serving(str(tmp_path / "data"), tmp_path / "server.log") as server:
        with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as client:
            before = client.post("/ingest?name=d", content=CSV).json()["manifest"]
            asking = threading.Thread(target=_ask, args=(server.url, endless))
            asking.start()
            [running] = _until(lambda: _converted(client))
            assert (running["name"], running["bytes_total"], running["rows"]) == ("d", len(CSV), 2)
            workers = _until(lambda: _children(server.process.pid))
        server.kill()
        asking.join()
        _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
        server.start()
        with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as client:
            assert client.get("/catalog/manifest/d").json() == before
            assert client.get("/catalog/versions/d").json()["count"] == 1
            again = client.post("/ingest?name=d", content=b"id,name\n9,z\n").json()
            assert again["manifest"]["version"] == 2


def _ask(url: str, transform: str) -> None:
    with contextlib.suppress(httpx.TransportError):
        params = {"name": "d", "transform": transform, "schema_policy": "Any"}
        httpx.post(f"{url}/v1/ingest", params=params, content=CSV, timeout=60)


def _converted(client: httpx.Client) -> list[dict[str, Any]]:
    running: list[dict[str, Any]] = client.get("/ingest").json()["running"]
    return [each for each in running if each["bytes_read"] == each["bytes_total"] > 0 and each["rows"]]


def _children(pid: int) -> list[int]:
    """Processes of ingest below a server's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"lakehouse.ingest.worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def _until(look: Callable[[], T]) -> T:
    """What `look` finds; the wait is bounded and ends in a failure."""
    for _ in range(3_000):
        if found := look():
            return found
        time.sleep(0.01)
    raise AssertionError("did not come")


def test_a_client_that_hangs_up_frees_its_place(client: httpx.Client, server: LiveServer) -> None:
    endless = "SELECT sum(a.range * b.range) AS s FROM source, range(100000000) a, range(100000000) b"
    url = httpx.URL(f"{server.url}/v1/ingest", params={"name": "hung-up", "transform": endless})
    calls = [socket.create_connection((url.host, url.port or 80)) for _ in range(2)]
    for call in calls:
        head = f"POST {url.raw_path.decode()} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(CSV)}\r\n\r\n"
        call.sendall(head.encode() + CSV)
    _until(lambda: len(_children(server.process.pid)) == 2)
    for call in calls:
        call.close()
    assert client.post("/ingest?name=after", content=CSV).status_code == 200
    _until(lambda: client.get("/ingest").json()["count"] == 0)
    assert _children(server.process.pid) == []
    assert client.get("/catalog/manifest/hung-up").status_code == 404
