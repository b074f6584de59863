"""A shard as its index sees it, wherever it is: one set of questions, answered here or by another process.

`LocalShard` answers from memory, `lakehouse.remote.shard.RemoteShard` asks.  Each answer comes from one life of the
index, and says how far its log had been applied.  What this module does not do: decide which shard is where
(`lakehouse.placement`), or put shards' answers together (`lakehouse.collection`).
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Protocol

from lakehouse.core.entry import EncodedRequest
from lakehouse.core.errors import Outcome, Unavailable
from lakehouse.core.named import NamedFile
from lakehouse.core.types import Batch, Item, SearchResult, Vectors
from lakehouse.core.window import RequestResult
from lakehouse.index.predicate import Predicate
from lakehouse.shard import Shard

MIN_POSITION_POLLS = 50
Chunks = AsyncIterator[tuple[Batch, tuple[int, ...]]]
"""Items with their versions, about a thousand at a time."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """What a read must see."""

    strong: bool
    """Every write acknowledged before the read began."""
    sequence: int = 0
    """At least this much of the log."""


EVENTUAL = Freshness(strong=False)
STRONG = Freshness(strong=True)


@dataclass(frozen=True, slots=True)
class Ask:
    """A search: everything but its queries."""

    k: int
    ef: int | None = None
    predicate: Predicate | None = None
    exact: bool = False
    include_metadata: bool = True
    include_vectors: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """One shard's answer to a search."""

    result: SearchResult
    position: int
    """The log sequence number that had been applied."""
    stale_s: float


class Writes(Protocol):
    """Who writes for a shard that several processes keep."""

    async def write(self, encoded: EncodedRequest) -> tuple[RequestResult, int]:
        """See `Shard.write`."""
        ...

    async def snapshot(self) -> NamedFile:
        """See `Shard.snapshot`."""
        ...

    async def snapshot_under(self, key: str) -> NamedFile:
        """See `Shard.snapshot_under`."""
        ...


class PlacedShard(Protocol):
    """One shard of an index, here or elsewhere."""

    number: int

    @property
    def local(self) -> Shard | None:
        """The shard itself, where this process keeps it."""
        ...

    @property
    def position(self) -> int:
        """The newest log sequence number this process knows to be applied."""
        ...

    def __len__(self) -> int: ...

    @property
    def dropped(self) -> bool: ...

    @property
    def settled(self) -> bool: ...

    @property
    def staleness_s(self) -> float: ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def set_ef_search(self, ef_search: int) -> None: ...

    def end_here(self) -> None: ...

    def is_fresh(self, wanted: Freshness) -> bool:
        """Whether a read may answer at once, without waiting for anything."""
        ...

    async def refresh(self, wanted: Freshness) -> float:
        """Catch up; seconds of staleness that remain because the store would not answer.

        Raises `Unavailable` when `wanted.sequence` is not reached within the read deadline.
        """
        ...

    async def search(self, queries: Vectors, ask: Ask, wanted: Freshness) -> Found: ...

    async def item(self, item_id: str, wanted: Freshness) -> tuple[Item | None, float]:
        """An item, and seconds by which the answer may be behind: of that very answer, whoever gave it."""
        ...

    async def scroll(
        self, after: str | None, limit: int, predicate: Predicate | None, wanted: Freshness
    ) -> tuple[list[Item], str | None, float]:
        """A page, where to go on, and seconds by which it may be behind."""
        ...

    async def count(self, predicate: Predicate | None, wanted: Freshness) -> tuple[int, float]:
        """How many items match, and seconds by which that may be behind."""
        ...

    async def sample(self, samples: int) -> Vectors:
        """Vectors of up to so many random items: float32 (n, dimension)."""
        ...

    async def stats(self) -> dict[str, object]: ...

    def chunks(self, predicate: Predicate | None) -> AbstractAsyncContextManager[Chunks]:
        """The items that match when this is entered."""
        ...

    async def write(self, encoded: EncodedRequest) -> tuple[RequestResult, int]:
        """Commit one request; its result and the position at which it is visible.  See `Shard.write`."""
        ...

    async def snapshot(self) -> NamedFile: ...

    async def snapshot_under(self, key: str) -> NamedFile: ...

    async def drop(self) -> None:
        """End the log."""
        ...


