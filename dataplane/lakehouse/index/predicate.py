"""A filter is a SQL predicate over metadata, parsed into a few frozen nodes; nothing else of SQL gets through.

    price < 50 AND country IN ('SE', 'DK') AND NOT discontinued AND maker.name ILIKE 'acme%'

`=`, `<>`, `<`, `<=`, `>`, `>=`, `[NOT] IN`, `[NOT] BETWEEN`, `[NOT] LIKE`, `[NOT] ILIKE`, `IS [NOT] NULL`, `AND`, `OR`,
`NOT`, parentheses, boolean columns, literals.  A dotted name reaches into nested objects; a quoted part may hold any
character.  Logic is SQL's, with three values: a row without the field is neither `a = 1` nor `NOT a = 1`.  A list
matches where one of its elements does; `<>`, `NOT IN` and the other negations are `NOT` of the positive form.

A program may also ask for a set of ids (`members`) and combine predicates (`all_of`, `any_of`, `negated`).
Evaluating is the work of `lakehouse.index.columns`.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NoReturn

import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from lakehouse.core.errors import Invalid

TEXT_BYTES_MAX = 16 << 10
"""A predicate is read for every search; 16 KiB hold an IN list of about 1,000 ids."""
DEPTH_MAX = 64
NODES_MAX = 1_024
IN_ITEMS_MAX = 4_096
PATH_PARTS_MAX = 8

Path = tuple[str, ...]
Scalar = bool | int | float | str
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
ORDER = ("=", "<", "<=", ">", ">=")


@dataclass(frozen=True, slots=True)
class Compare:
    """`path op value`; op is one of `ORDER`."""

    path: Path
    op: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """`path IN (values)`."""

    path: Path
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Like:
    """SQL's pattern: `%` any text, `_` any character, backslash before either for itself."""

    path: Path
    pattern: str
    ignore_case: bool


@dataclass(frozen=True, slots=True)
class IsNull:
    """The field is missing, or null."""

    path: Path


@dataclass(frozen=True, slots=True)
class Always:
    """TRUE or FALSE."""

    value: bool


@dataclass(frozen=True, slots=True)
class Not:
    """Swaps true and false; neither stays neither."""

    node: "Node"


@dataclass(frozen=True, slots=True)
class And:
    """All of them."""

    nodes: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    """Any of them."""

    nodes: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """The item's id is one of these; no text can say it, only a program."""

    ids: frozenset[str]
    sorted: pa.Array = field(init=False)
    """The ids, ascending, as Arrow compares them with a column."""
    digest: str = field(init=False)
    """Stands for the ids where they would be too many to compare or write."""

    def __post_init__(self) -> None:
        ascending = pa.array(sorted(self.ids), pa.large_string())
        hashed = hashlib.blake2b(digest_size=16)
        for buffer in ascending.buffers():
            hashed.update(b"" if buffer is None else buffer)
        object.__setattr__(self, "sorted", ascending)
        object.__setattr__(self, "digest", hashed.hexdigest())


Node = Compare | In | Like | IsNull | Always | Members | Not | And | Or
Leaf = Compare | In | Like | IsNull


@dataclass(frozen=True, slots=True)
class Predicate:
    """A parsed filter; equal where the text is."""

    text: str
    root: Node = field(compare=False)
    paths: tuple[Path, ...] = field(compare=False)
    """The fields it reads, each once."""
    by_id: bool = field(default=False, compare=False)
    """Whether it asks for ids, so that it may match items without any metadata."""


def leaves(node: Node) -> Iterator[Leaf]:
    """The comparisons below `node`."""
    for found in _terms(node):
        if not isinstance(found, Always | Members):
            yield found


def _terms(node: Node) -> Iterator[Leaf | Always | Members]:
    if isinstance(node, And | Or):
        for child in node.nodes:
            yield from _terms(child)
    elif isinstance(node, Not):
        yield from _terms(node.node)
    else:
        yield node


