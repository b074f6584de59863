"""Exactly one SELECT, at every depth, or nothing runs.

DuckDB parses; this module walks the tree it prints and lets pass only what it knows: kinds of nodes by an
allow-list, table functions by another.  A kind of node that a later DuckDB adds is refused until somebody has
looked at it.  What this module does not do: contain a hostile query; the process it runs in does.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SQL_BYTES_MAX = 1 << 20
NODES_MAX = 200_000
"""Nodes in one statement: a query vector of 1,536 numbers is 1,536."""
TABLES_MAX = 64
"""Datasets one statement may name."""
DEPTH_MAX = 6_000
"""Nesting of the printed tree; DuckDB itself stops at 1,000 levels of expression."""

NODES = frozenset(("SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"))
TABLES = frozenset(
    (
        "BASE_TABLE",
        "SUBQUERY",
        "JOIN",
        "TABLE_FUNCTION",
        "EXPRESSION_LIST",
        "EMPTY",
        "EMPTY_FROM",
        "PIVOT",
        "SHOW_REF",
        "COLUMN_DATA",
        "CTE",
    )
)
MODIFIERS = frozenset(
    (
        "ORDER_MODIFIER",
        "LIMIT_MODIFIER",
        "LIMIT_PERCENT_MODIFIER",
        "DISTINCT_MODIFIER",
        "ORDER_DEFAULT",
        "ASCENDING",
        "DESCENDING",
        "INVALID",
    )
)
EXPRESSIONS = frozenset(
    (
        "BETWEEN",
        "CASE",
        "CAST",
        "COLLATE",
        "COLUMN_REF",
        "COMPARISON",
        "CONJUNCTION",
        "CONSTANT",
        "FUNCTION",
        "LAMBDA",
        "LAMBDA_REF",
        "OPERATOR",
        "PARAMETER",
        "POSITIONAL_REFERENCE",
        "STAR",
        "SUBQUERY",
        "TYPE",
        "WINDOW",
    )
)
TABLE_FUNCTIONS = frozenset(
    (
        "generate_series",
        "json_each",
        "json_tree",
        "range",
        "repeat",
        "repeat_row",
        "unnest",
        "vector_search",
    )
)
"""Functions in FROM that compute; all others read files, settings or the catalog."""
FUNCTIONS_REFUSED = frozenset(
    (
        "_vs",
        "col_description",
        "current_query",
        "current_query_id",
        "current_setting",
        "currval",
        "get_block_size",
        "getenv",
        "getvariable",
        "json_execute_serialized_sql",
        "json_serialize_plan",
        "nextval",
        "pg_sleep",
        "setseed",
        "set_config",
        "sleep_ms",
        "which_secret",
        "write_log",
    )
)
"""Functions that look at or change the process, or only burn time."""
_REFUSED_PREFIX = re.compile(
    r"duckdb_|__internal_|pragma_|read_|has_\w+_privilege$|inet_|pg_(?!typeof|size_pretty)"
)
OWN_NAMES = frozenset(
    (
        *("duckdb_columns", "duckdb_constraints", "duckdb_databases", "duckdb_indexes", "duckdb_logs"),
        *("duckdb_schemas", "duckdb_tables", "duckdb_types", "duckdb_views", "pg_am", "pg_attrdef"),
        *("pg_attribute", "pg_class", "pg_collation", "pg_constraint", "pg_database", "pg_depend"),
        *("pg_description", "pg_enum", "pg_index", "pg_indexes", "pg_namespace", "pg_prepared_statements"),
        *("pg_proc", "pg_sequence", "pg_sequences", "pg_settings", "pg_tables", "pg_tablespace", "pg_type"),
        *("pg_views", "pragma_database_list", "sqlite_master", "sqlite_schema", "sqlite_temp_master"),
        "sqlite_temp_schema",
    )
)
"""Views that DuckDB has by itself, which tell of files and settings.

A common table expression cannot be called like one: wherever DuckDB saw less of it than we do, the view would
answer in its place.
"""
NO_LOCATION = (1 << 64) - 1


class RefusedError(Exception):
    """The statement is not one that runs; `offset` is where, in bytes of its UTF-8, or None."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset


@dataclass(frozen=True, slots=True)
class Table:
    """A dataset as the statement names it."""

    name: str
    offset: int | None


@dataclass(frozen=True, slots=True)
class Statement:
    """What the tree of an allowed statement says."""

    tables: tuple[Table, ...]
    """Datasets named, each spelling once."""
    searches: tuple[int | None, ...]
    """Where `vector_search` is called."""
    described: bool = False
    """Whether it is a DESCRIBE or SUMMARIZE."""
    tree: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """As DuckDB printed it; `lakehouse.sql.planning` reads it."""


def read(printed: str) -> Statement:
    """The statement that `json_serialize_sql` printed.  Raises `RefusedError`."""
    try:
        tree = json.loads(printed)
    except RecursionError as error:
        raise RefusedError("the statement is nested too deeply") from error
    if tree["error"]:
        raise _not_parsed(tree)
    statements = tree["statements"]
    if len(statements) != 1:
        raise RefusedError(f"send exactly one SELECT statement. statements=`{len(statements)}`")
    source = statements[0]["node"].get("from_table") or {}
    return replace(_walked(statements[0]), described=source.get("type") == "SHOW_REF", tree=statements[0])