class LocalShard:
    """A shard that this process keeps; `writer` writes where other processes keep it too."""

    def __init__(self, shard: Shard, writer: Writes | None = None) -> None:
        self._shard = shard
        self.number = shard.number
        self._writer = writer or Itself(shard)

    @property
    def local(self) -> Shard:
        return self._shard

    @property
    def here(self) -> Writes:
        """The shard without regard to others that keep it."""
        return Itself(self._shard)

    @property
    def position(self) -> int:
        return self._shard.position

    def __len__(self) -> int:
        return len(self._shard)

    @property
    def dropped(self) -> bool:
        return self._shard.replica.dropped

    @property
    def settled(self) -> bool:
        return self._shard.settled

    @property
    def staleness_s(self) -> float:
        return self._shard.staleness_s

    async def open(self) -> None:
        await self._shard.open()

    async def close(self) -> None:
        await self._shard.close()

    def set_ef_search(self, ef_search: int) -> None:
        self._shard.set_ef_search(ef_search)

    def end_here(self) -> None:
        self._shard.end_here()

    def is_fresh(self, wanted: Freshness) -> bool:
        if self._shard.position < wanted.sequence:
            return False
        if wanted.strong:
            return self._shard.is_fresh
        self._shard.poke()
        return True

    async def refresh(self, wanted: Freshness) -> float:
        if self.is_fresh(wanted):
            return 0.0
        shard, deadline_s = self._shard, self._shard.settings.read_deadline_s
        stale_s = await shard.refresh(deadline_s)
        if not wanted.sequence:
            return stale_s
        for _ in range(MIN_POSITION_POLLS):
            if shard.position >= wanted.sequence:
                return stale_s
            await shard.runtime.sleep(deadline_s / MIN_POSITION_POLLS)
            stale_s = await shard.refresh(deadline_s)
        raise Unavailable(
            f"position is not reached yet. shard=`{self.number}` position=`{wanted.sequence}`",
            outcome=Outcome.NOT_COMMITTED,
        )

    async def search(self, queries: Vectors, ask: Ask, wanted: Freshness) -> Found:
        stale_s = await self.refresh(wanted)
        shard = self._shard
        position = shard.position
        result = await shard.runtime.run_cpu(
            shard.replica.index.view().search,
            queries,
            ask.k,
            ef=ask.ef,
            predicate=ask.predicate,
            exact=ask.exact,
            include_metadata=ask.include_metadata,
            include_vectors=ask.include_vectors,
        )
        return Found(result, position, stale_s)

    async def item(self, item_id: str, wanted: Freshness) -> tuple[Item | None, float]:
        stale_s = await self.refresh(wanted)
        return self._shard.replica.index.item(item_id), stale_s

    async def scroll(
        self, after: str | None, limit: int, predicate: Predicate | None, wanted: Freshness
    ) -> tuple[list[Item], str | None, float]:
        stale_s = await self.refresh(wanted)
        return *self._shard.replica.index.scroll(after, limit, predicate), stale_s

    async def count(self, predicate: Predicate | None, wanted: Freshness) -> tuple[int, float]:
        stale_s = await self.refresh(wanted)
        return self._shard.replica.index.count(predicate), stale_s

    async def sample(self, samples: int) -> Vectors:
        shard = self._shard
        size = len(shard)
        ordinals = sorted(shard.runtime.random().sample(range(size), min(size, samples)))
        return shard.replica.index.view().vectors_at(ordinals)

    async def stats(self) -> dict[str, object]:
        shard = self._shard
        return (
            asdict(shard.replica.index.stats())
            | {"log_bytes": shard.replica.log_bytes, "position": shard.position, "damage": shard.damage}
            | asdict(shard.counters)
        )

    @asynccontextmanager
    async def chunks(self, predicate: Predicate | None) -> AsyncIterator[Chunks]:
        view = self._shard.replica.index.view()

        async def chunks() -> Chunks:
            for chunk in view.items(predicate):
                yield Batch(tuple(chunk.ids), chunk.vectors, tuple(chunk.metadata)), tuple(chunk.versions)

        yield chunks()

    async def write(self, encoded: EncodedRequest) -> tuple[RequestResult, int]:
        return await self._writer.write(encoded)

    async def snapshot(self) -> NamedFile:
        return await self._writer.snapshot()

    async def snapshot_under(self, key: str) -> NamedFile:
        return await self._writer.snapshot_under(key)

    async def drop(self) -> None:
        await self._shard.drop()


class Itself:
    """A shard that writes for itself."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    async def write(self, encoded: EncodedRequest) -> tuple[RequestResult, int]:
        return await self._shard.write(encoded)

    async def snapshot_under(self, key: str) -> NamedFile:
        return await self._shard.snapshot_under(key)

    async def snapshot(self) -> NamedFile:
        ref = await self._shard.snapshot()
        digest = self._shard.replica.digest_at(ref.covered) or b""
        return NamedFile(self._shard.number, ref.key, ref.covered, digest.hex(), ref.size)
