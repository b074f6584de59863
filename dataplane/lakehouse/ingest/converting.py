"""From any of the formats to Parquet with exactly the columns asked for.

What cannot be read becomes a rejected row with file, line and reason.  What this module does not do: infer
(`lakehouse.ingest.inferring`), or know where sources and objects are kept.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from lakehouse.core.errors import Invalid
from lakehouse.ingest import formats, lines, reading, writing
from lakehouse.ingest.formats import Format, call, identifier, literal, parquet
from lakehouse.ingest.job import (
    UNKNOWN,
    Convert,
    Converted,
    Gather,
    Part,
    Retype,
    Rewrite,
)

NOT_EXACT = "not exactly an integer"
"""Our own error, raised inside a query when a check like the above fails."""


def convert(connection: duckdb.DuckDBPyConnection, task: Convert) -> Converted | Retype:
    """Write one source file as Parquet."""
    Path(task.out).mkdir(parents=True)
    with reading.named(task.file):
        match task.inferred.format:
            case Format.PARQUET:
                with reading._plain_parquet(task.file, task.inferred.shape) as path:
                    return writing.written(
                        connection, call("read_parquet", path, {}), _own(task), task.target, task.out
                    )
            case Format.CSV | Format.TSV:
                return _convert_csv(connection, task)
            case Format.NDJSON:
                return _convert_lines(connection, task)
            case Format.JSON:
                return writing.written(
                    connection, _json(task, task.file.path), _own(task), task.target, task.out
                )


def _own(task: Convert) -> dict[str, str]:
    """The file's columns and the type each is read as; one without values is read as what it shall be."""
    targets = {name.casefold(): type_ for name, type_ in task.target}
    return {
        name: targets.get(name.casefold(), "VARCHAR") if type_ == UNKNOWN else type_
        for name, type_ in task.inferred.columns
    }


def _json(task: Convert, path: str, **more: Any) -> str:
    shape, own = task.inferred.shape, path == task.file.path
    arguments = (
        reading.json_arguments(task.file, shape) if own else formats.json_arguments(shape, task.file.options)
    )
    return call("read_json", path, {**arguments, "columns": _own(task), **more})


def _convert_csv(connection: duckdb.DuckDBPyConnection, task: Convert) -> Converted | Retype:
    """Integers are read as doubles and checked, because DuckDB rounds `2.5` to one; if a check fails, columns are
    looked at as text to see which of them hold integers only."""
    own = _own(task)
    checked = {name for name, type_ in own.items() if type_ in reading.INTEGER_BITS}
    try:
        return _csv_written(connection, task, own, checked)
    except duckdb.Error as error:
        if NOT_EXACT not in str(error):
            raise
    writing.emptied(task.out)
    broken = _not_integers(connection, task, sorted(checked))
    if broken:
        return Retype(tuple((name, "DOUBLE" if name in broken else type_) for name, type_ in own.items()))
    return _csv_written(connection, task, own, set())


def _csv_written(
    connection: duckdb.DuckDBPyConnection, task: Convert, own: Mapping[str, str], checked: set[str]
) -> Converted:
    types = {name: "DOUBLE" if name in checked else type_ for name, type_ in own.items()}
    reader = reading.csv(
        task.file, task.inferred.shape, {"types": types, "rejects_limit": reading.ERRORS_MAX}
    )
    reading.forget_rejects(connection)
    columns = {name: _exact(name, own[name]) if name in checked else identifier(name) for name in own}
    source = (
        f"(SELECT {', '.join(f'{sql} AS {identifier(name)}' for name, sql in columns.items())} FROM {reader})"
    )
    done = writing.written(connection, source, own, task.target, task.out)
    path = Path(task.out) / "rejects.parquet"
    count = _keep_csv_rejects(connection, task, path)
    return _with_rejects(done, count, path)


def _exact(name: str, type_: str) -> str:
    low, high = reading.INTEGER_BITS[type_]
    value = identifier(name)
    return (
        f"CASE WHEN {value} IS NULL THEN NULL WHEN {value} = trunc({value}) AND {value} >= {low} "
        f"AND {value} < {high} THEN {value}::{type_} ELSE error('{NOT_EXACT}') END"
    )


def _not_integers(connection: duckdb.DuckDBPyConnection, task: Convert, names: Sequence[str]) -> set[str]:
    """Which of these columns have a value with a fraction or an exponent."""
    own = _own(task)
    reader = reading.csv(
        task.file, task.inferred.shape, {"types": {**own, **dict.fromkeys(names, "VARCHAR")}}
    )
    reading.forget_rejects(connection)
    tests = ", ".join(
        f"bool_or(regexp_matches({identifier(n)}, '[.eE]') AND TRY_CAST({identifier(n)} AS DOUBLE) IS NOT NULL)"
        for n in names
    )
    row = reading.row(connection, f"SELECT {tests}, {reading.every(own.items())} FROM {reader}")
    reading.forget_rejects(connection)
    return {name for name, found in zip(names, row, strict=False) if found}