def paths(predicate: "Predicate | str") -> frozenset[str]:
    """The top-level fields that a filter names: what would be columns of a table.  Raises `Invalid`."""
    read = parse(predicate) if isinstance(predicate, str) else predicate
    return frozenset(path[0] for path in read.paths)


def members(ids: Iterable[str]) -> "Predicate":
    """A predicate that the items of these ids match."""
    node = Members(frozenset(ids))
    return Predicate(f"@members({len(node.ids)}, {node.digest})", node, (), by_id=True)


def all_of(*predicates: "Predicate") -> "Predicate":
    """A predicate that matches where all of `predicates` do."""
    return _joined("AND", And(tuple(one.root for one in predicates)), predicates)


def any_of(*predicates: "Predicate") -> "Predicate":
    """A predicate that matches where one of `predicates` does."""
    return _joined("OR", Or(tuple(one.root for one in predicates)), predicates)


def negated(predicate: "Predicate") -> "Predicate":
    """A predicate that matches where `predicate` is false; where that is neither true nor false, neither is this."""
    return Predicate(f"NOT ({predicate.text})", Not(predicate.root), predicate.paths, predicate.by_id)


def _joined(word: str, root: Node, parts: "tuple[Predicate, ...]") -> "Predicate":
    assert parts
    text = f" {word} ".join(f"({part.text})" for part in parts)
    read = tuple(dict.fromkeys(path for part in parts for path in part.paths))
    return Predicate(text, root, read, any(part.by_id for part in parts))


def dotted(path: Path) -> str:
    """A path as a filter writes it."""
    return ".".join(part if part.isidentifier() else '"' + part.replace('"', '""') + '"' for part in path)


@functools.lru_cache(maxsize=256)
def parse(text: str) -> Predicate:
    """Parse a filter.  Raises `Invalid` with the position and what to do."""
    if len(text) > TEXT_BYTES_MAX or len(text.encode("utf-8", "replace")) > TEXT_BYTES_MAX:
        raise Invalid(f"filter is too long: at most {TEXT_BYTES_MAX} bytes. characters=`{len(text)}`")
    if not text.strip():
        raise Invalid("filter is empty: leave it out, or write a predicate such as price < 50")
    if "\x00" in text:
        raise Invalid(f"filter holds a zero byte. position=`{text.index(chr(0)) + 1}`")
    _bound_nesting(text)
    try:
        tree = sqlglot.parse(text, dialect="duckdb")
    except SqlglotError as error:
        raise Invalid(_explained(error)) from error
    except RecursionError as error:
        raise Invalid(f"filter is nested too deeply: at most {DEPTH_MAX} levels") from error
    except (ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise Invalid(
            f"filter is not a SQL predicate: write one such as price < 50. error=`{error}`"
        ) from error
    statements = [statement for statement in tree if statement is not None]
    if len(statements) != 1 or len(tree) != 1:
        raise Invalid("filter must be one predicate, without `;`")
    try:
        root = _Reader(text).node(statements[0], 0)
    except RecursionError as error:
        raise Invalid(f"filter is nested too deeply: at most {DEPTH_MAX} levels") from error
    return Predicate(text, root, tuple(dict.fromkeys(leaf.path for leaf in leaves(root))))


def _bound_nesting(text: str) -> None:
    """Refuse what would recurse deeply before a recursive parser sees it; quotes are skipped."""
    depth = words = 0
    quote = ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if depth > DEPTH_MAX:
            raise Invalid(f"filter is nested too deeply: at most {DEPTH_MAX} levels. position=`{at + 1}`")
    for word in text.upper().split():
        words += word in ("NOT", "AND", "OR", "-", "+", "~")
    if words > NODES_MAX:
        raise Invalid(f"filter has too many terms: at most {NODES_MAX}. terms=`{words}`")


def _explained(error: SqlglotError) -> str:
    details = getattr(error, "errors", None)
    if not details:
        return f"filter is not a SQL predicate: write one such as price < 50. error=`{_ANSI.sub('', str(error))[:200]}`"
    first = details[0]
    near = first.get("highlight") or ""
    described = str(first.get("description", "syntax error")).lower().rstrip(".")
    if described.startswith("required keyword"):  # the parser's own word for it names its classes
        described = "an operand is missing"
    return (
        f"filter is not a SQL predicate: {described}; "
        f"write one such as price < 50. line=`{first.get('line')}` position=`{first.get('col')}` near=`{near[:80]}`"
    )


_COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">=",
}  # fmt: skip
_PARTS = {"this", "expression", "expressions", "low", "high", "negate", "table", "db", "catalog"}
"""What a node may hold; anything else would be a part of SQL read past."""
_FLIPPED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


