"""What can be known of a statement before DuckDB plans it: searches to do early, rows not to read, vectors not to hash.

A call of `vector_search` whose arguments are literals or parameters is searched for while the files are looked up.
A dataset that is joined to the ids of such a call is read for those ids only.  A fixed-size vector of a table that is
searched for row by row stands beside itself as a list: DuckDB numbers the rows then, where it would hash and compare
every vector twice.  None of it changes an answer: where a rule is not sure, it does nothing.  What this module does not
do: run anything; the worker does, and it allows or refuses the statement before (`lakehouse.sql.statement`).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FORESEEN_MAX = 8
"""Calls searched for before the statement runs; the others ask while it does."""
K_MAX = 1 << 31
LOOKED_UP_MAX = 32
"""Hits that a dataset is read for by name; each is compared with every row."""

Node = Mapping[str, Any]

_NUMBERS = frozenset(("FLOAT", "DOUBLE"))
_FIXED = re.compile(r"(FLOAT|DOUBLE)\[\d+\]")
_IDENTIFIER = rb'("(?:[^"]|"")*"|[A-Za-z_\x80-\xff][\w$\x80-\xff]*)'
_QUALIFIED = re.compile(_IDENTIFIER + rb"\.(" + _IDENTIFIER + rb")")
_FILLER = "ǁ"
"""Two bytes that no column is called by."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of `vector_search` that names everything itself."""

    index: str
    k: int | None
    filter: str | None
    query: Any
    """An item's id, a list of numbers as a parameter gave it, or the node of a literal list, to be evaluated."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A dataset of which only rows with the ids of the statement's one call can be in the answer."""

    table: str
    column: str


@dataclass(frozen=True, slots=True)
class Rows:
    """A dataset whose vectors are searched for, row by row."""

    table: str
    column: str
    start: int
    """Where the column is named as the argument, in bytes of the statement."""
    end: int
    hidden: str
    """Another name of as many bytes, for the same vectors as lists."""


class Plan:
    """The questions that can be asked of the tree of an allowed statement."""

    def __init__(self, tree: Node, parameters: Any) -> None:
        self._root = tree["node"]
        self._parameters = parameters
        self._nodes = list(_owned(self._root))
        self._searches = [node for node, _ in self._nodes if _is_search(node)]

    @property
    def is_of_one(self) -> bool:
        """Whether the statement has exactly one call."""
        return len(self._searches) == 1

    def calls(self) -> list[Call]:
        """What can be searched for now, each in the order of the text's tree."""
        known = [self._call(node) for node in self._searches[: FORESEEN_MAX + 1]]
        return [] if len(self._searches) > FORESEEN_MAX else [call for call in known if call is not None]

    def lookup(self) -> Lookup | None:
        """The dataset joined to the only call, or None."""
        if len(self._searches) != 1 or self._has("PIVOT", "SHOW_REF"):
            return None
        search = self._searches[0]
        for node, _ in self._nodes:
            found = _joined(node, search) if node.get("type") == "JOIN" else None
            found = found or (_where(node, search) if node.get("type") == "SELECT_NODE" else None)
            if found is not None and self._is_alone(found[0]):
                return Lookup(str(found[0]["table_name"]), found[1])
        return None

    def rows(self, sql: str) -> Rows | None:
        """The table on the left whose column the only call on the right is given, or None."""
        if len(self._searches) != 1 or self._has("PIVOT", "SHOW_REF", "POSITIONAL_REFERENCE"):
            return None
        search = self._searches[0]
        asked = _query_of(search)
        if asked is None or asked.get("class") != "COLUMN_REF" or len(asked["column_names"]) != 2:
            return None
        alias, column = asked["column_names"]
        for node, owner in self._nodes:
            if node.get("type") != "JOIN" or not _is_table(node["left"], alias):
                continue
            inside = any(one is search for one, _ in _owned(node["right"]))
            if inside and self._is_alone(node["left"]) and self._is_unseen(owner, alias):
                return _renamed(sql, asked, str(node["left"]["table_name"]), column)
        return None

    # --- arguments

    def _call(self, node: Node) -> Call | None:
        given: dict[str, Any] = {}
        unnamed = iter(("index", "query"))
        for child in node["function"]["children"]:
            name = str(child["alias"]).lower() or next(unnamed, "")
            if name not in ("index", "query", "k", "filter") or name in given:
                return None
            given[name] = self._value(child)
        index, query = given.get("index"), given.get("query")
        k, wanted = given.get("k", 10), given.get("filter")
        if not isinstance(index, str) or not isinstance(query, str | list | dict):
            return None
        if isinstance(k, bool) or not isinstance(k, int | None) or not isinstance(wanted, str | None):
            return None
        if k is not None and abs(k) > K_MAX:  # not every such number is a BIGINT
            return None
        return Call(index, k, wanted, query)

    def _value(self, node: Node) -> Any:
        kind = node.get("class")
        if kind == "PARAMETER":
            return _given(self._parameters, str(node["identifier"]))
        if kind == "CONSTANT":
            value = node["value"]
            plain = value["is_null"] or value["type"]["id"] in ("VARCHAR", "INTEGER")
            return (None if value["is_null"] else value["value"]) if plain else _UNKNOWN
        if kind == "CAST" and node["child"].get("class") == "PARAMETER" and _of_numbers(node["cast_type"]):
            value = _given(self._parameters, str(node["child"]["identifier"]))
            size = (node["cast_type"]["type_info"] or {}).get("size")
            fitting = isinstance(value, list) and size in (None, len(value))
            return value if fitting else _UNKNOWN
        return node if _is_literal(node) else _UNKNOWN

    # --- what stands in the way

    def _has(self, *kinds: str) -> bool:
        return any(node.get("type") in kinds for node, _ in self._nodes)

    def _is_alone(self, table: Node) -> bool:
        """Whether the statement names the dataset nowhere else, nor a common table expression like it."""
        name = str(table["table_name"]).lower()
        named = sum(
            node.get("type") == "BASE_TABLE" and str(node["table_name"]).lower() == name
            for node, _ in self._nodes
        )
        defined = any(
            str(entry["key"]).lower() == name
            for node, _ in self._nodes
            for entry in (node.get("cte_map") or {}).get("map", ())
        )
        return named == 1 and not defined

    def _is_unseen(self, owner: Node | None, alias: str) -> bool:
        """Whether a further column of this table would show nowhere."""
        for node, of in self._nodes:
            kind = node.get("class")
            if kind == "STAR" and (of is owner or str(node["relation_name"]).lower() == alias.lower()):
                return False
            if kind == "COLUMN_REF" and [str(one).lower() for one in node["column_names"]] == [alias.lower()]:
                return False
        return True


