"""Every error as `application/problem+json`: the one place where kinds of error become status codes.

What it does not do: decide what went wrong; that is raised where it is known.
"""

import logging
import math
from http import HTTPStatus

import orjson

from lakehouse.core.errors import (
    Busy,
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    LakehouseError,
    NotFound,
    TooLarge,
    Unavailable,
)
from lakehouse.core.schema import SchemaConflict
from lakehouse.server.auth import KeyRefused
from lakehouse.server.http import PROBLEM, Response, UnsupportedMediaError

logger = logging.getLogger(__name__)

STATUS: tuple[tuple[type[LakehouseError], int], ...] = (
    (Invalid, 400),
    (NotFound, 404),
    (Conflict, 409),
    (TooLarge, 413),
    (Busy, 429),
    (Unavailable, 503),
    (Denied, 503),
    (Corrupt, 500),
)
"""First match wins.  `KeyRefused` is 401 without a valid key, 403 with one that lacks the right; any other
`Denied` is
the store refusing this server."""

HeaderTuple = tuple[tuple[bytes, bytes], ...]


def response(
    status: int, detail: str, request_id: str, *, headers: HeaderTuple = (), **extra: object
) -> Response:
    """A problem with this status; `extra` are further members."""
    title = HTTPStatus(status).phrase
    body = {"title": title, "status": status, "detail": detail, "request_id": request_id, **extra}
    # Ids and keys a client sent may hold lone surrogates in messages; they are shown escaped.
    text = orjson.dumps({name: _clean(value) for name, value in body.items()})
    return Response(status, text, PROBLEM, headers)


def _clean(value: object) -> object:
    if isinstance(value, list):
        return [_clean(each) for each in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(each) for name, each in value.items()}
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def of_error(error: Exception, request_id: str) -> Response:
    """The answer to a request that ended in `error`.  What is not on purpose shows nothing but its id."""
    if isinstance(error, KeyRefused):
        return _denied(error, request_id)
    if isinstance(error, UnsupportedMediaError):
        return response(415, str(error), request_id)
    if not isinstance(error, LakehouseError):
        logger.error("unexpected error request_id=%s", request_id, exc_info=error)
        return response(500, "an internal error; the log has it under this request id", request_id)
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    if status >= 500:
        logger.warning("request failed request_id=%s status=%d error=%s", request_id, status, error.message)
    if isinstance(error, Unavailable):
        retry = _retry_after(error.retry_after_s)
        return response(status, error.message, request_id, headers=retry, outcome=error.outcome.value)
    if isinstance(error, Corrupt):
        return response(status, error.message, request_id, kind="corrupt")
    if isinstance(error, SchemaConflict):
        changes = [change.to_json() for change in error.changes]
        return response(status, error.message, request_id, changes=changes)
    headers = _retry_after(error.retry_after_s) if isinstance(error, Busy) else ()
    return response(status, error.message, request_id, headers=headers)


def _denied(error: KeyRefused, request_id: str) -> Response:
    if error.authenticated:
        return response(403, error.message, request_id)
    challenge = ((b"www-authenticate", b'Bearer realm="lakehouse"'),)
    return response(401, error.message, request_id, headers=challenge)


def _retry_after(seconds: float) -> HeaderTuple:
    return ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)
