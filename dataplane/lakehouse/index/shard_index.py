"""The index of one shard: immutable graph segments, one exact tail, and a map from ids to rows.

A write appends to the tail and marks the row it replaces dead; nothing is changed in place.  `maintenance` says
what is worth rebuilding, a `BuildPlan` does so in a worker, `install` swaps it in.  One thread at a time, except
for views and plans, which are values.  What this does not do: durability (`lakehouse.shard`) and concurrency.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from lakehouse.core.errors import Corrupt, Invalid
from lakehouse.core.lhv1 import Section
from lakehouse.core.types import Batch, IndexParams, Item, SearchResult, Vectors
from lakehouse.index import sections as codec
from lakehouse.index import tiers
from lakehouse.index.arena import Arena
from lakehouse.index.build import BuildPlan, Built, ViewPart
from lakehouse.index.engine import Engine, HnswlibEngine
from lakehouse.index.predicate import Predicate
from lakehouse.index.segment import Marks, Segment, bitmap, dead_rows
from lakehouse.index.settings import IndexSettings
from lakehouse.index.tail import Tail, TailView
from lakehouse.index.view import ROW_BITS, ROW_MASK, IndexView

__all__ = ["Applied", "BuildPlan", "Built", "IndexStats", "IndexView", "ShardIndex"]


@dataclass(frozen=True, slots=True)
class Applied:
    """What a write did."""

    added: int = 0
    """Ids that were not there."""
    updated: int = 0
    """Ids whose content was replaced."""
    skipped: int = 0
    """Ids that were there and kept their content."""


@dataclass(frozen=True, slots=True)
class IndexStats:
    """What an index holds; sizes in bytes."""

    live: int
    dead: int
    segments: int
    """Graph segments."""
    graph_rows: int
    """Live rows in graph segments."""
    exact_rows: int
    """Live rows without a graph: the tail, and what waits for one."""
    stragglers: int
    """Rows a graph does not find, which every search measures."""
    vector_bytes: int
    graph_bytes: int
    metadata_bytes: int


class _Part:
    """Rows, and which are live; the last part is the tail."""

    __slots__ = ("content", "marks", "serial")

    def __init__(self, serial: int, content: Segment | TailView | Tail, marks: Marks) -> None:
        self.serial = serial
        self.content = content
        self.marks = marks

    def size(self) -> tiers.PartSize:
        graph = isinstance(self.content, Segment) and self.content.graph is not None
        return tiers.PartSize(self.serial, self.marks.size, self.marks.live, graph)

    def view(self) -> ViewPart:
        content = self.content.view() if isinstance(self.content, Tail) else self.content
        dead, versions = self.marks.share()
        return ViewPart(self.serial, content, dead, self.marks.dead_count, versions)


class ShardIndex:
    """Vectors, ids and metadata of one shard, in memory."""

    def __init__(
        self,
        params: IndexParams,
        settings: IndexSettings = IndexSettings(),  # noqa: B008 - frozen
        scratch: Path | None = None,
        *,
        engine: Engine | None = None,
    ) -> None:
        """`scratch` is a directory for mapped files, which have no names; None keeps everything in memory."""
        self._params = params
        self._settings = settings
        self._arena = Arena(scratch)
        self._engine: Engine = engine or HnswlibEngine()
        self._parts: dict[int, _Part] = {}
        self._where: dict[str, int] = {}
        self._serial = 0
        self._view: IndexView | None = None
        self._sorted: list[str] | None = None
        self._unsorted: list[str] = []
        self._new_tail()

    @property
    def params(self) -> IndexParams:
        return self._params

    def with_params(self, params: IndexParams) -> None:
        """Search and build by `params` from now on; dimension and distance stay.  Raises `Invalid`."""
        if (params.dimension, params.distance) != (self._params.dimension, self._params.distance):
            raise Invalid("the dimension and distance of an index never change")
        self._params = params
        self._view = None

    def __len__(self) -> int:
        return len(self._where)

    # ---- writing

    def upsert(self, batch: Batch, first_version: int) -> Applied:
        """Write every item; item j has version `first_version + j`."""
        places = list(map(self._where.get, batch.ids))
        documents = [
            document if document is not None else b"" if place is None else self._metadata(place)
            for document, place in zip(batch.metadata, places, strict=True)
        ]
        self._append(batch.ids, batch.vectors, documents, first_version)
        added = [item_id for item_id, place in zip(batch.ids, places, strict=True) if place is None]
        for place in places:
            if place is not None:
                self._parts[place >> ROW_BITS].marks.kill(place & ROW_MASK)
        self._remember(added)
        return Applied(added=len(added), updated=len(places) - len(added))

    def put_back(self, batch: Batch, versions: Sequence[int]) -> None:
        """Write new items with the versions they had elsewhere."""
        first = self._append(batch.ids, batch.vectors, [document or b"" for document in batch.metadata], 0)
        for at, version in enumerate(versions):
            self._tail_part.marks.set_version(first + at, version)
        self._remember(batch.ids)

    def add_if_absent(self, batch: Batch, first_version: int) -> Applied:
        """Write the items whose id is new; of the others only the version becomes `first_version + j`."""
        new: list[int] = []
        for j, item_id in enumerate(batch.ids):
            place = self._where.get(item_id)
            if place is None:
                new.append(j)
            else:
                self._parts[place >> ROW_BITS].marks.set_version(place & ROW_MASK, first_version + j)
        self._view = None
        if new:
            ids = [batch.ids[j] for j in new]
            first = self._append(ids, batch.vectors[new], [batch.metadata[j] or b"" for j in new], 0)
            for at, j in enumerate(new):
                self._tail_part.marks.set_version(first + at, first_version + j)
            self._remember(ids)
        return Applied(added=len(new), skipped=len(batch) - len(new))

    def delete(self, ids: Sequence[str]) -> int:
        """Remove items; how many were there."""
        deleted = 0
        for item_id in ids:
            place = self._where.pop(item_id, None)
            if place is not None:
                self._parts[place >> ROW_BITS].marks.kill(place & ROW_MASK)
                deleted += 1
        if deleted:
            self._view = None
        return deleted

    def delete_if_version(self, ids: Sequence[str], versions: Sequence[int]) -> int:
        """Remove items that still have the version named; how many did."""
        return self.delete(
            [
                item_id
                for item_id, version in zip(ids, versions, strict=True)
                if self.version(item_id) == version
            ]
        )

    def _append(
        self, ids: Sequence[str], vectors: Vectors, documents: Sequence[bytes], first_version: int
    ) -> int:
        part = self._tail_part
        first = self._tail.size
        self._tail.append(ids, vectors, documents)
        part.marks.append(first_version, len(ids))
        base = part.serial << ROW_BITS | first
        self._where.update(zip(ids, range(base, base + len(ids)), strict=True))
        self._view = None
        return first

    def _remember(self, added: Sequence[str]) -> None:
        if self._sorted is not None:
            self._unsorted.extend(added)

    def _new_tail(self) -> None:
        self._tail = Tail(self._params.dimension, self._params.distance, self._arena, self._settings)
        self._tail_part = self._add_part(self._tail, Marks(0, np.zeros(0, np.uint64)))

    def _add_part(self, content: Segment | Tail, marks: Marks) -> _Part:
        part = _Part(self._serial, content, marks)
        self._parts[part.serial] = part
        self._serial += 1
        return part

    # ---- reading

    def version(self, item_id: str) -> int | None:
        place = self._where.get(item_id)
        return None if place is None else self._parts[place >> ROW_BITS].marks.version(place & ROW_MASK)

    def item(self, item_id: str) -> Item | None:
        place = self._where.get(item_id)
        if place is None:
            return None
        part, row = self._parts[place >> ROW_BITS], place & ROW_MASK
        return Item(item_id, part.content.vector(row), part.content.metadata(row), part.marks.version(row))

    def _metadata(self, place: int) -> bytes:
        return self._parts[place >> ROW_BITS].content.metadata(place & ROW_MASK)

    def scroll(
        self, after: str | None, limit: int, predicate: Predicate | None = None
    ) -> tuple[list[Item], str | None]:
        """Items in order of their ids' code points, `limit` at a time; the cursor is None after the last."""
        ids = self._sorted_ids()
        masks = None
        if predicate is not None:
            masks = {part.serial: mask for part, mask in self.view().masks(predicate)}
        found: list[Item] = []
        last = after
        for at in range(0 if after is None else bisect.bisect_right(ids, after), len(ids)):
            item_id = ids[at]
            place = self._where.get(item_id)
            if place is None or item_id == last:
                continue
            if masks is not None:
                row = place & ROW_MASK
                if not int(masks[place >> ROW_BITS][row >> 6]) >> (row & 63) & 1:
                    continue
            if len(found) == limit:
                return found, last
            item = self.item(item_id)
            assert item is not None
            found.append(item)
            last = item_id
        return found, None

    def _sorted_ids(self) -> list[str]:
        """Every live id in order, with some that are gone."""
        if self._sorted is None or len(self._sorted) > 2 * len(self._where) + 1024:
            self._sorted = sorted(self._where)
        elif self._unsorted:
            self._sorted.extend(sorted(self._unsorted))
            self._sorted.sort()  # two sorted runs: linear
        self._unsorted = []
        return self._sorted

    def view(self) -> IndexView:
        """The index as it is now."""
        if self._view is None:
            parts = tuple(part.view() for part in self._parts.values() if part.marks.size)
            self._view = IndexView(self._params, self._settings, parts, self._where)
        return self._view

    def count(self, predicate: Predicate | None) -> int:
        return len(self._where) if predicate is None else self.view().count(predicate)

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
        """See `IndexView.search`."""
        return self.view().search(
            queries,
            k,
            ef=ef,
            predicate=predicate,
            exact=exact,
            include_metadata=include_metadata,
            include_vectors=include_vectors,
        )

    def estimated_cost_s(self, queries: int, k: int, predicate: Predicate | None = None) -> float:
        """Seconds of one core that a search would take, roughly: to choose between the loop and a worker."""
        return self.view().estimated_cost_s(queries, k, predicate)

    def stats(self) -> IndexStats:
        parts = list(self._parts.values())
        segments = [part.content for part in parts if isinstance(part.content, Segment)]
        graphs = [segment.graph for segment in segments if segment.graph is not None]
        sizes = [part.size() for part in parts]
        tails = [part.content for part in parts if not isinstance(part.content, Segment)]
        return IndexStats(
            live=len(self._where),
            dead=sum(part.marks.dead_count for part in parts),
            segments=len(graphs),
            graph_rows=sum(size.live for size in sizes if size.has_graph),
            exact_rows=sum(size.live for size in sizes if not size.has_graph),
            stragglers=sum(len(segment.stragglers) for segment in segments),
            vector_bytes=4 * self._params.dimension * sum(part.marks.size for part in parts),
            graph_bytes=sum(g.level0.nbytes + g.upper.nbytes + g.upper_offsets.nbytes for g in graphs),
            metadata_bytes=sum(segment.rows.metadata_bytes for segment in segments)
            + sum(tail.metadata_bytes for tail in tails),
        )

    # ---- maintaining

    def maintenance(self, *, idle: bool) -> BuildPlan | None:
        """What is worth building now, or None.  A plan may be dropped: the next call offers it again."""
        for part in [part for part in self._parts.values() if not part.marks.live and part.marks.size]:
            self._drop(part)
        sizes = [part.size() for part in self._parts.values() if part.marks.size]
        chosen = tiers.choose(sizes, idle=idle, settings=self._settings)
        if not chosen:
            return None
        if self._tail_part.serial in chosen:
            self._tail_part.content = self._tail.view()
            self._new_tail()
        parts = tuple(self._parts[serial].view() for serial in chosen)
        return BuildPlan(parts, self._params, self._settings, self._arena, self._engine)

    def install(self, built: Built) -> None:
        """Swap a built segment in; rows that died meanwhile are dead in it.  Does nothing if its parts are gone."""
        if any(serial not in self._parts for serial, _ in built.taken):
            return
        if built.segment is not None:
            sources = [(self._parts[serial].view(), rows) for serial, rows in built.taken]
            died = np.concatenate([dead_rows(view.dead, view.content.size)[rows] for view, rows in sources])
            versions = np.concatenate([view.versions[rows] for view, rows in sources])
            count = int(died.sum())
            part = self._add_part(built.segment, Marks(len(died), versions, bitmap(died), count))
            self._move(built.ids, part.serial << ROW_BITS, np.flatnonzero(died).tolist())
        for serial, _ in built.taken:
            del self._parts[serial]
        self._view = None

    def _move(self, ids: list[str], base: int, died: Sequence[int]) -> None:
        elsewhere = [(ids[row], self._where.get(ids[row])) for row in died]
        self._where.update(zip(ids, range(base, base + len(ids)), strict=True))
        for item_id, place in elsewhere:
            if place is None:
                del self._where[item_id]
            else:
                self._where[item_id] = place

    def _drop(self, part: _Part) -> None:
        del self._parts[part.serial]
        if part is self._tail_part:
            self._new_tail()
        self._view = None

    # ---- restoring

    @classmethod
    def restore(
        cls, params: IndexParams, settings: IndexSettings, scratch: Path | None, sections: Sequence[Section]
    ) -> "ShardIndex":
        """An index from what `IndexView.sections` gave; keeps the memory it is given.  Raises `Corrupt`."""
        index = cls(params, settings, scratch)
        ordered = sorted(sections, key=lambda section: section.segment)
        for _, group in groupby(ordered, key=lambda section: section.segment):
            segment, marks = codec.read(list(group), params, settings, index._arena)
            part = index._add_part(segment, marks)
            ids = segment.rows.ids.to_pylist()
            live = np.flatnonzero(~dead_rows(marks.share()[0], segment.size)).tolist()
            base = part.serial << ROW_BITS
            before = len(index._where)
            index._where.update((ids[row], base + row) for row in live)
            if len(index._where) != before + len(live):
                raise Corrupt("two rows of a snapshot have one id")
        return index

    def with_ef_search(self, ef_search: int) -> None:
        """Change what a search keeps by default."""
        self.with_params(replace(self._params, ef_search=ef_search))
