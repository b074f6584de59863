"""Rows of a query to Parquet: files and row groups of bounded size, with statistics and a few rows to show.

What this module does not do: know where the rows come from.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb

from lakehouse.core import schema
from lakehouse.core.schema import Schema, parsed
from lakehouse.ingest import lines, stats
from lakehouse.ingest.formats import identifier, literal, parquet
from lakehouse.ingest.job import (
    Columns,
    Converted,
    Part,
)

ROW_GROUP_ROWS = 122_880
"""DuckDB's own size: 60 vectors of 2,048 rows."""
ROW_GROUP_BYTES = 64 << 20
"""Uncompressed, about; rows with wide vectors get groups of fewer rows, so a reader's memory stays bounded."""
VECTOR_ROWS = 2_048
FILE_BYTES = 256 << 20
"""A dataset's objects are split here, so that several readers can share the work and a cache can take a part."""
WIDTH_ROWS = 1_000
"""Rows that tell how wide a row is."""
SHOWN_ROWS = 10


def written(
    connection: duckdb.DuckDBPyConnection,
    reader: str,
    own: Mapping[str, str],
    target: Columns,
    out: str,
) -> Converted:
    """Write the rows of `reader` with exactly the columns of `target`."""
    rows = f"SELECT {columns_of(own, target)} FROM {reader}"
    copied = _copied(connection, rows, target, out)
    if not copied:
        return Converted((), 0, {})
    parts = tuple(Part(str(row[0]), int(row[2]), int(row[1])) for row in copied)
    found = stats.of_parts(connection, schema_of_target(target), copied)
    return Converted(parts, sum(part.rows for part in parts), found, sample=_shown(connection, parts, target))


def schema_of_target(target: Columns) -> Schema:
    """The target columns as a schema."""
    return Schema(tuple(schema.Field(name, type_) for name, type_ in target))


def columns_of(own: Mapping[str, str], target: Columns) -> str:
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


def emptied(out: str) -> None:
    """Forget what a failed attempt wrote."""
    shutil.rmtree(Path(out) / "parts", ignore_errors=True)
