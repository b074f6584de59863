"""An index as it was at one moment: search, read and write it out from any thread while the index moves on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from lakehouse.core.errors import Invalid
from lakehouse.core.lhv1 import Section
from lakehouse.core.types import Hit, IndexParams, Item, SearchPlan, SearchResult, Vectors
from lakehouse.index import columns, kernels, planner, sections
from lakehouse.index.arena import Arena
from lakehouse.index.build import ViewPart, gathered, versions_of
from lakehouse.index.kernels import Bits, Source, Sources, bit_count, words
from lakehouse.index.predicate import Predicate
from lakehouse.index.segment import Content, Floats, Segment
from lakehouse.index.settings import IndexSettings

ROW_BITS = 32
"""A place is part serial << 32 | row."""
ROW_MASK = (1 << ROW_BITS) - 1
CHUNK_ROWS = 1_024
PREPARED_MAX = 64
SECONDS_PER_FLOAT, SECONDS_PER_DISTANCE, SECONDS_PER_DOCUMENT, SECONDS_PER_HIT = 1e-10, 1e-8, 4e-6, 1.5e-6
"""Measured on one core at 2.6 GHz with AVX-512; an estimate decides where to run, not whether."""


@dataclass(frozen=True, slots=True, eq=False)
class Chunk:
    """Some live items, columnar."""

    ids: list[str]
    vectors: Vectors
    metadata: list[bytes]
    versions: list[int]


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """How to search: packed for the kernel, with what turns its answer into items."""

    sources: Sources
    owners: tuple["_Owner", ...]
    strategy: str
    matched: int | None
    matching: int
    """Live rows that may be returned."""
    ef: int
    cost: float


_Owner = tuple[Callable[[int], str], Callable[[int], bytes], Callable[[int], Floats], int]
"""Who knows the rows of a source, its id, metadata and vector readers, and the row the source starts at."""


class IndexView:
    """The live items of an index, frozen."""

    def __init__(
        self,
        params: IndexParams,
        settings: IndexSettings,
        parts: tuple[ViewPart, ...],
        where: Mapping[str, int],
    ) -> None:
        self.params = params
        self._settings = settings
        self._parts = parts
        self._by_serial = {part.serial: part for part in parts}
        self._where = where
        """The index's own map, which moves on: a hint."""
        self._size = sum(part.live for part in parts)
        self._prepared: dict[tuple[int, str | None, bool], _Prepared] = {}

    def __len__(self) -> int:
        return self._size

    # ---- searching

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        ef: int | None = None,
        predicate: Predicate | None = None,
        exact: bool = False,
        include_metadata: bool = True,
        include_vectors: bool = False,
    ) -> SearchResult:
        """The k nearest items of each query.  Raises `Invalid` for a wrong dimension or a filter on unknown fields."""
        if queries.ndim != 2 or queries.shape[1] != self.params.dimension:
            raise Invalid(
                f"queries must have {self.params.dimension} dimensions, as index {self.params.name} has. "
                f"shape=`{tuple(queries.shape)}`"
            )
        how = self._how(max(ef or self.params.ef_search, k), predicate, exact)
        limit = min(k, how.matching)
        if limit < 1:
            return SearchResult(((),) * len(queries), SearchPlan("empty", how.matched))
        if queries.dtype != np.float32 or not queries.flags.c_contiguous:
            queries = np.ascontiguousarray(queries, np.float32)
        answer = kernels.search(how.sources, self.params.distance, queries, limit)
        hits = []
        for distances, found in zip(answer.distances, answer.hits, strict=True):
            hits.append(_hits(how.owners, distances, found, include_metadata, include_vectors))
        strategy = "graph+exact" if answer.gave_up else how.strategy
        return SearchResult(tuple(hits), SearchPlan(strategy, how.matched, how.ef, answer.visited))

    def count(self, predicate: Predicate | None) -> int:
        """Live items that match."""
        if predicate is None:
            return self._size
        return sum(self._matched(part, mask) for part, mask in self.masks(predicate))

    def estimated_cost_s(self, queries: int, k: int, predicate: Predicate | None) -> float:
        """Seconds of one core that a search would take, roughly."""
        unread = 0
        if predicate is not None:
            unread = sum(
                part.content.size
                for part in self._parts
                if not part.content.columns.is_ready(predicate, part.content.size)
            )
        if unread > CHUNK_ROWS:
            return unread * SECONDS_PER_DOCUMENT
        try:
            how = self._how(max(self.params.ef_search, k), predicate, exact=False)
        except Invalid:
            return 0.0  # the search itself will say so
        each = SECONDS_PER_DISTANCE + SECONDS_PER_FLOAT * self.params.dimension
        return queries * (how.cost * each + min(k, how.matching) * SECONDS_PER_HIT)

    def masks(self, predicate: Predicate) -> list[tuple[ViewPart, Bits]]:
        """Per part the rows, dead ones included, that match.  Raises `Invalid` for unknown fields."""
        if predicate.paths and not self._check_fields(predicate):
            return [(part, np.zeros(words(part.content.size), np.uint64)) for part in self._parts]
        return [(part, part.content.columns.mask(predicate, part.content.size)) for part in self._parts]

    def _check_fields(self, predicate: Predicate) -> bool:
        """Whether any row can match.  Raises `Invalid` for unknown fields."""
        schema: dict[tuple[str, ...], int] = {}
        complete = True
        for part in self._parts:
            fields, overflowed = part.content.columns.schema(part.content.size)
            complete &= not overflowed
            for path, types in fields.items():
                schema[path] = schema.get(path, 0) | types
        if not schema:  # no item has metadata
            return predicate.by_id
        columns.check(predicate, schema, complete=complete)
        return True

    @staticmethod
    def _matched(part: ViewPart, mask: Bits) -> int:
        return bit_count(mask & ~part.dead[: len(mask)]) if part.dead_count else bit_count(mask)

    def _how(self, ef: int, predicate: Predicate | None, exact: bool) -> _Prepared:
        key = (ef, None if predicate is None else predicate.text, exact)
        how = self._prepared.get(key)
        if how is None:
            how = self._prepare(ef, predicate, exact)
            if len(self._prepared) >= PREPARED_MAX:
                self._prepared.clear()
            self._prepared[key] = how
        return how

    def _prepare(self, ef: int, predicate: Predicate | None, exact: bool) -> _Prepared:
        masked: Sequence[tuple[ViewPart, Bits | None]]
        masked = [(part, None) for part in self._parts] if predicate is None else self.masks(predicate)
        sources: list[Source] = []
        owners: list[_Owner] = []
        cost, total = 0.0, 0
        walks = scans = 0
        for part, mask in masked:
            matched = part.live if mask is None else self._matched(part, mask)
            total += matched
            if not matched:
                continue
            choice = planner.choose(
                part.content.size,
                matched,
                ef,
                None if exact else _shape(part.content),
                filtered=mask is not None,
                settings=self._settings,
            )
            cost += choice.cost
            walks, scans = walks + choice.walk, scans + (not choice.walk)
            for source, start in _sources(part, mask, matched, choice):
                sources.append(source)
                owners.append((part.content.id, part.content.metadata, part.content.vector, start))
        strategy = (
            "graph+exact" if walks and scans else "graph" if walks else "gather" if predicate else "exact"
        )
        return _Prepared(
            Sources(sources),
            tuple(owners),
            strategy if total else "empty",
            None if predicate is None else total,
            total,
            ef if walks else 0,
            cost,
        )

    # ---- reading

    def item(self, item_id: str) -> Item | None:
        """One item as it was."""
        place = self._where.get(item_id)
        if place is not None:
            part = self._by_serial.get(place >> ROW_BITS)
            row = place & ROW_MASK
            if part is not None and row < part.content.size and not _is_dead(part, row):
                return _item(part, row)
        return self._item_by_scan(item_id)

    def _item_by_scan(self, item_id: str) -> Item | None:
        # The index has moved on since; what it replaced is still here, at a place nobody remembers.
        for part in self._parts:
            content = part.content
            if isinstance(content, Segment):
                rows = np.flatnonzero(
                    pc.equal(content.rows.ids, item_id).to_numpy(zero_copy_only=False)
                ).tolist()
            else:
                rows = [row for row, other in enumerate(content.ids) if other == item_id]
            for row in rows:
                if not _is_dead(part, row):
                    return _item(part, row)
        return None

    def items(self, predicate: Predicate | None = None) -> Iterator[Chunk]:
        """All items, or those that match, a thousand at a time, in no particular order."""
        masks = {} if predicate is None else {part.serial: mask for part, mask in self.masks(predicate)}
        for part in self._parts:
            rows = part.live_rows()
            if predicate is not None:
                mask = masks[part.serial]
                rows = rows[
                    (mask[rows >> 6] >> (rows & 63).astype(np.uint64) & np.uint64(1)).astype(np.bool_)
                ]
            for start in range(0, len(rows), CHUNK_ROWS):
                picked = rows[start : start + CHUNK_ROWS].tolist()
                content = part.content
                yield Chunk(
                    [content.id(row) for row in picked],
                    np.stack([content.vector(row) for row in picked]),
                    [content.metadata(row) for row in picked],
                    part.versions[picked].tolist(),
                )

    def vectors_at(self, ordinals: Sequence[int]) -> Vectors:
        """The vectors of the live items at these ascending places in the order of `items`: float32 (n, dimension)."""
        found: list[Vectors] = []
        wanted = np.asarray(ordinals, dtype=np.int64)
        for part in self._parts:
            rows = part.live_rows()
            found += [part.content.vector(int(row))[None] for row in rows[wanted[wanted < len(rows)]]]
            wanted = wanted[wanted >= len(rows)] - len(rows)
        return np.concatenate(found) if found else np.empty((0, self.params.dimension), np.float32)

    def sections(self) -> list[Section]:
        """All of it, for a snapshot: segments as they lie in memory, the tail as one more without a graph."""
        found: list[Section] = []
        number = 0
        tails = [part for part in self._parts if not isinstance(part.content, Segment) and part.live]
        for part in self._parts:
            if isinstance(part.content, Segment) and part.live:
                found += sections.write(part.content, part.dead, part.versions, number)
                number += 1
        if tails:
            flat = gathered(tails, self.params, self._settings, Arena(None))
            found += sections.write(flat, np.zeros(0, np.uint64), versions_of(tails), number)
        return found


