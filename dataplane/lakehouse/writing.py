"""A shard that writes when it is asked to: it fences off every other writer, then commits group after group.

One entry is in flight; what arrives meanwhile forms the next.  Nothing is acknowledged before its slot is ours, and
nothing from memory.  What this module does not do: snapshots and garbage (`lakehouse.shard`).
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from lakehouse import incarnations
from lakehouse.core import entry
from lakehouse.core.entry import Cursor, EncodedEntry, EncodedRequest, Entry, Kind
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
from lakehouse.core.window import RequestResult
from lakehouse.engine_settings import EngineSettings
from lakehouse.following import Follower, observe
from lakehouse.log import Slot
from lakehouse.runtime import Runtime
from lakehouse.snapshots import SnapshotRef
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

FENCE_ATTEMPTS_MAX = 32


@dataclass(eq=False)
class Pending:
    """A write on its way: queued, or in flight in an unresolved slot."""

    encoded: EncodedRequest
    answer: "asyncio.Future[tuple[RequestResult, int]]"
    in_flight: bool = False


class Writer(Follower):
    """A follower with a queue of writes."""

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
        self.opened: Callable[[Incarnation], None] | None = None
        """Called with the record that says that writers may change the index, before the first of them is answered."""
        self._is_given = record.is_given
        """Whether only a dataset has changed it, as far as this process knows."""
        self._queue: deque[Pending] = deque()
        self._queued_bytes = 0
        self._in_flight: list[Pending] = []
        self._drainer: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self._last_write_at = runtime.monotonic()

    def _keep(self) -> None:
        """The queue is empty: the moment for what a shard does in the background."""

    @property
    def queued_bytes(self) -> int:
        """Bytes of writes waiting for a commit."""
        return self._queued_bytes

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
            self._drainer.add_done_callback(observe)
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
        self.refuse_dropped()
        if not self.begun:
            raise Unavailable(
                f"the index takes over what another life acknowledged. index=`{self.params.name}`",
                outcome=Outcome.NOT_COMMITTED,
            )
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

    async def open_to_writers(self) -> None:
        """See to it that a record says so before the index holds what no dataset gave it: its dataset's next version
        must not replace that unasked.

        It is said again at each write while another life counts already, which takes these writes over.
        """
        if not self._is_given:
            return
        record = await incarnations.open_to_writers(
            self.store, self.runtime, self.params.name, self.incarnation
        )
        if record is not None:
            self._is_given = False
            if self.opened is not None:
                self.opened(record)

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
            self._prober.add_done_callback(observe)

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
                        await self.open_to_writers()
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
            fail(pending, error)

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
                    fail(pending, Fenced("another writer took over while this write was in doubt"))
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
            version=self.entry_version,
        )

    async def _become_writer(self) -> None:
        """Fence off every other writer, then prove that our view was whole (rules 2, 3).  The chain lock is held."""
        for attempt in range(FENCE_ATTEMPTS_MAX):
            await self._advance()
            self.refuse_dropped()
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

    # ------------------------------------------------------------ taking over

    async def looked(self) -> None:
        """Apply the log to its end.  Raises what a damaged log or a store that does not answer raises."""
        async with self._chain:
            await self._advance()

    async def carry(self, requests: tuple[EncodedRequest, ...], before: Cursor | None) -> bool:
        """Put requests of the replaced life into this log, if it has taken over just up to `before`.

        False when another process was there first.  Raises `Unavailable`, `Dropped`.
        """
        async with self._chain:
            if not self._is_writer:
                await self._become_writer()
            if self.replica.carried != before:
                return False
            if any(encoded.request.ids for encoded in requests):
                await self.open_to_writers()
            encoded = self._next_entry(Kind.DATA, requests)
            slot = await self.log.settle(self.replica.position + 1, encoded, self._backoff)
            if slot is not Slot.OURS:
                self._is_writer = False
                return False
            found = Entry(entry.decode_header(encoded.data), encoded.digest, requests)
            self.replica.apply(found, len(encoded.data))
            return True

    # --------------------------------------------------------------- dropping

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

    def end_here(self) -> None:
        """Another way than `drop` has ended the log: refuse what comes."""
        self.replica.dropped = True
        self._is_writer = False
        self._fail_queued(Dropped(f"index was dropped. name=`{self.params.name}`"))


def fail(pending: Pending, error: LakehouseError) -> None:
    """Answer a write with an error unless it has an answer."""
    if not pending.answer.done():
        pending.answer.set_exception(error)
        pending.answer.exception()  # the waiter may be gone: then nobody needs to hear of it
