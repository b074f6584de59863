"""One index over its shards, here or elsewhere: routes each id to a shard, merges what the shards answer.

A batch over several shards is atomic per shard; repeating it with its idempotency key completes it.
What it does not do: durability (`lakehouse.shard`), knowing where a shard is (`lakehouse.placement`) or which indexes
exist (`lakehouse.indexes`).
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Mapping, Sequence, Set
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lakehouse import compatibility
from lakehouse.core import named, names
from lakehouse.core.entry import EncodedRequest, Operation, Request, encode_request
from lakehouse.core.errors import Conflict, Corrupt, Invalid, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation, Origin
from lakehouse.core.types import (
    TINY_SQUARED_NORM,
    Batch,
    Consistency,
    Distance,
    Hit,
    IndexParams,
    Item,
    Position,
    SearchPlan,
    SearchResult,
    Vectors,
    WriteResult,
    check_vectors,
)
from lakehouse.core.window import RequestResult
from lakehouse.engine_settings import EngineSettings
from lakehouse.index import predicate
from lakehouse.index.predicate import Predicate
from lakehouse.index.shard_index import ShardIndex
from lakehouse.index.view import IndexView
from lakehouse.placed_shard import EVENTUAL, STRONG, Ask, Freshness, LocalShard, PlacedShard
from lakehouse.placement import Pods, placed
from lakehouse.runtime import Runtime
from lakehouse.shard import Shard
from lakehouse.snapshots import SnapshotRef, image_of, write_image
from lakehouse.store.base import ObjectStore

INLINE_COST_S = 0.001
"""A search estimated below this runs on the event loop: the hop to a worker costs 0.1 to 0.5 ms itself."""
SCROLL_LIMIT_MAX = 10_000


@dataclass
class Told:
    """What an answer says of itself: one for each read, so that none says what is another's."""

    stale_s: float = 0.0
    """Seconds by which it may be behind; 0 when it is not."""


