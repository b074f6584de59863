"""From any of the formats to Parquet, by DuckDB: infer, convert, rewrite, transform.

What cannot be read becomes a rejected row with file, line and reason; what would be changed by reading it (2.5
as an integer) is noticed and told.  Runs in a process of its own (`lakehouse.ingest.worker`), or inline in
tests.  What it does not do: decide which schema a dataset has, or know where sources and objects are kept.
"""

import contextlib
import errno
import gzip
import io
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lakehouse.core import schema
from lakehouse.core.errors import Invalid, LakehouseError, Outcome, StorageFull, Unavailable
from lakehouse.core.schema import ListOf, Schema, parsed
from lakehouse.ingest import formats, lines, stats
from lakehouse.ingest.formats import Compression, Format, Shape, call, identifier, literal, parquet
from lakehouse.ingest.job import (
    UNKNOWN,
    Answer,
    Columns,
    Convert,
    Converted,
    Describe,
    Described,
    File,
    Gather,
    Infer,
    Inferred,
    Part,
    Retype,
    Rewrite,
    Task,
    Transform,
)

ROW_GROUP_ROWS = 122_880
"""DuckDB's own size: 60 vectors of 2,048 rows."""
ROW_GROUP_BYTES = 64 << 20
"""Uncompressed, about; rows with wide vectors get groups of fewer rows, so a reader's memory stays bounded."""
VECTOR_ROWS = 2_048
FILE_BYTES = 256 << 20
"""A dataset's objects are split here, so that several readers can share the work and a cache can take a part."""
SAMPLE_ROWS = 20_480
"""Rows that types are inferred from in CSV; DuckDB's own default.  JSON is inferred from all rows."""
WIDTH_ROWS = 1_000
"""Rows that tell how wide a row is."""
SHOWN_ROWS = 10
CHUNK_BYTES = 1 << 20
PLAIN = Compression.NONE.value
EXACT_INTEGER = 1 << 53
"""Below it a double holds every integer."""
WIDEST = f"DECIMAL({schema.DECIMAL_DIGITS_MAX},0)"
"""The integers that Parquet keeps beyond 64 bits."""
ERRORS_MAX = 4_000_000
"""Errors that a CSV reader notes, several a line; far above the rejected lines that are allowed."""
INTEGER_BITS = {
    "TINYINT": (-(1 << 7), 1 << 7),
    "SMALLINT": (-(1 << 15), 1 << 15),
    "INTEGER": (-(1 << 31), 1 << 31),
    "BIGINT": (-EXACT_INTEGER, EXACT_INTEGER),
    "UTINYINT": (0, 1 << 8),
    "USMALLINT": (0, 1 << 16),
    "UINTEGER": (0, 1 << 32),
    "UBIGINT": (0, EXACT_INTEGER),
}
"""Integer types, and from where to where a double read from the text is exactly that integer."""
NOT_EXACT = "not exactly an integer"
"""Our own error, raised inside a query when a check like the above fails."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What converting may take."""

    memory_bytes: int
    threads: int
    spill: Path
    """Where DuckDB puts what does not fit; removed with the scratch directory it is in."""


class Converter:
    """Does tasks one after another on one DuckDB connection."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._connection = connected(limits)

    def do(self, task: Task) -> Answer:
        """Do one task.  Raises what is wrong with the source or the request as `LakehouseError`."""
        try:
            return self._do(task)
        except LakehouseError:
            raise
        except duckdb.Error as error:
            raise _translated(error, task) from error
        except OSError as error:
            raise _disk_failed(error) from error

    def _do(self, task: Task) -> Answer:
        match task:
            case Infer():
                return infer(self._connection, task)
            case Convert():
                return convert(self._connection, task)
            case Rewrite():
                return rewrite(self._connection, task)
            case Describe():
                return Described(describe_transform(self._limits, task))
            case Transform():
                return transform(self._limits, self._connection, task)
            case Gather():
                return gather(self._connection, task)

    def done(self) -> float:
        """How much of the task at hand is done, 0 to 1; from another thread."""
        percent = self._connection.query_progress()
        return min(1.0, max(0.0, percent / 100))

    def close(self) -> None:
        self._connection.close()


def connected(limits: Limits) -> duckdb.DuckDBPyConnection:
    """A DuckDB that never downloads, reads no Python variables, and stays within `limits`."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    settings = {
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
        "memory_limit": f"{limits.memory_bytes}B",
        "threads": limits.threads,
        "temp_directory": str(limits.spill),
        "preserve_insertion_order": True,
        "enable_progress_bar": True,
        "enable_progress_bar_print": False,
    }
    for name, value in settings.items():
        connection.execute(f"SET {name} = {literal(value)}")
    return connection


