"""SQL over datasets: admits queries, finds what they name, and passes their results on.

The text goes to a worker unread.  The worker says which datasets it names; the service looks them up, fetches
their files, searches indexes when asked, and ends the worker at the deadline, on cancel and in every other case.
What this module does not do: parse, run or encode (`lakehouse.sql.worker`), or speak HTTP.
"""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from lakehouse.catalog import Catalog
from lakehouse.core.errors import (
    Busy,
    Corrupt,
    Invalid,
    LakehouseError,
    NotFound,
    Outcome,
    StorageFull,
    Unavailable,
)
from lakehouse.core.manifest import Manifest, parse_reference
from lakehouse.core.types import Hit, clamped_k
from lakehouse.runtime import Runtime
from lakehouse.settings import Settings
from lakehouse.sql import hits
from lakehouse.sql.ask import Ask, split_header
from lakehouse.sql.cache import FileCache
from lakehouse.sql.errors import QueryCancelled, QueryCrashed, QueryFailed, QueryTimeout
from lakehouse.sql.execution import Execution, Query, State, Tail
from lakehouse.sql.planning import FORESEEN_MAX
from lakehouse.sql.sandbox import ESSENTIAL
from lakehouse.sql.statement import SQL_BYTES_MAX, TABLES_MAX
from lakehouse.sql.vectors import VectorSearch
from lakehouse.sql.wire import Kind
from lakehouse.sql.workers import Worker, WorkerGone, WorkerPool
from lakehouse.store.base import ObjectStore

logger = logging.getLogger(__name__)

START_AFTER_S = 3.0
"""Loading DuckDB and trying the walls takes two seconds of CPU: not while a process starts, unless a query asks."""
PROBES_MAX = 3
"""Workers that are asked about their walls before SQL stays off: one may be killed for memory that is short."""
PARSE_S = 10.0
"""Most that parsing may take; a megabyte of SQL takes well under one second."""
TIMEOUT_S_MIN = 0.001
"""Shorter than a worker takes to say anything."""
WARM_MAX = 4
"""Workers forked ahead of need; each costs about 10 MB that it does not share."""
KNOWN_MAX = 256
"""Queries that the service tells about, running and ended."""
KEPT_MAX = 64
"""Results kept for clients that come back."""
KEPT_BYTES_MAX = 2 << 30
"""Bytes of all kept results; above it the oldest goes."""


@dataclass(slots=True)
class Numbers:
    """What metrics are made of."""

    ended: Counter[str] = field(default_factory=Counter)
    """Queries by how they ended."""
    seconds: float = 0.0
    """Of all ended queries together."""


