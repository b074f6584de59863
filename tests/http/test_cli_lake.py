"""`lakehouse ingest`, `dataset` and `sql` against a live server and on a directory; the prompt, typed into."""

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from lakehouse.cli import prompt, tables
from lakehouse.cli.output import Exit
from lakehouse.cli.sql import ResultFormat, Wish
from lakehouse.client import Client, Table
from live_server import LiveServer, command_line, environment, serving

PRODUCTS = "id,name,price\n1,apple,1.5\n2,pear,cheap\n3,fig,3.25\n"
ENDLESS = "SELECT count(*) FROM range(100000000000)"
WAIT_S_MAX = 60.0

pytestmark = pytest.mark.xdist_group("cli_lake")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("lake")
    with serving(str(folder / "data"), folder / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def lake(server: LiveServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def products(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("files") / "products.csv"
    file.write_text(PRODUCTS)
    done = lakehouse(server, "ingest", str(file), "--name", "products", "--option", "types=price:DOUBLE")
    assert done.returncode == 0, done.stderr
    assert "published products version 1: 2 rows" in done.stderr
    assert "1 row could not be read" in done.stderr
    assert "lakehouse dataset rejects products" in done.stderr
    return file


def lakehouse(server: LiveServer, *args: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command_line(*args),
        capture_output=True,
        text=True,
        env=environment({"LAKEHOUSE_URL": server.url, "COLUMNS": "200"}),
        check=False,
        timeout=120,
        input=stdin if stdin is not None else "",
    )


def answered(server: LiveServer, *args: str) -> Any:
    done = lakehouse(server, *args, "--output", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# --- ingest and datasets


def test_the_same_file_again_publishes_nothing(server: LiveServer, products: Path) -> None:
    args = ("ingest", str(products), "--name", "products", "--option", "types=price:DOUBLE")
    done = lakehouse(server, *args)
    assert (done.returncode, done.stdout) == (0, "")
    assert "no change; products stays at version 1" in done.stderr
    assert answered(server, *args)["published"] is False


def test_rejected_rows_are_shown_with_file_and_line(server: LiveServer, products: Path) -> None:
    found = answered(server, "dataset", "rejects", "products")
    assert found["count"] == 1
    (row,) = found["rejects"]
    assert (row["line"], row["column"], row["text"]) == (3, "price", "2,pear,cheap")
    assert row["source"].endswith("products.csv")
    assert "2,pear,cheap" in lakehouse(server, "dataset", "rejects", "products").stdout


def test_a_dry_run_shows_schema_sample_and_rejects_and_publishes_nothing(
    server: LiveServer, products: Path
) -> None:
    args = ("ingest", str(products), "--name", "trial", "--option", "types=price:DOUBLE", "--dry-run")
    done = lakehouse(server, *args)
    assert done.returncode == 0, done.stderr
    for word in ("schema", "DOUBLE", "sample", "apple", "rejected: 1 row", "2,pear,cheap"):
        assert word in done.stdout
    assert "nothing was published" in done.stderr
    assert lakehouse(server, "dataset", "show", "trial").returncode == Exit.NOT_FOUND


def test_a_schema_that_does_not_fit_is_a_conflict_that_shows_the_difference(
    server: LiveServer, products: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.csv"
    other.write_text("id,colour\n1,red\n")
    done = lakehouse(server, "ingest", str(other), "--name", "products")
    assert done.returncode == Exit.CONFLICT
    assert "+ colour VARCHAR" in done.stderr
    assert answered(server, "dataset", "show", "products")["version"] == 1


def test_several_files_are_one_version_and_sending_them_again_changes_nothing(
    server: LiveServer, tmp_path: Path
) -> None:
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for file in files:
        file.write_text(f"id,name\n{len(file.name)},{file.stem}\n")
    args = ("ingest", *map(str, files), "--name", "pair")
    done = lakehouse(server, *args)
    assert done.returncode == 0, done.stderr
    assert "2 files: published pair version 1: 2 rows" in done.stderr
    assert "2 files: no change; pair stays at version 1" in lakehouse(server, *args).stderr
    assert answered(server, *args)["published"] is False
    files[1].write_text("id,name\n9,c\n")
    assert answered(server, *args)["manifest"]["version"] == 2
    assert answered(server, "sql", "SELECT name FROM pair ORDER BY 1")["rows"] == [["a"], ["c"]]


def test_versions_are_listed_shown_and_queried_and_a_dataset_goes(server: LiveServer, tmp_path: Path) -> None:
    file = tmp_path / "steps.ndjson"
    for step in range(3):
        file.write_text(f'{{"step": {step}}}\n')
        done = lakehouse(server, "ingest", str(file), "-n", "steps", "--mode", "append")
        assert done.returncode == 0, done.stderr
    assert [one["rows"] for one in answered(server, "dataset", "versions", "steps")] == [1, 2, 3]
    assert answered(server, "dataset", "show", "steps@v2")["row_count"] == 2
    assert answered(server, "sql", 'SELECT sum(step) FROM "steps@v2"')["rows"] == [[1]]
    assert {row["name"]: row["version"] for row in answered(server, "dataset", "list")}["steps"] == 3
    shown = lakehouse(server, "dataset", "show", "steps").stdout
    assert "BIGINT" in shown
    assert lakehouse(server, "dataset", "delete", "steps", "--yes").returncode == 0
    assert lakehouse(server, "dataset", "show", "steps").returncode == Exit.NOT_FOUND


def test_a_transform_chooses_what_becomes_the_dataset(server: LiveServer, tmp_path: Path) -> None:
    file, query = tmp_path / "raw.ndjson", tmp_path / "cheap.sql"
    file.write_text('{"id": 1, "price": 5}\n{"id": 2, "price": 500}\n')
    query.write_text("SELECT id FROM source WHERE price < 50")
    done = lakehouse(server, "ingest", str(file), "--name", "cheap", "--transform", f"@{query}")
    assert done.returncode == 0, done.stderr
    assert answered(server, "sql", "SELECT * FROM cheap")["rows"] == [[1]]


# --- SQL


def test_a_table_shows_the_rows_and_counts_them(server: LiveServer, products: Path) -> None:
    done = lakehouse(server, "sql", "SELECT name, price FROM products ORDER BY price DESC")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0] == ["name", "price"]
    assert lines[2:] == [["fig", "3.25"], ["apple", "1.5"], ["2", "rows"]]


def test_a_long_table_is_cut_off_and_says_so(server: LiveServer) -> None:
    done = lakehouse(server, "sql", "SELECT i FROM range(5000) t(i)")
    assert "1,000 rows, truncated" in done.stdout
    assert "7 rows, truncated" in lakehouse(server, "sql", "FROM range(5000)", "--limit", "7").stdout


@pytest.mark.parametrize("form", ["json", "ndjson", "csv", "parquet", "arrow"])
def test_every_format_goes_to_a_file_and_to_a_pipe(
    server: LiveServer, products: Path, tmp_path: Path, form: str
) -> None:
    query = "SELECT id, name FROM products ORDER BY id"
    file = tmp_path / f"out.{form}"
    done = lakehouse(server, "sql", query, "--out", str(file))
    assert done.returncode == 0, done.stderr
    assert rows_of(form, file.read_bytes()) == [(1, "apple"), (3, "fig")]
    piped = subprocess.run(
        command_line("sql", query, "-o", form),
        capture_output=True,
        env=environment({"LAKEHOUSE_URL": server.url}),
        check=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert rows_of(form, piped.stdout) == [(1, "apple"), (3, "fig")]


def rows_of(form: str, data: bytes) -> list[tuple[Any, ...]]:
    match form:
        case "json":
            return [tuple(row) for row in json.loads(data)["rows"]]
        case "ndjson":
            return [tuple(json.loads(line).values()) for line in data.splitlines()]
        case "csv":
            lines = data.decode().splitlines()[1:]
            return [(int(line.split(",")[0]), line.split(",")[1].strip('"')) for line in lines]
        case "parquet":
            return Table(pq.read_table(pa.BufferReader(data))).rows()
    return Table(pa.ipc.open_stream(data).read_all()).rows()


def test_a_result_never_overwrites_a_file_unless_it_is_forced(server: LiveServer, tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    file.write_text("mine")
    assert lakehouse(server, "sql", "SELECT 1", "--out", str(file)).returncode == Exit.CONFLICT
    assert file.read_text() == "mine"
    assert lakehouse(server, "sql", "SELECT 1 AS x", "--out", str(file), "--force").returncode == 0
    assert file.read_text().splitlines()[1] == "1"


def test_a_query_that_fails_leaves_no_file(server: LiveServer, tmp_path: Path) -> None:
    done = lakehouse(server, "sql", "SELECT nope", "--out", str(tmp_path / "out.csv"))
    assert done.returncode == Exit.USAGE
    assert list(tmp_path.iterdir()) == []


def test_statements_come_from_a_file_or_a_pipe(server: LiveServer, tmp_path: Path) -> None:
    text = "-- two of them\nSELECT 1 AS x;\nSELECT ';' AS y"
    file = tmp_path / "both.sql"
    file.write_text(text)
    for done in (
        lakehouse(server, "sql", "-f", str(file), "-o", "ndjson"),
        lakehouse(server, "sql", "-o", "ndjson", stdin=text),
    ):
        assert done.returncode == 0, done.stderr
        assert [json.loads(line) for line in done.stdout.splitlines()] == [{"x": 1}, {"y": ";"}]


def test_parameters_are_values_and_never_text_of_the_statement(server: LiveServer) -> None:
    hostile = "'; DROP TABLE products; --"
    found = answered(
        server, "sql", "SELECT $a AS a, $b + 1 AS b", "--param", f"a={hostile}", "--param", "b=2"
    )
    assert found["rows"] == [[hostile, 3]]


def test_explaining_shows_the_plan_below_the_rows(server: LiveServer, products: Path) -> None:
    done = lakehouse(server, "sql", "SELECT name FROM products WHERE price > 2", "--explain")
    assert done.returncode == 0, done.stderr
    rows, _, plan = done.stdout.partition("1 row\n")
    assert "fig" in rows
    assert "READ_PARQUET" in plan


def test_a_reader_that_has_seen_enough_is_no_error(server: LiveServer) -> None:
    command = command_line("sql", "SELECT i FROM range(2000000) t(i)", "-o", "csv")
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment({"LAKEHOUSE_URL": server.url}),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().strip() in (b"i", b'"i"')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(WAIT_S_MAX) == 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("sql", "SELECT * FROM nope"), Exit.USAGE, "dataset list"),
        (("sql", "SELECT 1; SELECT 2", "--out", "x.csv"), Exit.USAGE, "one statement"),
        (("sql", "SELECT 1", "--out", "x.unknown"), Exit.USAGE, "-o json"),
        (("sql", "SELECT 1", "-f", "x.sql"), Exit.USAGE, "not both"),
        (("sql", "-f", "/nowhere/x.sql"), Exit.NOT_FOUND, "no such file"),
        (("sql", "SELECT 1", "--out", "/nowhere/x.csv"), Exit.NOT_FOUND, "no such folder. folder=`/nowhere`"),
        (("sql", " ; "), Exit.USAGE, "no statement"),
        (("sql", "SELECT $x", "--param", "x"), Exit.USAGE, "NAME=VALUE"),
        (("sql", ENDLESS, "--timeout", "0.3"), Exit.USAGE, "timeout"),
        (("ingest", "/nowhere/x.csv", "--name", "x"), Exit.NOT_FOUND, "no such file"),
        (("ingest", __file__, "--name", "x", "--format", "parquet"), Exit.USAGE, "not a Parquet file"),
        (("dataset", "rejects", "nope"), Exit.NOT_FOUND, "dataset list"),
        (("dataset", "delete", "nope", "--yes"), Exit.NOT_FOUND, "nope"),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_says_what_to_do(
    server: LiveServer, args: tuple[str, ...], code: Exit, words: str
) -> None:
    done = lakehouse(server, *args)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_help_has_examples(server: LiveServer) -> None:
    for command in ("sql", "ingest"):
        assert "Examples" in lakehouse(server, command, "--help").stdout


# --- without a server


def test_a_directory_is_worked_on_without_a_server(server: LiveServer, tmp_path: Path) -> None:
    file, data = tmp_path / "products.csv", ("--data", str(tmp_path / "data"))
    file.write_text("id,price\n1,2\n2,3\n")
    assert answered(server, "ingest", str(file), "--name", "products", *data)["published"]
    assert answered(server, "dataset", "list", *data)[0]["rows"] == 2
    assert answered(server, "sql", "SELECT sum(price) FROM products", *data)["rows"] == [[5]]
    assert lakehouse(server, "dataset", "delete", "products", "--yes", *data).returncode == 0
    assert answered(server, "dataset", "list", *data) == []


def test_a_directory_that_a_server_holds_is_a_conflict(server: LiveServer) -> None:
    done = lakehouse(server, "sql", "SELECT 1", "--data", server.data)
    assert done.returncode == Exit.CONFLICT
    assert "connect to that server's URL" in done.stderr


# --- tables on a terminal


def drawn(table: pa.Table, width: int = 60) -> list[str]:
    out = io.StringIO()
    terminal = Console(file=out, force_terminal=True, width=width, color_system=None)
    tables.print_result(Table(table), terminal)
    return out.getvalue().splitlines()


def test_a_terminal_shows_the_ends_of_a_long_result() -> None:
    lines = drawn(pa.table({"n": list(range(1_000))}))
    assert len(lines) < 50
    shown = [line.strip() for line in lines]
    assert "0" in shown
    assert "999" in shown
    assert "⋮" in shown
    assert shown[-1] == "1,000 rows, 40 shown"


def test_columns_that_do_not_fit_are_left_out_and_counted() -> None:
    lines = drawn(pa.table({f"column_{j}": ["some text that is long"] for j in range(20)}))
    assert all(len(line) <= 60 for line in lines)
    assert "of 20 columns shown" in lines[-1]
    assert "column_0" in lines[1]


def test_what_looks_like_markup_is_text() -> None:
    assert any("[bold]x[/bold]" in line for line in drawn(pa.table({"[red]": ["[bold]x[/bold]"]})))


# --- the prompt


def typed(lake: Client, *entries: str, wish: Wish | None = None) -> None:
    """Type into a prompt, each entry with Enter, then leave."""
    with create_pipe_input() as keys:
        for entry in entries:
            keys.send_text(entry + "\r")
        keys.send_text("\x04")
        prompt.Prompt(
            lake,
            wish or Wish(ResultFormat.TABLE),
            input=keys,
            output=DummyOutput(),
            history=InMemoryHistory(),
        ).run()


def test_a_statement_may_span_lines_until_its_semicolon(
    lake: Client, products: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(lake, "SELECT name", "FROM products", "WHERE id = 3;", ".mode json", "SELECT 2 AS two;")
    out = capsys.readouterr().out
    assert "fig" in out
    assert '"rows":[[2]]' in out


def test_the_commands_of_the_prompt(lake: Client, products: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "docs" not in lake.indexes():
        lake.create("docs", 3)
    typed(lake, ".help", ".tables", ".schema products", ".indexes", ".timer on", "SELECT 1 AS x;", ".nope")
    shown = capsys.readouterr()
    for word in ("Ctrl-D", "products", "DOUBLE", "docs", "1 row, "):
        assert word in shown.out
    assert "no such command" in shown.err


def test_what_goes_wrong_is_told_and_the_prompt_goes_on(
    lake: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(lake, "SELECT nope;", ".schema missing", ".mode nonsense", "SELECT 'still here' AS x;")
    shown = capsys.readouterr()
    assert "nope" in shown.err
    assert "no such dataset" in shown.err
    assert "table, json, ndjson, csv" in shown.err
    assert "still here" in shown.out


@pytest.mark.parametrize("leaving", [".quit", ".exit", ".quit;", "exit", "quit;"])
def test_a_word_leaves(lake: Client, leaving: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed(lake, leaving, "SELECT 'never' AS x;")
    assert "never" not in capsys.readouterr().out


def completed(lake: Client, text: str) -> Sequence[str]:
    names = prompt.Names(lake)
    names.refresh()
    completer = prompt.SqlCompleter(names, [".tables", ".schema", ".mode", ".timer"])
    return [one.text for one in completer.get_completions(Document(text), CompleteEvent())]


def test_completion_knows_datasets_columns_indexes_and_words(lake: Client, products: Path) -> None:
    if "docs" not in lake.indexes():
        lake.create("docs", 3)
    assert completed(lake, "SELECT * FROM prod") == ["products"]
    assert completed(lake, "SELECT pri") == ["price"]
    assert "docs" in completed(lake, "SELECT * FROM vector_search('do")
    assert completed(lake, "sel") == ["SELECT"]
    assert completed(lake, ".ta") == [".tables"]
    assert completed(lake, ".schema pro") == ["products"]
    assert completed(lake, ".mode c") == ["csv"]
    assert completed(lake, "SELECT ") == []


def test_on_a_terminal_ctrl_c_ends_the_query_and_the_prompt_remembers(
    server: LiveServer, lake: Client, tmp_path: Path
) -> None:
    """The real program on a real terminal."""
    # A suite that runs in the background hands on that SIGINT is ignored; a terminal's programs start without that.
    spawn = (
        "import pty, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        "sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    )
    extra = {
        "LAKEHOUSE_URL": server.url,
        "XDG_STATE_HOME": str(tmp_path),
        "TERM": "xterm",
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }
    with (
        subprocess.Popen(
            [sys.executable, "-c", spawn, *command_line("sql")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment(extra),
        ) as process,
        contextlib.ExitStack() as kept,
    ):
        kept.callback(process.kill)
        assert process.stdin is not None
        assert process.stdout is not None
        screen = Screen(process.stdout.fileno())
        keys = process.stdin.fileno()
        screen.wait_for("lakehouse>")
        os.write(keys, ENDLESS.encode() + b";\r")
        eventually(lambda: any(one.status == "running" for one in lake.queries()))
        os.write(keys, b"\x03")
        screen.wait_for("cancelled")
        eventually(lambda: all(one.ended for one in lake.queries()))
        screen.wait_for("lakehouse>")
        os.write(keys, b"SELECT 6 * 7 AS answer;\r")
        screen.wait_for("42")
        screen.wait_for("lakehouse>")
        os.write(keys, b"\x04")
        process.stdin.close()
        assert process.wait(WAIT_S_MAX) == 0
    remembered = (tmp_path / "lakehouse" / "sql_history").read_text()
    assert ENDLESS in remembered
    assert "6 * 7" in remembered


class Screen:
    """What a program wrote to its terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._seen = b""

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + WAIT_S_MAX
        while text.encode() not in self._seen:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            chunk = os.read(self._fd, 65_536) if ready else b""
            assert chunk, self._seen[-2_000:]
            self._seen += chunk
        self._seen = self._seen.split(text.encode(), 1)[1]


def eventually(holds: Any) -> None:
    deadline = time.monotonic() + WAIT_S_MAX
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
