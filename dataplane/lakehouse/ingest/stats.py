"""What is known of each column: least and greatest value, nulls, distinct values, lengths of lists.

Bounds and nulls come from the statistics that writing Parquet gathers anyway; distinct values are estimated
from a bounded sample; lengths of lists cost one pass over those columns.  What this module does not do: look
at the values of vectors.
"""

import decimal
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lakehouse.core.schema import Decimal, ListOf, Scalar, Schema, parsed
from lakehouse.ingest.formats import identifier, parquet

if TYPE_CHECKING:
    import duckdb  # what is decided here is decided without it, too

Stats = dict[str, dict[str, Any]]

DISTINCT_ROWS_MAX = 1_000_000
"""Rows that distinct values are counted in; counting them all costs most of what converting costs."""
UNIQUE_SHARE = 0.9
"""A sample with at least this share of distinct values is taken for a column that goes on like that."""
TEXT_CHARACTERS_MAX = 256
"""A longer bound is left out."""
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
_FLOATS = {"FLOAT", "DOUBLE"}
_UNBOUNDED = {"BLOB", "JSON", "INTERVAL", "UUID", "GEOMETRY"}
"""Types whose bounds mean nothing to people."""


def of_parts(
    connection: "duckdb.DuckDBPyConnection", schema: Schema, copied: Sequence[Sequence[Any]]
) -> Stats:
    """Statistics of the files that one COPY wrote; `copied` is what it returned."""
    paths = [str(row[0]) for row in copied]
    rows = sum(int(row[1]) for row in copied)
    found: Stats = {}
    for field in schema.fields:
        if isinstance(parsed(field.type), Scalar | Decimal):
            columns = [row[4].get(identifier(field.name)) for row in copied]
            found[field.name] = _scalar(field.type, [each for each in columns if each is not None])
    _add_distinct(connection, schema, paths, rows, found)
    _add_lengths(connection, schema, paths, found)
    return {field.name: found.get(field.name, {}) for field in schema.fields}


def _scalar(type_: str, columns: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    nulls = sum(int(each.get("null_count", 0)) for each in columns)
    found: dict[str, Any] = {"null_count": nulls}
    if type_ in _UNBOUNDED:
        return found
    for bound, least in (("min", min), ("max", max)):
        values = [_value(type_, each[bound]) for each in columns if bound in each]
        if values and all(value is not None for value in values):
            found[bound] = least(values, key=lambda value: _comparable(type_, value))
    return found


def _value(type_: str, text: str) -> Any:
    """A bound as JSON has it: numbers and truth as such, all else as text."""
    if type_ in _INTEGERS:
        return int(text)
    if type_ in _FLOATS:
        value = float(text)
        return value if value - value == 0 else None  # infinity is no JSON
    if type_ == "BOOLEAN":
        return text in ("1", "true")
    return text if len(text) <= TEXT_CHARACTERS_MAX else None


def _comparable(type_: str, value: Any) -> Any:
    return decimal.Decimal(value) if type_.startswith("DECIMAL") else value


def _add_distinct(
    connection: "duckdb.DuckDBPyConnection", schema: Schema, paths: Sequence[str], rows: int, found: Stats
) -> None:
    names = [f.name for f in schema.fields if f.name in found and f.type not in ("JSON", "INTERVAL")]
    if not names:
        return
    counted = ", ".join(f"approx_count_distinct({identifier(name)})" for name in names)
    row = connection.execute(
        f"SELECT {counted} FROM (SELECT * FROM {parquet(paths)} LIMIT {DISTINCT_ROWS_MAX})"
    ).fetchone()
    assert row is not None
    sampled = min(rows, DISTINCT_ROWS_MAX)
    for name, distinct in zip(names, row, strict=True):
        values = rows - found[name].get("null_count", 0)
        goes_on = sampled < rows and distinct >= UNIQUE_SHARE * sampled
        found[name]["distinct"] = min(values, distinct * rows // sampled if goes_on else distinct)


def _add_lengths(
    connection: "duckdb.DuckDBPyConnection", schema: Schema, paths: Sequence[str], found: Stats
) -> None:
    """Lengths and nulls of list columns: whether an index can be built from one."""
    names = [field.name for field in schema.fields if isinstance(parsed(field.type), ListOf)]
    if not names:
        return
    asked = ", ".join(
        f"count(*) - count({c}), min(len({c})), max(len({c})), coalesce(sum(len({c}) - list_count({c})), 0)::BIGINT"
        for c in map(identifier, names)
    )
    row = connection.execute(f"SELECT {asked} FROM {parquet(paths)}").fetchone()
    assert row is not None
    for at, name in enumerate(names):
        nulls, least, most, null_elements = row[4 * at : 4 * at + 4]
        found[name] = {
            "null_count": nulls,
            "length_min": least,
            "length_max": most,
            "element_null_count": null_elements,
        }


def merged(schema: Schema, parts: Iterable[tuple[int, Mapping[str, Mapping[str, Any]]]]) -> Stats:
    """The statistics of parts together, each with its number of rows.  Distinct values are at least the most of
    any part and at most the sum: the sum is given for columns whose ranges do not overlap, else the most."""
    everything = [(rows, stats) for rows, stats in parts if rows]
    return {
        field.name: _merged(field.type, [(rows, stats.get(field.name)) for rows, stats in everything])
        for field in schema.fields
    }


def _merged(type_: str, columns: Sequence[tuple[int, Mapping[str, Any] | None]]) -> dict[str, Any]:
    """One column over its parts; a part without the column is all nulls."""
    known = [dict(each) for _, each in columns if each is not None]
    absent = sum(rows for rows, each in columns if each is None)
    if any("null_count" not in each for each in known):
        return {}
    found: dict[str, Any] = {"null_count": absent + sum(each["null_count"] for each in known)}
    for name, choose in (("min", min), ("max", max), ("length_min", min), ("length_max", max)):
        values = [each[name] for each in known if each.get(name) is not None]
        if values:
            found[name] = choose(values, key=lambda value: _comparable(type_, value))
    if isinstance(parsed(type_), ListOf):
        found["element_null_count"] = sum(each.get("element_null_count", 0) for each in known)
    distinct = [each["distinct"] for each in known if "distinct" in each]
    if distinct:
        found["distinct"] = sum(distinct) if _is_apart(type_, known) else max(distinct)
    return found


def _is_apart(type_: str, known: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the ranges of the parts do not overlap."""
    ranges = [(each["min"], each["max"]) for each in known if "min" in each and "max" in each]
    ordered = sorted((_comparable(type_, low), _comparable(type_, high)) for low, high in ranges)
    return all(high < low for (_, high), (low, _) in itertools.pairwise(ordered))
