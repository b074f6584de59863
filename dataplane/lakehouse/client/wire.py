"""A call is a value: what to send, and how to read the answer.

Whoever holds a `Call` can make it, repeat it, or test it without a server.  What this module does not do: send
anything; `lakehouse.client.blocking` and `lakehouse.client.awaiting` do.
"""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar
from urllib.parse import quote

import httpx
import orjson

from lakehouse.core import errors
from lakehouse.runtime import Runtime

T = TypeVar("T")
Fresh = Callable[[], str]
"""Makes an idempotency key that nobody used before."""
Progress = Callable[[int, int], None]
"""Told how many bytes of how many are sent; again from 0 when a request is repeated."""

URL_DEFAULT = "http://127.0.0.1:3110"
JSON = "application/json"
NDJSON = "application/x-ndjson"
CSV = "text/csv"
PARQUET = "application/vnd.apache.parquet"
ARROW = "application/vnd.apache.arrow.stream"
BINARY = "application/octet-stream"
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
"""Above every deadline of the server, so that its answer, not our impatience, says what happened."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is sent from where it lies, piece by piece; each attempt opens it anew."""

    path: Path
    size: int
    progress: Progress | None = None

    @classmethod
    def of(cls, path: Path, progress: Progress | None = None) -> "Upload":
        """Raises `NotFound`, or `Invalid` for what is no readable file."""
        try:
            with path.open("rb") as file:
                return cls(path, os.fstat(file.fileno()).st_size, progress)
        except FileNotFoundError as error:
            raise errors.NotFound(f"there is no such file. path=`{path}`") from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise errors.Invalid(f"the file cannot be read: {reason}. path=`{path}`") from error

    def chunks(self) -> Generator[bytes, None, None]:
        """The file as it was when it was looked at: never more than `size` bytes."""
        left = self.size
        with self.path.open("rb") as file:
            self._tell(left)
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise errors.Invalid(f"the file became shorter while it was sent. path=`{self.path}`")
                yield chunk
                left -= len(chunk)
                self._tell(left)

    def _tell(self, left: int) -> None:
        if self.progress is not None:
            self.progress(self.size - left, self.size)


_LINE = b"\r\n"
_ESCAPED = {ord('"'): "%22", ord("\r"): "%0D", ord("\n"): "%0A"}
"""As browsers write a file's name."""


@dataclass(frozen=True, slots=True)
class Form:
    """Files that are sent as fields `file` of one form, piece by piece; each attempt opens them anew."""

    parts: tuple[tuple[str, Upload], ...]
    """Media type and file of each."""
    boundary: str
    """Nothing that could occur in a file."""
    progress: Progress | None = None

    @property
    def size(self) -> int:
        """Of the whole body, bytes."""
        heads = sum(len(self._head(*part)) + len(_LINE) for part in self.parts)
        return heads + self._files_size + len(self._end)

    @property
    def _files_size(self) -> int:
        return sum(upload.size for _, upload in self.parts)

    @property
    def _end(self) -> bytes:
        return f"--{self.boundary}--".encode() + _LINE

    def _head(self, media_type: str, upload: Upload) -> bytes:
        name = upload.path.name.translate(_ESCAPED)
        lines = (
            f"--{self.boundary}",
            f'content-disposition: form-data; name="file"; filename="{name}"',
            f"content-type: {media_type}",
        )
        return "".join(f"{line}\r\n" for line in (*lines, "")).encode("utf-8", "replace")

    def chunks(self) -> Generator[bytes, None, None]:
        """The body; `progress` is told of the files' bytes."""
        sent = 0
        self._tell(sent)
        for media_type, upload in self.parts:
            yield self._head(media_type, upload)
            for chunk in upload.chunks():
                yield chunk
                sent += len(chunk)
                self._tell(sent)
            yield _LINE
        yield self._end

    def _tell(self, sent: int) -> None:
        if self.progress is not None:
            self.progress(sent, self._files_size)


async def chunks_async(body: Upload | Form, runtime: Runtime) -> AsyncIterator[bytes]:
    """`body.chunks()`, read on a worker so that the loop does not wait for the disk."""
    with contextlib.closing(body.chunks()) as chunks:
        while chunk := await runtime.run_io(next, chunks, b""):
            yield chunk


@dataclass(frozen=True, slots=True)
class Request:
    """What goes over the wire."""

    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Upload | Form | None = None
    repeatable: bool = True
    """Whether doing it twice is doing it once; else it is repeated only when it cannot have happened."""
    timeout_s: float | None = None
    """How long to wait for the next bytes of the answer, where that is longer than the client's own patience."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how to read an answer whose status is below 400."""

    request: Request
    read: Callable[[httpx.Response], T]


def post(path: str, body: Mapping[str, Any], *, repeatable: bool = True, key: str | None = None) -> Request:
    """A POST of JSON; numpy arrays become lists."""
    headers = {"content-type": JSON} | ({"idempotency-key": key} if key else {})
    content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
    return Request("POST", path, headers=headers, content=content, repeatable=repeatable)


def with_headers(request: Request, headers: Mapping[str, str]) -> Request:
    """`request` with more headers, or others."""
    return replace(request, headers={**request.headers, **headers})


def path(*parts: str) -> str:
    """`/v1/…` of segments, each escaped."""
    return "/".join(["/v1", *(quote(part, safe="") for part in parts)])


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def query_text(value: Any) -> str:
    """A value as the query string carries it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, list | tuple) else str(value)


# --- how it is sent -----------------------------------------------------------------------------------------


def url_of(url: str | None) -> str:
    """The server's address: as given, else LAKEHOUSE_URL, else this machine's.  Raises `Invalid`."""
    found = (url or os.environ.get("LAKEHOUSE_URL") or URL_DEFAULT).rstrip("/")
    if not found.lower().startswith(("http://", "https://")):
        raise errors.Invalid(f"the address of a server begins with http:// or https://. url=`{found}`")
    return found


def headers_of(api_key: str | None) -> dict[str, str]:
    """What every request carries."""
    from lakehouse import __version__

    key = api_key if api_key is not None else os.environ.get("LAKEHOUSE_API_KEY")
    headers = {"user-agent": f"lakehouse/{__version__}", "accept": JSON}
    return headers | ({"authorization": f"Bearer {key}"} if key else {})


def sending(request: Request, timeout_s: float) -> dict[str, Any]:
    """What httpx is told of a request; its body comes beside it."""
    headers = dict(request.headers)
    if isinstance(request.content, Upload | Form):
        headers["content-length"] = str(request.content.size)
    patience = httpx.Timeout(timeout_s, read=max(timeout_s, request.timeout_s or 0.0))
    return {
        "method": request.method,
        "url": request.path,
        "params": request.params,
        "headers": headers,
        "timeout": patience,
    }


# --- what comes back ----------------------------------------------------------------------------------------


def json_of(answer: httpx.Response) -> Any:
    """The answer's JSON.  Raises `Unavailable` when it is none, for then this is no lakehouse server."""
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise errors.Unavailable(
            f"the answer is not JSON; is this a lakehouse server? url=`{answer.url}`"
        ) from error


def nothing(answer: httpx.Response) -> None:
    """Read an answer that says no more than its status."""


_KINDS: Mapping[int, type[errors.LakehouseError]] = {
    400: errors.Invalid,
    404: errors.NotFound,
    405: errors.Invalid,
    409: errors.Conflict,
    413: errors.TooLarge,
    415: errors.Invalid,
    422: errors.Invalid,
    501: errors.Invalid,
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
