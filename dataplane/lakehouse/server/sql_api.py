"""The SQL routes: a statement in, rows out in the form that was asked for.

The first megabyte of a result is held back until the result ends or outgrows it, so nearly every answer has its
exact status, length and `Lakehouse-Truncated`; a larger one starts at once and is cut off if it fails later.
With `wait_s` a query that takes longer answers 202 and its result is fetched by its id.  What this module does
not do: look at the statement; a confined process does (`lakehouse.sql`).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from lakehouse.core.errors import Invalid, LakehouseError
from lakehouse.runtime import Runtime
from lakehouse.server import json_body, problem
from lakehouse.server.auth import Caller
from lakehouse.server.http import AnyResponse, Request, Response, StreamedResponse, json_response
from lakehouse.server.json_body import Decoder
from lakehouse.settings import Right
from lakehouse.sql import formats
from lakehouse.sql.errors import QueryFailed
from lakehouse.sql.execution import Execution, Query, State
from lakehouse.sql.service import SqlService, unknown_query
from lakehouse.vector_sql import CALLER

BODY_BYTES_MAX = 16 << 20
"""A statement of at most 1 MiB, and parameters: a batch of query vectors."""
HOLD_BYTES = 1 << 20
"""Of a result, before its head is sent."""
WAIT_S_MAX = 60.0
"""Longest that one request waits for a query's end; a client asks again."""
LAST_WORDS_S = 0.1
"""What a worker has to say after the last byte of a result takes a millisecond; ten on a loaded machine."""
SQL_SHOWN = 2_000
"""Characters of a statement that status answers show."""

_Header = tuple[bytes, bytes]


class SqlBody(msgspec.Struct):
    """A query and its limits; null and absent mean the default."""

    sql: str
    parameters: msgspec.Raw = msgspec.Raw()
    timeout_s: float | None = None
    row_limit: int | None = None
    byte_limit: int | None = None
    explain: bool = False
    wait_s: float | None = None


class WaitQuery(msgspec.Struct, forbid_unknown_fields=True):
    """What `GET /v1/sql/{id}` takes."""

    wait_s: float = 0.0
    status: bool = False


decode_sql = Decoder(SqlBody)


class SqlApi:
    """Handlers named as the routes are."""

    def __init__(self, service: SqlService, runtime: Runtime) -> None:
        self._service = service
        self._runtime = runtime

    async def sql(self, request: Request) -> AnyResponse:
        """Run one SELECT over datasets."""
        form = formats.chosen(request.headers.get(b"accept", b"").decode("latin-1"))
        if form is None:
            return problem.response(
                406, f"no such form of a result. accept=`{formats.ACCEPTABLE}`", request.request_id
            )
        CALLER.set(request.headers.get(b"authorization", b"").decode("latin-1"))
        body = await request.body(BODY_BYTES_MAX)
        json_body.check_utf8(body)
        asked: SqlBody = decode_sql(body)
        if bytes(asked.parameters)[:1] not in (b"", b"[", b"{", b"n"):  # JSON's list, object and null
            raise Invalid("parameters is a list for ? and $1, or an object for $name")
        query = Query(
            asked.sql,
            bytes(asked.parameters),
            form,
            asked.timeout_s,
            asked.row_limit,
            asked.byte_limit,
            asked.explain,
        )
        if asked.wait_s is not None:
            return await self._submitted(request, query, _checked_wait(asked.wait_s))
        execution = await self._begun(request, query)
        return await self._streamed(request, execution)

    async def list(self, request: Request) -> Response:
        """The caller's queries that run or ended lately; to an admin everybody's."""
        mine = [self._status(one) for one in self._service.list() if _is_for(request.caller, one)]
        return json_response({"queries": mine})

    async def get(self, request: Request) -> AnyResponse:
        """A query's result when it has one to fetch, else its status."""
        asked = json_body.from_query(request.query(), WaitQuery)
        execution = self._found(request)
        await _wait(execution, _checked_wait(asked.wait_s))
        if asked.status:
            return json_response(self._status(execution), 200, _query_id(execution))
        if execution.keep is None and execution.state is State.SUCCEEDED:
            return json_response(self._status(execution), 200, _query_id(execution))
        return self._fetched(request, execution)

    async def cancel(self, request: Request) -> Response:
        """End a query, or forget its result."""
        await self._service.cancel(self._found(request).id)
        return Response(204)

    async def _begun(self, request: Request, query: Query, *, keep: bool = False) -> Execution:
        execution = await self._service.begin(query, keep=keep)
        execution.owner = request.caller.name
        return execution

    def _found(self, request: Request) -> Execution:
        """The query that the path names.  Raises `NotFound`, for somebody else's too."""
        execution = self._service.get(request.params["id"])
        if not _is_for(request.caller, execution):
            raise unknown_query(execution.id)
        return execution

    # --- answers

    async def _submitted(self, request: Request, query: Query, wait_s: float) -> AnyResponse:
        execution = await self._begun(request, query, keep=True)
        await _wait(execution, wait_s)
        return self._fetched(request, execution)

    def _fetched(self, request: Request, execution: Execution) -> AnyResponse:
        """The kept result; 202 while there is none yet; or the problem that ended it."""
        if not execution.done.is_set():
            place = (b"location", f"/v1/sql/{execution.id}".encode())
            return json_response(self._status(execution), 202, (*_query_id(execution), place))
        if execution.error is not None:
            return _problem(execution.error, execution, request.request_id)
        length = (b"content-length", b"%d" % execution.bytes)
        return StreamedResponse(200, self._service.kept(execution), [*_head(execution), length])

    async def _streamed(self, request: Request, execution: Execution) -> AnyResponse:
        """The result as it comes; a client that hangs up ends its query."""
        watch = self._runtime.spawn(_end_with(request, execution), name=f"watch sql {execution.id}")
        chunks = execution.chunks()
        try:
            await execution.head()
            held, whole = await _held(chunks)
        except LakehouseError as error:
            watch.cancel()
            return _problem(error, execution, request.request_id)
        except asyncio.CancelledError:
            watch.cancel()
            execution.cancel()
            raise
        if whole:
            watch.cancel()
            media = formats.MEDIA_TYPES[execution.query.format].encode()
            return Response(200, held, media, _facts(execution))
        return StreamedResponse(200, _then(held, chunks, watch), _head(execution))

    def _status(self, execution: Execution) -> dict[str, Any]:
        """What is known of a query."""
        done = execution.done.is_set()
        seconds = execution.seconds if done else self._runtime.monotonic() - execution.began
        told: dict[str, Any] = {
            "id": execution.id,
            "status": execution.state.value,
            "sql": execution.query.sql[:SQL_SHOWN],
            "format": execution.query.format.value,
            "began_at": execution.began_at,
            "seconds": round(seconds, 3),
            "bytes": execution.bytes,
        }
        if execution.tail is not None:
            told |= {"row_count": execution.tail.rows, "truncated": execution.tail.truncated}
            if execution.tail.profile is not None:
                told["profile"] = execution.tail.profile
        if execution.error is not None:
            told["error"] = {"detail": execution.error.message, **_place(execution.error)}
        return told