class _Unknown:
    """A value that only the running statement knows."""


_UNKNOWN = _Unknown()


def _given(parameters: Any, identifier: str) -> Any:
    """What the client sent for it, where its meaning as a query, a number or a text is beyond doubt."""
    if isinstance(parameters, dict):
        value = parameters.get(identifier, _UNKNOWN)
    elif isinstance(parameters, list) and identifier.isdigit() and 1 <= int(identifier) <= len(parameters):
        value = parameters[int(identifier) - 1]
    else:
        value = _UNKNOWN
    if isinstance(value, list):
        return value if value and all(_is_exact(one) for one in value) else _UNKNOWN
    return value if isinstance(value, str | int | None) else _UNKNOWN


def _is_exact(value: object) -> bool:
    """A number that becomes the same float32 whatever type DuckDB gives it on the way."""
    if isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 1 << 24


def _is_literal(node: Any) -> bool:
    """A list of constants, perhaps cast to another kind of list."""
    while node.get("class") == "CAST" and _of_numbers(node["cast_type"]):
        node = node["child"]
    return (
        node.get("class") == "FUNCTION"
        and node.get("function_name") == "list_value"
        and all(child.get("class") == "CONSTANT" for child in node["children"])
        and bool(node["children"])
    )


def _of_numbers(kind: Node) -> bool:
    info = kind.get("type_info") or {}
    return kind["id"] in ("LIST", "ARRAY") and (info.get("child_type") or {}).get("id") in _NUMBERS


# --- tables


def _owned(root: Any) -> Iterator[tuple[Node, Node | None]]:
    """Every object of a tree with the SELECT it is directly part of."""
    waiting: list[tuple[Any, Node | None]] = [(root, None)]
    while waiting:
        value, owner = waiting.pop()
        if isinstance(value, dict):
            yield value, owner
            inner = value if value.get("type") == "SELECT_NODE" else owner
            waiting.extend((child, inner) for child in value.values() if isinstance(child, dict | list))
        elif isinstance(value, list):
            waiting.extend((child, owner) for child in value if isinstance(child, dict | list))


def _is_search(node: Node) -> bool:
    return (
        node.get("type") == "TABLE_FUNCTION"
        and str(node["function"].get("function_name", "")).lower() == "vector_search"
    )


