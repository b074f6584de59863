"""A log entry is one commit: a 180-byte header that chains it to the entry before, and the requests it carries.

The layout is FORMAT.md's section "Log".  Everything in an entry is explicit: nothing in it depends on a clock or on
chance, so replaying entries 1…n gives the same state everywhere.  This module turns entries into bytes and back; it
does not read or write any store, and it does not apply anything.
"""

import enum
import hashlib
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lakehouse.core.errors import Corrupt
from lakehouse.core.types import Batch

MAGIC = b"LHW1"
ENTRY_VERSION = 2
"""The newest version this release reads and writes; which one a log holds, its incarnation says."""
FIRST_ENTRY_VERSION = 1
HEADER = struct.Struct(">4sHBBQQ16s16s16s32sQIIQQQ32sI")
HEADER_BYTES = HEADER.size
CODEC_PLAIN = 0
NO_DIGEST = bytes(32)
"""The digest before the first entry."""

REQUEST = struct.Struct(">BBHIIQQ16s")
KEEP_LENGTH = 0xFFFF_FFFF
"""In a list of metadata lengths: this item's stored metadata stays."""


CARRIED = b"\0carried\0"
"""Begins the key of a request without ids that says how far a log has taken over the one it continues."""
_CURSOR = struct.Struct(">IQ")


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """How much of the logs of a replaced life has been taken over: shard after shard, slot after slot."""

    shard: int
    sequence: int

    @property
    def key(self) -> bytes:
        return CARRIED + _CURSOR.pack(self.shard, self.sequence)


ALL_CARRIED = Cursor(0xFFFF_FFFF, 0)
"""Everything is taken over: from here on the log takes writes of its own."""


def cursor_of(key: bytes) -> Cursor | None:
    """What a request's key says of taking over; None for a client's."""
    if len(key) != len(CARRIED) + _CURSOR.size or not key.startswith(CARRIED):
        return None
    return Cursor(*_CURSOR.unpack(key[len(CARRIED) :]))


class Kind(enum.IntEnum):
    """What an entry is for."""

    DATA = 1
    FENCE = 2
    """Makes its author the writer; kept for ever."""
    DROP = 3
    """Ends the incarnation; kept for ever."""


class Operation(enum.IntEnum):
    """What a request does to each of its ids."""

    UPSERT = 1
    ADD_IF_ABSENT = 2
    DELETE = 3
    DELETE_IF_VERSION = 4


@dataclass(frozen=True, slots=True)
class Request:
    """One client request: one operation on distinct ids, applied once per idempotency key.

    `vectors` is float32 (n, dimension) and `metadata` has n values for the two adding operations;
    `versions` has n values for DELETE_IF_VERSION.
    """

    key: bytes
    operation: Operation
    ids: tuple[str, ...]
    vectors: npt.NDArray[np.float32] | None = None
    metadata: tuple[bytes | None, ...] = ()
    versions: tuple[int, ...] = ()

    def batch(self) -> Batch:
        """The items of an adding request."""
        assert self.vectors is not None
        return Batch(self.ids, self.vectors, self.metadata)


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request as it stands in a payload; `digest` (16 bytes) tells two bodies under one key apart."""

    request: Request
    digest: bytes
    data: bytes

    def __len__(self) -> int:
        return len(self.data)


def encode_request(request: Request, digest: bytes | None = None) -> EncodedRequest:
    """Write one request; see FORMAT.md for the layout.

    `digest` stands for the body where this request is only one shard's part of it.
    """
    ids = [item_id.encode() for item_id in request.ids]
    metadata, vectors, dimension = b"", b"", 0
    if request.vectors is not None:
        dimension = request.vectors.shape[1]
        vectors = np.ascontiguousarray(request.vectors, dtype="<f4").tobytes()
        lengths = np.array(
            [KEEP_LENGTH if value is None else len(value) for value in request.metadata], dtype="<u4"
        )
        metadata = lengths.tobytes() + b"".join(filter(None, request.metadata))
    body = b"".join(
        (
            np.array([len(item_id) for item_id in ids], dtype="<u2").tobytes(),
            *ids,
            metadata,
            vectors,
            np.array(request.versions, dtype="<u8").tobytes() if request.versions else b"",
        )
    )
    shape = (
        int(request.operation),
        0,
        len(request.key),
        len(ids),
        dimension,
        sum(map(len, ids)),
        len(metadata),
    )
    if digest is None:
        digest = hashlib.sha256(repr(shape[:1] + shape[3:]).encode() + body).digest()[:16]
    return EncodedRequest(request, digest, REQUEST.pack(*shape, digest) + request.key + body)


@dataclass(frozen=True, slots=True)
class Header:
    """The 180 bytes in front of every entry."""

    version: int
    kind: Kind
    seq: int
    epoch: int
    incarnation: bytes
    writer: bytes
    batch: bytes
    previous: bytes
    """Digest of the entry before this one on its chain."""
    first_operation: int
    """Operations in all entries before this one; item versions count on from here."""
    operations: int
    requests: int
    payload_bytes: int
    wall_ms: int
    """When its writer thought it was; information only."""
    payload_sha256: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole entry; `digest` = sha256(header) names it and all that came before it."""

    header: Header
    digest: bytes
    requests: tuple[EncodedRequest, ...]


