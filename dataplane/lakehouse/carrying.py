"""Taking over what a replaced life acknowledged after the positions at which the new content stands.

The old logs are read from there to their end and their requests put into the new ones, in order, under their own
idempotency keys.  The last request of each entry says how far that got, so anybody goes on where another stopped, and
nothing is put twice.  Only when the old logs have ended and all is taken over is anybody served from the new ones.
What this module does not do: end the old logs (`lakehouse.ending`), or exchange what is served (`lakehouse.indexes`).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

import numpy as np

from lakehouse.core import names
from lakehouse.core.entry import (
    ALL_CARRIED,
    Cursor,
    EncodedRequest,
    Entry,
    Kind,
    Operation,
    Request,
    cursor_of,
    encode_request,
)
from lakehouse.core.errors import Corrupt, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Continues, Incarnation
from lakehouse.following import READ_AHEAD, READ_ATTEMPTS
from lakehouse.log import Backoff, ShardLog
from lakehouse.writing import Writer

logger = logging.getLogger(__name__)

ROUNDS_MAX = 64
"""Times one process begins again because another took over at the same time."""
AHEAD_ROUNDS_MAX = 4
AHEAD_ENTRIES = 64
"""Entries that may be left for the moment when nobody is served: about as many as come while these are taken over."""
BACKOFF = Backoff(first_s=0.05, most_s=2.0)


@dataclass(frozen=True, slots=True)
class Replaced:
    """The logs that a life continues."""

    life: UUID
    continues: Continues

    @property
    def shards(self) -> int:
        return len(self.continues.positions)

    def sources(self, number: int, shards: int, *, ended: bool) -> Sequence[int]:
        """The old shards that hold ids of the new shard `number` of `shards`, in the order they are taken over.

        Only the first of them while the old logs have not `ended`: a cursor that has gone on to the next one has left
        this one for good, with all that is acknowledged there later.
        """
        every = [number] if self.shards == shards else range(self.shards)
        return every if ended else every[:1]


def replaced_by(record: Incarnation) -> Replaced | None:
    """What a life continues; None when it takes nothing over."""
    if record.continues is None or record.ends is None:
        return None
    return Replaced(record.ends, record.continues)


class Translation:
    """The requests of one old log as one new shard takes them.

    Content that is the old life's own has its versions too, and takes every request as it stands.  Other content has
    versions of its own: there a delete of a version stands for what it deleted of what is taken over, and an addition
    to what was `empty` for what it added.
    """

    def __init__(self, replaced: Replaced, source: int, number: int, shards: int) -> None:
        self._exact, self._empty = replaced.continues.exact, replaced.continues.empty
        self._same = replaced.shards == shards
        self._suffix = b"" if replaced.shards in (1, shards) else b"\0%d" % source
        self._number, self._shards = number, shards
        self._versions: dict[str, int] = {}
        self._keys: set[bytes] = set()

    def of(self, found: Entry) -> list[EncodedRequest]:
        """What an entry's requests become."""
        own = [encoded for encoded in found.requests if cursor_of(encoded.request.key) is None]
        if self._exact:
            return own
        version = found.header.first_operation + 1
        taken = []
        for encoded in own:  # a cursor, which is the old log's own, has no ids
            request = encoded.request
            if request.key not in self._keys:
                self._keys.add(request.key)
                done = self._done(request, version)
                taken.append(encode_request(self._part(done), encoded.digest))
            version += len(request.ids)
        return taken

    def _done(self, request: Request, version: int) -> Request:
        """What a request did, said without versions; remembers the versions it gave."""
        match request.operation:
            case Operation.UPSERT | Operation.ADD_IF_ABSENT:
                done = request
                if self._empty and request.operation is Operation.ADD_IF_ABSENT and request.ids:
                    done = self._added(request)
                self._versions.update(
                    zip(request.ids, range(version, version + len(request.ids)), strict=True)
                )
                return done
            case Operation.DELETE:
                deleted = request.ids
            case Operation.DELETE_IF_VERSION:
                pairs = zip(request.ids, request.versions, strict=True)
                deleted = tuple(item_id for item_id, was in pairs if self._versions.get(item_id) == was)
        for item_id in deleted:
            self._versions.pop(item_id, None)
        return Request(request.key, Operation.DELETE, deleted)

    def _added(self, request: Request) -> Request:
        """What a request added, as it was added: whatever the new content holds of it, also no metadata."""
        new = [row for row, item_id in enumerate(request.ids) if item_id not in self._versions]
        added = _picked(replace(request, operation=Operation.UPSERT), new)
        return replace(added, metadata=tuple(value or b"" for value in added.metadata))

    def _part(self, request: Request) -> Request:
        """What of a request belongs to this shard; none of it where none does, so that its key is known there too."""
        mine = [
            row
            for row, item_id in enumerate(request.ids)
            if self._same or names.shard_of(item_id, self._shards) == self._number
        ]
        return _picked(replace(request, key=request.key + self._suffix), mine)


def _picked(request: Request, rows: Sequence[int]) -> Request:
    """Some rows of a request that names no versions."""
    return replace(
        request,
        ids=tuple(request.ids[row] for row in rows),
        vectors=None if request.vectors is None else np.ascontiguousarray(request.vectors[rows]),
        metadata=tuple(request.metadata[row] for row in rows) if request.metadata else (),
    )


