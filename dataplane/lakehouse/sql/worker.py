"""One query, from hostile text to encoded rows, in a process made for it and killed after it.

The process is confined before it reads the text.  It says which tables the text names, is told which files
those are, closes the door behind them, and runs.  What it does not do: look anything up; its parent does.
"""

import json
import os
import re
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
import orjson
import pyarrow as pa
from duckdb.func import FunctionNullHandling, PythonUDFType

from lakehouse.sql import encode, sandbox, statement
from lakehouse.sql.ask import Ask, with_header
from lakehouse.sql.encode import Column
from lakehouse.sql.statement import RefusedError
from lakehouse.sql.wire import Channel, Kind

BUFFER_SHARE = 0.75
"""Of a worker's address space what DuckDB may use for its buffers; the rest is for what it does not count."""
SEARCHES_AT_ONCE = 1_024
"""Query vectors in one SEARCH; the vectors API's own bound."""
SEARCHES_MAX = 65_536
"""Vector searches of one query."""
REMEMBERED, REMEMBERED_BYTES = 64, 64 << 10
"""Answers to searches kept within a query, and the largest question they are kept for."""
ALARM_SLACK_S = 0.5
"""How long after its deadline the kernel ends a worker that its parent has not ended."""
HIT = "STRUCT(id VARCHAR, distance DOUBLE, metadata VARCHAR)"
DESCRIBED = "SELECT * FROM ("
MACRO = """
CREATE MACRO vector_search(idx, q, k := 10, filter := NULL) AS TABLE
SELECT hit.id AS id, hit.distance AS distance, hit.metadata::JSON AS metadata
FROM (SELECT unnest(_vs(
    idx,
    CASE WHEN typeof(q) = 'VARCHAR' THEN NULL ELSE CAST(q AS FLOAT[]) END,
    CASE WHEN typeof(q) = 'VARCHAR' THEN q::VARCHAR END,
    k::BIGINT,
    filter
)) AS hit)
"""


