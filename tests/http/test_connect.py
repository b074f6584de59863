"""`lakehouse.connect`: the same client over a socket or inside this process, with the lock, the fork and the end."""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import lakehouse
from lakehouse.client import Client
from lakehouse.core import errors
from lakehouse.sql import sandbox
from live_server import LiveServer, environment, serving

MIB = 1 << 20

pytestmark = pytest.mark.xdist_group("connect")


@pytest.fixture(scope="module")
def lake() -> Iterator[Client]:
    with lakehouse.connect("memory:") as connected:
        connected.sql("SELECT 1")  # before any test here makes believe that the kernel is another
        yield connected


def filled(lake: Client, name: str, rows: int = 100) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    vectors = np.random.default_rng(7).random((rows, 8), dtype=np.float32)
    lake.create(name, 8)
    lake.add(name, [str(j) for j in range(rows)], vectors, [{"n": j} for j in range(rows)])
    return vectors


def python(script: str, *args: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *args]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), check=False, timeout=120
    )


# --- one client


def test_what_a_directory_answers_is_what_a_server_on_it_answers(tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    with lakehouse.connect(data) as inside:
        vectors = filled(inside, "docs")
        own = inside.search("docs", vectors[3], k=5, filter="n < 50")
    with serving(data, tmp_path / "log") as server, lakehouse.connect(server.url) as outside:
        theirs = outside.search("docs", vectors[3], k=5, filter="n < 50")
    assert (own.matches, own[0].id) == (theirs.matches, "3")


def test_a_file_url_and_a_path_name_the_same_directory(tmp_path: Path) -> None:
    with lakehouse.connect(tmp_path / "data") as lake:
        lake.storage_put("a/b", b"x")
    with lakehouse.connect(f"file://{tmp_path}/data") as lake:
        assert lake.storage_get("a/b") == b"x"


def test_errors_arrive_as_their_kinds(lake: Client) -> None:
    with pytest.raises(errors.NotFound, match="nope"):
        lake.index("nope")
    with pytest.raises(errors.Invalid, match="dimension"):
        lake.create("zero", 0)
    with pytest.raises(errors.Invalid, match="store"):
        lakehouse.connect("ftp://somewhere")


@pytest.mark.parametrize("where", ["localhost:3110", "127.0.0.1:3110"])
def test_a_servers_address_without_its_scheme_makes_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.Invalid, match="begins with http"):
        lakehouse.connect(where)
    assert list(tmp_path.iterdir()) == []


def test_names_with_every_kind_of_character_arrive_as_they_are(lake: Client) -> None:
    lake.storage_put("a b/ü%/?x=1&y", b"1")
    assert lake.storage_get("a b/ü%/?x=1&y") == b"1"
    assert ("a b/ü%/?x=1&y", 1) in lake.storage_list("a b/")


def test_large_bodies_pass_whole_both_ways(lake: Client, tmp_path: Path) -> None:
    data = os.urandom(20 * MIB)
    lake.storage_put("large", data)
    assert lake.storage_get("large") == data
    assert lake.storage_download("large", tmp_path / "large") == len(data)
    assert (tmp_path / "large").read_bytes() == data


def test_an_answer_left_in_the_middle_disturbs_no_other(lake: Client) -> None:
    lake.storage_put("large", os.urandom(20 * MIB))
    for _ in range(3):
        with lake._http.stream("GET", "/v1/storage/get/large") as answer:
            next(answer.iter_raw())
    assert lake.health()


def test_a_body_that_is_refused_early_ends_the_sending(lake: Client) -> None:
    lake.create("bodies", 3)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1_000:
            sent += 1
            yield b"x" * MIB

    answer = lake._http.post("/v1/vectors/index/bodies/add", content=endless())
    assert answer.status_code == 413
    assert sent < 200


def test_many_threads_share_one_client(lake: Client) -> None:
    vectors = filled(lake, "shared")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda j: lake.search("shared", vectors[j % 100], k=1)[0].id, range(400)))
    assert found == [str(j % 100) for j in range(400)]


def test_keys_of_the_environment_do_not_shut_the_owner_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKEHOUSE_KEYS", '[{"name": "x", "right": "read", "sha256": "' + "0" * 64 + '"}]')
    monkeypatch.setenv("LAKEHOUSE_ROLES", "storage")
    with lakehouse.connect(tmp_path / "data") as lake:
        lake.create("docs", 3)
        assert lake.indexes() == ("docs",)


# --- awaited


async def test_the_awaiting_client_works_on_the_callers_loop(tmp_path: Path) -> None:
    async with await lakehouse.connect_async(tmp_path / "data") as lake:
        await lake.create("docs", 2)
        await lake.add("docs", ["a", "b"], [[1, 0], [0, 1]])
        found = await asyncio.gather(*(lake.search("docs", [1, 0], k=1) for _ in range(50)))
        assert {one[0].id for one in found} == {"a"}
        data = os.urandom(5 * MIB)
        await lake.storage_put("large", data)
        assert await lake.storage_download("large", tmp_path / "large") == len(data)
        assert (tmp_path / "large").read_bytes() == data


def test_one_awaiting_client_works_on_one_loop_after_another() -> None:
    async def made() -> lakehouse.AsyncClient:
        lake = await lakehouse.connect_async("memory:")
        await lake.create("docs", 2)
        return lake

    lake = asyncio.run(made())

    async def used() -> None:
        assert await lake.indexes() == ("docs",)
        await lake.aclose()

    asyncio.run(used())


