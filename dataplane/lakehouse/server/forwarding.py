"""Passing a request on to another process, streaming both ways, and again on another connection where that is harmless.

Pods come and go while requests arrive.  Where nothing was sent yet, because nobody accepted the connection, any request
is sent again within a short budget.  Where a connection broke before an answer began, only a request that does the same
when it is done twice, and whose body is still at hand.  An answer that has begun is never asked for again.  What this
module does not do: choose the process; `lakehouse.server.gateway` does.
"""

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from lakehouse.core.errors import Outcome, Unavailable
from lakehouse.runtime import Runtime
from lakehouse.server.http import Headers, Request, StreamedResponse
from lakehouse.server.routes import VERSION_PREFIX

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"host",
        b"expect",
        b"x-request-id",
        b"date",
        b"server",
    )
)
"""Headers that belong to one connection, or that each process sets itself."""
CONNECTIONS_MAX = 256
"""To one address; one that hangs takes none from the others."""
RETRY_S = 3.0
"""From a request's arrival to its last attempt: above one attempt that found a pod's address dead for `connect_s`."""
PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Between attempts, the last one for all that follow."""
BROKEN_MAX = 2
"""Connections that one request may see break before its answer; a request that kills pods shall not kill all."""
RENEWED_EVERY = 256
"""Requests to an address after which a connection is given up, so that new pods get their share of a busy gateway."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to pass requests on to."""

    url: str
    called: str
    """For messages: what answers there."""


class Replayed:
    """A body that is still at hand after it was sent."""

    again = True

    def __init__(self, data: bytes | None) -> None:
        self.content = data


class Streamed:
    """A body that passes through once."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.again = True
        """Nothing of it was taken yet."""

    @property
    def content(self) -> "Streamed":
        return self

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.again = False
        async for chunk in self._chunks:
            yield chunk


Body = Replayed | Streamed


class Forwarder:
    """Pools of connections, one per address."""

    def __init__(self, runtime: Runtime, connect_s: float, timeout_s: float) -> None:
        self._runtime = runtime
        self._timeout = httpx.Timeout(timeout_s, connect=connect_s)
        self._trust = httpx.create_ssl_context(trust_env=False)
        self._clients: dict[str, tuple[httpx.AsyncClient, itertools.count[int]]] = {}

    async def close(self) -> None:
        for client, _ in self._clients.values():
            await client.aclose()

    async def send(
        self,
        to: Address,
        request: Request,
        path: bytes,
        body: Body,
        *,
        twice: bool,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> StreamedResponse:
        """The answer at `path`; `twice` says that the request may be done twice, `headers` go before its own.

        Raises `Unavailable`, knowing that nothing happened only if nothing was sent.
        """
        given = [*headers, *_passed(request, frozenset(name for name, _ in headers))]
        return await self._tried(to, request.scope["method"], path, given, body, twice)

    async def ask(self, to: Address, request: Request, path: bytes) -> StreamedResponse:
        """The answer to a GET at `path`, in the name of whoever made `request`.  Raises `Unavailable`."""
        key = request.headers.get(b"authorization")
        given = [(b"x-request-id", request.request_id.encode()), *([(b"authorization", key)] if key else [])]
        return await self._tried(to, "GET", path, given, Replayed(None), twice=True)

    async def _tried(
        self, to: Address, method: str, path: bytes, given: Headers, body: Body, twice: bool
    ) -> StreamedResponse:
        began = self._runtime.monotonic()
        broken = 0
        for attempt in itertools.count():
            outgoing = self._request(to, method, path, given, body)
            try:
                answer = await self._client(to).send(outgoing, stream=True, follow_redirects=False)
                return _answered(answer)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed: httpx.TransportError = error
                again = body.again
            except httpx.PoolTimeout as error:
                failed, again = error, False
            except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
                broken += 1
                failed, again = error, twice and body.again and broken <= BROKEN_MAX
            except httpx.TransportError as error:  # an answer that took too long: it may yet be done
                raise _broke_off(to) from error
            pause_s = PAUSES_S[min(attempt, len(PAUSES_S) - 1)]
            if not again or self._runtime.monotonic() - began + pause_s > RETRY_S:
                raise _broke_off(to) if broken else _absent(to) from failed
            await self._runtime.sleep(pause_s)
        raise AssertionError("the loop above ends by returning or raising")

    def _client(self, to: Address) -> httpx.AsyncClient:
        return self._pool(to)[0]

    def _pool(self, to: Address) -> "tuple[httpx.AsyncClient, itertools.count[int]]":
        found = self._clients.get(to.url)
        if found is None:
            limits = httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX)
            client = httpx.AsyncClient(
                timeout=self._timeout, limits=limits, verify=self._trust, trust_env=False
            )
            self._clients[to.url] = found = client, itertools.count(1)
        return found

    def _request(self, to: Address, method: str, path: bytes, headers: Headers, body: Body) -> httpx.Request:
        client, sent = self._pool(to)
        last = [(b"connection", b"close")] if next(sent) % RENEWED_EVERY == 0 else []
        url = httpx.URL(to.url).copy_with(raw_path=urlsplit(to.url).path.rstrip("/").encode() + path)
        return client.build_request(method, url, headers=[*headers, *last], content=body.content)


def path_of(request: Request) -> bytes:
    """Path and query as sent; `.` and `..` escaped, because the client would resolve them before a role can refuse."""
    segments = request.scope["raw_path"].removeprefix(VERSION_PREFIX.encode()).split(b"/")
    path = b"/".join(
        segment.replace(b".", b"%2E") if segment in (b".", b"..") else segment for segment in segments
    )
    query: bytes = request.scope.get("query_string", b"")
    return VERSION_PREFIX.encode() + path + (b"?" + query if query else b"")


def _passed(request: Request, replaced: frozenset[bytes]) -> Headers:
    passed = [
        (name, value)
        for name, value in request.headers.items()
        if name not in HOP_BY_HOP and name not in replaced
    ]
    return [*passed, (b"x-request-id", request.request_id.encode())]


def _answered(answer: httpx.Response) -> StreamedResponse:
    received = [(name.lower(), value) for name, value in answer.headers.raw]
    headers = [(name, value) for name, value in received if name not in HOP_BY_HOP]
    return StreamedResponse(answer.status_code, _chunks(answer), headers)


async def _chunks(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


def _absent(to: Address) -> Unavailable:
    return Unavailable(f"{to.called} does not answer: try again", outcome=Outcome.NOT_COMMITTED)


def _broke_off(to: Address) -> Unavailable:
    return Unavailable(f"{to.called} broke off before it answered: try again")
