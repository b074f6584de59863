"""Before the log trusts a store, the store proves what the log relies on.

A second `create` conflicts and changes nothing; of eight racers one wins; what was created reads back equal
and is listed; what was deleted is gone.  Emulators, old gateways and file systems without hard links fail
here and not at some later write.
What it does not do: prove durability, or more than these samples can.
"""

import asyncio
import contextlib

from lakehouse.core.errors import Conflict, Invalid, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

PROBE = "_probe/"
RACERS = 8


async def probe(store: ObjectStore, runtime: Runtime) -> None:
    """Raise `Invalid` if the store breaks a rule; what the store itself raises passes through."""
    folder = f"{PROBE}{runtime.uuid().hex}/"
    try:
        await _check_create(store, f"{folder}create")
        await _check_race(store, f"{folder}race")
    finally:
        for name in ("create", "race"):
            # Without the right to delete, a few bytes stay behind; the next start uses another folder.
            with contextlib.suppress(LakehouseError):
                await store.delete(folder + name)


async def _check_create(store: ObjectStore, key: str) -> None:
    await store.create(key, b"first")
    try:
        await store.create(key, b"second")
    except Conflict:
        pass
    else:
        raise _broken(store, "a second create of the same key succeeded")
    if await store.get(key) != b"first":
        raise _broken(store, "an object read back differs from what was created")
    if [found.key for found in await store.list(key)] != [key]:
        raise _broken(store, "a created object is not listed")
    await store.delete(key)
    with contextlib.suppress(NotFound):
        await store.get(key)
        raise _broken(store, "a deleted object can still be read")


async def _check_race(store: ObjectStore, key: str) -> None:
    bodies = [b"racer %d" % j for j in range(RACERS)]
    won = await asyncio.gather(*(_wins(store, key, body) for body in bodies))
    if sum(won) != 1:
        raise _broken(store, f"of {RACERS} racing creates {sum(won)} succeeded")
    if await store.get(key) != bodies[won.index(True)]:
        raise _broken(store, "a racing create that failed overwrote the one that succeeded")


async def _wins(store: ObjectStore, key: str, body: bytes) -> bool:
    try:
        await store.create(key, body)
    except Conflict:
        return False
    except Unavailable as error:
        if error.outcome is Outcome.NOT_COMMITTED:
            return False
        return await store.get(key) == body
    return True


def _broken(store: ObjectStore, what: str) -> Invalid:
    return Invalid(
        f"this store cannot keep a log safely: {what}; it must honour create-if-absent "
        f"(on S3: PUT with `If-None-Match: *`). store=`{store.url}`"
    )
