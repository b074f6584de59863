"""A shard that follows its log: it recovers, catches up, and says how far a read may trust what it holds.

Whatever it builds anew is built aside and swapped in, so reads never go back; a hole in the log, or an entry off the
chain, is answered by a newer snapshot or by refusing, never by truncating.  What this module does not do: write
(`lakehouse.writing`), or decide what is kept (`lakehouse.shard`).
"""

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import Any

from lakehouse.core.entry import ALL_CARRIED, Entry, Kind
from lakehouse.core.errors import Corrupt, Dropped, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.shard_index import ShardIndex
from lakehouse.log import Backoff, ShardLog
from lakehouse.replica import Replica, Verdict
from lakehouse.runtime import Runtime
from lakehouse.snapshots import ShardSnapshots
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
READ_AHEAD = 16
"""Slots fetched at once while replaying."""


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


class Follower:
    """A replica and the log it follows."""

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
        self.entry_version = record.entry_version
        self.continues = record.continues
        """What this log takes over of others before it takes writes of its own."""
        self.number = number
        self.writer = runtime.uuid()
        """Who this is in the entries it writes."""
        self.log = ShardLog(store, runtime, name, record.uuid, number)
        self.snapshots = ShardSnapshots(store, runtime, settings, name, record.uuid, number)
        self.replica = self._empty_replica()
        self.damage: str | None = None
        """Why writes and strong reads are refused; None while the log is whole."""
        self.counters = ShardCounters()
        self._chain = asyncio.Lock()
        """Held by whoever advances the replica."""
        self._is_writer = False
        """Whether the newest FENCE is ours and was validated."""
        self._forked = False
        """Whether the replica may stand on a chain that is not the log's: the next advance begins again."""
        self._read_failures = 0
        self._looked_at = -1e9
        self._round: asyncio.Task[None] | None = None
        self._next_round: asyncio.Task[None] | None = None
        self._known_at = runtime.monotonic()
        self._closing = False
        self.lingers = False
        """Whether reads go on after the log's end, until what replaces it is loaded."""
        self._backoff = Backoff(most_s=settings.probe_interval_s)

    # ---------------------------------------------------------------- reading

    @property
    def begun(self) -> bool:
        """Whether the log has taken over all that it continues; nobody is served from it before."""
        return self.continues is None or self.replica.carried == ALL_CARRIED

    @property
    def position(self) -> int:
        return self.replica.position

    def __len__(self) -> int:
        return len(self.replica.index)

    def set_ef_search(self, ef_search: int) -> None:
        """Let searches keep this many candidates from now on.  Raises `Invalid`."""
        self.params = replace(self.params, ef_search=ef_search)
        if self.replica.index.params.ef_search != ef_search:
            self.replica.index.with_ef_search(ef_search)

    @property
    def is_fresh(self) -> bool:
        """Whether a strong read needs no look at the store: nobody else can have written."""
        return self.store.exclusive and self.damage is None

    async def refresh(self, deadline_s: float) -> float:
        """Apply everything acknowledged before this call; seconds of staleness if the store would not say.

        Raises `Corrupt` when the log is damaged, `NotFound` when the index was dropped.
        """
        if self.lingers and self.replica.dropped:
            return max(self.runtime.monotonic() - self._known_at, 0.001)
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
                await self._outcome_of(self._start_round())
                return
            self._next_round = self.runtime.spawn(self._round_after(self._round), name="catch-up")
            self._next_round.add_done_callback(observe)
        await self._outcome_of(self._next_round)

    async def _outcome_of(self, round_: "asyncio.Task[None]") -> None:
        """Wait for a catch-up that others may wait for too; `close` may cancel it, which is no cancellation of ours."""
        await asyncio.wait([round_])
        if round_.cancelled():
            self.refuse_dropped()
            raise Unavailable("shutting down", outcome=Outcome.NOT_COMMITTED)
        round_.result()

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
        self._round.add_done_callback(observe)
        return self._round

    async def _catch_up(self) -> None:
        began = self.runtime.monotonic()
        if await self.log.after(self.replica.position) or self.damage is not None:
            async with self._chain:
                await self._advance()
        self._read_failures = 0
        if not (self.lingers and self.replica.dropped):
            self._known_at = began
            self.refuse_dropped()

    def _refuse_damage(self) -> None:
        """Refuse, and look again in the background: a bad read may have been the store's passing trouble."""
        if self.damage is not None:
            self._look_again(self.runtime.monotonic())
            raise Corrupt(self.damage)

    def refuse_dropped(self) -> None:
        """Raises `Dropped` when the log has ended."""
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
        if replica is None and self.seeded and not await self.log.ends_in_drop():
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
        self.replica.entry_version = self.entry_version
        self.set_ef_search(self.params.ef_search)
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
            if await self.log.ends_in_drop():
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


def observe(task: "asyncio.Task[Any]") -> None:
    """Take a background task's error so that it is not reported as never retrieved; waiters see it too."""
    if (
        not task.cancelled()
        and (error := task.exception()) is not None
        and not isinstance(error, LakehouseError)
    ):
        logger.error("background task failed. task=%s", task.get_name(), exc_info=error)
