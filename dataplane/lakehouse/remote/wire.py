"""What processes of one deployment say to each other about a shard: msgpack, vectors as raw float32.

A write's body is the request as a log entry holds it, key and digest included, so it can be repeated anywhere.  An
error travels as its kind, so that it is the same error there.  What this module does not do: send anything.
"""

from typing import Any

import msgspec
import numpy as np

from lakehouse.core import errors
from lakehouse.core.errors import LakehouseError, Outcome, Unavailable
from lakehouse.core.types import Batch, Hit, Item, SearchPlan, SearchResult, Vectors
from lakehouse.placed_shard import Ask, Found
from lakehouse.remote.predicates import WirePredicate, to_wire

MEDIA_TYPE = "application/msgpack"
INSTANCE = "lakehouse-instance"
"""Header of every answer: which process gave it."""
FRAME_BYTES = 4
"""Length of a piece of a stream, big-endian, before it; a piece of no length ends the stream."""


class Read(msgspec.Struct, omit_defaults=True):
    """What any read says."""

    strong: bool = False
    sequence: int = 0
    """What the answer must have seen."""
    at_least: int = 0
    """What the caller has seen already: answer `behind` rather than with less."""


class Search(Read, omit_defaults=True):
    """A search; `queries` is float32 LE, row-major."""

    queries: bytes = b""
    rows: int = 0
    k: int = 0
    ef: int | None = None
    predicate: WirePredicate | None = None
    exact: bool = False
    include_metadata: bool = True
    include_vectors: bool = False


class ItemOf(Read, omit_defaults=True):
    """One item."""

    id: str = ""


class Scroll(Read, omit_defaults=True):
    """A page of items."""

    after: str | None = None
    limit: int = 0
    predicate: WirePredicate | None = None


class Matching(Read, omit_defaults=True):
    """A count, or a stream of items."""

    predicate: WirePredicate | None = None


class Sample(Read, omit_defaults=True):
    """Vectors of random items."""

    samples: int = 0


class SnapshotUnder(msgspec.Struct):
    """A snapshot under a key of its own."""

    key: str


class Seen(msgspec.Struct, omit_defaults=True):
    """What any answer to a read says of the shard."""

    position: int
    length: int
    settled: bool = True
    stale_s: float = 0.0


WireHit = tuple[str, float, bytes]


class Searched(msgspec.Struct):
    """The answer to a search; `vectors` holds those of all hits in their order, if they were asked for."""

    seen: Seen
    hits: list[list[WireHit]]
    strategy: str
    matched: int | None
    ef: int
    visited: int
    vectors: bytes | None = None


WireItem = tuple[str, bytes, bytes, int]
"""Id, vector, metadata, version."""


class Items(msgspec.Struct):
    """The answer to an item or a page."""

    seen: Seen
    items: list[WireItem]
    after: str | None = None


class Counted(msgspec.Struct):
    """The answer to a count."""

    seen: Seen
    count: int


class Sampled(msgspec.Struct):
    """The answer to a sample."""

    seen: Seen
    vectors: bytes


class Stats(msgspec.Struct):
    """The answer to stats."""

    seen: Seen
    stats: dict[str, Any]


class Chunk(msgspec.Struct, array_like=True):
    """A piece of a stream of items."""

    ids: list[str]
    vectors: bytes
    metadata: list[bytes | None]
    versions: list[int]


class Written(msgspec.Struct):
    """What a write did, and where it is visible."""

    position: int
    added: int
    skipped: int
    deleted: int
    length: int
    replayed: bool


class Failure(msgspec.Struct, omit_defaults=True):
    """An error of `lakehouse.core.errors`."""

    kind: str
    message: str
    outcome: str | None = None
    retry_after_s: float = 1.0


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.decode

KINDS: dict[str, type[LakehouseError]] = {
    kind.__name__: kind
    for kind in (
        errors.Invalid,
        errors.NotFound,
        errors.Dropped,
        errors.Conflict,
        errors.TooLarge,
        errors.Busy,
        errors.Unavailable,
        errors.StorageFull,
        errors.CredentialsRefused,
        errors.Fenced,
        errors.OtherLife,
        errors.Corrupt,
    )
}


