"""What goes wrong around a server: it says what and why, goes on reading, and loses nothing.

A start that cannot work ends with a status that is not 0 and one clear line, never a traceback.
"""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lakehouse.client import Client
from live_server import START_S_MAX, LiveServer, command_line, environment, serving
from minio_server import MinioServer
from ports import free_port
from world import World

DIMENSION = 4


def refused(*args: str, env: dict[str, str] | None = None, cwd: Path) -> str:
    """What `lakehouse serve ARGS` says when it refuses to start."""
    done = subprocess.run(
        command_line("serve", *args),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(env),
        cwd=cwd,
        timeout=START_S_MAX,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert "Traceback" not in said
    return said


def create(http: httpx.Client, name: str = "things") -> None:
    response = http.post("/v1/vectors/index", json={"name": name, "dimension": DIMENSION, "distance": "dot"})
    assert response.status_code == 201, response.text


def add(http: httpx.Client, *ids: str, name: str = "things", padding: str = "") -> httpx.Response:
    items = [
        {"id": item_id, "vector": [float(n), 1.0, 2.0, 3.0], "metadata": {"padding": padding}}
        for n, item_id in enumerate(ids)
    ]
    return http.post(f"/v1/vectors/index/{name}/add", json={"items": items})


def stored(http: httpx.Client, name: str = "things") -> list[str]:
    response = http.post(f"/v1/vectors/index/{name}/scroll", json={"limit": 1_000, "include": []})
    assert response.status_code == 200, response.text
    return [item["id"] for item in response.json()["items"]]


def client(server: LiveServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60)


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """A file system of its own; skips where the test may not mount one."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "lakehouse-test", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"may not mount a small file system here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


# ------------------------------------------------------------------ stopping


async def test_sigterm_finishes_what_was_taken_and_exits_0(tmp_path: Path) -> None:
    statuses: list[int] = []
    with LiveServer(str(tmp_path / "data"), tmp_path / "server.log").start() as server:
        world = World(server, seed=7)
        await world.create()
        for _ in range(3):
            await world.life(lambda: statuses.append(server.terminate()))
            server.start()
            await world.check(retry=False)
    assert statuses == [0, 0, 0]
    # A write that was taken was answered; one that was not answered was never taken.
    assert world.tally.happened == 0


def test_sigterm_of_an_idle_server_exits_0(tmp_path: Path) -> None:
    with serving("memory:", tmp_path / "server.log") as server:
        assert server.terminate() == 0


def test_a_second_sigint_is_not_needed(tmp_path: Path) -> None:
    with serving("memory:", tmp_path / "server.log") as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(START_S_MAX) in (0, 130)


# -------------------------------------------------------- the local directory


def test_a_full_disk_refuses_writes_loses_nothing_and_recovers(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=24) as disk:
        ballast = disk / "ballast"
        with serving(str(disk / "data"), tmp_path / "server.log") as server, client(server) as http:
            create(http)
            assert add(http, "first").status_code == 200
            with ballast.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
            answer = add(http, *(f"big-{n}" for n in range(64)), padding="x" * 4_096)
            assert answer.status_code == 503, answer.text
            assert answer.json()["outcome"] == "not_committed"
            assert "retry-after" in answer.headers
            assert stored(http) == ["first"]
            assert http.get("/livez").status_code == 200
            ballast.unlink()
            assert _added_in_the_end(http, "after") == 200
            server.kill()
            server.start()
            assert stored(http) == ["after", "first"]


def _added_in_the_end(http: httpx.Client, item_id: str) -> int:
    """Repeat an add while the server says to come back later: at most 30 times, as long as it says."""
    for _ in range(30):
        answer = add(http, item_id)
        if answer.status_code != 503:
            break
        time.sleep(float(answer.headers["retry-after"]))
    return answer.status_code


def test_a_read_only_directory_refuses_to_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=1) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        said = refused("--data", str(disk / "data"), "--port", str(free_port()), cwd=tmp_path)
    assert str(disk / "data") in said.replace("\n", "")


def test_a_data_path_that_is_a_file_refuses_to_start(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("not a directory")
    said = refused("--data", str(tmp_path / "data"), "--port", str(free_port()), cwd=tmp_path)
    assert str(tmp_path / "data") in said.replace("\n", "")


def test_a_directory_that_another_process_holds_refuses_a_second_one(tmp_path: Path) -> None:
    with serving(str(tmp_path / "data"), tmp_path / "server.log") as server, client(server) as http:
        create(http)
        said = refused("--data", str(tmp_path / "data"), "--port", str(free_port()), cwd=tmp_path)
        assert "another process" in said.replace("\n", " ")
        assert add(http, "still").status_code == 200


def test_a_killed_process_leaves_no_lock_behind(tmp_path: Path) -> None:
    with serving(str(tmp_path / "data"), tmp_path / "server.log") as server:
        server.kill()
        server.start()


def test_a_port_in_use_refuses_to_start_and_names_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused("--data", "memory:", "--port", str(port), cwd=tmp_path)
    assert str(port) in said


def test_an_open_address_without_keys_refuses_to_start(tmp_path: Path) -> None:
    said = refused("--data", "memory:", "--host", "0.0.0.0", "--port", str(free_port()), cwd=tmp_path)
    assert "--insecure" in said


def test_a_gateway_without_the_address_of_a_role_names_the_setting(tmp_path: Path) -> None:
    args = ("--data", "memory:", "--roles", "gateway", "--port", str(free_port()))
    assert "LAKEHOUSE_STORAGE_URL" in refused(*args, cwd=tmp_path)
    broken = {"LAKEHOUSE_STORAGE_URL": "127.0.0.1:3211"}
    assert "LAKEHOUSE_STORAGE_URL" in refused(*args, env=broken, cwd=tmp_path)


# ------------------------------------------------------------------ the bucket


@pytest.mark.minio
def test_a_missing_bucket_refuses_to_start_and_names_it(tmp_path: Path, minio: MinioServer) -> None:
    args = ("--data", "s3://no-such-bucket/prefix", "--port", str(free_port()))
    assert "no-such-bucket" in refused(*args, env=minio.environment(), cwd=tmp_path)


@pytest.mark.minio
def test_wrong_credentials_refuse_to_start_without_showing_them(tmp_path: Path, minio: MinioServer) -> None:
    secret = "wrong-secret-wrong-secret"
    env = minio.environment() | {"AWS_SECRET_ACCESS_KEY": secret}
    said = refused("--data", f"s3://{minio.bucket}/p", "--port", str(free_port()), env=env, cwd=tmp_path)
    assert secret not in said
    assert minio.bucket in said


@pytest.mark.minio
def test_no_credentials_at_all_refuse_to_start(tmp_path: Path, minio: MinioServer) -> None:
    env = {"AWS_ENDPOINT_URL_S3": minio.endpoint, "AWS_DEFAULT_REGION": "us-east-1", "HOME": str(tmp_path)}
    said = refused("--data", f"s3://{minio.bucket}/p", "--port", str(free_port()), env=env, cwd=tmp_path)
    assert "credentials" in said


def test_a_store_nobody_listens_at_refuses_to_start(tmp_path: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    env = {"AWS_ENDPOINT_URL_S3": endpoint, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    args = ("--data", "s3://some-bucket/p", "--port", str(free_port()))
    assert "some-bucket" in refused(*args, env=env, cwd=tmp_path)


@pytest.mark.minio
def test_a_store_that_stops_answering_stops_writes_only(tmp_path: Path, own_minio: MinioServer) -> None:
    data = f"s3://{own_minio.bucket}/p"
    log = tmp_path / "server.log"
    with serving(data, log, env=own_minio.environment()) as server, client(server) as http:
        create(http)
        assert add(http, "before").status_code == 200
        own_minio.pause()
        try:
            answer = add(http, "during")
            assert answer.status_code == 503, answer.text
            first = answer.json()["outcome"]
            assert first in ("unknown", "not_committed")
            assert "retry-after" in answer.headers
            assert http.get("/livez").status_code == 200
            query = {"vector": [0.0, 1.0, 2.0, 3.0], "consistency": "eventual"}
            found = http.post("/v1/vectors/index/things/search", json=query)
            assert found.status_code == 200
            assert "before" in [hit["id"] for hit in found.json()["results"]]
            for read, body in (("search", query | {"consistency": "strong"}), ("scroll", {}), ("count", {})):
                strong = http.post(f"/v1/vectors/index/things/{read}", json=body)
                assert strong.status_code == 200
                assert float(strong.headers["lakehouse-staleness"]) > 0
            missing = http.get("/v1/vectors/index/things/items/nowhere")
            assert missing.status_code == 404
            assert "behind_s=" in missing.json()["detail"]
            near = http.post("/v1/vectors/index/things/search", json={"id": "before", "k": 1})
            assert float(near.headers["lakehouse-staleness"]) > 0
            with Client(server.url) as python:
                assert python.scroll("things").stale_s > 0
        finally:
            own_minio.resume()
        assert _added_in_the_end(http, "after") == 200
        there = stored(http)
        assert {"before", "after"} <= set(there) <= {"before", "during", "after"}
        if first == "not_committed":
            assert "during" not in there
        server.kill()
        server.start()
        assert stored(http) == there


@pytest.mark.minio
def test_a_store_that_dies_and_returns_loses_nothing(tmp_path: Path, own_minio: MinioServer) -> None:
    data = f"s3://{own_minio.bucket}/p"
    with (
        serving(data, tmp_path / "server.log", env=own_minio.environment()) as server,
        client(server) as http,
    ):
        create(http)
        assert add(http, "before").status_code == 200
        own_minio.kill()
        answer = add(http, "during")
        assert answer.status_code == 503, answer.text
        assert http.get("/livez").status_code == 200
        own_minio.restart()
        assert _added_in_the_end(http, "after") == 200
        there = set(stored(http))
        assert {"before", "after"} <= there
        if answer.json()["outcome"] == "not_committed":
            assert "during" not in there
