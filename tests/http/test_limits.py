"""Limits: what is too large is refused while it streams in, and memory stays bounded."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from live_server import LiveServer, serving

MIB = 1 << 20


def chunks(mebibytes: int) -> Iterator[bytes]:
    for _ in range(mebibytes):
        yield b" " * MIB


@pytest.mark.parametrize("path", ["add", "search", "search/batch", "delete", "scroll", "merge", "count"])
def test_a_vectors_body_over_64_mebibytes_is_413(client: httpx.Client, index: str, path: str) -> None:
    answer = client.post(f"{index}/{path}", content=chunks(65))
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert client.get(index).json()["length"] == 3


def test_a_body_of_exactly_the_limit_is_read(client: httpx.Client, index: str) -> None:
    body = json.dumps({"items": [{"id": "x", "vector": [1, 2, 3]}]}).encode()
    assert client.post(f"{index}/add", content=body.ljust(64 * MIB)).json() == {"added": 1, "length": 4}


def test_an_announced_length_is_refused_before_the_body_is_sent(server: LiveServer, index: str) -> None:
    head = f"POST /v1{index}/add HTTP/1.1\r\nhost: x\r\ncontent-length: {65 * MIB}\r\nexpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


def rss_anon_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024


def test_a_body_over_the_limit_is_never_buffered(tmp_path: Path) -> None:
    limits = {"LAKEHOUSE_VECTORS_BODY_BYTES_MAX": str(MIB), "LAKEHOUSE_STORAGE_BODY_BYTES_MAX": str(2 * MIB)}
    with serving("memory:", tmp_path / "log", env=limits) as server, httpx.Client(timeout=60) as client:
        client.post(f"{server.url}/v1/vectors/index", json={"name": "x", "dimension": 1})
        before = rss_anon_mib(server.process.pid)
        assert client.post(f"{server.url}/v1/vectors/index/x/add", content=chunks(256)).status_code == 413
        assert client.put(f"{server.url}/v1/storage/put/x", content=chunks(256)).status_code == 413
        assert rss_anon_mib(server.process.pid) - before < 64
        assert client.get(f"{server.url}/v1/storage/get/x").status_code == 404


def test_bodies_in_flight_are_bounded_together(tmp_path: Path) -> None:
    limit = {"LAKEHOUSE_BODY_BYTES_IN_FLIGHT_MAX": str(MIB)}
    with serving("memory:", tmp_path / "log", env=limit) as server, httpx.Client(timeout=60) as client:
        client.post(f"{server.url}/v1/vectors/index", json={"name": "x", "dimension": 1})
        refused = client.post(f"{server.url}/v1/vectors/index/x/add", content=chunks(2))
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        small = {"items": [{"id": "x", "vector": [1]}]}
        assert client.post(f"{server.url}/v1/vectors/index/x/add", json=small).status_code == 200


def test_a_client_that_hangs_up_in_its_body_changes_nothing(
    server: LiveServer, client: httpx.Client, index: str
) -> None:
    body = json.dumps({"items": [{"id": "x", "vector": [1, 2, 3]}]}).encode()
    head = f"POST /v1{index}/add HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body) + 1}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + body)
    assert client.get(index).json()["length"] == 3
