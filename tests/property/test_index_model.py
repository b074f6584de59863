"""A dictionary beside the index: whatever is written, rebuilt or restored, both hold the same and find the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lakehouse.core.lhv1 import Section
from lakehouse.core.types import Batch, Distance, IndexParams, Item
from lakehouse.index import predicate
from lakehouse.index.predicate import parse
from lakehouse.index.settings import IndexSettings
from lakehouse.index.shard_index import BuildPlan, IndexView, ShardIndex

DIMENSION = 5
EF = 8
TINY = IndexSettings(
    tail_rows_max=24,
    settle_rows_min=8,
    graph_rows_min=4,
    segments_max=3,
    probe_ef=EF,
    walk_cost=0.05,
    coded_walk_cost=0.05,
    predicates_max=2,
    columns_max=2,
)
"""Everything happens all the time; a walk counts as cheap, so that graphs of a dozen rows are walked."""
IDS = st.lists(st.integers(0, 79).map("i{:02}".format), min_size=1, max_size=30, unique=True)
DOCUMENTS = st.sampled_from([None, b"", b'{"n":1,"s":"x"}', b'{"n":2,"t":["x","y"]}', b'{"s":"y"}', b"[1]"])
SEEDS = st.integers(0, 2**31)
PREDICATES = {
    "n = 1": (b'{"n":1,"s":"x"}',),
    "n >= 1 AND s IS NULL": (b'{"n":2,"t":["x","y"]}',),
    "s IN ('x', 'y')": (b'{"n":1,"s":"x"}', b'{"s":"y"}'),
    "NOT n = 1": (b'{"n":2,"t":["x","y"]}',),
}
NEAR = 1e-4

Model = dict[str, Item]


def vectors(seed: int, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Some rows are alike: exact duplicates are where graphs break."""
    random = np.random.default_rng(seed)
    drawn = random.normal(size=(count, DIMENSION)).astype(np.float32)
    drawn[random.random(count) < 0.2] = 1.0
    return drawn


def exact(
    model: Model, query: np.ndarray[tuple[int], np.dtype[np.float32]], distance: Distance
) -> list[float]:
    """Every distance, nearest first."""
    stored = np.array([item.vector for item in model.values()], np.float64).reshape(-1, DIMENSION)
    asked = query.astype(np.float64)
    if distance is Distance.DOT:
        return sorted((-stored @ asked).tolist())
    if distance is Distance.EUCLIDEAN:
        return sorted(np.linalg.norm(stored - asked, axis=1).tolist())
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(asked)
    return sorted((1 - stored @ asked / norms).tolist())


def check_items(index: ShardIndex | IndexView, model: Model) -> None:
    for item_id, want in model.items():
        got = index.item(item_id)
        assert got is not None
        assert (got.metadata, got.version) == (want.metadata, want.version)
        assert got.vector.tobytes() == want.vector.tobytes()
    assert len(index) == len(model)


def check_searches(index: ShardIndex | IndexView, model: Model, distance: Distance, seed: int) -> None:
    queries = vectors(seed, 2)
    for query, hits in zip(queries, index.search(queries, 7, exact=True).hits, strict=True):
        want = exact(model, query, distance)[:7]
        assert [hit.distance for hit in hits] == pytest.approx(want, abs=NEAR)
        assert all(hit.metadata == model[hit.id].metadata for hit in hits)
    for hits in index.search(queries, 7).hits:
        assert len({hit.id for hit in hits}) == min(7, len(model))
    for text, documents in PREDICATES.items():
        matching = {item_id: item for item_id, item in model.items() if item.metadata in documents}
        known = {item.metadata for item in model.values()}
        if not known >= {b'{"n":1,"s":"x"}', b'{"n":2,"t":["x","y"]}'}:
            continue  # a field that nothing has is refused; another test has that
        assert index.count(parse(text)) == len(matching)
        found = index.search(queries, 5, predicate=parse(text), exact=True)
        for query, hits in zip(queries, found.hits, strict=True):
            assert [hit.distance for hit in hits] == pytest.approx(
                exact(matching, query, distance)[:5], abs=NEAR
            )
        for hits in index.search(queries, 5, predicate=parse(text)).hits:
            assert len({hit.id for hit in hits} & set(matching)) == min(5, len(matching)) == len(hits)


