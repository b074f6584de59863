"""`Client`: every call, blocking.

Its methods are made from the functions that describe the calls, so that `Client` and `AsyncClient` cannot
differ.  What is written out here takes more than one exchange.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Concatenate, ParamSpec, Self, TypeVar, Unpack

import httpx

from lakehouse.client import datasets, resources, sql, storage, streams, vectors
from lakehouse.client.datasets import Ingested, IngestOptions, Source
from lakehouse.client.methods import described
from lakehouse.client.resources import Resource, Wanted
from lakehouse.client.retries import RETRIES, Retries
from lakehouse.client.sql import Parameters, QueryStatus, SqlOptions, Table
from lakehouse.client.vectors import Stored
from lakehouse.client.wire import (
    ARROW,
    CHUNK_BYTES,
    TIMEOUT_S,
    Call,
    Form,
    Fresh,
    Progress,
    Request,
    Upload,
    headers_of,
    json_of,
    raised,
    sending,
    unreachable,
    url_of,
)
from lakehouse.core import errors
from lakehouse.runtime import Runtime, SystemRuntime, pause

P = ParamSpec("P")
T = TypeVar("T")


def _blocking(build: Callable[Concatenate[Fresh, P], Call[T]]) -> "Callable[Concatenate[Client, P], T]":
    """The method that makes the call `build` describes."""

    @functools.wraps(build)
    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(build(self.fresh_key, *args, **kwargs))

    return described(method, build)


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
        retries: Retries = RETRIES,
        runtime: Runtime | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url_of(url)
        self._timeout_s = timeout_s
        self._retries = retries
        self._runtime = runtime or SystemRuntime()
        self._http = httpx.Client(base_url=self.url, headers=headers_of(api_key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.url}>"

    def close(self) -> None:
        """End its connections; of a directory or bucket in this process, the server too."""
        self._http.close()

    def fresh_key(self) -> str:
        """An idempotency key that nobody used before."""
        return self._runtime.uuid().hex

    # --- one exchange

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
        with self._streamed(request) as answer:
            answer.read()
            return answer

    @contextlib.contextmanager
    def _streamed(self, request: Request) -> Iterator[httpx.Response]:
        """An answer below 400 whose body is still to come."""
        body = request.content
        content = body.chunks() if isinstance(body, Upload | Form) else body
        try:
            with self._http.stream(**sending(request, self._timeout_s), content=content) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raised(answer)
                yield answer
        except httpx.TransportError as error:
            raise unreachable(error, self.url) from error

    def health(self) -> dict[str, Any]:
        """What `/health` answers, without repeating."""
        return dict(json_of(self._exchange(Request("GET", "/health"))))

    create = _blocking(vectors.create)
    indexes = _blocking(vectors.indexes)
    index = _blocking(vectors.index)
    drop = _blocking(vectors.drop)
    add = _blocking(vectors.add)
    add_encoded = _blocking(vectors.add_encoded)
    search = _blocking(vectors.search)
    search_like = _blocking(vectors.search_like)
    search_batch = _blocking(vectors.search_batch)
    delete = _blocking(vectors.delete)
    item = _blocking(vectors.item)
    scroll = _blocking(vectors.scroll)
    count = _blocking(vectors.count)
    merge = _blocking(vectors.merge)
    stats = _blocking(vectors.stats)
    recall = _blocking(vectors.recall)
    snapshot = _blocking(vectors.snapshot)

    ingests = _blocking(datasets.ingests)
    dataset = _blocking(datasets.dataset)
    dataset_versions = _blocking(datasets.dataset_versions)
    dataset_rejects = _blocking(datasets.dataset_rejects)
    drop_dataset = _blocking(datasets.drop_dataset)
    datasets = _blocking(datasets.datasets)  # last, as it hides the module below

    queries = _blocking(sql.queries)
    query_status = _blocking(sql.query_status)
    cancel = _blocking(sql.cancel)

    list_resources = _blocking(resources.list_resources)
    get_resource = _blocking(resources.get_resource)
    resource_events = _blocking(resources.resource_events)
    delete_resource = _blocking(resources.delete_resource)
    diff_resources = _blocking(resources.diff_resources)

    storage_put = _blocking(storage.storage_put)
    storage_get = _blocking(storage.storage_get)
    storage_delete = _blocking(storage.storage_delete)
    storage_list = _blocking(storage.storage_list)

    # --- several exchanges, or a stream

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

    def sql(self, text: str, parameters: Parameters | None = None, **options: Unpack[SqlOptions]) -> Table:
        """Run one SELECT and return its result.

        Interrupted, it ends the query.  Raises `Invalid` for SQL that is wrong or over its limits, `Busy` when
        too many queries wait.
        """
        if not sql.is_long(options):
            table = self.run(sql.direct(text, parameters, options))
            return self._explained(table, options)
        query = self.submit(text, parameters, **options)
        try:
            return self._explained(query.wait(), options)
        finally:
            query.forget()

    def _explained(self, table: Table, options: SqlOptions) -> Table:
        if not options.get("explain"):
            return table
        return sql.profiled(table, self.query_status(table.query_id))

    def submit(
        self, text: str, parameters: Parameters | None = None, **options: Unpack[SqlOptions]
    ) -> "Query":
        """Begin a query and do not wait, or only for `wait_s`; its result is kept for a while."""
        return Query(self, self.run(sql.submitted(text, parameters, options)))

    def query(self, query_id: str) -> "Query":
        """A query that was begun before.  Raises `NotFound`."""
        return Query(self, self.query_status(query_id))

    def sql_stream(
        self, text: str, parameters: Parameters | None = None, **options: Unpack[SqlOptions]
    ) -> streams.Batches:
        """The result batch by batch, as the server makes it, in bounded memory; it is not repeated."""
        return streams.Batches(self._streamed(sql.request(text, parameters, ARROW, options)))

    def sql_export(
        self,
        text: str,
        out: BinaryIO,
        media_type: str,
        parameters: Parameters | None = None,
        **options: Unpack[SqlOptions],
    ) -> streams.Exported:
        """Write the result, in the form `media_type` names, as the server sends it, in bounded memory."""
        with self._streamed(sql.request(text, parameters, media_type, options)) as answer:
            size = sum(out.write(chunk) for chunk in answer.iter_bytes(CHUNK_BYTES))
            return streams.exported(answer, size)

    def ingest(
        self,
        source: Source | Sequence[str | PathLike[str]],
        name: str,
        *,
        progress: Progress | None = None,
        **options: Unpack[IngestOptions],
    ) -> Ingested:
        """Make `source` (a file's path, bytes, or an Arrow, pandas or polars frame) the dataset `name`.

        Several paths, in a list, become one version together.  A file is read piece by piece; `progress(sent,
        total)` is told of bytes.  Equal content again is no change, so a repeated ingest publishes once.  Raises
        `Conflict` when the schema does not fit, with the difference.
        """
        with datasets.opened(source, options) as (data, chosen):
            return self.run(datasets.ingest(data, name, chosen, progress, self.fresh_key))

    def apply(self, wanted: Wanted, *, dry_run: bool = False) -> tuple[Resource, ...]:
        """Apply resources given as YAML text, several documents too, or as values; in that order.

        Raises `Invalid` with all that is wrong with a document, `Conflict`.
        """
        calls = [resources.apply(document, dry_run=dry_run) for document in resources.documents(wanted)]
        return tuple(self.run(call) for call in calls)

    def storage_download(self, key: str, path: "PathLike[str]") -> int:
        """Stream an object into a new file, in bounded memory; returns its size."""
        with self._streamed(storage.request("GET", "get", key)) as answer, Path(path).open("wb") as file:
            return sum(file.write(chunk) for chunk in answer.iter_bytes(CHUNK_BYTES))


class Query:
    """A query under way, or its result."""

    def __init__(self, client: Client, answered: sql.Answered) -> None:
        self._client = client
        self._answered = answered

    def __repr__(self) -> str:
        state = "succeeded" if isinstance(self._answered, Table) else self._answered.status
        return f"<Query {self.id} {state}>"

    @property
    def id(self) -> str:
        return self._answered.query_id if isinstance(self._answered, Table) else self._answered.id

    def status(self) -> QueryStatus:
        """What the server says of it now."""
        return self._client.query_status(self.id)

    def wait(self) -> Table:
        """The result; interrupted, it ends the query.  Raises what the query failed of."""
        try:
            while not isinstance(self._answered, Table):
                self._answered = self._client.run(sql.awaited(self.id))
        except BaseException as error:
            if not isinstance(error, errors.LakehouseError):
                self.forget()
            raise
        return self._answered

    def cancel(self) -> None:
        """End it.  Raises `NotFound` when the server has forgotten it."""
        self._client.cancel(self.id)

    def forget(self) -> None:
        """End it, and let its result go; nothing happens when it is gone already."""
        with contextlib.suppress(errors.LakehouseError):
            self.cancel()
