"""uvicorn's HTTP/1.1 protocol, with an answer's head and body in one write.

uvicorn writes them one after the other, and uvloop sends each at once: two system calls, two TCP segments, and a
client that wakes twice.  What this module does not do: change what is sent.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class OneWriteProtocol(HttpToolsProtocol):
    """Gives every cycle a transport that joins its first two writes."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = _JoiningTransport(transport, self)  # type: ignore[assignment]


class _JoiningTransport:
    """Holds the head of an answer until the first piece of its body, which follows within the same step or soon."""

    __slots__ = ("_head", "_headed", "_protocol", "_transport")

    def __init__(self, transport: asyncio.Transport, protocol: HttpToolsProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._head = b""
        self._headed: object = None
        """The cycle whose head has been written."""

    def write(self, data: bytes) -> None:
        cycle = self._protocol.cycle
        if cycle is not self._headed and cycle is not None and cycle.response_started:
            self._headed = cycle
            if cycle.scope["method"] != "HEAD":  # whose body is never written
                self._head = data
                return
        if self._head:
            data, self._head = self._head + data, b""
        self._transport.write(data)

    def close(self) -> None:
        if self._head:
            self._transport.write(self._head)
            self._head = b""
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
