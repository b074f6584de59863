"""What the columns of a dataset are, and what may become of them: a change is told column by column.

Types are DuckDB's type texts (`BIGINT`, `FLOAT[384]`, `STRUCT(a INTEGER)`), parsed here as far as comparing
them needs.  A narrower type that the old column holds without loss is no change.  What this module does not
do: read files or run SQL; `lakehouse.ingest` finds out what a file holds.
"""

import enum
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import msgspec

from lakehouse.core.errors import Conflict, Invalid

COLUMNS_MAX = 10_000
"""Columns of one dataset; above it the answer to a mistake (a transposed file) would be a manifest of megabytes."""
DEPTH_MAX = 32
"""Types inside types; far above what data has, far below Python's own limit."""
TEXT = "VARCHAR"
JSON = "JSON"


class SchemaPolicy(enum.Enum):
    """What a new version of a dataset may change."""

    STRICT = "Strict"
    """Nothing."""
    ADD_ONLY = "AddOnly"
    """Columns may be added."""
    ANY = "Any"
    """Anything."""


@dataclass(frozen=True, slots=True)
class Field:
    """One column."""

    name: str
    type: str
    """DuckDB's text of the type."""
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class Schema:
    """The columns of a dataset, in order.  Names are told apart without regard to case, as SQL does."""

    fields: tuple[Field, ...]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the canonical JSON `[[name, type, nullable], …]`."""
        rows = [[field.name, field.type, field.nullable] for field in self.fields]
        return hashlib.sha256(msgspec.json.encode(rows)).hexdigest()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    def field(self, name: str) -> Field | None:
        """The column called `name`, whatever its case."""
        return _by_name(self.fields).get(name.casefold())

    def to_json(self) -> list[dict[str, Any]]:
        """The JSON value that is stored and served."""
        return [{"name": each.name, "type": each.type, "nullable": each.nullable} for each in self.fields]

    @classmethod
    def from_json(cls, value: Iterable[Mapping[str, Any]]) -> Self:
        """Raises `KeyError` or `TypeError` on another shape."""
        return cls(tuple(Field(str(v["name"]), str(v["type"]), bool(v["nullable"])) for v in value))


class ChangeKind(enum.StrEnum):
    """What happened to a column."""

    ADDED = "added"
    REMOVED = "removed"
    TYPE = "type"
    NULLABLE = "nullable"


@dataclass(frozen=True, slots=True)
class Change:
    """One column that is not what it was."""

    kind: ChangeKind
    column: str
    old: str | None
    """The old type; None for an added column."""
    new: str | None
    """The new type; None for a removed column."""

    def __str__(self) -> str:
        if self.kind is ChangeKind.ADDED:
            return f"+ {self.column} {self.new}"
        if self.kind is ChangeKind.REMOVED:
            return f"- {self.column} {self.old}"
        return f"~ {self.column} {self.old} → {self.new}"

    def to_json(self) -> dict[str, str | None]:
        """The change as people and programs read it."""
        return {"change": self.kind.value, "column": self.column, "old": self.old, "new": self.new}


class SchemaConflict(Conflict):
    """The new schema is not what the policy allows; `changes` says column by column what differs."""

    def __init__(self, message: str, changes: tuple[Change, ...]) -> None:
        super().__init__(message)
        self.changes = changes


def difference(old: Schema, new: Schema) -> tuple[Change, ...]:
    """What differs, in the order of the old columns and then of the new ones.  Order alone is no difference."""
    before, after = _by_name(old.fields), _by_name(new.fields)
    changes = [_changed(field, after.get(key)) for key, field in before.items()]
    changes += [
        Change(ChangeKind.ADDED, field.name, None, field.type)
        for key, field in after.items()
        if key not in before
    ]
    return tuple(change for change in changes if change is not None)


def _changed(old: Field, new: Field | None) -> Change | None:
    if new is None:
        return Change(ChangeKind.REMOVED, old.name, old.type, None)
    if not holds(old.type, new.type):
        return Change(ChangeKind.TYPE, old.name, old.type, new.type)
    if new.nullable and not old.nullable:
        return Change(ChangeKind.NULLABLE, old.name, f"{old.type} NOT NULL", new.type)
    return None


def merged(old: Schema | None, new: Schema, policy: SchemaPolicy) -> Schema:
    """The schema of the next version: the old columns in their order, then the added ones.

    Raises `SchemaConflict` when `policy` does not allow what changed, `Invalid` on a schema without columns.
    """
    checked(new)
    if old is None:
        return new
    changes = difference(old, new)
    allowed = {
        SchemaPolicy.STRICT: frozenset[ChangeKind](),
        SchemaPolicy.ADD_ONLY: frozenset({ChangeKind.ADDED}),
        SchemaPolicy.ANY: frozenset(ChangeKind),
    }[policy]
    refused = tuple(change for change in changes if change.kind not in allowed)
    if refused:
        raise SchemaConflict(
            f"the schema differs from the dataset's and the policy is {policy.value}: bring the source in line, "
            f"choose another policy, or ingest under another name. difference=`{shown(refused)}`",
            refused,
        )
    return _after(old, new)


def _after(old: Schema, new: Schema) -> Schema:
    after = _by_name(new.fields)
    kept = [_kept(field, after.pop(field.name.casefold(), None)) for field in old.fields]
    return Schema(tuple(field for field in kept if field is not None) + tuple(after.values()))


def _kept(old: Field, new: Field | None) -> Field | None:
    if new is None:
        return None
    return Field(old.name, old.type if holds(old.type, new.type) else new.type, old.nullable or new.nullable)


def united(schemas: Sequence[Schema]) -> Schema:
    """One schema that holds the rows of all: every column, in order of appearance, in a type that fits all.

    Without a common type numbers become DOUBLE, nested values JSON, all else VARCHAR; a column that some do not
    have is nullable.
    """
    found: dict[str, Field] = {}
    for schema in schemas:
        for field in schema.fields:
            known = found.setdefault(field.name.casefold(), field)
            either = common(known.type, field.type) or _nearest(known.type, field.type)
            found[field.name.casefold()] = Field(known.name, either, known.nullable or field.nullable)
    everywhere = set.intersection(*(set(_by_name(each.fields)) for each in schemas)) if schemas else set()
    return Schema(
        tuple(
            field if key in everywhere else Field(field.name, field.type, nullable=True)
            for key, field in found.items()
        )
    )


def _nearest(one: str, other: str) -> str:
    """A type for both when none keeps every value exactly."""
    types = (parsed(one), parsed(other))
    if all(map(_is_number, types)):
        return "DOUBLE"
    if any(isinstance(type_, ListOf | Struct | MapOf) or str(type_) == JSON for type_ in types):
        return JSON
    return TEXT


def _is_number(type_: "Type") -> bool:
    return isinstance(type_, Decimal) or str(type_) in {*_SIGNED, *_UNSIGNED, *_EXACT_IN}


def checked(schema: Schema) -> Schema:
    """`schema` if a dataset may have it.  Raises `Invalid`."""
    if not schema.fields:
        raise Invalid("a dataset has at least one column")
    if len(schema.fields) > COLUMNS_MAX:
        raise Invalid(f"a dataset has at most {COLUMNS_MAX} columns. columns=`{len(schema.fields)}`")
    if len(_by_name(schema.fields)) < len(schema.fields):
        raise Invalid("two columns have one name; names are compared without regard to case")
    return schema


SHOWN_MAX = 20
"""Changes that a message lists; the rest is counted."""


def shown(changes: Sequence[Change]) -> str:
    """The changes as one line."""
    more = f"; and {len(changes) - SHOWN_MAX} more" if len(changes) > SHOWN_MAX else ""
    return "; ".join(str(change) for change in changes[:SHOWN_MAX]) + more


def _by_name(fields: Iterable[Field]) -> dict[str, Field]:
    return {field.name.casefold(): field for field in fields}


# --- types


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type without parts: `BIGINT`, `VARCHAR`, `TIMESTAMP WITH TIME ZONE`."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Decimal:
    """`DECIMAL(precision, scale)`."""

    precision: int
    scale: int

    def __str__(self) -> str:
        return f"DECIMAL({self.precision},{self.scale})"


@dataclass(frozen=True, slots=True)
class ListOf:
    """`element[]`, or `element[length]` when every list has that length."""

    element: "Type"
    length: int | None = None

    def __str__(self) -> str:
        return f"{self.element}[{'' if self.length is None else self.length}]"


@dataclass(frozen=True, slots=True)
class Struct:
    """`STRUCT(name type, …)`."""

    parts: tuple[tuple[str, "Type"], ...]

    def __str__(self) -> str:
        return f"STRUCT({', '.join(f'{_quoted(name)} {part}' for name, part in self.parts)})"


@dataclass(frozen=True, slots=True)
class MapOf:
    """`MAP(key, value)`."""

    key: "Type"
    value: "Type"

    def __str__(self) -> str:
        return f"MAP({self.key}, {self.value})"


Type = Scalar | Decimal | ListOf | Struct | MapOf

_SIGNED = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "BIGINT": 64}
_UNSIGNED = {"UTINYINT": 8, "USMALLINT": 16, "UINTEGER": 32, "UBIGINT": 64}
_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
"""Decimal digits of the largest integer of so many bits."""
_EXACT_IN = {"FLOAT": 24, "DOUBLE": 53}
"""Bits of an integer that a floating-point number keeps."""
DECIMAL_DIGITS_MAX = 38


def holds(wide: str, narrow: str) -> bool:
    """Whether a column of type `wide` keeps every value of type `narrow` without loss."""
    return wide == narrow or common(wide, narrow) == str(parsed(wide))


def common(one: str, other: str) -> str | None:
    """The least type that keeps every value of both without loss; None when there is none."""
    found = _common(parsed(one), parsed(other))
    return None if found is None else str(found)


def _common(one: Type, other: Type) -> Type | None:
    if one == other:
        return one
    if isinstance(one, ListOf) and isinstance(other, ListOf):
        element = _common(one.element, other.element)
        length = one.length if one.length == other.length else None
        return None if element is None else ListOf(element, length)
    if isinstance(one, Struct) and isinstance(other, Struct):
        return _common_struct(one, other)
    if isinstance(one, MapOf) and isinstance(other, MapOf):
        key, value = _common(one.key, other.key), _common(one.value, other.value)
        return None if key is None or value is None else MapOf(key, value)
    if isinstance(one, Scalar | Decimal) and isinstance(other, Scalar | Decimal):
        return _common_scalar(one, other) or _common_scalar(other, one)
    return None


def _common_struct(one: Struct, other: Struct) -> Struct | None:
    parts = dict(one.parts)
    for name, part in other.parts:
        either = _common(parts.get(name, part), part)
        if either is None:
            return None
        parts[name] = either
    return Struct(tuple(parts.items()))


_WIDER = {
    ("DATE", "TIMESTAMP"),
    ("TIMESTAMP_S", "TIMESTAMP"),
    ("TIMESTAMP_MS", "TIMESTAMP"),
    ("FLOAT", "DOUBLE"),
    ("UUID", TEXT),
}
"""Pairs of narrow and wide beyond the numbers; NULL fits everywhere."""


def _common_scalar(narrow: Scalar | Decimal, wide: Scalar | Decimal) -> Type | None:
    """The common type when it is `wide` or lies above an integer `narrow`; the caller asks both ways."""
    if isinstance(narrow, Decimal) and isinstance(wide, Decimal):
        return _decimal(
            max(narrow.precision - narrow.scale, wide.precision - wide.scale), max(narrow.scale, wide.scale)
        )
    name = str(narrow)
    if name == '"NULL"' or (name, str(wide)) in _WIDER:
        return wide
    bits = _SIGNED.get(name) or _UNSIGNED.get(name)
    return None if bits is None else _above_integer(bits, name in _SIGNED, wide)


def _above_integer(bits: int, signed: bool, wide: Scalar | Decimal) -> Type | None:
    if isinstance(wide, Decimal):
        return _decimal(max(_DIGITS[bits], wide.precision - wide.scale), wide.scale)
    if wide.name in _EXACT_IN:
        fits = next((float_ for float_, exact in _EXACT_IN.items() if exact >= bits), None)
        return None if fits is None else Scalar("DOUBLE" if wide.name == "DOUBLE" else fits)
    if wide.name in _SIGNED and signed:
        return _integer(max(bits, _SIGNED[wide.name]), _SIGNED)
    if wide.name in _UNSIGNED and not signed:
        return _integer(max(bits, _UNSIGNED[wide.name]), _UNSIGNED)
    if wide.name in _SIGNED:
        return _integer(max(2 * bits, _SIGNED[wide.name]), _SIGNED)
    return None


def _decimal(whole_digits: int, scale: int) -> Type | None:
    """The decimal with so many digits before and after the point, if there is one."""
    digits = whole_digits + scale
    return Decimal(digits, scale) if digits <= DECIMAL_DIGITS_MAX else None


def _integer(bits: int, names: Mapping[str, int]) -> Type:
    """The integer of so many bits; beyond 64, which Parquet does not have, a decimal."""
    return next((Scalar(name) for name, size in names.items() if size == bits), Decimal(20, 0))


_STORED: Mapping[str, Type] = {
    "HUGEINT": Decimal(DECIMAL_DIGITS_MAX, 0),
    "UHUGEINT": Decimal(DECIMAL_DIGITS_MAX, 0),
    "BIGNUM": Scalar(TEXT),
    "VARINT": Scalar(TEXT),
    "BIT": Scalar(TEXT),
    "TIMESTAMP_S": Scalar("TIMESTAMP"),
    "TIMESTAMP_MS": Scalar("TIMESTAMP"),
    '"NULL"': Scalar("INTEGER"),
}


def stored(text: str) -> str:
    """The type as Parquet keeps it: 128-bit integers as decimals, enums as text, seconds as microseconds."""
    return str(_stored(parsed(text)))


def _stored(type_: Type) -> Type:
    if isinstance(type_, ListOf):
        return ListOf(_stored(type_.element), type_.length)
    if isinstance(type_, Struct):
        return Struct(tuple((name, _stored(part)) for name, part in type_.parts))
    if isinstance(type_, MapOf):
        return MapOf(_stored(type_.key), _stored(type_.value))
    if isinstance(type_, Scalar) and type_.name.startswith("ENUM("):
        return Scalar(TEXT)
    if isinstance(type_, Scalar):
        return _STORED.get(type_.name, type_)
    return type_


@lru_cache(maxsize=4_096)
def parsed(text: str) -> Type:
    """Read DuckDB's text of a type.  What has no structure here is a `Scalar`.  Raises `Invalid`."""
    return _Reader(text).whole()


