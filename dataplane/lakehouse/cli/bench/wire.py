"""The cheapest HTTP client that is still HTTP: requests encoded before, one keep-alive socket, no parsing but of
lengths.

So that what is measured is the server.  What it does not do: redirects, chunked answers, or anything else.
"""

import socket
from types import TracebackType
from typing import Any, Self

import orjson

from lakehouse.core.errors import Unavailable

TIMEOUT_S = 120.0
READ_BYTES = 1 << 18


def encoded(method: str, path: str, body: bytes = b"", media_type: str = "application/json") -> bytes:
    """One request as it goes over the wire."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: {media_type}\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """One socket, one request at a time."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, request: bytes) -> bytes:
        """The answer's body.  Raises `Unavailable` unless its status is below 300."""
        self._socket.sendall(request)
        received = bytearray()
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        head = bytes(received[:end]).lower()
        length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
        while len(received) < end + 4 + length:
            received += self._more()
        body = bytes(received[end + 4 :])
        if not head.startswith(b"http/1.1 2"):
            raise Unavailable(f"the server refused a request of the benchmark. answer=`{body[:500]!r}`")
        return body

    def json(self, method: str, path: str, body: Any = None) -> Any:
        """A request and its answer, both JSON."""
        return orjson.loads(
            self.send(encoded(method, path, b"" if body is None else orjson.dumps(body))) or b"{}"
        )

    def _more(self) -> bytes:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise Unavailable("the server closed the connection")
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