class SqlService:
    """`start()`, then queries, then `close()`."""

    def __init__(
        self,
        catalog: Catalog,
        store: ObjectStore,
        runtime: Runtime,
        settings: Settings,
        scratch: Path,
        vectors: VectorSearch | None,
    ) -> None:
        self.numbers = Numbers()
        self._catalog = catalog
        self._runtime = runtime
        self._settings = settings
        self._vectors = vectors
        folder = scratch.absolute() / "sql"
        self._results = folder / "results"
        self._cache = FileCache(store, runtime, folder / "files", settings.cache_bytes_max)
        self._pool = WorkerPool(
            runtime, folder / "files", settings.sql_memory_bytes_max, min(settings.sql_workers, WARM_MAX)
        )
        self._slots = asyncio.Semaphore(settings.sql_workers)
        self._known: dict[str, Execution] = {}
        self._starting: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()
        """Somebody waits for SQL."""
        self._refusal = ""
        self._report: Mapping[str, str] = {}

    # --- life

    async def start(self) -> None:
        """Load DuckDB and try the walls, soon or when the first query comes.  Never raises: `checks` tells."""
        self._starting = self._runtime.spawn(self._start(), name="start sql")

    async def started(self) -> None:
        """Wait until queries can run.  Raises `Unavailable` with the reason when they cannot."""
        if self._starting is None:
            raise Unavailable("SQL has not been started", outcome=Outcome.NOT_COMMITTED)
        self._asked.set()
        await asyncio.shield(self._starting)
        if self._refusal:
            raise Unavailable(f"SQL is off: {self._refusal}", outcome=Outcome.NOT_COMMITTED)

    async def _start(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._asked.wait(), START_AFTER_S)
        try:
            await self._cache.start()
            await self._runtime.run_io(_emptied, self._results)
            await self._pool.start()
            self._report = await self._probed()
        except (LakehouseError, OSError, TimeoutError) as error:
            self._refusal = str(error) or type(error).__name__
        else:
            broken = [name for name in sorted(ESSENTIAL) if self._report.get(name) != "ok"]
            if broken:
                self._refusal = f"its workers are not confined here. walls=`{', '.join(broken)}`"
        if self._refusal:
            logger.error("sql is off. reason=%s", self._refusal)

    async def _probed(self) -> Mapping[str, str]:
        """What a worker says of its walls; one that is lost on the way says nothing about them."""
        for _ in range(PROBES_MAX - 1):
            try:
                return await self._pool.probe()
            except (WorkerGone, TimeoutError) as error:
                logger.warning("a sql worker was lost while it was tried: trying another. error=%s", error)
        return await self._pool.probe()

    def checks(self) -> Mapping[str, str]:
        """What holds: `sql` is `ok`, `starting` or the reason why not; then each wall of the sandbox."""
        if self._starting is None or not self._starting.done():
            return {"sql": "starting"}
        walls = {f"sql {name}": said for name, said in self._report.items()}
        return {"sql": f"off: {self._refusal}" if self._refusal else "ok", **walls}

    async def close(self) -> None:
        """End every query, every worker and the zygote, and remove what was kept."""
        tasks = [known.task for known in self._known.values() if known.task is not None]
        if self._starting is not None:
            tasks.append(self._starting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.close()
        await self._cache.close()
        await self._runtime.run_io(_emptied, self._results)

    # --- queries

    async def run(self, query: Query) -> Execution:
        """Begin a query and wait until its rows begin; read them with `Execution.chunks`.

        Raises `QueryFailed`, `Busy` when too many wait, `Unavailable`.
        """
        execution = await self.begin(query)
        try:
            await execution.head()
        except asyncio.CancelledError:
            execution.cancel()
            raise
        return execution

    async def begin(self, query: Query, *, keep: bool = False) -> Execution:
        """Admit a query; its result waits for `Execution.chunks`, or with `keep` goes to a file for `kept`.

        Raises `QueryFailed` for limits that are none, `Busy` when too many wait.
        """
        asked = self._checked(query)
        waiting = self.count(State.QUEUED)  # with those that will find a worker free, once they get to ask
        most = self._settings.sql_workers + self._settings.sql_queue_max
        if waiting + self.count(State.RUNNING) >= most:
            raise Busy(f"too many SQL queries wait: try again. waiting=`{waiting}`")
        query_id = self._runtime.uuid().hex
        execution = Execution(
            query_id,
            asked,
            self._runtime.now().isoformat(),
            self._runtime.monotonic(),
            self._results / query_id if keep else None,
        )
        self._known[query_id] = execution
        execution.task = self._runtime.spawn(self._drive(execution), name=f"sql {query_id}")
        execution.task.add_done_callback(lambda _: self._settle(execution))
        self._forget()
        return execution

    def get(self, query_id: str) -> Execution:
        """A query that runs or ended lately.  Raises `NotFound`."""
        self._forget()
        execution = self._known.get(query_id)
        if execution is None:
            raise unknown_query(query_id)
        return execution

    def list(self) -> Sequence[Execution]:
        """Queries that run or ended lately, newest first."""
        self._forget()
        return list(self._known.values())[::-1]

    async def cancel(self, query_id: str) -> None:
        """End a query, or forget the result of one that has ended.  Raises `NotFound`."""
        execution = self.get(query_id)
        if not execution.done.is_set():
            execution.cancel()
            await execution.done.wait()
        self._known.pop(query_id, None)  # who cancelled it beside us was faster
        if execution.keep is not None:
            await self._runtime.run_io(execution.keep.unlink, missing_ok=True)

    async def kept(self, execution: Execution) -> AsyncIterator[bytes]:
        """The kept result of a query that succeeded."""
        assert execution.keep is not None
        file = await self._runtime.run_io(execution.keep.open, "rb")
        with contextlib.closing(file):
            while chunk := await self._runtime.run_io(file.read, 1 << 20):
                yield chunk

    def _checked(self, query: Query) -> Query:
        """The query with every default filled in and every bound kept.  Raises `QueryFailed`."""
        settings = self._settings
        if len(query.sql.encode("utf-8", "surrogatepass")) > SQL_BYTES_MAX:
            raise QueryFailed(f"the statement is over {SQL_BYTES_MAX} bytes")
        if "\0" in query.sql:  # DuckDB would end there and not say so
            raise QueryFailed(f"the statement holds a NUL character. offset=`{query.sql.index(chr(0))}`")
        timeout_s = settings.sql_timeout_s if query.timeout_s is None else query.timeout_s
        if not TIMEOUT_S_MIN <= timeout_s <= settings.sql_timeout_s_max:
            raise QueryFailed(
                f"timeout_s is from {TIMEOUT_S_MIN:g} to {settings.sql_timeout_s_max:g}. timeout_s=`{timeout_s:g}`"
            )
        return Query(
            query.sql,
            query.parameters,
            query.format,
            timeout_s,
            _bounded("row_limit", query.row_limit, settings.sql_rows_max),
            _bounded("byte_limit", query.byte_limit, settings.sql_bytes_max),
            query.explain,
        )

    def _forget(self) -> None:
        """Ended queries past their time or over the bounds go, oldest first, and their results with them."""
        now, kept, kept_bytes = self._runtime.monotonic(), 0, 0
        for execution in list(self._known.values())[::-1]:
            if not execution.done.is_set():
                continue
            kept += execution.keep is not None
            kept_bytes += execution.bytes if execution.keep is not None else 0
            late = now - execution.began - execution.seconds > self._settings.sql_result_s
            over = execution.keep is not None and (kept > KEPT_MAX or kept_bytes > KEPT_BYTES_MAX)
            if late or over or len(self._known) > KNOWN_MAX:
                del self._known[execution.id]
                if execution.keep is not None:
                    self._remove_soon(execution.keep)

    def _remove_soon(self, path: Path) -> None:
        self._runtime.spawn(self._runtime.run_io(path.unlink, missing_ok=True), name="forget sql result")

    # --- one query

    async def _drive(self, execution: Execution) -> None:
        """Run to whatever end, and tell it."""
        state = State.FAILED
        error: LakehouseError | None = None
        try:
            await self._run_in_turn(execution)
            state = State.SUCCEEDED
        except asyncio.CancelledError:
            state, error = State.CANCELLED, QueryCancelled(execution.id)
        except LakehouseError as failure:
            error = failure
        except Exception as failure:
            logger.error("sql query failed unexpectedly. id=%s", execution.id, exc_info=failure)
            error = Corrupt(f"an internal error ended the query; the log has it. id=`{execution.id}`")
        self._ended(execution, state, error)

    def _settle(self, execution: Execution) -> None:
        """A query that was cancelled before its first step never ran its own end."""
        if not execution.done.is_set():
            self._ended(execution, State.CANCELLED, QueryCancelled(execution.id))

    def _ended(self, execution: Execution, state: State, error: LakehouseError | None) -> None:
        seconds = self._runtime.monotonic() - execution.began
        self.numbers.seconds += seconds
        self.numbers.ended[error.kind if isinstance(error, QueryFailed) else state.value] += 1
        if error is not None and execution.keep is not None:
            self._remove_soon(execution.keep)  # half a result is none, and may be what fills the disk
        execution.ends(state, error, seconds)

    async def _run_in_turn(self, execution: Execution) -> None:
        async with self._slots:
            execution.state = State.RUNNING
            await self.started()
            await _Conversation(self, execution).run()

    def count(self, state: State) -> int:
        """Queries in this state now."""
        return sum(known.state is state for known in self._known.values())

    # --- what a conversation needs

    @property
    def pool(self) -> WorkerPool:
        return self._pool

    @property
    def cache(self) -> FileCache:
        return self._cache

    @property
    def runtime(self) -> Runtime:
        return self._runtime

    async def manifest(self, name: str) -> Manifest:
        """The manifest behind a table's name.  Raises `NotFound`, `Invalid`."""
        return await self._catalog.manifest(*parse_reference(name))

    async def search(self, payload: bytes) -> Sequence[Sequence[Hit]]:
        """Answer a SEARCH frame.  Raises what the index raises."""
        if self._vectors is None:
            raise Invalid(
                "this process has no indexes to search: run the vectors role in it, or set vectors_url"
            )
        header, body = split_header(payload)
        asked = msgspec.json.decode(header, type=_Search)
        k = clamped_k(asked.k)
        if asked.ids is not None:
            return await self._vectors.search(asked.index, asked.ids, k, asked.filter)
        flat = np.frombuffer(body, dtype="<f4")
        if asked.dimension < 1 or len(flat) % asked.dimension:
            raise Invalid("vector_search was given an empty vector")
        return await self._vectors.search(asked.index, flat.reshape(-1, asked.dimension), k, asked.filter)


def unknown_query(query_id: str) -> NotFound:
    """The error for a query that is not there, or not for the one who asks."""
    return NotFound(f"no such query: results are kept for a while only. id=`{query_id}`")


def _bounded(name: str, asked: int | None, most: int) -> int:
    if asked is not None and asked < 1:
        raise QueryFailed(f"{name} is at least 1. {name}=`{asked}`")
    return most if asked is None else min(asked, most)


class _Named(msgspec.Struct):
    name: str
    place: tuple[int, int] | None = None


class _Names(msgspec.Struct):
    tables: list[_Named]


class _Search(msgspec.Struct):
    index: str
    k: int | None = None
    filter: str | None = None
    dimension: int = 0
    ids: list[str] | None = None


class _Head(msgspec.Struct):
    columns: list[dict[str, str]]


class _Tail(msgspec.Struct):
    rows: int
    truncated: bool
    seconds: float
    profile: dict[str, Any] | None = None


class _Failed(msgspec.Struct):
    kind: str
    message: str
    line: int | None = None
    column: int | None = None


class _Conversation:
    """One query's talk with its worker."""

    def __init__(self, service: SqlService, execution: Execution) -> None:
        self._service = service
        self._execution = execution
        self._query = execution.query
        self._search_error: LakehouseError | None = None

    async def run(self) -> None:
        """From ASK to TAIL.  Raises `QueryFailed` and what catalog, store and indexes raise."""
        timeout_s, clock = self._query.timeout_s, self._service.runtime.monotonic
        assert timeout_s is not None
        async with self._service.pool.worker() as worker, contextlib.AsyncExitStack() as held:
            began = clock()
            try:
                async with _limit(min(PARSE_S, timeout_s), timeout_s):
                    names, questions = await self._ask(worker)
                left_s = timeout_s - (clock() - began)
                # Files that must be fetched first take their own time.
                tables, answers = await asyncio.gather(
                    self._tables(names, held), self._foreseen(questions, left_s)
                )
                async with _limit(left_s, timeout_s):
                    await worker.send(Kind.OPEN, hits.with_parts(tables, answers))
                    await self._result(worker)
            except (WorkerGone, msgspec.MsgspecError) as error:
                raise QueryCrashed from error

    async def _ask(self, worker: Worker) -> tuple[list[_Named], list[bytes]]:
        """The tables that the statement names, and the searches that are known before it runs."""
        query = self._query
        assert query.row_limit is not None
        assert query.byte_limit is not None
        assert query.timeout_s is not None
        ask = Ask(
            query.sql,
            query.parameters,
            query.format,
            query.row_limit,
            query.byte_limit,
            query.timeout_s,
            query.explain,
        )
        await worker.send(Kind.ASK, ask.to_bytes())
        kind, payload = await worker.receive()
        if kind is Kind.FAILED:
            raise self._failed(payload)
        if kind is not Kind.NAMES:
            raise QueryCrashed
        try:
            told, parts = hits.split_parts(payload)
            names = msgspec.convert(told, _Names).tables
        except (ValueError, KeyError, TypeError) as error:
            raise QueryCrashed from error
        questions = [part for part in parts if part is not None]
        if len(names) > TABLES_MAX or len(questions) > FORESEEN_MAX:
            raise QueryCrashed
        return names, questions

    async def _foreseen(self, questions: list[bytes], left_s: float) -> list[bytes | None]:
        """The answers to searches; None where there is none: the statement asks again if it ever needs it."""
        return list(await asyncio.gather(*(self._early(one, left_s) for one in questions)))

    async def _early(self, question: bytes, left_s: float) -> bytes | None:
        try:
            async with asyncio.timeout(left_s):
                return hits.packed(await self._service.search(question))
        except (LakehouseError, TimeoutError, ValueError):
            return None

    async def _tables(self, names: list[_Named], held: contextlib.AsyncExitStack) -> list[dict[str, Any]]:
        """What the worker opens: each table's files, brought here, and its columns."""
        if len({named.name.lower() for named in names}) < len(names):
            raise QueryFailed("two tables differ in the case of their letters only: name one by its version")
        return list(await asyncio.gather(*(self._table(named, held) for named in names)))

    async def _table(self, named: _Named, held: contextlib.AsyncExitStack) -> dict[str, Any]:
        line, column = named.place or (None, None)
        try:
            try:
                return await self._opened(named.name, held)
            except NotFound:  # a version may be retired just now; the newest never is
                return await self._opened(named.name, held)
        except (NotFound, Invalid) as error:
            raise QueryFailed(error.message, kind="dataset", line=line, column=column) from error

    async def _opened(self, name: str, held: contextlib.AsyncExitStack) -> dict[str, Any]:
        manifest = await self._service.manifest(name)
        if any(not isinstance(one.get("key"), str) for one in manifest.objects):
            raise Invalid(f"the manifest names an object without a key. name=`{name}`")
        schema = manifest.schema
        columns = () if schema is None else [[column.name, column.type] for column in schema.fields]
        if not manifest.objects and not columns:
            raise Invalid(f"the dataset has no files. name=`{name}`")
        paths = await held.enter_async_context(self._service.cache.files(manifest.objects))
        return {"name": name, "paths": paths, "columns": columns, "rows": manifest.row_count}

    async def _result(self, worker: Worker) -> None:
        """Answer searches and pass the result on, until it ends."""
        async with self._output() as put:
            while True:
                kind, payload = await worker.receive()
                if kind is Kind.BODY:
                    self._execution.bytes += len(payload)
                    await put(payload)
                elif kind is Kind.SEARCH:
                    await worker.send(Kind.HITS, await self._searched(payload))
                elif kind is Kind.HEAD:
                    self._execution.heads(msgspec.json.decode(payload, type=_Head).columns)
                elif kind is Kind.TAIL:
                    told = msgspec.json.decode(payload, type=_Tail)
                    self._execution.tail = Tail(told.rows, told.truncated, told.seconds, told.profile)
                    return
                elif kind is Kind.FAILED:
                    raise self._failed(payload)
                else:
                    raise QueryCrashed

    @contextlib.asynccontextmanager
    async def _output(self) -> AsyncIterator[Callable[[bytes], Awaitable[object]]]:
        """Where pieces of the result go: to who waits for them, or into the kept file."""
        execution, runtime = self._execution, self._service.runtime
        if execution.keep is None:
            yield execution.put
            await execution.flushed()
            return
        try:
            file = await runtime.run_io(execution.keep.open, "wb")
            with contextlib.closing(file):
                yield lambda chunk: runtime.run_io(file.write, chunk)
        except OSError as error:
            raise _not_kept(error) from error

    async def _searched(self, payload: bytes) -> bytes:
        try:
            found = await self._service.search(payload)
        except LakehouseError as error:
            self._search_error = error
            return hits.refused("invalid", error.message)
        return hits.packed(found)

    def _failed(self, payload: bytes) -> LakehouseError:
        """What the worker says ended the query; a search that failed for reasons of its own keeps them."""
        told = msgspec.json.decode(payload, type=_Failed)
        cause = self._search_error
        if cause is not None and not isinstance(cause, Invalid | NotFound):
            return cause
        if told.kind == "internal":
            logger.warning("a sql worker failed. id=%s error=%s", self._execution.id, told.message)
        return QueryFailed(told.message, kind=told.kind, line=told.line, column=told.column)


@contextlib.asynccontextmanager
async def _limit(seconds: float, timeout_s: float) -> AsyncIterator[None]:
    """Raises `QueryTimeout`, naming `timeout_s`, when the body takes longer than `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise QueryTimeout(timeout_s) from error


def _not_kept(error: OSError) -> Unavailable:
    """What a result ends in that cannot be written down."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            "no room to keep the result: fetch it without `wait_s`", outcome=Outcome.NOT_COMMITTED
        )
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return Unavailable(f"the result cannot be kept. error=`{reason}`", outcome=Outcome.NOT_COMMITTED)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
