"""A shard that other processes keep: asked at any of them, written to at the preferred one.

A read that is not answered is asked again elsewhere.  A write that is not answered is repeated elsewhere under its own
key, since a shard does one request once; only when time runs out is it `unknown`.  Every call names the life it means,
so no answer is another life's.  What this module does not do: keep items.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar
from urllib.parse import quote

from lakehouse.core.entry import EncodedRequest
from lakehouse.core.errors import (
    Busy,
    Corrupt,
    Dropped,
    LakehouseError,
    OtherLife,
    Outcome,
    Unavailable,
)
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.named import NamedFile
from lakehouse.core.types import Item, Vectors
from lakehouse.core.window import RequestResult
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.predicate import Predicate
from lakehouse.log import Backoff, ShardLog
from lakehouse.placed_shard import Ask, Chunks, Found, Freshness, Itself
from lakehouse.remote import wire
from lakehouse.remote.addresses import Addresses
from lakehouse.remote.calls import Calls, Unanswered, Unsent
from lakehouse.remote.predicates import to_wire
from lakehouse.remote.wire import Behind, Read, Seen
from lakehouse.runtime import Runtime
from lakehouse.shard import Shard
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)
T = TypeVar("T")

READ_S, ATTEMPT_S = 20.0, 6.5
"""Seconds a read may take over all attempts, and one may: longer than a shard waits for its store."""
SNAPSHOT_S = 900.0
"""Seconds a snapshot may take: it is written and read back."""
PAUSE_S = 0.1
"""Between two rounds over all addresses."""


def path_of(name: str, record: Incarnation, number: int) -> str:
    """Where a shard of a life is asked; the verb follows."""
    assert record.uuid is not None
    return f"/internal/indexes/{quote(name, safe='')}/shards/{record.uuid.hex}/{number}/"


def preference(name: str, record: Incarnation, number: int) -> str:
    """What the preferred process of a shard is chosen by."""
    assert record.uuid is not None
    return f"{name}/{record.uuid.hex}/{number}"


class RemoteShard:
    """A shard of one life of an index, elsewhere."""

    local: Shard | None = None

    def __init__(
        self,
        store: ObjectStore,
        runtime: Runtime,
        settings: EngineSettings,
        name: str,
        record: Incarnation,
        number: int,
        addresses: Addresses,
        calls: Calls,
    ) -> None:
        assert record.params is not None
        self.number = number
        self.dropped = False
        self._store = store
        self._runtime = runtime
        self._settings = settings
        self._name = name
        self._record = record
        self._dimension = record.params.dimension
        self._addresses = addresses
        self._calls = calls
        self._path = path_of(name, record, number)
        self._preference = preference(name, record, number)
        self._seen = Seen(0, 0)
        self._stale_s = 0.0

    # ------------------------------------------------------------------ facts

    @property
    def position(self) -> int:
        return self._seen.position

    def __len__(self) -> int:
        return self._seen.length

    @property
    def settled(self) -> bool:
        return self._seen.settled

    @property
    def staleness_s(self) -> float:
        return self._stale_s

    async def open(self) -> None:
        """Nothing: whoever keeps it opens it."""

    async def close(self) -> None:
        """Nothing."""

    def set_ef_search(self, ef_search: int) -> None:
        """Nothing: each process is told itself."""

    def end_here(self) -> None:
        self.dropped = True

    def is_fresh(self, wanted: Freshness) -> bool:
        return not wanted.strong and self._seen.position >= wanted.sequence

    def _saw(self, seen: Seen) -> None:
        self._stale_s = seen.stale_s
        if seen.position >= self._seen.position:
            self._seen = seen

    # ---------------------------------------------------------------- reading

    async def refresh(self, wanted: Freshness) -> float:
        if self.is_fresh(wanted):
            return 0.0
        sent = Read(wanted.strong, wanted.sequence)
        seen = wire.decode(await self._read("refresh", sent), type=Seen)
        self._saw(seen)
        return seen.stale_s

    async def search(self, queries: Vectors, ask: Ask, wanted: Freshness) -> Found:
        sent = wire.search_of(queries, ask, strong=wanted.strong, sequence=wanted.sequence)
        answer = wire.decode(await self._read("search", sent), type=wire.Searched)
        self._saw(answer.seen)
        return wire.found_in(answer, self._dimension)

    async def item(self, item_id: str, wanted: Freshness) -> tuple[Item | None, float]:
        sent = wire.ItemOf(strong=wanted.strong, sequence=wanted.sequence, id=item_id)
        answer = wire.decode(await self._read("item", sent), type=wire.Items)
        self._saw(answer.seen)
        return wire.item_of(answer.items[0]) if answer.items else None, answer.seen.stale_s

    async def scroll(
        self, after: str | None, limit: int, predicate: Predicate | None, wanted: Freshness
    ) -> tuple[list[Item], str | None, float]:
        sent = wire.Scroll(
            strong=wanted.strong,
            sequence=wanted.sequence,
            after=after,
            limit=limit,
            predicate=to_wire(predicate),
        )
        answer = wire.decode(await self._read("scroll", sent), type=wire.Items)
        self._saw(answer.seen)
        return [wire.item_of(item) for item in answer.items], answer.after, answer.seen.stale_s

    async def count(self, predicate: Predicate | None, wanted: Freshness) -> tuple[int, float]:
        sent = wire.Matching(strong=wanted.strong, sequence=wanted.sequence, predicate=to_wire(predicate))
        answer = wire.decode(await self._read("count", sent), type=wire.Counted)
        self._saw(answer.seen)
        return answer.count, answer.seen.stale_s

    async def sample(self, samples: int) -> Vectors:
        answer = wire.decode(await self._read("sample", wire.Sample(samples=samples)), type=wire.Sampled)
        self._saw(answer.seen)
        return wire.rows_of(answer.vectors, self._dimension)

    async def stats(self) -> dict[str, object]:
        answer = wire.decode(await self._read("stats", Read()), type=wire.Stats)
        self._saw(answer.seen)
        return answer.stats

    @asynccontextmanager
    async def chunks(self, predicate: Predicate | None) -> AsyncIterator[Chunks]:
        async with AsyncExitStack() as stack:

            async def begin(address: str, sent: bytes, left_s: float) -> AsyncIterator[bytes]:
                stream = self._calls.stream(address, self._path + "chunks", sent, left_s)
                return await stack.enter_async_context(stream)

            pieces = await self._asked(wire.Matching(predicate=to_wire(predicate)), begin, tells=False)
            yield self._decoded(pieces)

    async def _decoded(self, pieces: AsyncIterator[bytes]) -> Chunks:
        try:
            async for piece in pieces:
                yield wire.chunk_of(piece, self._dimension)
        except Unanswered as error:
            raise Unavailable(
                f"the items of a shard broke off: try again. index=`{self._name}` shard=`{self.number}`"
            ) from error

    async def _read(self, verb: str, sent: Read) -> bytes:
        async def post(address: str, body: bytes, left_s: float) -> bytes:
            return await self._calls.post(address, self._path + verb, body, left_s)

        return await self._asked(sent, post)

    async def _asked(
        self, sent: Read, call: Callable[[str, bytes, float], Awaitable[T]], *, tells: bool = True
    ) -> T:
        """The answer of any process that keeps the shard and has seen what we have.

        Of one that has not, if need be, where the answer itself tells how stale it is: what was told of another
        answer, even a moment ago, says nothing of this one.

        Raises `OtherLife`, `Dropped`, and `Unavailable` when nobody answers in time.
        """
        sent.at_least = self._seen.position
        until = self._runtime.monotonic() + READ_S
        while True:
            failed: Unavailable | None = None
            behind = 0
            for address in await self._addresses.by_turn():
                left_s = until - self._runtime.monotonic()
                if left_s <= 0:
                    break
                try:
                    answer = await call(address, wire.encode(sent), min(left_s, ATTEMPT_S))
                except (Unsent, Unanswered) as error:
                    self._addresses.suspect(address)
                    logger.info("a shard's process does not answer. address=%s error=%s", address, error)
                except Dropped:
                    self.dropped = True
                    raise
                except Behind as error:
                    behind, failed = behind + 1, failed or error
                except Unavailable as error:
                    failed = error if failed is None or isinstance(error, OtherLife) else failed
                else:
                    self._addresses.trust(address)
                    return answer
            if behind and tells:  # nobody has more: yesterday's answer, with its age, is better than none
                sent.at_least, sent.strong = 0, True
                continue
            if failed is not None or self._runtime.monotonic() + PAUSE_S >= until:
                raise failed or self._nobody()
            await self._runtime.sleep(PAUSE_S)

    def _nobody(self, outcome: Outcome = Outcome.NOT_COMMITTED) -> Unavailable:
        return Unavailable(
            f"no process that keeps this shard answers: try again. index=`{self._name}` shard=`{self.number}`",
            outcome=outcome,
        )

    # ---------------------------------------------------------------- writing

    async def write(self, encoded: EncodedRequest) -> tuple[RequestResult, int]:
        until = self._runtime.monotonic() + self._settings.write_deadline_s
        in_doubt = False
        failed: LakehouseError | None = None
        while (left_s := until - self._runtime.monotonic()) > 0:
            for address in await self._addresses.by_preference(self._preference):
                left_s = until - self._runtime.monotonic()
                if left_s <= 0:
                    break
                try:
                    written = await self.write_at(address, encoded, left_s / 2)
                except (Unsent, Unanswered) as error:
                    self._addresses.suspect(address)
                    in_doubt = in_doubt or isinstance(error, Unanswered)
                except (Dropped, Corrupt) as error:
                    self.dropped = self.dropped or isinstance(error, Dropped)
                    if in_doubt:  # an unanswered attempt may have come before the end
                        raise _in_doubt(error) from error
                    raise
                except (Unavailable, Busy) as error:
                    unknown = isinstance(error, Unavailable) and error.outcome is Outcome.UNKNOWN
                    in_doubt, failed = in_doubt or unknown, error
                    if not in_doubt and not isinstance(error, OtherLife):
                        raise
                else:
                    self._addresses.trust(address)
                    return written
            if failed is not None and not in_doubt:
                raise failed
            await self._runtime.sleep(min(PAUSE_S, max(0.0, left_s)))
        raise self._nobody(Outcome.UNKNOWN if in_doubt else Outcome.NOT_COMMITTED) from failed

    async def write_at(
        self, address: str, encoded: EncodedRequest, deadline_s: float
    ) -> tuple[RequestResult, int]:
        """Write at one process, which has so many seconds.  Raises `Unsent`, `Unanswered` too."""
        path = f"{self._path}write?deadline_s={deadline_s:.3f}"
        data = await self._calls.post(address, path, encoded.data, deadline_s + 1.0)
        written = wire.decode(data, type=wire.Written)
        self._saw(Seen(written.position, written.length, settled=False, stale_s=self._stale_s))
        result = RequestResult(
            written.added, written.skipped, written.deleted, written.length, written.replayed
        )
        return result, written.position

    async def snapshot(self) -> NamedFile:
        return await self._snapshot("snapshot", b"")

    async def snapshot_under(self, key: str) -> NamedFile:
        return await self._snapshot("snapshot-under", wire.encode(wire.SnapshotUnder(key)))

    async def _snapshot(self, verb: str, body: bytes) -> NamedFile:
        for address in await self._addresses.by_preference(self._preference):
            try:
                return await self.snapshot_at(address, verb, body)
            except Unsent:
                self._addresses.suspect(address)
            except Unanswered as error:
                self._addresses.suspect(address)
                raise self._nobody(Outcome.UNKNOWN) from error
        raise self._nobody()

    async def snapshot_at(self, address: str, verb: str, body: bytes) -> NamedFile:
        """A snapshot taken by one process.  Raises `Unsent`, `Unanswered` too."""
        data = await self._calls.post(address, self._path + verb, body, SNAPSHOT_S, twice=False)
        return wire.decode(data, type=NamedFile)

    async def drop(self) -> None:
        """End the log from here: it needs nobody who keeps the shard."""
        assert self._record.uuid is not None
        log = ShardLog(self._store, self._runtime, self._name, self._record.uuid, self.number)
        await log.end(Backoff(most_s=self._settings.probe_interval_s))
        self.dropped = True


def _in_doubt(error: LakehouseError) -> Unavailable:
    """After an attempt that was not answered: whatever is said of a later one, that one may have happened."""
    return Unavailable(f"the write may have happened: repeat it. reason=`{error}`")


class PreferredWriter:
    """Writes for a shard that this process and others keep: at the preferred one, and here when that does not answer.

    Two processes that both write cost each other time, never data; so this is for speed alone.
    """

    def __init__(
        self, shard: Shard, remote: RemoteShard, addresses: Addresses, calls: Calls, key: str
    ) -> None:
        self._shard = shard
        self._remote = remote
        self._addresses = addresses
        self._calls = calls
        self._key = key

    async def write(self, encoded: EncodedRequest) -> tuple[RequestResult, int]:
        preferred = await self._elsewhere()
        if preferred is None:
            return await self._shard.write(encoded)
        deadline_s = self._shard.settings.write_deadline_s
        until = self._shard.runtime.monotonic() + deadline_s
        in_doubt = False
        try:
            return await self._remote.write_at(preferred, encoded, deadline_s / 2)
        except Unsent:
            self._addresses.suspect(preferred)
        except Unanswered:
            self._addresses.suspect(preferred)
            in_doubt = True
        except Dropped:  # nothing was done; whether that life has ended is for this process to find out, too
            pass
        except Unavailable as error:
            if error.outcome is Outcome.UNKNOWN:
                raise
        left_s = max(1.0, until - self._shard.runtime.monotonic())
        try:
            return await self._shard.write(encoded, left_s)
        except (Unavailable, Busy, Dropped, Corrupt) as error:
            if not in_doubt:
                raise
            raise _in_doubt(error) from error

    async def snapshot(self) -> NamedFile:
        preferred = await self._elsewhere()
        if preferred is not None:
            try:
                return await self._remote.snapshot_at(preferred, "snapshot", b"")
            except (Unsent, Unanswered, Unavailable):
                self._addresses.suspect(preferred)
        return await Itself(self._shard).snapshot()

    async def snapshot_under(self, key: str) -> NamedFile:
        preferred = await self._elsewhere()
        if preferred is not None:
            body = wire.encode(wire.SnapshotUnder(key))
            try:
                return await self._remote.snapshot_at(preferred, "snapshot-under", body)
            except Unsent:
                self._addresses.suspect(preferred)
            except Unanswered as error:  # it may still be written under that key
                self._addresses.suspect(preferred)
                raise Unavailable("a snapshot was not confirmed: take it again") from error
        return await self._shard.snapshot_under(key)

    async def _elsewhere(self) -> str | None:
        """The address of the preferred process, unless that is this one."""
        preferred = await self._addresses.preferred(self._key)
        return None if preferred is None or self._calls.is_here(preferred) else preferred
