"""Names and keys: what an index may be called, and where each of its objects lives."""

import re
from hashlib import blake2b
from uuid import UUID

from lakehouse.core.errors import Invalid

_INDEX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

VECTORS = "_vectors/"
CATALOG = "_catalog/"
RESOURCES = "_resources/"
RESERVED_PREFIXES = (VECTORS, CATALOG, RESOURCES)
"""Readable by anyone with the read right; writable over HTTP with the admin right only."""

LHV1_SUFFIX = ".lhv1"
KEY_BYTES_MAX = 1_024
"""S3's own limit on the UTF-8 length of a key."""


def checked_index_name(name: str) -> str:
    """`name` if an index may be called that.  Raises `Invalid`."""
    if not isinstance(name, str) or not _INDEX.fullmatch(name) or name.endswith(LHV1_SUFFIX):
        raise Invalid(
            "an index name has 1 to 128 letters, digits, `.`, `_` or `-`, starts with a letter or digit, "
            f"and does not end in `.lhv1`. name=`{name}`"
        )
    return name


def checked_key(key: str) -> str:
    """`key` if a store may hold it: no empty, `.` or `..` segment, at most 1,024 bytes.  Raises `Invalid`."""
    if not key or "\x00" in key or any(segment in ("", ".", "..") for segment in key.split("/")):
        raise Invalid(f"a key has no empty, `.` or `..` segment and does not start with `/`. key=`{key}`")
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise Invalid(f"a key is valid UTF-8. key=`{key!r}`") from error
    if size > KEY_BYTES_MAX:
        raise Invalid(f"a key has at most {KEY_BYTES_MAX} bytes. bytes=`{size}`")
    return key


def index_prefix(name: str) -> str:
    """Everything of one index but its compatibility copy."""
    return f"{VECTORS}{name}/"


def compatibility_key(name: str) -> str:
    """The newest snapshot where the old system and its tools look; never trusted for recovery."""
    return f"{VECTORS}{name}{LHV1_SUFFIX}"


def incarnation_prefix(name: str) -> str:
    """Where the records of an index's lives are."""
    return f"{VECTORS}{name}/inc/"


def incarnation_key(name: str, number: int) -> str:
    """The record of one life, or of its end."""
    return f"{VECTORS}{name}/inc/{number:010}.json"


def incarnation_number(key: str) -> int:
    """The number in a record's key.  Raises `ValueError` on a foreign key."""
    return int(key.rsplit("/", 1)[1].removesuffix(".json"))


def shard_of(item_id: str, shards: int) -> int:
    """The shard that holds an id: the first 8 bytes of BLAKE2b, big-endian, modulo the number of shards."""
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "big") % shards


def life_prefix(name: str, incarnation: UUID) -> str:
    """Everything of one life but its record."""
    return f"{VECTORS}{name}/{incarnation.hex}/"


def named_prefix(name: str, incarnation: UUID, snapshot: str = "") -> str:
    """The named snapshots of a life, or the files of one of them."""
    return f"{VECTORS}{name}/{incarnation.hex}/named/{snapshot}" + ("/" if snapshot else "")


def shard_prefix(name: str, incarnation: UUID, shard: int) -> str:
    """Everything of one shard of one life."""
    return f"{VECTORS}{name}/{incarnation.hex}/{shard:04}/"


def log_prefix(name: str, incarnation: UUID, shard: int) -> str:
    """The log of a shard."""
    return f"{shard_prefix(name, incarnation, shard)}log/"


def snapshot_prefix(name: str, incarnation: UUID, shard: int) -> str:
    """The snapshots of a shard."""
    return f"{shard_prefix(name, incarnation, shard)}snap/"


def snapshot_key(name: str, incarnation: UUID, shard: int, covered: int, writer: UUID) -> str:
    """One snapshot file; its writer's first 8 hex digits make the key unique."""
    return f"{shard_prefix(name, incarnation, shard)}snap/{covered:020}-{writer.hex[:8]}{LHV1_SUFFIX}"


def pin_prefix(name: str, incarnation: UUID) -> str:
    """The pins of a life: while one is there, its logs keep every entry."""
    return f"{VECTORS}{name}/{incarnation.hex}/pins/"


def pin_key(name: str, incarnation: UUID, life: UUID) -> str:
    """The pin on one life for another that is to replace it."""
    return f"{pin_prefix(name, incarnation)}{life.hex}"


def fate_prefix(name: str, life: UUID) -> str:
    """Where it is settled whether a life may begin."""
    return f"{VECTORS}{name}/{life.hex}/fate/"


def fate_key(name: str, life: UUID, number: int) -> str:
    """One step of that."""
    return f"{fate_prefix(name, life)}{number:04}"


def continues_key(name: str, life: UUID) -> str:
    """What several builders of one life agree that it takes over, until it has begun."""
    return f"{VECTORS}{name}/{life.hex}/continues"


def named_snapshot_key(name: str, incarnation: UUID, snapshot: str) -> str:
    """The record of a named snapshot."""
    return f"{VECTORS}{name}/{incarnation.hex}/named/{snapshot}.json"


def sequence_of(key: str) -> int:
    """The sequence number in a log or snapshot key.  Raises `ValueError` on a foreign key."""
    return int(key.rsplit("/", 1)[1][:20])


def named_file_key(name: str, incarnation: UUID, snapshot: str, attempt: UUID, shard: int) -> str:
    """One shard's file of a named snapshot; the attempt's first 8 hex digits make the key unique."""
    return f"{VECTORS}{name}/{incarnation.hex}/named/{snapshot}/{attempt.hex[:8]}/{shard:04}{LHV1_SUFFIX}"
