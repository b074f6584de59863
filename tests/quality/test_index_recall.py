"""Recall and reachability on real embeddings: the whole file where it is at hand, else the subset in examples/.

`LAKEHOUSE_FULL_DATA` names the whole file; by default it is looked for beside the repository.  Rewriting all of it
takes minutes and is left to `make soak`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import pyarrow.parquet as pq
import pytest

from lakehouse.core.types import Batch, IndexParams, SearchResult, Vectors
from lakehouse.index.predicate import parse
from lakehouse.index.shard_index import ShardIndex

ROOT = Path(__file__).resolve().parents[2]
FULL = Path(os.environ.get("LAKEHOUSE_FULL_DATA") or ROOT.parent / "shared/data/debian-packages.parquet")
SUBSET = ROOT / "examples/debian-packages.parquet"
K = 10
RECALL_MIN = 0.98
SHARES = {"half": 500, "tenth": 100, "hundredth": 10, "thousandth": 1}
"""A filter's name and how many of a thousand rows it matches."""

pytestmark = pytest.mark.timeout(1_800)
ON_ONE_INDEX = pytest.mark.xdist_group("settled index")
"""It takes many seconds to build."""


@dataclass(frozen=True)
class World:
    """Stored items and queries that are not among them."""

    ids: list[str]
    vectors: Vectors
    metadata: list[bytes]
    queries: Vectors


def load(path: Path, held_out: int) -> World:
    table = pq.read_table(path, columns=["id", "section", "embedding"])
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    vectors = np.ascontiguousarray(flat.reshape(table.num_rows, -1), np.float32)
    order = np.random.default_rng(11).permutation(table.num_rows)
    kept, queries = np.sort(order[held_out:]), np.sort(order[:held_out])
    ids, sections = table["id"].to_pylist(), table["section"].to_pylist()
    lots = np.random.default_rng(12).permutation(table.num_rows) % 1000
    metadata = [orjson.dumps({"section": sections[j], "lot": int(lots[j])}) for j in kept]
    return World([ids[j] for j in kept], vectors[kept], metadata, vectors[queries])


def write(index: ShardIndex, world: World, rows: Sequence[int], version: int) -> None:
    for start in range(0, len(rows), 1000):
        part = rows[start : start + 1000]
        ids = tuple(world.ids[row] for row in part)
        documents = tuple(world.metadata[row] for row in part)
        index.upsert(Batch(ids, np.ascontiguousarray(world.vectors[part]), documents), version + start)


def settle(index: ShardIndex) -> None:
    for _ in range(10):
        plan = index.maintenance(idle=True)
        if plan is None:
            return
        index.install(plan.run(threads=2))
    raise AssertionError("an idle index does not come to rest")


def recall(found: SearchResult, truth: SearchResult) -> float:
    hits = sum(
        len({hit.id for hit in got} & {hit.id for hit in want})
        for got, want in zip(found.hits, truth.hits, strict=True)
    )
    return hits / sum(len(want) for want in truth.hits)


def assert_recall(index: ShardIndex, queries: Vectors) -> None:
    got = recall(index.search(queries, K), index.search(queries, K, exact=True))
    print(f"recall@{K}={got:.4f} {index.stats()}")
    assert got >= RECALL_MIN


def assert_each_finds_itself(index: ShardIndex, world: World) -> None:
    lost = []
    for start in range(0, len(world.ids), 1000):
        result = index.search(world.vectors[start : start + 1000], 1, include_metadata=False)
        for item_id, hits in zip(world.ids[start : start + 1000], result.hits, strict=True):
            # Ties: another row with the same vector is as near.
            if hits[0].id != item_id and hits[0].distance > 1e-6:
                lost.append(item_id)
    assert lost == []


def full_or_subset() -> tuple[Path, int]:
    if FULL.exists():
        return FULL, 1000
    if SUBSET.exists():
        return SUBSET, 500
    pytest.skip(f"neither {FULL} (LAKEHOUSE_FULL_DATA) nor {SUBSET} is here")


@pytest.fixture(scope="module")
def world() -> World:
    return load(*full_or_subset())


@pytest.fixture(scope="module")
def index(world: World, tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return settled(world, tmp_path_factory.mktemp("scratch"))


def settled(world: World, scratch: Path) -> ShardIndex:
    built = ShardIndex(IndexParams("packages", world.vectors.shape[1]), scratch=scratch)
    write(built, world, range(len(world.ids)), 1)
    settle(built)
    return built


@ON_ONE_INDEX
def test_a_settled_index_has_one_segment_and_recalls_enough(index: ShardIndex, world: World) -> None:
    assert index.stats().segments == 1
    assert_recall(index, world.queries)
    assert_each_finds_itself(index, world)


@ON_ONE_INDEX
@pytest.mark.parametrize("share", SHARES)
def test_a_filter_recalls_enough_and_never_costs_more_than_a_scan(
    index: ShardIndex, world: World, share: str
) -> None:
    predicate = parse(f"lot < {SHARES[share]}")
    found = index.search(world.queries, K, predicate=predicate)
    truth = index.search(world.queries, K, predicate=predicate, exact=True)
    assert found.plan.matched == index.count(predicate)
    assert [len(hits) for hits in found.hits] == [min(K, found.plan.matched)] * len(world.queries)
    assert recall(found, truth) >= RECALL_MIN
    assert found.plan.visited <= len(index) * len(world.queries)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)], ids=["part", "whole"])
def test_recall_and_reach_survive_eight_rewrites_of_a_third(world: World, every: int, tmp_path: Path) -> None:
    every = every if len(world.ids) > 20_000 else 1
    part = World(world.ids[::every], world.vectors[::every], world.metadata[::every], world.queries)
    index = settled(part, tmp_path)
    random = np.random.default_rng(13)
    rewritten = int(len(part.ids) * 0.3)
    for cycle in range(8):
        chosen = np.sort(random.permutation(len(part.ids))[:rewritten])
        write(index, part, chosen.tolist(), 1_000_000 * (cycle + 1))
        plan = index.maintenance(idle=False)
        if plan is not None:
            index.install(plan.run(threads=2))
    assert len(index) == len(part.ids)
    assert_recall(index, part.queries)
    assert_each_finds_itself(index, part)
    settle(index)
    assert_recall(index, part.queries)
    assert_each_finds_itself(index, part)
