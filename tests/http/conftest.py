"""One live server for the tests that only send requests, with a fresh index for each test."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from live_server import LiveServer, serving

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Everything in one process on a directory, without keys."""
    home: Path = tmp_path_factory.mktemp("server")
    with serving(str(home / "data"), home / "server.log") as running:
        yield running


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/v1", timeout=60) as connected:
        yield connected


@pytest.fixture
def index(client: httpx.Client) -> str:
    """The path of a fresh index of dimension 3 that holds `a`, `b` and `c`."""
    name = f"fresh-{next(_numbers)}"
    created = client.post("/vectors/index", json={"name": name, "dimension": 3})
    assert created.status_code == 201, created.text
    items = [
        {"id": "a", "vector": [1, 0, 0], "metadata": {"n": 1}},
        {"id": "b", "vector": [0, 1, 0], "metadata": {"n": 2}},
        {"id": "c", "vector": [0, 0, 1]},
    ]
    added = client.post(f"/vectors/index/{name}/add", json={"items": items})
    assert added.status_code == 200, added.text
    return f"/vectors/index/{name}"
