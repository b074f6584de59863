"""The storage routes: bytes by key, whatever the key and however many."""

import hashlib
from collections.abc import Iterator
from http.client import HTTPConnection

import httpx
import pytest

from live_server import LiveServer


def test_put_get_delete_and_get_again(client: httpx.Client) -> None:
    assert client.put("/storage/put/dir/object.bin", content=b"one").json() == {
        "key": "dir/object.bin",
        "size": 3,
    }
    assert client.put("/storage/put/dir/object.bin", content=b"two!").is_success
    found = client.get("/storage/get/dir/object.bin")
    assert (found.status_code, found.content) == (200, b"two!")
    assert found.headers["content-type"] == "application/octet-stream"
    assert [client.delete("/storage/delete/dir/object.bin").status_code for _ in range(2)] == [204, 204]
    gone = client.get("/storage/get/dir/object.bin")
    assert (gone.status_code, gone.headers["content-type"]) == (404, "application/problem+json")


def test_an_empty_object_is_an_object(client: httpx.Client) -> None:
    assert client.put("/storage/put/empty", content=b"").is_success
    assert (client.get("/storage/get/empty").status_code, client.get("/storage/get/empty").content) == (
        200,
        b"",
    )


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("round/a%20b/%C3%BC/%E6%97%A5", "round/a b/ü/日"),
        ("round/x%2Fy/z", "round/x%2Fy/z"),
        ("round/%2F", "round/%2F"),
        ("round/50%25", "round/50%"),
        ("round/a%252Fb", "round/a%2Fb"),
        ("round/+plus%26amp=1;semi", "round/+plus&amp=1;semi"),
        ("round/%3Fquery%23fragment", "round/?query#fragment"),
        ("round/..dots..", "round/..dots.."),
    ],
)
def test_a_key_round_trips_and_is_listed_as_stored(client: httpx.Client, path: str, key: str) -> None:
    assert client.put(f"/storage/put/{path}", content=path.encode()).json()["key"] == key
    assert client.get(f"/storage/get/{path}").content == path.encode()
    listed = client.get("/storage/list", params={"prefix": key}).json()
    assert {"Key": key, "Size": len(path)} in listed["objects"]
    again = "/".join("".join(f"%{byte:02X}" for byte in part.encode()) for part in key.split("/"))
    assert client.get(f"/storage/get/{again}").content == path.encode()
    assert client.delete(f"/storage/delete/{path}").status_code == 204
    assert client.get(f"/storage/get/{path}").status_code == 404


def test_a_slash_inside_a_segment_is_no_separator(client: httpx.Client) -> None:
    client.put("/storage/put/one%2Ftwo", content=b"a")
    assert client.get("/storage/get/one/two").status_code == 404
    client.put("/storage/put/one/two", content=b"b")
    assert client.get("/storage/get/one%2Ftwo").content == b"a"


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "../x",
        "a/../b",
        "a/%2e%2e/b",
        "a/./b",
        "%2E",
        "/etc/passwd",
        "a//b",
        "a/",
        "a%00b",
        "%ff",
        "k" * 1025,
    ],
)
def test_a_key_that_is_no_key_is_refused(client: httpx.Client, server: LiveServer, path: str) -> None:
    for method, verb in (("PUT", "put"), ("GET", "get"), ("DELETE", "delete")):
        # http.client sends the path as it is; httpx would resolve the dots itself.
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request(method, f"/v1/storage/{verb}/{path}", body=b"x" if method == "PUT" else None)
        answer = connection.getresponse()
        assert answer.status == 400, (method, answer.read())
        connection.close()
    assert client.get("/storage/get/").status_code == 400


@pytest.mark.parametrize("prefix", ["../", "/", "a//", "./x/", "a/../b"])
def test_a_prefix_that_leads_out_is_refused(client: httpx.Client, prefix: str) -> None:
    assert client.get("/storage/list", params={"prefix": prefix}).status_code == 400


def test_list_answers_prefix_and_objects_in_order(client: httpx.Client) -> None:
    for name in ("b", "a", "sub/c"):
        client.put(f"/storage/put/listed/{name}", content=name.encode())
    assert client.get("/storage/list?prefix=listed/").json() == {
        "prefix": "listed/",
        "objects": [
            {"Key": "listed/a", "Size": 1},
            {"Key": "listed/b", "Size": 1},
            {"Key": "listed/sub/c", "Size": 5},
        ],
    }
    assert client.get("/storage/list?prefix=listed/s").json()["objects"] == [
        {"Key": "listed/sub/c", "Size": 5}
    ]
    assert client.get("/storage/list?prefix=nothing").json() == {"prefix": "nothing", "objects": []}


def test_a_large_object_without_a_length_streams_both_ways(client: httpx.Client) -> None:
    block = bytes(range(256)) * 4096  # 1 MiB

    def blocks() -> Iterator[bytes]:
        for number in range(24):
            yield number.to_bytes(4, "little") + block

    expected = hashlib.sha256(b"".join(blocks()))
    put = client.put("/storage/put/large", content=blocks())
    assert put.json()["size"] == 24 * (len(block) + 4)
    found = hashlib.sha256()
    with client.stream("GET", "/storage/get/large") as answer:
        for chunk in answer.iter_bytes():
            found.update(chunk)
    assert found.digest() == expected.digest()


def test_an_index_file_can_be_read_where_the_old_tools_look(client: httpx.Client, index: str) -> None:
    name = index.rpartition("/")[2]
    client.post(f"{index}/snapshot")
    assert client.get(f"/storage/get/_vectors/{name}.lhv1").content.startswith(b"LHV1")
