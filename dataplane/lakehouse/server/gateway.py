"""The gateway: passes a request on to the process that runs its role, streaming both ways.

Path and query go on byte for byte, with the request id, so that one id follows a request through every log.
What it does not do: retry.  The caller holds the idempotency key, so the caller repeats.
"""

from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import httpx

from lakehouse.core.errors import Outcome, Unavailable
from lakehouse.server.http import Request, StreamedResponse
from lakehouse.server.routes import VERSION_PREFIX
from lakehouse.settings import Role

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


class Gateway:
    """A pool of connections to the other roles."""

    def __init__(
        self, urls: Mapping[Role, str], body_bytes_max: Mapping[Role, int], connect_s: float, timeout_s: float
    ) -> None:
        self._targets = {role: _target(url) for role, url in urls.items()}
        self._body_bytes_max = body_bytes_max
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=connect_s),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            trust_env=False,
        )

    async def forward(self, role: Role, request: Request) -> StreamedResponse:
        """The role's answer.

        Raises `Unavailable`, knowing that nothing happened only if nothing was sent.
        """
        outgoing = self._client.build_request(
            request.scope["method"],
            self._url(role, request),
            headers=_request_headers(request),
            content=self._content(role, request),
        )
        try:
            answer = await self._client.send(outgoing, stream=True, follow_redirects=False)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Unavailable(
                f"the {role} role does not answer: try again", outcome=Outcome.NOT_COMMITTED
            ) from error
        except httpx.TransportError as error:
            raise Unavailable(f"the {role} role broke off before it answered: try again") from error
        received = [(name.lower(), value) for name, value in answer.headers.raw]
        headers = [(name, value) for name, value in received if name not in HOP_BY_HOP]
        return StreamedResponse(answer.status_code, _body(answer), headers)

    async def close(self) -> None:
        await self._client.aclose()

    def _url(self, role: Role, request: Request) -> httpx.URL:
        base, prefix = self._targets[role]
        query: bytes = request.scope.get("query_string", b"")
        raw = prefix + VERSION_PREFIX.encode() + _unversioned(request.scope["raw_path"])
        return base.copy_with(raw_path=raw + (b"?" + query if query else b""))

    def _content(self, role: Role, request: Request) -> AsyncIterator[bytes] | None:
        headers = request.headers
        if b"content-length" not in headers and b"transfer-encoding" not in headers:
            return None
        return request.stream(self._body_bytes_max[role])


def _target(url: str) -> tuple[httpx.URL, bytes]:
    path = urlsplit(url).path.rstrip("/")
    return httpx.URL(url), path.encode()


def _unversioned(raw_path: bytes) -> bytes:
    """The path as sent; `.` and `..` escaped, because the client would resolve them before the role can refuse."""
    segments = raw_path.removeprefix(VERSION_PREFIX.encode()).split(b"/")
    return b"/".join(
        segment.replace(b".", b"%2E") if segment in (b".", b"..") else segment for segment in segments
    )


def _request_headers(request: Request) -> list[tuple[bytes, bytes]]:
    passed = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
    return [*passed, (b"x-request-id", request.request_id.encode())]


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