def _keep_csv_rejects(connection: duckdb.DuckDBPyConnection, task: Convert, path: Path) -> int:
    """Write DuckDB's rejects to `path`, one row a line; returns how many."""
    rows = f"""SELECT {literal(task.file.uri)} AS source, coalesce(number, line)::BIGINT AS line,
        column_name AS "column", lower(error_type::VARCHAR) || ': ' || error_message AS error,
        left(csv_line, {lines.TEXT_CHARACTERS_MAX}) AS text
        FROM reject_errors LEFT JOIN reject_numbers USING (line_byte_position)
        QUALIFY row_number() OVER (PARTITION BY line ORDER BY column_idx) = 1"""
    count = reading.counted(connection, "SELECT count(DISTINCT line) FROM reject_errors")
    if reading.counted(connection, "SELECT count(*) FROM reject_errors") >= reading.ERRORS_MAX:
        count = reading.ERRORS_MAX  # there are more than DuckDB was let note
    _check_rejects(count, task)
    if count:
        connection.register("reject_numbers", _line_numbers(connection, task))
        connection.execute(
            f"COPY ({rows} ORDER BY line) TO {literal(path)} (FORMAT parquet, COMPRESSION zstd)"
        )
        connection.unregister("reject_numbers")
    reading.forget_rejects(connection)
    return count


def _line_numbers(connection: duckdb.DuckDBPyConnection, task: Convert) -> pa.Table:
    """DuckDB counts rows; an editor counts lines, and a text in quotes may hold some.

    Of bytes in another encoding DuckDB does not tell the place, and its own number has to do.
    """
    encoding = task.file.options.get("encoding", "utf-8")
    asked = "SELECT DISTINCT line_byte_position FROM reject_errors WHERE line_byte_position >= 1 ORDER BY ALL"
    places = [int(row[0]) for row in connection.execute(asked).fetchall()] if encoding == "utf-8" else []
    with reading.opened(Path(task.file.path), task.inferred.compression) as file:
        numbers = lines.numbers_at(file, [place - 1 for place in places])
    return pa.table(
        {"line_byte_position": pa.array(places, pa.uint64()), "number": pa.array(numbers, pa.int64())}
    )


def _check_rejects(count: int, task: Convert) -> None:
    if count > task.rejects_max:
        raise Invalid(f"over {task.rejects_max} rows cannot be read; check the reader options")


def _with_rejects(done: Converted, count: int, path: Path) -> Converted:
    return Converted(done.parts, done.rows, done.stats, count, str(path) if count else None, done.sample)


def _convert_lines(connection: duckdb.DuckDBPyConnection, task: Convert) -> Converted:
    """Read all at once; only when that fails, line by line, to keep what can be read and say what cannot."""
    try:
        return writing.written(connection, _json(task, task.file.path), _own(task), task.target, task.out)
    except duckdb.Error:
        writing.emptied(task.out)
    cleaned = Path(task.out) / "cleaned.ndjson"

    def readable(path: Path) -> None:
        connection.execute(
            f"SELECT count(COLUMNS(*)) FROM {_json(task, str(path), compression=reading.PLAIN)}"
        ).fetchall()

    rejects = Path(task.out) / "rejects.parquet"
    count = lines.clean(
        task.file, task.inferred.shape, reading.opened, cleaned, rejects, task.rejects_max, readable
    )
    _check_rejects(count, task)
    done = writing.written(
        connection, _json(task, str(cleaned), compression=reading.PLAIN), _own(task), task.target, task.out
    )
    cleaned.unlink()
    return _with_rejects(done, count, rejects)


def rewrite(connection: duckdb.DuckDBPyConnection, task: Rewrite) -> Converted:
    """Bring rows that were written under an older schema into the new one."""
    Path(task.out).mkdir(parents=True)
    return writing.written(connection, parquet(task.paths), dict(task.own), task.target, task.out)


def gather(connection: duckdb.DuckDBPyConnection, task: Gather) -> Converted:
    """One Parquet file of all rejected rows."""
    sources = [f"SELECT * FROM {parquet(task.paths)}"] if task.paths else []
    if task.old is not None and task.kept:
        kept = ", ".join(map(literal, task.kept))
        sources.insert(0, f"SELECT * FROM {parquet((task.old,))} WHERE source IN ({kept})")
    rows = " UNION ALL ".join(sources)
    connection.execute(f"COPY ({rows}) TO {literal(task.out)} (FORMAT parquet, COMPRESSION zstd)")
    count = reading.counted(connection, f"SELECT count(*) FROM {parquet((task.out,))}")
    return Converted((Part(task.out, Path(task.out).stat().st_size, count),), count, {})