class Behind(Unavailable):
    """This process has not seen what its caller has, and cannot catch up now: another may have."""


KINDS["Behind"] = Behind


def failure_of(error: LakehouseError) -> Failure:
    """An error as it travels; one that has no kind of its own here is its nearest ancestor's."""
    kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in (*KINDS, "LakehouseError"))
    if isinstance(error, Unavailable):
        return Failure(kind, error.message, error.outcome.value, error.retry_after_s)
    retry_after_s = error.retry_after_s if isinstance(error, errors.Busy) else 1.0
    return Failure(kind, error.message, retry_after_s=retry_after_s)


def error_of(failure: Failure) -> LakehouseError:
    """The error that a failure is."""
    kind = KINDS.get(failure.kind, Unavailable)
    if issubclass(kind, Unavailable):
        outcome = Outcome(failure.outcome) if failure.outcome else Outcome.UNKNOWN
        return kind(failure.message, outcome=outcome, retry_after_s=failure.retry_after_s)
    if issubclass(kind, errors.Busy):
        return kind(failure.message, retry_after_s=failure.retry_after_s)
    return kind(failure.message)


def search_of(queries: Vectors, ask: Ask, *, strong: bool, sequence: int) -> Search:
    """A search as it travels."""
    return Search(
        strong=strong,
        sequence=sequence,
        queries=to_bytes(queries),
        rows=len(queries),
        k=ask.k,
        ef=ask.ef,
        predicate=to_wire(ask.predicate),
        exact=ask.exact,
        include_metadata=ask.include_metadata,
        include_vectors=ask.include_vectors,
    )


def searched(found: Found, seen: Seen) -> Searched:
    """An answer as it travels."""
    plan = found.result.plan
    hits = [[(hit.id, hit.distance, hit.metadata) for hit in each] for each in found.result.hits]
    vectors = [hit.vector for each in found.result.hits for hit in each if hit.vector is not None]
    joined = to_bytes(np.stack(vectors)) if vectors else None
    return Searched(seen, hits, plan.strategy, plan.matched, plan.ef, plan.visited, joined)


def found_in(answer: Searched, dimension: int) -> Found:
    """Read what `searched` wrote."""
    vectors = None if answer.vectors is None else iter(rows_of(answer.vectors, dimension))
    hits = tuple(
        tuple(Hit(*hit) if vectors is None else Hit(*hit, vector=next(vectors)) for hit in each)
        for each in answer.hits
    )
    plan = SearchPlan(answer.strategy, answer.matched, answer.ef, answer.visited)
    return Found(SearchResult(hits, plan), answer.seen.position, answer.seen.stale_s)


def wire_item(item: Item) -> WireItem:
    """An item as it travels."""
    return item.id, to_bytes(item.vector), item.metadata, item.version


def item_of(sent: WireItem) -> Item:
    """Read what `wire_item` wrote."""
    return Item(sent[0], np.frombuffer(sent[1], "<f4"), sent[2], sent[3])


def wire_chunk(batch: Batch, versions: tuple[int, ...]) -> bytes:
    """A piece of a stream with its length before it."""
    data = encode(Chunk(list(batch.ids), to_bytes(batch.vectors), list(batch.metadata), list(versions)))
    return len(data).to_bytes(FRAME_BYTES, "big") + data


def chunk_of(data: bytes, dimension: int) -> tuple[Batch, tuple[int, ...]]:
    """Read a piece of a stream."""
    chunk = decode(data, type=Chunk)
    batch = Batch(tuple(chunk.ids), rows_of(chunk.vectors, dimension), tuple(chunk.metadata))
    return batch, tuple(chunk.versions)


def to_bytes(vectors: Vectors) -> bytes:
    """float32 LE, row-major."""
    return np.ascontiguousarray(vectors, "<f4").tobytes()


def rows_of(data: bytes, dimension: int) -> Vectors:
    """float32 (n, dimension); a copy that may be written to is not needed."""
    return np.frombuffer(data, "<f4").reshape(-1, dimension)
