"""The incarnation records of a name in its store: which one counts, and creating one without being fooled.

Records are never deleted, so a listed record that cannot be read is the store's trouble, not an absence.
"""

import logging
from dataclasses import replace

from lakehouse.core import incarnation, names
from lakehouse.core.errors import Conflict, Corrupt, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.log import Backoff
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

ATTEMPTS = 8
BACKOFF = Backoff()


async def current(store: ObjectStore, name: str) -> Incarnation | None:
    """The record with the highest number, None if the name was never used.  Raises `Corrupt`."""
    infos = await store.list(names.incarnation_prefix(name))
    if not infos:
        return None
    return incarnation.decode(await _read(store, infos[-1].key))


async def newest(store: ObjectStore, name: str) -> tuple[int, bytes]:
    """The number and bytes of the record that counts, readable or not.  Raises `NotFound`."""
    infos = await store.list(names.incarnation_prefix(name))
    if not infos:
        raise NotFound(f"no such index. name=`{name}`")
    return names.incarnation_number(infos[-1].key), await _read(store, infos[-1].key)


async def before(store: ObjectStore, name: str, record: Incarnation) -> Incarnation:
    """The record of the life that `record` replaces.  Raises `Corrupt` when it is not there as it should be."""
    data = await _read(store, names.incarnation_key(name, record.number - 1))
    try:
        found = incarnation.decode(data)
    except Corrupt:  # its uuid is known; how many shards it had, perhaps
        return replace(record, uuid=record.ends, shards=incarnation.salvaged(data).shards, ends=None)
    if found.uuid != record.ends:
        raise Corrupt(f"a record replaces another life than the one before it. name=`{name}`")
    return found


async def _read(store: ObjectStore, key: str) -> bytes:
    try:
        return await store.get(key)
    except NotFound as error:
        raise Unavailable(f"the store lists a record that it does not give. key=`{key}`") from error


async def create(store: ObjectStore, runtime: Runtime, name: str, record: Incarnation) -> None:
    """Create a record; done when the store holds exactly these bytes.

    Raises `Conflict` if another one is there, and `Unavailable`: `unknown` as soon as one attempt may have landed.
    """
    key = names.incarnation_key(name, record.number)
    data = incarnation.encode(record)
    doubt = False
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await _create_once(store, key, data)
        except Unavailable as error:
            doubt = doubt or error.outcome is Outcome.UNKNOWN
            logger.warning("record is in doubt. key=%s attempt=%s error=%s", key, attempt, error)
        await runtime.sleep(BACKOFF.delay_s(attempt, runtime))
    raise Unavailable(
        f"the store did not confirm the index's record. name=`{name}`",
        outcome=Outcome.UNKNOWN if doubt else Outcome.NOT_COMMITTED,
    )


async def _create_once(store: ObjectStore, key: str, data: bytes) -> None:
    """One attempt, and a look at what is there if its answer says too little.  Raises `Conflict`, `Unavailable`."""
    try:
        await store.create(key, data)
        return
    except Conflict:
        doubt = Unavailable(f"the store refuses a record that it does not list. key=`{key}`")
    except Unavailable as error:
        if error.outcome is Outcome.NOT_COMMITTED:
            raise
        doubt = error
    if not await store.list(key):
        raise doubt
    if await _read(store, key) != data:
        raise Conflict(f"another life of this index was there first. key=`{key}`")
