"""The values every layer speaks: parameters, batches, positions, results.

Frozen and checked at construction where a check is cheap.  What these values do not do: I/O.
"""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np
import numpy.typing as npt

from lakehouse.core.errors import Invalid

Vectors = npt.NDArray[np.float32]
"""float32, C-contiguous, shape (n, dimension)."""

DIMENSION_MAX = 65_535
M_MIN, M_MAX = 2, 200
EF_MAX = 10_000
ID_BYTES_MAX = 1_024
"""An id of 1 KiB is accepted; hashes and paths fit, documents do not."""
METADATA_BYTES_MAX = 1 << 20
"""1 MiB of JSON per item."""
BATCH_ITEMS_MAX = 100_000


class Distance(enum.StrEnum):
    """How near two vectors are; smaller is nearer for all three."""

    COSINE = "cosine"
    """1 − cos(a, b), in [0, 2]."""
    EUCLIDEAN = "euclidean"
    """√Σ(aᵢ−bᵢ)²: the root, not the square."""
    DOT = "dot"
    """−⟨a, b⟩."""


@dataclass(frozen=True, slots=True)
class IndexParams:
    """What an index is made of; immutable but for `ef_search`."""

    name: str
    dimension: int
    m: int = 16
    """Neighbours a node keeps per layer (2·m on layer 0)."""
    ef_search: int = 64
    """Candidates a search keeps; more finds more and costs more."""
    distance: Distance = Distance.COSINE
    ef_construction: int = 200

    def __post_init__(self) -> None:
        _whole_within("dimension", self.dimension, 1, DIMENSION_MAX)
        _whole_within("m", self.m, M_MIN, M_MAX)
        _whole_within("ef_search", self.ef_search, 1, EF_MAX)
        _whole_within("ef_construction", self.ef_construction, 1, EF_MAX)

    def to_json(self) -> dict[str, object]:
        """The five parameters of the HTTP contract, in its order."""
        return {
            "name": self.name,
            "dimension": self.dimension,
            "m": self.m,
            "ef_search": self.ef_search,
            "distance": self.distance.value,
        }


