"""Building a segment out of parts: copy the live rows, let the engine link them, probe every one of them.

A plan touches only what never changes, so it runs in a worker while writes go on; what died meanwhile is found when
the result is installed.  What this does not do: decide what to build (`tiers`).
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lakehouse.core.types import IndexParams, Vectors
from lakehouse.index import kernels
from lakehouse.index.arena import Arena
from lakehouse.index.engine import Engine, GraphParams, check
from lakehouse.index.kernels import Answer, Bits, Codes, Links, Rows32, Source, Sources
from lakehouse.index.rows import Rows
from lakehouse.index.segment import Content, Segment, Versions, dead_rows, inverse_norms
from lakehouse.index.settings import IndexSettings
from lakehouse.index.tail import TailView

PROBE_ROWS = 8_192
"""Rows probed in one call, about a second of work."""
LOSS_SAMPLES, LOSS_EF, LOSS_K = 256, 64, 10


@dataclass(frozen=True, slots=True, eq=False)
class ViewPart:
    """A part of an index as it was: its rows, and which were dead."""

    serial: int
    content: Segment | TailView
    dead: Bits
    dead_count: int
    versions: Versions

    @property
    def live(self) -> int:
        return self.content.size - self.dead_count

    def live_rows(self) -> Rows32:
        size = self.content.size
        if not self.dead_count:
            return np.arange(size, dtype=np.uint32)
        return np.flatnonzero(~dead_rows(self.dead, size)).astype(np.uint32)


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A new segment and where each of its rows came from, in order."""

    segment: Segment | None
    """None when no row was live."""
    taken: tuple[tuple[int, Rows32], ...]
    """Per source its serial and the rows taken."""
    ids: list[str]


@dataclass(frozen=True, slots=True, eq=False)
class BuildPlan:
    """What to build, from immutable parts."""

    parts: tuple[ViewPart, ...]
    params: IndexParams
    settings: IndexSettings
    arena: Arena
    engine: Engine
    stop: threading.Event = field(default_factory=threading.Event)
    """Set from anywhere to end `run` early: within about a second, so that a shutdown need not wait for a graph."""

    @property
    def rows(self) -> int:
        """Rows the new segment will have."""
        return sum(part.live for part in self.parts)

    def run(self, threads: int = 1) -> Built:
        """Build it with `threads` threads; for a worker, minutes for millions of rows.  Raises `BuildCancelled`."""
        taken = tuple((part.serial, part.live_rows()) for part in self.parts)
        if not any(len(rows) for _, rows in taken):
            return Built(None, taken, [])
        segment = gathered(self.parts, self.params, self.settings, self.arena)
        if segment.size >= self.settings.graph_rows_min:
            segment = self._linked(segment, threads)
        self._carry_columns(segment)
        kernels.trim()
        return Built(segment, taken, segment.rows.ids.to_pylist())

    def _linked(self, segment: Segment, threads: int) -> Segment:
        params = self.params
        graph = self.engine.build(
            segment.vectors,
            GraphParams(params.distance, params.m, params.ef_construction),
            self.arena,
            threads,
            self.stop,
        )
        linked = segment.with_graph(graph, rounded(segment, self.arena))
        if recall_lost(linked, params) > self.settings.code_loss_max:
            linked = segment.with_graph(graph, None)
        return linked.with_stragglers(stragglers(linked, params, self.settings, threads, self.stop))

    def _carry_columns(self, segment: Segment) -> None:
        # Filters that were in use stay as fast as they were.
        paths = {path for part in self.parts for path in part.content.columns.ready}
        if paths:
            segment.columns.prepare(sorted(paths)[: self.settings.columns_max], segment.size)


def rounded(segment: Segment, arena: Arena) -> Codes:
    """A segment's vectors in 8 bits."""
    rows, dimension = segment.vectors.shape
    codes = Codes(
        arena.zeros((rows, kernels.code_width(dimension)), np.int8), arena.zeros((rows, 2), np.float32)
    )
    kernels.round_into(codes, segment.vectors, segment.inverse_norms)
    return codes


