"""Building an index from a source: its content is put whole before its record, so a name never shows half an index.

A build may replace a life that goes on being served and written to until the new one is complete; then one step
exchanges them.  Several processes may build one index, a shard each.  What this module does not do: read sources
(whoever calls gives batches), or decide when to build.
"""

import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from lakehouse import beginning, carrying, ending, errands, incarnations, seeding
from lakehouse.collection import Collection
from lakehouse.core import names
from lakehouse.core.errors import Conflict, Corrupt, Dropped, Outcome, Unavailable
from lakehouse.core.incarnation import Continues, Incarnation, Origin
from lakehouse.core.types import Batch, IndexParams
from lakehouse.engine_settings import EngineSettings
from lakehouse.indexes import Indexes
from lakehouse.log import Backoff
from lakehouse.replacing import Start
from lakehouse.runtime import Runtime
from lakehouse.shard import Shard
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

PATIENCE = Backoff(first_s=0.25, most_s=30.0)
"""Waits between attempts at a step of a build of several processes: a minute in all, beside hours for the whole."""

missing = beginning.missing


async def build(
    indexes: Indexes,
    params: IndexParams,
    shards: int,
    batches: AsyncIterator[Batch],
    *,
    owner: str | None = None,
    origin: Origin | None = None,
    replaces: bool = False,
    last_wins: bool = False,
    progress: Callable[[int], None] | None = None,
    start: Start | None = None,
) -> Collection:
    """Make an index from all items of `batches` (float32 (n, dimension) each), with its graphs built.

    `replaces`: the name may live; then exactly the life it has when this begins is exchanged for the new one, in one
    step, and no search fails meanwhile.  Its content goes; what it acknowledges after this has begun is taken over.
    `start` is what `Indexes.vacancy` gave, for who has looked at the old life before.  `progress` is told how many rows
    were taken so far.  `last_wins`: of an id that occurs twice the last row is kept.

    Raises `Conflict` when the name lives (or, with `replaces`, lives another life by the end), `Invalid` naming the
    row and its id for an id that occurs twice, a wrong dimension, or a vector that holds NaN; nothing is made then.
    Raises `Unavailable(UNKNOWN)` when the new life may have begun: it will be completed.
    """
    if start is None:
        start = await indexes.vacancy(params.name, shards, replaces=replaces)
    async with indexes.abandoned_on_failure(params.name, start, only_pin=True):
        filling = seeding.Filling(indexes.runtime, indexes.settings, params, shards, last_wins=last_wins)
        await _filled(filling, batches, progress)
        seeds = await filling.settled()
    return await indexes.begin(params, seeds, start, owner=owner, origin=origin)


async def _filled(
    filling: seeding.Filling, batches: AsyncIterator[Batch], progress: Callable[[int], None] | None
) -> None:
    async for batch in batches:
        if len(batch):
            await filling.add(batch)
        if progress is not None:
            progress(filling.rows)


async def rebuild(
    indexes: Indexes,
    params: IndexParams,
    *,
    progress: Callable[[int], None] | None = None,
    serve: bool = True,
) -> Incarnation:
    """Link an index anew by other parameters (`m`, `ef_construction`, `ef_search`), while it is read and written.

    The new life goes on from the old one's items, versions and idempotency keys; what is acknowledged meanwhile is
    taken over.  Whoever writes to the old life, in any process, is refused by its logs' end, finds the new life, and
    writes there.  `serve` is false in a process that serves nobody: then the old logs are left for whoever opens the
    new life first, so that writes wait for the exchange only.  `progress` is told how many items were taken so far.

    Raises `NotFound`, `Invalid` for another dimension or distance, `Conflict` when another build was first;
    `Unavailable(UNKNOWN)` when the new life may have begun: it will be completed.
    """
    old, start, images = await indexes.images(params.name)
    taken = 0

    def tell(rows: int) -> None:
        nonlocal taken
        taken += rows
        if progress is not None:
            progress(taken)

    async with indexes.abandoned_on_failure(params.name, start, only_pin=True):
        seeding.check_same_kind(old.params, params)
        seeds = [
            await seeding.rebuilt(indexes.runtime, indexes.settings, image, params, tell) for image in images
        ]
        images.clear()
    begun = await indexes.begin(
        params, seeds, start, owner=old.record.owner, origin=old.record.origin, serve=serve
    )
    return begun.record