class Collection:
    """An open index."""

    def __init__(
        self,
        store: ObjectStore,
        runtime: Runtime,
        settings: EngineSettings,
        name: str,
        record: Incarnation,
        placement: Pods | None = None,
    ) -> None:
        """`placement` says where its shards are; without it all are in this process."""
        assert record.params is not None
        self.store = store
        self.runtime = runtime
        self.settings = settings
        self.name = name
        self.record = record
        self._params = record.params
        self._shards = placed(placement, store, runtime, settings, name, record)
        self._here = tuple(shard.local for shard in self._shards if shard.local is not None)
        self._any_strong = (STRONG,) * len(self._shards)
        self._any_eventual = (EVENTUAL,) * len(self._shards)
        self._is_whole = len(self._here) == len(self._shards)
        """Whether every shard is in this process."""
        self._is_alone = placement is None
        """Whether what this process writes is here as soon as it is acknowledged."""
        self.naming: set[str] = set()
        """Named snapshots that are being taken."""
        for shard in self._here:
            shard.published = self._publish
            shard.opened = self._opened

    async def open(self) -> None:
        """Recover every shard that is here from its snapshot and log."""
        await asyncio.gather(*(shard.open() for shard in self._shards))

    async def close(self) -> None:
        """Finish what was taken, then stop."""
        await asyncio.gather(*(shard.close() for shard in self._shards))

    def _opened(self, record: Incarnation) -> None:
        """A newer record of this life says that writers may change it."""
        if record.number > self.record.number:
            self.record = record

    # ------------------------------------------------------------------ facts

    @property
    def params(self) -> IndexParams:
        return self._here[0].replica.index.params if self._here else self._params

    @property
    def shards(self) -> int:
        return len(self._shards)

    @property
    def shard_list(self) -> tuple[Shard, ...]:
        """The shards that this process keeps, for metrics and tests."""
        return self._here

    def kept(self, number: int) -> LocalShard | None:
        """A shard of this index, if this process keeps it."""
        shard = self._shards[number] if number < len(self._shards) else None
        return shard if isinstance(shard, LocalShard) else None

    @property
    def is_whole(self) -> bool:
        """Whether this process keeps every shard."""
        return self._is_whole

    @property
    def length(self) -> int:
        return sum(len(shard) for shard in self._shards)

    @property
    def items(self) -> int:
        """How many items this process knows of; what `length` is over HTTP."""
        return self.length

    @property
    def owner(self) -> str | None:
        """The resource that declares this index; None for nobody."""
        return self.record.owner

    @property
    def origin(self) -> Origin | None:
        """What the content of this life was built from; None where nobody said."""
        return self.record.origin

    @property
    def position(self) -> Position:
        assert self.record.uuid is not None
        return Position(self.record.uuid, tuple(shard.position for shard in self._shards))

    @property
    def dropped(self) -> bool:
        return any(shard.dropped for shard in self._shards)

    @property
    def settled(self) -> bool:
        """Whether no write, build or snapshot is under way or waiting for quiet."""
        return all(shard.settled for shard in self._shards)

    def set_ef_search(self, ef_search: int) -> None:
        """Let searches keep this many candidates by default, from now on, in this process.  Raises `Invalid`."""
        self._params = replace(self._params, ef_search=ef_search)
        for shard in self._shards:
            shard.set_ef_search(ef_search)

    async def settle(self) -> None:
        """Wait until background builds and snapshots are done."""
        while not self.settled:
            await self.runtime.sleep(0.05)

    # ------------------------------------------------------------ consistency

    def is_fresh(self, consistency: Consistency, min_position: Position | None) -> bool:
        """Whether a read as asked may answer at once, without waiting for anything."""
        if min_position is None and self._is_whole and consistency is Consistency.STRONG:
            return all(shard.is_fresh for shard in self._here)
        wanted = self._freshness(consistency, min_position)
        return all(shard.is_fresh(each) for shard, each in zip(self._shards, wanted, strict=True))

    async def refresh(self, consistency: Consistency, min_position: Position | None = None) -> float:
        """Catch up as far as a read asks; seconds of staleness that remain because the store would not answer.

        Raises `Unavailable` when `min_position` is not reached within the read deadline, `Conflict` when it belongs
        to an earlier life of the index.
        """
        wanted = self._freshness(consistency, min_position)
        caught_up = (shard.refresh(each) for shard, each in zip(self._shards, wanted, strict=True))
        return max(await asyncio.gather(*caught_up))

    async def catch_up(self) -> None:
        """Apply everything acknowledged before this call, for work that a stale look would do by halves.

        After a look in vain the next one is answered at once, and the store is asked again behind it: so this looks
        again for a while.  Raises `Unavailable`.
        """
        until = self.runtime.monotonic() + self.settings.read_deadline_s
        while await self.refresh(Consistency.STRONG) > 0:
            if self.runtime.monotonic() >= until:
                raise Unavailable(
                    f"what was written to the index last is not here in time: repeat. index=`{self.name}`",
                    outcome=Outcome.NOT_COMMITTED,
                )
            await self.runtime.sleep(self.settings.tail_poll_s)

    def _freshness(self, consistency: Consistency, min_position: Position | None) -> Sequence[Freshness]:
        """What each shard must have seen for a read.  Raises `Conflict` for a position of another life."""
        strong = consistency is Consistency.STRONG
        if min_position is None or min_position.incarnation == self.record.ends:  # before this life began
            return self._any_strong if strong else self._any_eventual
        if min_position.incarnation != self.record.uuid or len(min_position.sequences) != len(self._shards):
            raise Conflict(f"position belongs to another life of this index. position=`{min_position}`")
        return [Freshness(strong, sequence) for sequence in min_position.sequences]

    # ---------------------------------------------------------------- writing

    async def add(self, batch: Batch, *, idempotency_key: str | None = None) -> WriteResult:
        """Upsert a batch that `checked_batch` made.  See `Shard.write` for what is raised."""
        return await self.write(Operation.UPSERT, batch, idempotency_key=idempotency_key)

    async def write(
        self, operation: Operation, batch: Batch, *, idempotency_key: str | None = None
    ) -> WriteResult:
        """Upsert or add if absent."""
        whole = Request(self._key(idempotency_key), operation, batch.ids, batch.vectors, batch.metadata)
        return await self._commit(whole, repeatable=idempotency_key is not None)

    async def delete(self, ids: Sequence[str], *, idempotency_key: str | None = None) -> WriteResult:
        """Delete by id; ids that are not there count for nothing."""
        distinct = tuple(dict.fromkeys(ids))
        if not distinct:
            raise Invalid("no ids: send at least one id in `ids`, or a `filter`")
        whole = Request(self._key(idempotency_key), Operation.DELETE, distinct)
        return await self._commit(whole, repeatable=idempotency_key is not None)

    async def delete_versions(self, ids: Sequence[str], versions: Sequence[int]) -> WriteResult:
        """Delete each id only where its version is still the one given."""
        whole = Request(self._key(None), Operation.DELETE_IF_VERSION, tuple(ids), versions=tuple(versions))
        return await self._commit(whole, repeatable=False)

    async def delete_where(self, filter: str | Predicate) -> WriteResult:
        """Delete what matched `filter` when the call began; never a version written after that."""
        wanted = _wanted(filter)
        await self.catch_up()
        done = WriteResult(length=self.length, position=self.position)
        async for batch, versions in self.chunks(wanted):
            written = await self.delete_versions(batch.ids, versions)
            done = replace(written, deleted=done.deleted + written.deleted)
        return done

    def _key(self, idempotency_key: str | None) -> bytes:
        if idempotency_key is None:
            return self.runtime.uuid().bytes
        if "\0" in idempotency_key:  # such keys are the log's own (`lakehouse.core.entry`)
            raise Invalid(f"an idempotency key holds no NUL. idempotency_key=`{idempotency_key!r}`")
        return idempotency_key.encode()

    def _rows_by_shard(self, ids: Sequence[str]) -> dict[int, list[int]]:
        rows: dict[int, list[int]] = {}
        for j, item_id in enumerate(ids):
            rows.setdefault(
                names.shard_of(item_id, len(self._shards)) if len(self._shards) > 1 else 0, []
            ).append(j)
        return rows

    async def _commit(self, whole: Request, *, repeatable: bool) -> WriteResult:
        """Commit a request, in parts where there are several shards.

        Every part carries the digest of the whole body.  A request that may be repeated goes to its key's own shard
        first, even if none of its ids live there: that shard alone decides whether the key is free for this body.
        """
        if len(self._shards) == 1:
            encoded = await self._encoded(whole)
            return self._written({0: await self._shards[0].write(encoded)})
        digest = (await self._encoded(whole)).digest
        parts = {number: _part(whole, rows) for number, rows in self._rows_by_shard(whole.ids).items()}
        results: dict[int, tuple[RequestResult, int]] = {}
        if repeatable:
            home = names.shard_of(whole.key.decode(), len(self._shards))
            first = encode_request(parts.pop(home, _part(whole, [])), digest)
            results[home] = await self._shards[home].write(first)
        others = [] if self._is_alone else self._untouched(parts.keys() | results.keys())
        answers, _ = await asyncio.gather(
            asyncio.gather(
                *(self._shards[number].write(encode_request(part, digest)) for number, part in parts.items()),
                return_exceptions=True,
            ),
            asyncio.gather(*(shard.refresh(STRONG) for shard in others), return_exceptions=True),
        )
        written = _all_or_raise(answers, committed=bool(results))
        return self._written(results | dict(zip(parts, written, strict=True)))

    def _untouched(self, touched: Set[int]) -> list[PlacedShard]:
        """The shards whose length a write's answer needs and does not bring."""
        return [shard for shard in self._shards if shard.number not in touched]

    async def _encoded(self, request: Request) -> EncodedRequest:
        if request.vectors is not None and request.vectors.nbytes > 1 << 20:
            return await self.runtime.run_cpu(encode_request, request)
        return encode_request(request)

    def _written(self, answers: Mapping[int, tuple[RequestResult, int]]) -> WriteResult:
        assert self.record.uuid is not None
        results = [result for result, _ in answers.values()]
        positions = [
            max(shard.position, answers[shard.number][1]) if shard.number in answers else shard.position
            for shard in self._shards
        ]
        return WriteResult(
            added=sum(result.added for result in results),
            skipped=sum(result.skipped for result in results),
            deleted=sum(result.deleted for result in results),
            length=self._length_after(answers),
            position=Position(self.record.uuid, tuple(positions)),
            replayed=all(result.replayed for result in results),
        )

    def _length_after(self, answers: Mapping[int, tuple[RequestResult, int]]) -> int:
        """Of one shard what the request left; of several today's, where another process wrote what it says."""
        if len(self._shards) == 1:
            return answers[0][0].length
        return sum(
            answers[shard.number][0].length
            if shard.number in answers and shard.position < answers[shard.number][1]
            else len(shard)
            for shard in self._shards
        )

    # ---------------------------------------------------------------- reading

    def search_now(
        self,
        queries: Vectors,
        k: int,
        *,
        ef: int | None = None,
        filter: str | Predicate | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
    ) -> SearchResult | None:
        """Search on the event loop when that takes about a millisecond at most; None when a worker should do it.

        Queries are float32 (q, dimension), checked by the caller or here: raises `Invalid`.  `filter` is a SQL
        predicate over metadata, or one that `lakehouse.index.predicate` made.
        """
        self._check_queries(queries)
        wanted = _wanted(filter)
        if not self._is_whole:
            return None
        cost_s = sum(shard.replica.index.estimated_cost_s(len(queries), k, wanted) for shard in self._here)
        if cost_s > INLINE_COST_S:
            return None
        return self._merged(
            [
                shard.replica.index.search(
                    queries,
                    k,
                    ef=ef,
                    predicate=wanted,
                    include_metadata=include_metadata,
                    include_vectors=include_vectors,
                )
                for shard in self._here
            ],
            k,
        )

    async def search(
        self,
        queries: Vectors,
        k: int,
        *,
        ef: int | None = None,
        filter: str | Predicate | None = None,
        include_metadata: bool = True,
        include_vectors: bool = False,
        consistency: Consistency = Consistency.STRONG,
        min_position: Position | None = None,
        exact: bool = False,
    ) -> SearchResult:
        """The k nearest items of each query, nearest first."""
        self._check_queries(queries)
        ask = Ask(k, ef, _wanted(filter), exact, include_metadata, include_vectors)
        fresh = self._freshness(consistency, min_position)
        found = await asyncio.gather(
            *(shard.search(queries, ask, each) for shard, each in zip(self._shards, fresh, strict=True))
        )
        merged = self._merged([each.result for each in found], k)
        assert self.record.uuid is not None
        position = Position(self.record.uuid, tuple(each.position for each in found))
        return SearchResult(merged.hits, merged.plan, position, max(each.stale_s for each in found))

    def _check_queries(self, queries: Vectors) -> None:
        if queries.ndim != 2 or queries.shape[1] != self.params.dimension:
            raise Invalid(
                f"a query vector must have {self.params.dimension} dimensions, as index {self.name} has. "
                f"dimensions=`{queries.shape[-1]}`"
            )
        check_vectors(queries, self.params.distance, "vector" if len(queries) == 1 else "vectors[{}]")

    def _merged(self, parts: Sequence[SearchResult], k: int) -> SearchResult:
        if len(parts) == 1:
            only = parts[0]
            return SearchResult(only.hits, only.plan, self.position, self.staleness_s)
        hits = tuple(
            tuple(heapq.nsmallest(k, (hit for part in answers for hit in part), key=_nearness))
            for answers in zip(*(part.hits for part in parts), strict=True)
        )
        matched = [part.plan.matched for part in parts]
        plan = SearchPlan(
            "+".join(sorted({part.plan.strategy for part in parts})),
            None if matched[0] is None else sum(count or 0 for count in matched),
            parts[0].plan.ef,
            sum(part.plan.visited for part in parts),
        )
        return SearchResult(hits, plan, self.position, self.staleness_s)

    @property
    def staleness_s(self) -> float:
        """Seconds since this process last knew that it had everything; 0 while that is no news."""
        return max(shard.staleness_s for shard in self._shards)

    async def item(
        self,
        item_id: str,
        *,
        consistency: Consistency = Consistency.STRONG,
        min_position: Position | None = None,
        told: Told | None = None,
    ) -> Item:
        """One item.  Raises `NotFound`."""
        number = names.shard_of(item_id, len(self._shards))
        fresh = self._freshness(consistency, min_position)[number]
        found, stale_s = await self._shards[number].item(item_id, fresh)
        _tell(told, stale_s)
        if found is None:
            behind = f" behind_s=`{stale_s:.1f}`" if stale_s else ""
            raise NotFound(f"no such item. index=`{self.name}` id=`{item_id}`{behind}")
        return found

    async def scroll(
        self,
        after: str | None = None,
        limit: int = 100,
        filter: str | Predicate | None = None,
        *,
        consistency: Consistency = Consistency.STRONG,
        min_position: Position | None = None,
        told: Told | None = None,
    ) -> tuple[list[Item], str | None]:
        """Items in the order of their ids after `after`, and where to go on (None at the end)."""
        if not 1 <= limit <= SCROLL_LIMIT_MAX:
            raise Invalid(f"limit must be from 1 to {SCROLL_LIMIT_MAX}. limit=`{limit}`")
        wanted = _wanted(filter)
        fresh = self._freshness(consistency, min_position)
        asked = zip(self._shards, fresh, strict=True)
        pages = await asyncio.gather(*(shard.scroll(after, limit, wanted, each) for shard, each in asked))
        _tell(told, max(stale_s for _, _, stale_s in pages))
        if len(pages) == 1:
            return pages[0][:2]
        items = sorted((item for page, _, _ in pages for item in page), key=lambda item: item.id)
        more = len(items) > limit or any(cursor is not None for _, cursor, _ in pages)
        items = items[:limit]
        return items, items[-1].id if more and items else None

    async def count(
        self,
        filter: str | Predicate | None = None,
        *,
        consistency: Consistency = Consistency.STRONG,
        min_position: Position | None = None,
        told: Told | None = None,
    ) -> int:
        """Items, or those that match `filter`."""
        wanted = _wanted(filter)
        fresh = self._freshness(consistency, min_position)
        asked = zip(self._shards, fresh, strict=True)
        counts = await asyncio.gather(*(shard.count(wanted, each) for shard, each in asked))
        _tell(told, max(stale_s for _, stale_s in counts))
        return sum(count for count, _ in counts)

    async def recall(self, samples: int = 100, k: int = 10, ef: int | None = None) -> dict[str, object]:
        """Search for sampled stored vectors and compare with the exact answer (ties count as right)."""
        await self.refresh(Consistency.STRONG)
        queries = await self._sampled(samples)
        if not len(queries):
            return {"samples": 0, "k": k, "recall": None}
        found = await self.search(queries, k, ef=ef, include_metadata=False)
        exact = await self.search(queries, k, exact=True, include_metadata=False)
        right = total = 0
        for near, true in zip(found.hits, exact.hits, strict=True):
            bound = true[-1].distance + 1e-6 if true else 0.0
            right += sum(hit.distance <= bound for hit in near)
            total += len(true)
        return {"samples": len(queries), "k": k, "recall": right / total if total else None}

    async def _sampled(self, samples: int) -> Vectors:
        share = -(-samples // len(self._shards))
        found = await asyncio.gather(*(shard.sample(share) for shard in self._shards))
        sampled = np.concatenate(found)
        if self.params.distance is Distance.COSINE:  # an adopted file may hold vectors without a direction
            sampled = sampled[np.einsum("ij,ij->i", sampled, sampled, dtype=np.float64) >= TINY_SQUARED_NORM]
        return sampled

    async def stats(self) -> dict[str, object]:
        """What is in memory and what the log holds, per shard, after every write acknowledged before."""
        await self.refresh(Consistency.STRONG)
        shards = await asyncio.gather(*(shard.stats() for shard in self._shards))
        return {
            "params": self.params.to_json() | {"ef_construction": self.params.ef_construction},
            "length": self.length,
            "position": str(self.position),
            "settled": self.settled,
            "shards": list(shards),
        }

    # -------------------------------------------------------------- snapshots

    async def snapshot(self, name: str | None = None) -> dict[str, object]:
        """Take a verified snapshot of every shard; a name keeps it, also when the index is dropped.

        Raises `Conflict` if the name is taken.
        """
        if name is None:
            return self._described(None, await asyncio.gather(*(shard.snapshot() for shard in self._shards)))
        return await self._named_snapshot(named.checked_name(name))

    async def _named_snapshot(self, name: str) -> dict[str, object]:
        """Files of its own first, under a prefix no other attempt uses; the record last."""
        if name in self.naming:
            raise Conflict(f"a snapshot of this name is being taken. name=`{name}`")
        self.naming.add(name)
        try:
            return await self._take_named(name)
        finally:
            self.naming.discard(name)

    async def _take_named(self, name: str) -> dict[str, object]:
        assert self.record.uuid is not None
        record = names.named_snapshot_key(self.name, self.record.uuid, name)
        if await self.store.list(record):
            raise Conflict(f"a snapshot of this name exists. name=`{name}`")
        attempt = self.runtime.uuid()
        files = await asyncio.gather(
            *(
                shard.snapshot_under(
                    names.named_file_key(self.name, self.record.uuid, name, attempt, shard.number)
                )
                for shard in self._shards
            )
        )
        await self.store.create(record, named.encode(name, files, self.runtime.now()))
        return self._described(name, files)

    def _described(self, name: str | None, files: Sequence[named.NamedFile]) -> dict[str, object]:
        assert self.record.uuid is not None
        return {
            "name": name,
            "files": [{"shard": file.shard, "key": file.key, "size": file.size} for file in files],
            "position": str(Position(self.record.uuid, tuple(file.sequence for file in files))),
        }

    async def export(self, path: Path, version: int) -> None:
        """Write the index to a file: LHV1 version 3 (unsharded indexes), or 2 for the old system."""
        await self.catch_up()
        if version == 3:
            if len(self._shards) != 1:
                raise Invalid(
                    f"only an index of one shard exports to one version 3 file. shards=`{len(self._shards)}`"
                )
            if not self._is_whole:
                raise Invalid("version 3 is exported by a process that keeps the index, or from the bucket")
            await self.runtime.run_cpu(_write_v3, path, image_of(self._here[0].replica))
        elif version == 2:
            from lakehouse import legacy_export

            views = [await self._view(shard) for shard in self._shards]
            await self.runtime.run_background(legacy_export.export_v2, path, self.params, views)
        else:
            raise Invalid(f"snapshots are exported as version 2 or 3. version=`{version}`")

    async def _view(self, shard: PlacedShard) -> IndexView:
        """What a shard holds; of one that is elsewhere a copy."""
        if shard.local is not None:
            return shard.local.replica.index.view()
        copy = ShardIndex(self.params, self.settings.index, self.settings.scratch)
        versions = 1
        async with shard.chunks(None) as chunks:
            async for batch, _ in chunks:
                copy.upsert(batch, versions)
                versions += len(batch)
        return copy.view()

    async def _publish(self, ref: SnapshotRef, content: Path | bytes) -> None:
        """Copy the newest snapshot to where the old system's tools look; never trusted for recovery.

        Another process may have moved on meanwhile, so incarnation and snapshot are looked at again afterwards.
        """
        if len(self._shards) != 1:
            return
        await self._here[0].snapshots.put(names.compatibility_key(self.name), content)
        shown = compatibility.Shown(self.record.number, ref.key)
        await compatibility.settle(self.store, self.runtime, self.settings, self.name, shown)

    # ------------------------------------------------------------ for merging

    async def chunks(self, wanted: Predicate | None = None) -> AsyncIterator[tuple[Batch, tuple[int, ...]]]:
        """The items that match, with their versions, a thousand at a time, as of the moment this begins."""
        async with AsyncExitStack() as stack:
            streams = [await stack.enter_async_context(shard.chunks(wanted)) for shard in self._shards]
            for stream in streams:
                async for chunk in stream:
                    yield chunk

    async def drop(self) -> None:
        """Put a DROP entry into every shard's log; repeated until all have one, it is done.

        Raises `Unavailable`, and `Corrupt` when a log is damaged, which cannot be ended in this way.
        """
        ends = await asyncio.gather(*(shard.drop() for shard in self._shards), return_exceptions=True)
        errors = [error for error in ends if isinstance(error, BaseException)]
        for error in errors:
            if isinstance(error, Corrupt):  # repeating does not help
                raise error
        if errors and self.dropped:
            raise Unavailable(f"index is dropped in part: repeat. name=`{self.name}`") from errors[0]
        if errors:
            raise errors[0]

    def end_here(self) -> None:
        """The logs were ended in another way than by `drop`: refuse what comes."""
        for shard in self._shards:
            shard.end_here()


def _wanted(filter: str | Predicate | None) -> Predicate | None:
    return predicate.parse(filter) if isinstance(filter, str) else filter


def _tell(told: Told | None, stale_s: float) -> None:
    if told is not None:
        told.stale_s = stale_s


def _nearness(hit: Hit) -> tuple[float, str]:
    return hit.distance, hit.id


def _write_v3(path: Path, image: object) -> None:
    with path.open("wb") as out:
        write_image(out, image)  # type: ignore[arg-type]


def _part(whole: Request, rows: list[int]) -> Request:
    """The rows of a request that live in one shard."""
    return Request(
        whole.key,
        whole.operation,
        tuple(whole.ids[j] for j in rows),
        None if whole.vectors is None else whole.vectors[rows],
        tuple(whole.metadata[j] for j in rows) if whole.metadata else (),
        tuple(whole.versions[j] for j in rows) if whole.versions else (),
    )


def _all_or_raise(
    answers: Sequence[tuple[RequestResult, int] | BaseException], *, committed: bool
) -> list[tuple[RequestResult, int]]:
    """The results with their positions; else one error that tells the truth about all parts.

    If any part is there, or may be, the whole is `unknown`: repeating it with its key completes it.
    """
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    if not errors:
        return [answer for answer in answers if not isinstance(answer, BaseException)]
    partly = committed or len(errors) < len(answers)
    in_doubt = any(isinstance(error, Unavailable) and error.outcome is Outcome.UNKNOWN for error in errors)
    if partly or in_doubt:
        raise Unavailable(
            f"some shards may have committed and some not: repeat with the same idempotency key. "
            f"reason=`{errors[0]}`"
        ) from errors[0]
    raise errors[0]
