"""The command line against a live server: what is stored is found, told in tables and JSON, with its exit codes."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lakehouse.cli import snapshots
from lakehouse.cli.output import Exit
from lakehouse.client import Client
from live_server import ROOT, LiveServer, command_line, environment, serving
from ports import free_port

PACKAGES = ROOT / "examples" / "debian-packages.parquet"
ROWS = 5_115

pytestmark = pytest.mark.xdist_group("cli")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("cli")
    with serving(str(folder / "data"), folder / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def loaded(server: LiveServer) -> LiveServer:
    done = lakehouse(server, "add", "packages", str(PACKAGES), "--create", "--output", "json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["length"]) == (ROWS, ROWS)
    return server


def lakehouse(server: LiveServer, *args: str) -> "subprocess.CompletedProcess[str]":
    env = environment({"LAKEHOUSE_URL": server.url, "COLUMNS": "200"})
    return subprocess.run(
        command_line(*args),
        capture_output=True,
        text=True,
        env=env,
        check=False,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def answered(server: LiveServer, *args: str) -> Any:
    done = lakehouse(server, *args, "--output", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_packages_like_postgresql_are_databases(loaded: LiveServer) -> None:
    found = answered(loaded, "search", "packages", "--like", "postgresql", "--k", "5")["results"]
    assert found[0]["id"] == "postgresql-contrib"
    assert len(found) == 5
    assert found == sorted(found, key=lambda hit: hit["distance"])


def test_a_filter_holds_for_every_result_and_the_plan_counts_them(loaded: LiveServer) -> None:
    where = "section = 'python' AND installed_size_kib < 500"
    found = answered(loaded, "search", "packages", "--id", "postgresql", "--filter", where)
    assert len(found["results"]) == 10
    for hit in found["results"]:
        assert hit["metadata"]["section"] == "python"
        assert hit["metadata"]["installed_size_kib"] < 500
    assert found["plan"]["matched"] > 10


def test_a_vector_from_a_file_finds_its_item(loaded: LiveServer, tmp_path: Path) -> None:
    with Client(loaded.url) as lake:
        vector = lake.item("packages", "vim").vector
    assert vector is not None
    file = tmp_path / "vector.json"
    file.write_text(json.dumps(vector.tolist()))
    found = answered(loaded, "search", "packages", "--vector", f"@{file}", "-k", "1")["results"]
    assert found[0]["id"] == "vim"


def test_a_table_shows_the_chosen_columns_only(loaded: LiveServer) -> None:
    done = lakehouse(loaded, "search", "packages", "--like", "git", "--show", "section")
    header = done.stdout.splitlines()[1]
    assert header.split() == ["id", "distance", "section"]


def test_adding_again_changes_nothing(loaded: LiveServer) -> None:
    before = answered(loaded, "index", "show", "packages")
    answered(loaded, "add", "packages", str(PACKAGES))
    assert answered(loaded, "index", "show", "packages") == before


def test_chosen_metadata_columns_are_the_only_ones(loaded: LiveServer) -> None:
    answered(loaded, "add", "narrow", str(PACKAGES), "--create", "--metadata-columns", "section")
    with Client(loaded.url) as lake:
        assert lake.item("narrow", "vim").metadata == {"section": "editors"}
    assert lakehouse(loaded, "index", "delete", "narrow", "--yes").returncode == 0


def test_resuming_sends_only_what_is_missing(loaded: LiveServer) -> None:
    summary = answered(
        loaded, "add", "rest", str(PACKAGES), "--create", "--batch-size", "1000", "--resume", "run1@4000"
    )
    assert (summary["rows"], summary["length"]) == (ROWS - 4_000, ROWS - 4_000)


def test_indexes_are_made_listed_merged_and_deleted(loaded: LiveServer) -> None:
    assert answered(loaded, "index", "create", "a", "-d", "3", "--distance", "dot")["distance"] == "dot"
    assert answered(loaded, "index", "create", "b", "-d", "3")["length"] == 0
    with Client(loaded.url) as lake:
        lake.add("a", ["x", "y"], np.eye(3, dtype=np.float32)[:2], [{"n": 1}, {"n": 2}])
        lake.add("b", ["y"], [[0, 0, 1]])
    merged = answered(loaded, "index", "merge", "a", "b", "--clear-source")
    assert (merged["merged"], merged["skipped_already_present"], merged["length_dest"]) == (1, 1, 2)
    assert {row["name"]: row["length"] for row in answered(loaded, "index", "list")}["a"] == 0
    for name in ("a", "b"):
        assert lakehouse(loaded, "index", "delete", name, "--yes").returncode == 0
    assert {"a", "b"}.isdisjoint(row["name"] for row in answered(loaded, "index", "list"))


def test_stats_and_recall_are_told(loaded: LiveServer) -> None:
    assert answered(loaded, "index", "stats", "packages")["length"] == ROWS
    assert answered(loaded, "index", "recall", "packages", "--samples", "20")["recall"] >= 0.9
    assert "shard 0" in lakehouse(loaded, "index", "stats", "packages").stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("index", "show", "nope"), Exit.NOT_FOUND, "index list"),
        (("index", "create", "packages", "-d", "3"), Exit.CONFLICT, "exists"),
        (("index", "create", "new", "-d", "0"), Exit.USAGE, "dimension"),
        (("search", "packages", "--like", "no-such-package"), Exit.NOT_FOUND, "no-such-package"),
        (("search", "packages", "--vector", "[1, 2]"), Exit.USAGE, "384"),
        (("search", "packages", "--vector", "[1,"), Exit.USAGE, "JSON list"),
        (("search", "packages", "--like", "vim", "--filter", "section ="), Exit.USAGE, "filter"),
        (("add", "missing", str(PACKAGES)), Exit.NOT_FOUND, "--create"),
        (("add", "packages", str(PACKAGES), "--id-column", "nope"), Exit.USAGE, "nope"),
        (("index", "merge", "packages", "packages"), Exit.USAGE, "dest"),
        (("index", "delete", "nope", "--yes"), Exit.NOT_FOUND, "nope"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_says_what_to_do(
    loaded: LiveServer, args: tuple[str, ...], code: Exit, words: str
) -> None:
    done = lakehouse(loaded, *args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_index_of_another_dimension_is_refused_before_anything_is_sent(loaded: LiveServer) -> None:
    answered(loaded, "index", "create", "narrow3", "-d", "3")
    done = lakehouse(loaded, "add", "narrow3", str(PACKAGES))
    assert done.returncode == Exit.USAGE
    assert "384" in done.stderr
    assert answered(loaded, "index", "show", "narrow3")["length"] == 0


@pytest.mark.parametrize("version", ["2", "3"])
def test_an_export_is_whole_and_imports_bit_for_bit(loaded: LiveServer, tmp_path: Path, version: str) -> None:
    file = tmp_path / f"v{version}.lhv1"
    made = answered(loaded, "snapshot", "export", "packages", "--version", version, "--out", str(file))
    assert (made["version"], made["items"]) == (int(version), ROWS)
    assert answered(loaded, "snapshot", "verify", str(file))["ok"]
    assert answered(loaded, "snapshot", "inspect", str(file))["items"] == ROWS
    name = f"imported{version}"
    assert answered(loaded, "snapshot", "import", str(file), "--name", name)["length"] == ROWS
    with Client(loaded.url) as lake:
        for item_id in ("vim", "postgresql", "0ad"):
            was, now = lake.item("packages", item_id), lake.item(name, item_id)
            assert was.vector is not None
            assert now.vector is not None
            assert (now.vector.tobytes(), now.metadata) == (was.vector.tobytes(), was.metadata)
    assert snapshots.read_items(file).params.dimension == 384


def test_an_import_into_an_index_that_exists_is_a_conflict(loaded: LiveServer, tmp_path: Path) -> None:
    file = tmp_path / "x.lhv1"
    answered(loaded, "snapshot", "export", "packages", "--out", str(file))
    assert (
        lakehouse(loaded, "snapshot", "import", str(file), "--name", "packages").returncode == Exit.CONFLICT
    )


def test_an_export_never_overwrites_a_file(loaded: LiveServer, tmp_path: Path) -> None:
    file = tmp_path / "x.lhv1"
    file.write_text("mine")
    assert lakehouse(loaded, "snapshot", "export", "packages", "--out", str(file)).returncode == Exit.CONFLICT
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_a_directory_that_a_server_holds_is_not_opened_beside_it(loaded: LiveServer, tmp_path: Path) -> None:
    done = lakehouse(
        loaded, "snapshot", "export", "packages", "--data", loaded.data, "--out", str(tmp_path / "x")
    )
    assert done.returncode == Exit.CONFLICT
    assert str(loaded.process.pid) in done.stderr


def test_a_directory_that_no_server_holds_is_exported_and_imported(tmp_path: Path) -> None:
    with serving(str(tmp_path / "data"), tmp_path / "log") as server:
        with Client(server.url) as lake:
            lake.create("docs", 2)
            lake.add("docs", ["a", "b"], [[1, 0], [0, 1]], [{"n": 1}, None])
        assert server.terminate() == 0
        file = tmp_path / "docs.lhv1"
        data = ("--data", str(tmp_path / "data"))
        assert (
            answered(server, "snapshot", "export", "docs", "--version", "2", "--out", str(file), *data)[
                "items"
            ]
            == 2
        )
        assert answered(server, "snapshot", "import", str(file), "--name", "copy", *data)["length"] == 2
        assert (
            lakehouse(server, "snapshot", "import", str(file), "--name", "docs", *data).returncode
            == Exit.CONFLICT
        )


def test_a_port_in_use_and_a_directory_that_is_held_end_a_start_with_a_conflict(
    loaded: LiveServer, tmp_path: Path
) -> None:
    port = lakehouse(loaded, "serve", "--data", str(tmp_path / "d"), "--port", str(loaded.port))
    assert port.returncode == Exit.CONFLICT
    assert "--port" in port.stderr
    held = lakehouse(loaded, "serve", "--data", loaded.data, "--port", str(free_port()))
    assert held.returncode == Exit.CONFLICT
    assert str(loaded.process.pid) in held.stderr


def test_an_address_that_is_not_loopback_needs_keys(loaded: LiveServer) -> None:
    done = lakehouse(loaded, "serve", "--data", "memory:", "--host", "0.0.0.0", "--port", "0")
    assert done.returncode == Exit.USAGE
    assert "--insecure" in done.stderr


def test_doctor_sees_the_running_server(loaded: LiveServer) -> None:
    done = lakehouse(loaded, "doctor", "--data", loaded.data, "--port", str(loaded.port), "--output", "json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert str(loaded.process.pid) in checks["lock"]["found"]
    assert "a lakehouse server answers" in checks["port"]["found"]
    assert done.returncode == 0


def test_a_new_key_opens_a_server_that_wants_one(tmp_path: Path) -> None:
    made = json.loads(
        subprocess.run(
            command_line("key", "new", "--right", "read", "--output", "json"),
            capture_output=True,
            env=environment(),
            check=True,
            timeout=60,
        ).stdout
    )
    keys = json.dumps([{"name": made["name"], "right": made["right"], "sha256": made["sha256"]}])
    with serving("memory:", tmp_path / "log", env={"LAKEHOUSE_KEYS": keys}) as server:
        refused = lakehouse(server, "index", "list")
        assert refused.returncode == Exit.FAILED
        assert "LAKEHOUSE_API_KEY" in refused.stderr
        assert answered(server, "index", "list", "--api-key", made["key"]) == []
        denied = lakehouse(server, "index", "create", "a", "-d", "2", "--api-key", made["key"])
        assert denied.returncode == Exit.FAILED
        assert "key new" in denied.stderr
