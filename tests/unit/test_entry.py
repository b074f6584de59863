"""Log entries: what is written is read, and a single changed byte is refused."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lakehouse.core import entry
from lakehouse.core.entry import Kind, Operation, Request
from lakehouse.core.errors import Corrupt

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def an_entry(*requests: Request, kind: Kind = Kind.DATA, seq: int = 7) -> entry.EncodedEntry:
    return entry.encode(
        kind=kind,
        seq=seq,
        epoch=3,
        incarnation=b"i" * 16,
        writer=b"w" * 16,
        batch=b"b" * 16,
        previous=b"p" * 32,
        first_operation=11,
        requests=[entry.encode_request(request) for request in requests],
        wall_ms=1_700_000_000_000,
    )


def an_upsert(ids: tuple[str, ...] = ("a", "ü" * 100), dimension: int = 3) -> Request:
    vectors = np.arange(len(ids) * dimension, dtype=np.float32).reshape(len(ids), dimension)
    metadata = tuple((None, b"", b'{"n":1}')[j % 3] for j in range(len(ids)))
    return Request(b"key", Operation.UPSERT, ids, vectors, metadata)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    ids = tuple(draw(st.lists(IDS, min_size=1, max_size=5, unique=True)))
    operation = draw(st.sampled_from(Operation))
    key = draw(st.binary(min_size=1, max_size=255))
    if operation in (Operation.UPSERT, Operation.ADD_IF_ABSENT):
        dimension = draw(st.integers(1, 4))
        numbers = st.floats(width=32, allow_nan=False)
        rows = draw(
            st.lists(
                st.lists(numbers, min_size=dimension, max_size=dimension),
                min_size=len(ids),
                max_size=len(ids),
            )
        )
        metadata = tuple(draw(st.one_of(st.none(), st.binary(max_size=30))) for _ in ids)
        return Request(key, operation, ids, np.array(rows, dtype=np.float32), metadata)
    if operation is Operation.DELETE:
        return Request(key, operation, ids)
    return Request(key, operation, ids, versions=tuple(draw(st.integers(0, 2**64 - 1)) for _ in ids))


@given(st.lists(requests(), max_size=3), st.sampled_from(Kind))
def test_what_is_written_is_read(sent: list[Request], kind: Kind) -> None:
    encoded = an_entry(*sent, kind=kind)
    found = entry.decode(encoded.data)
    assert (found.digest, found.header.batch, found.header.kind) == (encoded.digest, encoded.batch, kind)
    assert [(r.request.key, r.request.operation, r.request.ids) for r in found.requests] == [
        (r.key, r.operation, r.ids) for r in sent
    ]
    for got, want in zip(found.requests, sent, strict=True):
        assert got.request.metadata == want.metadata
        assert got.request.versions == want.versions
        assert got.data == entry.encode_request(want).data
        if want.vectors is not None:
            assert got.request.vectors is not None
            assert got.request.vectors.tobytes() == want.vectors.tobytes()


def test_the_header_has_180_bytes_and_its_documented_layout() -> None:
    data = an_entry(an_upsert()).data
    assert entry.HEADER_BYTES == 180
    assert data[:4] == b"LHW1"
    assert struct.unpack_from(">HBBQQ", data, 4) == (1, Kind.DATA, 0, 7, 3)
    assert data[24:40] == b"i" * 16
    assert data[40:56] == b"w" * 16
    assert data[56:72] == b"b" * 16
    assert data[72:104] == b"p" * 32
    assert struct.unpack_from(">QII", data, 104) == (11, 2, 1)


@pytest.mark.parametrize("bit", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_of_an_entry_is_refused(bit: int) -> None:
    data = an_entry(an_upsert(), Request(b"k2", Operation.DELETE_IF_VERSION, ("x",), versions=(9,))).data
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= bit
        with pytest.raises(Corrupt):
            entry.decode(bytes(flipped))


def test_every_truncation_of_an_entry_is_refused() -> None:
    data = an_entry(an_upsert()).data
    for size in range(len(data)):
        with pytest.raises(Corrupt):
            entry.decode(data[:size])
    with pytest.raises(Corrupt):
        entry.decode(data + b"\0")


def test_the_body_digest_tells_bodies_apart_but_not_keys() -> None:
    one = entry.encode_request(an_upsert())
    same = entry.encode_request(Request(b"other key", Operation.UPSERT, *_parts(an_upsert())))
    other = entry.encode_request(an_upsert(ids=("a", "c")))
    as_absent = entry.encode_request(Request(b"key", Operation.ADD_IF_ABSENT, *_parts(an_upsert())))
    assert one.digest == same.digest
    assert len({one.digest, other.digest, as_absent.digest}) == 3


def _parts(
    request: Request,
) -> tuple[tuple[str, ...], "np.ndarray[tuple[int, ...], np.dtype[np.float32]]", tuple[bytes | None, ...]]:
    assert request.vectors is not None
    return request.ids, request.vectors, request.metadata
