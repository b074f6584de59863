"""Making the content of an index as a task: from a dataset, from files, or from the index itself.

Content comes first and the record last, and both are known by the life the task names: whoever does a task again finds
what is done, and goes on from there.  What this module does not do: read rows or files, or write content.
"""

import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from lakehouse import beginning, building, compatibility, errands, incarnations, seeding
from lakehouse.catalog import Catalog
from lakehouse.core import incarnation, named, names
from lakehouse.core.errors import Invalid, LakehouseError, NotFound
from lakehouse.core.incarnation import Incarnation, Origin
from lakehouse.core.types import IndexParams
from lakehouse.dataset_rows import Columns, Rows
from lakehouse.engine_settings import EngineSettings
from lakehouse.indexes import Indexes
from lakehouse.jobs.tasks import Build, Rebuild, Restore
from lakehouse.jobs.workplace import Workplace
from lakehouse.replacing import Start
from lakehouse.seeding import Seed
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

BUCKET = "s3://"


async def build(task: Build, shard: int, place: Workplace) -> Mapping[str, Any]:
    """Put one shard's content, and begin the life if it was the last: `{"shard", "published"}`.

    Raises `Invalid` naming a row that cannot be an item, `NotFound`, `Conflict` when the name lives (or by the end
    another life than the one to replace, or one that holds what writers gave it), or when the life of the task has
    ended already.
    """
    params, store, runtime = task.params, place.store, place.runtime
    if not shard < task.shards:
        raise Invalid(f"there is no such shard. shard=`{shard}` shards=`{task.shards}`")
    settings = EngineSettings(scratch=place.scratch)
    start = await errands.repeated(runtime, lambda: _start(task, place, settings), building.PATIENCE)
    if start is None:
        return {"shard": shard, "published": True}
    async with _dataset_store(task, place) as source:
        manifest = await Catalog(source, runtime).manifest(task.dataset, task.version)
        columns = Columns(task.id_column, task.vector_column, task.metadata_columns, params.dimension)
        rows = Rows(manifest, columns, source, runtime, place.scratch)
        total = manifest.row_count
        batches = rows.batches()
        async with contextlib.aclosing(batches):
            await building.build_shard(
                store,
                runtime,
                settings,
                params,
                task.shards,
                task.life,
                shard,
                batches,
                progress=lambda done: place.tell(_progress(shard, done, total)),
            )
    published = await errands.repeated(
        runtime, lambda: _published(task, shard, place, start), building.PATIENCE
    )
    return {"shard": shard, "published": published}


async def _start(task: Build, place: Workplace, settings: EngineSettings) -> Start | None:
    """What the life takes over; None when it has begun."""
    store, name = place.store, task.params.name
    if await beginning.has_begun(store, name, task.life, replaces=task.replaces):
        await building.forget_start(store, name, task.life)
        return None
    if not task.replaces:
        return Start(task.life)
    return await building.agreed_start(store, place.runtime, settings, name, task.life, adopts=task.adopts)


async def _published(task: Build, shard: int, place: Workplace, start: Start) -> bool:
    """Begin the life if every shard is there; whether it was."""
    absent = await beginning.missing(place.store, task.params.name, task.life, task.shards)
    if absent:
        logger.info("this shard is there, others are not yet. shard=%d missing=%s", shard, absent)
        return False
    record = _record(task.params, task.shards, task.life, task.owner, task.origin, start)
    await _publish(place, record, replaces=task.replaces, guards=task.replaces)
    await building.forget_start(place.store, task.params.name, task.life)
    return True


@contextlib.asynccontextmanager
async def _dataset_store(task: Build, place: Workplace) -> AsyncIterator[ObjectStore]:
    if task.dataset_url is None or task.dataset_url.rstrip("/") == place.store.url.rstrip("/"):
        yield place.store
        return
    async with place.other_store(task.dataset_url) as store:
        yield store


async def restore(task: Restore, place: Workplace) -> Mapping[str, Any]:
    """Begin a life with what LHV1 files hold: `{"items"}`.

    Raises `Conflict` when the name lives or the task's life has ended already, `NotFound`, `Corrupt` for a damaged
    file, `Invalid` when the files are not all of one index, or have another dimension or distance than the index shall
    have.
    """
    params, store, runtime = task.params, place.store, place.runtime
    if await beginning.has_begun(store, params.name, task.life, replaces=False):
        return {}
    settings = EngineSettings(scratch=place.scratch)
    place.tell("reading the files")
    async with contextlib.AsyncExitStack() as stack:
        seeds = await _restored(task, place, settings, await _files(task, place, stack))
        items = sum(len(seed.index) for seed in seeds)
        for shard in range(len(seeds)):
            place.tell(f"shard {shard} of {task.shards}: putting {items:,} items")
            # Each leaves memory when it is there.
            await seeding.write(
                store, runtime, settings, params.name, task.life, shard, seeds.pop(0), writer=runtime.uuid()
            )
    record = _record(params, task.shards, task.life, task.owner, task.origin)
    await _publish(place, record, replaces=False)
    return {"items": items}


