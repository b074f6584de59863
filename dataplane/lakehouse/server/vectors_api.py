"""The vectors routes: bytes in, one call to the engine, bytes out.

Search and add are the hot ones.  A search whose index is fresh and cheap runs inline on the event loop,
because a hop to a thread costs more than the search; large bodies are decoded in a worker, because they
would hold the loop. What this module does not do: decide anything about indexes; `lakehouse.indexes` does.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import orjson

from lakehouse.collection import Collection, Told
from lakehouse.core.errors import Invalid, NotFound
from lakehouse.core.types import (
    BATCH_ITEMS_MAX,
    EF_MAX,
    ID_BYTES_MAX,
    Consistency,
    Distance,
    Hit,
    IndexParams,
    Item,
    MergeResult,
    Position,
    SearchPlan,
    SearchResult,
    Vectors,
    WriteResult,
    clamped_k,
)
from lakehouse.index.predicate import Predicate
from lakehouse.indexes import Indexes
from lakehouse.runtime import Runtime
from lakehouse.server import add_body, json_body
from lakehouse.server.add_body import matrix_of
from lakehouse.server.declared import (
    Declared,
    check_not_declared,
    check_served,
    check_writable,
    nobody,
    not_ready,
)
from lakehouse.server.http import BINARY, Request, Response, json_response, media_types, while_there
from lakehouse.server.json_body import (
    CreateBody,
    Decoder,
    DeleteBody,
    MergeBody,
    ReadBody,
    RecallBody,
    ScrollBody,
    SearchOptions,
    SnapshotBody,
    floats,
    wrong_dimension,
)
from lakehouse.vector_sql import Filters, as_metadata

INLINE_BODY_BYTES = 64 << 10
"""A larger add body is decoded in a worker: 64 KiB of JSON take about 0.3 ms."""
QUERIES_MAX = 1_024
"""Queries in one batch."""
SCROLL_DEFAULT, SCROLL_MAX = 100, 1_000
RECALL_SAMPLES_MAX = 10_000
SHARDS_MAX = 256

CONSISTENCY = {member.value: member for member in Consistency}

decode_create = Decoder(CreateBody)
decode_merge = Decoder(MergeBody)
decode_delete = Decoder(DeleteBody)
decode_read = Decoder(ReadBody)
decode_scroll = Decoder(ScrollBody)
decode_recall = Decoder(RecallBody)
decode_snapshot = Decoder(SnapshotBody)


class VectorsApi:
    """Handlers named as the routes are."""

    def __init__(
        self,
        indexes: Indexes,
        runtime: Runtime,
        body_bytes_max: int,
        declared: Callable[[str], Declared | None] = nobody,
        filters: Filters = as_metadata,
        only: str | None = None,
    ) -> None:
        """`only` is the one index that is served; None for all."""
        self._only = only
        self._indexes = indexes
        self._runtime = runtime
        self._body_bytes_max = body_bytes_max
        self._declared = declared
        self._filters = filters

    # --- hot

    async def search(self, request: Request) -> Response:
        """Nearest neighbours of a vector or of a stored item."""
        collection = await self._readable(request)
        body = await request.body(self._body_bytes_max)
        position = _min_position(request)
        if request.media_type == BINARY:
            options = json_body.query_options(request.query())
            queries = matrix_of(body, collection.params.dimension)
            if len(queries) != 1:
                raise Invalid(f"a search takes one vector; search/batch takes many. vectors=`{len(queries)}`")
        else:
            asked = json_body.decode_search(body)
            if asked.id is not None:
                return await self._search_by_id(collection, asked, position)
            options, queries = asked, _one_vector(asked.vector, collection.params.dimension)
        wanted = await self._wanted(collection, options.filter)
        result = await _search(collection, queries, clamped_k(options.k), options, wanted, position)
        return _search_response(_hits_json(result.hits[0], options.include), result, options)

    async def search_batch(self, request: Request) -> Response:
        """Nearest neighbours of each of many vectors."""
        collection = await self._readable(request)
        body = await request.body(self._body_bytes_max)
        dimension = collection.params.dimension
        if request.media_type == BINARY:
            options = json_body.query_options(request.query())
            queries = matrix_of(body, dimension)
        else:
            asked = json_body.decode_batch(body)
            options = asked
            _check_query_count(len(asked.vectors))
            queries = json_body.matrix(asked.vectors, dimension, "vectors[{}]")
        _check_query_count(len(queries))
        wanted = await self._wanted(collection, options.filter)
        position = _min_position(request)
        result = await _search(collection, queries, clamped_k(options.k), options, wanted, position)
        include = options.include
        return _search_response([_hits_json(hits, include) for hits in result.hits], result, options)

    async def add(self, request: Request) -> Response:
        """Upsert a batch of items."""
        collection = await self._writable(request)
        key = request.idempotency_key()
        body = await request.body(self._body_bytes_max)
        if len(body) > INLINE_BODY_BYTES:
            batch = await self._runtime.run_cpu(add_body.decode, body, request.media_type, collection.params)
        else:
            batch = add_body.decode(body, request.media_type, collection.params)
        result = await collection.add(batch, idempotency_key=key)
        return json_response({"added": result.added, "length": result.length}, 200, _written(result))

    async def _collection(self, request: Request) -> Collection:
        name = request.params["name"]
        collection = self._indexes.opened(name)
        return await self._opened(name) if collection is None else collection

    async def _readable(self, request: Request) -> Collection:
        """What a read is answered from; an eventual one from a life that has ended while the next is loaded."""
        name = request.params["name"]
        collection = self._indexes.opened(name)
        if collection is not None:
            return collection
        eventual = self._indexes.has_ended(name) and await self._is_eventual(request)
        return await self._opened(name, eventual=eventual)

    async def _is_eventual(self, request: Request) -> bool:
        """Whether a read asks for no more than what was known before."""
        if b"lakehouse-min-position" in request.headers:
            return False
        if request.query().get("consistency") == Consistency.EVENTUAL:
            return True
        if request.scope["method"] == "GET" or request.media_type == BINARY:
            return False
        return json_body.asks_eventual(await request.body(self._body_bytes_max))

    async def _opened(self, name: str, *, eventual: bool = False) -> Collection:
        """Raises `Unavailable` rather than `NotFound` for an index that is declared and does not live yet."""
        self._check_here(name)
        declared = self._declared(name)
        check_served(declared, name)
        try:
            return await self._indexes.open(name, eventual=eventual)
        except NotFound as error:
            if declared is None:
                raise
            raise not_ready(declared, name) from error

    def _check_here(self, name: str) -> None:
        if self._only is not None and name != self._only:
            raise NotFound(f"this process serves another index. index=`{self._only}` name=`{name}`")

    async def _wanted(self, collection: Collection, text: str | None) -> str | Predicate | None:
        """A filter as the engine takes it; one over a dataset's columns is answered by SQL first."""
        if text is None or collection.origin is None:
            return text
        return await self._filters(collection, text)

    async def _writable(self, request: Request) -> Collection:
        collection = await self._collection(request)
        check_writable(self._declared(collection.name), collection.name)
        return collection

    async def _search_by_id(
        self, collection: Collection, asked: json_body.SearchBody, position: Position | None
    ) -> Response:
        """Neighbours of a stored item, itself left out."""
        if asked.vector is not None:
            raise Invalid("give either `vector` or `id`, not both")
        item_id, told = str(asked.id), Told()
        item = await collection.item(
            item_id, consistency=CONSISTENCY[asked.consistency], min_position=position, told=told
        )
        k = clamped_k(asked.k)
        wanted = await self._wanted(collection, asked.filter)
        result = await _search(collection, item.vector.reshape(1, -1), k + 1, asked, wanted, position)
        result = replace(result, stale_s=max(told.stale_s, result.stale_s))
        others = [hit for hit in result.hits[0] if hit.id != item_id][:k]
        return _search_response(_hits_json(others, asked.include), result, asked)

    # --- indexes

    async def create(self, request: Request) -> Response:
        """A new, empty index."""
        asked: CreateBody = decode_create(await request.body(self._body_bytes_max))
        self._check_here(asked.name)
        check_not_declared(self._declared(asked.name), asked.name)
        shards = asked.shards or 1
        if not 1 <= shards <= SHARDS_MAX:
            raise Invalid(f"shards must be a whole number from 1 to {SHARDS_MAX}. shards=`{shards}`")
        collection = await self._indexes.create(_index_params(asked), shards)
        return json_response(_described(collection), 201, _at(collection.position))

    async def list(self, request: Request) -> Response:
        """Names of all indexes."""
        names = sorted(name for name in await self._indexes.names() if self._only in (None, name))
        return json_response({"names": names, "count": len(names)})

    async def get(self, request: Request) -> Response:
        """One index: its parameters and length, after every write acknowledged before."""
        collection = await self._readable(request)
        headers = await _fresh(collection, _consistency(request), _min_position(request))
        return json_response(_described(collection), 200, _at(collection.position) + headers)

    async def drop(self, request: Request) -> Response:
        """Delete an index with all it holds."""
        name = request.params["name"]
        self._check_here(name)
        check_not_declared(self._declared(name), name)
        await self._indexes.drop(name)
        return Response(204)

    async def merge(self, request: Request) -> Response:
        """Copy every item of one index into another."""
        source = request.params["name"]
        asked: MergeBody = decode_merge(await self._body(request))
        if not asked.dest or asked.dest == source:
            raise Invalid(f"dest names another index than the source. dest=`{asked.dest}`")
        await self._check_merge(source, asked.dest, clears=bool(asked.clear_source))
        result = await self._indexes.merge(
            source,
            asked.dest,
            clear_source=bool(asked.clear_source),
            replace=asked.on_conflict == "replace",
        )
        return json_response(merged_json(result), 200, _at(result.position))

    async def _check_merge(self, source: str, dest: str, *, clears: bool) -> None:
        for name, changes in ((source, clears), (dest, True)):
            self._check_here(name)
            declared = self._declared(name)
            if declared is not None:
                await self._opened(name)
                if changes:
                    check_writable(declared, name)

    # --- items

    async def delete(self, request: Request) -> Response:
        """Delete items by id, or all that match a filter."""
        collection = await self._writable(request)
        key = request.idempotency_key()
        asked: DeleteBody = decode_delete(await self._body(request))
        if (asked.ids is None) == (asked.filter is None):
            raise Invalid("give either `ids` or `filter`")
        if asked.filter is not None:
            wanted = await self._filters(collection, asked.filter)
            result = await collection.delete_where(wanted)
        else:
            result = await collection.delete(_checked_ids(asked.ids or []), idempotency_key=key)
        return json_response({"deleted": result.deleted, "length": result.length}, 200, _written(result))

    async def item(self, request: Request) -> Response:
        """One stored item; its vector alone, as float32 bytes, when that is what the client accepts."""
        collection = await self._readable(request)
        consistency, position, told = _consistency(request), _min_position(request), Told()
        item = await collection.item(
            request.params["id"], consistency=consistency, min_position=position, told=told
        )
        headers = _stale(told.stale_s)
        if BINARY in media_types(request.headers.get(b"accept", b"")):
            return Response(200, item.vector.astype("<f4", copy=False).tobytes(), BINARY, headers)
        return json_response(_item_json(item, vectors=True, metadata=True), 200, headers)

    async def scroll(self, request: Request) -> Response:
        """A page of items in the order of their ids."""
        collection = await self._readable(request)
        asked: ScrollBody = decode_scroll(await self._body(request))
        limit = asked.limit if asked.limit is not None and asked.limit > 0 else SCROLL_DEFAULT
        wanted = await self._wanted(collection, asked.filter)
        told = Told()
        items, after = await collection.scroll(
            asked.after,
            min(limit, SCROLL_MAX),
            wanted,
            consistency=CONSISTENCY[asked.consistency],
            min_position=_min_position(request),
            told=told,
        )
        include = asked.include if asked.include is not None else ["metadata"]
        found = [_item_json(item, "vectors" in include, "metadata" in include) for item in items]
        return json_response({"items": found, "after": after}, 200, _stale(told.stale_s))

    async def count(self, request: Request) -> Response:
        """How many items match."""
        collection = await self._readable(request)
        asked: ReadBody = decode_read(await self._body(request))
        wanted = await self._wanted(collection, asked.filter)
        told = Told()
        count = await collection.count(
            wanted,
            consistency=CONSISTENCY[asked.consistency],
            min_position=_min_position(request),
            told=told,
        )
        return json_response({"count": count}, 200, _stale(told.stale_s))

    # --- looking after

    async def stats(self, request: Request) -> Response:
        """What the engine says of an index."""
        collection = await self._collection(request)
        return json_response(await collection.stats())

    async def recall(self, request: Request) -> Response:
        """Sampled queries against the exact answer."""
        collection = await self._collection(request)
        asked: RecallBody = decode_recall(await self._body(request))
        if not 1 <= asked.samples <= RECALL_SAMPLES_MAX:
            raise Invalid(
                f"samples must be a whole number from 1 to {RECALL_SAMPLES_MAX}. samples=`{asked.samples}`"
            )
        _check_ef(asked.ef)
        return json_response(await collection.recall(asked.samples, clamped_k(asked.k), asked.ef))

    async def snapshot(self, request: Request) -> Response:
        """Take a snapshot now; a name keeps it.  One that is `attended` is given up when the client hangs up."""
        collection = await self._collection(request)
        asked: SnapshotBody = decode_snapshot(await self._body(request))
        attended = request.flag("attended")
        work = collection.snapshot(asked.name)
        taken = await (while_there(request, self._runtime, work, "snapshot") if attended else work)
        return json_response(taken, 200, _at(collection.position))

    async def _body(self, request: Request) -> bytes:
        """The body, where none means `{}`."""
        body = await request.body(self._body_bytes_max)
        json_body.check_utf8(body)
        return body or b"{}"


