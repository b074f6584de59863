"""A segment is a set of rows that never changes: vectors, ids, metadata, and a graph over them when it is worth one.

Which of its rows are live, and at which version, lies beside it in `Marks`, the only part that writes change.
What this does not do: build graphs (`engine`) or choose how to search (`planner`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lakehouse.core.types import Distance, Vectors
from lakehouse.index.columns import Columns
from lakehouse.index.kernels import Bits, Codes, Links, Rows32, words
from lakehouse.index.rows import Rows
from lakehouse.index.settings import IndexSettings

Floats = npt.NDArray[np.float32]
Versions = npt.NDArray[np.uint64]
NO_ROWS: Rows32 = np.zeros(0, np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """Rows whose vectors lie together: `vectors[i]` is row `start + i`; `start` is a multiple of 64."""

    start: int
    rows: int
    vectors: Vectors
    inverse_norms: Floats


class Content(Protocol):
    """What a segment and a tail have in common, for whoever reads rows."""

    @property
    def size(self) -> int:
        """Rows, dead ones included."""
        ...

    @property
    def columns(self) -> Columns: ...

    @property
    def graph(self) -> Links | None: ...

    @property
    def stragglers(self) -> Rows32:
        """Rows that the graph does not find."""
        ...

    @property
    def codes(self) -> Codes | None:
        """The vectors in 8 bits, to walk the graph by."""
        ...

    def stretches(self) -> Sequence[Stretch]: ...

    def id(self, row: int) -> str: ...

    def metadata(self, row: int) -> bytes: ...

    def vector(self, row: int) -> Floats:
        """A copy."""
        ...


class Segment:
    """Rows 0 … n − 1 in flat arrays."""

    __slots__ = (
        "_settings",
        "codes",
        "columns",
        "graph",
        "id",
        "inverse_norms",
        "metadata",
        "rows",
        "size",
        "stragglers",
        "vectors",
    )

    def __init__(
        self,
        vectors: Vectors,
        inverse_norms: Floats,
        rows: Rows,
        settings: IndexSettings,
        graph: Links | None = None,
        stragglers: Rows32 = NO_ROWS,
        codes: Codes | None = None,
    ) -> None:
        self._settings = settings
        self.size = rows.size
        self.vectors = vectors
        """The originals, bit for bit."""
        self.inverse_norms = inverse_norms
        self.rows = rows
        self.id, self.metadata = rows.id, rows.metadata
        self.graph = graph
        self.stragglers = stragglers
        self.codes = codes
        self.columns = Columns(
            lambda start, stop: rows.documents.slice(start, stop - start),
            64 * words(max(1, self.size)),
            ids=lambda start, stop: rows.ids.slice(start, stop - start),
            predicates_max=settings.predicates_max,
            columns_max=settings.columns_max,
        )

    def with_graph(self, graph: Links, codes: Codes | None) -> "Segment":
        return Segment(self.vectors, self.inverse_norms, self.rows, self._settings, graph, NO_ROWS, codes)

    def with_stragglers(self, stragglers: Rows32) -> "Segment":
        return Segment(
            self.vectors, self.inverse_norms, self.rows, self._settings, self.graph, stragglers, self.codes
        )

    def stretches(self) -> Sequence[Stretch]:
        return (Stretch(0, self.size, self.vectors, self.inverse_norms),)

    def vector(self, row: int) -> Floats:
        return np.array(self.vectors[row])


def inverse_norms(vectors: Vectors, distance: Distance) -> Floats:
    """1 / |v| per row under cosine, else nothing."""
    if distance is not Distance.COSINE:
        return np.zeros(0, np.float32)
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1.0 / np.sqrt(squares)
        return np.where(squares > 0, inverse, 0.0).astype(np.float32)


class Marks:
    """Which rows are dead, and the version of each: copied before a write when a view still reads them."""

    __slots__ = ("_dead", "_dead_shared", "_versions", "_versions_shared", "dead_count", "size")

    def __init__(self, size: int, versions: Versions, dead: Bits | None = None, dead_count: int = 0) -> None:
        self.size = size
        self._versions = versions
        self._versions_shared = True
        self._dead: Bits = np.zeros(words(len(versions)), np.uint64) if dead is None else dead
        self._dead_shared = dead is not None
        self.dead_count = dead_count

    @property
    def live(self) -> int:
        return self.size - self.dead_count

    def share(self) -> tuple[Bits, Versions]:
        """Both, as they are now and will stay."""
        self._dead_shared = self._versions_shared = True
        return self._dead, self._versions

    def version(self, row: int) -> int:
        return int(self._versions[row])

    def kill(self, row: int) -> None:
        """Row `row`, live until now, is dead."""
        if self._dead_shared:
            self._dead, self._dead_shared = self._dead.copy(), False
        self._dead[row >> 6] |= np.uint64(1 << (row & 63))
        self.dead_count += 1

    def set_version(self, row: int, version: int) -> None:
        if self._versions_shared:
            self._versions, self._versions_shared = self._versions.copy(), False
        self._versions[row] = version

    def append(self, first_version: int, count: int) -> None:
        """New live rows at the end; what a view shares ends before them."""
        end = self.size + count
        if end > len(self._versions):
            capacity = max(1024, 64 * words(end + end // 2))
            versions, dead = np.zeros(capacity, np.uint64), np.zeros(words(capacity), np.uint64)
            versions[: self.size], dead[: words(self.size)] = (
                self._versions[: self.size],
                self._dead[: words(self.size)],
            )
            self._versions, self._dead = versions, dead
            self._versions_shared = self._dead_shared = False
        self._versions[self.size : end] = np.arange(first_version, first_version + count, dtype=np.uint64)
        self.size = end


def dead_rows(dead: Bits, size: int) -> npt.NDArray[np.bool_]:
    """A bitmap's first `size` rows as flags."""
    flags = np.unpackbits(np.ascontiguousarray(dead[: words(size)], "<u8").view(np.uint8), bitorder="little")
    return flags[:size].astype(np.bool_)


def bitmap(flags: npt.NDArray[np.bool_]) -> Bits:
    """Flags as a bitmap."""
    whole = np.zeros(words(len(flags)) * 8, np.uint8)
    packed = np.packbits(flags, bitorder="little")
    whole[: len(packed)] = packed
    return whole.view("<u8").astype(np.uint64, copy=False)
