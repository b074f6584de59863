"""One query, from hostile text to encoded rows, in a process made for it and killed after it.

The process is confined before it reads the text.  It says which tables the text names, is told which files
those are, closes the door behind them, and runs.  What it does not do: look anything up; its parent does.
"""

import copy
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import duckdb
import numpy as np
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from lakehouse.sql import encode, hits, planning, sandbox, searching, statement
from lakehouse.sql.ask import Ask
from lakehouse.sql.encode import Column
from lakehouse.sql.failed import FailedError
from lakehouse.sql.planning import Call, Lookup, Plan, Rows
from lakehouse.sql.searching import Searches
from lakehouse.sql.statement import RefusedError
from lakehouse.sql.text import MACRO, found, literal, quoted, told, view, without_semicolon
from lakehouse.sql.wire import Channel, Kind

BUFFER_SHARE = 0.75
"""Of a worker's address space what DuckDB may use for its buffers; the rest is for what it does not count."""
ALARM_SLACK_S = 0.5
"""How long after its deadline the kernel ends a worker that its parent has not ended."""
HIT = "STRUCT(id VARCHAR, distance DOUBLE, metadata VARCHAR)"
DESCRIBED = "SELECT * FROM ("
SEARCH = f"""{MACRO}
SELECT hit.id AS id, hit.distance AS distance, hit.metadata::JSON AS metadata
FROM (SELECT unnest(_vs(
    idx,
    CASE WHEN typeof(q) = 'VARCHAR' THEN NULL ELSE CAST(q AS FLOAT[]) END,
    CASE WHEN typeof(q) = 'VARCHAR' THEN q::VARCHAR END,
    k::BIGINT,
    filter
)) AS hit)
"""


class Engine:
    """An in-memory DuckDB, opened once before any worker is forked from it; needs no second thread."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        self.seal: Callable[[Sequence[str]], None] = sandbox.read_only
        """What closes every file but those of the query."""
        self.search: Callable[..., pa.Array] | None = None
        self.root = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "memory_limit": f"{int(memory_bytes * BUFFER_SHARE)}B",
                "temp_directory": "",
                "python_enable_replacements": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
                "errors_as_json": True,
            },
        )
        duckdb.set_default_connection(
            self.root
        )  # it parses the names of types below; another would start threads
        self.root.execute("SET GLOBAL TimeZone = 'UTC'")
        self.root.execute("SET GLOBAL parquet_metadata_cache = true")
        self.root.create_function(
            "_vs",
            self._search,
            ["VARCHAR", "FLOAT[]", "VARCHAR", "BIGINT", "VARCHAR"],
            f"{HIT}[]",
            type=PythonUDFType.ARROW,
            null_handling=FunctionNullHandling.SPECIAL,
        )
        self.root.execute(SEARCH)
        self._constant = self._serialized("SELECT CAST(NULL AS FLOAT[])")

    def _serialized(self, sql: str) -> dict[str, Any]:
        row = self.root.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
        assert row is not None
        tree: dict[str, Any] = json.loads(row[0])
        return tree

    def constant(self, node: Mapping[str, Any]) -> str:
        """The serialized statement that makes a vector of a literal list."""
        tree = copy.deepcopy(self._constant)
        tree["statements"][0]["node"]["select_list"][0]["child"] = node
        return json.dumps(tree)

    def _search(
        self, index: pa.Array, vectors: pa.Array, items: pa.Array, k: pa.Array, filters: pa.Array
    ) -> pa.Array:
        if self.search is None:
            raise FailedError("internal", "no search is connected")
        return self.search(index, vectors, items, k, filters)


def _parameters(text: bytes) -> Any:
    """The client's JSON as DuckDB takes it.  Raises `FailedError`."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FailedError("invalid", "`parameters` cannot be read: nested too deeply?") from error
    if value is not None and not isinstance(value, list | dict):
        raise FailedError("invalid", "`parameters` is a list for ? and $1, or an object for $name")
    return value or None


# --- the process


Rehearsal = Callable[[Engine, duckdb.DuckDBPyConnection], Iterator[None]]
"""What a worker does, once confined and before its query comes, step by step, so that the query takes less time."""
REHEARSED_BYTES = 96 << 20
"""Address space that rehearsing takes, and that is not counted as the query's."""