def recall_lost(segment: Segment, params: IndexParams) -> float:
    """How much less a walk by codes finds than one by the originals, as a share of what either finds."""
    step = max(1, segment.size // LOSS_SAMPLES)
    queries = np.ascontiguousarray(segment.vectors[::step][:LOSS_SAMPLES])
    whole = Source(
        segment.vectors,
        segment.inverse_norms,
        segment.size,
        segment.size,
        links=segment.graph,
        ef=min(LOSS_EF, segment.size),
    )
    k = min(LOSS_K, segment.size)
    plain = kernels.search(Sources([whole]), params.distance, queries, k)
    coded = kernels.search(Sources([replace(whole, codes=segment.codes)]), params.distance, queries, k)
    lost = 0
    for one, other in zip(_found(plain), _found(coded), strict=True):
        # The k nearest of what both found together are the yardstick.
        nearest = sorted((one | other).items(), key=lambda hit: hit[1])[:k]
        lost += sum((row in one) - (row in other) for row, _ in nearest)
    return float(lost / (k * len(queries)))


def _found(answer: Answer) -> Iterator[dict[int, float]]:
    for hits, distances in zip(answer.hits, answer.distances, strict=True):
        yield dict(zip(hits, distances, strict=True))


def stragglers(
    segment: Segment, params: IndexParams, settings: IndexSettings, threads: int, stop: threading.Event
) -> Rows32:
    """Rows that a search for their own vector does not find; every search measures them."""
    graph = segment.graph
    assert graph is not None
    rows = np.arange(segment.size, dtype=np.uint32)
    if segment.size > settings.probe_rows_max:
        incoming = np.bincount(_neighbours(graph), minlength=segment.size)
        fewest = np.argpartition(incoming, settings.probe_rows_max)[: settings.probe_rows_max]
        rows = np.sort(fewest).astype(np.uint32)
    source = Source(
        segment.vectors,
        segment.inverse_norms,
        segment.size,
        segment.size,
        links=graph,
        codes=segment.codes,
        ef=min(settings.probe_ef, params.ef_search, segment.size),
    )
    missed = []
    for start in range(0, len(rows), PROBE_ROWS):
        check(stop)
        some = rows[start : start + PROBE_ROWS]
        missed.append(some[kernels.probe(source, params.distance, some, threads)])
    return np.concatenate(missed) if missed else rows


def _neighbours(graph: Links) -> npt.NDArray[np.uint32]:
    counts = graph.level0[:, :1]
    return np.asarray(graph.level0[:, 1:][np.arange(graph.level0.shape[1] - 1) < counts])


def gathered(
    parts: Sequence[ViewPart], params: IndexParams, settings: IndexSettings, arena: Arena
) -> Segment:
    """The live rows of all parts as one segment without a graph."""
    size = sum(part.live for part in parts)
    vectors = arena.zeros((size, params.dimension), np.float32)
    norms = inverse_norms(vectors[:0], params.distance)
    ids, documents, inverse = [], [], [norms]
    at = 0
    for part in parts:
        rows = part.live_rows()
        at = _copy_vectors(part.content, rows, vectors, at)
        inverse.append(_picked_norms(part.content, rows))
        part_ids, part_documents = _columns(part.content)
        take = pa.array(rows, pa.uint32())
        ids.append(part_ids.take(take))
        documents.append(part_documents.take(take))
    rows_here = Rows.of(pa.concat_arrays(ids), pa.concat_arrays(documents), arena)
    return Segment(vectors, arena.copy(np.concatenate(inverse)), rows_here, settings)


def versions_of(parts: Sequence[ViewPart]) -> Versions:
    """The versions of the rows that `gathered` takes, in its order."""
    return np.concatenate([part.versions[part.live_rows()] for part in parts])


def _copy_vectors(content: Content, rows: Rows32, into: Vectors, at: int) -> int:
    for stretch in content.stretches():
        low, high = np.searchsorted(rows, [stretch.start, stretch.start + stretch.rows])
        picked = rows[low:high] - stretch.start
        np.take(stretch.vectors, picked, axis=0, out=into[at : at + len(picked)], mode="clip")
        at += len(picked)
    return at


def _picked_norms(content: Content, rows: Rows32) -> npt.NDArray[np.float32]:
    norms = [stretch.inverse_norms[: stretch.rows] for stretch in content.stretches()]
    whole = np.concatenate(norms) if norms else np.zeros(0, np.float32)
    return whole[rows] if len(whole) else whole


def _columns(content: Segment | TailView) -> tuple[pa.Array, pa.Array]:
    if isinstance(content, Segment):
        return content.rows.ids, content.rows.documents
    return content.arrow()