@dataclass(frozen=True, slots=True)
class EncodedEntry:
    """An entry ready to be created in its slot."""

    data: bytes
    digest: bytes
    batch: bytes


def encode(
    *,
    kind: Kind,
    seq: int,
    epoch: int,
    incarnation: bytes,
    writer: bytes,
    batch: bytes,
    previous: bytes,
    first_operation: int,
    requests: Sequence[EncodedRequest] = (),
    wall_ms: int = 0,
    version: int = FIRST_ENTRY_VERSION,
) -> EncodedEntry:
    """The bytes of an entry and its digest."""
    payload = b"".join(request.data for request in requests)
    operations = sum(len(request.request.ids) for request in requests)
    unsigned = HEADER.pack(
        MAGIC, version, kind, CODEC_PLAIN, seq, epoch, incarnation, writer, batch, previous,
        first_operation, operations, len(requests), len(payload), len(payload), wall_ms,
        hashlib.sha256(payload).digest(), 0,
    )  # fmt: skip
    header = unsigned[:-4] + zlib.crc32(unsigned[:-4]).to_bytes(4, "big")
    return EncodedEntry(header + payload, hashlib.sha256(header).digest(), batch)


def decode_header(data: bytes) -> Header:
    """The header at the start of `data`.  Raises `Corrupt`."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        raise Corrupt(f"not a log entry: no LHW1 header. bytes=`{len(data)}`")
    if zlib.crc32(data[: HEADER_BYTES - 4]).to_bytes(4, "big") != data[HEADER_BYTES - 4 : HEADER_BYTES]:
        raise Corrupt("log entry header does not match its checksum")
    (
        _, version, kind, codec, seq, epoch, incarnation, writer, batch, previous,
        first_operation, operations, requests, raw_bytes, payload_bytes, wall_ms, payload_sha256, _,
    ) = HEADER.unpack_from(data)  # fmt: skip
    if (
        not FIRST_ENTRY_VERSION <= version <= ENTRY_VERSION
        or codec != CODEC_PLAIN
        or raw_bytes != payload_bytes
    ):
        raise Corrupt(f"log entry of an unknown version; a newer release wrote it. version=`{version}`")
    try:
        kind = Kind(kind)
    except ValueError as error:
        raise Corrupt(f"log entry of an unknown kind. kind=`{kind}`") from error
    return Header(
        version, kind, seq, epoch, incarnation, writer, batch, previous,
        first_operation, operations, requests, payload_bytes, wall_ms, payload_sha256,
    )  # fmt: skip


def decode(data: bytes) -> Entry:
    """A whole entry, every byte checked.  Raises `Corrupt`."""
    header = decode_header(data)
    payload = memoryview(data)[HEADER_BYTES:]
    if len(payload) != header.payload_bytes:
        raise Corrupt(f"log entry is cut short or too long. seq=`{header.seq}`")
    if hashlib.sha256(payload).digest() != header.payload_sha256:
        raise Corrupt(f"log entry payload does not match its checksum. seq=`{header.seq}`")
    try:
        requests = _decode_requests(payload, header.requests)
    except (ValueError, struct.error) as error:  # includes UnicodeDecodeError
        raise Corrupt(f"log entry payload cannot be read. seq=`{header.seq}`") from error
    if sum(len(request.request.ids) for request in requests) != header.operations:
        raise Corrupt(f"log entry has another number of operations than it says. seq=`{header.seq}`")
    return Entry(header, hashlib.sha256(data[:HEADER_BYTES]).digest(), requests)


def _decode_requests(payload: memoryview, count: int) -> tuple[EncodedRequest, ...]:
    requests = []
    offset = 0
    for _ in range(count):
        request, offset = _decode_request(payload, offset)
        requests.append(request)
    if offset != len(payload):
        raise ValueError("bytes after the last request")
    return tuple(requests)


def decode_request(data: bytes) -> EncodedRequest:
    """Read what `encode_request` wrote; nothing but that.  Raises `Corrupt`."""
    try:
        return _decode_requests(memoryview(data), 1)[0]
    except (ValueError, struct.error) as error:  # includes UnicodeDecodeError
        raise Corrupt(f"not a request as a log entry holds it. bytes=`{len(data)}`") from error


def _decode_request(payload: memoryview, offset: int) -> tuple[EncodedRequest, int]:
    operation, _, key_bytes, count, dimension, id_bytes, metadata_bytes, digest = REQUEST.unpack_from(
        payload, offset
    )
    start = offset
    offset += REQUEST.size
    key = bytes(payload[offset : offset + key_bytes])
    offset += key_bytes
    lengths = np.frombuffer(payload, "<u2", count, offset).tolist()
    offset += 2 * count
    ids = _split(payload, offset, lengths, id_bytes)
    offset += id_bytes
    vectors: npt.NDArray[np.float32] | None = None
    metadata: tuple[bytes | None, ...] = ()
    versions: tuple[int, ...] = ()
    operation = Operation(operation)
    if operation in (Operation.UPSERT, Operation.ADD_IF_ABSENT):
        metadata = _decode_metadata(payload, offset, count, metadata_bytes)
        offset += metadata_bytes
        vectors = np.frombuffer(payload, "<f4", count * dimension, offset).reshape(count, dimension)
        offset += 4 * count * dimension
    elif operation is Operation.DELETE_IF_VERSION:
        versions = tuple(np.frombuffer(payload, "<u8", count, offset).tolist())
        offset += 8 * count
    if offset > len(payload):
        raise ValueError("request is longer than its payload")
    request = Request(key, operation, tuple(item_id.decode() for item_id in ids), vectors, metadata, versions)
    return EncodedRequest(request, digest, payload[start:offset]), offset  # type: ignore[arg-type]


def _decode_metadata(payload: memoryview, offset: int, count: int, size: int) -> tuple[bytes | None, ...]:
    lengths = np.frombuffer(payload, "<u4", count, offset).tolist()
    stored = [0 if length == KEEP_LENGTH else length for length in lengths]
    values = _split(payload, offset + 4 * count, stored, size - 4 * count)
    return tuple(
        None if length == KEEP_LENGTH else value for length, value in zip(lengths, values, strict=True)
    )


def _split(payload: memoryview, offset: int, lengths: list[int], size: int) -> list[bytes]:
    if sum(lengths) != size or offset + size > len(payload):
        raise ValueError("lengths do not add up")
    parts = []
    for length in lengths:
        parts.append(bytes(payload[offset : offset + length]))
        offset += length
    return parts