@dataclass(frozen=True, slots=True)
class Built:
    """What one process put."""

    rows: int
    """Rows that the source gave, of all shards."""
    items: int
    """Items of this shard."""


async def build_shard(
    store: ObjectStore,
    runtime: Runtime,
    settings: EngineSettings,
    params: IndexParams,
    shards: int,
    life: UUID,
    shard: int,
    batches: AsyncIterator[Batch],
    *,
    last_wins: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Built | None:
    """Put the content of one shard of a life that several processes build; None when it is there already.

    Every process reads the whole source, in the same order: so whoever builds a shard gives its items the same
    versions.  Whoever finds that nothing is `missing` may `publish`.  Raises as `build` does, and `Corrupt`.
    """
    absent = await errands.repeated(runtime, lambda: missing(store, params.name, life, shards), PATIENCE)
    if shard not in absent:
        return None
    filling = seeding.Filling(runtime, settings, params, shards, last_wins=last_wins, only=shard)
    await _filled(filling, batches, progress)
    seed = (await filling.settled(only=shard))[shard]
    items = len(seed.index)
    writer = runtime.uuid()

    async def write() -> None:
        await seeding.write(store, runtime, settings, params.name, life, shard, seed, writer=writer)

    await errands.repeated(runtime, write, PATIENCE)
    return Built(filling.rows, items)


async def publish(
    store: ObjectStore,
    runtime: Runtime,
    record: Incarnation,
    *,
    replaces: bool,
    ends_logs: bool = True,
    settings: EngineSettings | None = None,
    guards: bool = False,
) -> Incarnation:
    """Begin a life whose content several processes have put: see `lakehouse.beginning.publish`.

    Where the life to replace was never opened, what it is to take over of the one before goes there first, one shard in
    memory at a time; a damaged one is replaced without.
    """
    assert record.params is not None
    name, over_damage = record.params.name, False
    for _ in range(ending.CHANGES_MAX):
        try:
            return await beginning.publish(
                store,
                runtime,
                record,
                replaces=replaces,
                ends_logs=ends_logs,
                over_damage=over_damage,
                guards=guards,
            )
        except beginning.NotComplete as error:
            over_damage = not await _completed(store, runtime, settings or EngineSettings(), name, error.life)
    raise Unavailable(f"the index keeps changing. name=`{name}`", outcome=Outcome.NOT_COMMITTED)


async def agreed_start(
    store: ObjectStore, runtime: Runtime, settings: EngineSettings, name: str, life: UUID, *, adopts: bool
) -> Start:
    """What `life`, which several processes are to build, replaces and takes over, so that no write goes unasked.

    An index that no dataset filled must be empty when the first of its builders looks, unless what it holds is given
    up (`adopts`).  It is pinned, and all that it acknowledges from there on is taken over; all builders agree about
    where that is.  Where there is nothing to replace, or only what a dataset gave and must not be more by then
    (`guards` of `publish`), the life takes over what comes after it is published.

    Raises `Conflict` for an index that may hold what writers gave it, or that was dropped, or that another build has
    replaced; `Corrupt`.
    """
    for _ in range(ending.CHANGES_MAX):
        now = await incarnations.current(store, name)
        if now is None or (now.is_given and not adopts) or now.uuid == life:
            return Start(life)
        if not now.alive:
            raise beginning.dropped(name)
        if await ending.finished(store, runtime, name, now) is not None:
            continue
        start = await _agreed(store, name, life, adopts=adopts)
        if start is None:
            await beginning.pin(store, name, ending.uuid_of(now), life)
            positions = await _given_up_at(store, runtime, settings, name, now, adopts=adopts)
            if await incarnations.current(store, name) != now:  # perhaps the others have begun the life
                continue
            if positions is not None:
                await _agree(store, runtime, name, Start(life, now.uuid, Continues(positions)))
            elif await _agreed(store, name, life, adopts=adopts) is None:
                beginning.check_given(name, now)
            continue
        if start.ends != now.uuid:
            raise Conflict(f"another build was first: look at the index again. name=`{name}`")
        return start
    raise Unavailable(f"the index keeps changing. name=`{name}`", outcome=Outcome.NOT_COMMITTED)


async def _given_up_at(
    store: ObjectStore,
    runtime: Runtime,
    settings: EngineSettings,
    name: str,
    record: Incarnation,
    *,
    adopts: bool,
) -> tuple[int, ...] | None:
    """Per shard of a life, the end of its log, where all it holds may go; None where that holds what may not.

    What it is to take over of the one before is there first, else it would pass for what came later.
    """
    if "dataset" in (record.origin or {}) and not adopts:
        return None
    await ending.end_replaced(store, runtime, name, record)
    whole = await beginning.is_complete(store, runtime, name, record)
    whole = whole or await _completed(store, runtime, settings, name, record)
    if adopts:  # of a damaged one as far as that can be read
        return await beginning.ends_of_logs(store, runtime, name, record)
    if not whole:
        raise Corrupt(f"the index to replace is damaged. name=`{name}`")
    return await _empty_at(store, runtime, settings, name, record)


async def _empty_at(
    store: ObjectStore, runtime: Runtime, settings: EngineSettings, name: str, record: Incarnation
) -> tuple[int, ...] | None:
    """Per shard of a life, a position at which it is empty: the end of its log; None where it holds anything."""
    positions = []
    for number in range(record.shards):
        shard = Shard(store, runtime, settings, name, record, number)
        try:
            await shard.open()
            shard.refuse_dropped()
            if len(shard.replica.index):
                return None
            positions.append(shard.replica.position)
        finally:
            await shard.close()
    return tuple(positions)


async def _agreed(store: ObjectStore, name: str, life: UUID, *, adopts: bool) -> Start | None:
    """What the first of the builders has said; None when none has, or the life has begun meanwhile."""
    key = names.continues_key(name, life)
    if not await store.list(key):
        return None
    try:
        body = json.loads(await incarnations.read_listed(store, key))
        return Start(life, UUID(hex=body["ends"]), Continues(tuple(body["positions"]), empty=not adopts))
    except Unavailable:
        if await store.list(key):
            raise
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"what the builders agreed about cannot be read. key=`{key}`") from error


