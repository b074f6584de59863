"""A client is a list of calls, and two ways of making them: `Client` blocks, `AsyncClient` awaits.

Each call is a value (`Call`: what to send, how to read the answer), built and read by pure functions, so
the two clients cannot differ.  A retry repeats the very same bytes under the same idempotency key: a batch
that was committed before its answer got lost is not added twice.

    with Client("http://127.0.0.1:3110") as lake:
        lake.create("docs", dimension=3)
        lake.add("docs", ["a", "b"], [[1, 0, 0], [0, 1, 0]], [{"year": 2024}, {"year": 2025}])
        lake.search("docs", [1, 0, 0], k=1, filter="year > 2023")

What it does not do: split batches (the server's limit on a body is the caller's to respect), or cache.
"""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, NoReturn, Self, TypedDict, TypeVar, Unpack
from urllib.parse import quote

import httpx
import numpy as np
import numpy.typing as npt
import orjson

from lakehouse import __version__
from lakehouse.core import errors
from lakehouse.core.types import Distance, IndexParams, MergeResult, Position, WriteResult
from lakehouse.runtime import Runtime, SystemRuntime, pause

T = TypeVar("T")
Floats = npt.NDArray[np.float32]
VectorLike = npt.NDArray[Any] | Sequence[float]
VectorsLike = npt.NDArray[Any] | Sequence[Sequence[float]]

URL_DEFAULT = "http://127.0.0.1:3110"
JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
BINARY = "application/octet-stream"
ATTEMPTS_MAX = 6
"""With the waits below about ten seconds: a restart or a fail-over fits into it."""
BACKOFF_FIRST_S = 0.25
BACKOFF_MAX_S = 10.0
TIMEOUT_S = 60.0
"""Above every deadline of the server, so that its answer, not our impatience, says what happened."""
CHUNK_BYTES = 1 << 20


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


@dataclass(frozen=True, slots=True)
class Found:
    """The matches of one query, nearest first, and what the server did to find them."""

    matches: tuple[Match, ...]
    plan: Mapping[str, Any] = field(default_factory=dict)
    stale_s: float = 0.0
    """Seconds by which the answer may be behind; 0 when it is not."""


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


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    repeatable: bool = True
    """Whether doing it twice is doing it once; else it is repeated only when it cannot have happened."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how to read an answer whose status is below 400."""

    request: Request
    read: Callable[[httpx.Response], T]


# --- what is sent -------------------------------------------------------------------------------------------


def _index_path(name: str, *rest: str) -> str:
    return "/".join(["/v1/vectors/index", *(quote(part, safe="") for part in (name, *rest))])


def _post(path: str, body: Mapping[str, Any], *, repeatable: bool = True, key: str | None = None) -> Request:
    headers = {"content-type": JSON} | ({"idempotency-key": key} if key else {})
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Request("POST", path, headers=headers, content=content, repeatable=repeatable)


def _create(params: IndexParams) -> Call[IndexInfo]:
    body = params.to_json() | {"ef_construction": params.ef_construction}
    return Call(_post("/v1/vectors/index", body, repeatable=False), _read_info)


def _params(name: str, dimension: int, options: CreateOptions) -> IndexParams:
    given: dict[str, Any] = dict(options)
    if "distance" in given:
        try:
            given["distance"] = Distance(given["distance"])
        except ValueError as error:
            raise errors.Invalid(
                f"distance is cosine, euclidean or dot. distance=`{given['distance']}`"
            ) from error
    return IndexParams(name, dimension, **given)


def _indexes() -> Call[tuple[str, ...]]:
    return Call(Request("GET", "/v1/vectors/index"), lambda answer: tuple(_json(answer)["names"]))


def _info(name: str) -> Call[IndexInfo]:
    return Call(Request("GET", _index_path(name)), _read_info)


def _drop(name: str) -> Call[None]:
    return Call(Request("DELETE", _index_path(name), repeatable=False), _read_nothing)


def _add(
    name: str, ids: Sequence[str], vectors: VectorsLike, metadata: Sequence[Any] | None, key: str
) -> Call[WriteResult]:
    return _add_encoded(name, arrow_batch(ids, vectors, metadata), key)