def _query_of(search: Node) -> Node | None:
    """The second of the arguments that have no name."""
    unnamed = [child for child in search["function"]["children"] if not child["alias"]]
    return unnamed[1] if len(unnamed) == 2 else None


def _is_table(node: Node, alias: str) -> bool:
    plain = node.get("type") == "BASE_TABLE" and not node["column_name_alias"] and node["sample"] is None
    return plain and _alias(node) == alias.lower()


def _alias(node: Node) -> str:
    name = node["table_name"] if node["type"] == "BASE_TABLE" else "vector_search"
    return str(node["alias"] or name).lower()


def _joined(join: Node, search: Node) -> tuple[Node, str] | None:
    """The table of a join that loses each row whose column is no id of the search on its other side, and the column."""
    if join["ref_type"] != "REGULAR" or join["sample"] is not None:
        return None
    sides = ("left", "right")
    for this, other in (sides, sides[::-1]):
        loses = {"left": ("INNER", "RIGHT", "SEMI"), "right": ("INNER", "LEFT")}[this]
        if join["join_type"] not in loses or not any(leaf is search for leaf in _leaves(join[other])):
            continue
        using = [name.lower() for name in join["using_columns"]]
        if "id" in using and join[other] is search and _is_plain(search) and _is_named_table(join[this]):
            return join[this], "id"
        found = _equal(join["condition"], list(_inner_leaves(join[this])), search)
        if found is not None:
            return found
    return None


def _where(select: Node, search: Node) -> tuple[Node, str] | None:
    """The same, where the condition stands behind WHERE."""
    leaves = list(_inner_leaves(select["from_table"]))
    if select["sample"] is not None or not any(leaf is search for leaf in leaves):
        return None
    return _equal(select["where_clause"], leaves, search)


def _equal(condition: Any, tables: Sequence[Node], search: Node) -> tuple[Node, str] | None:
    """`table.column = search.id` among what must all hold, either way round."""
    if not _is_plain(search):
        return None
    wanted = [_alias(search), "id"]
    for part in _parts(condition):
        if part.get("type") != "COMPARE_EQUAL":
            continue
        names = [_names(part["left"]), _names(part["right"])]
        for name, other in (names, names[::-1]):
            if other == wanted and name is not None and len(name) == 2:
                fitting = [table for table in tables if _is_table(table, name[0])]
                if len(fitting) == 1:
                    return fitting[0], name[1]
    return None


def _parts(condition: Any) -> Iterator[Node]:
    waiting = [condition] if condition else []
    while waiting:
        part = waiting.pop()
        if part.get("type") == "CONJUNCTION_AND":
            waiting.extend(part["children"])
        else:
            yield part


def _names(node: Node) -> list[str] | None:
    if node.get("class") != "COLUMN_REF":
        return None
    return [str(one).lower() for one in node["column_names"]]


def _is_plain(search: Node) -> bool:
    return not search["column_name_alias"] and search["sample"] is None


def _is_named_table(node: Node) -> bool:
    return node.get("type") == "BASE_TABLE" and _is_table(node, _alias(node))


def _leaves(source: Node) -> Iterator[Node]:
    """What a FROM joins, in whatever way."""
    waiting = [source]
    while waiting:
        node = waiting.pop()
        if node.get("type") == "JOIN":
            waiting += (node["left"], node["right"])
        else:
            yield node


def _inner_leaves(source: Node) -> Iterator[Node]:
    """What a FROM joins so that a row without a partner is lost."""
    waiting = [source]
    while waiting:
        node = waiting.pop()
        if node.get("type") != "JOIN":
            yield node
        elif (
            node["join_type"] == "INNER"
            and node["ref_type"] in ("REGULAR", "CROSS")
            and node["sample"] is None
        ):
            waiting += (node["left"], node["right"])


# --- names


def _renamed(sql: str, asked: Node, table: str, column: str) -> Rows | None:
    """Where the text has the column, and a name of the same length that nobody uses."""
    match = _QUALIFIED.match(sql.encode(), int(asked["query_location"]))
    if match is None:
        return None
    start, end = match.span(2)
    if match[2].startswith(b'"'):
        start, end = start + 1, end - 1
    if sql.encode()[start:end].decode().lower() != column.lower() or end - start < 2 or _FILLER in sql:
        return None
    hidden = _FILLER * ((end - start) // 2) + "x" * ((end - start) % 2)
    return Rows(table, column, start, end, hidden)


def is_fixed(kind: str) -> bool:
    """Whether a column's type is a vector of fixed size."""
    return _FIXED.fullmatch(kind) is not None
