"""One query on its way, or at its end: what those who wait for it see.

The side that runs it pushes pieces of the result in, the side that asked takes them out; between them lies a
short queue, so a slow client slows its worker and nothing else.  What this module does not do: run anything.
"""

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lakehouse.core.errors import LakehouseError
from lakehouse.sql.formats import Format

QUEUED_CHUNKS = 4
"""Pieces of a result between the worker and a slow client; then the worker waits."""


@dataclass(frozen=True, slots=True)
class Query:
    """What a client asks; None is the setting's default."""

    sql: str
    parameters: bytes = b""
    """JSON text of a list for `?` and `$1`, or of an object for `$name`; empty for none."""
    format: Format = Format.JSON
    timeout_s: float | None = None
    row_limit: int | None = None
    byte_limit: int | None = None
    """As the format writes it; for Arrow and Parquet as the rows lie in memory."""
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Tail:
    """The numbers at the end of a result."""

    rows: int
    truncated: bool
    seconds: float
    """In the worker, from planning to the last row."""
    profile: Mapping[str, Any] | None = None


class State(enum.StrEnum):
    """How far a query is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Execution:
    """A query with its state, and its result piece by piece."""

    def __init__(self, query_id: str, query: Query, began_at: str, began: float, keep: Path | None) -> None:
        self.id = query_id
        self.query = query
        self.began_at = began_at
        """RFC 3339, for people."""
        self.began = began
        """On the runtime's monotonic clock."""
        self.keep = keep
        """The file that the result goes to, when a client may come back for it."""
        self.owner = ""
        """Who asked, for whoever looks after rights."""
        self.state = State.QUEUED
        self.seconds = 0.0
        """From admission to the end; 0 until then."""
        self.bytes = 0
        self.columns: Sequence[Mapping[str, str]] = ()
        self.tail: Tail | None = None
        self.error: LakehouseError | None = None
        self.done = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._headed = asyncio.Event()
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_CHUNKS)

    async def head(self) -> None:
        """Wait until rows begin.  Raises what ended the query before that."""
        await self._headed.wait()
        if self.error is not None:
            raise self.error

    async def chunks(self) -> AsyncIterator[bytes]:
        """The result.  Raises what ends the query in the middle; whoever stops early cancels it."""
        try:
            while (chunk := await self._chunks.get()) is not None:
                yield chunk
        except BaseException:
            self.cancel()
            raise
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """End the query, whatever it does; without effect once it has ended."""
        if self.task is not None:
            self.task.cancel()

    # --- the side that runs it

    def heads(self, columns: Sequence[Mapping[str, str]]) -> None:
        """Rows begin."""
        self.columns = columns
        self._headed.set()

    async def put(self, chunk: bytes) -> None:
        """Pass a piece on; waits while the client does not read."""
        await self._chunks.put(chunk)

    async def flushed(self) -> None:
        """Mark the end, behind what the client has still to read."""
        await self._chunks.put(None)

    def ends(self, state: State, error: LakehouseError | None, seconds: float) -> None:
        """Nothing comes after this; a failure overtakes what was not read yet."""
        self.state, self.error, self.seconds = state, error, seconds
        if error is not None:
            while not self._chunks.empty():
                self._chunks.get_nowait()
            with contextlib.suppress(asyncio.QueueFull):
                self._chunks.put_nowait(None)
        self._headed.set()
        self.done.set()