def _add_encoded(name: str, body: bytes, key: str) -> Call[WriteResult]:
    headers = {"content-type": ARROW, "idempotency-key": key}
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


def _search(name: str, query: Mapping[str, Any], options: SearchOptions) -> Call[Found]:
    fields, headers = _options(options)
    request = _post(_index_path(name, "search"), {**query, **fields})
    return Call(_with_headers(request, headers), _read_found)


def _query(vector: VectorLike) -> dict[str, Any]:
    return {"vector": vector.astype(np.float32) if isinstance(vector, np.ndarray) else list(vector)}


def _search_batch(name: str, vectors: VectorsLike, options: SearchOptions) -> Call[tuple[Found, ...]]:
    fields, headers = _options(options)
    request = Request(
        "POST",
        _index_path(name, "search", "batch"),
        params={key: _query_text(value) for key, value in fields.items()},
        headers={"content-type": BINARY},
        content=_matrix(vectors).astype("<f4", copy=False).tobytes(),
    )
    return Call(_with_headers(request, headers), _read_found_batch)


def _query_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


def _with_headers(request: Request, headers: Mapping[str, str]) -> Request:
    return replace(request, headers={**request.headers, **headers})


def _delete(name: str, ids: Sequence[str] | None, filter_: str | None, key: str) -> Call[WriteResult]:
    if (ids is None) == (filter_ is None):
        raise errors.Invalid("delete takes either ids or a filter")
    body: dict[str, Any] = {"filter": filter_} if ids is None else {"ids": list(ids)}
    return Call(_post(_index_path(name, "delete"), body, key=key), _read_write)


def _item(name: str, item_id: str) -> Call[Stored]:
    return Call(Request("GET", _index_path(name, "items", item_id)), lambda answer: _stored(_json(answer)))


def _scroll(
    name: str, after: str | None, limit: int, filter_: str | None, include: Sequence[str] | None
) -> Call[Page]:
    body = {"after": after, "limit": limit, "filter": filter_, "include": include}
    fields = {key: value for key, value in body.items() if value is not None}
    return Call(_post(_index_path(name, "scroll"), fields), _read_page)


def _count(name: str, filter_: str | None) -> Call[int]:
    body = {} if filter_ is None else {"filter": filter_}
    return Call(_post(_index_path(name, "count"), body), lambda answer: int(_json(answer)["count"]))


def _merge(source: str, dest: str, clear_source: bool, on_conflict: str) -> Call[MergeResult]:
    body = {"dest": dest, "clear_source": clear_source, "on_conflict": on_conflict}
    return Call(_post(_index_path(source, "merge"), body), _read_merge)


def _stats(name: str) -> Call[dict[str, Any]]:
    return Call(Request("GET", _index_path(name, "stats")), _json)


def _recall(name: str, samples: int, k: int, ef: int | None) -> Call[dict[str, Any]]:
    body = {"samples": samples, "k": k} | ({} if ef is None else {"ef": ef})
    return Call(_post(_index_path(name, "recall"), body), _json)


def _snapshot(name: str, label: str | None) -> Call[dict[str, Any]]:
    return Call(_post(_index_path(name, "snapshot"), {} if label is None else {"name": label}), _json)


def _storage(method: str, verb: str, key: str, content: bytes | None = None) -> Request:
    path = f"/v1/storage/{verb}/{'/'.join(quote(part, safe='') for part in key.split('/'))}"
    return Request(method, path, content=content)


def _storage_list(prefix: str) -> Call[tuple[tuple[str, int], ...]]:
    return Call(
        Request("GET", "/v1/storage/list", params={"prefix": prefix}),
        lambda answer: tuple((entry["Key"], entry["Size"]) for entry in _json(answer)["objects"]),
    )


# --- what comes back ----------------------------------------------------------------------------------------


def _json(answer: httpx.Response) -> Any:
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise errors.Unavailable(
            f"the answer is not JSON; is this a lakehouse server? url=`{answer.url}`"
        ) from error


def _read_nothing(answer: httpx.Response) -> None:
    return None


