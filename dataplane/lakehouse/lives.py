"""The lives of an index from outside: begun empty, taken over, ended; for whoever keeps no index in memory.

Light on purpose: it reads and writes records and a few small objects, and works on lives of any size, damaged ones too.
What this module does not do: open an index, or make content (`lakehouse.building`).
"""

from collections.abc import Set
from uuid import UUID

from lakehouse import beginning, ending, incarnations
from lakehouse.beginning import GRACE_S
from lakehouse.core import incarnation, names
from lakehouse.core.errors import Conflict, Invalid, NotFound
from lakehouse.core.incarnation import Incarnation, Origin
from lakehouse.core.types import IndexParams
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

SHARDS_MAX = 1_024


async def current(store: ObjectStore, name: str) -> Incarnation | None:
    """The record that counts, a life or an end; None for a name that was never used.  Raises `Corrupt`."""
    return await incarnations.current(store, names.checked_index_name(name))


def check_shape(name: str, shards: int) -> None:
    """Raises `Invalid`."""
    names.checked_index_name(name)
    if not 1 <= shards <= SHARDS_MAX:
        raise Invalid(f"shards must be from 1 to {SHARDS_MAX}. shards=`{shards}`")


async def has_bare_file(store: ObjectStore, name: str) -> bool:
    """Whether an old system's file may wait to be adopted.

    Asked by listing: a degraded store may answer 404 for an object it has, but it lists it.
    """
    key = names.compatibility_key(name)
    return any(info.key == key for info in await store.list(key))


async def free_number(store: ObjectStore, runtime: Runtime, name: str) -> int:
    """The number of a new life; a life whose logs have ended is finished first.  Raises `Conflict` if one goes on."""
    now = await incarnations.current(store, name)
    if now is not None and now.alive:
        ended, now = now, await ending.finished(store, runtime, name, now)
        if now is None:
            raise Conflict(f"index already exists. name=`{name}`")
        if not now.alive:
            await ending.sweep(store, runtime, name, ended)
    if (now is None and await has_bare_file(store, name)) or (now is not None and now.alive):
        raise Conflict(f"index already exists. name=`{name}`")
    return 0 if now is None else now.number + 1


async def begin_empty(
    store: ObjectStore,
    runtime: Runtime,
    params: IndexParams,
    shards: int,
    owner: str | None = None,
    origin: Origin | None = None,
) -> Incarnation:
    """Begin an empty life; its record.

    Raises `Conflict` when the name lives, or an old file waits there; `Invalid`; `Unavailable(UNKNOWN)` when it may
    have begun.
    """
    name = params.name
    check_shape(name, shards)
    number = await free_number(store, runtime, name)
    record = incarnation.begin(number, runtime.uuid(), params, shards, owner, origin)
    try:
        await incarnations.create(store, runtime, name, record)
    except Conflict as error:
        raise Conflict(f"index already exists. name=`{name}`") from error
    return record


async def take_over(store: ObjectStore, runtime: Runtime, name: str, owner: str | None) -> Incarnation:
    """Make `owner` the owner of the life that a name lives, which goes on; its record.

    Raises `NotFound`, `Conflict` when it changed meanwhile, `Corrupt` for a record that cannot be read.
    """
    now = await current(store, name)
    if now is None or not now.alive:
        raise NotFound(f"no such index. name=`{name}`")
    if now.owner == owner:
        return now
    record = incarnation.taken_over(now, owner)
    try:
        await incarnations.create(store, runtime, name, record)
    except Conflict as error:
        raise Conflict(f"the index changed meanwhile: look at it again. name=`{name}`") from error
    return record


async def end(store: ObjectStore, runtime: Runtime, name: str) -> None:
    """End what a name lives without opening it, also when it is damaged: logs, record, copy for old tools, objects.

    Raises `NotFound` when it lives nothing; `Unavailable(UNKNOWN)`: repeat until it is gone.
    """
    now, ended = await end_records(store, runtime, names.checked_index_name(name))
    if now is not None and not now.alive:
        await store.delete(names.compatibility_key(name))
    for record in ended:
        await ending.sweep(store, runtime, name, record)


async def end_records(
    store: ObjectStore, runtime: Runtime, name: str
) -> tuple[Incarnation | None, list[Incarnation]]:
    """The logs and the record of `end`: the record that counts then (None: only an old file was there), and the lives
    that ended, which nobody has swept yet.
    """
    try:
        return await ending.end_unopened(store, runtime, name)
    except NotFound:
        if await incarnations.exists(store, name) or not await has_bare_file(store, name):
            raise
        await store.delete(names.compatibility_key(name))  # nobody has adopted it
        return None, []


async def sweep_unnamed(
    store: ObjectStore,
    runtime: Runtime,
    name: str,
    grace_s: float = GRACE_S,
    spared: Set[UUID] = frozenset(),
) -> list[UUID]:
    """Remove what killed builds left under a name: see `lakehouse.beginning.sweep_unnamed`."""
    return await beginning.sweep_unnamed(store, runtime, names.checked_index_name(name), grace_s, spared)


publish = beginning.publish
missing = beginning.missing