# --- what is asked


def _index_params(asked: CreateBody) -> IndexParams:
    try:
        distance = Distance(asked.distance or Distance.COSINE)
    except ValueError as error:
        known = ", ".join(Distance)
        raise Invalid(f"unknown distance: one of {known}. distance=`{asked.distance}`") from error
    given = {"m": asked.m, "ef_search": asked.ef_search, "ef_construction": asked.ef_construction}
    numbers = {name: value for name, value in given.items() if value}
    return IndexParams(asked.name, asked.dimension, distance=distance, **numbers)


def _one_vector(value: json_body.VectorText | None, dimension: int) -> Vectors:
    if value is None:
        raise Invalid("give `vector`, or the `id` of a stored item")
    row = floats(value, "vector")
    if len(row) != dimension:
        raise Invalid(wrong_dimension("vector", dimension, len(row)))
    return row.reshape(1, dimension)


def _check_query_count(queries: int) -> None:
    if not 1 <= queries <= QUERIES_MAX:
        raise Invalid(f"a batch has 1 to {QUERIES_MAX} vectors. vectors=`{queries}`")


def _check_ef(ef: int | None) -> None:
    if ef is not None and not 1 <= ef <= EF_MAX:
        raise Invalid(f"ef must be a whole number from 1 to {EF_MAX}. ef=`{ef}`")