def _read_info(answer: httpx.Response) -> IndexInfo:
    body = _json(answer)
    known = {key: value for key, value in body["params"].items() if key in IndexParams.__slots__}
    return IndexInfo(IndexParams(**known | {"distance": Distance(known["distance"])}), int(body["length"]))


def _read_write(answer: httpx.Response) -> WriteResult:
    body = _json(answer)
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
    body = _json(answer)
    return MergeResult(**{key: value for key, value in body.items() if key in MergeResult.__slots__})


def _read_found(answer: httpx.Response) -> Found:
    body = _json(answer)
    return Found(_matches(body["results"]), body.get("plan", {}), _staleness(answer))


def _read_found_batch(answer: httpx.Response) -> tuple[Found, ...]:
    body = _json(answer)
    plan, stale_s = body.get("plan", {}), _staleness(answer)
    return tuple(Found(_matches(results), plan, stale_s) for results in body["results"])


def _matches(results: Sequence[Mapping[str, Any]]) -> tuple[Match, ...]:
    return tuple(
        Match(hit["id"], hit["distance"], hit.get("metadata"), _floats(hit.get("vector"))) for hit in results
    )


def _staleness(answer: httpx.Response) -> float:
    return float(answer.headers.get("lakehouse-staleness", 0.0))


def _read_page(answer: httpx.Response) -> Page:
    body = _json(answer)
    return Page(tuple(_stored(item) for item in body["items"]), body.get("after"))


def _stored(item: Mapping[str, Any]) -> Stored:
    return Stored(item["id"], _floats(item.get("vector")), item.get("metadata"))


def _floats(value: Any) -> Floats | None:
    """JSON numbers are the shortest decimals that read back as the same float32, so nothing is lost."""
    return None if value is None else np.array(value, dtype=np.float32)


_KINDS: Mapping[int, type[errors.LakehouseError]] = {
    400: errors.Invalid,
    404: errors.NotFound,
    405: errors.Invalid,
    409: errors.Conflict,
    413: errors.TooLarge,
    415: errors.Invalid,
    422: errors.Invalid,
}


def raised(answer: httpx.Response) -> NoReturn:
    """Raise the kind of error that an answer of 400 or above stands for."""
    problem = _problem(answer)
    detail = str(problem.get("detail") or problem.get("title") or f"status {answer.status_code}")
    status = answer.status_code
    if status in (401, 403):
        raise errors.Denied(detail, authenticated=status == 403)
    if status == 429:
        raise errors.Busy(detail, retry_after_s=_retry_after(answer))
    if status in _KINDS:
        raise _KINDS[status](detail)
    if status == 500 and problem.get("kind") == "corrupt":
        raise errors.Corrupt(detail)
    outcome = problem.get("outcome", "unknown")
    known = outcome if outcome in set(errors.Outcome) else "unknown"
    raise errors.Unavailable(detail, outcome=errors.Outcome(known), retry_after_s=_retry_after(answer))


