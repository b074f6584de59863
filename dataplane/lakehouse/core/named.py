"""A named snapshot keeps one file per shard for as long as it exists.

The files are its own, under a fresh prefix, so no garbage collection knows of them; the record is created last, so a
record always means whole files.  This module knows the record's JSON only.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from lakehouse.core.errors import Corrupt, Invalid

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,248}[a-z0-9])?")
"""At most 250 bytes, so that its record's name fits a directory entry."""


@dataclass(frozen=True, slots=True)
class NamedFile:
    """One shard's part of a named snapshot."""

    shard: int
    key: str
    sequence: int
    digest: str
    """The chain digest at `sequence`, hex."""
    size: int = 0
    items: int = 0


def checked_name(name: str) -> str:
    """`name` if a snapshot may be called that: Kubernetes' rule for names.  Raises `Invalid`."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"a snapshot name has 1 to 250 lower-case letters, digits, `.` or `-`. name=`{name}`")
    return name


def encode(name: str, files: Sequence[NamedFile], completed_at: datetime) -> bytes:
    """The JSON of a record of files that are whole since `completed_at`."""
    when = completed_at.astimezone(UTC).isoformat(timespec="seconds")
    return json.dumps(
        {"name": name, "completed_at": when, "files": [asdict(file) for file in files]}
    ).encode()


def decode(data: bytes) -> tuple[NamedFile, ...]:
    """The files that a record names.  Raises `Corrupt`."""
    try:
        return tuple(NamedFile(**file) for file in json.loads(data)["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"named snapshot cannot be read. bytes=`{data[:80]!r}`") from error


def completed_at(data: bytes) -> datetime | None:
    """Since when the files that a record names are whole, UTC; None where it does not tell, as older ones do not."""
    try:
        return datetime.fromisoformat(json.loads(data)["completed_at"]).astimezone(UTC)
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
