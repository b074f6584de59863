"""Metadata as typed columns, read from JSON the first time a filter asks for a field.

A column keeps, per type, the rows that have a value of it and the values; a list gives its row several.  A predicate
becomes a bitmap of rows, kept because rows never change.  Growing row sets are cut into blocks: complete blocks are
read once, the last one again when it has grown.

What this does not do: know which rows are live.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from lakehouse.core.errors import Invalid
from lakehouse.index import predicate as p
from lakehouse.index.kernels import Bits, words
from lakehouse.index.predicate import Path, Predicate, Scalar

Flags = npt.NDArray[np.bool_]
Documents: TypeAlias = Sequence[bytes | None] | pa.Array
Ids: TypeAlias = Sequence[str] | pa.Array

NUMBER, STRING, BOOLEAN, OBJECT, NULL = 1, 2, 4, 8, 16
"""The types a field has had, as bits."""
_TYPES: dict[type, int] = {
    int: NUMBER,
    float: NUMBER,
    str: STRING,
    bool: BOOLEAN,
    dict: OBJECT,
    type(None): NULL,
}
_TYPE_NAMES = {NUMBER: "number", STRING: "text", BOOLEAN: "boolean", OBJECT: "object"}

FIELDS_MAX = 4_096
"""Fields remembered per segment; with more, unknown fields are read as absent instead of refused."""
ELEMENTS_MAX = 1_024
"""Elements of one list that a filter sees."""
FIELDS_SHOWN = 20

Schema = Mapping[Path, int]
"""The fields that rows have had, with their types."""


@dataclass(frozen=True, slots=True, eq=False)
class _Typed:
    """Values of one type: `rows[i]` has `values[i]`, rows ascending."""

    rows: npt.NDArray[np.uint32]
    values: Any
    """int64, float64 or bool array; for texts, a dictionary-encoded Arrow array."""


@dataclass(frozen=True, slots=True, eq=False)
class _Column:
    present: npt.NDArray[np.uint32]
    """Rows whose field is there and not null."""
    typed: Mapping[int, _Typed]


@dataclass(frozen=True, slots=True)
class _Truth:
    """SQL's three values per row: true, false, or neither."""

    true: Flags
    false: Flags


