"""Beginning a life with content, in the place of another where that is wanted: by a record that ends that one.

In this order: the old life is pinned and its positions are taken, the content is put, most of what the old life
acknowledged meanwhile is taken over, the record is created, the old logs end, the rest is taken over, and the table
of open indexes changes in one step.  Nothing is refused and nothing lost: writes wait from the old logs' end to the
exchange. What this module does not do: make content (`lakehouse.building`).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from uuid import UUID

from lakehouse import beginning, carrying, ending, incarnations, lives, seeding
from lakehouse.collection import Collection
from lakehouse.core import incarnation
from lakehouse.core.errors import Conflict, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Continues, Incarnation, Origin
from lakehouse.core.types import IndexParams
from lakehouse.ending import uuid_of
from lakehouse.log import Backoff
from lakehouse.opening import Opened
from lakehouse.seeding import Seed
from lakehouse.snapshots import Image, image_of

logger = logging.getLogger(__name__)

COMPLETIONS_MAX = 1_000
COMPLETION_RETRY = Backoff(first_s=0.2, most_s=60.0)
"""Waits between attempts to complete a replacement whose record may be there; the old life is served meanwhile."""


@dataclass(frozen=True, slots=True)
class Start:
    """A life that is to begin: its uuid, and what it ends and takes over, if anything."""

    life: UUID
    ends: UUID | None = None
    continues: Continues | None = None


class Replacing(Opened):
    """Open indexes, and new lives for them."""

    async def vacancy(self, name: str, shards: int, *, replaces: bool = False) -> Start:
        """Look whether a new life may begin, before its content is made.

        With `replaces` exactly the life that the name has now ends by it, and what that one acknowledges from now on is
        taken over.  Raises `Conflict` when the name lives and `replaces` is false, `Invalid`, `Unavailable` when it is
        suspended.
        """
        lives.check_shape(name, shards)
        start = self._started()
        async with self._lock(name):
            if not replaces:
                await self._free_number(name)
                return start
            try:
                old = await self._resolved(name)
            except NotFound:
                return start
            ends = old.record.uuid
            async with self.abandoned_on_failure(name, replace(start, ends=ends)):
                await self._pin(old, start.life)
                positions = await beginning.ends_of_logs(self.store, self.runtime, name, old.record)
        return replace(start, ends=ends, continues=Continues(positions))

    async def images(self, name: str) -> tuple[Collection, Start, list[Image]]:
        """The life of a name and all it holds, shard by shard, for another that goes on from exactly there.

        Raises `NotFound`, `Unavailable` for a life of which this process has only a part.
        """
        start = self._started()
        async with self._lock(name):
            old = await self._resolved(name)
        if not old.is_whole:
            raise Unavailable(
                f"this process keeps only a part of the index. name=`{name}`", outcome=Outcome.NOT_COMMITTED
            )
        ends = old.record.uuid
        async with self.abandoned_on_failure(name, replace(start, ends=ends)):
            await self._pin(old, start.life)
            await old.catch_up()
            found = [image_of(shard.replica) for shard in old.shard_list]
        continues = Continues(tuple(image.covered.sequence for image in found), exact=True)
        return old, replace(start, ends=ends, continues=continues), found

    def _started(self) -> Start:
        """A life that this process may begin, so that it does not take it for a killed build's."""
        life = self.runtime.uuid()
        self._under_way.add(life)
        return Start(life)

    async def _pin(self, old: Collection, life: UUID) -> None:
        await self.errands.patiently(partial(beginning.pin, self.store, old.name, uuid_of(old.record), life))

    async def _free_number(self, name: str) -> int:
        """The number of a new life.  Raises `Conflict` if one is going on."""
        if name in self._suspended:
            raise Conflict(f"index already exists. name=`{name}`")
        return await lives.free_number(self.store, self.runtime, name)

    async def abandon(self, name: str, start: Start) -> None:
        """Remove what there is of a life that will not begin."""
        try:
            await self.errands.patiently(partial(beginning.discard, self.store, name, start.life, start.ends))
        except LakehouseError as error:
            logger.warning(
                "content of a build that failed stays. index=%s life=%s error=%s", name, start.life, error
            )
        finally:  # what stays is swept like any other's
            self._under_way.discard(start.life)

    @contextlib.asynccontextmanager
    async def abandoned_on_failure(
        self, name: str, start: Start, *, only_pin: bool = False
    ) -> AsyncIterator[None]:
        """Remove what there is of a life that will not begin; `only_pin`: none of its content is there yet."""
        try:
            yield
        except BaseException:
            if start.ends is not None or not only_pin:
                self.errands.later(self.abandon(name, start), f"remove {name}")
            raise

    async def begin(
        self,
        params: IndexParams,
        seeds: list[Seed],
        start: Start,
        *,
        owner: str | None = None,
        origin: Origin | None = None,
        serve: bool = True,
    ) -> Collection:
        """Put the content of a new life, one seed per shard, and begin it; what fails before that leaves nothing.

        `seeds` is emptied.  Without `serve` only its record is created, and whoever opens it does the rest.  Raises
        `Conflict` when the name lives, or lives another life than the one to replace; `Unavailable`, with the outcome
        `unknown` when the new life may have begun.
        """
        name = params.name
        record = incarnation.begin(
            0,
            start.life,
            params,
            len(seeds),
            owner,
            origin,
            start.ends,
            seeded=True,
            continues=start.continues,
        )
        async with self.abandoned_on_failure(name, start):
            await self._seed_content(name, start.life, seeds)
        async with self._lock(name):
            async with self.abandoned_on_failure(name, start):
                old = None if start.ends is None else await self._living(name, start.ends)
                number = await self._free_number(name) if old is None else old.record.number + 1
                if old is not None and record.continues is not None and record.continues.exact:
                    # Taken over meanwhile, perhaps, or opened to writers.
                    record = replace(record, owner=old.record.owner, origin=old.record.origin)
                new = await self._opened_life(name, replace(record, number=number))
                assert new is not None, "a life that has not begun has no log that could end"
            try:
                async with self.abandoned_on_failure(name, start):
                    await self._ready(new)
                if serve:
                    await self._placed(new, old, start)
                else:
                    await self._recorded(new, start)
            except BaseException:
                if self._open.get(name) is not new:  # else it is served already
                    await new.close()
                raise
            if serve:
                await self._settle_copy(name)
            else:
                await new.close()
            return new

    async def _ready(self, new: Collection) -> None:
        """Take over what there is until now, and claim the record."""
        try:
            await carrying.carry_ahead(new.shard_list, new.record)
        except Unavailable as error:
            logger.warning("what is left is taken over later. index=%s error=%s", new.name, error)
        life, number = uuid_of(new.record), new.record.number
        await self.errands.patiently(
            partial(beginning.claim, self.store, self.runtime, new.name, life, number)
        )

    async def _seed_content(self, name: str, life: UUID, seeds: list[Seed]) -> None:
        """Put the content of every shard; `seeds` is emptied, so that each leaves memory when it is there."""
        for shard in range(len(seeds)):
            await self.errands.patiently(
                partial(
                    seeding.write, self.store, self.runtime, self.settings, name, life, shard, seeds.pop(0)
                )
            )

    async def _living(self, name: str, uuid: UUID) -> Collection:
        """The life of that uuid.  Raises `Conflict` when the name lives another one, or none."""
        try:
            collection = await self._resolved(name)
        except NotFound as error:
            raise Conflict(f"the index was dropped while its next life was built. name=`{name}`") from error
        if collection.record.uuid != uuid:
            raise Conflict(f"another build was first: look at the index again. name=`{name}`")
        return collection

    # ---------------------------------------------------------------- placing

    async def _placed(self, new: Collection, old: Collection | None, start: Start) -> None:
        """`_place`, whole: who is cancelled meanwhile waits for its end."""
        placing = self.runtime.spawn(self._place(new, old, start), name=f"place {new.name}")
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

    async def _place(self, new: Collection, old: Collection | None, start: Start) -> None:
        """Record the new life, end the logs of the old one, take over the rest, then serve the new one: in this order.

        The record alone changes nothing for whoever serves the old life; its logs' end does, and whoever finds the
        record ends them before serving the new life.  What was acknowledged until then is taken over, so that it does
        not matter how late a record lands that nobody waits for any more.
        """
        name = new.name
        await self._recorded(new, start)
        if old is not None:
            try:
                with ending.possibly_done(f"index is being replaced: it will be. name=`{name}`"):
                    await self.errands.patiently(lambda: self._drop_logs(old))
                    await self._carry(new)
            except BaseException:
                self._complete_later(new.record, start)
                raise
        self._exchange(name, new)
        if old is not None and new.is_whole:
            self.errands.later(ending.sweep(self.store, self.runtime, name, old.record), f"sweep {name}")

    async def _recorded(self, new: Collection, start: Start) -> None:
        """Create the record of a life; when it is in doubt, that is settled later."""
        try:
            await incarnations.create(self.store, self.runtime, new.name, new.record)
        except (Conflict, Unavailable) as error:
            if isinstance(error, Unavailable) and error.outcome is Outcome.UNKNOWN:
                self._complete_later(new.record, start)
            else:
                self.errands.later(self.abandon(new.name, start), f"remove {new.name}")
            raise
        except BaseException:
            self._complete_later(new.record, start)
            raise

    def _complete_later(self, record: Incarnation, start: Start) -> None:
        """A record may be there whose life nobody serves yet: settle it, then serve what there is."""
        self.errands.aside(self._complete(record, start), "complete a replacement")

    async def _complete(self, record: Incarnation, start: Start) -> None:
        assert record.params is not None
        name = record.params.name
        if not await incarnations.settle(self.store, self.runtime, name, record):
            await self.abandon(name, start)
        for attempt in range(COMPLETIONS_MAX):
            if name in self._suspended:
                return
            try:
                await self.renew(name)
                return
            except NotFound:
                return
            except LakehouseError as error:
                logger.warning("a replacement is not complete yet. index=%s error=%s", name, error)
            await self.runtime.sleep(COMPLETION_RETRY.delay_s(attempt, self.runtime))