async def test_a_cancelled_request_ends_as_when_a_client_hangs_up(tmp_path: Path) -> None:
    async with await lakehouse.connect_async(tmp_path / "data") as lake:
        waiting = asyncio.create_task(lake.sql("SELECT count(*) FROM range(100000000000)", timeout_s=40))
        while not any(query.status == "running" for query in await lake.queries()):
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        while any(not query.ended for query in await lake.queries()):
            await asyncio.sleep(0.01)
        assert [query.status for query in await lake.queries()] == ["cancelled"]


# --- the lock


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("connect")
    with serving(str(folder / "data"), folder / "server.log") as running:
        yield running


def test_a_directory_that_a_server_holds_is_a_conflict_that_says_to_connect_to_its_url(
    server: LiveServer,
) -> None:
    with pytest.raises(errors.Conflict, match="connect to that server's URL") as refused:
        lakehouse.connect(server.data)
    assert str(server.process.pid) in refused.value.message
    with lakehouse.connect(server.url) as lake:
        assert lake.health()


def test_a_second_connection_to_a_directory_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    with lakehouse.connect(tmp_path), pytest.raises(errors.Conflict):
        lakehouse.connect(tmp_path)
    lakehouse.connect(tmp_path).close()


def test_nothing_runs_on_after_a_start_that_failed(tmp_path: Path) -> None:
    with lakehouse.connect(tmp_path):
        before = {thread.name for thread in threading.enumerate()}
        with pytest.raises(errors.Conflict):
            lakehouse.connect(tmp_path)
        assert {thread.name for thread in threading.enumerate()} <= before


def test_sql_that_is_off_makes_nobody_unready_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "supported", lambda: "no such kernel")
    with lakehouse.connect("memory:") as lake:
        with pytest.raises(errors.Unavailable, match="no such kernel"):
            lake.sql("SELECT 1")
        answer = lake._http.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]["sql"]) == (200, "off: no such kernel")


def test_ready_tells_of_every_wall_around_sql(lake: Client) -> None:
    lake.sql("SELECT 1")
    checks = lake._http.get("/readyz").json()["checks"]
    assert checks["sql"] == "ok"
    assert {f"sql {name}" for name in sandbox.ESSENTIAL} <= set(checks)


# --- the end


def test_closing_twice_is_closing_once_and_a_closed_client_says_so(tmp_path: Path) -> None:
    lake = lakehouse.connect(tmp_path)
    lake.close()
    lake.close()
    with pytest.raises(RuntimeError, match="closed"):
        lake.indexes()


def test_a_program_that_never_closes_ends_well_and_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    done = python(
        """
        import sys, lakehouse
        lake = lakehouse.connect(sys.argv[1])
        lake.create("docs", 2)
        lake.add("docs", ["a"], [[1, 0]])
        """,
        str(tmp_path / "data"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    with lakehouse.connect(tmp_path / "data") as lake:
        assert lake.count("docs") == 1


def test_a_fork_cannot_use_the_connection_and_does_not_end_it(tmp_path: Path) -> None:
    done = python(
        """
        import os, sys, warnings, lakehouse
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads is the very case
        lake = lakehouse.connect(sys.argv[1])
        lake.create("docs", 2)
        child = os.fork()
        if child == 0:
            try:
                lake.indexes()
            except lakehouse.core.errors.Invalid as error:
                print("child:", error, flush=True)
            lake.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print("parent:", lake.indexes())
        lake.close()
        """,
        str(tmp_path / "data"),
    )
    assert done.returncode == 0, done.stderr
    assert "after a fork, connect to a server's URL" in done.stdout
    assert "parent: ('docs',)" in done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = python(
        """
        import sys, lakehouse
        heavy = {"numpy", "httpx", "pyarrow", "pydantic", "uvloop", "duckdb", "importlib.metadata"} & set(sys.modules)
        sys.exit(f"imported {heavy}" if heavy else 0)
        """
    )
    assert done.returncode == 0, done.stderr


def test_connecting_to_a_url_imports_no_server(server: LiveServer) -> None:
    done = python(
        """
        import sys, lakehouse
        with lakehouse.connect(sys.argv[1]) as lake:
            lake.health()
        heavy = {"lakehouse.server.app", "uvicorn", "duckdb", "pydantic", "boto3", "pyarrow"} & set(sys.modules)
        sys.exit(f"imported {heavy}" if heavy else 0)
        """,
        server.url,
    )
    assert done.returncode == 0, done.stderr


def test_declared_resources_are_looked_after_inside_this_process_too(tmp_path: Path) -> None:
    declared = {
        "apiVersion": "lakehouse.agentview.dev/v1alpha1",
        "kind": "VectorIndex",
        "metadata": {"name": "wanted"},
        "spec": {"dimension": 3},
    }
    with lakehouse.connect(tmp_path) as lake:
        assert [one.result for one in lake.apply(declared)] == ["created"]
        deadline = time.monotonic() + 60
        while not lake.get_resource("VectorIndex", "wanted").ready:
            assert time.monotonic() < deadline, lake.get_resource("VectorIndex", "wanted")
            time.sleep(0.02)
        assert lake.index("wanted").params.dimension == 3
        with pytest.raises(errors.Conflict, match="VectorIndex/wanted"):
            lake.drop("wanted")
    with lakehouse.connect(tmp_path, declared=False) as lake:
        assert lake.indexes() == ("wanted",)
        with pytest.raises(errors.LakehouseError, match="lakehouse up"):
            lake.list_resources()