class FailedError(Exception):
    """The query ends here; `kind` is for programs, the message for people."""

    def __init__(self, kind: str, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.offset = offset


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
        self.root.execute(MACRO)

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
        self._failure: FailedError | None = None
        """What a vector search failed with; DuckDB would wrap it beyond recognition."""
        self._found: dict[bytes, Any] = {}
        self._searches = 0
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
        self._engine.search = self._search
        self._open(json.loads(payload))
        self._execute(core)

    # --- parse

    def _parse(self) -> str:
        sql = self._ask.sql
        printed = self._do("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
        assert printed is not None
        parsed = statement.read(str(printed[0]))
        names = [{"name": table.name, "place": self._place(table.offset)} for table in parsed.tables]
        self._channel.send(Kind.NAMES, json.dumps({"tables": names}).encode())
        core = _without_semicolon(sql)
        if parsed.described:  # DESCRIBE of a DESCRIBE is no statement
            self._shift = len(DESCRIBED)
            core = f"{DESCRIBED}{core})"
        return core

    def _place(self, offset: int | None) -> tuple[int, int] | None:
        return None if offset is None else statement.line_and_column(self._ask.sql, offset)

    # --- open

    def _open(self, tables: Sequence[Mapping[str, Any]]) -> None:
        """Views over exactly the files given, then no way to any other."""
        paths = [path for table in tables for path in table["paths"]]
        self._engine.seal(paths)
        for table in tables:
            for path in table["paths"]:
                self._paths[path] = str(table["name"])
        views = [f"CREATE VIEW {_quoted(table['name'])} AS {_view(table)}" for table in tables]
        settings = (
            f"SET allowed_paths = [{', '.join(map(_literal, paths))}]",
            "SET enable_external_access = false",
            *(("SET enable_profiling = 'no_output'",) if self._ask.explain else ()),
            "SET lock_configuration = true",
        )
        self._do("; ".join((*views, *settings)))

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
                f"{one} AS {_quoted(column.name)}" for one, column in zip(chosen, columns, strict=True)
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
        return "\n".join(str(row[1]) for row in rows)

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
        return text

    def failure(self, error: Exception, shift: int) -> FailedError:
        """What DuckDB says, with its place in the text that was sent."""
        if self._failure is not None:
            return self._failure
        if isinstance(error, duckdb.OutOfMemoryException):
            return _out_of_memory(self._engine.memory_bytes)
        message, position = _told(str(error))
        message = self._with_names(message)
        shift += self._shift if shift else 0
        offset = None if position is None or position < shift else position - shift
        if isinstance(error, duckdb.IOException):
            return FailedError("dataset", f"a file of a dataset cannot be read: {message}")
        if isinstance(error, duckdb.InternalException | duckdb.FatalException):
            return FailedError("internal", message.partition("\n")[0])  # a stack trace follows
        return FailedError("invalid", message, offset)

    # --- vector search

    def _search(
        self, index: pa.Array, vectors: pa.Array, items: pa.Array, k: pa.Array, filters: pa.Array
    ) -> pa.Array:
        """`_vs` over a chunk of rows: one list of hits per row."""
        try:
            return self._hits(*(whole(column) for column in (index, vectors, items, k, filters)))
        except FailedError as error:
            self._failure = error
            raise

    def _hits(
        self, index: pa.Array, vectors: pa.Array, items: pa.Array, k: pa.Array, filters: pa.Array
    ) -> pa.Array:
        groups: dict[tuple[Any, ...], list[int]] = {}
        for row, key in enumerate(zip(index.to_pylist(), k.to_pylist(), filters.to_pylist(), strict=True)):
            groups.setdefault(key, []).append(row)
        self._searches += len(index)
        if self._searches > SEARCHES_MAX:
            raise FailedError("invalid", f"a query does at most {SEARCHES_MAX} vector searches")
        answers: list[Any] = [None] * len(index)
        for (name, count, wanted), rows in groups.items():
            if name is None:
                raise FailedError("invalid", "vector_search needs the name of an index, not NULL")
            for start in range(0, len(rows), SEARCHES_AT_ONCE):
                part = rows[start : start + SEARCHES_AT_ONCE]
                header = {"index": name, "k": count, "filter": wanted}
                self._fill(answers, part, header, vectors, items)
        return hit_lists(answers)

    def _fill(
        self, answers: list[Any], rows: list[int], header: dict[str, Any], vectors: pa.Array, items: pa.Array
    ) -> None:
        """Rows whose query is NULL find nothing."""
        by_id = [row for row in rows if items[row].is_valid]
        if by_id:
            rows, body = by_id, b""
            header["ids"] = items.take(pa.array(by_id)).to_pylist()
        else:
            rows = [row for row in rows if vectors[row].is_valid]
            header["dimension"], body = matrix_of(vectors.take(pa.array(rows, pa.int64())))
        if rows:
            for row, hits in zip(rows, self._ask_parent(header, body), strict=True):
                answers[row] = hits

    def _ask_parent(self, header: dict[str, Any], body: bytes) -> list[Any]:
        payload = with_header(header, body)
        key = payload if len(payload) < REMEMBERED_BYTES else b""
        if key in self._found:  # DuckDB may evaluate a constant call while it plans, and again
            return self._found[key]  # type: ignore[no-any-return]
        self._channel.send(Kind.SEARCH, payload)
        kind, answer = self._channel.receive()
        if kind is not Kind.HITS:
            raise FailedError("internal", f"unexpected frame {kind}")
        found = orjson.loads(answer)
        if isinstance(found, dict):
            raise FailedError(found["kind"], found["message"])
        if key and len(self._found) < REMEMBERED:
            self._found[key] = found
        return found  # type: ignore[no-any-return]


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


# --- text and values


def _view(table: Mapping[str, Any]) -> str:
    """A dataset's rows, as its schema says where it has one.  Names of folders above the files are no columns."""
    if not table["paths"]:
        nothing = ", ".join(f"NULL::{kind} AS {_quoted(name)}" for name, kind in table["columns"])
        return f"SELECT {nothing} WHERE false"
    files = ", ".join(map(_literal, table["paths"]))
    columns = ", ".join(
        f"{_quoted(name)}::{kind} AS {_quoted(name)}" for name, kind in table.get("columns") or ()
    )
    union = ", union_by_name = true" if len(table["paths"]) > 1 else ""
    return f"SELECT {columns or '*'} FROM read_parquet([{files}], hive_partitioning = false{union})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _without_semicolon(sql: str) -> str:
    """The one statement, with spaces for what ends it or stands before it, so that places stay."""
    raw = bytearray(sql.encode())
    for offset, _ in duckdb.tokenize(sql):
        if raw[offset] == ord(";"):
            raw[offset] = ord(" ")
    return raw.decode()


_TOLD = re.compile(r"^[A-Za-z ]*Error: (\{.*\})\s*$", re.DOTALL)


def _told(text: str) -> tuple[str, int | None]:
    """DuckDB's message and position, out of the JSON it wraps them in."""
    match = _TOLD.match(text)
    if match is None:
        return text, None
    try:
        told = json.loads(match[1])
    except ValueError:
        return text, None
    position = told.get("position")
    message = str(told.get("exception_message", text))
    if not message[1:2].isupper():  # `SELECT` stays
        message = message[:1].lower() + message[1:]
    return message, None if position is None else int(position)


def whole(column: Any) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def matrix_of(vectors: pa.Array) -> tuple[int, bytes]:
    """The dimension and the float32 of vectors that all have it."""
    lengths = np.diff(vectors.offsets.to_numpy()) if len(vectors) else np.zeros(1, np.int32)
    if len(set(lengths.tolist())) > 1:
        raise FailedError("invalid", "vector_search was given vectors of different dimensions")
    flat = vectors.flatten()
    if flat.null_count:
        raise FailedError("invalid", "vector_search was given a vector that holds NULL")
    return int(lengths[0]), flat.to_numpy(zero_copy_only=False).astype("<f4", copy=False).tobytes()


def hit_lists(answers: Sequence[Any]) -> pa.Array:
    """`[[ids], [distances], [metadata]]` per row, or None, as Arrow lists of structs."""
    ids: list[str] = []
    distances: list[float] = []
    metadata: list[str | None] = []
    offsets = [0]
    for one in answers:
        if one is not None:
            ids += one[0]
            distances += one[1]
            metadata += one[2]
        offsets.append(len(ids))
    hits = pa.StructArray.from_arrays(
        [pa.array(ids, pa.string()), pa.array(distances, pa.float64()), pa.array(metadata, pa.string())],
        ["id", "distance", "metadata"],
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), hits)