def _problem(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        body = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    return body if isinstance(body, dict) else {}


def _retry_after(answer: httpx.Response) -> float:
    try:
        return max(0.0, float(answer.headers.get("retry-after", 0.0)))
    except ValueError:
        return 0.0


def unreachable(error: httpx.TransportError, url: str) -> errors.Unavailable:
    """What a failed exchange means: not connected is not done, anything later is not known."""
    connected = not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    outcome = errors.Outcome.UNKNOWN if connected else errors.Outcome.NOT_COMMITTED
    what = "the server did not answer" if connected else "no server answers; start one with `lakehouse up`"
    return errors.Unavailable(f"{what} ({str(error) or type(error).__name__}). url=`{url}`", outcome=outcome)


@dataclass(frozen=True, slots=True)
class Retries:
    """When a failed call is repeated, and after how long: pure."""

    attempts_max: int = ATTEMPTS_MAX
    first_s: float = BACKOFF_FIRST_S
    """The wait after the first failure; each later one doubles it, up to `BACKOFF_MAX_S`."""

    def delay(
        self, request: Request, error: errors.LakehouseError, attempt: int, chance: float
    ) -> float | None:
        """Seconds to wait before repeating after failed attempt number `attempt` (from 1); None: give up.

        `chance` in [0, 1) spreads the wait between half and all of its length, so that clients that failed
        together come back apart.
        """
        if attempt >= self.attempts_max or not isinstance(error, errors.Busy | errors.Unavailable):
            return None
        happened = isinstance(error, errors.Unavailable) and error.outcome is errors.Outcome.UNKNOWN
        if happened and not request.repeatable:
            return None
        wait = min(BACKOFF_MAX_S, self.first_s * 2.0 ** (attempt - 1))
        return max(wait * (0.5 + chance / 2), min(error.retry_after_s, BACKOFF_MAX_S))


def _headers(api_key: str | None) -> dict[str, str]:
    key = api_key if api_key is not None else os.environ.get("LAKEHOUSE_API_KEY")
    headers = {"user-agent": f"lakehouse/{__version__}", "accept": JSON}
    return headers | ({"authorization": f"Bearer {key}"} if key else {})


def _wire(request: Request) -> dict[str, Any]:
    return {"params": request.params, "headers": request.headers, "content": request.content}


def _url(url: str | None) -> str:
    return (url or os.environ.get("LAKEHOUSE_URL") or URL_DEFAULT).rstrip("/")


# --- the clients --------------------------------------------------------------------------------------------


class Client:
    """The calls, blocking.  Use it as a context manager, or `close()` it; one per thread.

    `url` and `api_key` default to LAKEHOUSE_URL and LAKEHOUSE_API_KEY.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = Retries(),
        runtime: Runtime | None = None,
    ) -> None:
        self.url = _url(url)
        self._retries = retries
        self._runtime = runtime or SystemRuntime()
        self._http = httpx.Client(base_url=self.url, headers=_headers(api_key), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def run(self, call: Call[T]) -> T:
        """Make one call, repeating it as `Retries` says."""
        attempt = 1
        while True:
            try:
                return call.read(self._exchange(call.request))
            except errors.LakehouseError as error:
                wait = self._retries.delay(call.request, error, attempt, self._runtime.random().random())
                if wait is None:
                    raise
            pause(wait)
            attempt += 1

    def _exchange(self, request: Request) -> httpx.Response:
        try:
            answer = self._http.request(request.method, request.path, **_wire(request))
        except httpx.TransportError as error:
            raise unreachable(error, self.url) from error
        if answer.status_code >= 400:
            raised(answer)
        return answer

    def health(self) -> dict[str, Any]:
        """What `/health` answers, without repeating."""
        return dict(_json(self._exchange(Request("GET", "/health"))))

    def create(self, name: str, dimension: int, **params: Unpack[CreateOptions]) -> IndexInfo:
        """Make an empty index.  Raises `Conflict` if it exists."""
        return self.run(_create(_params(name, dimension, params)))

    def indexes(self) -> tuple[str, ...]:
        """The names of all indexes."""
        return self.run(_indexes())

    def index(self, name: str) -> IndexInfo:
        return self.run(_info(name))

    def drop(self, name: str) -> None:
        """Delete an index and all its items."""
        self.run(_drop(name))

    def add(
        self,
        name: str,
        ids: Sequence[str],
        vectors: VectorsLike,
        metadata: Sequence[Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> WriteResult:
        """Insert or replace items; returns once they are durable and searchable."""
        return self.run(_add(name, ids, vectors, metadata, idempotency_key or self._new_key()))

    def add_encoded(self, name: str, body: bytes, *, idempotency_key: str | None = None) -> WriteResult:
        """`add` of an `arrow_batch` made before."""
        return self.run(_add_encoded(name, body, idempotency_key or self._new_key()))

    def search(self, name: str, vector: VectorLike, **options: Unpack[SearchOptions]) -> Found:
        """The nearest items to `vector`."""
        return self.run(_search(name, _query(vector), options))

    def search_like(self, name: str, item_id: str, **options: Unpack[SearchOptions]) -> Found:
        """The nearest items to a stored item."""
        return self.run(_search(name, {"id": item_id}, options))

    def search_batch(
        self, name: str, vectors: VectorsLike, **options: Unpack[SearchOptions]
    ) -> tuple[Found, ...]:
        """The nearest items to each of many vectors."""
        return self.run(_search_batch(name, vectors, options))

    def delete(
        self,
        name: str,
        ids: Sequence[str] | None = None,
        *,
        filter: str | None = None,
        idempotency_key: str | None = None,
    ) -> WriteResult:
        """Delete items by id, or all that a filter matches."""
        return self.run(_delete(name, ids, filter, idempotency_key or self._new_key()))

    def item(self, name: str, item_id: str) -> Stored:
        return self.run(_item(name, item_id))

    def scroll(
        self,
        name: str,
        *,
        after: str | None = None,
        limit: int = 100,
        filter: str | None = None,
        include: Sequence[str] | None = None,
    ) -> Page:
        """One page of items in the order of their ids."""
        return self.run(_scroll(name, after, limit, filter, include))

    def items(
        self, name: str, *, filter: str | None = None, include: Sequence[str] | None = None, page: int = 1_000
    ) -> Iterator[Stored]:
        """Every item, page by page."""
        after: str | None = None
        while True:
            found = self.scroll(name, after=after, limit=page, filter=filter, include=include)
            yield from found.items
            after = found.after
            if after is None:
                return

    def count(self, name: str, *, filter: str | None = None) -> int:
        return self.run(_count(name, filter))

    def merge(
        self,
        source: str,
        dest: str,
        *,
        clear_source: bool = False,
        on_conflict: Literal["skip", "replace"] = "skip",
    ) -> MergeResult:
        """Copy what `dest` lacks from `source`; `replace` overwrites what it has."""
        return self.run(_merge(source, dest, clear_source, on_conflict))

    def stats(self, name: str) -> dict[str, Any]:
        return self.run(_stats(name))

    def recall(self, name: str, *, samples: int = 100, k: int = 10, ef: int | None = None) -> dict[str, Any]:
        """Sampled queries against the exact answer."""
        return self.run(_recall(name, samples, k, ef))

    def snapshot(self, name: str, label: str | None = None) -> dict[str, Any]:
        """Take a snapshot now; with a label it is kept."""
        return self.run(_snapshot(name, label))

    def storage_put(self, key: str, data: bytes) -> None:
        self.run(Call(_storage("PUT", "put", key, data), _read_nothing))

    def storage_get(self, key: str) -> bytes:
        return self.run(Call(_storage("GET", "get", key), lambda answer: answer.content))

    def storage_delete(self, key: str) -> None:
        self.run(Call(_storage("DELETE", "delete", key), _read_nothing))

    def storage_list(self, prefix: str = "") -> tuple[tuple[str, int], ...]:
        """(key, bytes) of every object under `prefix`."""
        return self.run(_storage_list(prefix))

    def storage_download(self, key: str, path: Path) -> int:
        """Stream an object into a new file, in bounded memory; returns its size."""
        request = _storage("GET", "get", key)
        try:
            with self._http.stream(request.method, request.path) as answer, path.open("wb") as file:
                if answer.status_code >= 400:
                    answer.read()
                    raised(answer)
                return sum(file.write(chunk) for chunk in answer.iter_bytes(CHUNK_BYTES))
        except httpx.TransportError as error:
            raise unreachable(error, self.url) from error

    def _new_key(self) -> str:
        return self._runtime.uuid().hex


class AsyncClient:
    """The same calls, awaited.  Use it as an async context manager, or `aclose()` it."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = Retries(),
        runtime: Runtime | None = None,
    ) -> None:
        self.url = _url(url)
        self._retries = retries
        self._runtime = runtime or SystemRuntime()
        self._http = httpx.AsyncClient(base_url=self.url, headers=_headers(api_key), timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def run(self, call: Call[T]) -> T:
        """Make one call, repeating it as `Retries` says."""
        attempt = 1
        while True:
            try:
                return call.read(await self._exchange(call.request))
            except errors.LakehouseError as error:
                wait = self._retries.delay(call.request, error, attempt, self._runtime.random().random())
                if wait is None:
                    raise
            await self._runtime.sleep(wait)
            attempt += 1

    async def _exchange(self, request: Request) -> httpx.Response:
        try:
            answer = await self._http.request(request.method, request.path, **_wire(request))
        except httpx.TransportError as error:
            raise unreachable(error, self.url) from error
        if answer.status_code >= 400:
            raised(answer)
        return answer

    async def health(self) -> dict[str, Any]:
        """What `/health` answers, without repeating."""
        return dict(_json(await self._exchange(Request("GET", "/health"))))

    async def create(self, name: str, dimension: int, **params: Unpack[CreateOptions]) -> IndexInfo:
        return await self.run(_create(_params(name, dimension, params)))

    async def indexes(self) -> tuple[str, ...]:
        return await self.run(_indexes())

    async def index(self, name: str) -> IndexInfo:
        return await self.run(_info(name))

    async def drop(self, name: str) -> None:
        await self.run(_drop(name))

    async def add(
        self,
        name: str,
        ids: Sequence[str],
        vectors: VectorsLike,
        metadata: Sequence[Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> WriteResult:
        return await self.run(_add(name, ids, vectors, metadata, idempotency_key or self._new_key()))

    async def add_encoded(self, name: str, body: bytes, *, idempotency_key: str | None = None) -> WriteResult:
        return await self.run(_add_encoded(name, body, idempotency_key or self._new_key()))

    async def search(self, name: str, vector: VectorLike, **options: Unpack[SearchOptions]) -> Found:
        return await self.run(_search(name, _query(vector), options))

    async def search_like(self, name: str, item_id: str, **options: Unpack[SearchOptions]) -> Found:
        return await self.run(_search(name, {"id": item_id}, options))

    async def search_batch(
        self, name: str, vectors: VectorsLike, **options: Unpack[SearchOptions]
    ) -> tuple[Found, ...]:
        return await self.run(_search_batch(name, vectors, options))

    async def delete(
        self,
        name: str,
        ids: Sequence[str] | None = None,
        *,
        filter: str | None = None,
        idempotency_key: str | None = None,
    ) -> WriteResult:
        return await self.run(_delete(name, ids, filter, idempotency_key or self._new_key()))

    async def item(self, name: str, item_id: str) -> Stored:
        return await self.run(_item(name, item_id))

    async def scroll(
        self,
        name: str,
        *,
        after: str | None = None,
        limit: int = 100,
        filter: str | None = None,
        include: Sequence[str] | None = None,
    ) -> Page:
        return await self.run(_scroll(name, after, limit, filter, include))

    async def items(
        self, name: str, *, filter: str | None = None, include: Sequence[str] | None = None, page: int = 1_000
    ) -> AsyncIterator[Stored]:
        """Every item, page by page."""
        after: str | None = None
        while True:
            found = await self.scroll(name, after=after, limit=page, filter=filter, include=include)
            for item in found.items:
                yield item
            after = found.after
            if after is None:
                return

    async def count(self, name: str, *, filter: str | None = None) -> int:
        return await self.run(_count(name, filter))

    async def merge(
        self,
        source: str,
        dest: str,
        *,
        clear_source: bool = False,
        on_conflict: Literal["skip", "replace"] = "skip",
    ) -> MergeResult:
        return await self.run(_merge(source, dest, clear_source, on_conflict))

    async def stats(self, name: str) -> dict[str, Any]:
        return await self.run(_stats(name))

    async def recall(
        self, name: str, *, samples: int = 100, k: int = 10, ef: int | None = None
    ) -> dict[str, Any]:
        return await self.run(_recall(name, samples, k, ef))

    async def snapshot(self, name: str, label: str | None = None) -> dict[str, Any]:
        return await self.run(_snapshot(name, label))

    async def storage_put(self, key: str, data: bytes) -> None:
        await self.run(Call(_storage("PUT", "put", key, data), _read_nothing))

    async def storage_get(self, key: str) -> bytes:
        return await self.run(Call(_storage("GET", "get", key), lambda answer: answer.content))

    async def storage_delete(self, key: str) -> None:
        await self.run(Call(_storage("DELETE", "delete", key), _read_nothing))

    async def storage_list(self, prefix: str = "") -> tuple[tuple[str, int], ...]:
        return await self.run(_storage_list(prefix))

    def _new_key(self) -> str:
        return self._runtime.uuid().hex