class Block:
    """The metadata of some rows, numbered from 0, with the columns that filters have asked for."""

    def __init__(self, documents: Documents, columns_max: int, ids: Ids = ()) -> None:
        self._documents = documents
        self._ids = ids
        self.rows = len(documents)
        self._columns_max = columns_max
        self._columns: OrderedDict[Path, _Column] = OrderedDict()
        self._schema: dict[Path, int] | None = None
        self.overflowed = False

    @property
    def schema(self) -> Schema:
        if self._schema is None:
            self._read(())
        assert self._schema is not None
        return self._schema

    @property
    def ready(self) -> frozenset[Path]:
        """Fields whose columns are there."""
        return frozenset(self._columns)

    def require(self, paths: Iterable[Path]) -> None:
        """Have the columns of `paths`."""
        missing = [path for path in paths if path not in self._columns]
        if missing or self._schema is None:
            self._read(tuple(missing))
        for path in paths:
            self._columns.move_to_end(path)
        while len(self._columns) > max(self._columns_max, len(tuple(paths))):
            self._columns.popitem(last=False)

    def matches(self, predicate: Predicate) -> Flags:
        """Which rows make `predicate` true."""
        if predicate.paths:
            self.require(predicate.paths)
        try:
            return self._truth(predicate.root).true
        except pa.ArrowInvalid as error:
            raise Invalid(
                f"filter cannot be evaluated: simplify its patterns. error=`{str(error)[:200]}`"
            ) from error

    # ---- reading

    def _read(self, paths: tuple[Path, ...]) -> None:
        collectors = [_Collector(path) for path in paths]
        schema: dict[Path, int] | None = {} if self._schema is None else None
        shapes: set[tuple[object, ...]] = set()
        for row, document in enumerate(_decoded(self._documents)):
            if document is None:
                continue
            if schema is not None:
                self._learn(schema, shapes, document)
            for collector in collectors:
                collector.add(row, document)
        if schema is not None:
            self._schema = schema
        for collector in collectors:
            self._columns[collector.path] = collector.column()

    def _learn(
        self, schema: dict[Path, int], shapes: set[tuple[object, ...]], document: dict[str, Any]
    ) -> None:
        # Most documents of an index look alike: those whose flat shape was seen add nothing.
        shape = (*document, *map(type, document.values()))
        if shape in shapes:
            return
        if len(shapes) < FIELDS_MAX and not any(
            isinstance(value, dict | list) for value in document.values()
        ):
            shapes.add(shape)
        queue: list[tuple[Path, Any]] = [((key,), value) for key, value in document.items()]
        while queue:
            path, value = queue.pop()
            if path not in schema and len(schema) >= FIELDS_MAX:
                self.overflowed = True
                continue
            schema[path] = schema.get(path, 0) | _types(value)
            if isinstance(value, dict) and len(path) < p.PATH_PARTS_MAX:
                queue.extend(((*path, key), inner) for key, inner in value.items())

    # ---- evaluating

    def _truth(self, node: p.Node) -> _Truth:
        if isinstance(node, p.Always):
            true = np.full(self.rows, node.value)
            return _Truth(true, ~true)
        if isinstance(node, p.Members):
            true = _among(self._ids, node)
            return _Truth(true, ~true)
        if isinstance(node, p.Not):
            inner = self._truth(node.node)
            return _Truth(inner.false, inner.true)
        if isinstance(node, p.And | p.Or):
            parts = [self._truth(child) for child in node.nodes]
            trues, falses = [part.true for part in parts], [part.false for part in parts]
            if isinstance(node, p.And):
                return _Truth(np.logical_and.reduce(trues), np.logical_or.reduce(falses))
            return _Truth(np.logical_or.reduce(trues), np.logical_and.reduce(falses))
        column = self._columns[node.path]
        if isinstance(node, p.IsNull):
            there = self._flags(column.present)
            return _Truth(~there, there)
        return self._leaf(column, node)

    def _leaf(self, column: _Column, node: p.Compare | p.In | p.Like) -> _Truth:
        true, known = np.zeros(self.rows, np.bool_), np.zeros(self.rows, np.bool_)
        for kind, test in _tests(node):
            typed = column.typed.get(kind)
            if typed is not None:
                known[typed.rows] = True
                true[typed.rows[test(typed.values)]] = True
        return _Truth(true, known & ~true)

    def _flags(self, rows: npt.NDArray[np.uint32]) -> Flags:
        flags = np.zeros(self.rows, np.bool_)
        flags[rows] = True
        return flags


def _among(ids: Ids, wanted: p.Members) -> Flags:
    """Which of `ids` are wanted."""
    if isinstance(ids, pa.Array):
        found = pc.is_in(ids, value_set=wanted.sorted)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
    return np.fromiter((item_id in wanted.ids for item_id in ids), np.bool_, len(ids))


def _types(value: Any) -> int:
    if isinstance(value, list):
        mask = NULL if not value else 0
        for element in value[:ELEMENTS_MAX]:
            mask |= _TYPES.get(type(element), OBJECT)
        return mask
    return _TYPES.get(type(value), OBJECT)


def _decoded(documents: Sequence[bytes | None] | pa.Array) -> Iterable[dict[str, Any] | None]:
    """Each document's object; None for none, and for JSON that is no object and so has no fields."""
    for start in range(0, len(documents), 1024):
        part = documents[start : start + 1024]
        for document in part.to_pylist() if isinstance(part, pa.Array) else part:
            if not document:
                yield None
                continue
            value = _loaded(document)
            yield value if isinstance(value, dict) else None


def _loaded(document: bytes) -> Any:
    try:
        return orjson.loads(document)
    except orjson.JSONDecodeError:  # a number beyond a double, which JSON allows, hides only itself
        try:
            return json.loads(document, parse_constant=lambda _: None)
        except (ValueError, RecursionError):
            return None