class _Reader:
    """Reads one type from its text, left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def whole(self) -> Type:
        found = self._type(0)
        if self._text[self._at :].strip():
            raise self._refused()
        return found

    def _refused(self) -> Invalid:
        return Invalid(f"not a type. type=`{self._text[:200]}`")

    def _type(self, depth: int) -> Type:
        if depth > DEPTH_MAX:
            raise Invalid(f"types are nested over {DEPTH_MAX} deep. type=`{self._text[:200]}`")
        found = self._base(depth)
        while self._take("["):
            end = self._text.find("]", self._at)
            length = self._text[self._at : end].strip()
            if end < 0 or not (length == "" or length.isdecimal()):
                raise self._refused()
            self._at = end + 1
            found = ListOf(found, int(length) if length else None)
        return found

    def _base(self, depth: int) -> Type:
        word = self._words()
        if not self._peek("("):
            return Scalar(word)
        if word == "STRUCT":
            return Struct(tuple(self._parts(depth)))
        if word == "MAP":
            self._take("(")
            key = self._type(depth + 1)
            self._expect(",")
            value = self._type(depth + 1)
            self._expect(")")
            return MapOf(key, value)
        inside = self._enclosed()
        if word in ("DECIMAL", "NUMERIC"):
            return self._decimal(inside)
        return Scalar(f"{word}({inside})")

    def _decimal(self, inside: str) -> Decimal:
        precision, _, scale = inside.partition(",")
        try:
            return Decimal(int(precision), int(scale or 0))
        except ValueError as error:
            raise self._refused() from error

    def _parts(self, depth: int) -> Iterable[tuple[str, Type]]:
        self._take("(")
        while True:
            name = self._quoted('"') if self._peek('"') else self._name()
            yield name, self._type(depth + 1)
            if not self._take(","):
                break
        self._expect(")")

    def _name(self) -> str:
        start = self._at
        while self._at < len(self._text) and not self._text[self._at].isspace():
            self._at += 1
        return self._text[start : self._at]

    def _words(self) -> str:
        """`BIGINT`, `TIMESTAMP WITH TIME ZONE`, or `"NULL"`."""
        if self._peek('"'):
            return f'"{self._quoted(chr(34))}"'
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in "()[],":
            self._at += 1
        word = " ".join(self._text[start : self._at].split())
        if not word:
            raise self._refused()
        return word

    def _enclosed(self) -> str:
        """What stands between a parenthesis and its partner, texts in quotes skipped."""
        self._take("(")
        start, open_ = self._at, 1
        while self._at < len(self._text):
            sign = self._text[self._at]
            if sign in "'\"":
                self._quoted(sign)
                continue
            open_ += {"(": 1, ")": -1}.get(sign, 0)
            self._at += 1
            if open_ == 0:
                return self._text[start : self._at - 1]
        raise self._refused()

    def _quoted(self, mark: str) -> str:
        self._take(mark)
        letters = []
        while self._at < len(self._text):
            sign = self._text[self._at]
            self._at += 1
            if sign != mark:
                letters.append(sign)
            elif self._text[self._at : self._at + 1] == mark:
                letters.append(mark)
                self._at += 1
            else:
                return "".join(letters)
        raise self._refused()

    def _skip(self) -> None:
        while self._at < len(self._text) and self._text[self._at].isspace():
            self._at += 1

    def _peek(self, sign: str) -> bool:
        self._skip()
        return self._text[self._at : self._at + 1] == sign

    def _take(self, sign: str) -> bool:
        if not self._peek(sign):
            return False
        self._at += 1
        if sign in "(,":
            self._skip()
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._refused()


def _quoted(name: str) -> str:
    return f'"{name.replace(chr(34), chr(34) * 2)}"'