def _shape(content: Content) -> planner.Graph | None:
    return None if content.graph is None else planner.Graph(content.graph.m, content.codes is not None)


def _sources(
    part: ViewPart, mask: Bits | None, matched: int, choice: planner.Choice
) -> Iterator[tuple[Source, int]]:
    content = part.content
    for stretch in content.stretches():
        first = stretch.start // 64
        last = first + words(stretch.rows)
        yield (
            Source(
                stretch.vectors,
                stretch.inverse_norms,
                stretch.rows,
                matched,
                dead=part.dead[first:last] if part.dead_count else None,
                allowed=None if mask is None else mask[first:last],
                links=content.graph if choice.walk else None,
                stragglers=content.stragglers if choice.walk else None,
                codes=content.codes if choice.walk else None,
                ef=choice.ef,
                visits_max=choice.visits_max,
            ),
            stretch.start,
        )


def _hits(
    owners: Sequence[_Owner],
    distances: Sequence[float],
    found: Sequence[int],
    include_metadata: bool,
    include_vectors: bool,
) -> tuple[Hit, ...]:
    hits = []
    for distance, place in zip(distances, found, strict=True):
        id_of, metadata_of, vector_of, start = owners[place >> ROW_BITS]
        row = start + (place & ROW_MASK)
        hits.append(
            Hit(
                id_of(row),
                distance,
                metadata_of(row) if include_metadata else b"",
                vector_of(row) if include_vectors else None,
            )
        )
    return tuple(hits)


def _is_dead(part: ViewPart, row: int) -> bool:
    return bool(int(part.dead[row >> 6]) >> (row & 63) & 1)


def _item(part: ViewPart, row: int) -> Item:
    content = part.content
    return Item(content.id(row), content.vector(row), content.metadata(row), int(part.versions[row]))
