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

What it does not do: find out which incarnation lives (`lakehouse.collection`), or speak HTTP.
"""

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from lakehouse.core import entry
from lakehouse.core.entry import EncodedEntry, EncodedRequest, Entry, Kind
from lakehouse.core.errors import (
    Busy,
    Conflict,
    Corrupt,
    CredentialsRefused,
    Dropped,
    Fenced,
    LakehouseError,
    NotFound,
    Outcome,
    StorageFull,
    TooLarge,
    Unavailable,
)
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.named import NamedFile
from lakehouse.core.window import RequestResult
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.shard_index import ShardIndex
from lakehouse.log import Backoff, ShardLog, Slot
from lakehouse.replica import Replica, Verdict
from lakehouse.runtime import Runtime
from lakehouse.snapshots import Image, ShardSnapshots, SnapshotRef, image_of
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

READ_ATTEMPTS = 3
"""Reads of a hole before the log is called damaged; a degraded store may answer 404 for an object it has."""
FOLLOWED_SLOTS_MAX = 40_000
"""Slots a follower remembers before it asks what snapshots cover: four times what makes its writer take one."""
STALE_POLLS = 3
"""Polls that an eventual read may lag before its answer says so."""
RESTARTS_MAX = 32
"""Times one catch-up starts again; each needs a newer snapshot, so more means something is badly wrong."""
FENCE_ATTEMPTS_MAX = 32
SNAPSHOT_RETRY = Backoff(first_s=1.0, most_s=60.0)
"""Waits between attempts at a snapshot that is due; the log is not lost meanwhile, only long."""
READ_AHEAD = 16
"""Slots fetched at once while replaying."""

Published = Callable[[SnapshotRef, "Path | bytes"], Awaitable[None]]


@dataclass(eq=False)
class Pending:
    """A write on its way: queued, or in flight in an unresolved slot."""

    encoded: EncodedRequest
    answer: "asyncio.Future[tuple[RequestResult, int]]"
    in_flight: bool = False


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why replaying stopped."""

    reason: str
    seq: int
    void_fence: Entry | None = None
    withheld: bool = False
    """The store lists the slot but does not give it: that is the store's trouble, not the log's."""


@dataclass
class ShardCounters:
    """What a shard did since it was opened; read by metrics."""

    commits: int = 0
    requests: int = 0
    fences: int = 0
    snapshots: int = 0
    snapshot_failures: int = 0
    restarts: int = 0
    slots_collected: int = 0
    builds: int = 0
    commit_bytes: int = field(default=0)


