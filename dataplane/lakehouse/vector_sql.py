"""Where SQL meets the indexes: `vector_search` answered by the engine, and filters answered by SQL.

The engine is this process's own, or over HTTP that of the process with the vectors role.  A query may be a vector or
the id of a stored item; of an item, itself is left out of the answer.  An index that was built from a dataset may be
filtered by any of its columns: a predicate that the index's metadata cannot answer is asked of the very version it was
built from, and comes back as a set of ids; a process with the vectors role alone, where no SQL runs, cannot ask, so
there a filter is over metadata only.  What this module does not do: parse SQL or run it; `lakehouse.sql` does.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

import httpx
import msgspec
import numpy as np

from lakehouse.catalog import Catalog
from lakehouse.collection import Collection
from lakehouse.core.errors import Busy, Conflict, Invalid, NotFound, Outcome, Unavailable
from lakehouse.core.names import checked_index_name
from lakehouse.core.types import Consistency, Hit, Vectors
from lakehouse.index import predicate
from lakehouse.index.predicate import Predicate
from lakehouse.indexes import Indexes
from lakehouse.sql.errors import QueryFailed
from lakehouse.sql.execution import Query
from lakehouse.sql.formats import Format
from lakehouse.sql.service import SqlService

QUERIES_MAX = 1_024
"""Queries in one request to another process: what its route takes."""
QUERY_BYTES_MAX = 32 << 20
"""Of the queries in one request, below what its route takes by default."""
ITEMS_AT_ONCE = 16
"""Requests under way for queries that are items' ids, which its batch route does not take."""
CALLER: ContextVar[str] = ContextVar("caller", default="")
"""The `Authorization` that a query came with; it is passed on with what the query asks of another process."""
FILTER_SHOWN_MAX = 200
"""Characters of a filter in a message: enough to know it again."""
KEPT_MAX = 64
"""Answers to filters that are kept; each is right for ever, since versions do not change."""
KEPT_IDS_MAX = 4_000_000
"""Ids in all kept answers together, about 100 bytes each."""

Filters = Callable[[Collection, str], Awaitable[str | Predicate]]
"""Makes of a filter's text what the engine of an index can answer."""


async def as_metadata(collection: Collection, text: str) -> str | Predicate:
    """A filter over the items' metadata, which the engine reads itself."""
    return text


class IndexVectorSearch:
    """`lakehouse.sql.vectors.VectorSearch` over the open indexes."""

    def __init__(self, indexes: Indexes, filters: Filters = as_metadata) -> None:
        self._indexes = indexes
        self._filters = filters

    async def search(
        self, index: str, queries: Vectors | Sequence[str], k: int, filter: str | None
    ) -> Sequence[Sequence[Hit]]:
        """The k nearest items of each query, nearest first, after every write acknowledged before.

        Raises `NotFound` for an unknown index or item, `Invalid` for a wrong dimension or filter.
        """
        collection = self._indexes.opened(index) or await self._indexes.open(index)
        wanted = None if filter is None else await self._filters(collection, filter)
        if isinstance(queries, np.ndarray):
            return await _nearest(collection, queries, k, wanted)
        return await _neighbours(collection, queries, k, wanted)


async def _neighbours(
    collection: Collection, ids: Sequence[str], k: int, wanted: str | Predicate | None
) -> Sequence[Sequence[Hit]]:
    await collection.refresh(Consistency.STRONG)
    read = partial(collection.item, consistency=Consistency.EVENTUAL, min_position=collection.position)
    items = await asyncio.gather(*map(read, ids))
    found = await _nearest(collection, np.stack([item.vector for item in items]), k + 1, wanted)
    return [
        tuple(hit for hit in hits if hit.id != item_id)[:k] for item_id, hits in zip(ids, found, strict=True)
    ]


async def _nearest(
    collection: Collection, queries: Vectors, k: int, wanted: str | Predicate | None
) -> Sequence[Sequence[Hit]]:
    if collection.is_fresh(Consistency.STRONG, None):
        result = collection.search_now(queries, k, filter=wanted)
        if result is not None:
            return result.hits
    return (await collection.search(queries, k, filter=wanted)).hits


