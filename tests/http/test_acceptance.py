"""The two acceptance scripts of the earlier system, against `lakehouse serve`: its clients keep working.

Each runs once in one process, and once with a process per role on the old ports.  The ports are part of what
is accepted, so the tests take turns over them by a file lock, and are skipped only when a stranger listens
there.
"""

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from acceptance import create_add_search_and_refuse, listed, outlive_kills_and_stay_dropped
from live_server import LiveServer, port_is_free
from ports import free_port

GATEWAY, STORAGE, VECTORS = 3110, 3211, 3215
PORTS_LOCK = Path(tempfile.gettempdir()) / "lakehouse-acceptance-ports.lock"

pytestmark = pytest.mark.xdist_group("old ports")


class System:
    """The servers of one deployment; the vectors role is the one that gets killed."""

    def __init__(self, servers: list[LiveServer]) -> None:
        self.servers = servers
        self.url = servers[0].url
        self.vectors = servers[-1]

    def start(self) -> "System":
        for server in self.servers:
            server.spawn()
        for server in self.servers:
            server.wait_ready()
        return self

    def restart_vectors(self) -> None:
        """kill -9, then start."""
        self.vectors.kill()
        self.vectors.start()


def one_process(directory: Path) -> list[LiveServer]:
    return [LiveServer(str(directory / "data"), directory / "server.log", port=GATEWAY)]


def process_per_role(directory: Path) -> list[LiveServer]:
    ports = {"gateway": GATEWAY, "storage": STORAGE}
    ports |= {role: free_port() for role in ("catalog", "ingest", "query")}
    ports |= {"vectors": VECTORS}
    urls = {f"LAKEHOUSE_{role.upper()}_URL": f"http://127.0.0.1:{port}" for role, port in ports.items()}
    del urls["LAKEHOUSE_GATEWAY_URL"]
    data = str(directory / "data")
    return [
        LiveServer(data, directory / f"{role}.log", port=port, args=("--roles", role), env=urls)
        for role, port in ports.items()
    ]


@pytest.fixture(params=[one_process, process_per_role], ids=["one-process", "process-per-role"])
def system(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[System]:
    with PORTS_LOCK.open("w") as lock, contextlib.ExitStack() as stack:
        fcntl.flock(lock, fcntl.LOCK_EX)
        servers: list[LiveServer] = request.param(tmp_path)
        for server in servers:
            if not port_is_free(server.port):
                pytest.skip(f"port {server.port}, which the old clients use, is taken by another program")
        for server in servers:
            stack.enter_context(server)
        yield System(servers).start()


@pytest.fixture
def http(system: System) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=system.url, timeout=30) as client:
        yield client


def test_create_add_search_and_refuse(http: httpx.Client) -> None:
    create_add_search_and_refuse(http)


def test_an_index_outlives_kill_and_a_dropped_one_stays_dropped(system: System, http: httpx.Client) -> None:
    assert listed(http) == []
    outlive_kills_and_stay_dropped(http, system.restart_vectors)


def test_the_old_direct_ports_answer_without_the_version_prefix(system: System) -> None:
    vectors_url = system.vectors.url
    created = httpx.post(f"{vectors_url}/vectors/index", json={"name": "direct", "dimension": 2}, timeout=60)
    assert created.status_code == 201
    storage_url = next(s.url for s in system.servers if s.port == STORAGE or len(system.servers) == 1)
    assert httpx.put(f"{storage_url}/storage/put/a/b%2Fc", content=b"bytes", timeout=60).status_code == 200
    assert httpx.get(f"{storage_url}/storage/get/a/b%2Fc", timeout=60).content == b"bytes"
    for server in system.servers:
        for path in ("/health", "/livez", "/readyz", "/metrics"):
            assert httpx.get(f"{server.url}{path}", timeout=60).status_code == 200, (server.port, path)