def _checked_ids(ids: Sequence[str]) -> Sequence[str]:
    if not 1 <= len(ids) <= BATCH_ITEMS_MAX:
        raise Invalid(f"ids has 1 to {BATCH_ITEMS_MAX} entries. ids=`{len(ids)}`")
    for j, item_id in enumerate(ids):
        if not item_id:
            raise Invalid(f"ids[{j}] is empty")
        if len(item_id) > ID_BYTES_MAX // 4 and len(item_id.encode()) > ID_BYTES_MAX:
            raise Invalid(f"ids[{j}] is longer than {ID_BYTES_MAX} bytes")
    return ids


def _min_position(request: Request) -> Position | None:
    raw = request.headers.get(b"lakehouse-min-position")
    return None if raw is None else Position.parse(raw.decode("latin-1"))


def _consistency(request: Request) -> Consistency:
    asked = request.query().get("consistency", Consistency.STRONG.value)
    if asked not in CONSISTENCY:
        raise Invalid(f"consistency is `strong` or `eventual`. consistency=`{asked}`")
    return CONSISTENCY[asked]


# --- reading


async def _search(
    collection: Collection,
    queries: Vectors,
    k: int,
    options: SearchOptions,
    wanted: str | Predicate | None,
    position: Position | None,
) -> SearchResult:
    """Inline when the index is fresh and the search cheap; else as the engine sees fit."""
    _check_ef(options.ef)
    consistency = CONSISTENCY[options.consistency]
    include = options.include
    metadata = include is None or "metadata" in include
    vectors = include is not None and "vectors" in include
    if collection.is_fresh(consistency, position):
        result = collection.search_now(
            queries,
            k,
            ef=options.ef,
            filter=wanted,
            include_metadata=metadata,
            include_vectors=vectors,
        )
        if result is not None:
            return result
    return await collection.search(
        queries,
        k,
        ef=options.ef,
        filter=wanted,
        include_metadata=metadata,
        include_vectors=vectors,
        consistency=consistency,
        min_position=position,
    )


