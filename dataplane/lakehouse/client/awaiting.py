"""`AsyncClient`: every call, awaited.

The same calls as `lakehouse.client.blocking` makes, from the same functions.
"""

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
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
    chunks_async,
    headers_of,
    json_of,
    raised,
    sending,
    unreachable,
    url_of,
)
from lakehouse.core import errors
from lakehouse.runtime import Runtime, SystemRuntime

P = ParamSpec("P")
T = TypeVar("T")


def _awaiting(
    build: Callable[Concatenate[Fresh, P], Call[T]],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    """The method that makes the call `build` describes."""

    @functools.wraps(build)
    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run(build(self.fresh_key, *args, **kwargs))

    return described(method, build)


class AsyncClient:
    """The same calls, awaited.  Use it as an async context manager, or `aclose()` it."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = RETRIES,
        runtime: Runtime | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url_of(url)
        self._timeout_s = timeout_s
        self._retries = retries
        self._runtime = runtime or SystemRuntime()
        self._owns_runtime = runtime is None
        self._http = httpx.AsyncClient(base_url=self.url, headers=headers_of(api_key), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<AsyncClient of {self.url}>"

    async def aclose(self) -> None:
        """As `Client.close`."""
        await self._http.aclose()
        if self._owns_runtime:
            self._runtime.close()

    def fresh_key(self) -> str:
        """An idempotency key that nobody used before."""
        return self._runtime.uuid().hex

    # --- one exchange

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
        async with self._streamed(request) as answer:
            await answer.aread()
            return answer

    @contextlib.asynccontextmanager
    async def _streamed(self, request: Request) -> AsyncIterator[httpx.Response]:
        """An answer below 400 whose body is still to come."""
        body = request.content
        content = chunks_async(body, self._runtime) if isinstance(body, Upload | Form) else body
        try:
            async with self._http.stream(**sending(request, self._timeout_s), content=content) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raised(answer)
                yield answer
        except httpx.TransportError as error:
            raise unreachable(error, self.url) from error

    async def health(self) -> dict[str, Any]:
        """What `/health` answers, without repeating."""
        return dict(json_of(await self._exchange(Request("GET", "/health"))))

    create = _awaiting(vectors.create)
    indexes = _awaiting(vectors.indexes)
    index = _awaiting(vectors.index)
    drop = _awaiting(vectors.drop)
    add = _awaiting(vectors.add)
    add_encoded = _awaiting(vectors.add_encoded)
    search = _awaiting(vectors.search)
    search_like = _awaiting(vectors.search_like)
    search_batch = _awaiting(vectors.search_batch)
    delete = _awaiting(vectors.delete)
    item = _awaiting(vectors.item)
    scroll = _awaiting(vectors.scroll)
    count = _awaiting(vectors.count)
    merge = _awaiting(vectors.merge)
    stats = _awaiting(vectors.stats)
    recall = _awaiting(vectors.recall)
    snapshot = _awaiting(vectors.snapshot)

    ingests = _awaiting(datasets.ingests)
    dataset = _awaiting(datasets.dataset)
    dataset_versions = _awaiting(datasets.dataset_versions)
    dataset_rejects = _awaiting(datasets.dataset_rejects)
    drop_dataset = _awaiting(datasets.drop_dataset)
    datasets = _awaiting(datasets.datasets)  # last, as it hides the module below

    queries = _awaiting(sql.queries)
    query_status = _awaiting(sql.query_status)
    cancel = _awaiting(sql.cancel)

    list_resources = _awaiting(resources.list_resources)
    get_resource = _awaiting(resources.get_resource)
    resource_events = _awaiting(resources.resource_events)
    delete_resource = _awaiting(resources.delete_resource)
    diff_resources = _awaiting(resources.diff_resources)

    storage_put = _awaiting(storage.storage_put)
    storage_get = _awaiting(storage.storage_get)
    storage_delete = _awaiting(storage.storage_delete)
    storage_list = _awaiting(storage.storage_list)

    # --- several exchanges, or a stream

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

    async def sql(
        self, text: str, parameters: Parameters | None = None, **options: Unpack[SqlOptions]
    ) -> Table:
        """As `Client.sql`; cancelled, it ends the query."""
        if not sql.is_long(options):
            table = await self.run(sql.direct(text, parameters, options))
            return await self._explained(table, options)
        query = await self.submit(text, parameters, **options)
        try:
            return await self._explained(await query.wait(), options)
        finally:
            await query.forget()

    async def _explained(self, table: Table, options: SqlOptions) -> Table:
        if not options.get("explain"):
            return table
        return sql.profiled(table, await self.query_status(table.query_id))

    async def submit(
        self, text: str, parameters: Parameters | None = None, **options: Unpack[SqlOptions]
    ) -> "AsyncQuery":
        """As `Client.submit`."""
        return AsyncQuery(self, await self.run(sql.submitted(text, parameters, options)))

    async def query(self, query_id: str) -> "AsyncQuery":
        """A query that was begun before.  Raises `NotFound`."""
        return AsyncQuery(self, await self.query_status(query_id))

    def sql_stream(
        self, text: str, parameters: Parameters | None = None, **options: Unpack[SqlOptions]
    ) -> streams.AsyncBatches:
        """As `Client.sql_stream`, for `async for`."""
        opening = self._streamed(sql.request(text, parameters, ARROW, options))
        return streams.AsyncBatches(opening, self._runtime)

    async def sql_export(
        self,
        text: str,
        out: BinaryIO,
        media_type: str,
        parameters: Parameters | None = None,
        **options: Unpack[SqlOptions],
    ) -> streams.Exported:
        """As `Client.sql_export`."""
        async with self._streamed(sql.request(text, parameters, media_type, options)) as answer:
            size = await self._written(answer, out)
            return streams.exported(answer, size)

    async def ingest(
        self,
        source: Source | Sequence[str | PathLike[str]],
        name: str,
        *,
        progress: Progress | None = None,
        **options: Unpack[IngestOptions],
    ) -> Ingested:
        """As `Client.ingest`."""
        with contextlib.ExitStack() as kept:
            opening = kept.enter_context
            data, chosen = await self._runtime.run_io(opening, datasets.opened(source, options))
            return await self.run(datasets.ingest(data, name, chosen, progress, self.fresh_key))

    async def apply(self, wanted: Wanted, *, dry_run: bool = False) -> tuple[Resource, ...]:
        """As `Client.apply`."""
        calls = [resources.apply(document, dry_run=dry_run) for document in resources.documents(wanted)]
        return tuple([await self.run(call) for call in calls])

    async def storage_download(self, key: str, path: "PathLike[str]") -> int:
        """Stream an object into a new file, in bounded memory; returns its size."""
        async with self._streamed(storage.request("GET", "get", key)) as answer:
            with await self._runtime.run_io(Path(path).open, "wb") as file:
                return await self._written(answer, file)

    async def _written(self, answer: httpx.Response, out: BinaryIO) -> int:
        size = 0
        async for chunk in answer.aiter_bytes(CHUNK_BYTES):
            size += await self._runtime.run_io(out.write, chunk)
        return size


class AsyncQuery:
    """A query under way, or its result."""

    def __init__(self, client: AsyncClient, answered: sql.Answered) -> None:
        self._client = client
        self._answered = answered

    def __repr__(self) -> str:
        state = "succeeded" if isinstance(self._answered, Table) else self._answered.status
        return f"<AsyncQuery {self.id} {state}>"

    @property
    def id(self) -> str:
        return self._answered.query_id if isinstance(self._answered, Table) else self._answered.id

    async def status(self) -> QueryStatus:
        """What the server says of it now."""
        return await self._client.query_status(self.id)

    async def wait(self) -> Table:
        """The result; cancelled, it ends the query.  Raises what the query failed of."""
        try:
            while not isinstance(self._answered, Table):
                self._answered = await self._client.run(sql.awaited(self.id))
        except BaseException as error:
            if not isinstance(error, errors.LakehouseError):
                await self.forget()
            raise
        return self._answered

    async def cancel(self) -> None:
        """End it.  Raises `NotFound` when the server has forgotten it."""
        await self._client.cancel(self.id)

    async def forget(self) -> None:
        """End it, and let its result go; nothing happens when it is gone already."""
        with contextlib.suppress(errors.LakehouseError):
            await self.cancel()
