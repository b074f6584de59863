"""Every index of one store: which live, creating and adopting them, ending them, and merging one into another.

An index lives while the highest record under `inc/` begins a life.  Content comes first and the record last, so
a name never shows half an index.  What this module does not do: follow lives that are replaced (`lakehouse.opening`),
replace them (`lakehouse.replacing`), or keep items (`lakehouse.shard`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

from lakehouse import beginning, ending, incarnations, lives, named_snapshots, seeding
from lakehouse.collection import Collection
from lakehouse.core import incarnation, names
from lakehouse.core.errors import Conflict, Corrupt, Dropped, Invalid, LakehouseError, NotFound
from lakehouse.core.incarnation import Incarnation, Origin
from lakehouse.core.types import IndexParams, MergeResult
from lakehouse.ending import possibly_done
from lakehouse.merging import merge_into
from lakehouse.named_snapshots import NamedSnapshot
from lakehouse.replacing import Replacing
from lakehouse.seeding import Seed

logger = logging.getLogger(__name__)

OPENS_AT_ONCE = 16

__all__ = ["Indexes", "merge_into"]


class Indexes(Replacing):
    """The indexes of a store, opened on first use and kept open."""

    _scanned = False
    """Whether `_open` holds every index there is: all were opened and nobody else can create one."""

    # ---------------------------------------------------------------- listing

    async def names(self) -> list[str]:
        """Names of the indexes that live, sorted; old files waiting to be adopted count."""
        if self.store.exclusive and self._scanned:
            return sorted(self._open.keys() | self._suspended)
        return sorted(await self._owners())

    async def _owners(self) -> dict[str, str | None]:
        """The indexes that live, and who owns each."""
        level = await self.store.children(names.VECTORS)
        found = {prefix[len(names.VECTORS) : -1] for prefix in level.prefixes}
        gate = asyncio.Semaphore(OPENS_AT_ONCE)

        async def record_of(name: str) -> tuple[str, Incarnation | None]:
            async with gate:
                return name, await incarnations.current(self.store, name)

        records = await asyncio.gather(*(record_of(name) for name in found))
        bare = {
            info.key[len(names.VECTORS) : -len(names.LHV1_SUFFIX)]
            for info in level.objects
            if info.key.endswith(names.LHV1_SUFFIX)
        }
        for name in bare - found:
            if not _is_name(name):
                logger.warning("not an index: its name is not allowed. key=%s%s", names.VECTORS, name)
        alive = {name: record.owner for name, record in records if record is not None and record.alive}
        return alive | {name: None for name in bare - found if _is_name(name)}

    async def open_all(self) -> list[str]:
        """Open every index, so that the first request finds them ready; names that could not be opened.

        One of several processes leaves what is declared to its own pods, and opens it when somebody asks for it here.
        """
        failed = []
        owners = await self._owners()
        alive = sorted(owners)
        await self._remove_copies_left_behind(alive)
        for name in alive:
            elsewhere = self._placement is not None and owners[name] is not None
            if name in self._suspended or elsewhere:
                continue
            try:
                await self.open(name)
            except NotFound:
                continue
            except LakehouseError as error:
                logger.error("index cannot be opened. index=%s error=%s", name, error)
                failed.append(name)
        self._scanned = self.store.exclusive and not failed
        if self._placement is None:
            self.errands.later(self._sweep_unnamed(alive), "sweep what killed builds left")
        return failed

    async def _sweep_unnamed(self, alive: Sequence[str]) -> None:
        """Remove what killed builds left: at once where no other process can be building, else a day later."""
        for name in alive:
            await self.sweep_unnamed(name)

    async def sweep_unnamed(self, name: str) -> None:
        """Remove what killed builds of one index left, their pins too; what cannot be removed now stays."""
        grace_s = 0.0 if self.store.exclusive else beginning.GRACE_S
        try:
            await lives.sweep_unnamed(self.store, self.runtime, name, grace_s, self._under_way)
        except LakehouseError as error:
            logger.warning("leftovers of builds stay. index=%s error=%s", name, error)

    async def _remove_copies_left_behind(self, alive: list[str]) -> None:
        """Compatibility copies of dropped indexes, where a process died between the drop and the removal."""
        level = await self.store.children(names.VECTORS)
        lived = {f"{prefix[:-1]}{names.LHV1_SUFFIX}" for prefix in level.prefixes}
        living = {names.compatibility_key(name) for name in alive}
        for info in level.objects:
            if info.key in lived - living:
                await self._settle_copy(info.key[len(names.VECTORS) : -len(names.LHV1_SUFFIX)])

    # --------------------------------------------------------------- creating

    async def create(
        self,
        params: IndexParams,
        shards: int = 1,
        owner: str | None = None,
        origin: Origin | None = None,
    ) -> Collection:
        """Create an empty index.  Raises `Conflict` if the name is taken, `Invalid`."""
        name = params.name
        lives.check_shape(name, shards)
        async with self._lock(name):
            if name in self._suspended:
                raise Conflict(f"index already exists. name=`{name}`")
            await lives.begin_empty(self.store, self.runtime, params, shards, owner, origin)
            with possibly_done(f"index may have been created. name=`{name}`"):
                collection = await self._resolved(name)
            await self._settle_copy(name)
            return collection

    # --------------------------------------------------- adopting and importing

    async def _adopt(self, name: str) -> Incarnation:
        """Take over a bare file of the old system: content under a fresh uuid first, the record last."""
        if not await lives.has_bare_file(self.store, name):
            raise NotFound(f"no such index. name=`{name}`")
        key = names.compatibility_key(name)
        data = await self.store.get(key)
        logger.info("adopting an old index file. key=%s bytes=%s", key, len(data))
        try:
            return await self._seed(name, data)
        except Invalid as error:  # the request is right, the file is not
            raise Corrupt(f"an old index file cannot be adopted: {error.message} key=`{key}`") from error

    async def _seed(self, name: str, data: bytes) -> Incarnation:
        """The content of an old file and a byte copy of it, then the record; the loser of a race uses the winner's."""
        found = await self.runtime.run_cpu(seeding.found_in, name, memoryview(data), self.settings)
        uuid = self._started().life
        record = incarnation.begin(0, uuid, found.params, 1, seeded=True)
        await self._seed_content(name, uuid, [found.seed])
        key = f"{names.life_prefix(name, uuid)}adopted{names.LHV1_SUFFIX}"
        await self.errands.patiently(lambda: self.store.put(key, data))
        await self.errands.patiently(partial(beginning.claim, self.store, self.runtime, name, uuid, 0))
        try:
            await incarnations.create(self.store, self.runtime, name, record)
        except Conflict:
            winner = await incarnations.current(self.store, name)
            if winner is None:
                raise
            return winner
        return record

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
        start = await self.vacancy(name, shards)
        wanted, seeds = await self._restored(name, files, shards, params)
        return await self.begin(wanted, seeds, start, owner=owner, origin=origin)

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

    # --------------------------------------------------------------- dropping

    async def drop(self, name: str) -> None:
        """End an index and remove its compatibility copy, also one that is damaged.

        A life that replaces it meanwhile goes on with all it held, so that one is ended too.  Raises `NotFound`.
        """
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
            life = ending.uuid_of(collection.record)
            now = await self._finish_drop(collection)
            with possibly_done(f"index is being dropped: repeat until it is gone. name=`{name}`"):
                if now.alive and await incarnations.was_replaced(self.store, name, life):
                    with contextlib.suppress(NotFound):
                        await self._drop_unopened(name)

    async def _drop_unopened(self, name: str) -> None:
        """End a life that cannot be opened, or need not be."""
        try:
            now, ended = await lives.end_records(self.store, self.runtime, name)
        except NotFound:
            await self._forget(name)
            raise
        await self._forget(name)
        if now is None:
            return
        await self._settle_copy(name)
        for record in ended:
            self.errands.later(ending.sweep(self.store, self.runtime, name, record), f"sweep {name}")

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
                if not (await lives.has_bare_file(self.store, name) if record is None else record.alive):
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
        return await merge_into(origin, target, clear_source=clear_source, replace=replace)

    async def fresh(self, name: str) -> Collection:
        """The index of that name with everything acknowledged before this call.  Raises `Unavailable`, `NotFound`."""
        collection = await self.open(name)
        try:
            await collection.catch_up()
        except Dropped:
            collection = await self.open(name)
            await collection.catch_up()
        return collection


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


def _is_name(name: str) -> bool:
    try:
        names.checked_index_name(name)
    except Invalid:
        return False
    return True
