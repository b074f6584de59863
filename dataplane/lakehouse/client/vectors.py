"""The calls on indexes and their items, and what they answer.

What it does not do: split batches; the server's limit on a body is the caller's to respect.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from lakehouse.client.tabular import Tabular, counted
from lakehouse.client.wire import (
    ARROW,
    BINARY,
    Call,
    Fresh,
    Request,
    given,
    json_of,
    nothing,
    path,
    post,
    query_text,
    with_headers,
)
from lakehouse.core import errors
from lakehouse.core.types import Distance, IndexParams, MergeResult, Position, WriteResult

if TYPE_CHECKING:
    import pyarrow as pa

Floats = npt.NDArray[np.float32]
VectorLike = npt.NDArray[Any] | Sequence[float]
VectorsLike = npt.NDArray[Any] | Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """One index as the server describes it."""

    params: IndexParams
    length: int


@dataclass(frozen=True, slots=True)
class Match:
    """One search result; `vector` only where it was asked for."""

    id: str
    distance: float
    metadata: Any = None
    vector: Floats | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Found(Tabular):
    """The matches of one query, nearest first, and what the server did to find them.

    As a table its columns are `id` (string), `distance` (float64), one per metadata field, and `vector`
    (float32) where it was asked for.
    """

    matches: tuple[Match, ...]
    plan: Mapping[str, Any] = field(default_factory=dict)
    stale_s: float = 0.0
    """Seconds by which the answer may be behind; 0 when it is not."""

    def __len__(self) -> int:
        return len(self.matches)

    def __iter__(self) -> Iterator[Match]:
        return iter(self.matches)

    def __getitem__(self, place: int) -> Match:
        return self.matches[place]

    def to_arrow(self) -> "pa.Table":
        import pyarrow as pa

        return pa.table(_match_columns(self.matches))

    def _footer(self) -> str:
        said = [f"{name}={value}" for name, value in self.plan.items() if name in ("strategy", "matched")]
        stale = [f"may be {self.stale_s:.0f} s behind"] if self.stale_s else []
        return ", ".join([counted(len(self.matches)), *said, *stale])


class FoundBatch(tuple[Found, ...], Tabular):
    """What each of many queries found; as a table its first column `query` (int64) is the query's place."""

    __slots__ = ()
    __repr__ = Tabular.__repr__

    def to_arrow(self) -> "pa.Table":
        import pyarrow as pa

        counts = [len(found.matches) for found in self]
        columns = {"query": pa.array(np.repeat(np.arange(len(self)), counts), pa.int64())}
        return pa.table(columns | _match_columns([match for found in self for match in found.matches]))

    def _footer(self) -> str:
        return f"{sum(map(len, self)):,} matches of {len(self):,} queries"


def _match_columns(matches: Sequence[Match]) -> dict[str, "pa.Array"]:
    import pyarrow as pa

    columns = {
        "id": pa.array([match.id for match in matches], pa.string()),
        "distance": pa.array([match.distance for match in matches], pa.float64()),
    }
    for name, values in _metadata_columns(matches).items():
        columns[name if name not in ("id", "distance", "vector", "query") else f"metadata.{name}"] = _array(
            values
        )
    if any(match.vector is not None for match in matches):
        vectors = [match.vector for match in matches]
        columns["vector"] = pa.array(vectors, pa.list_(pa.float32()))
    return columns


def _metadata_columns(matches: Sequence[Match]) -> dict[str, list[Any]]:
    """Objects give a column per field; where some metadata is no object, all of it is one column."""
    known = [match.metadata for match in matches if match.metadata is not None]
    if not all(isinstance(metadata, dict) for metadata in known):
        return {"metadata": [match.metadata for match in matches]}
    names = dict.fromkeys(name for metadata in known for name in metadata)
    return {name: [(match.metadata or {}).get(name) for match in matches] for name in names}


