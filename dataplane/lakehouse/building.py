"""Building an index from a source: its content is put whole before its record, so a name never shows half an index.

A build may replace a life that goes on being served and written to until the new one is complete; then one step
exchanges them.  Several processes may build one index, a shard each.  What this module does not do: read sources
(whoever calls gives batches), or decide when to build.
"""

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from lakehouse import beginning, carrying, ending, seeding
from lakehouse.collection import Collection
from lakehouse.core.errors import Corrupt, Dropped, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation, Origin
from lakehouse.core.types import Batch, IndexParams
from lakehouse.engine_settings import EngineSettings
from lakehouse.indexes import Indexes
from lakehouse.replacing import Start
from lakehouse.runtime import Runtime
from lakehouse.shard import Shard
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

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
    if shard not in await beginning.missing(store, params.name, life, shards):
        return None
    filling = seeding.Filling(runtime, settings, params, shards, last_wins=last_wins, only=shard)
    await _filled(filling, batches, progress)
    seed = (await filling.settled(only=shard))[shard]
    items = len(seed.index)
    await seeding.write(store, runtime, settings, params.name, life, shard, seed, writer=runtime.uuid())
    return Built(filling.rows, items)


async def publish(
    store: ObjectStore,
    runtime: Runtime,
    record: Incarnation,
    *,
    replaces: bool,
    ends_logs: bool = True,
    settings: EngineSettings | None = None,
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
                store, runtime, record, replaces=replaces, ends_logs=ends_logs, over_damage=over_damage
            )
        except beginning.NotComplete as error:
            over_damage = not await _completed(store, runtime, settings or EngineSettings(), name, error.life)
    raise Unavailable(f"the index keeps changing. name=`{name}`", outcome=Outcome.NOT_COMMITTED)


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
