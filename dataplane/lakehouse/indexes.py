"""Every index of one store: which live, opening and creating them, ending them, and merging one into another.

An index lives while the highest record under `inc/` begins a life.  Content comes first and the record last, so
a name never shows half an index.  What this module does not do: keep items (`lakehouse.shard`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID
from weakref import WeakValueDictionary

import numpy as np

from lakehouse import compatibility, incarnations
from lakehouse.collection import Collection
from lakehouse.core import incarnation, lhv1, names
from lakehouse.core.entry import ENTRY_VERSION, NO_DIGEST, Kind, Operation
from lakehouse.core.errors import (
    Conflict,
    Corrupt,
    Dropped,
    Invalid,
    LakehouseError,
    NotFound,
    Outcome,
    Unavailable,
)
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.lhv1 import Covered
from lakehouse.core.types import Batch, Consistency, IndexParams, MergeResult, check_vectors
from lakehouse.core.window import IdempotencyWindow
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.shard_index import ShardIndex
from lakehouse.log import Backoff, ShardLog
from lakehouse.runtime import Runtime
from lakehouse.snapshots import Image, ShardSnapshots
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

RECORD_ATTEMPTS = 8
SHARDS_MAX = 1_024
OPENS_AT_ONCE = 16


class Indexes:
    """The indexes of a store, opened on first use and kept open."""

    def __init__(self, store: ObjectStore, runtime: Runtime, settings: EngineSettings | None = None) -> None:
        self.store = store
        self.runtime = runtime
        self.settings = settings or EngineSettings()
        self._open: dict[str, Collection] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._sweeps: set[asyncio.Task[None]] = set()
        self._backoff = Backoff()
        self._scanned = False
        """Whether `_open` holds every index there is: all were opened and nobody else can create one."""

    # ---------------------------------------------------------------- listing

    async def names(self) -> list[str]:
        """Names of the indexes that live, sorted; old files waiting to be adopted count."""
        if self.store.exclusive and self._scanned:
            return sorted(self._open)
        level = await self.store.children(names.VECTORS)
        found = {prefix[len(names.VECTORS) : -1] for prefix in level.prefixes}
        gate = asyncio.Semaphore(OPENS_AT_ONCE)

        async def lives(name: str) -> bool:
            async with gate:
                record = await incarnations.current(self.store, name)
                return record is not None and record.alive

        alive = await asyncio.gather(*(lives(name) for name in found))
        bare = {
            info.key[len(names.VECTORS) : -len(names.LHV1_SUFFIX)]
            for info in level.objects
            if info.key.endswith(names.LHV1_SUFFIX)
        }
        for name in bare - found:
            if not _is_name(name):
                logger.warning("not an index: its name is not allowed. key=%s%s", names.VECTORS, name)
        return sorted(
            {name for name, alive_now in zip(found, alive, strict=True) if alive_now}
            | {name for name in bare - found if _is_name(name)}
        )

    async def open_all(self) -> list[str]:
        """Open every index, so that the first request finds them ready; names that could not be opened."""
        failed = []
        alive = await self.names()
        await self._remove_copies_left_behind(alive)
        for name in alive:
            try:
                await self.open(name)
            except NotFound:
                continue
            except LakehouseError as error:
                logger.error("index cannot be opened. index=%s error=%s", name, error)
                failed.append(name)
        self._scanned = self.store.exclusive and not failed
        return failed

    async def _remove_copies_left_behind(self, alive: list[str]) -> None:
        """Compatibility copies of dropped indexes, where a process died between the drop and the removal."""
        level = await self.store.children(names.VECTORS)
        lived = {f"{prefix[:-1]}{names.LHV1_SUFFIX}" for prefix in level.prefixes}
        living = {names.compatibility_key(name) for name in alive}
        for info in level.objects:
            if info.key in lived - living:
                await self._settle_copy(info.key[len(names.VECTORS) : -len(names.LHV1_SUFFIX)])

    async def _settle_copy(self, name: str) -> None:
        """Make the copy for old tools what it should be; a failure is only theirs."""
        try:
            await self._patiently(lambda: compatibility.settle(self.store, self.runtime, self.settings, name))
        except LakehouseError as error:
            logger.warning("compatibility copy failed. index=%s error=%s", name, error)

    def opened(self, name: str) -> Collection | None:
        """An index that is open already; never waits."""
        collection = self._open.get(name)
        return None if collection is None or collection.dropped else collection

    def all_opened(self) -> list[Collection]:
        """The indexes that are open, by name."""
        return [self._open[name] for name in sorted(self._open)]

    # ---------------------------------------------------------------- opening

    async def open(self, name: str) -> Collection:
        """The index of that name.  Raises `NotFound`; `Corrupt` when an old file cannot be read."""
        collection = self.opened(name)
        if collection is not None:
            return collection
        names.checked_index_name(name)
        async with self._lock(name):
            return await self._opened_or_open(name)

    async def _opened_or_open(self, name: str) -> Collection:
        known = self._open.get(name)
        if known is not None and not known.dropped:
            return known
        return await self._resolved(name)

    async def _resolved(self, name: str) -> Collection:
        """The life the store says the name has now, whatever this process thought.  Raises `NotFound`."""
        known = self._open.get(name)
        if known is not None and known.dropped:
            await self._finish_drop(known)
        record = await incarnations.current(self.store, name)
        if record is None:
            record = await self._adopt(name)
        known = self._open.get(name)
        if known is not None and known.record == record:
            return known
        if known is not None:  # another process ended that life, and this one had not heard of it
            del self._open[name]
            await known.close()
        if not record.alive:
            raise NotFound(f"no such index. name=`{name}`")
        collection = Collection(self.store, self.runtime, self.settings, name, record)
        await collection.open()
        if collection.dropped:
            await self._finish_drop(collection)
            raise NotFound(f"no such index. name=`{name}`")
        self._open[name] = collection
        return collection

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            self._locks[name] = lock = asyncio.Lock()
        return lock

    # --------------------------------------------------------------- creating

    async def create(self, params: IndexParams, shards: int = 1) -> Collection:
        """Create an empty index.  Raises `Conflict` if the name is taken, `Invalid`."""
        names.checked_index_name(params.name)
        if not 1 <= shards <= SHARDS_MAX:
            raise Invalid(f"shards must be from 1 to {SHARDS_MAX}. shards=`{shards}`")
        async with self._lock(params.name):
            number = await self._free_number(params.name)
            record = incarnation.begin(number, self.runtime.uuid(), params, shards)
            try:
                await incarnations.create(self.store, self.runtime, params.name, record)
            except Conflict as error:
                raise Conflict(f"index already exists. name=`{params.name}`") from error
            with _possibly_done(f"index may have been created. name=`{params.name}`"):
                collection = await self._resolved(params.name)
            await self._settle_copy(params.name)
            return collection

    async def _free_number(self, name: str) -> int:
        """The number of a new life.  Raises `Conflict` if one is going on."""
        record = await incarnations.current(self.store, name)
        if record is None:
            if not await self._has_bare_file(name):
                return 0
        elif not record.alive:
            return record.number + 1
        else:
            known = await self._dropped_meanwhile(name)
            if known:
                return record.number + 2
        raise Conflict(f"index already exists. name=`{name}`")

    async def _dropped_meanwhile(self, name: str) -> bool:
        """Whether the life the record begins has ended in its log; then its deletion is finished here."""
        try:
            await self._resolved(name)
        except NotFound:
            return True
        return False

    async def _patiently(self, attempt: Callable[[], Awaitable[None]]) -> None:
        for tries in range(1, RECORD_ATTEMPTS):
            try:
                return await attempt()
            except (Unavailable, NotFound) as error:
                logger.warning("store did not answer: trying again. attempt=%s error=%s", tries, error)
                await self.runtime.sleep(self._backoff.delay_s(tries, self.runtime))
        return await attempt()

    # --------------------------------------------------- adopting and importing

    async def _adopt(self, name: str) -> Incarnation:
        """Take over a bare file of the old system: content under a fresh uuid first, the record last."""
        if not await self._has_bare_file(name):
            raise NotFound(f"no such index. name=`{name}`")
        key = names.compatibility_key(name)
        data = await self.store.get(key)
        logger.info("adopting an old index file. key=%s bytes=%s", key, len(data))
        try:
            return await self._seed(name, 0, memoryview(data), keep_source=True)
        except Invalid as error:  # the request is right, the file is not
            raise Corrupt(f"an old index file cannot be adopted: {error.message} key=`{key}`") from error

    async def _has_bare_file(self, name: str) -> bool:
        """Asked by listing: a degraded store may answer 404 for an object it has, but it lists it."""
        key = names.compatibility_key(name)
        return any(info.key == key for info in await self.store.list(key))

    async def import_snapshot(self, name: str, path: Path) -> Collection:
        """A new index from an LHV1 file of any version.  Raises `Conflict`, `Corrupt`, `Invalid`."""
        names.checked_index_name(name)
        data = await self.runtime.run_io(path.read_bytes)
        async with self._lock(name):
            number = await self._free_number(name)
            await self._seed(name, number, memoryview(data), keep_source=False)
            with _possibly_done(f"index may have been imported. name=`{name}`"):
                collection = await self._resolved(name)
            await self._settle_copy(name)
            return collection

    async def _seed(self, name: str, number: int, data: memoryview, *, keep_source: bool) -> Incarnation:
        index, operations = await self.runtime.run_cpu(_index_of, name, data, self.settings)
        uuid = self.runtime.uuid()
        record = replace(incarnation.begin(number, uuid, index.params, 1), seeded=True)
        await self._seed_content(name, uuid, index, operations, bytes(data) if keep_source else None)
        try:
            await incarnations.create(self.store, self.runtime, name, record)
        except Conflict:
            winner = await incarnations.current(self.store, name)
            if winner is None or not keep_source:
                raise
            return winner
        return record

    async def _seed_content(
        self, name: str, uuid: UUID, index: ShardIndex, operations: int, source: bytes | None
    ) -> None:
        covered = Covered(uuid, 0, 0, 0, NO_DIGEST, operations, ENTRY_VERSION)
        image = Image(index.params, covered, len(index), index.view(), IdempotencyWindow().to_bytes())
        snapshots = ShardSnapshots(self.store, self.runtime, self.settings, name, uuid, 0)

        async def put() -> None:
            _, content = await snapshots.write(image, uuid)
            if isinstance(content, Path):
                await self.runtime.run_io(content.unlink, missing_ok=True)
            if source is not None:
                await self.store.put(
                    f"{names.index_prefix(name)}{uuid.hex}/adopted{names.LHV1_SUFFIX}", source
                )

        await self._patiently(put)

    # --------------------------------------------------------------- dropping

    async def drop(self, name: str) -> None:
        """End an index and remove its compatibility copy.  Raises `NotFound`."""
        names.checked_index_name(name)
        async with self._lock(name):
            try:
                collection = await self._resolved(name)
            except Corrupt:
                if await incarnations.current(self.store, name) is not None:
                    raise
                await self.store.delete(names.compatibility_key(name))  # a bare file that nobody can read
                return
            await self._finish_drop(collection)

    async def _finish_drop(self, collection: Collection) -> None:
        """End every shard's log, create the record that ends the life, and no other, then remove what is left."""
        name = collection.name
        await collection.drop()
        with _possibly_done(f"index is being dropped: repeat until it is gone. name=`{name}`"):
            try:
                await incarnations.create(self.store, self.runtime, name, incarnation.end(collection.record))
            except Conflict:
                logger.info("another process finished this deletion. index=%s", name)
        if self._open.get(name) is collection:
            del self._open[name]
        await self._settle_copy(name)
        await collection.close()
        sweep = self.runtime.spawn(self._sweep(name, collection.record), name=f"sweep {name}")
        self._sweeps.add(sweep)
        sweep.add_done_callback(self._sweeps.discard)

    async def _sweep(self, name: str, record: Incarnation) -> None:
        """Delete the DATA entries and snapshots of an ended life; FENCE and DROP entries and named ones stay."""
        assert record.uuid is not None
        try:
            for number in range(record.shards):
                log = ShardLog(self.store, self.runtime, name, record.uuid, number)
                for seq in await log.after(0):
                    if (await log.read_header(seq)).kind is Kind.DATA:
                        await log.delete([seq])
                snapshots = ShardSnapshots(self.store, self.runtime, self.settings, name, record.uuid, number)
                await snapshots.retire(await snapshots.refs())
        except LakehouseError as error:
            logger.warning("could not remove all of a dropped index. index=%s error=%s", name, error)

    # ---------------------------------------------------------------- merging

    async def merge(
        self, source: str, dest: str, *, clear_source: bool = False, replace: bool = False
    ) -> MergeResult:
        """Copy source's items into dest; idempotent.

        An id already in dest is skipped, or overwritten with `replace`.  `clear_source` then deletes from source what
        dest now holds, where it is still the version that was copied.  Raises `Invalid`, `NotFound`.
        """
        if not dest or source == dest:
            raise Invalid(
                f"merge needs a `dest` that differs from its source. source=`{source}` dest=`{dest}`"
            )
        origin, target = await self.fresh(source), await self.fresh(dest)
        if origin.params.dimension != target.params.dimension:
            raise Invalid(
                f"dimensions differ: source has {origin.params.dimension}. dest=`{target.params.dimension}`"
            )
        tally = MergeResult()
        async for batch, versions in origin.chunks():
            tally = await _merge_chunk(tally, origin, target, batch, versions, clear_source, replace)
        return MergeResult(
            tally.merged,
            tally.skipped_already_present,
            tally.failed,
            target.length,
            origin.length,
            tally.first_error,
            target.position,
        )

    async def renewed(self, name: str) -> bool:
        """Whether the name stands for another life than this process thought; that one is open then."""
        known = self._open.get(name)
        if known is None or self.store.exclusive:
            return False
        async with self._lock(name):
            return await self._resolved(name) is not known

    async def fresh(self, name: str) -> Collection:
        """The index of that name with everything acknowledged before this call."""
        collection = await self.open(name)
        try:
            await collection.refresh(Consistency.STRONG)
        except Dropped:
            collection = await self.open(name)
            await collection.refresh(Consistency.STRONG)
        return collection

    # ---------------------------------------------------------------- closing

    async def close(self) -> None:
        """Finish what was taken in every index, then stop."""
        await asyncio.gather(*(collection.close() for collection in self._open.values()))
        if self._sweeps:
            await asyncio.wait(self._sweeps, timeout=5)
        for sweep in self._sweeps:
            sweep.cancel()


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