async def _agree(store: ObjectStore, runtime: Runtime, name: str, start: Start) -> None:
    """Say it to the other builders, unless one of them was first: then what that one says is so."""
    assert start.ends is not None
    assert start.continues is not None
    body = {"ends": start.ends.hex, "positions": list(start.continues.positions)}
    data = json.dumps(body, separators=(",", ":")).encode()
    with contextlib.suppress(Conflict):
        await incarnations.create_at(store, runtime, names.continues_key(name, start.life), data)


async def forget_start(store: ObjectStore, name: str, life: UUID) -> None:
    """The life has begun: its record says what it takes over."""
    await store.delete(names.continues_key(name, life))


async def _completed(
    store: ObjectStore, runtime: Runtime, settings: EngineSettings, name: str, life: Incarnation
) -> bool:
    """Let a life take over what it continues; False when it is damaged."""
    for number in range(life.shards):
        shard = Shard(store, runtime, settings, name, life, number)
        try:
            await shard.open()
            await carrying.carry(shard, life, complete=True)
        except Dropped:
            continue
        except Corrupt as error:
            logger.error("a damaged life is replaced. index=%s error=%s", name, error)
            return False
        finally:
            await shard.close()
    return True


async def restore(
    indexes: Indexes,
    name: str,
    files: Sequence[str | Path],
    *,
    shards: int,
    owner: str | None = None,
    origin: Origin | None = None,
    params: IndexParams | None = None,
) -> Collection:
    """A new index from LHV1 files: one of any version, or those of a named snapshot, one per shard it had.

    A `str` is a key in the store, a `Path` a local file.  `params` are what it shall have; by default those in the
    files.  Raises `Conflict` when the name lives, `Corrupt` for a damaged file, `NotFound` for none, and `Invalid`
    when the files are not all of one index or differ from `params` in dimension or distance; nothing is made then.
    """
    return await indexes.restore(name, files, shards=shards, owner=owner, origin=origin, params=params)
