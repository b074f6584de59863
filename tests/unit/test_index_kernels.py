"""The native kernels against numpy: every variant this CPU has, every metric, every odd dimension."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from lakehouse.core.types import Distance, Vectors
from lakehouse.index import kernels
from lakehouse.index.arena import Arena
from lakehouse.index.engine import GraphParams, HnswlibEngine
from lakehouse.index.kernels import Bits, Codes, Links, Source, Sources
from lakehouse.index.segment import bitmap, inverse_norms

VARIANTS = ("generic", "avx2", "avx512", "avx512vnni")


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.variant()
    name = str(request.param)
    if not kernels.use_variant(name):
        pytest.skip(f"this CPU has no {name}")
    yield name
    assert kernels.use_variant(before)


def drawn(rows: int, dimension: int, seed: int = 1) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)


def exact(
    stored: Vectors, query: Vectors, distance: Distance
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    a, b = stored.astype(np.float64), query.astype(np.float64)
    if distance is Distance.DOT:
        return np.asarray(-a @ b)
    if distance is Distance.EUCLIDEAN:
        return np.asarray(np.linalg.norm(a - b, axis=1))
    return np.asarray(1 - a @ b / (np.linalg.norm(a, axis=1) * np.linalg.norm(b)))


def source(
    stored: Vectors,
    distance: Distance,
    *,
    matched: int | None = None,
    dead: Bits | None = None,
    allowed: Bits | None = None,
    links: Links | None = None,
    codes: Codes | None = None,
    ef: int = 0,
    visits_max: int = 1 << 62,
) -> Source:
    return Source(
        stored, inverse_norms(stored, distance), len(stored), len(stored) if matched is None else matched,
        dead=dead, allowed=allowed, links=links, codes=codes, ef=ef, visits_max=visits_max,
    )  # fmt: skip


def graph(stored: Vectors, distance: Distance, threads: int = 1) -> Links:
    return HnswlibEngine().build(
        stored, GraphParams(distance, 8, 60), Arena(None), threads, threading.Event()
    )


def rounded(stored: Vectors, distance: Distance) -> Codes:
    rows, dimension = stored.shape
    codes = Codes(np.zeros((rows, kernels.code_width(dimension)), np.int8), np.zeros((rows, 2), np.float32))
    kernels.round_into(codes, stored, inverse_norms(stored, distance))
    return codes


@pytest.mark.parametrize("dimension", [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 384, 1025])
@pytest.mark.parametrize("distance", Distance)
def test_a_scan_is_exact(variant: str, distance: Distance, dimension: int) -> None:
    stored, queries = drawn(300, dimension), drawn(3, dimension, seed=2)
    answer = kernels.search(Sources([source(stored, distance)]), distance, queries, 20)
    for query, distances, hits in zip(queries, answer.distances, answer.hits, strict=True):
        want = exact(stored, query, distance)
        assert distances == sorted(distances)
        assert distances == pytest.approx(np.sort(want)[:20].tolist(), abs=2e-4, rel=1e-4)
        assert [want[row] for row in hits] == pytest.approx(distances, abs=2e-4, rel=1e-4)
    assert answer.visited == 900


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("distance", Distance)
def test_a_walk_finds_what_a_scan_finds(variant: str, distance: Distance, coded: bool) -> None:
    stored, queries = drawn(3000, 48), drawn(50, 48, seed=2)
    codes = rounded(stored, distance) if coded else None
    walk = source(stored, distance, links=graph(stored, distance), codes=codes, ef=200)
    found = kernels.search(Sources([walk]), distance, queries, 10)
    truth = kernels.search(Sources([source(stored, distance)]), distance, queries, 10)
    shared = sum(len(set(a) & set(b)) for a, b in zip(found.hits, truth.hits, strict=True))
    assert shared / 500 >= 0.95
    assert found.visited < truth.visited
    for got, hits in zip(found.distances, found.hits, strict=True):
        assert len(set(hits)) == 10
        assert got == sorted(got)


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_a_filtered_walk_returns_only_what_is_allowed_and_alive(share: float, coded: bool) -> None:
    stored, queries = drawn(3000, 24), drawn(20, 24, seed=2)
    random = np.random.default_rng(3)
    allowed, dead = random.random(3000) < share, random.random(3000) < 0.2
    matching = set(np.flatnonzero(allowed & ~dead).tolist())
    codes = rounded(stored, Distance.EUCLIDEAN) if coded else None
    walk = source(
        stored, Distance.EUCLIDEAN, matched=len(matching), dead=bitmap(dead), allowed=bitmap(allowed),
        links=graph(stored, Distance.EUCLIDEAN), codes=codes, ef=64,
    )  # fmt: skip
    found = kernels.search(Sources([walk]), Distance.EUCLIDEAN, queries, 10)
    assert all(len(set(hits) & matching) == min(10, len(matching)) for hits in found.hits)


def test_a_walk_that_takes_too_long_becomes_a_scan() -> None:
    stored, queries = drawn(3000, 24), drawn(20, 24, seed=2)
    allowed = np.arange(3000) % 100 == 0
    walk = source(
        stored, Distance.DOT, matched=30, allowed=bitmap(allowed), links=graph(stored, Distance.DOT), ef=20,
        visits_max=50,
    )  # fmt: skip
    found = kernels.search(Sources([walk]), Distance.DOT, queries, 10)
    truth = kernels.search(
        Sources([source(stored, Distance.DOT, allowed=bitmap(allowed))]), Distance.DOT, queries, 10
    )
    assert found.gave_up == 20
    assert found.hits == truth.hits


def test_rows_that_no_link_leads_to_are_found_by_falling_back() -> None:
    stored = drawn(100, 8)
    lonely = Links(
        np.zeros((100, 9), np.uint32),
        np.zeros(101, np.uint32),
        np.zeros((0, 5), np.uint32),
        entry=0,
        level_max=0,
    )
    found = kernels.search(
        Sources([source(stored, Distance.EUCLIDEAN, links=lonely, ef=10)]), Distance.EUCLIDEAN, stored[7:8], 3
    )
    assert (found.hits[0][0], found.gave_up, len(found.hits[0])) == (7, 1, 3)


def test_a_probe_names_the_rows_that_no_link_leads_to() -> None:
    stored = drawn(500, 8)
    links = graph(stored, Distance.EUCLIDEAN)
    level0 = links.level0.copy()
    for block in level0:
        kept = [row for row in block[1 : 1 + block[0]] if row % 10]
        block[:] = 0
        block[0] = len(kept)
        block[1 : 1 + len(kept)] = kept
    cut = Links(level0, np.zeros(501, np.uint32), np.zeros((0, 9), np.uint32), entry=1, level_max=0)
    rows = np.arange(500, dtype=np.uint32)
    for threads in (1, 2):
        missed = kernels.probe(
            source(stored, Distance.EUCLIDEAN, links=cut, ef=32), Distance.EUCLIDEAN, rows, threads
        )
        assert set(np.flatnonzero(missed).tolist()) >= set(range(0, 500, 10))
        assert missed.sum() < 60


def test_several_sources_are_one_answer() -> None:
    stored, query = drawn(1000, 24), drawn(1, 24, seed=2)
    parts = [
        source(stored[:100], Distance.COSINE),
        source(stored[100:900], Distance.COSINE, links=graph(stored[100:900], Distance.COSINE), ef=300),
        source(stored[900:], Distance.COSINE),
    ]
    starts = [0, 100, 900]
    whole = kernels.search(Sources([source(stored, Distance.COSINE)]), Distance.COSINE, query, 15)
    found = kernels.search(Sources(parts), Distance.COSINE, query, 15)
    assert [starts[hit >> 32] + (hit & 0xFFFFFFFF) for hit in found.hits[0]] == whole.hits[0]


def test_fewer_rows_than_asked_for_and_none() -> None:
    stored = drawn(3, 4)
    for queries in (drawn(1, 4), drawn(2, 4)):
        assert [
            len(hits)
            for hits in kernels.search(
                Sources([source(stored, Distance.DOT)]), Distance.DOT, queries, 10
            ).hits
        ] == [3] * len(queries)
        assert kernels.search(Sources([]), Distance.DOT, queries, 10).hits == [[]] * len(queries)


def test_ties_come_in_row_order() -> None:
    stored = np.ones((200, 6), np.float32)
    found = kernels.search(Sources([source(stored, Distance.COSINE)]), Distance.COSINE, stored[:1], 50)
    assert found.hits[0] == list(range(50))
    assert found.distances[0] == pytest.approx([0.0] * 50, abs=1e-6)


@pytest.mark.parametrize("distance", Distance)
def test_enormous_vectors_give_finite_distances_in_a_row(distance: Distance) -> None:
    stored = drawn(50, 4) * np.float32(3e38) ** np.linspace(0, 1, 50, dtype=np.float32)[:, None]
    found = kernels.search(Sources([source(stored, distance)]), distance, stored[-2:], 50)
    assert np.isfinite(found.distances).all()
    assert [sorted(hits) for hits in found.hits] == [list(range(50))] * 2


def test_threads_search_at_once() -> None:
    stored, queries = drawn(2000, 32), drawn(64, 32, seed=2)
    links = graph(stored, Distance.COSINE, threads=2)
    packed = Sources([source(stored, Distance.COSINE, links=links, ef=50)])
    want = kernels.search(packed, Distance.COSINE, queries, 10).hits
    seen: list[bool] = []

    def ask() -> None:
        for _ in range(20):
            one = [kernels.search(packed, Distance.COSINE, queries[j : j + 1], 10).hits[0] for j in range(64)]
            seen.append(one == want and kernels.search(packed, Distance.COSINE, queries, 10).hits == want)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 80


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("rows", [1, 2, 257, 2000])
def test_an_engine_links_rows_that_are_there(rows: int, threads: int) -> None:
    stored = drawn(rows, 8)
    links = graph(stored, Distance.EUCLIDEAN, threads)
    assert links.level0.shape == (rows, 17)
    assert links.m == 8
    counts = links.level0[:, 0]
    assert counts.max() <= 16
    assert links.level0[:, 1:].max(initial=0) < rows
    assert (links.level0[:, 1:][np.arange(16) >= counts[:, None]] == 0).all()
    # Neighbours are near: with several threads the engine's own numbers are not ours.
    if rows == 2000:
        first = links.level0[:, 1]
        near = np.linalg.norm(stored - stored[first], axis=1).mean()
        assert near < 0.6 * np.linalg.norm(stored - stored[::-1], axis=1).mean()