async def _restored(
    task: Restore, place: Workplace, settings: EngineSettings, files: tuple[str | Path, ...]
) -> list[Seed]:
    """What the files hold, over the shards the index shall have."""
    params, runtime = task.params, place.runtime
    if not files:
        raise NotFound(f"there are no files to restore from. index=`{params.name}`")
    found = seeding.in_order(
        [await seeding.read(place.store, runtime, settings, params.name, file) for file in files]
    )
    held = found[0].params
    if (held.dimension, held.distance) != (params.dimension, params.distance):
        raise Invalid(
            f"the snapshot has {held.dimension} dimensions and {held.distance} distance, the index shall have "
            f"{params.dimension} and {params.distance}. name=`{params.name}`"
        )
    place.tell("building the graphs")
    if seeding.fits(found, task.shards, params):
        return await seeding.kept(runtime, settings, found, params)
    return await seeding.redistributed(runtime, settings, found, params, task.shards)


async def _files(task: Restore, place: Workplace, stack: contextlib.AsyncExitStack) -> tuple[str | Path, ...]:
    """Keys of the index's store, or files brought from another bucket, which go with `stack`."""
    if task.uri is None:
        return tuple(task.files or ())
    uri, inside = task.uri, f"{place.store.url.rstrip('/')}/"
    if uri.startswith(inside):
        return await _keys(place.store, uri.removeprefix(inside))
    if not uri.startswith(BUCKET):
        if "://" in uri or uri.startswith("/"):
            raise Invalid(
                f"a snapshot in a cluster is `s3://bucket/key`, or a key of the index's store. uri=`{uri}`"
            )
        return await _keys(place.store, uri)
    bucket, _, key = uri.removeprefix(BUCKET).partition("/")
    store = await stack.enter_async_context(place.other_store(f"{BUCKET}{bucket}"))
    return tuple([await _brought(store, each, place, stack) for each in await _keys_outside(store, key)])


async def _keys(store: ObjectStore, key: str) -> tuple[str, ...]:
    """The files that the record of a named snapshot lists, or the one file itself."""
    if key.endswith(".json"):
        return tuple(file.key for file in named.decode(await store.get(key)))
    return (key,)


async def _keys_outside(store: ObjectStore, key: str) -> tuple[str, ...]:
    """As `_keys`, of a store opened at its bucket's root: keys in the record are below the prefix it was written in."""
    prefix = key.rpartition(names.VECTORS)[0]
    return tuple(each if each == key else f"{prefix}{each}" for each in await _keys(store, key))


async def _brought(store: ObjectStore, key: str, place: Workplace, stack: contextlib.AsyncExitStack) -> Path:
    path = place.scratch / f"restored-{place.runtime.uuid().hex}{names.LHV1_SUFFIX}"
    stack.push_async_callback(place.runtime.run_io, path.unlink, missing_ok=True)
    await store.download(key, path)
    return path


async def rebuild(task: Rebuild, place: Workplace) -> Mapping[str, Any]:
    """Exchange the life for one linked by other parameters: `{"items"}`, empty when it has them already.

    Raises `NotFound`, `Invalid` for another dimension or distance, `Conflict` when another build was first.
    """
    indexes = Indexes(place.store, place.runtime, EngineSettings(scratch=place.scratch))
    wanted = replace(task.params, name=task.index)
    now = await incarnations.current(place.store, task.index)
    if now is None or now.params is None:
        raise NotFound(f"no such index. name=`{task.index}`")
    if (now.params.m, now.params.ef_construction) == (wanted.m, wanted.ef_construction):
        return {}
    try:
        items = 0

        def tell(taken: int) -> None:
            nonlocal items
            items = taken
            place.tell(f"{taken:,} items")

        await building.rebuild(indexes, wanted, progress=tell, serve=False)
        return {"items": items}
    finally:
        await indexes.close()


async def _publish(place: Workplace, record: Incarnation, *, replaces: bool, guards: bool = False) -> None:
    """Begin the life.  The logs of one that it replaces are left to the pod that first serves the new one, so that the
    old one is served until then."""
    assert record.params is not None
    store, runtime, name = place.store, place.runtime, record.params.name
    settings = EngineSettings(scratch=place.scratch)
    await building.publish(
        store, runtime, record, replaces=replaces, ends_logs=False, settings=settings, guards=guards
    )
    try:
        await compatibility.settle(store, runtime, EngineSettings(scratch=place.scratch), name)
    except LakehouseError as error:  # only old tools miss it
        logger.warning("compatibility copy failed. index=%s error=%s", name, error)


def _record(
    params: IndexParams,
    shards: int,
    life: UUID,
    owner: str | None,
    origin: Origin | None,
    start: Start | None = None,
) -> Incarnation:
    """What `publish` gives its number."""
    ends, continues = (None, None) if start is None else (start.ends, start.continues)
    return incarnation.begin(0, life, params, shards, owner, origin, ends, seeded=True, continues=continues)


def _progress(shard: int, done: int, total: int | None) -> str:
    return f"shard {shard}: {done:,} rows" + ("" if total is None else f" of {total:,}")