class _Collector:
    """Gathers one field over all rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._head, self._rest = path[0], path[1:]
        self._present: list[int] = []
        self._rows: dict[int, list[int]] = {NUMBER: [], STRING: [], BOOLEAN: []}
        self._values: dict[int, list[Any]] = {NUMBER: [], STRING: [], BOOLEAN: []}

    def add(self, row: int, document: dict[str, Any]) -> None:
        value = document.get(self._head)
        for part in self._rest:
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            return
        self._present.append(row)
        for element in value[:ELEMENTS_MAX] if isinstance(value, list) else (value,):
            kind = _TYPES.get(type(element), OBJECT)
            if kind in self._rows:
                self._rows[kind].append(row)
                self._values[kind].append(element)

    def column(self) -> _Column:
        typed = {
            kind: _Typed(np.array(rows, np.uint32), _packed(kind, self._values[kind]))
            for kind, rows in self._rows.items()
            if rows
        }
        return _Column(np.array(self._present, np.uint32), typed)


def _packed(kind: int, values: list[Any]) -> Any:
    if kind == STRING:
        return pa.array(values, pa.large_string()).dictionary_encode()
    if kind == BOOLEAN:
        return np.array(values, np.bool_)
    if all(type(value) is int and -(1 << 63) <= value < 1 << 63 for value in values):
        return np.array(values, np.int64)
    return np.array(values, np.float64)


Test = Callable[[Any], Flags]


def _tests(node: p.Compare | p.In | p.Like) -> list[tuple[int, Test]]:
    """What to ask of the values of each type that `node` speaks of."""
    if isinstance(node, p.Like):
        return [(STRING, lambda values: _texts(values, lambda texts: _like(texts, node)))]
    if isinstance(node, p.Compare):
        kind = _TYPES[type(node.value)]
        return [(kind, lambda values: _compare(values, node.op, node.value))]
    by_kind: dict[int, list[Scalar]] = {}
    for value in node.values:
        by_kind.setdefault(_TYPES[type(value)], []).append(value)
    return [(kind, _membership(kind, members)) for kind, members in by_kind.items()]


def _membership(kind: int, members: list[Scalar]) -> Test:
    if kind == STRING:
        wanted = pa.array(members, pa.large_string())
        return lambda values: _texts(values, lambda texts: pc.is_in(texts, value_set=wanted))
    return lambda values: np.logical_or.reduce([_compare(values, "=", member) for member in members])


def _compare(values: Any, op: str, value: Scalar) -> Flags:
    if isinstance(value, str):
        function = {
            "=": pc.equal,
            "<": pc.less,
            "<=": pc.less_equal,
            ">": pc.greater,
            ">=": pc.greater_equal,
        }[op]
        return _texts(values, lambda texts: function(texts, pa.scalar(value, pa.large_string())))
    compare = {"=": np.equal, "<": np.less, "<=": np.less_equal, ">": np.greater, ">=": np.greater_equal}[op]
    return np.asarray(compare(values, value), np.bool_)


def _texts(values: pa.DictionaryArray, test: Callable[[pa.Array], pa.Array]) -> Flags:
    """Ask each distinct text once."""
    distinct = test(values.dictionary).to_numpy(zero_copy_only=False).astype(np.bool_)
    return np.asarray(distinct[values.indices.to_numpy()], np.bool_)


def _like(texts: pa.Array, node: p.Like) -> pa.Array:
    return pc.match_like(texts, node.pattern, ignore_case=node.ignore_case)


class _Masks:
    """The bitmaps of one predicate: of complete blocks, and of the size last asked for."""

    __slots__ = ("last", "whole")

    def __init__(self) -> None:
        self.whole: list[Bits] = []
        self.last: tuple[int, Bits] = (-1, np.zeros(0, np.uint64))


class Columns:
    """Row masks of predicates over a set of rows that may grow at its end.

    `documents(start, stop)` gives the metadata of those rows, `ids(start, stop)` their ids.  Used from several threads
    at once.
    """

    def __init__(
        self,
        documents: Callable[[int, int], Documents],
        block_rows: int,
        *,
        ids: Callable[[int, int], Ids] = lambda start, stop: (),
        predicates_max: int,
        columns_max: int,
    ) -> None:
        assert block_rows % 64 == 0
        self._documents = documents
        self._ids = ids
        self._block_rows = block_rows
        self._predicates_max, self._columns_max = predicates_max, columns_max
        self._blocks: list[Block] = []
        self._last: Block | None = None
        self._schema: tuple[int, Schema, bool] = (-1, {}, False)
        self._masks: OrderedDict[str, _Masks] = OrderedDict()
        """By a predicate's text: a predicate itself may hold a million ids."""
        self._lock = threading.Lock()

    def mask(self, predicate: Predicate, size: int) -> Bits:
        """Which of the first `size` rows make `predicate` true."""
        known = self._masks.get(predicate.text)
        if known is not None and (last := known.last)[0] == size:
            return last[1]  # without waiting for a thread that reads another field
        with self._lock:
            masks = self._masks.setdefault(predicate.text, _Masks())
            self._masks.move_to_end(predicate.text)
            if len(self._masks) > self._predicates_max:
                self._masks.popitem(last=False)
            if masks.last[0] != size:
                masks.last = (size, self._evaluate(predicate, masks.whole, size))
            return masks.last[1]

    def _evaluate(self, predicate: Predicate, masks: list[Bits], size: int) -> Bits:
        blocks = self._upto(size)
        whole, rest = divmod(size, self._block_rows)
        masks.extend(_bits(block.matches(predicate)) for block in blocks[len(masks) : whole])
        parts = masks[:whole]
        if rest:
            parts = [*parts, _bits(blocks[whole].matches(predicate)[:rest])]
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.zeros(0, np.uint64)])

    def schema(self, size: int) -> tuple[Schema, bool]:
        """The fields of the first `size` rows, and whether there were too many to keep."""
        known = self._schema
        if known[0] == size:
            return known[1], known[2]
        merged: dict[Path, int] = {}
        with self._lock:
            blocks = self._upto(size)
            for block in blocks:
                for path, types in block.schema.items():
                    merged[path] = merged.get(path, 0) | types
            overflowed = any(block.overflowed for block in blocks)
            self._schema = (size, merged, overflowed)
            return merged, overflowed

    def is_ready(self, predicate: Predicate, size: int) -> bool:
        """Whether `mask` has little to read."""
        masks = self._masks.get(predicate.text)
        return masks is not None and (masks.last[0] == size or len(masks.whole) >= size // self._block_rows)

    def prepare(self, paths: Iterable[Path], size: int) -> None:
        """Have the columns of `paths`."""
        wanted = tuple(paths)
        with self._lock:
            for block in self._upto(size):
                block.require(wanted)

    @property
    def ready(self) -> frozenset[Path]:
        """Fields that filters have asked for."""
        blocks = self._blocks or ([self._last] if self._last else [])
        return blocks[0].ready if blocks else frozenset()

    def _upto(self, size: int) -> list[Block]:
        """Blocks that hold the first `size` rows; the last may hold more."""
        step = self._block_rows
        while (len(self._blocks) + 1) * step <= size:
            start = len(self._blocks) * step
            self._blocks.append(self._block(start, start + step))
            self._last = None
        start = len(self._blocks) * step
        if size <= start:
            return self._blocks[: -(-size // step)]
        if self._last is None or self._last.rows < size - start:
            self._last = self._block(start, size)
        return [*self._blocks, self._last]

    def _block(self, start: int, stop: int) -> Block:
        return Block(self._documents(start, stop), self._columns_max, self._ids(start, stop))


def _bits(flags: Flags) -> Bits:
    packed = np.packbits(flags, bitorder="little")
    whole = np.zeros(words(len(flags)) * 8, np.uint8)
    whole[: len(packed)] = packed
    return whole.view("<u8").astype(np.uint64, copy=False)


def check(predicate: Predicate, schema: Schema, *, complete: bool) -> None:
    """Refuse fields that no row has had, and literals of a type that a field never had.  Raises `Invalid`.

    `complete` is False when the schema was too large to keep whole.
    """
    for leaf in p.leaves(predicate.root):
        types = schema.get(leaf.path)
        if types is None:
            if not complete:
                continue
            known = sorted(p.dotted(path) for path in schema)
            more = f" and {len(known) - FIELDS_SHOWN} more" if len(known) > FIELDS_SHOWN else ""
            raise Invalid(
                f"filter names a field that no item has: {p.dotted(leaf.path)}. "
                f"known=`{', '.join(known[:FIELDS_SHOWN])}{more}`"
            )
        wanted = _wanted(leaf)
        if wanted and types & ~NULL and not types & wanted:
            has = " or ".join(name for kind, name in _TYPE_NAMES.items() if types & kind)
            asked = " or ".join(name for kind, name in _TYPE_NAMES.items() if wanted & kind)
            raise Invalid(f"filter compares {p.dotted(leaf.path)}, which is {has}, with {asked}")


def _wanted(leaf: p.Leaf) -> int:
    if isinstance(leaf, p.IsNull):
        return 0
    if isinstance(leaf, p.Like):
        return STRING
    values = leaf.values if isinstance(leaf, p.In) else (leaf.value,)
    mask = 0
    for value in values:
        mask |= _TYPES[type(value)]
    return mask