# --- inferring


def infer(connection: duckdb.DuckDBPyConnection, task: Infer) -> Inferred:
    """Format and columns of a file.  Raises `Invalid` naming it when it is not what it says."""
    file = task.file
    head, compression = _head(file)
    format_ = file.format or formats.guess(file.uri, file.content_type, head)
    shape = Shape(format_, compression)
    if not head:
        if format_ is Format.PARQUET:
            raise Invalid(f"the file is empty, so it is not Parquet. source=`{file.uri}`")
        return Inferred(format_, compression, ())
    with _named(file):
        if format_ is Format.PARQUET:
            if not head.startswith(formats.PARQUET_MAGIC):
                raise Invalid("this is not a Parquet file")
            return Inferred(format_, compression, _few(_parquet_columns(connection, file, shape)))
        _check_whole(file, compression)
        own = _few(_text_columns(connection, file, shape))
        return Inferred(format_, compression, _adapted(connection, file, shape, own, task.wanted or ()))


def _few(columns: Columns) -> Columns:
    """The columns if they are as many as a dataset may have; reading more would only end in too little memory."""
    if len(columns) > schema.COLUMNS_MAX:
        raise Invalid(f"a dataset has at most {schema.COLUMNS_MAX} columns. columns=`{len(columns)}`")
    return columns


def _check_whole(file: File, compression: Compression) -> None:
    """DuckDB takes a compressed file that was cut off for one that ends there.  Raises `Invalid`."""
    if compression is Compression.NONE:
        return
    try:
        with _opened(Path(file.path), compression) as plain:
            while plain.read(CHUNK_BYTES):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise Invalid(f"the {compression} file is damaged or cut off: {_first_line(error)}") from error


def _head(file: File) -> tuple[bytes, Compression]:
    with Path(file.path).open("rb") as raw:
        compression = formats.compression_of(file.uri, raw.read(4))
    with _opened(Path(file.path), compression) as plain:
        try:
            return plain.read(formats.HEAD_BYTES), compression
        except (OSError, EOFError, zlib.error) as error:
            raise Invalid(
                f"the {compression} file is damaged: {_first_line(error)}. source=`{file.uri}`"
            ) from error


@contextlib.contextmanager
def _opened(path: Path, compression: Compression) -> Iterator[IO[bytes]]:
    """The file's bytes without their compression."""
    if compression is Compression.GZIP:
        with gzip.open(path, "rb") as plain:
            yield cast("IO[bytes]", plain)
    elif compression is Compression.ZSTD:
        with pa.CompressedInputStream(pa.OSFile(str(path)), "zstd") as stream:
            yield cast("IO[bytes]", io.BufferedReader(stream, CHUNK_BYTES))
    else:
        with path.open("rb") as plain:
            yield plain


def _parquet_columns(connection: duckdb.DuckDBPyConnection, file: File, shape: Shape) -> Columns:
    with _plain_parquet(file, shape) as path:
        own = _described(connection, f"SELECT * FROM {call('read_parquet', path, {})}")
        arrow = pq.read_schema(path)
    return tuple(
        (name, _with_length(schema.stored(type_), arrow, at)) for at, (name, type_) in enumerate(own)
    )


def _with_length(type_: str, arrow: pa.Schema, at: int) -> str:
    """Parquet knows no lists of one length, but files that Arrow wrote remember them."""
    found = parsed(type_)
    if at >= len(arrow) or not isinstance(found, ListOf):
        return type_
    written = arrow.field(at).type
    if pa.types.is_fixed_size_list(written) and written.list_size > 0:
        return str(ListOf(found.element, written.list_size))
    return type_