def serve(engine: Engine, connection: socket.socket, readable: Path, rehearse: Rehearsal) -> NoReturn:
    """Confine this process, answer one frame, and end.  Never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.setrecursionlimit(statement.DEPTH_MAX)
        cursor = engine.root.cursor()
        sandbox.confine(readable, engine.memory_bytes + REHEARSED_BYTES, connection.fileno())
        channel = Channel(connection)
        _rehearsed(rehearse(engine, cursor), connection)
        kind, payload = channel.receive()
        if kind is Kind.PROBE:
            channel.send(Kind.REPORT, json.dumps(sandbox.self_test(Path(sys.executable))).encode())
        elif kind is Kind.ASK:
            answer(engine, cursor, channel, payload)
    except (EOFError, OSError):
        os._exit(1)  # nobody is there to be told
    finally:
        os._exit(0)


def _rehearsed(steps: Iterator[None], connection: socket.socket) -> None:
    """Rehearse until a query has come: whoever waits for it waits for one step at most."""
    coming = select.poll()
    coming.register(connection, select.POLLIN)
    while not coming.poll(0) and next(steps, steps) is not steps:
        pass


def answer(engine: Engine, cursor: duckdb.DuckDBPyConnection, channel: Channel, payload: bytes) -> None:
    """Run one query and send its result or what is wrong with it."""
    sql = ""
    try:
        ask = Ask.parse(payload)
        sql = ask.sql
        _Query(engine, cursor, channel, ask).run()
    except (EOFError, BrokenPipeError, ConnectionError):
        raise
    except FailedError as error:
        _send_failure(channel, sql, error)
    except RefusedError as error:
        _send_failure(channel, sql, FailedError("invalid", error.message, error.offset))
    except (MemoryError, pa.ArrowMemoryError):
        _send_failure(channel, sql, _out_of_memory(engine.memory_bytes))
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told and the process ends
        _send_failure(channel, sql, FailedError("internal", f"{type(error).__name__}: {error}"[:2_000]))


def _send_failure(channel: Channel, sql: str, error: FailedError) -> None:
    where = {}
    if error.offset is not None:
        where = dict(zip(("line", "column"), statement.line_and_column(sql, error.offset), strict=True))
    channel.send(Kind.FAILED, json.dumps({"kind": error.kind, "message": error.message, **where}).encode())


def _out_of_memory(memory_bytes: int) -> FailedError:
    return FailedError(
        "memory",
        "the query needs more memory than a query may have: read fewer columns or rows, or aggregate earlier. "
        f"bytes=`{memory_bytes}`",
    )


class _Query:
    """The steps of one query, in order."""

    def __init__(self, engine: Engine, cursor: duckdb.DuckDBPyConnection, channel: Channel, ask: Ask) -> None:
        self._engine = engine
        self._cursor = cursor
        self._channel = channel
        self._ask = ask
        self._parameters = _parameters(ask.parameters)
        self._searches = Searches(channel)
        self._foreseen: list[tuple[Call, bytes]] = []
        """Calls that the parent answers with the files, and how they are asked."""
        self._is_of_one = False
        """Whether the call that is foreseen is the only one."""
        self._lookup: Lookup | None = None
        self._rows: Rows | None = None
        self._notes: list[str] = []
        """What was done before DuckDB planned, for whoever asks for the plan."""
        self._paths: dict[str, str] = {}
        self._shift = 0
        """Bytes that were put before the statement."""

    def run(self) -> None:
        """Parse, name, open, run, encode.  The kernel ends what its parent has not ended in time."""
        limit_s = self._ask.timeout_s + ALARM_SLACK_S
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        core = self._parse()
        signal.setitimer(signal.ITIMER_REAL, 0)  # files may take long to fetch
        kind, payload = self._channel.receive()
        if kind is not Kind.OPEN:
            raise FailedError("internal", f"unexpected frame {kind}")
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        self._engine.search = self._searches
        tables, answers = hits.split_parts(payload)
        self._execute(self._open(tables, self._known(answers), core))

    # --- parse

    def _parse(self) -> str:
        sql = self._ask.sql
        printed = self._do("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
        assert printed is not None
        parsed = statement.read(str(printed[0]))
        names = [{"name": table.name, "place": self._place(table.offset)} for table in parsed.tables]
        self._foresee(Plan(parsed.tree, self._parameters))
        questions = [asked for _, asked in self._foreseen]
        self._channel.send(Kind.NAMES, hits.with_parts({"tables": names}, questions))
        core = without_semicolon(sql)
        if parsed.described:  # DESCRIBE of a DESCRIBE is no statement
            self._shift = len(DESCRIBED)
            core = f"{DESCRIBED}{core})"
        return core

    def _place(self, offset: int | None) -> tuple[int, int] | None:
        return None if offset is None else statement.line_and_column(self._ask.sql, offset)

    def _foresee(self, plan: Plan) -> None:
        """Note what can be done before DuckDB plans."""
        for call in plan.calls():
            asked = {"index": call.index, "k": call.k, "filter": call.filter}
            if isinstance(call.query, str):
                self._foreseen.append((call, searching.question(asked, ids=[call.query])))
            elif (vector := self._vector(call.query)) is not None:
                self._foreseen.append((call, searching.question(asked, matrix=vector)))
        self._foreseen = [one for one in self._foreseen if len(one[1]) < searching.REMEMBERED_BYTES]
        self._is_of_one = plan.is_of_one
        self._lookup = plan.lookup() if self._foreseen else None
        self._rows = plan.rows(self._ask.sql)

    def _vector(self, query: Any) -> Any:
        """The float32 of a parameter, or of a literal list as DuckDB reads it; None for what is no vector."""
        if isinstance(query, list):
            with np.errstate(over="ignore"):
                return np.array([query], np.float64).astype("<f4")
        try:
            row = self._cursor.execute(
                "FROM json_execute_serialized_sql(?)", [self._engine.constant(query)]
            ).fetchone()
            return None if row is None or None in row[0] else np.array([row[0]], "<f4")
        except (duckdb.Error, ValueError, TypeError):
            return None

    # --- open

    def _known(self, answers: Sequence[bytes | None]) -> list[pa.ListArray | None]:
        """Answers that came with the files; a call without one asks again, and says what is wrong."""
        return [
            None if answer is None else self._searches.know(asked, answer)
            for (_, asked), answer in zip(self._foreseen, answers, strict=True)
        ]

    def _open(
        self, tables: Sequence[Mapping[str, Any]], known: Sequence[pa.ListArray | None], core: str
    ) -> str:
        """Views over exactly the files given, then no way to any other; the statement to run over them."""
        paths = [path for table in tables for path in table["paths"]]
        self._engine.seal(paths)
        for table in tables:
            for path in table["paths"]:
                self._paths[path] = str(table["name"])
        for (call, _), answer in zip(self._foreseen, known, strict=True):
            if answer is not None:
                told = f"{len(answer.flatten())} hits, found before the statement ran"
                self._notes.append(f"vector_search({literal(call.index)}, k := {call.k}): {told}")
        chosen = self._chosen_rows(tables, known)
        hidden = self._hidden_column(tables)
        if hidden:
            assert self._rows is not None
            raw = core.encode()
            core = (raw[: self._rows.start] + self._rows.hidden.encode() + raw[self._rows.end :]).decode()
        views = [
            f"CREATE VIEW {quoted(table['name'])} AS "
            f"{view(table, chosen.get(table['name']), hidden.get(table['name']))}"
            for table in tables
        ]
        settings = (
            f"SET allowed_paths = [{', '.join(map(literal, paths))}]",
            "SET enable_external_access = false",
            *(("SET enable_profiling = 'no_output'",) if self._ask.explain else ()),
            "SET lock_configuration = true",
        )
        self._do("; ".join((*self._answer(known), *views, *settings)))
        return core

    def _answer(self, known: Sequence[pa.ListArray | None]) -> tuple[str, ...]:
        """SQL that puts the few hits of the only call in its place, so that no Python runs inside DuckDB."""
        if not self._is_of_one or len(known) != 1 or known[0] is None:
            return ()
        rows = known[0].flatten().to_pylist()
        if not 0 < len(rows) <= planning.LOOKED_UP_MAX or any("\0" in row["id"] for row in rows):
            return ()
        return (found(rows),)

    def _chosen_rows(
        self, tables: Sequence[Mapping[str, Any]], known: Sequence[pa.ListArray | None]
    ) -> dict[str, tuple[str, list[str]]]:
        """By table the column and the ids in it that alone can be in the answer."""
        if self._lookup is None or len(known) != 1 or known[0] is None:
            return {}
        ids = known[0].flatten().field("id").to_pylist()
        column = _column(tables, self._lookup.table, self._lookup.column)
        if column is None or column[2] != "VARCHAR" or not 0 < len(ids) <= planning.LOOKED_UP_MAX:
            return {}
        if any("\0" in item_id for item_id in ids):  # DuckDB would end a text there
            return {}
        self._searches.only_known = True
        self._notes.append(f"{column[0]}: only rows are read whose {quoted(column[1])} is one of these hits")
        return {column[0]: (column[1], ids)}

    def _hidden_column(self, tables: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
        """By table the column of vectors that is searched for as lists, and the other name it has then."""
        if self._rows is None:
            return {}
        column = _column(tables, self._rows.table, self._rows.column)
        if column is None or not planning.is_fixed(column[2]):
            return {}
        rows = next(table.get("rows") for table in tables if table["name"] == column[0])
        if rows is None or rows > searching.SEARCHES_MAX:  # equal vectors far apart would count as two
            return {}
        self._notes.append(f"{column[0]}: {quoted(column[1])} is searched for row by row, in batches")
        return {column[0]: (column[1], self._rows.hidden)}

    # --- run

    def _execute(self, core: str) -> None:
        ask = self._ask
        began = perf_counter()
        if ask.format in encode.AS_THEY_ARE and not ask.explain:  # planning twice would take a millisecond
            result = self._do(core, self._parameters)
            columns = [Column(str(one[0]), str(one[1])) for one in result.description]
            if encode.projection(columns, ask.format) is None:
                self._send_result(result, columns, None, began)
                return
        columns = self._columns(core)
        plan = self._plan(core) if ask.explain else None
        chosen = encode.projection(columns, ask.format)
        prefix, suffix = "", ""
        if chosen is not None:
            shown = ", ".join(
                f"{one} AS {quoted(column.name)}" for one, column in zip(chosen, columns, strict=True)
            )
            names = ", ".join(f"c{j}" for j in range(len(columns)))
            prefix, suffix = f"SELECT {shown} FROM (\n", f"\n) AS result({names})"
        result = self._do(prefix + core + suffix, self._parameters, shift=len(prefix.encode()))
        self._send_result(result, columns, plan, began)

    def _columns(self, core: str) -> list[Column]:
        described = self._do(f"DESCRIBE {core}", self._parameters, shift=len("DESCRIBE ")).fetchall()
        return [Column(str(row[0]), str(row[1])) for row in described]

    def _plan(self, core: str) -> str:
        rows = self._do(f"EXPLAIN {core}", self._parameters, shift=len("EXPLAIN ")).fetchall()
        return "\n".join((*self._notes, *(self._with_names(str(row[1])) for row in rows)))

    def _send_result(
        self, result: duckdb.DuckDBPyConnection, columns: list[Column], plan: str | None, began: float
    ) -> None:
        encoder = encode.ENCODERS[self._ask.format](columns, self._channel.send_body)
        with self._translated(0):
            reader = result.to_arrow_reader(encode.BATCH_ROWS)
            shown = [{"name": column.name, "type": column.type} for column in columns]
            self._channel.send(Kind.HEAD, json.dumps({"columns": shown}).encode())
            written = encode.write(reader, encoder, self._ask.row_limit, self._ask.byte_limit)
        seconds = round(perf_counter() - began, 6)
        profile = None if plan is None else {"seconds": seconds, "plan": plan, **self._profile(written)}
        encoder.end(written.truncated, {} if profile is None else {"profile": profile})
        tail = {"rows": written.rows, "truncated": written.truncated, "seconds": seconds, "profile": profile}
        self._channel.send(Kind.TAIL, json.dumps(tail).encode())

    def _profile(self, written: encode.Written) -> dict[str, Any]:
        """DuckDB's own account; there is none when rows were left unread."""
        if written.truncated:
            return {}
        try:
            told = self._cursor.get_profiling_information(format="json")
            return {"operators": json.loads(self._with_names(told))}
        except (duckdb.Error, ValueError):
            return {}

    def _do(self, sql: str, parameters: Any = None, shift: int = 0) -> duckdb.DuckDBPyConnection:
        with self._translated(shift):
            return self._cursor.execute(sql, parameters)

    def _translated(self, shift: int) -> "_Translated":
        return _Translated(self, shift)

    def _with_names(self, text: str) -> str:
        """What DuckDB tells, with names of datasets in place of the files we keep them in."""
        for path, name in self._paths.items():
            text = text.replace(path, name)
        return text if self._rows is None else text.replace(self._rows.hidden, self._rows.column)

    def failure(self, error: Exception, shift: int) -> FailedError:
        """What DuckDB says, with its place in the text that was sent."""
        if self._searches.failure is not None:
            return self._searches.failure
        if isinstance(error, duckdb.OutOfMemoryException):
            return _out_of_memory(self._engine.memory_bytes)
        message, position = told(str(error))
        message = self._with_names(message)
        shift += self._shift if shift else 0
        offset = None if position is None or position < shift else position - shift
        if isinstance(error, duckdb.IOException):
            return FailedError("dataset", f"a file of a dataset cannot be read: {message}")
        if isinstance(error, duckdb.InternalException | duckdb.FatalException):
            return FailedError("internal", message.partition("\n")[0])  # a stack trace follows
        return FailedError("invalid", message, offset)


class _Translated:
    """DuckDB's errors become ours on the way out."""

    def __init__(self, query: _Query, shift: int) -> None:
        self._query = query
        self._shift = shift

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, duckdb.Error | pa.ArrowException | OSError) and not isinstance(
            error, ConnectionError | pa.ArrowMemoryError
        ):
            raise self._query.failure(error, self._shift) from error
        if isinstance(
            error, RuntimeError | ValueError | TypeError | OverflowError
        ):  # the client's own, as of binding
            raise self._query.failure(error, self._shift) from error


def _column(tables: Sequence[Mapping[str, Any]], table: str, column: str) -> tuple[str, str, str] | None:
    """The table, the column and its type, as they are written where they are defined."""
    for one in tables:
        if str(one["name"]).lower() == table.lower():
            for name, kind in one.get("columns") or ():
                if str(name).lower() == column.lower():
                    return str(one["name"]), str(name), str(kind)
    return None
