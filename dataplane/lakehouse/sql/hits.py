"""Hits on their way from an index to a worker, as columns: a thousand hits as JSON cost a millisecond.

What this module does not do: search, or know Arrow; the worker makes its arrays of these columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import orjson

from lakehouse.core.types import Hit
from lakehouse.sql.ask import split_header, with_header

ABSENT = -1
"""The length of metadata that a hit does not have."""
Lengths = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Found:
    """The answer to one SEARCH as it was received."""

    counts: Lengths
    """Hits per query."""
    id_lengths: Lengths
    distances: npt.NDArray[np.float64]
    """NaN where there is none."""
    metadata_lengths: Lengths
    """`ABSENT`, or bytes."""
    ids: memoryview
    metadata: memoryview


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no answer."""

    kind: str
    message: str


class _Header(msgspec.Struct):
    queries: int = 0
    hits: int = 0
    id_bytes: int = 0
    kind: str = ""
    message: str = ""


def packed(found: Sequence[Sequence[Hit]]) -> bytes:
    """The hits of each query, in order."""
    flat = [hit for hits in found for hit in hits]
    ids = [hit.id.encode() for hit in flat]
    metadata = [bytes(hit.metadata) for hit in flat]
    lengths = [len(one) or ABSENT for one in metadata]
    columns = (
        np.array([hit.distance for hit in flat], "<f8"),
        np.array([len(hits) for hits in found], "<i4"),
        np.array([len(one) for one in ids], "<i4"),
        np.array(lengths, "<i4"),
    )
    id_bytes = b"".join(ids)
    header = {"queries": len(found), "hits": len(flat), "id_bytes": len(id_bytes)}
    return with_header(header, b"".join([*(one.tobytes() for one in columns), id_bytes, *metadata]))


def refused(kind: str, message: str) -> bytes:
    """An answer that is none."""
    return with_header({"kind": kind, "message": message}, b"")


def received(payload: bytes) -> Found | Refused:
    """What `packed` or `refused` wrote."""
    text, body = split_header(payload)
    header = msgspec.json.decode(text, type=_Header)
    if header.kind:
        return Refused(header.kind, header.message)
    view, hits = memoryview(body), header.hits
    distances, view = view[: 8 * hits], view[8 * hits :]
    counts, view = view[: 4 * header.queries], view[4 * header.queries :]
    id_lengths, metadata_lengths, view = view[: 4 * hits], view[4 * hits : 8 * hits], view[8 * hits :]
    return Found(
        np.frombuffer(counts, "<i4"),
        np.frombuffer(id_lengths, "<i4"),
        np.frombuffer(distances, "<f8"),
        np.frombuffer(metadata_lengths, "<i4"),
        view[: header.id_bytes],
        view[header.id_bytes :],
    )


# --- several at once, beside a header: questions with the names of tables, answers with their files


def with_parts(told: Any, parts: Sequence[bytes | None]) -> bytes:
    """Something as JSON, and byte strings of which some may be missing."""
    lengths = [ABSENT if part is None else len(part) for part in parts]
    return with_header({"told": told, "lengths": lengths}, b"".join(part or b"" for part in parts))


def split_parts(payload: bytes) -> tuple[Any, list[bytes | None]]:
    """What `with_parts` was given.  Raises `ValueError` for anything else."""
    text, body = split_header(payload)
    told = orjson.loads(text)
    parts: list[bytes | None] = []
    start = 0
    for length in told["lengths"]:
        parts.append(None if length == ABSENT else body[start : start + length])
        start += max(0, length)
    if start != len(body):
        raise ValueError("a frame is not as long as its parts")
    return told["told"], parts