class Shard:
    """A replica, the log it follows, and the queue of writes."""

    def __init__(
        self,
        store: ObjectStore,
        runtime: Runtime,
        settings: EngineSettings,
        name: str,
        record: Incarnation,
        number: int,
    ) -> None:
        assert record.uuid is not None
        assert record.params is not None
        self.store = store
        self.runtime = runtime
        self.settings = settings
        self.params = record.params
        self.incarnation = record.uuid
        self.seeded = record.seeded
        self.number = number
        self.writer = runtime.uuid()
        self.log = ShardLog(store, runtime, name, record.uuid, number)
        self.snapshots = ShardSnapshots(store, runtime, settings, name, record.uuid, number)
        self.replica = self._empty_replica()
        self.damage: str | None = None
        """Why writes and strong reads are refused; None while the log is whole."""
        self.counters = ShardCounters()
        self.published: Published | None = None
        """Called with each verified snapshot, before garbage is collected."""
        self._chain = asyncio.Lock()
        """Held by whoever advances the replica."""
        self._is_writer = False
        self._queue: deque[Pending] = deque()
        self._queued_bytes = 0
        self._drainer: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._in_flight: list[Pending] = []
        self._forked = False
        """Whether the replica may stand on a chain that is not the log's: the next advance begins again."""
        self._read_failures = 0
        self._looked_at = -1e9
        self._snapshotting = asyncio.Lock()
        self._newest: SnapshotRef | None = None
        """The newest snapshot this process took."""
        self._round: asyncio.Task[None] | None = None
        self._next_round: asyncio.Task[None] | None = None
        self._known_at = runtime.monotonic()
        self._last_write_at = runtime.monotonic()
        self._prober: asyncio.Task[None] | None = None
        self._closing = False
        self._backoff = Backoff(most_s=settings.probe_interval_s)

    # ---------------------------------------------------------------- reading

    @property
    def queued_bytes(self) -> int:
        """Bytes of writes waiting for a commit."""
        return self._queued_bytes

    @property
    def position(self) -> int:
        return self.replica.position

    def __len__(self) -> int:
        return len(self.replica.index)

    @property
    def is_fresh(self) -> bool:
        """Whether a strong read needs no look at the store: nobody else can have written."""
        return self.store.exclusive and self.damage is None

    async def open(self) -> None:
        """Recover: the newest snapshot that verifies, then the log."""
        async with self._chain:
            await self._restart()
        self._keep()

    async def refresh(self, deadline_s: float) -> float:
        """Apply everything acknowledged before this call; seconds of staleness if the store would not say.

        Raises `Corrupt` when the log is damaged, `NotFound` when the index was dropped.
        """
        if self.store.exclusive:
            self._refuse_damage()
            return 0.0
        if self._read_failures < self.settings.breaker_failures:
            try:
                async with asyncio.timeout(deadline_s):
                    await self._joined_catch_up()
            except TimeoutError:
                self._read_failures = self.settings.breaker_failures  # one wait is enough
            except Unavailable:
                self._read_failures += 1
            else:
                return 0.0
        self.poke()
        return max(self.runtime.monotonic() - self._known_at, 0.001)

    @property
    def staleness_s(self) -> float:
        """Seconds since the last look at the store that found nothing missing; 0 for less than a few polls."""
        if self.store.exclusive:
            return 0.0
        age = self.runtime.monotonic() - self._known_at
        return age if age > STALE_POLLS * self.settings.tail_poll_s else 0.0

    def poke(self) -> None:
        """Start a catch-up in the background if the last one is long ago; for eventual reads."""
        now = self.runtime.monotonic()
        if not self.store.exclusive and now - self._known_at > self.settings.tail_poll_s:
            self._look_again(now)

    def _look_again(self, now: float) -> None:
        """Start a catch-up unless one runs or began less than a moment ago."""
        if self._round is None and not self._closing and now - self._looked_at >= self.settings.tail_poll_s:
            self._start_round()

    async def _joined_catch_up(self) -> None:
        """Wait for a catch-up that begins after this call; calls share the one that is about to begin."""
        if self._next_round is None:
            if self._round is None:
                await asyncio.shield(self._start_round())
                return
            self._next_round = self.runtime.spawn(self._round_after(self._round), name="catch-up")
            self._next_round.add_done_callback(_observe)
        await asyncio.shield(self._next_round)

    async def _round_after(self, current: "asyncio.Task[None]") -> None:
        await asyncio.wait([current])
        self._round, self._next_round = self._next_round, None
        try:
            await self._catch_up()
        finally:
            self._round = None

    def _start_round(self) -> "asyncio.Task[None]":
        async def run() -> None:
            try:
                await self._catch_up()
            finally:
                self._round = None

        self._looked_at = self.runtime.monotonic()
        self._round = self.runtime.spawn(run(), name="catch-up")
        self._round.add_done_callback(_observe)
        return self._round

    async def _catch_up(self) -> None:
        began = self.runtime.monotonic()
        if await self.log.after(self.replica.position) or self.damage is not None:
            async with self._chain:
                await self._advance()
        self._read_failures = 0
        self._known_at = began
        self._refuse_dropped()

    def _refuse_damage(self) -> None:
        """Refuse, and look again in the background: a bad read may have been the store's passing trouble."""
        if self.damage is not None:
            self._look_again(self.runtime.monotonic())
            raise Corrupt(self.damage)

    def _refuse_dropped(self) -> None:
        if self.replica.dropped:
            raise Dropped(f"index was dropped. name=`{self.params.name}`")

    # ------------------------------------------------------------- recovering

    def _empty_replica(self) -> Replica:
        index = ShardIndex(self.params, self.settings.index, self.settings.scratch)
        return Replica(self.params, self.incarnation.bytes, self.number, index)

    async def _restart(self) -> None:
        """Begin again from the newest snapshot that verifies, or from nothing.  The chain lock is held."""
        self._forked = True
        await self._advance()

    async def _from_snapshot(self) -> Replica:
        replica = await self._newest_replica(beyond=-1)
        if replica is None and self.seeded and not await self._ends_in_drop():
            self.damage = f"no snapshot verifies and the index began with one. index=`{self.params.name}`"
            raise Corrupt(self.damage)
        return replica or self._empty_replica()

    async def _newest_replica(self, beyond: int) -> Replica | None:
        """A replica from the newest snapshot that covers more than `beyond` and verifies."""
        for _ in range(RESTARTS_MAX):
            try:
                for ref in await self.snapshots.refs():
                    if ref.covered <= beyond:
                        return None
                    try:
                        return await self.snapshots.load(ref)
                    except Corrupt as error:
                        logger.error(
                            "snapshot does not verify: using an older one. key=%s error=%s", ref.key, error
                        )
            except NotFound:  # retired between listing and loading: a newer one exists
                continue
            return None
        raise Unavailable(f"snapshots keep vanishing. index=`{self.params.name}`")

    async def _advance(self) -> None:
        """Apply the log to its end (rule 7).  The chain lock is held.  Raises `Corrupt` on damage.

        What has to begin again is built aside and swapped in when it has caught up, so that reads never go back.
        """
        replica = self.replica
        if self._forked:
            self._is_writer = False
            self.counters.restarts += 1
            replica = await self._from_snapshot()
        self.replica = await self._advanced(replica)
        self._forked = False
        self.damage = None
        if len(self.replica.slots) > FOLLOWED_SLOTS_MAX:
            await self._forget_covered()

    async def _advanced(self, replica: Replica) -> Replica:
        """`replica`, or a newer one, with the whole log applied."""
        doubts = 0
        trouble: _Trouble | None = None
        for _ in range(RESTARTS_MAX):
            trouble = await self._replay(replica, await self.log.after(replica.position))
            if trouble is None:
                return replica
            newer = await self._newest_replica(beyond=replica.position)
            if newer is not None:
                self._is_writer = False
                self.counters.restarts += 1
                replica = newer
                continue
            if trouble.void_fence is not None:
                self._is_writer = False
                replica.skip_void_fence(trouble.void_fence)
                continue
            if await self._ends_in_drop():
                replica.dropped = True
                return replica
            doubts += 1
            if doubts >= READ_ATTEMPTS:
                break
            await self.runtime.sleep(self._backoff.delay_s(doubts, self.runtime))
        self._is_writer = False
        raise self._damaged(trouble)

    def _damaged(self, trouble: _Trouble | None) -> LakehouseError:
        """What to raise when no attempt brought the log further, and why writes are refused from now on."""
        if trouble is None:
            return Unavailable(f"snapshots keep changing. index=`{self.params.name}`")
        if trouble.withheld:
            return Unavailable(f"the store lists a slot that it does not give. slot=`{trouble.seq}`")
        self.damage = (
            f"the log is damaged and no snapshot covers it: restore a snapshot into a new index. "
            f"index=`{self.params.name}` slot=`{trouble.seq}` reason=`{trouble.reason}`"
        )
        logger.error("%s", self.damage)
        return Corrupt(self.damage)

    async def _ends_in_drop(self) -> bool:
        """Whether the log's newest entry ends this life: then what is missing was removed with it."""
        slots = await self.log.after(0)
        try:
            return bool(slots) and (await self.log.read_header(slots[-1])).kind is Kind.DROP
        except NotFound as error:
            raise Unavailable(f"the store lists a slot that it does not give. slot=`{slots[-1]}`") from error
        except Corrupt:
            return False

    async def _forget_covered(self) -> None:
        """A follower takes no snapshots itself, but need not remember what others' snapshots cover."""
        refs = await self.snapshots.refs()
        if refs:
            self.replica.snapshot_heard_of(min(refs[0].covered, self.replica.position))

    async def _replay(self, replica: Replica, seqs: list[int]) -> _Trouble | None:
        """Apply slots in order until one does not continue the chain."""
        for start in range(0, len(seqs), READ_AHEAD):
            chunk = seqs[start : start + READ_AHEAD]
            if chunk[0] != replica.position + 1:
                return _Trouble("a slot is missing", replica.position + 1)
            read = await asyncio.gather(*(self.log.read(seq) for seq in chunk), return_exceptions=True)
            for seq, found in zip(chunk, read, strict=True):
                if isinstance(found, Corrupt | NotFound):
                    return _Trouble(found.message, seq, withheld=isinstance(found, NotFound))
                if isinstance(found, BaseException):
                    raise found
                trouble = self._take(replica, *found)
                if trouble is not None:
                    return trouble
        return None

    def _take(self, replica: Replica, found: Entry, size: int) -> _Trouble | None:
        verdict = replica.judge(found)
        if verdict is Verdict.NEXT:
            replica.apply(found, size)
            if found.header.kind is not Kind.DATA and found.header.writer != self.writer.bytes:
                self._is_writer = False
            return None
        if verdict is Verdict.GAP:
            return _Trouble("a slot is missing", replica.position + 1)
        if verdict is Verdict.OLD:
            return None
        void = found if found.header.kind is Kind.FENCE else None
        return _Trouble("an entry is off the chain", found.header.seq, void)

    # ---------------------------------------------------------------- writing

    async def write(
        self, encoded: EncodedRequest, deadline_s: float | None = None
    ) -> tuple[RequestResult, int]:
        """Commit one request; its result and the position at which it is visible.

        Raises `Busy` or `TooLarge` before anything is queued, `Conflict` for a reused idempotency key, `Unavailable`
        with its outcome, `NotFound` when the index was dropped, `Corrupt` when the log is damaged.
        """
        self._admit(encoded)
        pending = Pending(encoded, asyncio.get_running_loop().create_future())
        self._queue.append(pending)
        self._queued_bytes += len(encoded)
        self._last_write_at = self.runtime.monotonic()
        if self._drainer is None:
            self._drainer = self.runtime.spawn(self._drain(), name=f"writer {self.params.name}/{self.number}")
            self._drainer.add_done_callback(_observe)
        try:
            async with asyncio.timeout(self.settings.write_deadline_s if deadline_s is None else deadline_s):
                result, position = await asyncio.shield(pending.answer)
        except TimeoutError as error:
            self.log.failures = max(self.log.failures, self.settings.breaker_failures)  # one wait is enough
            raise self._given_up(pending) from error
        except asyncio.CancelledError:
            self._given_up(pending)
            raise
        if result.conflict:
            raise Conflict(
                "idempotency key was used before with another body; use a new key for a new request"
            )
        return result, position

    def _admit(self, encoded: EncodedRequest) -> None:
        self._refuse_damage()
        self._refuse_dropped()
        if self._closing:
            raise Unavailable("shutting down", outcome=Outcome.NOT_COMMITTED)
        if len(encoded) > self.settings.batch_bytes_max:
            raise TooLarge(f"batch is over {self.settings.batch_bytes_max} bytes. bytes=`{len(encoded)}`")
        if self._queue and (
            len(self._queue) >= self.settings.queue_requests_max
            or self._queued_bytes + len(encoded) > self.settings.queue_bytes_max
        ):
            raise Busy(
                f"too many writes are waiting. index=`{self.params.name}` waiting=`{len(self._queue)}`"
            )
        if self._is_writer and self.replica.log_bytes > self.settings.log_bytes_max:
            raise Busy(
                f"the log is too long because snapshots fail. bytes=`{self.replica.log_bytes}`",
                retry_after_s=30,
            )
        if self.breaker_open:
            self._ensure_prober()
            raise self._breaker_error()

    @property
    def breaker_open(self) -> bool:
        """Whether the store failed so often that writes are refused at once; one call a second finds out more."""
        return self.log.failures >= self.settings.breaker_failures

    def _breaker_error(self) -> Unavailable:
        return Unavailable(
            f"the store does not answer; it is asked again every {self.settings.probe_interval_s:g} s",
            outcome=Outcome.NOT_COMMITTED,
            retry_after_s=self.settings.probe_interval_s,
        )

    def _ensure_prober(self) -> None:
        if self._prober is None and self._drainer is None and not self._closing:
            self._prober = self.runtime.spawn(self._probe(), name=f"prober {self.params.name}/{self.number}")
            self._prober.add_done_callback(_observe)

    async def _probe(self) -> None:
        """Ask the store until it answers, then close the breaker.  An unresolved slot is a probe by itself."""
        try:
            while self.breaker_open and not self._closing:
                await self.runtime.sleep(self.settings.probe_interval_s)
                with contextlib.suppress(LakehouseError):
                    await self.log.after(self.replica.position)
                    self.log.failures = 0
        finally:
            self._prober = None

    def _given_up(self, pending: Pending) -> Unavailable:
        """Take a write that waited too long out of the queue if it is still there; what is known of it."""
        if pending.in_flight:
            outcome = Outcome.UNKNOWN
        else:
            outcome = Outcome.NOT_COMMITTED
            with contextlib.suppress(ValueError):
                self._queue.remove(pending)
                self._queued_bytes -= len(pending.encoded)
        pending.answer.cancel()
        return Unavailable(
            f"the write was not confirmed within its deadline. index=`{self.params.name}`", outcome=outcome
        )

    async def _drain(self) -> None:
        """Commit group after group until the queue is empty."""
        attempt = 0
        try:
            while self._queue:
                try:
                    async with self._chain:
                        if not self._is_writer:
                            await self._become_writer()
                        await self._commit(self._take_group())
                    attempt = 0
                except (StorageFull, CredentialsRefused) as error:
                    self._fail_queued(error)
                except Unavailable as error:
                    attempt += 1
                    self.log.failures += 1
                    logger.warning("write waits for the store. index=%s error=%s", self.params.name, error)
                    if self.breaker_open:
                        self._fail_queued(self._breaker_error())
                    await self.runtime.sleep(self._backoff.delay_s(attempt, self.runtime))
                except LakehouseError as error:
                    self._fail_queued(error)
        finally:
            self._drainer = None
            if self._queue and not self._closing:
                self._fail_queued(Unavailable("the writer ended", outcome=Outcome.NOT_COMMITTED))
        if self.breaker_open:
            self._ensure_prober()
        self._keep()

    def _fail_queued(self, error: LakehouseError) -> None:
        queued, self._queue, self._queued_bytes = self._queue, deque(), 0
        for pending in queued:
            _fail(pending, error)

    def _take_group(self) -> list[Pending]:
        """The next group: whole requests up to the group limit, at least one."""
        group: list[Pending] = []
        size = 0
        while self._queue and (
            not group or size + len(self._queue[0].encoded) <= self.settings.group_bytes_max
        ):
            pending = self._queue.popleft()
            self._queued_bytes -= len(pending.encoded)
            if pending.answer.done():
                continue
            known = self.replica.window.find(pending.encoded.request.key, pending.encoded.digest)
            if known is not None:
                pending.answer.set_result((known, self.replica.position))
                continue
            size += len(pending.encoded)
            group.append(pending)
        return group

    async def _commit(self, group: list[Pending]) -> None:
        """Put a group into the next slot and acknowledge it (rules 1, 4, 5)."""
        if not group:
            return
        encoded = self._next_entry(Kind.DATA, tuple(pending.encoded for pending in group))
        seq = self.replica.position + 1
        for pending in group:
            pending.in_flight = True
        self._in_flight = group
        try:
            slot = await self.log.settle(seq, encoded, self._backoff)
        except LakehouseError:  # certainly not committed
            self._requeue(group)
            raise
        finally:
            self._in_flight = []
        if slot is Slot.OURS:
            self._acknowledge(group, encoded)
            return
        self._is_writer = False
        if slot is Slot.OTHERS:
            self._requeue(group)
            return
        try:
            await self._advance()
        finally:
            for pending in group:
                known = self.replica.window.find(pending.encoded.request.key, pending.encoded.digest)
                if known is None:
                    _fail(pending, Fenced("another writer took over while this write was in doubt"))
                elif not pending.answer.done():
                    pending.answer.set_result((known, self.replica.position))

    def _acknowledge(self, group: list[Pending], encoded: EncodedEntry) -> None:
        requests = tuple(pending.encoded for pending in group)
        found = Entry(entry.decode_header(encoded.data), encoded.digest, requests)
        results = self.replica.apply(found, len(encoded.data))
        self.counters.commits += 1
        self.counters.requests += len(group)
        self.counters.commit_bytes += len(encoded.data)
        for pending, result in zip(group, results, strict=True):
            if not pending.answer.done():
                pending.answer.set_result((result, self.replica.position))

    def _requeue(self, group: list[Pending]) -> None:
        for pending in reversed(group):
            pending.in_flight = False
            if not pending.answer.done():
                self._queue.appendleft(pending)
                self._queued_bytes += len(pending.encoded)

    def _next_entry(self, kind: Kind, requests: tuple[EncodedRequest, ...] = ()) -> EncodedEntry:
        replica = self.replica
        return entry.encode(
            kind=kind,
            seq=replica.position + 1,
            epoch=replica.epoch + 1 if kind is Kind.FENCE else replica.epoch,
            incarnation=replica.incarnation,
            writer=self.writer.bytes,
            batch=self.runtime.uuid().bytes,
            previous=replica.digest,
            first_operation=replica.operations,
            requests=requests,
            wall_ms=int(self.runtime.now().timestamp() * 1000),
        )

    async def _become_writer(self) -> None:
        """Fence off every other writer, then prove that our view was whole (rules 2, 3).  The chain lock is held."""
        for attempt in range(FENCE_ATTEMPTS_MAX):
            await self._advance()
            self._refuse_dropped()
            fence = self._next_entry(Kind.FENCE)
            seq = self.replica.position + 1
            slot = await self.log.settle(seq, fence, self._backoff)
            if slot is not Slot.OURS:
                await self.runtime.sleep(self._backoff.delay_s(attempt, self.runtime))
                continue
            self.replica.apply(Entry(entry.decode_header(fence.data), fence.digest, ()), len(fence.data))
            self.counters.fences += 1
            self._forked = not await self._validated(seq)
            if not self._forked:
                self._is_writer = True
                return
            logger.warning(
                "fence landed behind a snapshot: starting over. index=%s slot=%s", self.params.name, seq
            )
        raise Fenced("other writers keep taking the log over", outcome=Outcome.NOT_COMMITTED)

    async def _validated(self, fence: int) -> bool:
        """Rule 3: the newest readable snapshot lies below our fence, and its digest is on our chain."""
        for ref in await self.snapshots.refs():
            if ref.covered >= fence:
                return False
            try:
                if not await self._anchored(ref):
                    return False
                self.replica.snapshot_heard_of(ref.covered)
                return True
            except Corrupt as error:
                logger.error("snapshot cannot be read: trying an older one. key=%s error=%s", ref.key, error)
            except NotFound:
                return False
        return True

    async def _anchored(self, ref: SnapshotRef) -> bool:
        return self.replica.digest_at(ref.covered) == await self.snapshots.digest_of(ref)

    # ---------------------------------------------------- dropping and closing

    async def drop(self) -> None:
        """End this log with a DROP entry."""
        async with self._chain:
            for attempt in range(FENCE_ATTEMPTS_MAX):
                if self.replica.dropped:
                    return
                if not self._is_writer:
                    try:
                        await self._become_writer()
                    except NotFound:
                        return
                encoded = self._next_entry(Kind.DROP)
                slot = await self.log.settle(self.replica.position + 1, encoded, self._backoff)
                if slot is Slot.OURS:
                    self.replica.apply(Entry(entry.decode_header(encoded.data), encoded.digest, ()))
                    self._fail_queued(Dropped(f"index was dropped. name=`{self.params.name}`"))
                    return
                self._is_writer = False
                await self._advance()
                await self.runtime.sleep(self._backoff.delay_s(attempt, self.runtime))
        raise Fenced("other writers keep taking the log over", outcome=Outcome.UNKNOWN)

    async def close(self, grace_s: float = 10.0) -> None:
        """Finish what was taken, then stop.  Writes that arrive now are refused."""
        self._closing = True
        drainer = self._drainer
        if drainer is not None:
            await asyncio.wait([drainer], timeout=grace_s)
        for pending in self._in_flight:
            _fail(pending, Unavailable("shutting down while the write was on its way"))
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
            self._keeper.add_done_callback(_observe)

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
        plan = index.maintenance(idle=idle)
        if plan is None:
            return False
        try:
            built = await self.runtime.run_background(plan.run, self.settings.build_threads)
        finally:
            plan.stop.set()  # a cancelled keeper leaves the worker with something to notice
        if index is self.replica.index:
            index.install(built)
            self.counters.builds += 1
        return True

    @property
    def settled(self) -> bool:
        """Whether no write, build or snapshot is under way or waiting for quiet."""
        return self._keeper is None and self._drainer is None

    def _snapshot_is_due(self) -> bool:
        entries = self.replica.position - max(self._newest.covered if self._newest else 0, self.replica.base)
        return self._is_writer and (
            self.replica.log_bytes >= self.settings.snapshot_log_bytes
            or entries >= self.settings.snapshot_log_entries
        )

    def _worth_a_snapshot(self) -> bool:
        size = self._newest.size if self._newest else 0
        return self._is_writer and self.replica.log_bytes >= max(self.settings.snapshot_idle_bytes, size // 4)

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
        """Rule 6: only a validated writer may; a lagging reader's snapshot could hide acknowledged data."""
        return self._is_writer

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
            self._refuse_dropped()
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

        FENCE and DROP entries stay for ever: a writer that wakes up late must find its slot taken (rule 2).
        Raises `Corrupt` when two snapshots of one position differ.
        """
        refs = await self.snapshots.refs()
        positions = sorted({ref.covered for ref in refs}, reverse=True)[:2]
        verified = {ref.covered for ref in refs if ref.key in self.snapshots.verified}
        if len(positions) < 2 or not verified.issuperset(positions):
            return 0
        kept = [ref for ref in refs if ref.covered in positions]
        await self._refuse_differing(kept)
        slots = await self.log.after(0)
        garbage = [seq for seq in slots[:-1] if seq <= positions[1] and await self.is_garbage(seq)]
        await self.log.delete(garbage)
        await self.snapshots.retire([ref for ref in refs if ref.covered not in positions])
        self.counters.slots_collected += len(garbage)
        return len(garbage)

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


def _fail(pending: Pending, error: LakehouseError) -> None:
    if not pending.answer.done():
        pending.answer.set_exception(error)
        pending.answer.exception()  # the waiter may be gone: then nobody needs to hear of it


def _observe(task: "asyncio.Task[None]") -> None:
    """Take a background task's error so that it is not reported as never retrieved; waiters see it too."""
    if (
        not task.cancelled()
        and (error := task.exception()) is not None
        and not isinstance(error, LakehouseError)
    ):
        logger.error("background task failed. task=%s", task.get_name(), exc_info=error)
