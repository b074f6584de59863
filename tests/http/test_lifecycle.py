"""Starting, refusing to start, and ending well."""

import socket
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from lakehouse.server.auth import new_key
from live_server import LiveServer, command_line, environment, free_port, serving


def refused(tmp_path: Path, *args: str, **env: str) -> str:
    """Run a server that must not start; what it says."""
    ended = subprocess.run(
        command_line("serve", *args), cwd=tmp_path, env=environment(env), capture_output=True, timeout=60
    )
    assert ended.returncode not in (0, -9)
    said = ended.stderr.decode() + ended.stdout.decode()
    assert "Traceback" not in said
    return " ".join(said.split())


def test_a_port_in_use_ends_start_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert port in refused(tmp_path, "--data", "memory:", "--port", port)


def test_a_data_directory_in_use_ends_start_up(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with serving(data, tmp_path / "log"):
        assert "data" in refused(tmp_path, "--data", data, "--port", str(free_port()))


def test_an_address_that_is_not_loopback_needs_keys_or_insecure(tmp_path: Path) -> None:
    assert "--insecure" in refused(tmp_path, "--data", "memory:", "--host", "0.0.0.0")


def test_an_open_address_starts_with_keys_or_with_insecure(tmp_path: Path) -> None:
    _, digest = new_key()
    keys = f'[{{"name": "k", "right": "read", "sha256": "{digest}"}}]'
    for args, env in ((["--insecure"], {}), ([], {"LAKEHOUSE_KEYS": keys})):
        with serving("memory:", tmp_path / "log", args=["--host", "0.0.0.0", *args], env=env) as server:
            assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("url", [None, "127.0.0.1:3215"])
def test_a_gateway_needs_a_whole_address_of_every_role(tmp_path: Path, url: str | None) -> None:
    env = {f"LAKEHOUSE_{role}_URL": "http://127.0.0.1:1" for role in ("STORAGE", "CATALOG")}
    env |= {} if url is None else {"LAKEHOUSE_VECTORS_URL": url}
    assert "LAKEHOUSE_VECTORS_URL" in refused(tmp_path, "--roles", "gateway", **env)


def test_an_unknown_setting_in_the_file_ends_start_up(tmp_path: Path) -> None:
    (tmp_path / "lakehouse.toml").write_text('dat = "typo"\n')
    assert "dat" in refused(tmp_path)


def test_sigterm_finishes_what_was_taken_and_ends_with_0(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    acknowledged: list[str] = []
    with serving(data, tmp_path / "log") as server:
        url = f"{server.url}/v1/vectors/index"
        httpx.post(url, json={"name": "x", "dimension": 2})
        started = threading.Event()

        def write(worker: int) -> None:
            with httpx.Client() as client:
                for number in range(100_000):
                    item_id = f"{worker}-{number}"
                    item = {"id": item_id, "vector": [1, number]}
                    try:
                        answer = client.post(f"{url}/x/add", json={"items": [item]})
                    except httpx.TransportError:
                        return
                    if answer.status_code != 200:
                        return
                    acknowledged.append(item_id)
                    if number == 10:
                        started.set()

        workers = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
        for worker in workers:
            worker.start()
        assert started.wait(60)
        assert server.terminate() == 0
        for worker in workers:
            worker.join(60)
    assert len(acknowledged) > 10
    with serving(data, tmp_path / "log") as again, httpx.Client() as client:
        found: set[str] = set()
        after = None
        while True:
            body = {"after": after, "limit": 1000}
            page = client.post(f"{again.url}/v1/vectors/index/x/scroll", json=body).json()
            found |= {item["id"] for item in page["items"]}
            after = page["after"]
            if after is None:
                break
        assert set(acknowledged) <= found


def test_roles_share_a_directory_and_answer_only_for_themselves(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    storage = LiveServer(data, tmp_path / "storage.log", args=["--roles", "storage"])
    vectors = LiveServer(data, tmp_path / "vectors.log", args=["--roles", "vectors,catalog"])
    with storage, vectors:
        storage.start()
        vectors.start()
        assert httpx.put(f"{storage.url}/storage/put/x", content=b"x").status_code == 200
        assert httpx.get(f"{storage.url}/v1/storage/get/x").content == b"x"
        assert httpx.get(f"{storage.url}/v1/vectors/index").status_code == 404
        assert httpx.get(f"{vectors.url}/v1/storage/get/x").status_code == 404
        assert (
            httpx.post(f"{vectors.url}/vectors/index", json={"name": "x", "dimension": 2}).status_code == 201
        )
        assert httpx.get(f"{storage.url}/v1/storage/list?prefix=_vectors/x").json()["objects"]
        assert "data" in refused(tmp_path, "--data", data, "--roles", "vectors", "--port", "0")
