"""Building an index from a source: its content is put whole before its record, so a name never shows half an index.

A build may replace a life that goes on being served until the new one is complete; then one step exchanges them.  What
this module does not do: read sources (whoever calls gives batches), or decide when to build.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from lakehouse import seeding
from lakehouse.collection import Collection
from lakehouse.core.incarnation import Origin
from lakehouse.core.types import Batch, IndexParams
from lakehouse.indexes import Indexes


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
) -> Collection:
    """Make an index from all items of `batches` (float32 (n, dimension) each), with its graphs built.

    `replaces`: the name may live; then exactly the life it has when this begins is exchanged for the new one, in one
    step, and no search fails meanwhile.  `progress` is told how many rows were taken so far.  `last_wins`: of an id
    that occurs twice the last row is kept.

    Raises `Conflict` when the name lives (or, with `replaces`, lives another life by the end), `Invalid` naming the
    row and its id for an id that occurs twice, a wrong dimension, or a vector that holds NaN; nothing is made then.
    Raises `Unavailable(UNKNOWN)` when the new life may have begun: repeating the build completes it.
    """
    replaced = await indexes.vacancy(params.name, shards, replaces=replaces)
    filling = seeding.Filling(indexes.runtime, indexes.settings, params, shards, last_wins=last_wins)
    async for batch in batches:
        if len(batch):
            await filling.add(batch)
        if progress is not None:
            progress(filling.rows)
    seeds = await filling.settled()
    return await indexes.begin(params, seeds, owner=owner, origin=origin, replaces=replaced)


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
