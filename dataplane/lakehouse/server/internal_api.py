"""What processes of one deployment, and the operator, ask of each other: state, renewal, and the shards kept here.

A shard answers for the life it is asked for, or says that it serves another: so no answer to anybody mixes two lives.
Errors of a shard's verbs travel as their kind (`lakehouse.remote.wire`).  What this module does not do: decide where a
shard is (`lakehouse.placement`); it answers only for those that this process keeps.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Any
from urllib.parse import quote
from uuid import UUID

import msgspec

from lakehouse.collection import INLINE_COST_S, Collection
from lakehouse.core import entry
from lakehouse.core.errors import Dropped, Invalid, LakehouseError, NotFound, OtherLife, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import EF_MAX, Distance, IndexParams
from lakehouse.indexes import Indexes, merge_into
from lakehouse.placed_shard import EVENTUAL, STRONG, Ask, Found, Freshness, LocalShard
from lakehouse.placement import Neighbours, Pods
from lakehouse.remote import wire
from lakehouse.remote.calls import Unanswered, Unsent
from lakehouse.remote.predicates import Predicates
from lakehouse.remote.wire import Read, Seen
from lakehouse.runtime import Runtime
from lakehouse.server import problem
from lakehouse.server.declared import Declared
from lakehouse.server.http import Request, Response, StreamedResponse, json_response, while_there
from lakehouse.server.json_body import Decoder
from lakehouse.server.vectors_api import merged_json
from lakehouse.settings import SHARD_FIELD
from lakehouse.shard import Shard
from lakehouse.store.reach import Reach

STATE_S = 5.0
"""Seconds that another index's pods have to say which life they serve."""
LIFE_POLLS_MAX, LIFE_POLL_S = 100, 0.05
"""5 s that a call waits for a life that is being loaded."""
SAMPLES_MAX = 100_000
READ_BYTES_MAX = 256 << 20
"""A filter may be half a million ids."""

AnyAnswer = Response | StreamedResponse


class EfSearchBody(msgspec.Struct):
    """How many candidates searches keep."""

    ef_search: int


class InternalMergeBody(msgspec.Struct):
    """A merge into an index that may be served elsewhere."""

    dest: str
    dest_url: str | None = None
    clear_source: bool = False
    replace: bool = False


class RemoteIndex(msgspec.Struct):
    """What is read of another process's state."""

    name: str
    life: str
    record: int
    params: dict[str, Any]
    shard_count: int
    serving: bool


decode_ef_search = Decoder(EfSearchBody)
decode_merge = Decoder(InternalMergeBody)