async def carry(writer: Writer, record: Incarnation, *, complete: bool) -> None:
    """Take over into one new shard what the old logs hold; all of it, for ever, with `complete`: they have ended then.

    Raises `Unavailable`; `Corrupt` when an entry that must be taken over cannot be read.
    """
    replaced = replaced_by(record)
    if replaced is None:
        return
    for attempt in range(ROUNDS_MAX):
        await writer.looked()
        writer.refuse_dropped()
        if writer.begun:
            return
        tolerant = not replaced.continues.exact and attempt >= READ_ATTEMPTS
        try:
            if await _carried(writer, replaced, record.shards, complete=complete, tolerant=tolerant):
                return
        except (Unavailable, Corrupt):  # swept by who has finished this, perhaps: then the new log says so
            if attempt >= READ_ATTEMPTS:
                raise
        await writer.runtime.sleep(BACKOFF.delay_s(attempt, writer.runtime))
    raise Unavailable(
        f"other processes keep taking the index over. name=`{writer.params.name}`",
        outcome=Outcome.NOT_COMMITTED,
    )


async def carry_ahead(writers: Sequence[Writer], record: Incarnation) -> None:
    """Take over most of it while the old life goes on, so that little is left for when it has ended."""
    replaced = replaced_by(record)
    if replaced is None or record.is_given:  # no record can say yet that it holds what no dataset gave it
        return
    for _ in range(AHEAD_ROUNDS_MAX):
        left = [await _left(writer, replaced, record.shards) for writer in writers]
        if sum(left) <= AHEAD_ENTRIES:
            return
        for writer in writers:
            await carry(writer, record, complete=False)


async def _left(writer: Writer, replaced: Replaced, shards: int) -> int:
    """Entries that are not taken over yet."""
    cursor = writer.replica.carried
    left = 0
    for source in replaced.sources(writer.number, shards, ended=False):
        after = replaced.continues.positions[source]
        if cursor is not None and cursor.shard == source:
            after = max(after, cursor.sequence)
        if cursor is None or cursor.shard <= source:
            left += len(await _log(writer, replaced, source).after(after))
    return left


def _log(writer: Writer, replaced: Replaced, source: int) -> ShardLog:
    return ShardLog(writer.store, writer.runtime, writer.params.name, replaced.life, source)


async def _carried(
    writer: Writer, replaced: Replaced, shards: int, *, complete: bool, tolerant: bool
) -> bool:
    """One attempt; False when another process put something into the new log meanwhile.

    `tolerant` passes over what cannot be read.
    """
    at = writer.replica.carried
    group: list[EncodedRequest] = []
    reached = at
    for source in replaced.sources(writer.number, shards, ended=complete):
        translation = Translation(replaced, source, writer.number, shards)
        async for seq, found in _entries(writer, replaced, source, complete=complete, tolerant=tolerant):
            requests = [] if found is None else translation.of(found)
            cursor = Cursor(source, seq)
            if at is not None and cursor <= at:
                continue
            if sum(map(len, group)) + sum(map(len, requests)) > writer.settings.group_bytes_max and group:
                assert reached is not None
                if not await writer.carry((*group, _marker(reached)), at):
                    return False
                at, group = reached, []
            group += requests
            reached = cursor
    if complete:
        reached = ALL_CARRIED
    if reached is None or reached == at:
        return True
    return await writer.carry((*group, _marker(reached)), at)


def _marker(cursor: Cursor) -> EncodedRequest:
    return encode_request(Request(cursor.key, Operation.DELETE, ()))


async def _entries(
    writer: Writer, replaced: Replaced, source: int, *, complete: bool, tolerant: bool
) -> AsyncIterator[tuple[int, Entry | None]]:
    """The slots of an old log after the position where the content stands, in order, None for one that has nothing
    to take over."""
    log = _log(writer, replaced, source)
    position = replaced.continues.positions[source]
    if complete and not await log.ends_in_drop():
        raise Unavailable(f"a log that is to be taken over has not ended. key=`{log.key(0)}`")
    slots = await log.after(position)
    expected = position + 1
    for start in range(0, len(slots), READ_AHEAD):
        chunk = slots[start : start + READ_AHEAD]
        read = await asyncio.gather(*(log.read(seq) for seq in chunk), return_exceptions=True)
        for seq, found in zip(chunk, read, strict=True):
            if seq != expected:
                _refuse_damage(log, f"slots from {expected} are missing", tolerant=tolerant)
            expected = seq + 1
            if isinstance(found, NotFound):
                raise Unavailable(f"the store lists a slot that it does not give. key=`{log.key(seq)}`")
            if isinstance(found, Corrupt):
                _refuse_damage(log, found.message, tolerant=tolerant)
                yield seq, None
            elif isinstance(found, BaseException):
                raise found
            else:
                yield seq, found[0] if found[0].header.kind is Kind.DATA else None


def _refuse_damage(log: ShardLog, reason: str, *, tolerant: bool) -> None:
    """Other content may replace a damaged life, which is why somebody builds it, once nothing else helps; the life's
    own content may not."""
    message = f"a log that is to be taken over is damaged. key=`{log.key(0)}` reason=`{reason}`"
    if not tolerant:
        raise Corrupt(message)
    logger.error("%s", message)
