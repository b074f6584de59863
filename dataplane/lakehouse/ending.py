"""Ending a life: its logs, its record, then what is stored of it; without opening it, so also one that is damaged.

A life has ended when every log of it ends in DROP; its record only says so to those who come later.  Each step may be
repeated, by anybody.  What this module does not do: the copy for old tools (`lakehouse.compatibility`), or what this
process has open (`lakehouse.indexes`).
"""

import contextlib
import logging
from collections.abc import Iterable, Iterator
from uuid import UUID

from lakehouse import incarnations, named_snapshots
from lakehouse.core import incarnation, names
from lakehouse.core.entry import Kind
from lakehouse.core.errors import Conflict, Corrupt, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import IndexParams
from lakehouse.log import Backoff, ShardLog
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

CHANGES_MAX = 8
"""Records of one name that may follow each other while one request looks at it."""
NOBODY = UUID(int=0)
"""The life that a record ends when nobody can read which one it was."""
BACKOFF = Backoff()


@contextlib.contextmanager
def possibly_done(what: str) -> Iterator[None]:
    """After the step that cannot be taken back: whatever fails now leaves the outcome unknown to the caller."""
    try:
        yield
    except (Unavailable, Conflict, NotFound) as error:
        raise Unavailable(f"{what} reason=`{error.message}`", outcome=Outcome.UNKNOWN) from error


async def end_logs(
    store: ObjectStore,
    runtime: Runtime,
    name: str,
    life: UUID,
    shards: Iterable[int],
    backoff: Backoff = BACKOFF,
) -> None:
    """Make a DROP the newest entry of every log, without replaying any."""
    for shard in shards:
        await ShardLog(store, runtime, name, life, shard).end(backoff)


async def finished(
    store: ObjectStore, runtime: Runtime, name: str, record: Incarnation
) -> Incarnation | None:
    """The record that counts once a deletion that has begun is finished; None when the life of `record` goes on.

    A deletion has begun as soon as one log ends in DROP.
    """
    life = uuid_of(record)
    for shard in range(record.shards):
        if await ShardLog(store, runtime, name, life, shard).ends_in_drop():
            await end_replaced(store, runtime, name, record)
            await end_logs(store, runtime, name, life, range(record.shards))
            return await record_end(store, runtime, name, record)
    return None


async def end_replaced(
    store: ObjectStore, runtime: Runtime, name: str, record: Incarnation
) -> Incarnation | None:
    """End the logs of the life that `record` replaces; that life's record, None when it replaces none."""
    if record.ends is None:
        return None
    ended = await incarnations.before(store, name, record)
    await end_logs(store, runtime, name, uuid_of(ended), range(ended.shards))
    return ended


async def record_end(store: ObjectStore, runtime: Runtime, name: str, record: Incarnation) -> Incarnation:
    """Create the record that ends a life, and no other; the record that counts then, another's if that was first."""
    with possibly_done(f"index is being dropped: repeat until it is gone. name=`{name}`"):
        for _ in range(CHANGES_MAX):
            end = incarnation.end(record)
            try:
                await incarnations.create(store, runtime, name, end)
                return end
            except Conflict:
                now = await incarnations.current(store, name)
            if now is None or now.uuid != record.uuid:
                logger.info("another process finished this deletion. index=%s", name)
                return now or end
            record = now  # the same life, taken over by another owner meanwhile
        raise Unavailable(f"the index keeps changing owners. name=`{name}`")


async def end_unopened(
    store: ObjectStore, runtime: Runtime, name: str
) -> tuple[Incarnation, list[Incarnation]]:
    """End what a name lives, opened by nobody or unreadable: the record that counts then, and the lives that ended.

    A life that replaces another meanwhile goes on with all that one held, so it is ended too.  Raises `NotFound` when
    the name lives nothing.
    """
    ended: list[Incarnation] = []
    for _ in range(CHANGES_MAX):
        try:
            record = await incarnations.current(store, name)
        except Corrupt:
            now, unreadable = await _end_unreadable(store, runtime, name)
            return now, ended + unreadable
        if record is None or not (record.alive or ended):
            raise NotFound(f"no such index. name=`{name}`")
        if not record.alive:
            return record, ended
        replaced = await end_replaced(store, runtime, name, record)
        await end_logs(store, runtime, name, uuid_of(record), range(record.shards))
        ended += [record] if replaced is None else [record, replaced]
        now = await record_end(store, runtime, name, record)
        if not now.alive or not await incarnations.was_replaced(store, name, uuid_of(record)):
            return now, ended
    raise Unavailable(f"the index keeps being replaced: repeat until it is gone. name=`{name}`")


async def _end_unreadable(
    store: ObjectStore, runtime: Runtime, name: str
) -> tuple[Incarnation, list[Incarnation]]:
    """End whatever the newest record, which is damaged, may have begun: every life that left anything."""
    number, data = await incarnations.newest(store, name)
    said = incarnation.salvaged(data)
    lives = set(await named_snapshots.lives(store, name)) | ({said.uuid} if said.uuid else set())
    ended = [
        Incarnation(number, life, IndexParams(name, 1), await _shards_of(store, name, life, said.shards))
        for life in sorted(lives)
    ]
    for record in ended:
        await end_logs(store, runtime, name, uuid_of(record), range(record.shards))
    end = Incarnation(number + 1, None, None, 0, ends=said.uuid or NOBODY)
    with possibly_done(f"index is being dropped: repeat until it is gone. name=`{name}`"):
        await incarnations.create(store, runtime, name, end)
    return end, ended


async def _shards_of(store: ObjectStore, name: str, life: UUID, said: int) -> int:
    """How many shards a life may have had: those that left something, at least as many as its record said."""
    level = await store.children(names.life_prefix(name, life))
    parts = (prefix.rstrip("/").rsplit("/", 1)[1] for prefix in level.prefixes)
    return max([said, *(int(part) + 1 for part in parts if part.isdecimal())])


async def sweep(store: ObjectStore, runtime: Runtime, name: str, record: Incarnation) -> None:
    """Delete what is stored of an ended life; FENCE and DROP entries stay, and named snapshots.

    Of a life that was replaced only once all that it acknowledged has been taken over.
    """
    life = uuid_of(record)
    try:
        for shard in range(record.shards):
            await _sweep_log(ShardLog(store, runtime, name, life, shard))
            await _delete_all(store, names.snapshot_prefix(name, life, shard))
        await _delete_all(store, names.pin_prefix(name, life))
        if record.continues is not None:  # its builders did, unless they were killed
            await store.delete(names.continues_key(name, life))
    except LakehouseError as error:
        logger.warning("could not remove all of a dropped index. index=%s error=%s", name, error)


async def _sweep_log(log: ShardLog) -> None:
    for seq in await log.after(0):
        try:
            kind = (await log.read_header(seq)).kind
        except (Corrupt, NotFound):  # perhaps a FENCE: it keeps its slot
            continue
        if kind is Kind.DATA:
            await log.delete([seq])


async def _delete_all(store: ObjectStore, prefix: str) -> None:
    for info in await store.list(prefix):
        await store.delete(info.key)


def uuid_of(record: Incarnation) -> UUID:
    """The life that a record begins."""
    assert record.uuid is not None
    return record.uuid