@contextlib.contextmanager
def _possibly_done(what: str) -> Iterator[None]:
    """After the step that cannot be taken back: whatever fails now leaves the outcome unknown to the caller."""
    try:
        yield
    except (Unavailable, Conflict, NotFound) as error:
        raise Unavailable(f"{what} reason=`{error.message}`", outcome=Outcome.UNKNOWN) from error


def _index_of(name: str, data: memoryview, settings: EngineSettings) -> tuple[ShardIndex, int]:
    """The index in an LHV1 file of any version, and the operations its item versions count up to."""
    if lhv1.version_of(data) == 3:
        snapshot = lhv1.read_v3(data)
        sections = [section for section in snapshot.sections if section.kind != "idempotency"]
        params = replace(snapshot.params, name=name)
        return ShardIndex.restore(
            params, settings.index, settings.scratch, sections
        ), snapshot.covered.operations
    legacy = lhv1.read_legacy(data)
    index = ShardIndex(replace(legacy.params, name=name), settings.index, settings.scratch)
    if not np.isfinite(legacy.vectors).all():
        row = int(np.flatnonzero(~np.isfinite(legacy.vectors).all(axis=1))[0])
        raise Invalid(
            f"an item of the old file holds a NaN or an infinity: remove it first. id=`{legacy.ids[row]}`"
        )
    if len(legacy.ids):
        index.upsert(Batch(legacy.ids, legacy.vectors, legacy.metadata), 1)
    return index, len(legacy.ids)


def _is_name(name: str) -> bool:
    try:
        names.checked_index_name(name)
    except Invalid:
        return False
    return True