async def _fresh(
    collection: Collection, consistency: Consistency, position: Position | None
) -> tuple[tuple[bytes, bytes], ...]:
    """Catch up as asked; the headers that say how far that went."""
    if collection.is_fresh(consistency, position):
        return ()
    return _stale(await collection.refresh(consistency, position))


# --- what is answered


def _hits_json(hits: Sequence[Hit], include: Sequence[str] | None) -> Any:
    fragment = orjson.Fragment
    if include is None or "vectors" not in include:
        return [
            {
                "id": hit.id,
                "distance": hit.distance,
                "metadata": fragment(hit.metadata) if hit.metadata else None,
            }
            for hit in hits
        ]
    return [
        {
            "id": hit.id,
            "distance": hit.distance,
            "metadata": fragment(hit.metadata) if hit.metadata else None,
            "vector": None if hit.vector is None else hit.vector.tolist(),
        }
        for hit in hits
    ]


def _search_response(results: Any, result: SearchResult, options: SearchOptions) -> Response:
    body: dict[str, Any] = {"results": results}
    if options.filter is not None or options.explain:
        body["plan"] = _plan_json(result.plan)
    return json_response(body, 200, _stale(result.stale_s))


def _plan_json(plan: SearchPlan) -> dict[str, Any]:
    return {"strategy": plan.strategy, "matched": plan.matched, "ef": plan.ef, "visited": plan.visited}


def _item_json(item: Item, vectors: bool, metadata: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"id": item.id}
    if vectors:
        body["vector"] = item.vector.tolist()
    if metadata:
        body["metadata"] = orjson.Fragment(item.metadata) if item.metadata else None
    return body


def _described(collection: Collection) -> dict[str, Any]:
    return {"params": collection.params.to_json(), "length": collection.length}


def merged_json(result: MergeResult) -> dict[str, Any]:
    """A merge's result as the public route answers it."""
    body: dict[str, Any] = {
        "merged": result.merged,
        "skipped_already_present": result.skipped_already_present,
        "failed": result.failed,
        "length_dest": result.length_dest,
        "length_source": result.length_source,
    }
    return body if result.first_error is None else body | {"first_error": result.first_error}


def _at(position: Position | None) -> tuple[tuple[bytes, bytes], ...]:
    return () if position is None else ((b"lakehouse-position", str(position).encode()),)


def _stale(seconds: float) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"lakehouse-staleness", b"%.3f" % seconds),) if seconds > 0 else ()


def _written(result: WriteResult) -> tuple[tuple[bytes, bytes], ...]:
    return _at(result.position)
