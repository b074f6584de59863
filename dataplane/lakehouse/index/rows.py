"""Ids and metadata of a segment: two Arrow columns, read one value at a time without making arrays of objects.

The columns are one Arrow IPC file, in memory as in a snapshot.  What this does not do: parse metadata.
"""

from typing import BinaryIO

import pyarrow as pa

from lakehouse.core.errors import Corrupt
from lakehouse.index.arena import Arena

# Arrow's own allocator keeps tens of megabytes after a segment is built; the system's gives them back when asked.
pa.set_memory_pool(pa.system_memory_pool())

SCHEMA = pa.schema(
    [
        pa.field("id", pa.large_string(), nullable=False),
        pa.field("metadata", pa.large_binary(), nullable=False),
    ]
)


class Rows:
    """The ids and metadata of rows 0 … n − 1; immutable."""

    __slots__ = ("_batch", "_id_bytes", "_id_ends", "_metadata_bytes", "_metadata_ends", "data", "size")

    def __init__(self, data: memoryview) -> None:
        """Open an Arrow IPC file; zero copy.  Raises `Corrupt`."""
        try:
            with pa.ipc.open_file(pa.py_buffer(data)) as reader:
                if reader.num_record_batches != 1 or not reader.schema.equals(SCHEMA):
                    raise Corrupt(f"rows of a segment have another schema. schema=`{reader.schema}`")
                batch = reader.get_batch(0)
            batch.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise Corrupt(f"rows of a segment are no Arrow file. error=`{error}`") from error
        if batch.column(0).null_count or batch.column(1).null_count:
            raise Corrupt("rows of a segment hold nulls")
        self.data = data
        self.size = batch.num_rows
        self._batch = batch
        self._id_ends, self._id_bytes = _buffers(batch.column(0))
        self._metadata_ends, self._metadata_bytes = _buffers(batch.column(1))

    @classmethod
    def of(cls, ids: pa.Array, metadata: pa.Array, arena: Arena) -> "Rows":
        batch = pa.RecordBatch.from_arrays([ids, metadata], schema=SCHEMA)

        def write(file: BinaryIO) -> None:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                writer.write_batch(batch)

        return cls(arena.written(write))

    def id(self, row: int) -> str:
        ends = self._id_ends
        return str(self._id_bytes[ends[row] : ends[row + 1]], "utf-8")

    def metadata(self, row: int) -> bytes:
        ends = self._metadata_ends
        return bytes(self._metadata_bytes[ends[row] : ends[row + 1]])

    @property
    def ids(self) -> pa.Array:
        return self._batch.column(0)

    @property
    def documents(self) -> pa.Array:
        """The metadata column."""
        return self._batch.column(1)

    @property
    def metadata_bytes(self) -> int:
        return int(self._metadata_ends[self.size] - self._metadata_ends[0])


def _buffers(column: pa.Array) -> tuple[memoryview, memoryview]:
    assert column.offset == 0
    _, ends, data = column.buffers()
    return memoryview(ends).cast("q"), memoryview(b"") if data is None else memoryview(data)