@contextlib.contextmanager
def _plain_parquet(file: File, shape: Shape) -> Iterator[str]:
    """The path of the Parquet without compression around it."""
    if shape.compression is Compression.NONE:
        yield file.path
        return
    plain = Path(f"{file.path}.plain")
    try:
        with _opened(Path(file.path), shape.compression) as source, plain.open("wb") as copy:
            shutil.copyfileobj(source, copy, CHUNK_BYTES)
        yield str(plain)
    finally:
        plain.unlink(missing_ok=True)


def _text_columns(connection: duckdb.DuckDBPyConnection, file: File, shape: Shape) -> Columns:
    """Names and types as DuckDB finds them, types that were asked for in their place."""
    if shape.format in (Format.CSV, Format.TSV):
        reader = _csv(file, shape, {"types": types} if (types := _types(file)) else {})
        found = _few(_described(connection, f"SELECT * FROM {reader}"))
        found = _without_rounding(connection, file, shape, found)
    else:
        found = _json_columns(connection, file, shape)
        types = {name.casefold(): type_ for name, type_ in _types(file).items()}
        found = tuple((name, types.get(name.casefold(), type_)) for name, type_ in found)
    return tuple((name, schema.stored(type_)) for name, type_ in found)


def _without_rounding(
    connection: duckdb.DuckDBPyConnection, file: File, shape: Shape, found: Columns
) -> Columns:
    """Integers that need more than 64 bits, which DuckDB takes for doubles: as decimals they keep all digits."""
    asked = {name.casefold() for name in _types(file)}
    names = [name for name, type_ in found if type_ == "DOUBLE" and name.casefold() not in asked]
    if not names:
        return found
    tests = ", ".join(_is_wide(identifier(name)) for name in names)
    types = {**dict(found), **dict.fromkeys(names, "VARCHAR")}
    reader = _csv(file, shape, {"types": types})
    row = _row(
        connection, f"SELECT {tests}, {_every(found)} FROM (SELECT * FROM {reader} LIMIT {SAMPLE_ROWS})"
    )
    _forget_rejects(connection)
    wide = {name for name, is_wide in zip(names, row, strict=False) if is_wide}
    return tuple((name, WIDEST if name in wide else type_) for name, type_ in found)


def _is_wide(column: str) -> str:
    """SQL: whether a text column holds integers only, and one that a double does not hold.

    What is no integer is not cast: 40,000 casts that fail take 0.7 s.
    """
    number = (
        f"CASE WHEN regexp_full_match(trim({column}), '[+-]?[0-9]+') THEN TRY_CAST({column} AS {WIDEST}) END"
    )
    integers = f"bool_and({number} IS NOT NULL) FILTER (WHERE {column} IS NOT NULL)"
    return f"coalesce({integers} AND max(abs({number})) >= {EXACT_INTEGER}, false)"


def _json_columns(connection: duckdb.DuckDBPyConnection, file: File, shape: Shape) -> Columns:
    """From all rows: a key that only a late row has would else be lost without a word."""
    arguments = {**formats.json_arguments(shape, file.options), "sample_size": -1}
    try:
        found = _described(connection, f"SELECT * FROM {call('read_json', file.path, arguments)}")
    except duckdb.Error:
        if shape.format is not Format.NDJSON:
            raise
    else:
        _check_keys(connection, file, shape, found)
        return found
    with lines.wellformed(file, shape, _opened) as path:
        plain = {**arguments, "compression": PLAIN}
        try:
            return _described(connection, f"SELECT * FROM {call('read_json', str(path), plain)}")
        except duckdb.BinderException as error:  # no line holds an object
            raise Invalid("no line holds a JSON object") from error


def _check_keys(connection: duckdb.DuckDBPyConnection, file: File, shape: Shape, columns: Columns) -> None:
    """DuckDB calls the key `A` beside `a` `A_1`, and would then look for a key of that name."""
    names = {name.casefold() for name, _ in columns}
    for name, _ in columns:
        if re.fullmatch(r"C\d+", name):  # what DuckDB calls an empty key, and then looks for
            reader = call("read_json_objects", file.path, {"compression": shape.compression.value})
            if _count(connection, f"SELECT count(*) FROM {reader} WHERE list_contains(json_keys(json), '')"):
                raise Invalid("a key is empty, and the name of a column cannot be")
        stem, _, number = name.rpartition("_")
        if number.isdecimal() and stem.casefold() in names:
            reader = _reader(file, shape, {name: schema.JSON})
            if _count(connection, f"SELECT count({identifier(name)}) FROM {reader}") == 0:
                raise Invalid(f"two keys differ in case only, and columns cannot. key=`{stem}`")


