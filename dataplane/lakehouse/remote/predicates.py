"""A filter on its way to another process: its tree, since not every predicate has a text that says it.

What this module does not do: parse or evaluate filters; `lakehouse.index` does.
"""

from collections import OrderedDict
from typing import Any

import msgspec

from lakehouse.core.errors import Invalid
from lakehouse.index.predicate import (
    Always,
    And,
    Compare,
    In,
    IsNull,
    Like,
    Members,
    Node,
    Not,
    Or,
    Predicate,
    Scalar,
)

INT64 = 1 << 63
KEPT_MAX = 64
"""Predicates over sets of ids that a process keeps: sorting half a million ids takes 0.2 s."""


class WirePredicate(msgspec.Struct, omit_defaults=True):
    """A predicate; `root` is its tree as nested lists."""

    text: str
    root: list[Any]
    paths: list[list[str]]
    by_id: bool = False


def to_wire(predicate: Predicate | None) -> WirePredicate | None:
    """The form that travels."""
    if predicate is None:
        return None
    paths = [list(path) for path in predicate.paths]
    return WirePredicate(predicate.text, _tree(predicate.root), paths, predicate.by_id)


def _tree(node: Node) -> list[Any]:
    match node:
        case Compare(path, op, value):
            return ["compare", list(path), op, _scalar(value)]
        case In(path, values):
            return ["in", list(path), [_scalar(value) for value in values]]
        case Like(path, pattern, ignore_case):
            return ["like", list(path), pattern, ignore_case]
        case IsNull(path):
            return ["null", list(path)]
        case Always(value):
            return ["always", value]
        case Members():
            return ["members", sorted(node.ids)]
        case Not(child):
            return ["not", _tree(child)]
        case And(nodes):
            return ["and", [_tree(child) for child in nodes]]
        case Or(nodes):
            return ["or", [_tree(child) for child in nodes]]


def _scalar(value: Scalar) -> Any:
    if isinstance(value, int) and not -INT64 <= value < INT64:
        return {"int": str(value)}
    return value


class Predicates:
    """Reads what `to_wire` wrote, and keeps the sets of ids it read lately."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Predicate] = OrderedDict()

    def read(self, sent: WirePredicate | None) -> Predicate | None:
        """The predicate.  Raises `Invalid`."""
        if sent is None:
            return None
        kept = self._kept.get(sent.text) if sent.by_id else None
        if kept is not None:
            self._kept.move_to_end(sent.text)
            return kept
        paths = tuple(tuple(path) for path in sent.paths)
        predicate = Predicate(sent.text, _node(sent.root), paths, sent.by_id)
        if sent.by_id:
            self._kept[sent.text] = predicate
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return predicate


def _node(tree: list[Any]) -> Node:
    match tree:
        case ["compare", path, op, value]:
            return Compare(tuple(path), op, _value(value))
        case ["in", path, values]:
            return In(tuple(path), tuple(map(_value, values)))
        case ["like", path, pattern, ignore_case]:
            return Like(tuple(path), pattern, ignore_case)
        case ["null", path]:
            return IsNull(tuple(path))
        case ["always", value]:
            return Always(value)
        case ["members", ids]:
            return Members(frozenset(ids))
        case ["not", child]:
            return Not(_node(child))
        case ["and", nodes]:
            return And(tuple(map(_node, nodes)))
        case ["or", nodes]:
            return Or(tuple(map(_node, nodes)))
    raise Invalid(f"a filter of another release: use one release everywhere. node=`{tree[:1]}`")


def _value(sent: Any) -> Scalar:
    value: Scalar = int(sent["int"]) if isinstance(sent, dict) else sent
    return value
