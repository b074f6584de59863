"""Every index of one store: which live, opening and creating them, ending them, and merging one into another.

An index lives while the highest record under `inc/` begins a life.  Content comes first and the record last, so
a name never shows half an index.  A record may begin a life and end another: nobody serves the new life before the logs
of the old one have ended.  What this module does not do: keep items (`lakehouse.shard`).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

from lakehouse import compatibility, incarnations, named_snapshots, seeding
from lakehouse.collection import Collection
from lakehouse.core import incarnation, names
from lakehouse.core.entry import Kind, Operation
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
from lakehouse.core.incarnation import Incarnation, Origin
from lakehouse.core.types import Batch, Consistency, IndexParams, MergeResult, check_vectors
from lakehouse.engine_settings import EngineSettings
from lakehouse.log import Backoff, ShardLog
from lakehouse.named_snapshots import NamedSnapshot
from lakehouse.runtime import Runtime
from lakehouse.seeding import Seed
from lakehouse.snapshots import ShardSnapshots
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

RECORD_ATTEMPTS = 8
SHARDS_MAX = 1_024
OPENS_AT_ONCE = 16
LIVES_AT_ONCE_MAX = 8
"""Lives of one name that may follow each other while one request looks it up."""
NOBODY = UUID(int=0)
"""The life that a record ends when nobody can read which one it was."""
COMPLETIONS_MAX = 1_000
COMPLETION_RETRY = Backoff(first_s=0.2, most_s=60.0)
"""Waits between attempts to complete a replacement whose record may be there; the old life is served meanwhile."""


class Indexes:
    """The indexes of a store, opened on first use and kept open."""

    def __init__(self, store: ObjectStore, runtime: Runtime, settings: EngineSettings | None = None) -> None:
        self.store = store
        self.runtime = runtime
        self.settings = settings or EngineSettings()
        self._open: dict[str, Collection] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._suspended: set[str] = set()
        self._sweeps: set[asyncio.Task[None]] = set()
        self._completions: set[asyncio.Task[None]] = set()
        self._backoff = Backoff()
        self._scanned = False
        """Whether `_open` holds every index there is: all were opened and nobody else can create one."""

    # ---------------------------------------------------------------- listing

    async def names(self) -> list[str]:
        """Names of the indexes that live, sorted; old files waiting to be adopted count."""
        if self.store.exclusive and self._scanned:
            return sorted(self._open.keys() | self._suspended)
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
            if name in self._suspended:
                continue
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
        if name in self._suspended:
            raise _suspended(name)
        async with self._lock(name):
            return await self._opened_or_open(name)

    async def _opened_or_open(self, name: str) -> Collection:
        known = self._open.get(name)
        if known is not None and not known.dropped:
            return known
        return await self._resolved(name)

    async def _resolved(self, name: str) -> Collection:
        """The life the store says the name has now, whatever this process thought.  Raises `NotFound`."""
        if name in self._suspended:
            raise _suspended(name)
        for _ in range(LIVES_AT_ONCE_MAX):
            known = self._open.get(name)
            if known is not None and known.dropped:
                await self._finish_drop(known)
            record = await incarnations.current(self.store, name) or await self._adopt(name)
            known = self._open.get(name)
            if known is not None and known.record.uuid == record.uuid:
                known.record = record  # the same life, perhaps with another owner
                return known
            if not record.alive:
                await self._forget(name)
                raise NotFound(f"no such index. name=`{name}`")
            collection = await self._opened_life(name, record)
            if collection is None:  # its log has ended: what is there now?
                continue
            try:
                await self._end_replaced(name, record)
            except BaseException:
                await collection.close()
                raise
            self._exchange(name, collection)
            return collection
        raise Unavailable(f"the index keeps changing. name=`{name}`", outcome=Outcome.NOT_COMMITTED)

    async def _opened_life(self, name: str, record: Incarnation) -> Collection | None:
        """A life in memory; None when its logs have ended: its deletion is finished then."""
        collection = Collection(self.store, self.runtime, self.settings, name, record)
        try:
            await collection.open()
        except BaseException:
            await collection.close()
            raise
        if not collection.dropped:
            return collection
        await self._finish_drop(collection)
        return None

    def _exchange(self, name: str, collection: Collection) -> None:
        """Serve `collection` under its name from this step on; what was served before finishes and goes."""
        known = self._open.get(name)
        self._open[name] = collection
        if known is not None:
            self._later(known.close(), f"close {name}")

    async def _forget(self, name: str) -> None:
        """Another process ended the life this one had open."""
        known = self._open.pop(name, None)
        if known is not None:
            await known.close()

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            self._locks[name] = lock = asyncio.Lock()
        return lock

    # --------------------------------------------------------------- creating

    async def create(
        self,
        params: IndexParams,
        shards: int = 1,
        owner: str | None = None,
        origin: Origin | None = None,
    ) -> Collection:
        """Create an empty index.  Raises `Conflict` if the name is taken, `Invalid`."""
        _check_shape(params.name, shards)
        async with self._lock(params.name):
            number = await self._free_number(params.name)
            record = incarnation.begin(number, self.runtime.uuid(), params, shards, owner, origin)
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
        if record is not None and record.alive and name not in self._suspended:
            record = await self._ended_meanwhile(name)
        if record is None and not await self._has_bare_file(name):
            return 0
        if record is not None and not record.alive:
            return record.number + 1
        raise Conflict(f"index already exists. name=`{name}`")

    async def _ended_meanwhile(self, name: str) -> Incarnation | None:
        """The record that counts once a life whose log has ended is finished."""
        try:
            return (await self._resolved(name)).record
        except NotFound:
            return await incarnations.current(self.store, name)

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
            return await self._seed(name, data)
        except Invalid as error:  # the request is right, the file is not
            raise Corrupt(f"an old index file cannot be adopted: {error.message} key=`{key}`") from error

    async def _has_bare_file(self, name: str) -> bool:
        """Asked by listing: a degraded store may answer 404 for an object it has, but it lists it."""
        key = names.compatibility_key(name)
        return any(info.key == key for info in await self.store.list(key))

    async def _seed(self, name: str, data: bytes) -> Incarnation:
        """The content of an old file and a byte copy of it, then the record; the loser of a race uses the winner's."""
        found = await self.runtime.run_cpu(seeding.found_in, name, memoryview(data), self.settings)
        uuid = self.runtime.uuid()
        record = incarnation.begin(0, uuid, found.params, 1, seeded=True)
        await self._seed_content(name, uuid, [found.seed])
        key = f"{names.life_prefix(name, uuid)}adopted{names.LHV1_SUFFIX}"
        await self._patiently(lambda: self.store.put(key, data))
        try:
            await incarnations.create(self.store, self.runtime, name, record)
        except Conflict:
            winner = await incarnations.current(self.store, name)
            if winner is None:
                raise
            return winner
        return record

    async def _seed_content(self, name: str, uuid: UUID, seeds: list[Seed]) -> None:
        """Put the content of every shard; `seeds` is emptied, so that each leaves memory when it is there."""
        for shard in range(len(seeds)):
            await self._patiently(
                partial(
                    seeding.write, self.store, self.runtime, self.settings, name, uuid, shard, seeds.pop(0)
                )
            )

    async def import_snapshot(self, name: str, path: Path) -> Collection:
        """A new index from an LHV1 file of any version.  Raises `Conflict`, `Corrupt`, `Invalid`."""
        return await self.restore(name, [path])

    async def restore(
        self,
        name: str,
        files: Sequence[str | Path],
        *,
        shards: int = 1,
        owner: str | None = None,
        origin: Origin | None = None,
        params: IndexParams | None = None,
    ) -> Collection:
        """A new index from LHV1 files: see `lakehouse.building.restore`."""
        await self.vacancy(name, shards)
        wanted, seeds = await self._restored(name, files, shards, params)
        return await self.begin(wanted, seeds, owner=owner, origin=origin)

    async def _restored(
        self, name: str, files: Sequence[str | Path], shards: int, params: IndexParams | None
    ) -> tuple[IndexParams, list[Seed]]:
        """The content of files over so many shards, and what the index will have."""
        if not files:
            raise Invalid(f"no files to restore from. name=`{name}`")
        read = [await seeding.read(self.store, self.runtime, self.settings, name, file) for file in files]
        found = seeding.in_order(read)
        wanted = _restored_params(found[0].params, params, name)
        if seeding.fits(found, shards, wanted):
            return wanted, await seeding.kept(self.runtime, self.settings, found, wanted)
        return wanted, await seeding.redistributed(self.runtime, self.settings, found, wanted, shards)

    # ------------------------------------------------- beginning with content

    async def vacancy(self, name: str, shards: int, *, replaces: bool = False) -> UUID | None:
        """Whether a new life may begin: None for a free name, else the life that it would replace.

        Raises `Conflict` when the name lives and `replaces` is false, `Invalid`, `Unavailable` when it is suspended.
        """
        _check_shape(name, shards)
        async with self._lock(name):
            if not replaces:
                await self._free_number(name)
                return None
            try:
                return (await self._resolved(name)).record.uuid
            except NotFound:
                return None

    async def begin(
        self,
        params: IndexParams,
        seeds: list[Seed],
        *,
        owner: str | None = None,
        origin: Origin | None = None,
        replaces: UUID | None = None,
    ) -> Collection:
        """Put the content of a new life, one seed per shard, and begin it; what fails before that leaves nothing.

        `replaces` is the life that ends by it.  `seeds` is emptied.  Raises `Conflict` when the name lives, or lives
        another life than that; `Unavailable`, with the outcome `unknown` when the new life may have begun.
        """
        name, uuid = params.name, self.runtime.uuid()
        begun = incarnation.begin(0, uuid, params, len(seeds), owner, origin, replaces, seeded=True)
        async with self._removed_on_failure(name, uuid):
            await self._seed_content(name, uuid, seeds)
        async with self._lock(name):
            async with self._removed_on_failure(name, uuid):
                old = None if replaces is None else await self._living(name, replaces)
                number = await self._free_number(name) if old is None else old.record.number + 1
                new = await self._opened_life(name, replace(begun, number=number))
                assert new is not None, "a life that has not begun has no log that could end"
            try:
                await self._placed(new, old)
            except BaseException:
                if self._open.get(name) is not new:  # else it is served already
                    await new.close()
                raise
            await self._settle_copy(name)
            return new

    @contextlib.asynccontextmanager
    async def _removed_on_failure(self, name: str, uuid: UUID) -> AsyncIterator[None]:
        """Remove the content of a life that will not begin."""
        try:
            yield
        except BaseException:
            self._later(self._remove_content(name, uuid), f"remove {name}")
            raise

    async def _remove_content(self, name: str, uuid: UUID) -> None:
        try:
            await self._patiently(lambda: seeding.remove(self.store, name, uuid))
        except LakehouseError as error:
            logger.warning(
                "content of a build that failed stays. index=%s life=%s error=%s", name, uuid, error
            )

    async def _placed(self, new: Collection, old: Collection | None) -> None:
        """`_place`, whole: who is cancelled meanwhile waits for its end.

        Left half done, the old life would go on, and take writes that are gone once its end is found to be recorded.
        """
        placing = self.runtime.spawn(self._place(new, old), name=f"place {new.name}")
        try:
            await asyncio.shield(placing)
        except asyncio.CancelledError:
            while not placing.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([placing])
            if not placing.cancelled() and (error := placing.exception()) is not None:
                logger.warning(
                    "a replacement failed while it was stopped. index=%s error=%s", new.name, error
                )
            raise

    async def _place(self, new: Collection, old: Collection | None) -> None:
        """Record the new life, end the logs of the old one, then serve the new one: in this order.

        The record alone changes nothing for whoever serves the old life; its logs' end does, and whoever finds the
        record ends them before serving the new life.  So every acknowledged write of the old life comes before.
        """
        name = new.name
        try:
            await incarnations.create(self.store, self.runtime, name, new.record)
        except (Conflict, Unavailable) as error:
            if isinstance(error, Unavailable) and error.outcome is Outcome.UNKNOWN:
                self._complete_later(name)
            else:
                self._later(self._remove_content(name, _uuid_of(new.record)), f"remove {name}")
            raise
        except BaseException:
            self._complete_later(name)
            raise
        if old is not None:
            try:
                with _possibly_done(f"index is being replaced: it will be. name=`{name}`"):
                    await self._patiently(lambda: self._drop_logs(old))
            except BaseException:
                self._complete_later(name)
                raise
        self._exchange(name, new)
        if old is not None:
            self._later(self._sweep(name, old.record), f"sweep {name}")

    def _complete_later(self, name: str) -> None:
        """A record may be there whose life nobody serves yet: look until the store says."""
        task = self.runtime.spawn(self._complete(name), name=f"complete {name}")
        self._completions.add(task)
        task.add_done_callback(self._completions.discard)

    async def _complete(self, name: str) -> None:
        for attempt in range(COMPLETIONS_MAX):
            await self.runtime.sleep(COMPLETION_RETRY.delay_s(attempt, self.runtime))
            if name in self._suspended:
                return
            try:
                async with self._lock(name):
                    await self._resolved(name)
                return
            except NotFound:
                return
            except LakehouseError as error:
                logger.warning("a replacement is not complete yet. index=%s error=%s", name, error)

    async def _living(self, name: str, uuid: UUID) -> Collection:
        """The life of that uuid.  Raises `Conflict` when the name lives another one, or none."""
        try:
            collection = await self._resolved(name)
        except NotFound as error:
            raise Conflict(f"the index was dropped while its next life was built. name=`{name}`") from error
        if collection.record.uuid != uuid:
            raise Conflict(f"another build was first: look at the index again. name=`{name}`")
        return collection

    # --------------------------------------------------------------- dropping

    async def drop(self, name: str) -> None:
        """End an index and remove its compatibility copy, also one that is damaged.  Raises `NotFound`."""
        names.checked_index_name(name)
        async with self._lock(name):
            if name in self._suspended:
                await self._drop_unopened(name)
                self._suspended.discard(name)
                return
            try:
                collection = await self._resolved(name)
            except Corrupt as error:
                logger.warning("dropping an index that cannot be opened. index=%s error=%s", name, error)
                await self._drop_unopened(name)
                return
            await self._finish_drop(collection)

    async def _finish_drop(self, collection: Collection) -> None:
        """End every shard's log, create the record that ends the life, and no other, then remove what is left."""
        name = collection.name
        await self._drop_logs(collection)
        now = await self._record_end(name, collection.record)
        if self._open.get(name) is collection:
            del self._open[name]
        await self._clear_away(name, collection.record, now)
        await collection.close()

    async def _drop_logs(self, collection: Collection) -> None:
        """End every shard's log; one that is damaged, without replaying it."""
        try:
            await collection.drop()
        except Corrupt as error:
            logger.warning("ending a damaged log. index=%s error=%s", collection.name, error)
            await self._end_logs(collection.name, _uuid_of(collection.record), range(collection.shards))
            collection.end_here()

    async def _end_logs(self, name: str, uuid: UUID, shards: Iterable[int]) -> None:
        for shard in shards:
            await ShardLog(self.store, self.runtime, name, uuid, shard).end(self._backoff)

    async def _record_end(self, name: str, record: Incarnation) -> Incarnation:
        """Create the record that ends a life; the record that counts then, another's if that was first."""
        with _possibly_done(f"index is being dropped: repeat until it is gone. name=`{name}`"):
            for _ in range(LIVES_AT_ONCE_MAX):
                end = incarnation.end(record)
                try:
                    await incarnations.create(self.store, self.runtime, name, end)
                    return end
                except Conflict:
                    now = await incarnations.current(self.store, name)
                if now is None or now.uuid != record.uuid:
                    logger.info("another process finished this deletion. index=%s", name)
                    return now or end
                record = now  # the same life, taken over by another owner meanwhile
            raise Unavailable(f"the index keeps changing owners. name=`{name}`")

    async def _clear_away(self, name: str, ended: Incarnation, now: Incarnation) -> None:
        """After a life: the copy for old tools, then what is stored of it."""
        if now.alive:  # replaced: whoever waits for the next life need not wait for its copy
            self._later(self._settle_copy(name), f"copy {name}")
        else:
            await self._settle_copy(name)
        self._later(self._sweep(name, ended), f"sweep {name}")

    async def _drop_unopened(self, name: str) -> None:
        """End a life that cannot be opened, or need not be."""
        try:
            record = await incarnations.current(self.store, name)
        except Corrupt:
            await self._drop_unreadable(name)
            return
        if record is None:  # a bare file that nobody can read, or whose adoption nobody waits for
            await self.store.delete(names.compatibility_key(name))
            return
        if not record.alive:
            await self._forget(name)
            raise NotFound(f"no such index. name=`{name}`")
        await self._end_replaced(name, record)
        await self._end_logs(name, _uuid_of(record), range(record.shards))
        now = await self._record_end(name, record)
        await self._forget(name)
        await self._clear_away(name, record, now)

    async def _drop_unreadable(self, name: str) -> None:
        """End whatever the newest record, which is damaged, may have begun: every life that left anything."""
        number, data = await incarnations.newest(self.store, name)
        said = incarnation.salvaged(data)
        uuids = set(await named_snapshots.lives(self.store, name)) | ({said.uuid} if said.uuid else set())
        ended = [
            Incarnation(number, uuid, IndexParams(name, 1), await self._shards_of(name, uuid, said.shards))
            for uuid in sorted(uuids)
        ]
        for record in ended:
            await self._end_logs(name, _uuid_of(record), range(record.shards))
        end = Incarnation(number + 1, None, None, 0, ends=said.uuid or NOBODY)
        with _possibly_done(f"index is being dropped: repeat until it is gone. name=`{name}`"):
            await incarnations.create(self.store, self.runtime, name, end)
        await self._forget(name)
        await self._settle_copy(name)
        for record in ended:
            self._later(self._sweep(name, record), f"sweep {name}")

    async def _shards_of(self, name: str, uuid: UUID, said: int) -> int:
        """How many shards a life may have had: those that left something, at least as many as its record said."""
        level = await self.store.children(names.life_prefix(name, uuid))
        parts = (prefix.rstrip("/").rsplit("/", 1)[1] for prefix in level.prefixes)
        return max([said, *(int(part) + 1 for part in parts if part.isdecimal())])

    async def _end_replaced(self, name: str, record: Incarnation) -> None:
        """Put an end to the logs of the life that `record` replaces, before anybody is served what it begins."""
        if record.ends is None:
            return
        known = self._open.get(name)
        if known is not None and known.record.uuid == record.ends:
            await self._drop_logs(known)
            ended = known.record
        else:
            ended = await incarnations.before(self.store, name, record)
            await self._end_logs(name, _uuid_of(ended), range(ended.shards))
        self._later(self._sweep(name, ended), f"sweep {name}")

    def _later(self, work: Coroutine[Any, Any, None], what: str) -> None:
        """Do what nobody waits for; `close` gives it a moment."""
        task = self.runtime.spawn(work, name=what)
        self._sweeps.add(task)
        task.add_done_callback(self._sweeps.discard)

    async def _sweep(self, name: str, record: Incarnation) -> None:
        """Delete the DATA entries and snapshots of an ended life; FENCE and DROP entries and named ones stay."""
        uuid = _uuid_of(record)
        try:
            for number in range(record.shards):
                await self._sweep_log(ShardLog(self.store, self.runtime, name, uuid, number))
                snapshots = ShardSnapshots(self.store, self.runtime, self.settings, name, uuid, number)
                await snapshots.retire(await snapshots.refs())
        except LakehouseError as error:
            logger.warning("could not remove all of a dropped index. index=%s error=%s", name, error)

    async def _sweep_log(self, log: ShardLog) -> None:
        for seq in await log.after(0):
            try:
                kind = (await log.read_header(seq)).kind
            except (Corrupt, NotFound):  # perhaps a FENCE: it keeps its slot
                continue
            if kind is Kind.DATA:
                await log.delete([seq])

    # ------------------------------------------- owners, suspending, snapshots

    async def record(self, name: str) -> Incarnation | None:
        """The record that counts, without opening anything; None for a name that was never used.  Raises `Corrupt`."""
        return await incarnations.current(self.store, names.checked_index_name(name))

    async def foreign_owner(self, name: str, owner: str) -> str | None:
        """Who else has declared the index of that name; None when it is free, nobody's, or `owner`'s."""
        record = await self.record(name)
        if record is None or not record.alive or record.owner in (None, owner):
            return None
        return record.owner

    async def take_over(self, name: str, owner: str | None) -> Collection:
        """Make `owner` the owner of an index; its life goes on.

        Raises `NotFound`, and `Conflict` if the index changed meanwhile.
        """
        names.checked_index_name(name)
        async with self._lock(name):
            collection = await self._resolved(name)
            if collection.record.owner == owner:
                return collection
            record = incarnation.taken_over(collection.record, owner)
            try:
                await incarnations.create(self.store, self.runtime, name, record)
            except Conflict as error:
                raise Conflict(f"the index changed meanwhile: look at it again. name=`{name}`") from error
            collection.record = record
            return collection

    async def suspend(self, name: str) -> None:
        """Close an index and free its memory; requests are refused until `resume`.  Raises `NotFound`."""
        names.checked_index_name(name)
        async with self._lock(name):
            if self.opened(name) is None and name not in self._suspended:
                record = await incarnations.current(self.store, name)
                if not (await self._has_bare_file(name) if record is None else record.alive):
                    raise NotFound(f"no such index. name=`{name}`")
            self._suspended.add(name)
            await self._forget(name)

    async def resume(self, name: str) -> Collection:
        """Open a suspended index again.  Raises what `open` raises."""
        self._suspended.discard(name)
        return await self.open(name)

    @property
    def suspended(self) -> frozenset[str]:
        """The names that are suspended in this process."""
        return frozenset(self._suspended)

    async def set_ef_search(self, name: str, ef_search: int) -> None:
        """Let searches of an index keep another number of candidates, from now on, in this process.

        A life that replaces this one begins with its own.  Raises `Invalid`, and what `open` raises.
        """
        (await self.open(name)).set_ef_search(ef_search)

    async def named_snapshots(self, name: str) -> list[NamedSnapshot]:
        """The named snapshots of all lives of a name, by snapshot name."""
        return await named_snapshots.kept(self.store, names.checked_index_name(name))

    async def delete_named_snapshot(self, name: str, snapshot: str, incarnation: UUID | None = None) -> None:
        """Delete a named snapshot (of one life, or of every life that has it), and what failed attempts at it left.

        Raises `NotFound`, `Conflict` while this process is taking it.
        """
        collection = self._open.get(names.checked_index_name(name))
        if collection is not None and snapshot in collection.naming:
            raise Conflict(f"this snapshot is being taken. index=`{name}` snapshot=`{snapshot}`")
        await named_snapshots.delete(self.store, name, snapshot, incarnation)

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
        for completion in self._completions:
            completion.cancel()
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


def _check_shape(name: str, shards: int) -> None:
    names.checked_index_name(name)
    if not 1 <= shards <= SHARDS_MAX:
        raise Invalid(f"shards must be from 1 to {SHARDS_MAX}. shards=`{shards}`")


def _restored_params(found: IndexParams, asked: IndexParams | None, name: str) -> IndexParams:
    """What a restored index has.  Raises `Invalid` where the files cannot give what is asked."""
    if asked is None:
        return replace(found, name=name)
    if (found.dimension, found.distance) != (asked.dimension, asked.distance):
        raise Invalid(
            f"the snapshot has {found.dimension} dimensions and {found.distance} distance, the index shall have "
            f"{asked.dimension} and {asked.distance}. name=`{name}`"
        )
    return replace(asked, name=name)


def _uuid_of(record: Incarnation) -> UUID:
    assert record.uuid is not None
    return record.uuid


def _suspended(name: str) -> Unavailable:
    return Unavailable(
        f"index is suspended: resume it first. name=`{name}`", outcome=Outcome.NOT_COMMITTED, retry_after_s=30
    )


def _is_name(name: str) -> bool:
    try:
        names.checked_index_name(name)
    except Invalid:
        return False
    return True
