"""Merging one open index into another, chunk by chunk: copied first, then cleared where nothing changed meanwhile.

An item that dest may not hold, and a chunk that fails, stay in source and are counted.  What this module does not do:
open indexes (`lakehouse.indexes`).
"""

import asyncio
import contextlib
from dataclasses import replace

from lakehouse.collection import Collection
from lakehouse.core.entry import Operation
from lakehouse.core.errors import Invalid, LakehouseError
from lakehouse.core.types import Batch, Consistency, IndexParams, MergeResult, check_vectors


async def merge_into(
    origin: Collection, target: Collection, *, clear_source: bool = False, replace: bool = False
) -> MergeResult:
    """Copy the items of one open index into another: see `Indexes.merge`.  Raises `Invalid`."""
    if origin.params.dimension != target.params.dimension:
        raise Invalid(
            f"dimensions differ: source has {origin.params.dimension}. dest=`{target.params.dimension}`"
        )
    tally = MergeResult()
    async for batch, versions in origin.chunks():
        tally = await _merge_chunk(tally, origin, target, batch, versions, clear_source, replace)
    with contextlib.suppress(LakehouseError):  # lengths where another process wrote
        await asyncio.gather(target.refresh(Consistency.STRONG), origin.refresh(Consistency.STRONG))
    return MergeResult(
        tally.merged,
        tally.skipped_already_present,
        tally.failed,
        target.length,
        origin.length,
        tally.first_error,
        target.position,
    )


async def _merge_chunk(
    tally: MergeResult,
    origin: Collection,
    target: Collection,
    batch: Batch,
    versions: tuple[int, ...],
    clear_source: bool,
    overwrite: bool,
) -> MergeResult:
    """Copy one chunk, then clear it; an error counts its items as failed and leaves them in source."""
    operation = Operation.UPSERT if overwrite else Operation.ADD_IF_ABSENT
    try:
        batch, versions, refused = _storable(batch, versions, target.params)
        tally = replace(
            tally,
            failed=tally.failed + len(refused),
            first_error=tally.first_error or next(iter(refused), None),
        )
        if not batch.ids:
            return tally
        if overwrite:  # an item without metadata must not keep dest's
            batch = Batch(batch.ids, batch.vectors, tuple(value or b"" for value in batch.metadata))
        written = await target.write(operation, batch)
        if clear_source:
            await origin.delete_versions(batch.ids, versions)
    except LakehouseError as error:
        first_error = tally.first_error or error.message
        return replace(tally, failed=tally.failed + len(batch), first_error=first_error)
    return replace(
        tally,
        merged=tally.merged + written.added,
        skipped_already_present=tally.skipped_already_present + written.skipped,
    )


def _storable(
    batch: Batch, versions: tuple[int, ...], params: IndexParams
) -> tuple[Batch, tuple[int, ...], list[str]]:
    """What `params` allows of a batch, with its versions, and why the rest is refused."""
    try:
        check_vectors(batch.vectors, params.distance)
        return batch, versions, []
    except Invalid:
        pass
    rows, refused = [], []
    for j, item_id in enumerate(batch.ids):
        try:
            check_vectors(batch.vectors[j : j + 1], params.distance, f"vector of {item_id}")
            rows.append(j)
        except Invalid as error:
            refused.append(error.message)
    allowed = Batch(
        tuple(batch.ids[j] for j in rows), batch.vectors[rows], tuple(batch.metadata[j] for j in rows)
    )
    return allowed, tuple(versions[j] for j in rows), refused