def _types(file: File) -> dict[str, str]:
    return dict(file.options.get("types") or {})


def _csv(file: File, shape: Shape, arguments: Mapping[str, Any]) -> str:
    return call(
        "read_csv", file.path, {**formats.csv_arguments(shape, file.options), **REJECTING, **arguments}
    )


REJECTING = {"store_rejects": True, "sample_size": SAMPLE_ROWS}


def _described(connection: duckdb.DuckDBPyConnection, sql: str) -> Columns:
    rows = connection.execute(f"DESCRIBE {sql}").fetchall()
    return tuple((str(row[0]), str(row[1])) for row in rows)


def _adapted(
    connection: duckdb.DuckDBPyConnection, file: File, shape: Shape, own: Columns, wanted: Columns
) -> Columns:
    """Text says `7`, not BIGINT: where the dataset's column takes what the text says, its type is the column's.

    A column without a value in the sample takes any type.  One that is text here takes the dataset's type when
    most of its values are such; the others become rejected rows.
    """
    targets = {name.casefold(): type_ for name, type_ in wanted}
    asked = {name.casefold() for name in _types(file)}
    doubtful = {
        name: target
        for name, type_ in own
        if type_ in ("VARCHAR", "JSON")
        and (target := targets.get(name.casefold(), UNKNOWN)) != type_
        and name.casefold() not in asked
    }
    counts = _sampled(connection, file, shape, own, doubtful)
    chosen = []
    for name, type_ in own:
        target = targets.get(name.casefold(), UNKNOWN)
        if name.casefold() not in asked:
            type_ = _chosen(type_, target, counts.get(name))
        chosen.append((name, type_))
    return tuple(chosen)


def _chosen(own: str, target: str, counts: tuple[int, int] | None) -> str:
    if counts is not None:
        values, such = counts
        if values == 0:
            return target
        return target if target not in (UNKNOWN, "VARCHAR") and 2 * such > values else _texts(own, target)
    if target != UNKNOWN and (schema.holds(target, own) or (_is_number(own) and _is_wide_number(target))):
        return target
    return _texts(own, target)


def _texts(own: str, target: str) -> str:
    is_plain = isinstance(parsed(own), schema.Scalar | schema.Decimal)
    return target if target == "VARCHAR" and is_plain else own


def _is_number(type_: str) -> bool:
    return type_ in INTEGER_BITS


def _is_wide_number(type_: str) -> bool:
    return type_ in ("DOUBLE", "FLOAT") or isinstance(parsed(type_), schema.Decimal)


def _sampled(
    connection: duckdb.DuckDBPyConnection,
    file: File,
    shape: Shape,
    own: Columns,
    doubtful: Mapping[str, str],
) -> dict[str, tuple[int, int]]:
    """Of each doubtful column, how many values the sample has and how many its target type takes."""
    if not doubtful:
        return {}
    texts = dict.fromkeys(doubtful, "VARCHAR")
    asked = ", ".join(
        f"count({identifier(name)}), count(TRY_CAST({identifier(name)} AS "
        f"{'VARCHAR' if target == UNKNOWN else target}))"
        for name, target in doubtful.items()
    )
    reader = _reader(file, shape, {**dict(own), **texts})
    rows = f"(SELECT * FROM {reader} LIMIT {SAMPLE_ROWS})"
    row = _row(connection, f"SELECT {asked}, {_every(own)} FROM {rows}")
    _forget_rejects(connection)
    return {name: (row[2 * at], row[2 * at + 1]) for at, name in enumerate(doubtful)}


def _every(columns: Iterable[tuple[str, str]]) -> str:
    """Something asked of every column: a CSV reader that keeps rejects fails when it is asked for some only."""
    return ", ".join(f"count({identifier(name)})" for name, _ in columns)


def _reader(file: File, shape: Shape, types: Mapping[str, str]) -> str:
    """SQL that reads a text file with these types, as far as it can be read."""
    if shape.format in (Format.CSV, Format.TSV):
        return _csv(file, shape, {"types": dict(types)})
    arguments = {**formats.json_arguments(shape, file.options), "columns": dict(types)}
    if shape.format is Format.NDJSON:
        arguments["ignore_errors"] = True
    return call("read_json", file.path, arguments)


