"""A transform: one SELECT over its source, which sees nothing else.

What this module does not do: read sources; it is given the Parquet that was made of them.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb

from lakehouse.core import schema
from lakehouse.core.errors import Invalid
from lakehouse.ingest import reading, writing
from lakehouse.ingest.formats import identifier, literal, parquet
from lakehouse.ingest.job import (
    Columns,
    Converted,
    Describe,
    Transform,
)

SOURCE = "source"
TABLE_FUNCTIONS = frozenset(
    ("generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest")
)
"""Functions in FROM that compute; all others read files, settings or the catalog."""
_REFUSED = re.compile(
    r"(duckdb_|pragma_|read_|__internal_|inet_|has_\w+_privilege$|pg_(?!typeof|size_pretty)).*|(col_description|"
    r"current_(query|query_id|setting)|currval|get_block_size|getenv|getvariable|json_execute_serialized_sql|"
    r"json_serialize_plan|nextval|set_config|which_secret|write_log)"
)
"""Functions that tell of the process, its settings or its files, which would end up in the dataset."""


def checked_select(sql: str) -> str:
    """`sql` as one SELECT over `source`, without its semicolon.  Raises `Invalid`."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise Invalid(f"the transform is not SQL: {reading.first_line(error)}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise Invalid(f"the transform is one SELECT over `source`. statements=`{len(statements)}`")
    text = bytearray(sql.encode())
    for offset, _ in duckdb.tokenize(sql):
        if text[offset] == ord(";"):  # it ends the statement, and a comment may follow
            text[offset] = ord(" ")
    _check(_tree(text.decode()))
    return text.decode()


def _tree(sql: str) -> Mapping[str, Any]:
    """The statement as DuckDB prints it.  Raises `Invalid`."""
    with contextlib.closing(duckdb.connect()) as connection:
        (printed,) = reading.row(connection, f"SELECT json_serialize_sql({literal(sql)}::VARCHAR)")
    tree: dict[str, Any] = json.loads(printed)
    if tree["error"]:
        raise Invalid(f"this cannot be part of a transform: {tree['error_message']}")
    return tree


def _check(tree: Mapping[str, Any]) -> None:
    """Only `source`, what the statement defines itself, and functions that compute.  Raises `Invalid`."""
    nodes = list(_nodes(tree))
    known = {SOURCE}
    for node in nodes:
        known |= {str(entry["key"]).lower() for entry in (node.get("cte_map") or {}).get("map", ())}
        known |= {str(node["cte_name"]).lower()} if node.get("cte_name") else set()
    for node in nodes:
        kind = node.get("type")
        if kind == "BASE_TABLE":
            name = ".".join(
                str(node[part]) for part in ("catalog_name", "schema_name", "table_name") if node.get(part)
            )
            if name.lower() not in known:
                raise Invalid(f"a transform reads `{SOURCE}` and nothing else. table=`{name}`")
        elif kind == "SHOW_REF" and node.get("query") is None:
            raise Invalid("a transform has no SHOW")
        elif kind == "TABLE_FUNCTION":
            name = str(node["function"].get("function_name", "")).lower()
            if name not in TABLE_FUNCTIONS:
                most = ", ".join(sorted(TABLE_FUNCTIONS))
                raise Invalid(f"a transform can use in FROM only {most}. function=`{name}`")
        elif "function_name" in node and _REFUSED.fullmatch(str(node["function_name"]).lower()):
            raise Invalid(f"a transform cannot use this function. function=`{node['function_name']}`")


def _nodes(root: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _confined(limits: reading.Limits, source: str, folder: Path | None) -> duckdb.DuckDBPyConnection:
    """A DuckDB that knows the view `source` and reads and writes nothing outside `folder`."""
    connection = reading.connected(limits)
    connection.execute(f"CREATE VIEW source AS {source}")
    if folder is not None:
        connection.execute(f"SET allowed_directories = [{literal(folder)}]")
    connection.execute("SET enable_external_access = false; SET lock_configuration = true")
    return connection


def describe_transform(limits: reading.Limits, task: Describe) -> Columns:
    """Columns of the transform's result, found without a row."""
    empty = ", ".join(f"NULL::{type_} AS {identifier(name)}" for name, type_ in task.source)
    sql = checked_select(task.sql)
    with contextlib.closing(_confined(limits, f"SELECT {empty} WHERE false", None)) as connection:
        return tuple(
            (name, schema.stored(type_)) for name, type_ in reading.described(connection, f"({sql}\n)")
        )


def transform(limits: reading.Limits, connection: duckdb.DuckDBPyConnection, task: Transform) -> Converted:
    """Write the rows the transform makes.  It sees its source and nothing else, and can write its result only."""
    out = Path(task.out)
    out.mkdir(parents=True)
    inside = []
    for number, path in enumerate(task.paths):
        inside.append(str(out / f"source_{number}.parquet"))
        Path(path).rename(inside[-1])
    columns = writing.columns_of(dict(task.source), task.source)
    source = f"SELECT {columns} FROM {parquet(inside)}" if inside else _nothing(task.source)
    sql = checked_select(task.sql)
    own = dict(task.target)
    with contextlib.closing(_confined(limits, source, out)) as confined:
        return writing.written(confined, f"({sql}\n)", own, task.target, task.out)


def _nothing(columns: Columns) -> str:
    return (
        f"SELECT {', '.join(f'NULL::{type_} AS {identifier(name)}' for name, type_ in columns)} WHERE false"
    )