def check_members(index: ShardIndex | IndexView, model: Model, distance: Distance, seed: int) -> None:
    """A filter by ids, alone and with one over metadata, against the dictionary; views see what they saw."""
    random = np.random.default_rng(seed)
    wanted = [f"i{j:02}" for j in random.choice(90, random.integers(0, 60), replace=False)]
    by_id = predicate.members(wanted)
    inside = {item_id: item for item_id, item in model.items() if item_id in by_id.root.ids}  # type: ignore[union-attr]
    outside = {item_id: item for item_id, item in model.items() if item_id not in inside}
    cases = [(by_id, inside), (predicate.negated(by_id), outside)]
    if any(item.metadata == b'{"n":1,"s":"x"}' for item in model.values()):
        one = parse("n = 1")
        ones = {item_id: item for item_id, item in model.items() if item.metadata == b'{"n":1,"s":"x"}'}
        cases += [
            (predicate.all_of(by_id, one), {k: v for k, v in inside.items() if k in ones}),
            (predicate.any_of(by_id, one), inside | ones),
            (
                predicate.all_of(predicate.negated(by_id), one),
                {k: v for k, v in ones.items() if k in outside},
            ),
        ]
    queries = vectors(seed, 2)
    for asked, matching in cases:
        assert index.count(asked) == len(matching)
        found = index.search(queries, 5, predicate=asked, exact=True)
        for query, hits in zip(queries, found.hits, strict=True):
            assert [hit.distance for hit in hits] == pytest.approx(
                exact(matching, query, distance)[:5], abs=NEAR
            )
        result = index.search(queries, 5, predicate=asked)
        assert result.plan.matched == len(matching)
        for hits in result.hits:
            assert len({hit.id for hit in hits} & set(matching)) == min(5, len(matching)) == len(hits)
        if isinstance(index, ShardIndex):
            assert [item.id for item in index.scroll(None, 100, asked)[0]] == sorted(matching)


def check_each_finds_itself(index: ShardIndex, model: Model, distance: Distance) -> None:
    for item_id, item in model.items():
        nearest = index.search(item.vector[None], 1).hits[0][0]
        if distance is not Distance.DOT:  # under dot a longer vector is nearer than oneself
            assert nearest.id == item_id or nearest.distance < NEAR


