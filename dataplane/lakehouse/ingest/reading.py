"""Sources as DuckDB reads them: connections, readers of each format, and what is wrong with a file in plain words.

What this module does not do: decide on types (`lakehouse.ingest.inferring`), or write (`lakehouse.ingest.writing`).
"""

import codecs
import contextlib
import gzip
import io
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import duckdb
import pyarrow as pa

from lakehouse.core import schema
from lakehouse.core.errors import Invalid
from lakehouse.ingest import formats
from lakehouse.ingest.formats import Compression, Format, Shape, call, identifier, literal
from lakehouse.ingest.job import (
    Columns,
    File,
)

SAMPLE_ROWS = 20_480
"""Rows that types are inferred from in CSV; DuckDB's own default.  JSON is inferred from all rows."""
CHUNK_BYTES = 1 << 20
PLAIN = Compression.NONE.value
EXACT_INTEGER = 1 << 53
"""Below it a double holds every integer."""
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


@dataclass(frozen=True, slots=True)
class Limits:
    """What converting may take."""

    memory_bytes: int
    threads: int
    spill: Path
    """Where DuckDB puts what does not fit; removed with the scratch directory it is in."""


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


def few(columns: Columns) -> Columns:
    """The columns if they are as many as a dataset may have; reading more would only end in too little memory."""
    if len(columns) > schema.COLUMNS_MAX:
        raise Invalid(f"a dataset has at most {schema.COLUMNS_MAX} columns. columns=`{len(columns)}`")
    return columns


@contextlib.contextmanager
def opened(path: Path, compression: Compression) -> Iterator[IO[bytes]]:
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


@contextlib.contextmanager
def _plain_parquet(file: File, shape: Shape) -> Iterator[str]:
    """The path of the Parquet without compression around it."""
    if shape.compression is Compression.NONE:
        yield file.path
        return
    plain = Path(f"{file.path}.plain")
    try:
        with opened(Path(file.path), shape.compression) as source, plain.open("wb") as copy:
            shutil.copyfileobj(source, copy, CHUNK_BYTES)
        yield str(plain)
    finally:
        plain.unlink(missing_ok=True)


def types_of(file: File) -> dict[str, str]:
    """The types that were asked for, by column."""
    return dict(file.options.get("types") or {})


def csv(file: File, shape: Shape, arguments: Mapping[str, Any]) -> str:
    """SQL that reads CSV, and keeps what it cannot read apart."""
    return call(
        "read_csv", file.path, {**formats.csv_arguments(shape, file.options), **REJECTING, **arguments}
    )


REJECTING = {"store_rejects": True, "sample_size": SAMPLE_ROWS}


def described(connection: duckdb.DuckDBPyConnection, sql: str) -> Columns:
    """Names and DuckDB's types of the columns of a query or table."""
    rows = connection.execute(f"DESCRIBE {sql}").fetchall()
    return tuple((str(row[0]), str(row[1])) for row in rows)


def every(columns: Iterable[tuple[str, str]]) -> str:
    """Something asked of every column: a CSV reader that keeps rejects fails when it is asked for some only."""
    return ", ".join(f"count({identifier(name)})" for name, _ in columns)


def reader(file: File, shape: Shape, types: Mapping[str, str]) -> str:
    """SQL that reads a text file with these types, as far as it can be read."""
    if shape.format in (Format.CSV, Format.TSV):
        return csv(file, shape, {"types": dict(types)})
    arguments = {**json_arguments(file, shape), "columns": dict(types)}
    if shape.format is Format.NDJSON:
        arguments["ignore_errors"] = True
    return call("read_json", file.path, arguments)


def json_arguments(file: File, shape: Shape) -> dict[str, Any]:
    """Named arguments of `read_json`.  DuckDB takes an array behind a byte order mark for one value, unless told."""
    arguments = formats.json_arguments(shape, file.options)
    if arguments["format"] == "auto":
        with opened(Path(file.path), shape.compression) as plain:
            head = plain.read(formats.HEAD_BYTES)
        if head.startswith(codecs.BOM_UTF8) and head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return {**arguments, "format": "array"}
    return arguments


def row(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    """The only row of a result."""
    found = connection.execute(sql).fetchone()
    assert found is not None
    return found


def forget_rejects(connection: duckdb.DuckDBPyConnection) -> None:
    """Drop what DuckDB noted of lines that it could not read."""
    connection.execute("DROP TABLE IF EXISTS reject_errors; DROP TABLE IF EXISTS reject_scans")


def counted(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    """The only number of a result."""
    return int(row(connection, sql)[0])


@contextlib.contextmanager
def named(file: File) -> Iterator[None]:
    """Whatever is wrong with the file is said with its name."""
    try:
        yield
    except duckdb.Error as error:
        if isinstance(error, duckdb.OutOfMemoryException):
            raise
        text = first_line(error).replace(file.path, file.uri)
        if "No space left" in text:
            raise
        raise Invalid(f"the file cannot be read: {text}. source=`{file.uri}`") from error
    except (pa.ArrowInvalid, EOFError, gzip.BadGzipFile) as error:
        raise Invalid(f"the file cannot be read: {first_line(error)}. source=`{file.uri}`") from error
    except Invalid as error:
        if file.uri in error.message:
            raise
        raise Invalid(f"{error.message}. source=`{file.uri}`") from error


def first_line(error: Exception) -> str:
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
