"""Where SQL meets the indexes: `vector_search` answered by the engine of this process, and filters answered by SQL.

A query may be a vector or the id of a stored item; of an item, itself is left out of the answer.  An index that was
built from a dataset may be filtered by any of its columns: a predicate that the index's metadata cannot answer is
asked of the very version it was built from, and comes back as a set of ids.  What this module does not do: parse SQL
or run it; `lakehouse.sql` does.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from lakehouse.catalog import Catalog
from lakehouse.collection import Collection
from lakehouse.core.errors import Conflict, Invalid, NotFound
from lakehouse.core.types import Consistency, Hit, Vectors
from lakehouse.index import predicate
from lakehouse.index.predicate import Predicate
from lakehouse.indexes import Indexes
from lakehouse.sql.errors import QueryFailed
from lakehouse.sql.execution import Query
from lakehouse.sql.formats import Format
from lakehouse.sql.service import SqlService

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
    items = await asyncio.gather(
        *(collection.item(item_id, consistency=Consistency.EVENTUAL) for item_id in ids)
    )
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
            raise Invalid(f"filter over {table}: {error.message}") from error
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