def _row(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    row = connection.execute(sql).fetchone()
    assert row is not None
    return row


# --- converting


def convert(connection: duckdb.DuckDBPyConnection, task: Convert) -> Converted | Retype:
    """Write one source file as Parquet."""
    Path(task.out).mkdir(parents=True)
    with _named(task.file):
        match task.inferred.format:
            case Format.PARQUET:
                with _plain_parquet(task.file, task.inferred.shape) as path:
                    return _written(
                        connection, call("read_parquet", path, {}), _own(task), task.target, task.out
                    )
            case Format.CSV | Format.TSV:
                return _convert_csv(connection, task)
            case Format.NDJSON:
                return _convert_lines(connection, task)
            case Format.JSON:
                return _written(connection, _json(task, task.file.path), _own(task), task.target, task.out)


def _own(task: Convert) -> dict[str, str]:
    """The file's columns and the type each is read as; one without values is read as what it shall be."""
    targets = {name.casefold(): type_ for name, type_ in task.target}
    return {
        name: targets.get(name.casefold(), "VARCHAR") if type_ == UNKNOWN else type_
        for name, type_ in task.inferred.columns
    }


def _json(task: Convert, path: str, **more: Any) -> str:
    arguments = formats.json_arguments(task.inferred.shape, task.file.options)
    return call("read_json", path, {**arguments, "columns": _own(task), **more})


def _convert_csv(connection: duckdb.DuckDBPyConnection, task: Convert) -> Converted | Retype:
    """Integers are read as doubles and checked, because DuckDB rounds `2.5` to one; if a check fails, columns are
    looked at as text to see which of them hold integers only."""
    own = _own(task)
    checked = {name for name, type_ in own.items() if type_ in INTEGER_BITS}
    try:
        return _csv_written(connection, task, own, checked)
    except duckdb.Error as error:
        if NOT_EXACT not in str(error):
            raise
    _emptied(task.out)
    broken = _not_integers(connection, task, sorted(checked))
    if broken:
        return Retype(tuple((name, "DOUBLE" if name in broken else type_) for name, type_ in own.items()))
    return _csv_written(connection, task, own, set())


def _csv_written(
    connection: duckdb.DuckDBPyConnection, task: Convert, own: Mapping[str, str], checked: set[str]
) -> Converted:
    types = {name: "DOUBLE" if name in checked else type_ for name, type_ in own.items()}
    reader = _csv(task.file, task.inferred.shape, {"types": types, "rejects_limit": ERRORS_MAX})
    _forget_rejects(connection)
    columns = {name: _exact(name, own[name]) if name in checked else identifier(name) for name in own}
    source = (
        f"(SELECT {', '.join(f'{sql} AS {identifier(name)}' for name, sql in columns.items())} FROM {reader})"
    )
    done = _written(connection, source, own, task.target, task.out)
    path = Path(task.out) / "rejects.parquet"
    count = _keep_csv_rejects(connection, task, path)
    return _with_rejects(done, count, path)


def _exact(name: str, type_: str) -> str:
    low, high = INTEGER_BITS[type_]
    value = identifier(name)
    return (
        f"CASE WHEN {value} IS NULL THEN NULL WHEN {value} = trunc({value}) AND {value} >= {low} "
        f"AND {value} < {high} THEN {value}::{type_} ELSE error('{NOT_EXACT}') END"
    )


def _not_integers(connection: duckdb.DuckDBPyConnection, task: Convert, names: Sequence[str]) -> set[str]:
    """Which of these columns have a value with a fraction or an exponent."""
    own = _own(task)
    reader = _csv(task.file, task.inferred.shape, {"types": {**own, **dict.fromkeys(names, "VARCHAR")}})
    _forget_rejects(connection)
    tests = ", ".join(
        f"bool_or(regexp_matches({identifier(n)}, '[.eE]') AND TRY_CAST({identifier(n)} AS DOUBLE) IS NOT NULL)"
        for n in names
    )
    row = _row(connection, f"SELECT {tests}, {_every(own.items())} FROM {reader}")
    _forget_rejects(connection)
    return {name for name, found in zip(names, row, strict=False) if found}


def _forget_rejects(connection: duckdb.DuckDBPyConnection) -> None:
    connection.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")


def _keep_csv_rejects(connection: duckdb.DuckDBPyConnection, task: Convert, path: Path) -> int:
    """Write DuckDB's rejects to `path`, one row a line; returns how many."""
    rows = f"""SELECT {literal(task.file.uri)} AS source, coalesce(number, line)::BIGINT AS line,
        column_name AS "column", lower(error_type::VARCHAR) || ': ' || error_message AS error,
        left(csv_line, {lines.TEXT_CHARACTERS_MAX}) AS text
        FROM reject_errors LEFT JOIN reject_numbers USING (line_byte_position)
        QUALIFY row_number() OVER (PARTITION BY line ORDER BY column_idx) = 1"""
    count = _count(connection, "SELECT count(DISTINCT line) FROM reject_errors")
    if _count(connection, "SELECT count(*) FROM reject_errors") >= ERRORS_MAX:
        count = ERRORS_MAX  # there are more than DuckDB was let note
    _check_rejects(count, task)
    if count:
        connection.register("reject_numbers", _line_numbers(connection, task))
        connection.execute(
            f"COPY ({rows} ORDER BY line) TO {literal(path)} (FORMAT parquet, COMPRESSION zstd)"
        )
        connection.unregister("reject_numbers")
    _forget_rejects(connection)
    return count


def _line_numbers(connection: duckdb.DuckDBPyConnection, task: Convert) -> pa.Table:
    """DuckDB counts rows; an editor counts lines, and a text in quotes may hold some.

    Of bytes in another encoding DuckDB does not tell the place, and its own number has to do.
    """
    encoding = task.file.options.get("encoding", "utf-8")
    asked = "SELECT DISTINCT line_byte_position FROM reject_errors WHERE line_byte_position >= 1 ORDER BY ALL"
    places = [int(row[0]) for row in connection.execute(asked).fetchall()] if encoding == "utf-8" else []
    with _opened(Path(task.file.path), task.inferred.compression) as file:
        numbers = lines.numbers_at(file, [place - 1 for place in places])
    return pa.table(
        {"line_byte_position": pa.array(places, pa.uint64()), "number": pa.array(numbers, pa.int64())}
    )


def _check_rejects(count: int, task: Convert) -> None:
    if count > task.rejects_max:
        raise Invalid(f"over {task.rejects_max} rows cannot be read; check the reader options")


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    return int(_row(connection, sql)[0])


def _with_rejects(done: Converted, count: int, path: Path) -> Converted:
    return Converted(done.parts, done.rows, done.stats, count, str(path) if count else None, done.sample)


def _convert_lines(connection: duckdb.DuckDBPyConnection, task: Convert) -> Converted:
    """Read all at once; only when that fails, line by line, to keep what can be read and say what cannot."""
    try:
        return _written(connection, _json(task, task.file.path), _own(task), task.target, task.out)
    except duckdb.Error:
        _emptied(task.out)
    cleaned = Path(task.out) / "cleaned.ndjson"

    def readable(path: Path) -> None:
        connection.execute(
            f"SELECT count(COLUMNS(*)) FROM {_json(task, str(path), compression=PLAIN)}"
        ).fetchall()

    rejects = Path(task.out) / "rejects.parquet"
    count = lines.clean(task.file, task.inferred.shape, _opened, cleaned, rejects, task.rejects_max, readable)
    _check_rejects(count, task)
    done = _written(
        connection, _json(task, str(cleaned), compression=PLAIN), _own(task), task.target, task.out
    )
    cleaned.unlink()
    return _with_rejects(done, count, rejects)


def rewrite(connection: duckdb.DuckDBPyConnection, task: Rewrite) -> Converted:
    """Bring rows that were written under an older schema into the new one."""
    Path(task.out).mkdir(parents=True)
    return _written(connection, parquet(task.paths), dict(task.own), task.target, task.out)


def gather(connection: duckdb.DuckDBPyConnection, task: Gather) -> Converted:
    """One Parquet file of all rejected rows."""
    sources = [f"SELECT * FROM {parquet(task.paths)}"] if task.paths else []
    if task.old is not None and task.kept:
        kept = ", ".join(map(literal, task.kept))
        sources.insert(0, f"SELECT * FROM {parquet((task.old,))} WHERE source IN ({kept})")
    rows = " UNION ALL ".join(sources)
    connection.execute(f"COPY ({rows}) TO {literal(task.out)} (FORMAT parquet, COMPRESSION zstd)")
    count = _count(connection, f"SELECT count(*) FROM {parquet((task.out,))}")
    return Converted((Part(task.out, Path(task.out).stat().st_size, count),), count, {})


# --- writing


def _written(
    connection: duckdb.DuckDBPyConnection,
    reader: str,
    own: Mapping[str, str],
    target: Columns,
    out: str,
) -> Converted:
    """Write the rows of `reader` with exactly the columns of `target`."""
    rows = f"SELECT {_columns(own, target)} FROM {reader}"
    copied = _copied(connection, rows, target, out)
    if not copied:
        return Converted((), 0, {})
    parts = tuple(Part(str(row[0]), int(row[2]), int(row[1])) for row in copied)
    found = stats.of_parts(connection, schema_of_target(target), copied)
    return Converted(parts, sum(part.rows for part in parts), found, sample=_shown(connection, parts, target))


def schema_of_target(target: Columns) -> Schema:
    """The target columns as a schema."""
    return Schema(tuple(schema.Field(name, type_) for name, type_ in target))


def _columns(own: Mapping[str, str], target: Columns) -> str:
    """The select list: each target column by name, in its type; NULL where the file has none."""
    known = {name.casefold(): (name, type_) for name, type_ in own.items()}
    return ", ".join(
        f"{_cast(known.get(name.casefold()), type_)} AS {identifier(name)}" for name, type_ in target
    )


def _cast(own: tuple[str, str] | None, target: str) -> str:
    """A column of the file (its name and type) as the type it shall have."""
    if own is None:
        return f"CAST(NULL AS {target})"
    if target == schema.JSON and own[1] != schema.JSON:
        return f"to_json({identifier(own[0])})"  # a cast would parse a text instead of quoting it
    return f"CAST({identifier(own[0])} AS {target})"


def _copied(
    connection: duckdb.DuckDBPyConnection, rows: str, target: Columns, out: str
) -> list[tuple[Any, ...]]:
    folder = Path(out) / "parts"
    group = _row_group_rows(connection, rows, target)
    copied = connection.execute(
        f"COPY ({rows}) TO {literal(folder)} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {group}, "
        f"FIELD_IDS 'auto', FILE_SIZE_BYTES {FILE_BYTES}, RETURN_STATS true)"
    ).fetchall()
    return sorted((row for row in copied if row[1]), key=lambda row: _number(str(row[0])))


def _number(path: str) -> int:
    """`data_12.parquet` is the thirteenth."""
    return int(Path(path).stem.rpartition("_")[2])


def _row_group_rows(connection: duckdb.DuckDBPyConnection, rows: str, target: Columns) -> int:
    """Rows of a group, so that it stays below `ROW_GROUP_BYTES`; only lists and nested columns make rows wide."""
    if all(isinstance(parsed(type_), schema.Decimal | schema.Scalar) for _, type_ in target):
        return ROW_GROUP_ROWS
    sample = connection.execute(f"{rows} LIMIT {WIDTH_ROWS}").to_arrow_table(WIDTH_ROWS)
    width = max(1, sample.nbytes // max(1, len(sample)))
    vectors = ROW_GROUP_BYTES // (width * VECTOR_ROWS)
    return int(min(ROW_GROUP_ROWS, max(1, vectors) * VECTOR_ROWS))


def _shown(
    connection: duckdb.DuckDBPyConnection, parts: Sequence[Part], target: Columns
) -> tuple[dict[str, Any], ...]:
    """The first rows, as values that JSON has."""
    names = ", ".join(f"{literal(name)}, {identifier(name)}" for name, _ in target)
    found = connection.execute(
        f"SELECT json_object({names}) FROM {parquet([parts[0].path])} LIMIT {SHOWN_ROWS}"
    ).fetchall()
    return tuple(lines.decoded(row[0]) for row in found)


def _emptied(out: str) -> None:
    shutil.rmtree(Path(out) / "parts", ignore_errors=True)


# --- transforms


def checked_select(sql: str) -> str:
    """`sql` as one SELECT without its semicolon.  Raises `Invalid`."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise Invalid(f"the transform is not SQL: {_first_line(error)}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise Invalid(f"the transform is one SELECT over `source`. statements=`{len(statements)}`")
    text = bytearray(sql.encode())
    for offset, _ in duckdb.tokenize(sql):
        if text[offset] == ord(";"):  # it ends the statement, and a comment may follow
            text[offset] = ord(" ")
    return text.decode()


def _confined(limits: Limits, source: str, folder: Path | None) -> duckdb.DuckDBPyConnection:
    """A DuckDB that knows the view `source` and reads and writes nothing outside `folder`."""
    connection = connected(limits)
    connection.execute(f"CREATE VIEW source AS {source}")
    if folder is not None:
        connection.execute(f"SET allowed_directories = [{literal(folder)}]")
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")
    return connection


def describe_transform(limits: Limits, task: Describe) -> Columns:
    """Columns of the transform's result, found without a row."""
    empty = ", ".join(f"NULL::{type_} AS {identifier(name)}" for name, type_ in task.source)
    sql = checked_select(task.sql)
    with contextlib.closing(_confined(limits, f"SELECT {empty} WHERE false", None)) as connection:
        return tuple((name, schema.stored(type_)) for name, type_ in _described(connection, f"({sql}\n)"))


def transform(limits: Limits, connection: duckdb.DuckDBPyConnection, task: Transform) -> Converted:
    """Write the rows the transform makes.  It sees its source and nothing else, and can write its result only."""
    out = Path(task.out)
    out.mkdir(parents=True)
    inside = []
    for number, path in enumerate(task.paths):
        inside.append(str(out / f"source_{number}.parquet"))
        Path(path).rename(inside[-1])
    columns = _columns(dict(task.source), task.source)
    source = f"SELECT {columns} FROM {parquet(inside)}" if inside else _nothing(task.source)
    sql = checked_select(task.sql)
    own = dict(task.target)
    with contextlib.closing(_confined(limits, source, out)) as confined:
        return _written(confined, f"({sql}\n)", own, task.target, task.out)


def _nothing(columns: Columns) -> str:
    return (
        f"SELECT {', '.join(f'NULL::{type_} AS {identifier(name)}' for name, type_ in columns)} WHERE false"
    )


# --- errors


@contextlib.contextmanager
def _named(file: File) -> Iterator[None]:
    """Whatever is wrong with the file is said with its name."""
    try:
        yield
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException):
            raise
        text = _first_line(error).replace(file.path, file.uri)
        if "No space left" in text:
            raise
        raise Invalid(f"the file cannot be read: {text}. source=`{file.uri}`") from error
    except (pa.ArrowInvalid, EOFError, gzip.BadGzipFile) as error:
        raise Invalid(f"the file cannot be read: {_first_line(error)}. source=`{file.uri}`") from error
    except Invalid as error:
        if file.uri in error.message:
            raise
        raise Invalid(f"{error.message}. source=`{file.uri}`") from error


def _first_line(error: Exception) -> str:
    """What is wrong, without what DuckDB suggests to do about it in its own words."""
    first, *rest = str(error).split("\n")
    text = first.partition(" Error: ")[2] or first
    if text.startswith("Error when sniffing file"):
        return "it is not CSV as far as can be seen: say `delimiter`, `quote`, `skip` or `encoding`"
    if text.startswith("CSV Error on Line"):
        text = ": ".join(
            (text, *(line for line in rest[:2] if line and not line.startswith("Original Line")))
        )
    return text.rstrip(". ")


def _translated(error: duckdb.Error, task: Task) -> LakehouseError:
    text = _first_line(error)
    if isinstance(error, duckdb.OutOfMemoryException):
        return Unavailable(
            f"converting needs more memory than ingest_memory_bytes_max: {text}",
            outcome=Outcome.NOT_COMMITTED,
        )
    if "No space left" in str(error):
        return StorageFull("no room for working files", outcome=Outcome.NOT_COMMITTED)
    if isinstance(task, Describe | Transform):
        return Invalid(f"the transform fails: {text}")
    return Invalid(f"the rows cannot be converted: {text}")


def _disk_failed(error: OSError) -> Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("no room for working files", outcome=Outcome.NOT_COMMITTED)
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return Unavailable(f"working files cannot be written. error=`{reason}`", outcome=Outcome.NOT_COMMITTED)