def _not_parsed(tree: Mapping[str, Any]) -> RefusedError:
    if tree.get("error_type") == "not implemented":
        message = tree["error_message"]
        only_select = "Only SELECT" in message
        return RefusedError("only a SELECT statement can run here" if only_select else message)
    position = tree.get("position")
    return RefusedError(tree["error_message"], None if position is None else int(position))


def _walked(root: Mapping[str, Any]) -> Statement:
    tables: dict[str, Table] = {}
    searches: list[int | None] = []
    for node, scope in _nodes(root):
        _check_kind(node)
        kind = node.get("type")
        if kind == "BASE_TABLE":
            name = _checked_table(node)
            if name.lower() not in scope:
                tables.setdefault(name, Table(name, _offset(node)))
        elif kind == "TABLE_FUNCTION":
            if _checked_table_function(node) == "vector_search":
                searches.append(_offset(node))
        elif kind == "SHOW_REF":
            _check_show(node)
        if len(tables) > TABLES_MAX:
            raise RefusedError(f"a statement names at most {TABLES_MAX} datasets")
    return Statement(tuple(tables.values()), tuple(searches))


_Scope = frozenset[str]


def _nodes(root: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], _Scope]]:
    """Every object of the tree with the names of the common table expressions in scope there."""
    waiting: list[tuple[Any, _Scope]] = [(root, frozenset())]
    seen = 0
    while waiting:
        value, scope = waiting.pop()
        if isinstance(value, list):
            waiting.extend((item, scope) for item in value)
            continue
        if not isinstance(value, dict):
            continue
        seen += 1
        if seen > NODES_MAX:
            raise RefusedError(f"the statement is too large: at most {NODES_MAX} parts")
        yield value, scope
        waiting.extend(_children(value, scope))


def _children(node: Mapping[str, Any], scope: _Scope) -> Iterator[tuple[Any, _Scope]]:
    defined = node.get("cte_map")
    if isinstance(defined, dict):
        for entry in defined["map"]:  # each sees those before it
            yield entry["value"], scope
            scope |= {_checked_cte(str(entry["key"]))}
    kind = node.get("type")
    for name, child in node.items():
        if name == "function" and kind == "TABLE_FUNCTION":  # its arguments are judged, its name already was
            yield child["children"], scope
        elif (
            name == "right" and kind == "RECURSIVE_CTE_NODE"
        ):  # the other side begins, and does not see itself
            yield child, scope | {_checked_cte(str(node["cte_name"]))}
        elif name != "cte_map":
            yield child, scope


def _checked_cte(name: str) -> str:
    lowered = name.lower()
    if lowered in OWN_NAMES:
        raise RefusedError(f"call the common table expression otherwise. name=`{name}`")
    return lowered


def _check_kind(node: Mapping[str, Any]) -> None:
    expression = node.get("class")
    if expression is not None:
        if expression not in EXPRESSIONS:
            raise RefusedError(f"not allowed in a query. expression=`{expression}`", _offset(node))
        name = node.get("function_name")
        if isinstance(name, str):
            _check_function(name, node)
        return
    kind = node.get("type")
    if not isinstance(kind, str) or kind.endswith("_TYPE_INFO"):
        return
    if kind not in NODES and kind not in TABLES and kind not in MODIFIERS:
        raise RefusedError(f"not allowed in a query. node=`{kind}`", _offset(node))


def _check_function(name: str, node: Mapping[str, Any]) -> None:
    lowered = name.lower()
    if lowered in FUNCTIONS_REFUSED or _REFUSED_PREFIX.match(lowered):
        raise RefusedError(f"this function cannot be used here. function=`{name}`", _offset(node))


def _checked_table(node: Mapping[str, Any]) -> str:
    name = str(node["table_name"])
    qualified = [str(node[part]) for part in ("catalog_name", "schema_name") if node.get(part)]
    if qualified:
        shown = ".".join([*qualified, name])
        raise RefusedError(f"name a dataset alone, without a schema. table=`{shown}`", _offset(node))
    if node.get("at_clause"):
        raise RefusedError(f'name a version as "{name}@v3"', _offset(node))
    return name


def _checked_table_function(node: Mapping[str, Any]) -> str:
    function = node["function"]
    name = str(function.get("function_name", "")).lower()
    if function.get("class") != "FUNCTION" or function.get("schema") or function.get("catalog"):
        raise RefusedError("not allowed in FROM", _offset(node))
    if name not in TABLE_FUNCTIONS:
        known = ", ".join(sorted(TABLE_FUNCTIONS))
        raise RefusedError(
            f"this function cannot be used in FROM, only {known}. function=`{name}`", _offset(node)
        )
    return name


def _check_show(node: Mapping[str, Any]) -> None:
    if node.get("query") is None or node.get("show_type") not in ("DESCRIBE", "SUMMARY"):
        raise RefusedError("SHOW cannot be used here: the catalog lists datasets", _offset(node))


def _offset(node: Mapping[str, Any]) -> int | None:
    offset = node.get("query_location")
    return offset if isinstance(offset, int) and offset < NO_LOCATION else None


def line_and_column(sql: str, offset: int) -> tuple[int, int]:
    """Where the byte `offset` of `sql` is, both counted from 1, columns in characters."""
    before = sql.encode("utf-8", "surrogatepass")[:offset].decode("utf-8", "ignore")
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