class InternalApi:
    """Handlers named as the routes are."""

    def __init__(
        self,
        indexes: Indexes,
        runtime: Runtime,
        neighbours: Neighbours,
        readiness: Callable[[], tuple[bool, str]],
        declared: Callable[[str], Declared | None],
        body_bytes_max: int,
        only: str | None = None,
        reach: Reach | None = None,
    ) -> None:
        """`only` is the one index that is served; None for all.  `reach` knows how the store answers."""
        self._indexes = indexes
        self._runtime = runtime
        self._neighbours = neighbours
        self._readiness = readiness
        self._declared = declared
        self._body_bytes_max = body_bytes_max
        self._only = only
        self._reach = reach
        self._predicates = Predicates()
        self._looks: dict[str, asyncio.Task[Collection]] = {}
        self._instance = ((wire.INSTANCE.encode(), neighbours.instance.hex.encode()),)
        self._verbs: dict[str, Callable[[LocalShard, bytes], Awaitable[object]]] = {
            "refresh": self._refresh,
            "search": self._search,
            "item": self._item,
            "scroll": self._scroll,
            "count": self._count,
            "sample": self._sample,
            "stats": self._stats,
            "snapshot": self._snapshot,
        }

    async def close(self) -> None:
        """End what runs in the background."""
        looks = tuple(self._looks.values())
        for task in looks:
            task.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    # ------------------------------------------------------- for the operator

    async def state(self, request: Request) -> Response:
        """What this process serves, and why it does not reach its store, if so; from memory."""
        ready, detail = self._readiness()
        indexes = [self._described(collection) for collection in self._indexes.all_opened()]
        store = {"trouble": "" if self._reach is None else self._reach.trouble}
        return json_response({"ready": ready, "detail": detail, "store": store, "indexes": indexes})

    async def renew(self, request: Request) -> Response:
        """Look at an index's records again now."""
        return json_response(self._described(await self._indexes.renew(self._name(request))))

    async def ef_search(self, request: Request) -> Response:
        """Let searches in this process keep another number of candidates."""
        name = self._name(request)
        asked: EfSearchBody = decode_ef_search(await request.body(self._body_bytes_max))
        if not 1 <= asked.ef_search <= EF_MAX:
            raise Invalid(
                f"ef_search must be a whole number from 1 to {EF_MAX}. ef_search=`{asked.ef_search}`"
            )
        await self._indexes.set_ef_search(name, asked.ef_search)
        return json_response(self._described(await self._indexes.open(name)))

    async def merge(self, request: Request) -> Response:
        """Copy every item of an index into another, which may be served by other processes."""
        source = self._name(request)
        asked: InternalMergeBody = decode_merge(await request.body(self._body_bytes_max))
        if asked.dest_url is None:
            result = await self._indexes.merge(
                source, asked.dest, clear_source=asked.clear_source, replace=asked.replace
            )
        else:
            target = await self._elsewhere(asked.dest, asked.dest_url)
            origin = await self._indexes.fresh(source)
            result = await merge_into(origin, target, clear_source=asked.clear_source, replace=asked.replace)
        return json_response(merged_json(result) | {"position": str(result.position)})

    async def _elsewhere(self, dest: str, url: str) -> Collection:
        """An index all of whose shards are asked over HTTP.

        A process there is asked to open it: the one that answers may not have, of a pool's indexes.  Raises `NotFound`
        when there is none of that name, `Unavailable` when nobody serves it.
        """
        placement = Pods(self._neighbours, shard_url=url)
        for address in await self._neighbours.at(url.replace(SHARD_FIELD, "0")).by_turn():
            try:
                path = f"/internal/indexes/{quote(dest, safe='')}/renew"
                said = await self._neighbours.calls.post(address, path, b"", STATE_S)
                index = msgspec.json.decode(said, type=RemoteIndex)
            except NotFound:
                raise
            except (Unsent, Unanswered, msgspec.ValidationError, LakehouseError):
                continue
            if index.serving:
                target = Collection(
                    self._indexes.store,
                    self._runtime,
                    self._indexes.settings,
                    dest,
                    _record(index),
                    placement,
                )
                await target.catch_up()
                return target
        raise Unavailable(
            f"nobody there serves the index to merge into. dest=`{dest}` dest_url=`{url}`",
            outcome=Outcome.NOT_COMMITTED,
        )

    def _name(self, request: Request) -> str:
        name = request.params["name"]
        if self._only is not None and name != self._only:
            raise NotFound(f"this process serves another index. index=`{self._only}` name=`{name}`")
        return name

    def _described(self, collection: Collection) -> dict[str, Any]:
        record = collection.record
        declared = self._declared(collection.name)
        params = collection.params
        damage = next((shard.damage for shard in collection.shard_list if shard.damage), "")
        return {
            "name": collection.name,
            "life": record.uuid.hex if record.uuid else "",
            "record": record.number,
            "owner": record.owner,
            "origin": record.origin,
            "params": params.to_json() | {"ef_construction": params.ef_construction},
            "ef_search": params.ef_search,
            "read_only": bool(declared and declared.read_only),
            "serving": not collection.dropped,
            "detail": "the index was dropped" if collection.dropped else damage,
            "shard_count": collection.shards,
            "shards": [_shard_state(shard) for shard in collection.shard_list],
        }

    # ---------------------------------------------------------- for its peers

    async def shard(self, request: Request) -> AnyAnswer:
        """One verb on one shard of one life."""
        try:
            kept = await self._kept(request)
            if request.params["verb"] == "write":
                return self._answer(await self._write(kept, request))
            try:
                return await self._asked(kept, request)
            except (
                Dropped
            ):  # asked for again, a life that only a dataset changes is read until the next is loaded
                return await self._asked(await self._kept(request), request)
        except LakehouseError as error:
            return Response(
                _status(error),
                wire.encode(wire.failure_of(error)),
                wire.MEDIA_TYPE.encode(),
                self._instance,
            )

    async def _asked(self, kept: LocalShard, request: Request) -> AnyAnswer:
        verb, body = request.params["verb"], await request.body(READ_BYTES_MAX)
        if verb == "chunks":
            return await self._chunks(kept, body)
        if verb == "snapshot-under":
            work = self._snapshot_under(kept, body)
            return self._answer(await while_there(request, self._runtime, work, "snapshot"))
        handle = self._verbs.get(verb)
        if handle is None:
            raise Invalid(f"no such verb: use one release everywhere. verb=`{verb}`")
        return self._answer(await handle(kept, body))

    def _answer(self, value: object) -> Response:
        return Response(200, wire.encode(value), wire.MEDIA_TYPE.encode(), self._instance)

    async def _kept(self, request: Request) -> LocalShard:
        """The shard that is asked for.  Raises `OtherLife` where this process does not serve that life of it."""
        name = self._name(request)
        life, number = _life(request.params["life"]), request.params["shard"]
        collection = await self._of_life(name, life)
        kept = collection.kept(int(number)) if number.isdecimal() else None
        if kept is None:
            raise Unavailable(
                f"this process does not keep that shard. index=`{name}` shard=`{number}`",
                outcome=Outcome.NOT_COMMITTED,
            )
        return kept

    async def _of_life(self, name: str, life: UUID) -> Collection:
        """Looks at the records again when asked for a life it does not know: the caller may know more."""
        collection = self._indexes.life(name, life)
        if collection is not None:
            return collection
        looking = self._look(name)
        for _ in range(LIFE_POLLS_MAX):
            await asyncio.wait([looking], timeout=LIFE_POLL_S)
            collection = self._indexes.life(name, life)  # it is there before it is served
            if collection is not None:
                return collection
            if looking.done():
                break
        if not looking.done():
            raise Unavailable(
                f"this process is looking at the records: try again. index=`{name}`",
                outcome=Outcome.NOT_COMMITTED,
            )
        with contextlib.suppress(NotFound):
            looking.result()
        raise OtherLife(
            f"this process does not serve that life of the index. index=`{name}` life=`{life}`",
            outcome=Outcome.NOT_COMMITTED,
        )

    def _look(self, name: str) -> "asyncio.Task[Collection]":
        """Look at the records, once for all who ask."""
        task = self._looks.get(name)
        if task is None or task.done():
            task = self._looks[name] = self._runtime.spawn(self._indexes.renew(name), name=f"renew {name}")
            task.add_done_callback(lambda done: self._looked(name, done))
        return task

    def _looked(self, name: str, task: "asyncio.Task[Collection]") -> None:
        if self._looks.get(name) is task:
            del self._looks[name]
        if not task.cancelled():
            task.exception()  # whoever still waits sees it too

    async def _seen(self, kept: LocalShard, read: Read) -> Seen:
        """Catch up as a read asks.  Raises `Behind` when its caller has seen more than can be seen here."""
        stale_s = await kept.refresh(Freshness(read.strong, read.sequence))
        if kept.position < read.at_least:
            stale_s = await kept.refresh(STRONG)
            if kept.position < read.at_least:
                raise wire.Behind(
                    f"this process lags behind. position=`{kept.position}` wanted=`{read.at_least}`",
                    outcome=Outcome.NOT_COMMITTED,
                )
        return Seen(kept.position, len(kept), kept.settled, stale_s)

    async def _refresh(self, kept: LocalShard, body: bytes) -> Seen:
        return await self._seen(kept, _read(body, Read))

    async def _search(self, kept: LocalShard, body: bytes) -> wire.Searched:
        asked = _read(body, wire.Search)
        predicate = self._predicates.read(asked.predicate)
        seen = await self._seen(kept, asked)
        index = kept.local.replica.index
        queries = wire.rows_of(asked.queries, index.params.dimension)
        ask = Ask(
            asked.k,
            asked.ef,
            predicate,
            asked.exact,
            asked.include_metadata,
            asked.include_vectors,
        )
        if not ask.exact and index.estimated_cost_s(len(queries), ask.k, predicate) <= INLINE_COST_S:
            result = index.search(
                queries,
                ask.k,
                ef=ask.ef,
                predicate=predicate,
                include_metadata=ask.include_metadata,
                include_vectors=ask.include_vectors,
            )
            found = Found(result, kept.position, seen.stale_s)
        else:
            found = await kept.search(queries, ask, EVENTUAL)
        return wire.searched(found, Seen(found.position, len(kept), kept.settled, seen.stale_s))

    async def _item(self, kept: LocalShard, body: bytes) -> wire.Items:
        asked = _read(body, wire.ItemOf)
        seen = await self._seen(kept, asked)
        item, _ = await kept.item(asked.id, EVENTUAL)
        return wire.Items(seen, [] if item is None else [wire.wire_item(item)])

    async def _scroll(self, kept: LocalShard, body: bytes) -> wire.Items:
        asked = _read(body, wire.Scroll)
        seen = await self._seen(kept, asked)
        predicate = self._predicates.read(asked.predicate)
        items, after, _ = await kept.scroll(asked.after, asked.limit, predicate, EVENTUAL)
        return wire.Items(seen, [wire.wire_item(item) for item in items], after)

    async def _count(self, kept: LocalShard, body: bytes) -> wire.Counted:
        asked = _read(body, wire.Matching)
        seen = await self._seen(kept, asked)
        count, _ = await kept.count(self._predicates.read(asked.predicate), EVENTUAL)
        return wire.Counted(seen, count)

    async def _sample(self, kept: LocalShard, body: bytes) -> wire.Sampled:
        asked = _read(body, wire.Sample)
        seen = await self._seen(kept, asked)
        return wire.Sampled(seen, wire.to_bytes(await kept.sample(min(asked.samples, SAMPLES_MAX))))

    async def _stats(self, kept: LocalShard, body: bytes) -> wire.Stats:
        seen = await self._seen(kept, _read(body, Read))
        return wire.Stats(seen, await kept.stats())

    async def _chunks(self, kept: LocalShard, body: bytes) -> StreamedResponse:
        asked = _read(body, wire.Matching)
        await self._seen(kept, asked)
        predicate = self._predicates.read(asked.predicate)
        stack = AsyncExitStack()
        chunks = await stack.enter_async_context(kept.chunks(predicate))

        async def pieces() -> AsyncIterator[bytes]:
            async with stack:
                async for batch, versions in chunks:
                    yield wire.wire_chunk(batch, versions)
                yield bytes(wire.FRAME_BYTES)

        return StreamedResponse(
            200, pieces(), [(b"content-type", b"application/octet-stream"), *self._instance]
        )

    async def _write(self, kept: LocalShard, request: Request) -> wire.Written:
        """Here and now, whoever is preferred: its caller has chosen."""
        encoded = entry.decode_request(await request.body(self._indexes.settings.batch_bytes_max))
        asked_s = request.query().get("deadline_s", "")
        deadline_s = min(_seconds(asked_s), self._indexes.settings.write_deadline_s)
        result, position = await kept.local.write(encoded, deadline_s)
        return wire.Written(
            position, result.added, result.skipped, result.deleted, result.length, result.replayed
        )

    async def _snapshot(self, kept: LocalShard, body: bytes) -> object:
        return asdict(await kept.here.snapshot())

    async def _snapshot_under(self, kept: LocalShard, body: bytes) -> object:
        return asdict(await kept.here.snapshot_under(_read(body, wire.SnapshotUnder).key))


