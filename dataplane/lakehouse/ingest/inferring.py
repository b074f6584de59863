"""What a file holds: its format, and columns whose types lose nothing of it.

What would be changed by reading it (2.5 as an integer) is noticed and told.  What this module does not do: decide which
schema a dataset has.
"""

import re
import zlib
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lakehouse.core import schema
from lakehouse.core.errors import Invalid
from lakehouse.core.schema import ListOf, parsed
from lakehouse.ingest import formats, lines, reading
from lakehouse.ingest.formats import Compression, Format, Shape, call, identifier
from lakehouse.ingest.job import (
    UNKNOWN,
    Columns,
    File,
    Infer,
    Inferred,
)

WIDEST = f"DECIMAL({schema.DECIMAL_DIGITS_MAX},0)"
"""The integers that Parquet keeps beyond 64 bits."""


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
    with reading.named(file):
        if format_ is Format.PARQUET:
            if not head.startswith(formats.PARQUET_MAGIC):
                raise Invalid("this is not a Parquet file")
            return Inferred(format_, compression, reading.few(_parquet_columns(connection, file, shape)))
        _check_whole(file, compression)
        own = reading.few(_text_columns(connection, file, shape))
        return Inferred(format_, compression, _adapted(connection, file, shape, own, task.wanted or ()))


def _check_whole(file: File, compression: Compression) -> None:
    """DuckDB takes a compressed file that was cut off for one that ends there.  Raises `Invalid`."""
    if compression is Compression.NONE:
        return
    try:
        with reading.opened(Path(file.path), compression) as plain:
            while plain.read(reading.CHUNK_BYTES):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise Invalid(f"the {compression} file is damaged or cut off: {reading.first_line(error)}") from error


def _head(file: File) -> tuple[bytes, Compression]:
    with Path(file.path).open("rb") as raw:
        compression = formats.compression_of(file.uri, raw.read(4))
    with reading.opened(Path(file.path), compression) as plain:
        try:
            return plain.read(formats.HEAD_BYTES), compression
        except (OSError, EOFError, zlib.error) as error:
            raise Invalid(
                f"the {compression} file is damaged: {reading.first_line(error)}. source=`{file.uri}`"
            ) from error


def _parquet_columns(connection: duckdb.DuckDBPyConnection, file: File, shape: Shape) -> Columns:
    with reading._plain_parquet(file, shape) as path:
        own = reading.described(connection, f"SELECT * FROM {call('read_parquet', path, {})}")
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


def _text_columns(connection: duckdb.DuckDBPyConnection, file: File, shape: Shape) -> Columns:
    """Names and types as DuckDB finds them, types that were asked for in their place."""
    if shape.format in (Format.CSV, Format.TSV):
        reader = reading.csv(file, shape, {"types": types} if (types := reading.types_of(file)) else {})
        found = reading.few(reading.described(connection, f"SELECT * FROM {reader}"))
        found = _without_rounding(connection, file, shape, found)
    else:
        found = _json_columns(connection, file, shape)
        types = {name.casefold(): type_ for name, type_ in reading.types_of(file).items()}
        found = tuple((name, types.get(name.casefold(), type_)) for name, type_ in found)
    return tuple((name, schema.stored(type_)) for name, type_ in found)


def _without_rounding(
    connection: duckdb.DuckDBPyConnection, file: File, shape: Shape, found: Columns
) -> Columns:
    """Integers that need more than 64 bits, which DuckDB takes for doubles: as decimals they keep all digits."""
    asked = {name.casefold() for name in reading.types_of(file)}
    names = [name for name, type_ in found if type_ == "DOUBLE" and name.casefold() not in asked]
    if not names:
        return found
    tests = ", ".join(_is_wide(identifier(name)) for name in names)
    types = {**dict(found), **dict.fromkeys(names, "VARCHAR")}
    reader = reading.csv(file, shape, {"types": types})
    row = reading.row(
        connection,
        f"SELECT {tests}, {reading.every(found)} FROM (SELECT * FROM {reader} LIMIT {reading.SAMPLE_ROWS})",
    )
    reading.forget_rejects(connection)
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
    return f"coalesce({integers} AND max(abs({number})) >= {reading.EXACT_INTEGER}, false)"


def _json_columns(connection: duckdb.DuckDBPyConnection, file: File, shape: Shape) -> Columns:
    """From all rows: a key that only a late row has would else be lost without a word."""
    arguments = {**reading.json_arguments(file, shape), "sample_size": -1}
    try:
        found = reading.described(connection, f"SELECT * FROM {call('read_json', file.path, arguments)}")
    except duckdb.Error:
        if shape.format is not Format.NDJSON:
            raise
    else:
        _check_keys(connection, file, shape, found)
        return found
    with lines.wellformed(file, shape, reading.opened) as path:
        plain = {**arguments, "compression": reading.PLAIN}
        try:
            return reading.described(connection, f"SELECT * FROM {call('read_json', str(path), plain)}")
        except duckdb.BinderException as error:  # no line holds an object
            raise Invalid("no line holds a JSON object") from error


def _check_keys(connection: duckdb.DuckDBPyConnection, file: File, shape: Shape, columns: Columns) -> None:
    """DuckDB calls the key `A` beside `a` `A_1`, and would then look for a key of that name."""
    names = {name.casefold() for name, _ in columns}
    for name, _ in columns:
        if re.fullmatch(r"C\d+", name):  # what DuckDB calls an empty key, and then looks for
            reader = call("read_json_objects", file.path, {"compression": shape.compression.value})
            if reading.counted(
                connection, f"SELECT count(*) FROM {reader} WHERE list_contains(json_keys(json), '')"
            ):
                raise Invalid("a key is empty, and the name of a column cannot be")
        stem, _, number = name.rpartition("_")
        if number.isdecimal() and stem.casefold() in names:
            reader = reading.reader(file, shape, {name: schema.JSON})
            if reading.counted(connection, f"SELECT count({identifier(name)}) FROM {reader}") == 0:
                raise Invalid(f"two keys differ in case only, and columns cannot. key=`{stem}`")


def _adapted(
    connection: duckdb.DuckDBPyConnection, file: File, shape: Shape, own: Columns, wanted: Columns
) -> Columns:
    """Text says `7`, not BIGINT: where the dataset's column takes what the text says, its type is the column's.

    A column without a value in the sample takes any type.  One that is text here takes the dataset's type when
    most of its values are such; the others become rejected rows.
    """
    targets = {name.casefold(): type_ for name, type_ in wanted}
    asked = {name.casefold() for name in reading.types_of(file)}
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
    return type_ in reading.INTEGER_BITS


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
    reader = reading.reader(file, shape, {**dict(own), **texts})
    rows = f"(SELECT * FROM {reader} LIMIT {reading.SAMPLE_ROWS})"
    row = reading.row(connection, f"SELECT {asked}, {reading.every(own)} FROM {rows}")
    reading.forget_rejects(connection)
    return {name: (row[2 * at], row[2 * at + 1]) for at, name in enumerate(doubtful)}
