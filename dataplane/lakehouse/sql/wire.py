"""What a worker and its parent say to each other: small frames over one socket pair, each side once per turn.

A frame is one byte of kind, four of length, then the payload.  The parent trusts nothing it reads: kinds, sizes
and contents are checked.  What this module does not do: interpret payloads.
"""

import enum
import socket
import struct

HEADER = struct.Struct("<BI")
FRAME_BYTES_MAX = 64 << 20
"""Above every honest frame: 1,024 query vectors of 16,384 dimensions."""
BODY_BYTES = 256 << 10
"""Most bytes of a result in one frame, so that the parent holds little."""


class Kind(enum.IntEnum):
    """What a frame is."""

    PROBE = 1
    """To the worker: try what is forbidden.  The answer is a REPORT."""
    ASK = 2
    """To the worker: the statement and its limits."""
    OPEN = 3
    """To the worker: the files behind the names, and go."""
    HITS = 4
    """To the worker: the answer to a SEARCH."""
    REPORT = 10
    NAMES = 11
    """From the worker: the tables that the statement names."""
    SEARCH = 12
    """From the worker: query vectors or item ids for an index."""
    HEAD = 13
    """From the worker: the columns; the result follows."""
    BODY = 14
    TAIL = 15
    """From the worker: the end of the result and its numbers."""
    FAILED = 16


class Channel:
    """The worker's end, blocking."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    def send(self, kind: Kind, payload: bytes | memoryview = b"") -> None:
        """Send one frame; blocks while the parent does not read."""
        self._socket.sendall(HEADER.pack(kind, len(payload)) + payload)

    def send_body(self, data: bytes | memoryview) -> None:
        """Send a piece of the result in frames of bounded size."""
        view = memoryview(data)
        for start in range(0, len(view), BODY_BYTES):
            self.send(Kind.BODY, view[start : start + BODY_BYTES])

    def receive(self) -> tuple[Kind, bytes]:
        """The next frame.  Raises `EOFError` when the parent is gone."""
        kind, length = HEADER.unpack(self._exactly(HEADER.size))
        return Kind(kind), bytes(self._exactly(length))

    def _exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while len(view):
            read = self._socket.recv_into(view)
            if read == 0:
                raise EOFError("the parent closed the connection")
            view = view[read:]
        return data