def _is_for(caller: Caller, execution: Execution) -> bool:
    """Whether a query is the caller's own, or the caller may see everybody's."""
    return caller.right is Right.ADMIN or execution.owner == caller.name


async def _end_with(request: Request, execution: Execution) -> None:
    """End a query whose client hung up, unless it ends by itself just then: a reader that has the last row goes."""
    await request.hung_up()
    await _wait(execution, LAST_WORDS_S)
    execution.cancel()


async def _wait(execution: Execution, wait_s: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(execution.done.wait(), wait_s)


async def _held(chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """The beginning of a result, and whether it is all of it."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        if len(held) > HOLD_BYTES:
            return bytes(held), False
    return bytes(held), True


async def _then(
    held: bytes, chunks: AsyncIterator[bytes], watch: "asyncio.Task[None]"
) -> AsyncIterator[bytes]:
    try:
        yield held
        async for chunk in chunks:
            yield chunk
    finally:
        watch.cancel()


def _checked_wait(wait_s: float) -> float:
    if not 0 <= wait_s <= WAIT_S_MAX:
        raise Invalid(f"wait_s is from 0 to {WAIT_S_MAX:g}. wait_s=`{wait_s:g}`")
    return wait_s


def _problem(error: LakehouseError, execution: Execution, request_id: str) -> Response:
    """A failed query as a problem document with its kind and place; other errors as everywhere."""
    if not isinstance(error, QueryFailed):
        answer = problem.of_error(error, request_id)
    else:
        answer = problem.response(400, error.message, request_id, **_place(error))
    answer.headers = (*answer.headers, *_query_id(execution))
    return answer


def _place(error: LakehouseError) -> dict[str, Any]:
    if not isinstance(error, QueryFailed):
        return {}
    place = {"line": error.line, "column": error.column} if error.line is not None else {}
    return {"kind": error.kind, **place}


def _query_id(execution: Execution) -> tuple[_Header, ...]:
    return ((b"lakehouse-query-id", execution.id.encode()),)


def _facts(execution: Execution) -> tuple[_Header, ...]:
    """Headers of a result; `maybe` while its end is not known: the status of the query tells it later."""
    tail = execution.tail
    truncated = b"maybe" if tail is None else str(tail.truncated).lower().encode()
    rows = () if tail is None else ((b"lakehouse-row-count", b"%d" % tail.rows),)
    return (*_query_id(execution), (b"lakehouse-truncated", truncated), *rows)


def _head(execution: Execution) -> list[_Header]:
    media = formats.MEDIA_TYPES[execution.query.format].encode()
    return [(b"content-type", media), *_facts(execution)]
