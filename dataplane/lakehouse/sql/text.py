"""Text of SQL that we write ourselves, and what DuckDB says of text, taken apart.

What this module does not do: judge a client's statement (`lakehouse.sql.statement`), or run one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb


def view(
    table: Mapping[str, Any], rows: tuple[str, Sequence[str]] | None, hidden: tuple[str, str] | None
) -> str:
    """A dataset's rows, as its schema says where it has one.  Names of folders above the files are no columns.

    With `rows`, a column and texts, only rows with one of these texts in it; with `hidden`, a column and another name,
    a further column of that name with the same vectors as lists.
    """
    if not table["paths"]:
        nothing = ", ".join(f"NULL::{kind} AS {quoted(name)}" for name, kind in table["columns"])
        return f"SELECT {nothing} WHERE false"
    files = ", ".join(map(literal, table["paths"]))
    columns = [f"{quoted(name)}::{kind} AS {quoted(name)}" for name, kind in table.get("columns") or ()]
    if hidden is not None:
        column, other = hidden
        kind = next(kind for name, kind in table["columns"] if name == column)
        columns.append(f"{quoted(column)}::{kind}::{kind.partition('[')[0]}[] AS {quoted(other)}")
    union = ", union_by_name = true" if len(table["paths"]) > 1 else ""
    chosen = ""
    if rows is not None:
        column, texts = rows
        chosen = (
            f" WHERE list_contains([{', '.join(map(literal, texts))}]::VARCHAR[], {quoted(column)}::VARCHAR)"
        )
    return f"SELECT {', '.join(columns) or '*'} FROM read_parquet([{files}], hive_partitioning = false{union}){chosen}"


MACRO = "CREATE OR REPLACE MACRO vector_search(idx, q, k := 10, filter := NULL) AS TABLE "


def found(hits: Sequence[Mapping[str, Any]]) -> str:
    """`vector_search` that finds these hits, at least one, whatever it is asked."""
    rows = ", ".join(
        f"({literal(hit['id'])}, {_double(hit['distance'])}, {_json(hit['metadata'])})" for hit in hits
    )
    return f"{MACRO}SELECT * FROM (VALUES {rows}) AS hit(id, distance, metadata)"


def _double(number: float | None) -> str:
    return "NULL::DOUBLE" if number is None else f"'{number!r}'::DOUBLE"


def _json(text: str | None) -> str:
    return "NULL::JSON" if text is None else f"{literal(text)}::JSON"


def quoted(name: str) -> str:
    """An identifier, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string constant, whatever is in it but NUL."""
    return "'" + text.replace("'", "''") + "'"


def without_semicolon(sql: str) -> str:
    """The one statement, with spaces for what ends it or stands before it, so that places stay."""
    raw = bytearray(sql.encode())
    for offset, _ in duckdb.tokenize(sql):
        if raw[offset] == ord(";"):
            raw[offset] = ord(" ")
    return raw.decode()


_TOLD = re.compile(r"^[A-Za-z ]*Error: (\{.*\})\s*$", re.DOTALL)


def told(text: str) -> tuple[str, int | None]:
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
