"""What a dataset is made of, at one version: an immutable value, published last.

A manifest names its objects and the fingerprint of their schema.  This module maps manifests to bytes and
decides what registering means; it does no I/O (`lakehouse.catalog` does).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import NAMESPACE_URL, UUID, uuid5

import msgspec

from lakehouse.core.errors import Conflict, Corrupt, Invalid
from lakehouse.core.names import CATALOG, KEY_BYTES_MAX

MANIFESTS = f"{CATALOG}manifests/"
SUFFIX = ".json"
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
class Manifest:
    """One version of a dataset."""

    name: str
    dataset_id: UUID
    version: int
    schema_fingerprint: str
    objects: tuple[Mapping[str, Any], ...]
    row_count: int | None
    created_at: str
    """RFC 3339, for people; empty for a manifest of the old system."""

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
        }

    def to_bytes(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self.to_json()), indent=2)


@dataclass(frozen=True, slots=True)
class Registered:
    """What registering decided: the manifest that holds now, and whether the dataset was there before."""

    manifest: Manifest
    existing: bool
    publish: bool
    """Whether the manifest still has to be written."""


def register(
    newest: Manifest | None, asked: Registration, *, dataset_id: UUID, created_at: str
) -> Registered:
    """The same fingerprint again is existing; other objects make a new version; another fingerprint
    conflicts."""
    if newest is None:
        return Registered(_next(asked, dataset_id, 1, created_at), existing=False, publish=True)
    if newest.schema_fingerprint != asked.schema_fingerprint:
        raise Conflict(
            f"dataset {asked.name} has another schema: register under another name, or bring the schema "
            f"in line. schema_fingerprint=`{newest.schema_fingerprint}`"
        )
    if newest.objects == asked.objects:
        return Registered(newest, existing=True, publish=False)
    following = _next(asked, newest.dataset_id, newest.version + 1, created_at)
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
    if not name or len(name.encode()) > NAME_BYTES_MAX or name in (".", ".."):
        raise Invalid(f"a dataset name has 1 to {NAME_BYTES_MAX} bytes and is not `.` or `..`. name=`{name}`")
    if name.endswith(SUFFIX):
        # `_catalog/manifests/x.json` is the old system's manifest of x; a directory cannot have
        # that name as well.
        raise Invalid(f"a dataset name does not end in `{SUFFIX}`. name=`{name}`")
    return name


def versions_prefix(name: str) -> str:
    """Every version of dataset `name`; bytes outside letters, digits and `_.-~` are percent-escaped."""
    return f"{MANIFESTS}{quote(name, safe='')}/"


def version_key(name: str, version: int) -> str:
    """Where one version is; zero-padded, so that listings are in order."""
    key = f"{versions_prefix(name)}{version:020}{SUFFIX}"
    if len(key) > KEY_BYTES_MAX:
        raise Invalid(f"the dataset name is too long. name=`{name}`")
    return key


def bare_keys(name: str) -> tuple[str, ...]:
    """Where the old system may have kept its one manifest per dataset: the name escaped, or as it is."""
    escaped = quote(name, safe="")
    return tuple(f"{MANIFESTS}{written}{SUFFIX}" for written in dict.fromkeys((escaped, name)))


def parse(data: bytes, key: str) -> Manifest:
    """Read a version.  Raises `Corrupt`."""
    try:
        value = msgspec.json.decode(data)
        return Manifest(
            name=_text(value["name"]),
            dataset_id=UUID(value["dataset_id"]),
            version=int(value["version"]),
            schema_fingerprint=_text(value["schema_fingerprint"]),
            objects=tuple(value["objects"]),
            row_count=value.get("row_count"),
            created_at=_text(value.get("created_at", "")),
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
