"""The incarnation records of a name in its store: which one counts, and creating one without being fooled.

Records are never deleted, so a listed record that cannot be read is the store's trouble, not an absence.
"""

import asyncio
import logging
from dataclasses import replace
from uuid import UUID

from lakehouse.core import incarnation, names
from lakehouse.core.errors import (
    Conflict,
    Corrupt,
    CredentialsRefused,
    NotFound,
    Outcome,
    StorageFull,
    Unavailable,
)
from lakehouse.core.incarnation import Incarnation
from lakehouse.log import Backoff
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

ATTEMPTS = 8
READS_AT_ONCE = 16
BACKOFF = Backoff()
SETTLES_MAX = 1_000
SETTLE_BACKOFF = Backoff(first_s=0.2, most_s=60.0)


async def current(store: ObjectStore, name: str) -> Incarnation | None:
    """The record with the highest number, None if the name was never used.  Raises `Corrupt`."""
    infos = await store.list(names.incarnation_prefix(name))
    if not infos:
        return None
    return incarnation.decode(await read_listed(store, infos[-1].key))


async def exists(store: ObjectStore, name: str) -> bool:
    """Whether a name was ever used."""
    return bool(await store.list(names.incarnation_prefix(name), limit=1))


async def newest(store: ObjectStore, name: str) -> tuple[int, bytes]:
    """The number and bytes of the record that counts, readable or not.  Raises `NotFound`."""
    infos = await store.list(names.incarnation_prefix(name))
    if not infos:
        raise NotFound(f"no such index. name=`{name}`")
    return names.incarnation_number(infos[-1].key), await read_listed(store, infos[-1].key)


async def every(store: ObjectStore, name: str) -> list[Incarnation]:
    """All records of a name, in order; of a damaged one what can be read.  Raises `Corrupt` for a newer release's."""
    infos = await store.list(names.incarnation_prefix(name))
    found: list[Incarnation] = []
    for start in range(0, len(infos), READS_AT_ONCE):
        chunk = infos[start : start + READS_AT_ONCE]
        read = await asyncio.gather(*(read_listed(store, info.key) for info in chunk))
        found += [
            _salvaged(names.incarnation_number(info.key), data)
            for info, data in zip(chunk, read, strict=True)
        ]
    return found


def _salvaged(number: int, data: bytes) -> Incarnation:
    try:
        return incarnation.decode(data)
    except Corrupt:
        said = incarnation.salvaged(data)
        return Incarnation(number, said.uuid, None, said.shards)


async def was_replaced(store: ObjectStore, name: str, life: UUID) -> bool:
    """Whether a life has ended by being replaced, not by being dropped."""
    return any(record.alive and record.ends == life for record in await every(store, name))


async def before(store: ObjectStore, name: str, record: Incarnation) -> Incarnation:
    """The record of the life that `record` replaces.  Raises `Corrupt` when it is not there as it should be."""
    for number in range(record.number - 1, -1, -1):
        data = await read_listed(store, names.incarnation_key(name, number))
        try:
            found = incarnation.decode(data)
        except Corrupt:  # its uuid is known; how many shards it had, perhaps
            known = 0 if record.continues is None else len(record.continues.positions)
            shards = max(known, incarnation.salvaged(data).shards)
            return replace(record, uuid=record.ends, shards=shards, ends=None, continues=None)
        if found.uuid == record.ends:
            return found
        if found.uuid != record.uuid:
            break
    raise Corrupt(f"a record replaces another life than the one before it. name=`{name}`")


async def read_listed(store: ObjectStore, key: str) -> bytes:
    """An object that a listing showed and nobody deletes.  Raises `Unavailable` when the store does not give it."""
    try:
        return await store.get(key)
    except NotFound as error:
        raise Unavailable(f"the store lists an object that it does not give. key=`{key}`") from error


async def create(store: ObjectStore, runtime: Runtime, name: str, record: Incarnation) -> None:
    """Create a record; done when the store holds exactly these bytes.

    Raises `Conflict` if another one is there, and `Unavailable`: `unknown` as soon as one attempt may have landed.
    """
    await create_at(store, runtime, names.incarnation_key(name, record.number), incarnation.encode(record))


async def open_to_writers(store: ObjectStore, runtime: Runtime, name: str, life: UUID) -> Incarnation | None:
    """Say in the records that writers may change a life, before the first of them is answered; the record that says so.

    None where this life does not count any more: what is written to it now is taken over by the one that does, and
    whoever takes it over says it of that one.  Raises `Unavailable`, `Corrupt`.
    """
    for attempt in range(1, ATTEMPTS + 1):
        now = await current(store, name)
        if now is None or now.uuid != life:
            return None
        if not now.is_given:
            return now
        record = incarnation.opened_to_writers(now)
        try:
            await create(store, runtime, name, record)
        except Conflict:
            await runtime.sleep(BACKOFF.delay_s(attempt, runtime))
            continue
        logger.info("an index that a dataset filled takes writes from now on. index=%s", name)
        return record
    raise Unavailable(f"the index's record keeps changing. name=`{name}`", outcome=Outcome.NOT_COMMITTED)


async def settle(store: ObjectStore, runtime: Runtime, name: str, record: Incarnation) -> bool:
    """Go on after `create` was in doubt until the slot holds a record for certain; whether it is this one.

    The same bytes are put again, as into a log's slot: a PUT that nobody waits for any more may land at any time, but
    not in a slot that is taken.  Raises `Unavailable` when the store stays away for about half a day.
    """
    for attempt in range(SETTLES_MAX):
        try:
            await create(store, runtime, name, record)
            return True
        except Conflict:
            return False
        except Unavailable as error:
            logger.warning("a record is still in doubt. index=%s error=%s", name, error)
        await runtime.sleep(SETTLE_BACKOFF.delay_s(attempt, runtime))
    raise Unavailable(f"the store did not settle the index's record. name=`{name}`")


async def create_at(store: ObjectStore, runtime: Runtime, key: str, data: bytes) -> None:
    """Create an object; done when the store holds exactly these bytes.  Raises as `create` does."""
    doubt = False
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await _create_once(store, key, data)
        except Unavailable as error:
            doubt = doubt or error.outcome is Outcome.UNKNOWN
            logger.warning("an object is in doubt. key=%s attempt=%s error=%s", key, attempt, error)
            if attempt == ATTEMPTS and not doubt and isinstance(error, (StorageFull, CredentialsRefused)):
                raise
        await runtime.sleep(BACKOFF.delay_s(attempt, runtime))
    raise Unavailable(
        f"the store did not confirm what was put. key=`{key}`",
        outcome=Outcome.UNKNOWN if doubt else Outcome.NOT_COMMITTED,
    )


async def _create_once(store: ObjectStore, key: str, data: bytes) -> None:
    """One attempt, and a look at what is there if its answer says too little.  Raises `Conflict`, `Unavailable`."""
    try:
        await store.create(key, data)
        return
    except Conflict:
        doubt = Unavailable(f"the store refuses what it does not list. key=`{key}`")
    except Unavailable as error:
        if error.outcome is Outcome.NOT_COMMITTED:
            raise
        doubt = error
    if not await store.list(key):
        raise doubt
    if await read_listed(store, key) != data:
        raise Conflict(f"another was there first. key=`{key}`")