class IndexMachine(RuleBasedStateMachine):
    """Writes, builds that overlap them, views, and restarts."""

    @initialize(distance=st.sampled_from(Distance), scratch=st.booleans())
    def start(self, distance: Distance, scratch: bool) -> None:
        self.params = IndexParams(
            "model", DIMENSION, m=4, ef_search=EF, ef_construction=20, distance=distance
        )
        self.scratch = Path("/tmp") if scratch else None
        self.index = ShardIndex(self.params, TINY, self.scratch)
        self.model: Model = {}
        self.version = 1
        self.plans: list[BuildPlan] = []
        self.views: list[tuple[IndexView, Model]] = []

    @rule(ids=IDS, seed=SEEDS, data=st.data())
    def upsert(self, ids: list[str], seed: int, data: st.DataObject) -> None:
        drawn = vectors(seed, len(ids))
        documents = tuple(data.draw(st.lists(DOCUMENTS, min_size=len(ids), max_size=len(ids))))
        applied = self.index.upsert(Batch(tuple(ids), drawn, documents), self.version)
        assert applied.added == sum(item_id not in self.model for item_id in ids)
        assert applied.updated == len(ids) - applied.added
        for j, item_id in enumerate(ids):
            before = self.model.get(item_id)
            document = documents[j]
            kept = (before.metadata if before else b"") if document is None else document
            self.model[item_id] = Item(item_id, drawn[j], kept, self.version + j)
        self.version += len(ids)

    @rule(ids=IDS, seed=SEEDS)
    def add_if_absent(self, ids: list[str], seed: int) -> None:
        drawn = vectors(seed, len(ids))
        applied = self.index.add_if_absent(
            Batch(tuple(ids), drawn, (b'{"n":1,"s":"x"}',) * len(ids)), self.version
        )
        assert applied.skipped == sum(item_id in self.model for item_id in ids)
        for j, item_id in enumerate(ids):
            before = self.model.get(item_id)
            if before is None:
                self.model[item_id] = Item(item_id, drawn[j], b'{"n":1,"s":"x"}', self.version + j)
            else:
                self.model[item_id] = Item(item_id, before.vector, before.metadata, self.version + j)
        self.version += len(ids)

    @rule(ids=IDS)
    def delete(self, ids: list[str]) -> None:
        assert self.index.delete(ids) == sum(self.model.pop(item_id, None) is not None for item_id in ids)

    @rule(ids=IDS, guess=st.booleans())
    def delete_if_version(self, ids: list[str], guess: bool) -> None:
        versions = [self.model[item_id].version + guess if item_id in self.model else 1 for item_id in ids]
        want = 0 if guess else sum(item_id in self.model for item_id in ids)
        assert self.index.delete_if_version(ids, versions) == want
        if not guess:
            for item_id in ids:
                self.model.pop(item_id, None)

    @rule(idle=st.booleans())
    def plan(self, idle: bool) -> None:
        plan = self.index.maintenance(idle=idle)
        if plan is not None:
            self.plans.append(plan)

    @rule(first=st.booleans(), threads=st.sampled_from([1, 2]))
    def install(self, first: bool, threads: int) -> None:
        # Several plans may have been taken of the same parts: the later ones find them gone.
        if self.plans:
            self.index.install(self.plans.pop(0 if first else -1).run(threads))
            check_each_finds_itself(self.index, self.model, self.params.distance)

    @rule()
    def look(self) -> None:
        self.views = [*self.views[-2:], (self.index.view(), dict(self.model))]

    @rule()
    def restart(self) -> None:
        sections = [
            Section(part.kind, part.segment, bytes(part.data)) for part in self.index.view().sections()
        ]
        self.index = ShardIndex.restore(self.params, TINY, self.scratch, sections)
        self.plans.clear()
        check_each_finds_itself(self.index, self.model, self.params.distance)

    @rule(seed=SEEDS)
    def search(self, seed: int) -> None:
        check_searches(self.index, self.model, self.params.distance, seed)
        for view, model in self.views:
            check_searches(view, model, self.params.distance, seed)

    @rule(seed=SEEDS)
    def filter_by_ids(self, seed: int) -> None:
        check_members(self.index, self.model, self.params.distance, seed)
        for view, model in self.views:
            check_members(view, model, self.params.distance, seed)

    @rule(limit=st.integers(1, 50))
    def scroll(self, limit: int) -> None:
        assert list(self._scrolled(limit)) == sorted(self.model)

    def _scrolled(self, limit: int) -> Iterator[str]:
        cursor = None
        for _ in range(100):
            items, cursor = self.index.scroll(cursor, limit)
            assert len(items) <= limit
            yield from (item.id for item in items)
            if cursor is None:
                return
        raise AssertionError("the cursor does not end")

    @invariant()
    def same_items(self) -> None:
        if hasattr(self, "model"):
            check_items(self.index, self.model)
            for view, model in self.views:
                check_items(view, model)
                found = {
                    item_id: (metadata, version)
                    for chunk in view.items()
                    for item_id, metadata, version in zip(
                        chunk.ids, chunk.metadata, chunk.versions, strict=True
                    )
                }
                assert found == {item.id: (item.metadata, item.version) for item in model.values()}


TestIndexModel = IndexMachine.TestCase
TestIndexModel.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