class HttpVectorSearch:
    """`lakehouse.sql.vectors.VectorSearch` over the process that runs the vectors role."""

    def __init__(self, url: str, connect_s: float, timeout_s: float) -> None:
        self._client = httpx.AsyncClient(
            base_url=f"{url.rstrip('/')}/v1/vectors/index",
            timeout=httpx.Timeout(timeout_s, connect=connect_s),
            trust_env=False,
        )
        self._places = asyncio.Semaphore(ITEMS_AT_ONCE)

    async def close(self) -> None:
        await self._client.aclose()

    async def search(
        self, index: str, queries: Vectors | Sequence[str], k: int, filter: str | None
    ) -> Sequence[Sequence[Hit]]:
        """The k nearest items of each query, nearest first, after every write acknowledged before.

        Raises `NotFound` for an unknown index or item, `Invalid` for a wrong dimension or filter, `Busy`,
        `Unavailable` when that process does not answer or refuses the caller's key.
        """
        checked_index_name(index)
        if not isinstance(queries, np.ndarray):
            return await asyncio.gather(*(self._neighbours(index, each, k, filter) for each in queries))
        found: list[Sequence[Hit]] = []
        for rows in _parts(queries):
            found += await self._nearest(index, rows, k, filter)
        return found

    async def _nearest(
        self, index: str, rows: Vectors, k: int, filter: str | None
    ) -> Sequence[Sequence[Hit]]:
        asked = {"k": str(k)} | ({} if filter is None else {"filter": filter})
        body = rows.astype("<f4", copy=False).tobytes()
        headers = {"content-type": "application/octet-stream"}
        answer = await self._asked(index, "search/batch", content=body, params=asked, headers=headers)
        return [_hits(each) for each in msgspec.json.decode(answer, type=_Batch).results]

    async def _neighbours(self, index: str, item_id: str, k: int, filter: str | None) -> Sequence[Hit]:
        async with self._places:
            asked = {"id": item_id, "k": k, "filter": filter}
            given = {name: value for name, value in asked.items() if value is not None}
            answer = await self._asked(index, "search", json=given)
        return _hits(msgspec.json.decode(answer, type=_Found).results)

    async def _asked(
        self, index: str, verb: str, headers: dict[str, str] | None = None, **request: object
    ) -> bytes:
        key = {"authorization": CALLER.get()} if CALLER.get() else {}
        path = f"/{quote(index, safe='')}/{verb}"
        try:
            answer = await self._client.post(path, headers={**(headers or {}), **key}, **request)  # type: ignore[arg-type]
        except httpx.TransportError as error:
            raise Unavailable(
                "the vectors role does not answer: try again", outcome=Outcome.NOT_COMMITTED
            ) from error
        if answer.status_code != 200:
            raise _refusal(answer)
        return answer.content