def _array(values: list[Any]) -> "pa.Array":
    """Of one type where the values have one, else their JSON text."""
    import pyarrow as pa

    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array(
            [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored item; `vector` is bit for bit what was added."""

    id: str
    vector: Floats | None
    metadata: Any = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some items in the order of their ids, and where the next page begins (None at the end)."""

    items: tuple[Stored, ...]
    after: str | None
    stale_s: float = 0.0
    """Seconds by which these may be behind, where the store did not answer in time; 0 when they are not."""


class SearchOptions(TypedDict, total=False):
    """What a search takes besides its vector."""

    k: int
    ef: int
    filter: str | None
    include: Sequence[Literal["vectors", "metadata"]]
    consistency: Literal["strong", "eventual"]
    min_position: Position
    explain: bool
    """Answer with the plan even where there is no filter."""


class CreateOptions(TypedDict, total=False):
    """What an index takes besides its name and dimension; defaults as in `IndexParams`."""

    m: int
    ef_search: int
    ef_construction: int
    distance: Distance | Literal["cosine", "euclidean", "dot"]


def _index_path(name: str, *rest: str) -> str:
    return path("vectors", "index", name, *rest)


# --- the calls ----------------------------------------------------------------------------------------------


def create(fresh: Fresh, name: str, dimension: int, **params: Unpack[CreateOptions]) -> Call[IndexInfo]:
    """Make an empty index.  Raises `Conflict` if it exists."""
    wanted = _params(name, dimension, params)
    body = wanted.to_json() | {"ef_construction": wanted.ef_construction}
    return Call(post("/v1/vectors/index", body, repeatable=False), _read_info)


def _params(name: str, dimension: int, options: CreateOptions) -> IndexParams:
    chosen: dict[str, Any] = dict(options)
    if "distance" in chosen:
        try:
            chosen["distance"] = Distance(chosen["distance"])
        except ValueError as error:
            raise errors.Invalid(
                f"distance is cosine, euclidean or dot. distance=`{chosen['distance']}`"
            ) from error
    return IndexParams(name, dimension, **chosen)


def indexes(fresh: Fresh) -> Call[tuple[str, ...]]:
    """The names of all indexes."""
    return Call(Request("GET", "/v1/vectors/index"), lambda answer: tuple(json_of(answer)["names"]))


def index(fresh: Fresh, name: str) -> Call[IndexInfo]:
    """One index: its parameters and length."""
    return Call(Request("GET", _index_path(name)), _read_info)


def drop(fresh: Fresh, name: str) -> Call[None]:
    """Delete an index and all its items."""
    return Call(Request("DELETE", _index_path(name), repeatable=False), nothing)


def add(
    fresh: Fresh,
    name: str,
    ids: Sequence[str],
    vectors: VectorsLike,
    metadata: Sequence[Any] | None = None,
    *,
    idempotency_key: str | None = None,
) -> Call[WriteResult]:
    """Insert or replace items; returns once they are durable and searchable."""
    return add_encoded(fresh, name, arrow_batch(ids, vectors, metadata), idempotency_key=idempotency_key)


def add_encoded(
    fresh: Fresh, name: str, body: bytes, *, idempotency_key: str | None = None
) -> Call[WriteResult]:
    """`add` of an `arrow_batch` made before."""
    headers = {"content-type": ARROW, "idempotency-key": idempotency_key or fresh()}
    return Call(Request("POST", _index_path(name, "add"), headers=headers, content=body), _read_write)


def arrow_batch(ids: Sequence[str], vectors: VectorsLike, metadata: Sequence[Any] | None = None) -> bytes:
    """An Arrow IPC stream `{id, vector, metadata}`, the cheapest body to parse; `metadata` is JSON text.

    `metadata[j]` None leaves stored metadata alone, `{}` clears it; `bytes` are taken as JSON text.
    """
    import pyarrow as pa  # here: it takes 100 ms to import, and only adding needs it

    matrix = _matrix(vectors)
    if len(matrix) != len(ids) or (metadata is not None and len(metadata) != len(ids)):
        raise errors.Invalid(
            f"ids, vectors and metadata must have the same length. lengths=`{len(ids)}, {len(matrix)}, "
            f"{len(ids) if metadata is None else len(metadata)}`"
        )
    columns = {
        "id": pa.array(ids, pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1]),
    }
    if metadata is not None:
        columns["metadata"] = pa.array([_json_text(value) for value in metadata], pa.string())
    batch = pa.record_batch(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _json_text(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return orjson.dumps(value)


def _matrix(vectors: VectorsLike) -> Floats:
    matrix = np.ascontiguousarray(vectors, dtype=np.float32)
    if matrix.ndim != 2:
        raise errors.Invalid(f"vectors must have two dimensions. shape=`{matrix.shape}`")
    return matrix


def _options(options: SearchOptions) -> tuple[dict[str, Any], dict[str, str]]:
    """The body's fields, and the headers."""
    fields = {name: value for name, value in options.items() if value is not None and name != "min_position"}
    position = options.get("min_position")
    return fields, {} if position is None else {"lakehouse-min-position": str(position)}


def search(fresh: Fresh, name: str, vector: VectorLike, **options: Unpack[SearchOptions]) -> Call[Found]:
    """The nearest items to `vector`."""
    numbers = vector.astype(np.float32) if isinstance(vector, np.ndarray) else list(vector)
    return _search(name, {"vector": numbers}, options)


def search_like(fresh: Fresh, name: str, item_id: str, **options: Unpack[SearchOptions]) -> Call[Found]:
    """The nearest items to a stored item."""
    return _search(name, {"id": item_id}, options)


def _search(name: str, query: Mapping[str, Any], options: SearchOptions) -> Call[Found]:
    fields, headers = _options(options)
    request = post(_index_path(name, "search"), {**query, **fields})
    return Call(with_headers(request, headers), _read_found)


def search_batch(
    fresh: Fresh, name: str, vectors: VectorsLike, **options: Unpack[SearchOptions]
) -> Call[FoundBatch]:
    """The nearest items to each of many vectors."""
    fields, headers = _options(options)
    request = Request(
        "POST",
        _index_path(name, "search", "batch"),
        params={key: query_text(value) for key, value in fields.items()},
        headers={"content-type": BINARY},
        content=_matrix(vectors).astype("<f4", copy=False).tobytes(),
    )
    return Call(with_headers(request, headers), _read_found_batch)


def delete(
    fresh: Fresh,
    name: str,
    ids: Sequence[str] | None = None,
    *,
    filter: str | None = None,
    idempotency_key: str | None = None,
) -> Call[WriteResult]:
    """Delete items by id, or all that a filter matches."""
    if (ids is None) == (filter is None):
        raise errors.Invalid("delete takes either ids or a filter")
    body: dict[str, Any] = {"filter": filter} if ids is None else {"ids": list(ids)}
    return Call(post(_index_path(name, "delete"), body, key=idempotency_key or fresh()), _read_write)


def item(fresh: Fresh, name: str, item_id: str) -> Call[Stored]:
    """One stored item."""
    return Call(Request("GET", _index_path(name, "items", item_id)), lambda answer: _stored(json_of(answer)))


def scroll(
    fresh: Fresh,
    name: str,
    *,
    after: str | None = None,
    limit: int = 100,
    filter: str | None = None,
    include: Sequence[str] | None = None,
) -> Call[Page]:
    """One page of items in the order of their ids."""
    body = given(after=after, limit=limit, filter=filter, include=include)
    return Call(post(_index_path(name, "scroll"), body), _read_page)


def count(fresh: Fresh, name: str, *, filter: str | None = None) -> Call[int]:
    """How many items an index holds, or how many a filter matches."""
    body = given(filter=filter)
    return Call(post(_index_path(name, "count"), body), lambda answer: int(json_of(answer)["count"]))


def merge(
    fresh: Fresh,
    source: str,
    dest: str,
    *,
    clear_source: bool = False,
    on_conflict: Literal["skip", "replace"] = "skip",
) -> Call[MergeResult]:
    """Copy what `dest` lacks from `source`; `replace` overwrites what it has."""
    body = {"dest": dest, "clear_source": clear_source, "on_conflict": on_conflict}
    return Call(post(_index_path(source, "merge"), body), _read_merge)


def stats(fresh: Fresh, name: str) -> Call[dict[str, Any]]:
    """What is in memory and what the log holds, per shard."""
    return Call(Request("GET", _index_path(name, "stats")), json_of)


def recall(
    fresh: Fresh, name: str, *, samples: int = 100, k: int = 10, ef: int | None = None
) -> Call[dict[str, Any]]:
    """Sampled queries against the exact answer."""
    return Call(post(_index_path(name, "recall"), given(samples=samples, k=k, ef=ef)), json_of)


def snapshot(fresh: Fresh, name: str, label: str | None = None) -> Call[dict[str, Any]]:
    """Take a snapshot now; with a label it is kept."""
    return Call(post(_index_path(name, "snapshot"), given(name=label)), json_of)


# --- what comes back ----------------------------------------------------------------------------------------


def _read_info(answer: httpx.Response) -> IndexInfo:
    body = json_of(answer)
    known = {key: value for key, value in body["params"].items() if key in IndexParams.__slots__}
    return IndexInfo(IndexParams(**known | {"distance": Distance(known["distance"])}), int(body["length"]))


def _read_write(answer: httpx.Response) -> WriteResult:
    body = json_of(answer)
    position = answer.headers.get("lakehouse-position")
    return WriteResult(
        added=body.get("added", 0),
        skipped=body.get("skipped", 0),
        deleted=body.get("deleted", 0),
        length=body.get("length", 0),
        position=Position.parse(position) if position else None,
        replayed=bool(body.get("replayed", False)),
    )


def _read_merge(answer: httpx.Response) -> MergeResult:
    body = json_of(answer)
    return MergeResult(**{key: value for key, value in body.items() if key in MergeResult.__slots__})


def _read_found(answer: httpx.Response) -> Found:
    body = json_of(answer)
    return Found(_matches(body["results"]), body.get("plan", {}), _staleness(answer))


def _read_found_batch(answer: httpx.Response) -> FoundBatch:
    body = json_of(answer)
    plan, stale_s = body.get("plan", {}), _staleness(answer)
    return FoundBatch(Found(_matches(results), plan, stale_s) for results in body["results"])


def _matches(results: Sequence[Mapping[str, Any]]) -> tuple[Match, ...]:
    return tuple(
        Match(hit["id"], hit["distance"], hit.get("metadata"), _floats(hit.get("vector"))) for hit in results
    )


def _staleness(answer: httpx.Response) -> float:
    return float(answer.headers.get("lakehouse-staleness", 0.0))


def _read_page(answer: httpx.Response) -> Page:
    body = json_of(answer)
    return Page(tuple(_stored(item) for item in body["items"]), body.get("after"), _staleness(answer))


def _stored(item: Mapping[str, Any]) -> Stored:
    return Stored(item["id"], _floats(item.get("vector")), item.get("metadata"))


def _floats(value: Any) -> Floats | None:
    """JSON numbers are the shortest decimals that read back as the same float32, so nothing is lost."""
    return None if value is None else np.array(value, dtype=np.float32)