def _whole_within(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise Invalid(f"{name} must be a whole number from {low} to {high}. {name}=`{value}`")


KEEP: None = None
"""Metadata of an upsert that leaves the stored metadata alone."""
CLEAR = b""
"""Metadata of an upsert that clears the stored metadata."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Items to write, columnar: row j of `vectors` belongs to `ids[j]` and `metadata[j]`.

    `metadata[j]` is `KEEP` (None), `CLEAR` (b"") or the UTF-8 JSON text to store.
    Ids within one batch are distinct: `distinct()` keeps the last of each.
    """

    ids: tuple[str, ...]
    vectors: Vectors
    metadata: tuple[bytes | None, ...]

    def __len__(self) -> int:
        return len(self.ids)


def checked_batch(
    ids: Sequence[str], vectors: Vectors, metadata: Sequence[bytes | None], params: IndexParams
) -> Batch:
    """Check a whole batch against `params` and drop all but the last of each duplicated id.

    `vectors` is float32 (n, dimension).  Raises `Invalid` naming `items[j]`; nothing has changed then.
    """
    if not ids:
        raise Invalid("no items: send at least one item in `items`")
    if len(ids) > BATCH_ITEMS_MAX:
        raise Invalid(f"too many items in one batch: at most {BATCH_ITEMS_MAX}. items=`{len(ids)}`")
    if vectors.ndim != 2 or vectors.shape != (len(ids), params.dimension):
        raise Invalid(
            f"vectors must have {params.dimension} dimensions each, as index {params.name} has. "
            f"shape=`{tuple(vectors.shape)}`"
        )
    for j, item_id in enumerate(ids):
        if not item_id:
            raise Invalid(f"items[{j}].id is empty")
        if len(item_id) > ID_BYTES_MAX // 4 and len(item_id.encode()) > ID_BYTES_MAX:
            raise Invalid(f"items[{j}].id is longer than {ID_BYTES_MAX} bytes")
    for j, value in enumerate(metadata):
        if value is not None and len(value) > METADATA_BYTES_MAX:
            raise Invalid(
                f"items[{j}].metadata is larger than {METADATA_BYTES_MAX} bytes. bytes=`{len(value)}`"
            )
    check_vectors(vectors, params.distance, "items[{}].vector")
    if len(set(ids)) == len(ids):
        return Batch(tuple(ids), np.ascontiguousarray(vectors, dtype=np.float32), tuple(metadata))
    last = sorted({item_id: j for j, item_id in enumerate(ids)}.values())
    return Batch(
        tuple(ids[j] for j in last),
        np.ascontiguousarray(vectors[last], dtype=np.float32),
        tuple(metadata[j] for j in last),
    )


def check_vectors(vectors: Vectors, distance: Distance, label: str = "vectors[{}]") -> None:
    """Refuse NaN and infinities, and under cosine vectors without a usable norm.

    `label` names row j in the message.  Raises `Invalid`.
    """
    if len(vectors) == 1:  # a search: one dot product answers when nothing is wrong
        square = float(np.dot(vectors[0], vectors[0]))
        if TINY_SQUARED_NORM <= square < math.inf:
            return
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    for j in np.flatnonzero(~np.isfinite(squares))[:1]:
        raise Invalid(f"{label.format(int(j))} holds a NaN or an infinity")
    if distance is Distance.COSINE:
        for j in np.flatnonzero(squares < TINY_SQUARED_NORM)[:1]:
            raise Invalid(f"{label.format(int(j))} has norm zero; cosine distance needs a direction")


TINY_SQUARED_NORM = float(np.finfo(np.float32).tiny)
"""Below the smallest normal float32 the inverse norm is no longer a float32."""


class Consistency(enum.StrEnum):
    """What a read must see."""

    STRONG = "strong"
    """Every write acknowledged before the read began, on any replica."""
    EVENTUAL = "eventual"
    """What this process has applied; no round trip to the store."""


@dataclass(frozen=True, slots=True)
class Position:
    """How much of an index's log a reader has seen: one sequence number per shard."""

    incarnation: UUID
    sequences: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.incarnation.hex}:{'.'.join(map(str, self.sequences))}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read what `str()` wrote.  Raises `Invalid`."""
        incarnation, _, sequences = text.partition(":")
        try:
            return cls(UUID(hex=incarnation), tuple(int(part) for part in sequences.split(".")))
        except ValueError as error:
            raise Invalid(
                f"not a position; give back a Lakehouse-Position header. position=`{text}`"
            ) from error


@dataclass(frozen=True, slots=True)
class Item:
    """One stored item; `vector` is float32 (dimension,), bit for bit as it was added."""

    id: str
    vector: npt.NDArray[np.float32]
    metadata: bytes
    version: int


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result; `metadata` is JSON text, empty for none."""

    id: str
    distance: float
    metadata: bytes = b""
    vector: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """What a search did: the planner's report."""

    strategy: str
    """`graph`, `exact` (everything), `gather` (only the rows that match), `graph+exact` or `empty`."""
    matched: int | None = None
    """Live rows the filter matches; None without a filter."""
    ef: int = 0
    visited: int = 0
    """Distances computed, over all queries of the call."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Hits per query, nearest first."""

    hits: tuple[tuple[Hit, ...], ...]
    plan: SearchPlan
    position: Position | None = None
    stale_s: float = 0.0
    """Seconds since this process last knew it had everything; 0 when it does."""


K_DEFAULT = 10
K_MAX = 1_000


def clamped_k(k: int | None) -> int:
    """The contract's k: absent or ≤ 0 is 10, above 1000 is 1000."""
    if k is None or k <= 0:
        return K_DEFAULT
    return min(k, K_MAX)


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What a write did, and the position at which a read sees it."""

    added: int = 0
    """Items in the batch after the last of each duplicated id was kept (upsert), or new ones (add-if-absent)."""
    skipped: int = 0
    deleted: int = 0
    length: int = 0
    position: Position | None = None
    replayed: bool = False
    """True when an earlier request with the same idempotency key had already done it."""


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did; `failed` items stay in source and `first_error` says why."""

    merged: int = 0
    skipped_already_present: int = 0
    failed: int = 0
    length_dest: int = 0
    length_source: int = 0
    first_error: str | None = None
    position: Position | None = field(default=None, compare=False)
