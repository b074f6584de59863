"""One shard of one index: it follows its log, and becomes the writer when it is asked to write.

The promise: a write that was acknowledged survives any crash of any process at any moment and is seen by every later
strong read; a write answered `unknown`, or not at all, happened wholly or not at all.  It rests on seven rules:

1. A slot is created once; only the slot itself says whose entry it holds (`ShardLog.settle`).
2. A FENCE makes its author the writer, and is kept for ever.
3. After fencing, the newest snapshot must lie below the fence and on our chain, else we start over (`_validated`).
4. Nothing is acknowledged before its slot is ours, and nothing from memory.
5. One entry is in flight; what arrives meanwhile forms the next one: group commit without a timer.
6. Only a validated writer snapshots or collects garbage.
7. A hole, or an entry off the chain, is answered by a newer snapshot or by refusing, never by truncating.

`lakehouse.following` keeps rule 7, `lakehouse.writing` rules 1 to 5; here are snapshots, garbage, and the end.
What it does not do: find out which incarnation lives (`lakehouse.collection`), or speak HTTP.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from lakehouse import background
from lakehouse.core import names
from lakehouse.core.entry import Kind
from lakehouse.core.errors import Corrupt, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.named import NamedFile
from lakehouse.engine_settings import EngineSettings
from lakehouse.following import observe
from lakehouse.log import Backoff
from lakehouse.runtime import Runtime
from lakehouse.snapshots import Image, SnapshotRef, image_of
from lakehouse.store.base import ObjectStore
from lakehouse.writing import Writer, fail

logger = logging.getLogger(__name__)

SNAPSHOT_RETRY = Backoff(first_s=1.0, most_s=60.0)
"""Waits between attempts at a snapshot that is due; the log is not lost meanwhile, only long."""

Published = Callable[[SnapshotRef, "Path | bytes"], Awaitable[None]]


class Shard(Writer):
    """A replica, the log it follows, the queue of writes, and the snapshots that keep the log short."""

    def __init__(
        self,
        store: ObjectStore,
        runtime: Runtime,
        settings: EngineSettings,
        name: str,
        record: Incarnation,
        number: int,
    ) -> None:
        super().__init__(store, runtime, settings, name, record, number)
        self.published: Published | None = None
        """Called with each verified snapshot, before garbage is collected."""
        self._keeper: asyncio.Task[None] | None = None
        self._snapshotting = asyncio.Lock()
        self._newest: SnapshotRef | None = None
        """The newest snapshot this process took."""

    # ---------------------------------------------------- opening and closing

    async def open(self) -> None:
        """Recover: the newest snapshot that verifies, then the log."""
        async with self._chain:
            await self._restart()
        self._keep()

    async def close(self, grace_s: float = 10.0) -> None:
        """Finish what was taken, then stop.  Writes that arrive now are refused."""
        self._closing = True
        drainer = self._drainer
        if drainer is not None:
            await asyncio.wait([drainer], timeout=grace_s)
        for pending in self._in_flight:
            fail(pending, Unavailable("shutting down while the write was on its way"))
        tasks = [task for task in self._tasks() if task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._fail_queued(Unavailable("shutting down", outcome=Outcome.NOT_COMMITTED))

    def _tasks(self) -> tuple["asyncio.Task[None] | None", ...]:
        return self._drainer, self._keeper, self._prober, self._round, self._next_round

    # ------------------------------------------- background: build, snapshot, collect

    def _keep(self) -> None:
        if self._keeper is None and not self._closing:
            self._keeper = self.runtime.spawn(
                self._maintain(), name=f"keeper {self.params.name}/{self.number}"
            )
            self._keeper.add_done_callback(observe)

    async def _maintain(self) -> None:
        """Build segments and snapshot until there is nothing to do; started by each round of writes."""
        failures = 0
        retry_at = 0.0
        try:
            while not self._closing and not self.replica.dropped:
                now = self.runtime.monotonic()
                idle_for = now - self._last_write_at
                idle = idle_for >= self.settings.settle_after_s and self._drainer is None
                wanted = self._snapshot_is_due() or (idle and self._worth_a_snapshot())
                if wanted and now >= retry_at:
                    failures = 0 if await self._snapshot_quietly() else failures + 1
                    retry_at = now + SNAPSHOT_RETRY.delay_s(failures, self.runtime) if failures else 0.0
                elif await self._build_once(idle=idle):
                    continue
                elif idle and not wanted:
                    return
                else:
                    quiet_in = retry_at - now if idle else self.settings.settle_after_s - idle_for
                    await self.runtime.sleep(max(0.05, quiet_in))
        finally:
            self._keeper = None

    async def _build_once(self, *, idle: bool) -> bool:
        index = self.replica.index
        threads = self.settings.build_threads
        built = await background.build_once(
            index, self.runtime, threads, idle=idle, current=lambda: index is self.replica.index
        )
        self.counters.builds += built
        return built

    @property
    def settled(self) -> bool:
        """Whether no write, build or snapshot is under way or waiting for quiet."""
        return self._keeper is None and self._drainer is None

    def _snapshot_is_due(self) -> bool:
        entries = self.replica.position - max(self._newest.covered if self._newest else 0, self.replica.base)
        return self.may_snapshot() and (
            self.replica.log_bytes >= self.settings.snapshot_log_bytes
            or entries >= self.settings.snapshot_log_entries
        )

    def _worth_a_snapshot(self) -> bool:
        size = self._newest.size if self._newest else 0
        return self.may_snapshot() and self.replica.log_bytes >= max(
            self.settings.snapshot_idle_bytes, size // 4
        )

    async def _snapshot_quietly(self) -> bool:
        """Take a snapshot; whether that succeeded."""
        try:
            await self.snapshot()
        except LakehouseError as error:
            self.counters.snapshot_failures += 1
            logger.error("snapshot failed: the log stays. index=%s error=%s", self.params.name, error)
            return False
        return True

    def may_snapshot(self) -> bool:
        """Rule 6: only a validated writer may; a lagging reader's snapshot could hide acknowledged data.

        Nor before the log has taken over all that it continues: a snapshot past position 0 says that it has.
        """
        return self._is_writer and self.begun

    async def snapshot(self) -> SnapshotRef:
        """Take, put and verify a snapshot of all that is acknowledged now, then collect the garbage it allows."""
        async with self._snapshotting:
            image = await self._image()
            covered = image.covered.sequence
            if self._newest is not None and self._newest.covered == covered:
                return self._newest
            replica = self.replica
            ref, content = await self.snapshots.write(image, self.writer)
            try:
                self.counters.snapshots += 1
                self._newest = ref
                replica.snapshot_heard_of(covered)
                await self._publish(ref, content)
                await self.collect_garbage()
            finally:
                if isinstance(content, Path):
                    await self.runtime.run_io(content.unlink, missing_ok=True)
            return ref

    async def snapshot_under(self, key: str) -> NamedFile:
        """A snapshot of all that is acknowledged now under a key of its own, which no garbage collection touches."""
        async with self._snapshotting:
            image = await self._image()
            ref, content = await self.snapshots.write_under(key, image)
            if isinstance(content, Path):
                await self.runtime.run_io(content.unlink, missing_ok=True)
            covered = image.covered
            return NamedFile(self.number, key, covered.sequence, covered.digest.hex(), ref.size, image.items)

    async def _image(self) -> Image:
        """What a validated writer holds, with the whole log applied (rule 6)."""
        async with self._chain:
            if not self.store.exclusive:
                await self._advance()
            if not self.may_snapshot():
                await self._become_writer()
            self.refuse_dropped()
            if not self.begun:
                raise Unavailable(
                    f"the index takes over what another life acknowledged. index=`{self.params.name}`",
                    outcome=Outcome.NOT_COMMITTED,
                )
            return image_of(self.replica)

    async def _publish(self, ref: SnapshotRef, content: Path | bytes) -> None:
        """Tell of a snapshot; what listens is a convenience, and its failure takes nothing back."""
        if self.published is not None:
            try:
                await self.published(ref, content)
            except LakehouseError as error:
                logger.warning("compatibility copy failed. index=%s error=%s", self.params.name, error)

    async def collect_garbage(self) -> int:
        """Delete DATA entries up to the second-newest snapshot that we verified, save the log's newest entry.

        FENCE and DROP entries stay for ever: a writer that wakes up late must find its slot taken (rule 2).  While the
        life is pinned no entry goes: what is to replace it takes over what comes after a position that it chose once
        the pin was there, so that a collection which saw no pin deletes nothing after it.
        Raises `Corrupt` when two snapshots of one position differ.
        """
        refs = await self.snapshots.refs()
        positions = sorted({ref.covered for ref in refs}, reverse=True)[:2]
        verified = {ref.covered for ref in refs if ref.key in self.snapshots.verified}
        if len(positions) < 2 or not verified.issuperset(positions):
            return 0
        kept = [ref for ref in refs if ref.covered in positions]
        await self._refuse_differing(kept)
        garbage = [] if await self._is_pinned() else await self._garbage(positions[1])
        await self.log.delete(garbage)
        await self.snapshots.retire([ref for ref in refs if ref.covered not in positions])
        self.counters.slots_collected += len(garbage)
        return len(garbage)

    async def _is_pinned(self) -> bool:
        return bool(await self.store.list(names.pin_prefix(self.params.name, self.incarnation), limit=1))

    async def _garbage(self, covered: int) -> list[int]:
        slots = await self.log.after(0)
        return [seq for seq in slots[:-1] if seq <= covered and await self.is_garbage(seq)]

    async def _refuse_differing(self, refs: list[SnapshotRef]) -> None:
        for one, other in itertools.pairwise(refs):
            if one.covered == other.covered and (
                await self.snapshots.digest_of(one) != await self.snapshots.digest_of(other)
            ):
                raise Corrupt(f"two snapshots of one position differ. keys=`{one.key}` `{other.key}`")

    async def is_garbage(self, seq: int) -> bool:
        """Whether the entry in a covered slot may go."""
        facts = self.replica.slots.get(seq)
        kind = None if facts is None else facts.kind
        if kind is None:
            try:
                kind = (await self.log.read_header(seq)).kind
            except (NotFound, Corrupt):
                return False
        return kind is Kind.DATA
