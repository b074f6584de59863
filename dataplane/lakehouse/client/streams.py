"""Results too large to hold: record batches as they arrive.

Arrow's reader pulls, so an answer becomes a file it can pull from; the awaiting client pulls on a worker and
fetches on its loop.  What this module does not do: hold more than a batch and the bytes of the next.
"""

import asyncio
import contextlib
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from lakehouse.client.sql import ends_early, query_id_of, says_truncated
from lakehouse.client.wire import CHUNK_BYTES
from lakehouse.core import errors
from lakehouse.runtime import Runtime

if TYPE_CHECKING:
    import pyarrow as pa

FETCH_S_MAX = 3_600.0
"""Above every read timeout: only a loop that died makes the worker wait so long."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What writing a result came to."""

    size: int
    """Bytes written."""
    query_id: str
    truncated: bool | None
    """Whether a limit cut rows off; None where the answer began before that was known: the query's status says."""


def exported(answer: httpx.Response, size: int) -> Exported:
    """What the head of the answer says of it."""
    return Exported(size, query_id_of(answer), says_truncated(answer))


class PulledFile(io.RawIOBase):
    """Reads what `pull` gives, chunk by chunk; `b""` ends it."""

    def __init__(self, pull: Callable[[], bytes]) -> None:
        self._pull = pull
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._chunk:
            self._chunk = memoryview(self._pull())
        size = min(len(buffer), len(self._chunk))
        buffer[:size] = self._chunk[:size]
        self._chunk = self._chunk[size:]
        return size


def _reader(pull: Callable[[], bytes]) -> "pa.RecordBatchReader":
    import pyarrow as pa

    with _whole():
        return pa.ipc.open_stream(io.BufferedReader(PulledFile(pull), CHUNK_BYTES))


def _next(reader: "pa.RecordBatchReader") -> "tuple[pa.RecordBatch, bool] | None":
    """The next batch, and whether it says that the result was cut off."""
    try:
        with _whole():
            batch, metadata = reader.read_next_batch_with_custom_metadata()
    except StopIteration:
        return None
    return batch, ends_early(metadata)


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except pa.ArrowInvalid as error:
        raise errors.Unavailable(f"the answer ended in the middle: {error}") from error


class Batches:
    """Record batches as they arrive; once they have ended, `truncated` says whether a limit cut rows off."""

    def __init__(self, opening: contextlib.AbstractContextManager[httpx.Response]) -> None:
        self.truncated = False
        self._batches = self._read(opening)

    def __iter__(self) -> "Iterator[pa.RecordBatch]":
        return self._batches

    def __next__(self) -> "pa.RecordBatch":
        return next(self._batches)

    def close(self) -> None:
        """Stop early; the query ends."""
        self._batches.close()

    def _read(
        self, opening: contextlib.AbstractContextManager[httpx.Response]
    ) -> "Generator[pa.RecordBatch, None, None]":
        with opening as answer:
            chunks = answer.iter_bytes(CHUNK_BYTES)
            reader = _reader(lambda: next(chunks, b""))
            while (found := _next(reader)) is not None:
                batch, cut = found
                self.truncated = self.truncated or cut
                if batch.num_rows:
                    yield batch
            for _ in chunks:  # to the very end: hanging up before it would cancel the query
                pass


class AsyncBatches:
    """`Batches`, awaited."""

    def __init__(
        self, opening: contextlib.AbstractAsyncContextManager[httpx.Response], runtime: Runtime
    ) -> None:
        self.truncated = False
        self._runtime = runtime
        self._batches = self._read(opening)

    def __aiter__(self) -> "AsyncIterator[pa.RecordBatch]":
        return self._batches

    async def __anext__(self) -> "pa.RecordBatch":
        return await anext(self._batches)

    async def aclose(self) -> None:
        """Stop early; the query ends."""
        await self._batches.aclose()

    async def _read(
        self, opening: contextlib.AbstractAsyncContextManager[httpx.Response]
    ) -> "AsyncGenerator[pa.RecordBatch, None]":
        async with opening as answer:
            chunks = answer.aiter_bytes(CHUNK_BYTES)
            reader = await self._runtime.run_io(_reader, _pulling(chunks))
            while (found := await self._runtime.run_io(_next, reader)) is not None:
                batch, cut = found
                self.truncated = self.truncated or cut
                if batch.num_rows:
                    yield batch
            async for _ in chunks:  # as in `Batches`
                pass


def _pulling(chunks: AsyncIterator[bytes]) -> Callable[[], bytes]:
    """Fetches on this loop, for a worker that waits."""
    loop = asyncio.get_running_loop()

    async def fetched() -> bytes:
        return await anext(chunks, b"")

    return lambda: asyncio.run_coroutine_threadsafe(fetched(), loop).result(FETCH_S_MAX)
