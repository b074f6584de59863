"""Every error is a problem document with a request id; every answer carries one."""

import re
import socket

import httpx
import pytest

from live_server import LiveServer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/", 404),
        ("GET", "/v1/vectors/index/", 404),
        ("GET", "/v1/vectors/index/x/unknown", 404),
        ("GET", "/v1/vectors/index/%ff", 400),
        ("PATCH", "/v1/vectors/index", 405),
        ("POST", "/v1/storage/get/x", 405),
        ("HEAD", "/v1/vectors/index/x/add", 405),
        ("OPTIONS", "/v1/vectors/index", 405),
        ("POST", "/v1/ingest", 400),
        ("POST", "/v1/sql", 400),
    ],
)
def test_an_error_is_a_problem(server: LiveServer, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, f"{server.url}{path}", headers={"x-request-id": "mine-1"}, timeout=60)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"] == "mine-1"
    if method != "HEAD":
        problem = answer.json()
        assert problem["status"] == status
        assert problem["request_id"] == "mine-1"
        assert {"title", "detail"} <= problem.keys()
    if status == 405:
        assert answer.headers["allow"]


def test_allow_names_the_methods_of_the_path(server: LiveServer) -> None:
    assert httpx.put(f"{server.url}/v1/vectors/index", timeout=60).headers["allow"] == "GET, POST"
    assert httpx.put(f"{server.url}/v1/vectors/index/x", timeout=60).headers["allow"] == "DELETE, GET"


def test_request_ids_are_made_up_when_absent_or_unusable(server: LiveServer) -> None:
    made = httpx.get(f"{server.url}/health", timeout=60).headers["x-request-id"]
    assert made
    assert httpx.get(f"{server.url}/health", timeout=60).headers["x-request-id"] != made
    for given in ("two words", "x" * 129, "\u00e9"):
        answer = httpx.get(
            f"{server.url}/health", headers=[(b"x-request-id", given.encode("latin-1"))], timeout=60
        )
        assert answer.headers["x-request-id"] not in ("", given)


def test_a_request_that_is_no_http_is_refused_and_the_server_lives(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{server.url}/livez", timeout=60).status_code == 200


def test_routes_answer_without_the_version_too(server: LiveServer, index: str) -> None:
    for path in (index, "/vectors/index", "/storage/list", "/catalog/list"):
        bare, versioned = (
            httpx.get(f"{server.url}{prefix}{path}", timeout=60).json() for prefix in ("", "/v1")
        )
        assert bare == versioned


def test_health_readiness_and_metrics_answer(server: LiveServer, index: str) -> None:
    assert httpx.get(f"{server.url}/health", timeout=60).json()["status"] == "ok"
    assert httpx.get(f"{server.url}/livez", timeout=60).json() == {"status": "ok"}
    ready = httpx.get(f"{server.url}/readyz", timeout=60)
    checks = ready.json()["checks"]
    assert (ready.status_code, checks["indexes"], checks["store"]) == (200, "ok", "ok")
    assert checks["sql"] in ("starting", "ok")
    metrics = httpx.get(f"{server.url}/metrics", timeout=60)
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    name = index.rpartition("/")[2]
    for line in (
        f'lakehouse_index_items{{index="{name}",shard="0"}} 3.0',
        'lakehouse_http_requests_total{route="vectors.add",status="200"}',
        'lakehouse_http_request_seconds_count{route="vectors.create"}',
        'lakehouse_store_operations_total{operation="create",outcome="ok"}',
        f'lakehouse_index_log_bytes{{index="{name}",shard="0"}}',
    ):
        assert line in metrics.text


def raw_answers(server: LiveServer, sent: bytes) -> bytes:
    """Everything the server says to `sent` until it hangs up."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(sent)
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


def test_pipelined_requests_are_answered_in_order(server: LiveServer, index: str) -> None:
    ask = "{} {} HTTP/1.1\r\nhost: x\r\nx-request-id: {}\r\n{}\r\n"
    sent = (
        ask.format("GET", "/livez", "1", "")
        + ask.format("HEAD", "/livez", "2", "")
        + ask.format("DELETE", f"/v1{index}", "3", "")
        + ask.format("GET", f"/v1{index}", "4", "")
        + ask.format("GET", "/livez", "5", "connection: close\r\n")
    )
    received = raw_answers(server, sent.encode())
    assert re.findall(rb"HTTP/1.1 (\d+) ", received) == [b"200", b"200", b"204", b"404", b"200"]
    assert received.count(b'{"status":"ok"}') == 2, "an answer to HEAD has no body"
    assert re.findall(rb"x-request-id: (\d)", received) == [b"1", b"2", b"3", b"4", b"5"]


def test_a_path_that_is_not_ascii_is_refused(server: LiveServer) -> None:
    answer = raw_answers(
        server, b"GET /v1/vectors/index/\xff HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 4")
