"""What a dataset is made of, at one version: an immutable value, published last.

A manifest names its objects and the fingerprint of their schema.  One that ingest wrote also has the schema,
statistics, and the ledger: which source, in which state, became which objects.  This module maps manifests to
bytes and decides what registering and retiring mean; it does no I/O (`lakehouse.catalog` does).
"""

import builtins
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from lakehouse.core.errors import Conflict, Corrupt, Invalid
from lakehouse.core.names import CATALOG, KEY_BYTES_MAX
from lakehouse.core.schema import Schema

MANIFESTS = f"{CATALOG}manifests/"
DATA = f"{CATALOG}data/"
REJECTS = f"{CATALOG}rejects/"
SUFFIX = ".json"
PARQUET = ".parquet"
NAME_BYTES_MAX = 200
"""Leaves room for the prefix and the version in a key of 1,024 bytes even when every byte is escaped."""
FINGERPRINT_BYTES_MAX = 1_024


@dataclass(frozen=True, slots=True)
class Registration:
    """What a client asks to register; `objects` are JSON objects, kept as they are."""

    name: str
    schema_fingerprint: str
    objects: tuple[Mapping[str, Any], ...]
    row_count: int | None = None


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One line of the ledger: a source in one state, and what it became."""

    uri: str
    """`s3://bucket/key`, `file:///path` or `upload:name`."""
    etag: str
    """With `size` the state that was read: the store's ETag, a file's modification time in ns, an upload's SHA-256."""
    size: int
    """Bytes."""
    rows: int | None
    """Rows that came of it; None where a transform makes one result of all sources."""
    objects: tuple[str, ...]
    """Keys of the objects that hold its rows."""
    rejects: int = 0
    """Rows that could not be read."""
    reader: str = ""
    """Digest of the format and options it was read with; other options mean reading it again."""
    columns: tuple[str, ...] = ()
    """Columns it has itself; the dataset's others are NULL in its rows."""
    stats: Mapping[str, Mapping[str, Any]] | None = None
    """As `Manifest.stats`, of its rows alone; None where they would outgrow the manifest."""

    def to_json(self) -> dict[str, Any]:
        """The JSON value that is stored and served."""
        return {
            "uri": self.uri,
            "etag": self.etag,
            "size": self.size,
            "rows": self.rows,
            "objects": list(self.objects),
            "rejects": self.rejects,
            "reader": self.reader,
            "columns": list(self.columns),
            "stats": self.stats,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "SourceEntry":
        """Raises `KeyError` or `TypeError` on another shape."""
        return cls(
            _text(value["uri"]),
            _text(value["etag"]),
            int(value["size"]),
            value["rows"],
            tuple(value["objects"]),
            int(value.get("rejects", 0)),
            _text(value.get("reader", "")),
            tuple(value.get("columns", ())),
            value.get("stats"),
        )


@dataclass(frozen=True, slots=True)
class Rejects:
    """The rows that could not be read: how many, and the Parquet object that keeps them."""

    count: int
    key: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One version of a dataset.

    What has a default below is missing in a manifest that was registered or that the old system wrote.
    """

    name: str
    dataset_id: UUID
    version: int
    schema_fingerprint: str
    objects: tuple[Mapping[str, Any], ...]
    row_count: int | None
    created_at: str
    """RFC 3339, for people; empty for a manifest of the old system."""
    schema: Schema | None = None
    """The columns that every object has, in this order."""
    bytes: int | None = None
    """Size of all objects together."""
    stats: Mapping[str, Mapping[str, Any]] | None = None
    """By column: `null_count`; of scalars `min`, `max`, `distinct` (approximate); of lists `length_min`,
    `length_max` and `element_null_count`."""
    sources: tuple[SourceEntry, ...] = ()
    """The ledger."""
    rejects: Rejects | None = None
    """None: every row was read."""
    transform_sha256: str | None = None
    """Digest of the SQL that made the rows of the sources; None without one."""
    mode: str | None = None
    """`replace` or `append`: what the ingest that made this version did."""
    first_version: int = 1
    """Where this life of the dataset began; above 1 when one of the same name was dropped before."""

    def to_json(self) -> dict[str, Any]:
        """The JSON value that is stored and served."""
        return {
            "name": self.name,
            "dataset_id": str(self.dataset_id),
            "version": self.version,
            "schema_fingerprint": self.schema_fingerprint,
            "objects": list(self.objects),
            "row_count": self.row_count,
            "created_at": self.created_at,
            **({} if self.first_version == 1 else {"first_version": self.first_version}),
            **({} if self.schema is None else self._ingested()),
        }

    def _ingested(self) -> dict[str, Any]:
        return {
            "schema": self.schema.to_json() if self.schema is not None else None,
            "bytes": self.bytes,
            "stats": self.stats,
            "sources": [entry.to_json() for entry in self.sources],
            "rejects": None
            if self.rejects is None
            else {"count": self.rejects.count, "key": self.rejects.key},
            "transform_sha256": self.transform_sha256,
            "mode": self.mode,
        }

    @property
    def object_keys(self) -> tuple[str, ...]:
        """Where the rows are; objects that were registered without a key have none here."""
        return tuple(each["key"] for each in self.objects if isinstance(each.get("key"), str))

    @property
    def own_keys(self) -> frozenset[str]:
        """The objects that ingest wrote for this dataset: rows and rejects; what was registered is not among them."""
        named = {*self.object_keys, *(() if self.rejects is None else (self.rejects.key,))}
        own = (data_prefix(self.name), rejects_prefix(self.name))
        return frozenset(key for key in named if key.startswith(own))

    def to_bytes(self) -> builtins.bytes:
        return msgspec.json.format(msgspec.json.encode(self.to_json()), indent=2)


@dataclass(frozen=True, slots=True)
class Registered:
    """What registering decided: the manifest that holds now, and whether the dataset was there before."""

    manifest: Manifest
    existing: bool
    publish: bool
    """Whether the manifest still has to be written."""


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The last version of a dataset that was dropped; its versions stay taken for ever.

    So an ingest that began before the drop cannot publish what it kept of objects that are gone.
    """

    name: str
    version: int
    dropped_at: str

    def to_bytes(self) -> bytes:
        value = {"name": self.name, "version": self.version, "dropped_at": self.dropped_at}
        return msgspec.json.format(msgspec.json.encode(value), indent=2)


def register(
    newest: Manifest | None, asked: Registration, *, dataset_id: UUID, created_at: str, first: int = 1
) -> Registered:
    """The same fingerprint again is existing; other objects make a new version; another fingerprint
    conflicts.  `first` is the version that a dataset's life begins with."""
    if newest is None:
        born = replace(_next(asked, dataset_id, first, created_at), first_version=first)
        return Registered(born, existing=False, publish=True)
    if newest.schema_fingerprint != asked.schema_fingerprint:
        raise Conflict(
            f"dataset {asked.name} has another schema: register under another name, or bring the schema "
            f"in line. schema_fingerprint=`{newest.schema_fingerprint}`"
        )
    if newest.objects == asked.objects:
        return Registered(newest, existing=True, publish=False)
    following = _next(asked, newest.dataset_id, newest.version + 1, created_at)
    following = replace(following, schema=newest.schema, first_version=newest.first_version)
    return Registered(following, existing=True, publish=True)


def _next(asked: Registration, dataset_id: UUID, version: int, created_at: str) -> Manifest:
    return Manifest(
        asked.name, dataset_id, version, asked.schema_fingerprint, asked.objects, asked.row_count, created_at
    )


def checked_registration(
    name: str, schema_fingerprint: str, objects: tuple[Mapping[str, Any], ...], row_count: int | None
) -> Registration:
    """Raises `Invalid` on an empty or unusable name, an empty fingerprint or a negative row count."""
    checked_dataset_name(name)
    if not schema_fingerprint or len(schema_fingerprint.encode()) > FINGERPRINT_BYTES_MAX:
        raise Invalid(f"schema_fingerprint has 1 to {FINGERPRINT_BYTES_MAX} bytes")
    if row_count is not None and not 0 <= row_count < 1 << 63:
        raise Invalid(f"row_count is not negative and fits 63 bits. row_count=`{row_count}`")
    return Registration(name, schema_fingerprint, objects, row_count)


def checked_dataset_name(name: str) -> str:
    """`name` if a dataset may be called that.  Raises `Invalid`."""
    if not name or len(name.encode("utf-8", "replace")) > NAME_BYTES_MAX or name in (".", ".."):
        raise Invalid(f"a dataset name has 1 to {NAME_BYTES_MAX} bytes and is not `.` or `..`. name=`{name}`")
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        raise Invalid(f"a dataset name is text that UTF-8 can hold. name=`{name!a}`")
    if name.endswith(SUFFIX):
        # `_catalog/manifests/x.json` is the old system's manifest of x; a directory cannot have
        # that name as well.
        raise Invalid(f"a dataset name does not end in `{SUFFIX}`. name=`{name}`")
    return name


_REFERENCE = re.compile(r"(?P<name>.+)@v(?P<version>[1-9][0-9]{0,17})", re.DOTALL)


def parse_reference(reference: str) -> tuple[str, int | None]:
    """`products@v3` as name and version; without `@v…` the version is None: the newest.  Raises `Invalid`."""
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        return checked_dataset_name(reference), None
    return checked_dataset_name(found["name"]), int(found["version"])


def retired(versions: Sequence[int], keep_versions: int, pinned: Collection[int]) -> tuple[int, ...]:
    """Which of `versions` (ascending) go when the newest `keep_versions` and the pinned ones stay.

    The newest never goes.
    """
    kept = versions[-max(1, keep_versions) :]
    return tuple(version for version in versions if version not in kept and version not in pinned)


def unnamed(gone: Iterable[Manifest], remaining: Iterable[Manifest]) -> tuple[str, ...]:
    """Objects of ingest that only manifests of `gone` name, in order."""
    named = frozenset[str]().union(*(each.own_keys for each in remaining))
    return tuple(sorted(frozenset[str]().union(*(each.own_keys for each in gone)) - named))


def versions_prefix(name: str) -> str:
    """Every version of dataset `name`; bytes outside letters, digits and `_.-~` are percent-escaped."""
    return f"{MANIFESTS}{quote(name, safe='')}/"


def version_key(name: str, version: int) -> str:
    """Where one version is; zero-padded, so that listings are in order."""
    key = f"{versions_prefix(name)}{version:020}{SUFFIX}"
    if len(key) > KEY_BYTES_MAX:
        raise Invalid(f"the dataset name is too long. name=`{name}`")
    return key


def version_of(key: str) -> int | None:
    """The version in a key below `versions_prefix`; None for a foreign key."""
    digits = key.rsplit("/", 1)[1].removesuffix(SUFFIX)
    return int(digits) if len(digits) == 20 and digits.isdecimal() else None


ATTEMPT_TIME = "%Y%m%dT%H%M%S"


def attempt_name(now: datetime, token: str) -> str:
    """What one attempt to write objects is called: when it began (UTC) and 8 hex digits of its own."""
    return f"{now.strftime(ATTEMPT_TIME)}-{token[:8]}"


def attempt_age_s(attempt: str, now: datetime) -> float | None:
    """Seconds since the attempt began; None when that is not an attempt's name."""
    try:
        began = datetime.strptime(attempt.partition("-")[0], ATTEMPT_TIME)
    except ValueError:
        return None
    return (now - began.replace(tzinfo=now.tzinfo)).total_seconds()


def data_prefix(name: str) -> str:
    """Where ingest keeps the rows of every version of a dataset."""
    return f"{DATA}{quote(name, safe='')}/"


def rejects_prefix(name: str) -> str:
    """Where ingest keeps the rows it could not read."""
    return f"{REJECTS}{quote(name, safe='')}/"


def data_key(name: str, attempt: str, number: int) -> str:
    """One object of rows."""
    return f"{data_prefix(name)}{attempt}/{number:05}{PARQUET}"


def rejects_key(name: str, attempt: str) -> str:
    """The rejected rows of one attempt."""
    return f"{rejects_prefix(name)}{attempt}{PARQUET}"


def attempt_of(key: str) -> str | None:
    """The attempt that wrote an object below `data_prefix` or `rejects_prefix`; None for another key."""
    parts = key.split("/")
    if key.startswith(DATA) and len(parts) == 5:
        return parts[3]
    return parts[3].removesuffix(PARQUET) if key.startswith(REJECTS) and len(parts) == 4 else None


def bare_keys(name: str) -> tuple[str, ...]:
    """Where the old system may have kept its one manifest per dataset: the name escaped, or as it is, if that is not
    where another dataset's version lies."""
    escaped = f"{MANIFESTS}{quote(name, safe='')}{SUFFIX}"
    plain = f"{MANIFESTS}{name}{SUFFIX}"
    if plain == escaped or ("/" in name and version_of(plain) is not None):
        return (escaped,)
    return escaped, plain


def parse_link(data: bytes, key: str) -> Manifest | Tombstone:
    """Read a link of the chain: a version, or the end of the dataset's life.  Raises `Corrupt`."""
    if b'"dropped_at"' not in data:
        return parse(data, key)
    try:
        value = msgspec.json.decode(data)
        if "dropped_at" not in value:
            return parse(data, key)
        return Tombstone(_text(value["name"]), int(value["version"]), _text(value["dropped_at"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"a manifest cannot be read. key=`{key}`") from error


def parse(data: bytes, key: str) -> Manifest:
    """Read a version.  Raises `Corrupt`."""
    try:
        value = msgspec.json.decode(data)
        schema, rejects = value.get("schema"), value.get("rejects")
        return Manifest(
            name=_text(value["name"]),
            dataset_id=UUID(value["dataset_id"]),
            version=int(value["version"]),
            schema_fingerprint=_text(value["schema_fingerprint"]),
            objects=tuple(value["objects"]),
            row_count=value.get("row_count"),
            created_at=_text(value.get("created_at", "")),
            schema=None if schema is None else Schema.from_json(schema),
            bytes=value.get("bytes"),
            stats=value.get("stats"),
            sources=tuple(SourceEntry.from_json(entry) for entry in value.get("sources") or ()),
            rejects=None if rejects is None else Rejects(int(rejects["count"]), _text(rejects["key"])),
            transform_sha256=value.get("transform_sha256"),
            mode=value.get("mode"),
            first_version=int(value.get("first_version", 1)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"a manifest cannot be read. key=`{key}`") from error


def parse_bare(data: bytes, key: str) -> Manifest:
    """Read the old system's manifest as version 1.  Keys match without regard to case, as Go does.

    Raises `Corrupt`.
    """
    try:
        value = {name.lower(): content for name, content in msgspec.json.decode(data).items()}
        name = _text(value["name"])
        return Manifest(
            name=name,
            dataset_id=uuid5(NAMESPACE_URL, f"lakehouse:dataset:{name}"),
            version=1,
            schema_fingerprint=_text(value["schema_fingerprint"]),
            objects=tuple(value.get("objects") or ()),
            row_count=value.get("row_count"),
            created_at="",
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"a manifest of the old system cannot be read. key=`{key}`") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, not {type(value).__name__}")
    return value