def _parts(queries: Vectors) -> Iterator[Vectors]:
    """As many rows at a time as one request takes."""
    rows = max(1, min(QUERIES_MAX, QUERY_BYTES_MAX // max(1, 4 * queries.shape[1])))
    for start in range(0, len(queries), rows):
        yield queries[start : start + rows]


class _RemoteHit(msgspec.Struct):
    id: str
    distance: float | None = None
    metadata: msgspec.Raw = msgspec.Raw()


class _Found(msgspec.Struct):
    results: list[_RemoteHit]


class _Batch(msgspec.Struct):
    results: list[list[_RemoteHit]]


def _hits(found: Sequence[_RemoteHit]) -> Sequence[Hit]:
    return [Hit(each.id, math.nan if each.distance is None else each.distance, _text(each)) for each in found]


def _text(hit: _RemoteHit) -> bytes:
    text = bytes(hit.metadata)
    return b"" if text == b"null" else text


class _Problem(msgspec.Struct):
    detail: str = ""


def _refusal(answer: httpx.Response) -> Exception:
    """What the other process said, as the error it was there."""
    try:
        detail = msgspec.json.decode(answer.content, type=_Problem).detail
    except msgspec.MsgspecError:
        detail = ""
    detail = detail or f"the vectors role answered {answer.status_code}"
    status = answer.status_code
    if status in (401, 403):
        detail = "the vectors role does not take the caller's key: give every process the same `keys`"
    kinds = {400: Invalid, 404: NotFound, 413: Invalid}
    if status in kinds:
        return kinds[status](detail)
    return Busy(detail) if status == 429 else Unavailable(detail, outcome=Outcome.NOT_COMMITTED)


@dataclass(frozen=True, slots=True)
class _Built:
    """What an index says it was built from."""

    dataset: str
    version: int
    id_column: str
    metadata_columns: frozenset[str]


class DatasetFilters:
    """Filters over the columns of the dataset version that an index was built from."""

    def __init__(self, catalog: Catalog, sql: SqlService) -> None:
        self._catalog = catalog
        self._sql = sql
        self._kept: OrderedDict[tuple[str, int, str, str], tuple[Predicate, int]] = OrderedDict()
        self._kept_ids = 0

    async def __call__(self, collection: Collection, text: str) -> str | Predicate:
        """The text itself where the items' metadata answers it, else the ids of the rows that match.

        Raises `Invalid` for a predicate that neither side can read.
        """
        built = _built(collection)
        if built is None or await self._is_metadata(built, text):
            return text
        key = (built.dataset, built.version, built.id_column, text)
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            return kept[0]
        ids = await self._ids(built, text)
        wanted = await self._sql.runtime.run_cpu(predicate.members, ids)  # it sorts them: 70 ms for 50,000
        self._keep(key, wanted, len(ids))
        return wanted

    async def _is_metadata(self, built: _Built, text: str) -> bool:
        """Whether the index's own metadata has every field named, or the dataset does not have them either."""
        try:
            named = predicate.paths(text)
        except Invalid:  # a function or an expression, perhaps: DuckDB knows more than we do
            return False
        if named <= built.metadata_columns:
            return True
        try:
            schema = (await self._catalog.manifest(built.dataset, built.version)).schema
        except NotFound:
            return True
        return schema is not None and all(
            name in built.metadata_columns or schema.field(name) is None for name in named
        )

    async def _ids(self, built: _Built, text: str) -> list[str]:
        """The ids of the rows that match, by a query in the sandbox.  Raises `Invalid`, `Conflict`."""
        table, column = _quoted(f"{built.dataset}@v{built.version}"), _quoted(built.id_column)
        asked = f"SELECT CAST({column} AS VARCHAR) FROM {table} WHERE (\n{text}\n)"
        try:
            execution = await self._sql.run(Query(asked, format=Format.JSON))
            body = b"".join([chunk async for chunk in execution.chunks()])
        except NotFound as error:
            raise Conflict(
                f"the dataset version the index was built from is gone. version=`{table}`"
            ) from error
        except QueryFailed as error:
            place = f" at line {error.line}, column {error.column}"  # of our statement, not of the filter
            reason = error.message.replace(place, "", 1)
            raise Invalid(f"filter over {table}: {reason}. filter=`{text[:FILTER_SHOWN_MAX]}`") from error
        answer = msgspec.json.decode(body, type=_Answer)
        if answer.truncated:
            raise Invalid(
                f"filter matches too many rows: say it the other way round. rows=`{answer.row_count}`"
            )
        return [row[0] for row in answer.rows if row[0] is not None]

    def _keep(self, key: tuple[str, int, str, str], wanted: Predicate, ids: int) -> None:
        self._kept[key] = wanted, ids
        self._kept_ids += ids
        while len(self._kept) > KEPT_MAX or (self._kept_ids > KEPT_IDS_MAX and len(self._kept) > 1):
            self._kept_ids -= self._kept.popitem(last=False)[1][1]


class _Answer(msgspec.Struct):
    rows: list[tuple[str | None]]
    row_count: int
    truncated: bool


def _built(collection: Collection) -> _Built | None:
    origin = collection.origin
    if origin is None or not isinstance(origin.get("dataset"), str):
        return None
    columns = origin.get("metadata_columns")
    return _Built(
        str(origin["dataset"]),
        int(str(origin["version"])),
        str(origin["id_column"]),
        frozenset(map(str, columns if isinstance(columns, list) else ())),
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
