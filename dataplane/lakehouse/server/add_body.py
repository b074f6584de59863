"""The three bodies of an add (JSON, Arrow IPC, binary), each turned into one checked `Batch`.

Nothing here trusts a byte of the body: sizes are checked before they are allocated, and Arrow columns whose
few bytes could stand for many (compressed, dictionary-encoded, run-end-encoded, views) are refused.  What
this module does not do: change anything.
"""

import struct
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from lakehouse.core.errors import Invalid
from lakehouse.core.types import BATCH_ITEMS_MAX, CLEAR, KEEP, Batch, IndexParams, Vectors, checked_batch
from lakehouse.server import json_body
from lakehouse.server.http import ARROW, ARROW_FILE, BINARY
from lakehouse.server.json_body import Decoder, decode_add, decode_item, floats, wrong_dimension

WHERE = "items[{}]"


def decode(body: bytes, media_type: bytes, params: IndexParams) -> Batch:
    """The batch in `body`.  Raises `Invalid` naming `items[j]`."""
    if media_type == BINARY:
        return _from_binary(body, params)
    if media_type in (ARROW, ARROW_FILE):
        return _from_arrow(body, params)
    return _from_json(body, params)


def _from_json(body: bytes, params: IndexParams) -> Batch:
    json_body.check_utf8(body)
    items = decode_add(body).items
    _check_count(len(items))
    ids: list[str] = []
    metadata: list[bytes | None] = []
    vectors = np.empty((len(items), params.dimension), dtype=np.float32)
    for j, raw in enumerate(items):
        where = WHERE.format(j)
        item = decode_item(raw, where)
        row = floats(item.vector, f"{where}.vector")
        if len(row) != params.dimension:
            raise Invalid(wrong_dimension(f"{where}.vector", params.dimension, len(row)))
        ids.append(item.id)
        vectors[j] = row
        metadata.append(json_body.metadata_text(item.metadata, f"{where}.metadata"))
    return checked_batch(ids, vectors, metadata, params)


def _check_count(items: int) -> None:
    if not items:
        raise Invalid("no items: send at least one item in `items`")
    if items > BATCH_ITEMS_MAX:
        raise Invalid(f"too many items in one batch: at most {BATCH_ITEMS_MAX}. items=`{items}`")


# --- application/octet-stream: uint32 LE header length, JSON header {"ids", "metadata"?}, float32 LE rows


class BinaryHeader(msgspec.Struct):
    """What goes before the rows of a binary add; without `metadata` the stored metadata stays."""

    ids: list[str]
    metadata: list[msgspec.Raw] | None = None


_decode_header = Decoder(BinaryHeader)
_LENGTH = struct.Struct("<I")


def _from_binary(body: bytes, params: IndexParams) -> Batch:
    if len(body) < _LENGTH.size:
        raise Invalid("a binary body starts with the length of its header, uint32 little-endian")
    end = _LENGTH.size + _LENGTH.unpack_from(body)[0]
    if end > len(body):
        raise Invalid(f"the header is longer than the body. header_bytes=`{end - _LENGTH.size}`")
    text = body[_LENGTH.size : end]
    json_body.check_utf8(text)
    header = _decode_header(text, "header")
    _check_count(len(header.ids))
    rows = matrix_of(memoryview(body)[end:], params.dimension)
    if len(rows) != len(header.ids):
        raise Invalid(f"the header has {len(header.ids)} ids, the body {len(rows)} vectors")
    return checked_batch(header.ids, rows, _header_metadata(header), params)


def _header_metadata(header: BinaryHeader) -> Sequence[bytes | None]:
    if header.metadata is None:
        return [KEEP] * len(header.ids)
    if len(header.metadata) != len(header.ids):
        raise Invalid(f"the header has {len(header.ids)} ids and {len(header.metadata)} metadata")
    return [
        json_body.metadata_text(raw, f"{WHERE.format(j)}.metadata") for j, raw in enumerate(header.metadata)
    ]


def matrix_of(data: bytes | memoryview, dimension: int) -> Vectors:
    """float32 LE, row-major, as rows.

    Raises `Invalid` unless there is a whole number of rows, at least one.
    """
    size = len(data)
    if not size or size % (4 * dimension):
        raise Invalid(
            f"a binary body holds whole vectors of {dimension} float32, {4 * dimension} bytes each: "
            f"the dimension is wrong or the body is cut. bytes=`{size}`"
        )
    rows: Vectors = np.frombuffer(data, dtype="<f4").reshape(-1, dimension)
    return rows if rows.flags.aligned else rows.copy()


# --- Arrow IPC: columns id, vector, and metadata (JSON text) or any other columns

_FILE_MAGIC = b"ARROW1\0\0"
_RESERVED = ("id", "vector", "metadata")


def _from_arrow(body: bytes, params: IndexParams) -> Batch:
    stream = body.removeprefix(_FILE_MAGIC)
    try:
        table = _read_stream(stream)
        ids = _ids(table)
        vectors = _vectors(table, params.dimension)
        metadata = _metadata(table)
    except (pa.ArrowException, ValueError, OSError, TypeError, UnicodeDecodeError) as error:
        raise Invalid(f"the body is not a usable Arrow IPC stream: {error}") from error
    return checked_batch(ids, vectors, metadata, params)


