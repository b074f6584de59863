"""An incarnation is one life of an index: dropping a name and creating it again never replays an old log.

Records are create-only, the highest number wins.  A record begins a life (it has a `uuid`), ends one (it has `ends`),
or does both: then the life it begins replaces the one it ends, as soon as that one's logs end, and takes over what
was acknowledged there after the positions it names.  Each carries a checksum of itself.  This module knows their
JSON; it does not know where they are stored.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from uuid import UUID

from lakehouse.core.entry import ENTRY_VERSION, FIRST_ENTRY_VERSION
from lakehouse.core.errors import Corrupt, Invalid
from lakehouse.core.types import Distance, IndexParams

ORIGIN_BYTES_MAX = 4_096
"""A record is read whenever a name is looked up; an origin names where content came from, it is no content."""
OWNER_BYTES_MAX = 1_024

CARRYING_ENTRY_VERSION = 2
"""The first whose logs take over writes of another life; releases before would serve such a life without them."""

Origin = Mapping[str, object]
"""A JSON object that says what an index was built from."""
WRITERS_MARK = {"follow": "Once"}
"""In the origin of a life built from a dataset: writers may have changed it since.  There is always room for it."""
_MARK_TEXT = json.dumps(WRITERS_MARK, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Continues:
    """What a life takes over of the one it replaces: all that was acknowledged there after these positions."""

    positions: tuple[int, ...]
    """Per shard of the replaced life, the last log entry that the new content stands for."""
    exact: bool = False
    """The content is the replaced life's own at these positions, with its versions, in as many shards: what comes after
    is taken over as it is.  Else it is other content, on which later writes are put."""
    empty: bool = False
    """The replaced life held nothing there.  So what was added if absent, and was not there by what is taken over, was
    added; it is put over what the new content holds."""


@dataclass(frozen=True, slots=True)
class Incarnation:
    """What `inc/<number>.json` says: a life begun, or one ended."""

    number: int
    uuid: UUID | None
    params: IndexParams | None
    shards: int = 1
    entry_version: int = FIRST_ENTRY_VERSION
    owner: str | None = None
    ends: UUID | None = None
    seeded: bool = False
    """It began with the content of a snapshot at position 0; without that file it is not empty but damaged."""
    origin: Origin | None = None
    """What its content was built from; None where nobody said."""
    continues: Continues | None = None
    """What it takes over of the life that it `ends`; None: nothing."""

    @property
    def alive(self) -> bool:
        return self.uuid is not None

    @property
    def is_given(self) -> bool:
        """Whether a dataset gave all that this life holds, and no writer has been let near it since."""
        origin = self.origin or {}
        return "dataset" in origin and not WRITERS_MARK.items() <= origin.items()


def begin(
    number: int,
    uuid: UUID,
    params: IndexParams,
    shards: int,
    owner: str | None = None,
    origin: Origin | None = None,
    ends: UUID | None = None,
    *,
    seeded: bool = False,
    continues: Continues | None = None,
) -> Incarnation:
    """The record that begins a life, and ends the one it replaces.  Raises `Invalid`: owner or origin too large."""
    if owner is not None and len(owner.encode()) > OWNER_BYTES_MAX:
        raise Invalid(f"an owner's name has at most {OWNER_BYTES_MAX} bytes. owner=`{owner[:80]}`")
    if ends == uuid:
        raise Invalid(f"a life cannot replace itself. uuid=`{uuid.hex}`")
    if continues is not None and ends is None:
        raise Invalid(f"a life continues one that it ends. uuid=`{uuid.hex}`")
    if continues is not None and continues.exact and len(continues.positions) != shards:
        raise Invalid(f"a life that takes another over as it is has as many shards. shards=`{shards}`")
    return Incarnation(
        number,
        uuid,
        params,
        shards,
        FIRST_ENTRY_VERSION if continues is None else CARRYING_ENTRY_VERSION,
        owner,
        ends,
        seeded,
        _checked_origin(origin),
        continues,
    )


def end(ended: Incarnation) -> Incarnation:
    """The one record that may end `ended`: its number plus one, and no other."""
    return Incarnation(ended.number + 1, None, None, 0, ends=ended.uuid)


def taken_over(record: Incarnation, owner: str | None) -> Incarnation:
    """The next record of the same life, with another owner.  Raises `Invalid`.

    It says again what the life replaced: whoever reads it may be the first to end that one's logs.
    """
    assert record.uuid is not None
    assert record.params is not None
    changed = begin(record.number + 1, record.uuid, record.params, record.shards, owner)
    return replace(record, number=changed.number, owner=changed.owner)


def opened_to_writers(record: Incarnation) -> Incarnation:
    """The next record of the same life, which says that writers may change it; no origin is too long for that."""
    return replace(taken_over(record, record.owner), origin={**(record.origin or {}), **WRITERS_MARK})


def _checked_origin(origin: Origin | None) -> Origin | None:
    """A copy of `origin` that nobody else changes.  Raises `Invalid`."""
    if origin is None:
        return None
    try:
        text = json.dumps(origin, separators=(",", ":"), allow_nan=False)
        copy = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise Invalid(f"an index's origin must be a JSON object. error=`{error}`") from error
    if not isinstance(copy, dict):
        raise Invalid(f"an index's origin must be a JSON object. origin=`{text[:80]}`")
    size = len(text) - (len(_MARK_TEXT) if WRITERS_MARK.items() <= copy.items() else 0)
    if size > ORIGIN_BYTES_MAX:
        raise Invalid(f"an index's origin has at most {ORIGIN_BYTES_MAX} bytes. bytes=`{size}`")
    return copy


def encode(record: Incarnation) -> bytes:
    """The record as JSON."""
    body: dict[str, object] = {"number": record.number, "entry_version": record.entry_version}
    if record.uuid is not None and record.params is not None:
        params = record.params.to_json() | {"ef_construction": record.params.ef_construction}
        body |= {"uuid": record.uuid.hex, "params": params, "shards": record.shards, "owner": record.owner}
        body["seeded"] = record.seeded
    if record.origin is not None:
        body["origin"] = record.origin
    if record.ends is not None:
        body["ends"] = record.ends.hex
    if record.continues is not None:
        body["continues"] = {
            "positions": list(record.continues.positions),
            "exact": record.continues.exact,
            **({"empty": True} if record.continues.empty else {}),
        }
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
        origin = body.get("origin")
        if origin is not None and not isinstance(origin, dict):
            raise Corrupt(f"incarnation record holds an origin that is no object. bytes=`{data[:80]!r}`")
        return Incarnation(
            body["number"],
            UUID(body["uuid"]),
            IndexParams(**params),
            body["shards"],
            body["entry_version"],
            body.get("owner"),
            UUID(body["ends"]) if "ends" in body else None,
            body.get("seeded", False),
            origin,
            _continues(body.get("continues")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, Invalid) as error:
        raise Corrupt(f"incarnation record cannot be read. bytes=`{data[:80]!r}`") from error


def _continues(body: object) -> Continues | None:
    """Raises `KeyError`, `TypeError`, `ValueError` for what is none."""
    if body is None:
        return None
    if not isinstance(body, dict):
        raise TypeError("`continues` is no object")
    positions = tuple(int(position) for position in body["positions"])
    return Continues(positions, bool(body["exact"]), bool(body.get("empty", False)))


@dataclass(frozen=True, slots=True)
class Salvage:
    """What can be read of a record that does not match its checksum."""

    uuid: UUID | None
    shards: int


def salvaged(data: bytes) -> Salvage:
    """What a damaged record may have said, to find what is to be removed.  Raises `Corrupt` for one that is whole.

    Such a record is a newer release's: it means something, and nobody but that release may end what it begins.
    """
    try:
        body = json.loads(data)
        stated = body.pop("sha256")
        whole = hashlib.sha256(_dumped(body)).hexdigest() == stated
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if whole:
        raise Corrupt(f"incarnation record cannot be read by this release. bytes=`{data[:80]!r}`")
    uuid = re.search(rb'"uuid":"([0-9a-f]{32})"', data)
    shards = re.search(rb'"shards":([1-9][0-9]{0,3})\b', data)
    return Salvage(UUID(uuid[1].decode()) if uuid else None, int(shards[1]) if shards else 1)
