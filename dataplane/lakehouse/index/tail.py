"""New rows go to the tail: chunks of vectors searched exactly, so a write is found the moment it is applied.

Rows are only ever added at the end; a `TailView` is the first n of them and stays what it is.
"""

from array import array
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from lakehouse.core.types import Distance, Vectors
from lakehouse.index.arena import Arena
from lakehouse.index.columns import Columns
from lakehouse.index.kernels import Rows32
from lakehouse.index.segment import NO_ROWS, Floats, Stretch, inverse_norms
from lakehouse.index.settings import IndexSettings

CHUNK_BYTES_MAX = 16 << 20
CHUNK_ROWS_MIN, CHUNK_ROWS_MAX = 64, 4_096
"""The first chunk is small so that an index of ten items stays small; each next one doubles."""
COLUMN_BLOCK_ROWS = 256
"""Rows of metadata read again when the last block has grown: below half a millisecond."""


class Tail:
    """Rows in the order they were written."""

    def __init__(self, dimension: int, distance: Distance, arena: Arena, settings: IndexSettings) -> None:
        self._dimension, self._distance, self._arena = dimension, distance, arena
        self.size = 0
        self.ids: list[str] = []
        # One buffer, not an object per row: objects would leave holes between the ids, which stay.
        self._document_bytes = bytearray()
        self._document_ends = array("q", [0])
        self.chunks: list[Stretch] = []
        self._room = 0
        self.columns = Columns(
            lambda start, stop: [self.metadata(row) for row in range(start, stop)],
            COLUMN_BLOCK_ROWS,
            ids=lambda start, stop: self.ids[start:stop],
            predicates_max=settings.predicates_max,
            columns_max=settings.columns_max,
        )

    def append(self, ids: Sequence[str], vectors: Vectors, documents: Sequence[bytes]) -> None:
        self.ids.extend(ids)
        for document in documents:
            self._document_bytes += document
            self._document_ends.append(len(self._document_bytes))
        norms = inverse_norms(vectors, self._distance)
        taken = 0
        while taken < len(vectors):
            if self._room == 0:
                self._grow(len(vectors) - taken)
            chunk = self.chunks[-1]
            at, count = chunk.rows - self._room, min(self._room, len(vectors) - taken)
            chunk.vectors[at : at + count] = vectors[taken : taken + count]
            if len(norms):
                chunk.inverse_norms[at : at + count] = norms[taken : taken + count]
            self._room -= count
            taken += count
        self.size += len(ids)

    def _grow(self, wanted: int) -> None:
        fitting = CHUNK_BYTES_MAX // (4 * self._dimension) // 64 * 64
        rows = max(self.size, wanted, CHUNK_ROWS_MIN)
        rows = max(CHUNK_ROWS_MIN, min(-(-rows // 64) * 64, CHUNK_ROWS_MAX, fitting))
        start = self.chunks[-1].start + self.chunks[-1].rows if self.chunks else 0
        norms = rows if self._distance is Distance.COSINE else 0
        vectors = self._arena.zeros((rows, self._dimension), np.float32)
        self.chunks.append(Stretch(start, rows, vectors, np.zeros(norms, np.float32)))
        self._room = rows

    def metadata(self, row: int) -> bytes:
        return bytes(self._document_bytes[self._document_ends[row] : self._document_ends[row + 1]])

    @property
    def metadata_bytes(self) -> int:
        return len(self._document_bytes)

    def columns_of(self, rows: int) -> tuple[pa.Array, pa.Array]:
        """The ids and metadata of the first `rows` rows, copied."""
        ends = self._document_ends[: rows + 1]
        buffers = [None, pa.py_buffer(ends.tobytes()), pa.py_buffer(bytes(self._document_bytes[: ends[-1]]))]
        documents = pa.Array.from_buffers(pa.large_binary(), rows, buffers)
        return pa.array(self.ids[:rows], pa.large_string()), documents

    def vector(self, row: int) -> Floats:
        """A copy."""
        # Chunks double up to a bound, so there are few: a walk from the end finds a row's quickly.
        for chunk in reversed(self.chunks):
            if chunk.start <= row:
                return np.array(chunk.vectors[row - chunk.start])
        raise IndexError(row)

    def view(self) -> "TailView":
        return TailView(self)


class TailView:
    """The rows a tail had."""

    __slots__ = ("_chunks", "_tail", "codes", "columns", "graph", "size", "stragglers")

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self._chunks = tuple(tail.chunks)
        self.size = tail.size
        self.columns = tail.columns
        self.graph = None
        self.codes = None
        self.stragglers: Rows32 = NO_ROWS

    def stretches(self) -> Sequence[Stretch]:
        return [
            Stretch(chunk.start, min(chunk.rows, self.size - chunk.start), chunk.vectors, chunk.inverse_norms)
            for chunk in self._chunks
            if chunk.start < self.size
        ]

    def id(self, row: int) -> str:
        return self._tail.ids[row]

    def metadata(self, row: int) -> bytes:
        return self._tail.metadata(row)

    def vector(self, row: int) -> Floats:
        return self._tail.vector(row)

    @property
    def ids(self) -> list[str]:
        return self._tail.ids[: self.size]

    @property
    def metadata_bytes(self) -> int:
        return self._tail.metadata_bytes

    def arrow(self) -> tuple[pa.Array, pa.Array]:
        """The ids and metadata."""
        return self._tail.columns_of(self.size)