def _read(body: bytes, kind: type[Any]) -> Any:
    try:
        return wire.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Invalid(f"a call of another release: use one release everywhere. error=`{error}`") from error


def _life(text: str) -> UUID:
    try:
        return UUID(hex=text)
    except ValueError as error:
        raise Invalid(f"a life is named by its uuid. life=`{text}`") from error


def _seconds(text: str) -> float:
    try:
        return max(0.001, float(text))
    except ValueError as error:
        raise Invalid(f"deadline_s is a number of seconds. deadline_s=`{text}`") from error


def _status(error: LakehouseError) -> int:
    if isinstance(error, OtherLife):
        return 409
    return next((status for kind, status in problem.STATUS if isinstance(error, kind)), 500)


def _shard_state(shard: Shard) -> dict[str, Any]:
    return {
        "shard": shard.number,
        "items": len(shard),
        "position": shard.position,
        "damage": shard.damage or "",
        "settled": shard.settled,
        "snapshot_position": shard.replica.snapshot_position,
        "writer": shard.may_snapshot(),
    }


def _record(index: RemoteIndex) -> Incarnation:
    params = dict(index.params)
    params["distance"] = Distance(params["distance"])
    return Incarnation(index.record, UUID(hex=index.life), IndexParams(**params), index.shard_count)