def _read_stream(stream: bytes) -> pa.Table:
    """All batches, once no message can stand for more than its bytes."""
    _check_messages(stream)
    batches, rows = [], 0
    with pa.ipc.open_stream(pa.BufferReader(stream)) as reader:
        schema = reader.schema
        for field in schema:
            _check_type(field.type, field.name)
        for batch in reader:
            rows += batch.num_rows
            _check_count(max(rows, 1))
            batch.validate(full=True)
            batches.append(batch)
    _check_count(rows)
    return pa.Table.from_batches(batches, schema)


def _check_messages(stream: bytes) -> None:
    reader = pa.ipc.MessageReader.open_stream(pa.BufferReader(stream))
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
            raise Invalid("Arrow buffers must not be compressed")


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch's flatbuffer has its `compression` field (the fourth of RecordBatch, third of
    Message)."""
    message = struct.unpack_from("<I", metadata)[0]
    header = _field(metadata, message, 2)
    if not header:
        return False
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return bool(_field(metadata, batch, 3))


def _field(data: bytes, table: int, number: int) -> int:
    """Where field `number` of the flatbuffer table at `table` is; 0 when absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    slot = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + slot)[0] if slot < size else 0
    return table + offset if offset else 0


def _check_type(kind: pa.DataType, name: str) -> None:
    types = pa.types
    if name == "vector":
        if (
            types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
        ) and types.is_floating(kind.value_type):
            return
        raise Invalid(f"the vector column is a list of floats. type=`{kind}`")
    nested = [kind.field(j).type for j in range(kind.num_fields)] if types.is_nested(kind) else []
    plain = types.is_list(kind) or types.is_large_list(kind) or types.is_struct(kind)
    scalar = (
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_date(kind)
        or types.is_timestamp(kind)
        or (types.is_null(kind))
    )
    if not (scalar or plain) or any(types.is_null(inner) for inner in nested):
        raise Invalid(f"column {name} has a type that metadata cannot hold. type=`{kind}`")
    for inner in nested:
        _check_type(inner, f"{name}.")


def _column(table: pa.Table, name: str) -> pa.ChunkedArray:
    if table.schema.names.count(name) != 1:
        raise Invalid(f"an Arrow body has exactly one column `{name}`. columns=`{table.schema.names}`")
    return table.column(name)


def _ids(table: pa.Table) -> list[str]:
    column = _column(table, "id")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise Invalid(f"the id column holds strings. type=`{column.type}`")
    if column.null_count:
        raise Invalid(f"{WHERE.format(column.to_pylist().index(None))}.id is null")
    ids: list[str] = column.to_pylist()
    return ids


def _vectors(table: pa.Table, dimension: int) -> Vectors:
    rows, start = np.empty((table.num_rows, dimension), dtype=np.float32), 0
    for chunk in _column(table, "vector").chunks:
        rows[start : start + len(chunk)] = _chunk_rows(chunk, dimension, start)
        start += len(chunk)
    return rows


def _chunk_rows(chunk: pa.Array, dimension: int, start: int) -> npt.NDArray[np.float32]:
    for j in np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[:1]:
        raise Invalid(f"{WHERE.format(start + int(j))}.vector is null")
    if pa.types.is_fixed_size_list(chunk.type):
        if chunk.type.list_size != dimension:
            raise Invalid(wrong_dimension(f"{WHERE.format(start)}.vector", dimension, chunk.type.list_size))
    else:
        lengths = np.diff(chunk.offsets.to_numpy())
        for j in np.flatnonzero(lengths != dimension)[:1]:
            where = f"{WHERE.format(start + int(j))}.vector"
            raise Invalid(wrong_dimension(where, dimension, int(lengths[j])))
    values = chunk.flatten()
    if values.null_count:
        nulls = np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))
        raise Invalid(f"{WHERE.format(start + int(nulls[0]) // dimension)}.vector holds a null")
    with np.errstate(over="ignore"):
        rows: npt.NDArray[np.float32] = values.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return rows.reshape(-1, dimension)


def _metadata(table: pa.Table) -> Sequence[bytes | None]:
    names = [name for name in table.schema.names if name not in ("id", "vector")]
    if not names:
        return [KEEP] * table.num_rows
    if "metadata" not in names:
        return [orjson.dumps(row) for row in table.select(names).to_pylist()]
    if names != ["metadata"]:
        raise Invalid("give either a `metadata` column of JSON text or other columns, not both")
    column = _column(table, "metadata")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return [CLEAR if value is None else orjson.dumps(value) for value in column.to_pylist()]
    return [_json_text(value, f"{WHERE.format(j)}.metadata") for j, value in enumerate(column.to_pylist())]


_decode_any = Decoder(msgspec.Raw)


def _json_text(value: str | None, where: str) -> bytes | None:
    """A null keeps what is stored; text must be one JSON value."""
    if value is None:
        return KEEP
    text = value.strip(" \t\r\n").encode()
    if not text:
        raise Invalid(f"{where} is not JSON: it is empty")
    _decode_any(text, where)
    return json_body.metadata_text(text, where)