class _Reader:
    """Turns sqlglot's tree into ours, by an allow-list."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._nodes = 0

    def node(self, tree: exp.Expr, depth: int) -> Node:
        self._nodes += 1
        if depth > DEPTH_MAX * 4 or self._nodes > NODES_MAX:
            raise Invalid(f"filter has too many terms: at most {NODES_MAX}, nested at most {DEPTH_MAX} deep")
        extras = {key for key, value in tree.args.items() if value} - _PARTS
        if extras:
            self._refuse(tree)
        read = self._READERS.get(type(tree))
        if read is not None:
            node = read(self, tree, depth)
            return Not(node) if tree.args.get("negate") else node
        if type(tree) in _COMPARISONS:
            return self._compare(tree, _COMPARISONS[type(tree)])
        return self._refuse(tree)

    def _paren(self, tree: exp.Expr, depth: int) -> Node:
        return self.node(tree.this, depth + 1)

    def _not(self, tree: exp.Expr, depth: int) -> Node:
        return Not(self.node(tree.this, depth + 1))

    def _join(self, tree: exp.Expr, depth: int) -> Node:
        # `a AND b AND c` comes as a chain down the left: flatten it rather than recurse.
        kind, parts, at = type(tree), [], tree
        while type(at) is kind:
            parts.append(at.args["expression"])
            at = at.this
            if len(parts) > NODES_MAX:
                raise Invalid(f"filter has too many terms: at most {NODES_MAX}")
        parts.append(at)
        nodes = tuple(self.node(part, depth + 1) for part in reversed(parts))
        return And(nodes) if kind is exp.And else Or(nodes)

    def _boolean(self, tree: exp.Expr, _: int) -> Node:
        return Always(bool(tree.this))

    def _column(self, tree: exp.Expr, _: int) -> Node:
        return Compare(self._path(tree), "=", value=True)

    def _neq(self, tree: exp.Expr, _: int) -> Node:
        return Not(self._compare(tree, "="))

    def _compare(self, tree: exp.Expr, op: str) -> Node:
        left, right = _bare(tree.this), _bare(tree.args["expression"])
        if not _is_name(left) and _is_name(right):
            left, right, op = right, left, _FLIPPED[op]
        return Compare(self._path(left), op, self._literal(right))

    def _in(self, tree: exp.Expr, _: int) -> Node:
        items = tree.args.get("expressions")
        unsupported = [
            key for key, value in tree.args.items() if value and key not in ("this", "expressions")
        ]
        if not items or unsupported:
            self._refuse(tree)
        if len(items) > IN_ITEMS_MAX:
            raise Invalid(f"filter has too many values in IN: at most {IN_ITEMS_MAX}. values=`{len(items)}`")
        return In(self._path(tree.this), tuple(self._literal(item) for item in items))

    def _between(self, tree: exp.Expr, _: int) -> Node:
        path = self._path(tree.this)
        low, high = self._literal(tree.args["low"]), self._literal(tree.args["high"])
        return And((Compare(path, ">=", low), Compare(path, "<=", high)))

    def _like(self, tree: exp.Expr, _: int) -> Node:
        pattern = self._literal(tree.args["expression"])
        if not isinstance(pattern, str):
            self._refuse(tree)
        return Like(self._path(tree.this), pattern, isinstance(tree, exp.ILike))

    def _is(self, tree: exp.Expr, _: int) -> Node:
        right = _bare(tree.args["expression"])
        if not isinstance(right, exp.Null):
            self._refuse(tree)
        return IsNull(self._path(tree.this))

    _READERS: ClassVar["dict[type[exp.Expr], Callable[[_Reader, exp.Expr, int], Node]]"] = {
        exp.Paren: _paren,
        exp.Not: _not,
        exp.And: _join,
        exp.Or: _join,
        exp.Boolean: _boolean,
        exp.Column: _column,
        exp.Dot: _column,
        exp.NEQ: _neq,
        exp.In: _in,
        exp.Between: _between,
        exp.Like: _like,
        exp.ILike: _like,
        exp.Is: _is,
    }

    def _path(self, tree: exp.Expr) -> Path:
        tree = _bare(tree)
        parts: list[exp.Expr] = []
        while isinstance(tree, exp.Dot):
            parts.append(tree.args["expression"])
            tree = tree.this
        if not isinstance(tree, exp.Column) or {key for key, value in tree.args.items() if value} - _PARTS:
            self._refuse(tree)
        parts.extend(part for key in ("this", "table", "db", "catalog") if (part := tree.args.get(key)))
        if len(parts) > PATH_PARTS_MAX or not all(isinstance(part, exp.Identifier) for part in parts):
            self._refuse(tree)
        return tuple(str(part.this) for part in reversed(parts))

    def _literal(self, tree: exp.Expr) -> Scalar:
        tree = _bare(tree)
        if isinstance(tree, exp.Boolean):
            return bool(tree.this)
        if isinstance(tree, exp.Null):
            raise Invalid("filter compares with NULL, which is never true: write IS NULL or IS NOT NULL")
        negative = False
        while isinstance(tree, exp.Neg):
            negative, tree = not negative, _bare(tree.this)
        if type(tree) is exp.Literal:
            if not tree.is_string:
                return _number(str(tree.this), negative)
            if not negative:
                return str(tree.this)
        return self._refuse(tree)

    def _refuse(self, tree: exp.Expr) -> NoReturn:
        raise Invalid(
            f"filter holds what it may not: `{_sql(tree)}`. It compares one metadata field with literals "
            "(=, <>, <, <=, >, >=, IN, BETWEEN, LIKE, ILIKE, IS NULL, AND, OR, NOT); write texts in single quotes. "
            f"position=`{_position(tree)}`"
        )


def _bare(tree: exp.Expr) -> exp.Expr:
    while isinstance(tree, exp.Paren):
        tree = tree.this
    return tree


def _is_name(tree: exp.Expr) -> bool:
    return isinstance(tree, exp.Column | exp.Dot)


def _number(text: str, negative: bool) -> int | float:
    try:
        value: int | float = int(text)
    except ValueError:
        try:
            value = float(text)
        except ValueError as error:
            raise Invalid(f"filter holds a number that is none. number=`{text[:40]}`") from error
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        value = float(text)
    if value != value or value in (float("inf"), float("-inf")):
        raise Invalid(f"filter holds a number out of range. number=`{text[:40]}`")
    return -value if negative else value


def _sql(tree: exp.Expr) -> str:
    try:
        return tree.sql(dialect="duckdb")[:80]
    except (SqlglotError, RecursionError, ValueError):
        return type(tree).__name__


def _position(tree: exp.Expr) -> int:
    """Where the first token of `tree` that knows its place begins, from 1."""
    starts = [node.meta["start"] + 1 for node in tree.walk() if "start" in node.meta]
    return min(starts, default=1)
