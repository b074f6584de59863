"""An incarnation is one life of an index: dropping a name and creating it again never replays an old log.

Records are create-only, the highest number wins.  A record either begins a life (it has a `uuid`) or ends one (it has
`ends`), and carries a checksum of itself.  This module knows their JSON; it does not know where they are stored.
"""

import hashlib
import json
from dataclasses import dataclass
from uuid import UUID

from lakehouse.core.entry import ENTRY_VERSION
from lakehouse.core.errors import Corrupt, Invalid
from lakehouse.core.types import Distance, IndexParams


@dataclass(frozen=True, slots=True)
class Incarnation:
    """What `inc/<number>.json` says: a life begun, or one ended."""

    number: int
    uuid: UUID | None
    params: IndexParams | None
    shards: int = 1
    entry_version: int = ENTRY_VERSION
    owner: str | None = None
    ends: UUID | None = None
    seeded: bool = False
    """It began with the content of a snapshot at position 0; without that file it is not empty but damaged."""

    @property
    def alive(self) -> bool:
        return self.uuid is not None


def begin(number: int, uuid: UUID, params: IndexParams, shards: int) -> Incarnation:
    """The record that begins a life."""
    return Incarnation(number, uuid, params, shards)


def end(ended: Incarnation) -> Incarnation:
    """The one record that may end `ended`: its number plus one, and no other."""
    return Incarnation(ended.number + 1, None, None, 0, ends=ended.uuid)


def encode(record: Incarnation) -> bytes:
    """The record as JSON."""
    body: dict[str, object] = {"number": record.number, "entry_version": record.entry_version}
    if record.uuid is not None and record.params is not None:
        params = record.params.to_json() | {"ef_construction": record.params.ef_construction}
        body |= {"uuid": record.uuid.hex, "params": params, "shards": record.shards, "owner": record.owner}
        body["seeded"] = record.seeded
    if record.ends is not None:
        body["ends"] = record.ends.hex
    return _dumped(body | {"sha256": hashlib.sha256(_dumped(body)).hexdigest()})


def _dumped(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode()


def decode(data: bytes) -> Incarnation:
    """Read what `encode` wrote.  Raises `Corrupt`."""
    try:
        body = json.loads(data)
        stated = body.pop("sha256")
        if hashlib.sha256(_dumped(body)).hexdigest() != stated or data != _dumped(body | {"sha256": stated}):
            raise Corrupt(f"incarnation record does not match its checksum. bytes=`{data[:80]!r}`")
        if body["entry_version"] > ENTRY_VERSION:
            raise Corrupt(f"index of a newer release: use that one. entry_version=`{body['entry_version']}`")
        if "uuid" not in body:
            return Incarnation(body["number"], None, None, 0, body["entry_version"], ends=UUID(body["ends"]))
        params = dict(body["params"])
        params["distance"] = Distance(params["distance"])
        return Incarnation(
            body["number"],
            UUID(body["uuid"]),
            IndexParams(**params),
            body["shards"],
            body["entry_version"],
            body.get("owner"),
            seeded=body.get("seeded", False),
        )
    except (ValueError, KeyError, TypeError, AttributeError, Invalid) as error:
        raise Corrupt(f"incarnation record cannot be read. bytes=`{data[:80]!r}`") from error
