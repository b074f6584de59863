"""What this process serves under each name: lives opened on first use, kept open, and followed when they are replaced.

A life is served only when every log of the one it replaces has ended and all that was acknowledged there is taken over.
It is loaded beside the one that is served and exchanged for it in one step.  What this module does not do: begin lives
(`lakehouse.replacing`), or keep items (`lakehouse.shard`).
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from uuid import UUID
from weakref import WeakValueDictionary

from lakehouse import carrying, compatibility, ending, incarnations
from lakehouse.collection import Collection
from lakehouse.core import names
from lakehouse.core.errors import Corrupt, Dropped, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import Consistency
from lakehouse.ending import uuid_of
from lakehouse.engine_settings import EngineSettings
from lakehouse.errands import Errands
from lakehouse.following import observe
from lakehouse.log import Backoff
from lakehouse.placement import Pods
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

LINGER_S = 30.0
"""Seconds a replaced life stays open for questions that other processes ask about it: longer than any search."""
OTHERS_WAIT_S = 600.0
"""Seconds a life that is loaded waits for the processes that keep its other shards; one of a million rows loads in
less."""
OTHERS_POLL_S = 0.5
FOLLOW_AGAIN_S = 1.0
"""Seconds after which a life that is still read after its end looks again for the next one."""

ReadOnly = Callable[[str], bool]


def writable(name: str) -> bool:
    """Of a process that nobody told what is read-only."""
    return False


class Opened:
    """The indexes of a store that this process has open."""

    def __init__(
        self,
        store: ObjectStore,
        runtime: Runtime,
        settings: EngineSettings | None = None,
        *,
        placement: Pods | None = None,
        read_only: ReadOnly = writable,
    ) -> None:
        """`placement` says which shards this process keeps; without it all.

        `read_only` says of a name whether only its dataset changes it; then a life that was replaced is read until the
        next one is loaded.
        """
        self.store = store
        self.runtime = runtime
        self.settings = settings or EngineSettings()
        self.read_only = read_only
        self._placement = placement
        self._open: dict[str, Collection] = {}
        self._coming: dict[UUID, Collection] = {}
        """Lives that are loaded and not served under their name yet."""
        self._former: dict[UUID, Collection] = {}
        """Lives that were served until a moment ago."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._suspended: set[str] = set()
        self._under_way: set[UUID] = set()
        """Lives that this process has set out to begin."""
        self._followed_at: dict[str, float] = {}
        self._follows: dict[str, asyncio.Task[Collection]] = {}
        self.errands = Errands(runtime)
        self._backoff = Backoff()

    async def _adopt(self, name: str) -> Incarnation:
        """The record of a name that has none: of an old system's file, perhaps.  Raises `NotFound`."""
        raise NotFound(f"no such index. name=`{name}`")

    # ---------------------------------------------------------------- asking

    def opened(self, name: str) -> Collection | None:
        """An index that is open already; never waits."""
        collection = self._open.get(name)
        if collection is None or not collection.dropped:
            return collection
        if not _lingers(collection):
            return None
        if self.runtime.monotonic() - self._followed_at.get(name, 0.0) > FOLLOW_AGAIN_S:
            self._follow(name)
        return collection

    def has_ended(self, name: str) -> bool:
        """Whether the life that was served here under a name has ended, and what comes after it is not served yet."""
        known = self._open.get(name)
        return known is not None and known.dropped

    def all_opened(self) -> list[Collection]:
        """The indexes that are open, by name."""
        return [self._open[name] for name in sorted(self._open)]

    def life(self, name: str, uuid: UUID) -> Collection | None:
        """One life of a name, if this process has it: served, loaded to be served next, or served a moment ago."""
        known = self._open.get(name)
        if known is None or known.record.uuid != uuid:
            known = self._coming.get(uuid) or self._former.get(uuid)
        if known is None or known.name != name:
            return None
        if known.dropped:
            self._let_linger(known)
        return known

    async def open(self, name: str, *, eventual: bool = False) -> Collection:
        """The index of that name.

        One that was replaced is followed: what only a dataset changes is read as it was until its next life is loaded,
        and so are `eventual` reads of any index; the others wait for the next life.

        Raises `NotFound`; `Corrupt` when it cannot be read; `Unavailable` when its next life takes long to load.
        """
        collection = self.opened(name)
        if collection is not None:
            return collection
        names.checked_index_name(name)
        if name in self._suspended:
            raise suspended(name)
        known = self._open.get(name)
        if known is not None:
            return await self._followed(name, known, eventual=eventual)
        async with self._lock(name):
            return await self._opened_or_open(name)

    async def _opened_or_open(self, name: str) -> Collection:
        known = self._open.get(name)
        if known is not None and not known.dropped:
            return known
        return await self._resolved(name)

    # -------------------------------------------------------------- following

    async def _followed(self, name: str, known: Collection, *, eventual: bool) -> Collection:
        """What answers for a life that has ended while it is found out what comes after it."""
        following = self._follow(name)
        if self._let_linger(known) or eventual:
            return known
        try:
            async with asyncio.timeout(self.settings.read_deadline_s):
                return await asyncio.shield(following)
        except TimeoutError as error:
            raise Unavailable(
                f"the index was replaced, and its next life is being loaded: repeat. name=`{name}`",
                outcome=Outcome.NOT_COMMITTED,
                retry_after_s=1.0,
            ) from error

    def _follow(self, name: str) -> "asyncio.Task[Collection]":
        """Find out what a name stands for now, once for all who ask."""
        task = self._follows.get(name)
        self._followed_at[name] = self.runtime.monotonic()
        if task is None or task.done():
            task = self._follows[name] = self.runtime.spawn(self._next_life(name), name=f"follow {name}")
            task.add_done_callback(observe)
        return task

    async def _next_life(self, name: str) -> Collection:
        async with self._lock(name):
            return await self._opened_or_open(name)

    def _let_linger(self, known: Collection) -> bool:
        """Let reads of a life go on after its end, if nobody but a dataset gave or gives it anything."""
        if "dataset" not in (known.origin or {}) or not self.read_only(known.name):
            return False
        for shard in known.shard_list:
            shard.lingers = True
        return True

    async def renew(self, name: str) -> Collection:
        """Look at the records now; the life they say, loaded and served.  Raises what `open` raises."""
        names.checked_index_name(name)
        async with self._lock(name):
            return await self._resolved(name)

    async def renewed(self, name: str) -> bool:
        """Whether the name stands for another life than this process thought; that one is open then."""
        known = self._open.get(name)
        if known is None or self.store.exclusive:
            return False
        return await self.renew(name) is not known

    # -------------------------------------------------------------- resolving

    async def _resolved(self, name: str) -> Collection:
        """The life the store says the name has now, whatever this process thought.  Raises `NotFound`."""
        if name in self._suspended:
            raise suspended(name)
        for _ in range(ending.CHANGES_MAX):
            record = await incarnations.current(self.store, name) or await self._adopt(name)
            known = self._open.get(name)
            if known is not None and known.record.uuid == record.uuid:
                if not known.dropped:
                    if record.number >= known.record.number:  # the same life, perhaps with another owner
                        known.record = record
                    return known
                await self._finish_drop(known)
                continue
            if not record.alive:
                if known is not None:
                    await self._clear_away(name, known.record, record)
                    await self._forget(name)
                raise NotFound(f"no such index. name=`{name}`")
            collection = await self._opened_life(name, record)
            if collection is None:  # its log has ended: what is there now?
                continue
            try:
                await self._serve(name, collection)
                return collection
            except Dropped:  # it ended while it was taking over
                continue
        raise Unavailable(f"the index keeps changing. name=`{name}`", outcome=Outcome.NOT_COMMITTED)

    async def _opened_life(self, name: str, record: Incarnation) -> Collection | None:
        """A life in memory; None when its logs have ended: its deletion is finished then."""
        collection = Collection(self.store, self.runtime, self.settings, name, record, self._placement)
        try:
            await collection.open()
        except BaseException:
            await collection.close()
            raise
        if not collection.dropped:
            return collection
        await self._finish_drop(collection)
        return None

    async def _serve(self, name: str, collection: Collection) -> None:
        """Serve a loaded life under its name once all of the life that it replaces lies behind it."""
        life = uuid_of(collection.record)
        try:
            ended = await self._end_replaced(name, collection.record)
            await self._carry(collection)
            self._coming[life] = collection
            if name in self._open:  # else nothing is served here that could go on
                await self._others_answer(collection)
        except BaseException:
            await collection.close()
            raise
        finally:
            self._coming.pop(life, None)
        self._exchange(name, collection)
        if ended is not None:
            self.errands.later(self._sweep_replaced(collection, ended), f"sweep {name}")

    async def _sweep_replaced(self, collection: Collection, ended: Incarnation) -> None:
        """Remove what is stored of the life before, once every shard of this one has taken it over."""
        if await self._others_answer(collection):
            await ending.sweep(self.store, self.runtime, collection.name, ended)

    async def _end_replaced(self, name: str, record: Incarnation) -> Incarnation | None:
        """Put an end to the logs of the life that `record` replaces, before anybody is served what it begins."""
        if record.ends is None:
            return None
        known = self._open.get(name)
        if known is None or known.record.uuid != record.ends:
            return await ending.end_replaced(self.store, self.runtime, name, record)
        await self._drop_logs(known)
        return known.record

    async def _carry(self, collection: Collection) -> None:
        """Take over what the replaced life acknowledged, into the shards that are here."""
        record = collection.record
        if record.continues is not None:
            await asyncio.gather(
                *(carrying.carry(shard, record, complete=True) for shard in collection.shard_list)
            )

    async def _others_answer(self, collection: Collection) -> bool:
        """Wait until the processes that keep the other shards have this life too; whether they have.

        One that serves nothing under the name yet does not wait: nobody finds it before it is ready, and the others
        may wait for it.
        """
        if collection.is_whole:
            return True
        if collection.name not in self._open:
            return False
        until = self.runtime.monotonic() + OTHERS_WAIT_S
        while self.runtime.monotonic() < until and not collection.dropped:
            with contextlib.suppress(Unavailable, NotFound):
                await collection.refresh(Consistency.STRONG)
                return True
            await self.runtime.sleep(OTHERS_POLL_S)
        logger.warning("other shards of an index do not answer yet. index=%s", collection.name)
        return False

    def _exchange(self, name: str, collection: Collection) -> None:
        """Serve `collection` under its name from this step on; what was served before finishes and goes."""
        known = self._open.get(name)
        self._open[name] = collection
        if known is not None and known is not collection:
            self._former[uuid_of(known.record)] = known
            self.errands.aside(self._close_former(known), f"close {name}")

    async def _close_former(self, known: Collection) -> None:
        if not self.store.exclusive:
            await self.runtime.sleep(LINGER_S)
        self._former.pop(uuid_of(known.record), None)
        await known.close()

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

    # ----------------------------------------------------------------- ending

    async def _finish_drop(self, collection: Collection) -> Incarnation:
        """End every shard's log, create the record that ends the life, and no other, then remove what is left.

        The record that counts then: another life's, where that was first.
        """
        name = collection.name
        await self._drop_logs(collection)
        now = await ending.record_end(self.store, self.runtime, name, collection.record)
        if self._open.get(name) is collection and not now.alive:
            del self._open[name]
        await self._clear_away(name, collection.record, now)
        if self._open.get(name) is not collection:  # else it is exchanged for what lives now
            await collection.close()
        return now

    async def _drop_logs(self, collection: Collection) -> None:
        """End every shard's log: continuing its chain where this process has it, whole; else off the chain."""
        if collection.is_whole:
            try:
                await collection.drop()
                return
            except Corrupt as error:
                logger.warning("ending a damaged log. index=%s error=%s", collection.name, error)
        record, shards = collection.record, range(collection.shards)
        await ending.end_logs(
            self.store, self.runtime, collection.name, uuid_of(record), shards, self._backoff
        )
        collection.end_here()

    async def _clear_away(self, name: str, ended: Incarnation, now: Incarnation) -> None:
        """After a life: the copy for old tools, then what is stored of it, unless what replaces it still needs that."""
        if now.alive:  # replaced: whoever waits for the next life need not wait for its copy
            self.errands.later(self._settle_copy(name), f"copy {name}")
            return
        await self._settle_copy(name)
        self.errands.later(ending.sweep(self.store, self.runtime, name, ended), f"sweep {name}")

    async def _settle_copy(self, name: str) -> None:
        """Make the copy for old tools what it should be; a failure is only theirs."""
        try:
            await self.errands.patiently(
                lambda: compatibility.settle(self.store, self.runtime, self.settings, name)
            )
        except LakehouseError as error:
            logger.warning("compatibility copy failed. index=%s error=%s", name, error)

    async def close(self) -> None:
        """Finish what was taken in every index, then stop."""
        self.errands.stop_waiting()
        for task in self._follows.values():
            task.cancel()
        lives = {*self._open.values(), *self._former.values(), *self._coming.values()}
        await asyncio.gather(*(collection.close() for collection in lives))
        await self.errands.finish()


def _lingers(collection: Collection) -> bool:
    return bool(collection.shard_list) and all(shard.lingers for shard in collection.shard_list)


def suspended(name: str) -> Unavailable:
    """What a suspended index answers."""
    return Unavailable(
        f"index is suspended: resume it first. name=`{name}`", outcome=Outcome.NOT_COMMITTED, retry_after_s=30
    )
