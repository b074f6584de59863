"""The index of one shard: what its writes, searches, views and sections promise."""

import errno
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lakehouse.core.errors import Corrupt, Invalid
from lakehouse.core.lhv1 import Section
from lakehouse.core.types import Batch, Distance, IndexParams, Vectors
from lakehouse.index.predicate import parse
from lakehouse.index.settings import IndexSettings
from lakehouse.index.shard_index import Applied, ShardIndex

PARAMS = IndexParams("shelf", 8, m=8, ef_construction=60)
SMALL = IndexSettings(tail_rows_max=512, settle_rows_min=64, graph_rows_min=64)


def drawn(rows: int, dimension: int = 8, seed: int = 1) -> Vectors:
    return np.random.default_rng(seed).normal(size=(rows, dimension)).astype(np.float32)


def batch(rows: int, *, first: int = 0, seed: int = 1, metadata: bytes | None = b'{"n":1}') -> Batch:
    ids = tuple(f"i{first + j:05}" for j in range(rows))
    return Batch(ids, drawn(rows, seed=seed), (metadata,) * rows)


def settled(rows: int = 1_000, params: IndexParams = PARAMS, scratch: Path | None = None) -> ShardIndex:
    index = ShardIndex(params, SMALL, scratch)
    index.upsert(batch(rows), 1)
    settle(index)
    return index


def settle(index: ShardIndex) -> None:
    while (plan := index.maintenance(idle=True)) is not None:
        index.install(plan.run())


def ids(index: ShardIndex, query: Vectors, k: int = 3, filter_text: str | None = None) -> list[str]:
    predicate = None if filter_text is None else parse(filter_text)
    return [hit.id for hit in index.search(query, k, predicate=predicate).hits[0]]


def test_an_empty_index_answers() -> None:
    index = ShardIndex(PARAMS)
    assert index.search(drawn(2), 5).hits == ((), ())
    assert index.search(drawn(1), 5).plan.strategy == "empty"
    assert index.search(drawn(1), 5, predicate=parse("anything = 1")).plan.matched == 0
    assert (len(index), index.count(None), index.item("x"), index.version("x")) == (0, 0, None, None)
    assert index.scroll(None, 10) == ([], None)
    assert index.maintenance(idle=True) is None
    assert index.view().sections() == []
    assert index.search(drawn(0), 5).hits == ()


def test_metadata_is_kept_cleared_or_replaced() -> None:
    index = ShardIndex(PARAMS)
    for document, want in (
        (None, b""),
        (b'{"a":1}', b'{"a":1}'),
        (None, b'{"a":1}'),
        (b"", b""),
        (b"2", b"2"),
    ):
        index.upsert(batch(1, metadata=document), 1)
        item = index.item("i00000")
        assert item is not None
        assert item.metadata == want


def test_writes_count_what_they_did() -> None:
    index = ShardIndex(PARAMS)
    assert index.upsert(batch(10), 1) == Applied(added=10)
    assert index.upsert(batch(10, first=5), 11) == Applied(added=5, updated=5)
    assert index.add_if_absent(batch(10, first=10), 100) == Applied(added=5, skipped=5)
    assert [index.version(f"i{j:05}") for j in (0, 5, 10, 14, 15, 19)] == [1, 11, 100, 104, 105, 109]
    assert index.delete(["i00000", "i00000", "nobody"]) == 1
    assert index.delete_if_version(["i00001", "i00002"], [2, 99]) == 1
    assert len(index) == 18


def test_the_vector_comes_back_bit_for_bit() -> None:
    strange = np.array([[1e-38, -0.0, 3.0e38, 1e-45, 0.1, -2.5, 7.0, 1.17549435e-38]], np.float32)
    for scratch in (None, Path("/tmp")):
        index = ShardIndex(PARAMS, SMALL, scratch)
        index.upsert(batch(200), 1)
        index.upsert(Batch(("x",), strange, (None,)), 300)
        for _ in range(2):
            item = index.item("x")
            hit = index.search(strange, 1, include_vectors=True).hits[0][0]
            assert item is not None
            assert hit.vector is not None
            assert item.vector.tobytes() == hit.vector.tobytes() == strange.tobytes()
            settle(index)


def test_changing_a_result_changes_nothing_stored() -> None:
    index = settled()
    item = index.item("i00007")
    assert item is not None
    item.vector[:] = 0
    again = index.item("i00007")
    assert again is not None
    assert again.vector.tolist() == drawn(1_000)[7].tolist()


def test_a_query_of_another_dimension_is_refused() -> None:
    with pytest.raises(Invalid, match="8 dimensions"):
        settled().search(drawn(1, 9), 5)


def test_a_search_reports_what_it_did() -> None:
    index = settled(4_000)
    graph = index.search(drawn(3, seed=9), 5, ef=16).plan
    assert (graph.strategy, graph.matched, graph.ef) == ("graph", None, 16)
    assert 0 < graph.visited < 12_000
    assert index.search(drawn(3), 5, exact=True).plan.visited == 12_000
    assert index.search(drawn(1), 5, exact=True).plan.strategy == "exact"
    assert index.search(drawn(1), 5, predicate=parse("n = 1")).plan.matched == 4_000
    index.upsert(batch(3, first=90_000, metadata=b'{"n":2}'), 9_000)
    assert index.search(drawn(1), 5, ef=16).plan.strategy == "graph+exact"
    gather = index.search(drawn(1), 5, predicate=parse("n = 2")).plan
    assert (gather.strategy, gather.matched, gather.visited) == ("gather", 3, 3)


def test_a_filter_on_a_field_that_nobody_has_is_refused() -> None:
    with pytest.raises(Invalid, match="known=`n`"):
        settled().search(drawn(1), 5, predicate=parse("m = 1"))


def test_filters_see_what_was_just_written() -> None:
    index = settled()
    for step in range(600):
        index.upsert(batch(1, first=step, metadata=b'{"n":%d}' % (step + 2)), 5_000 + step)
        assert index.count(parse(f"n = {step + 2}")) == 1
        assert index.count(parse("n = 1")) == 999 - step
    assert ids(index, drawn(1), 1_000, "n > 300") == [
        hit.id for hit in index.search(drawn(1), 302, predicate=parse("n > 300"), exact=True).hits[0]
    ]


def test_a_deleted_row_is_never_returned_and_never_costs_a_result() -> None:
    index = settled(2_000)
    gone = [f"i{j:05}" for j in range(0, 2_000, 7)]
    index.delete(gone)
    for hits in index.search(drawn(50, seed=4), 20).hits:
        assert len({hit.id for hit in hits} - set(gone)) == 20
    index.delete([f"i{j:05}" for j in range(1_990)])
    assert len(ids(index, drawn(1), 20)) == 9


def test_a_view_stays_while_the_index_moves_on() -> None:
    index = settled()
    index.upsert(batch(100, first=950, seed=2, metadata=b'{"n":2}'), 2_000)
    view = index.view()
    before = [(hit.id, hit.distance) for hit in view.search(drawn(1), 50).hits[0]]
    index.delete([f"i{j:05}" for j in range(500)])
    index.add_if_absent(batch(1_100), 5_000)
    index.upsert(batch(600, first=600, seed=3, metadata=b""), 9_000)
    settle(index)
    assert [(hit.id, hit.distance) for hit in view.search(drawn(1), 50).hits[0]] == before
    assert len(view) == 1_050
    assert view.count(parse("n = 2")) == 100
    found = [view.item(item_id) for item_id in ("i00000", "i00700", "i00960", "nobody")]
    assert [item and (item.version, item.metadata) for item in found] == [
        (1, b'{"n":1}'), (701, b'{"n":1}'), (2_010, b'{"n":2}'), None,
    ]  # fmt: skip
    chunks = list(view.items())
    assert sum(len(chunk.ids) for chunk in chunks) == 1_050
    assert sum(len(chunk.ids) for chunk in view.items(parse("n = 2"))) == 100


def test_what_changes_while_a_plan_runs_is_not_undone() -> None:
    index = ShardIndex(PARAMS, SMALL)
    index.upsert(batch(1_000), 1)
    plan = index.maintenance(idle=False)
    assert plan is not None
    index.delete(["i00001"])
    index.upsert(batch(2, first=2, seed=5, metadata=b'{"n":5}'), 3_000)
    index.add_if_absent(batch(1, first=10), 4_000)
    built = plan.run()
    index.delete(["i00003"])
    index.install(built)
    assert len(index) == 998
    assert [index.version(f"i{j:05}") for j in (0, 1, 2, 3, 4, 10)] == [1, None, 3_000, None, 5, 4_000]
    assert index.count(parse("n = 5")) == 1
    assert ids(index, drawn(2, seed=5)[:1], 1) == ["i00002"]
    index.install(built)  # its parts are gone: nothing happens
    assert len(index) == 998
    assert index.stats().segments == 1


def test_scroll_goes_in_order_of_ids_and_survives_writes_between_pages() -> None:
    index = ShardIndex(PARAMS)
    names = ("b", "a", "Z", "é", "\U0001f600", "zz", "")
    index.upsert(Batch(names[:6], drawn(6), (b'{"n":1}',) * 6), 1)
    page, cursor = index.scroll(None, 2)
    assert ([item.id for item in page], cursor) == (["Z", "a"], "a")
    index.upsert(Batch(("aa", "A"), drawn(2), (None, None)), 7)
    index.delete(["b"])
    page, cursor = index.scroll(cursor, 3)
    assert ([item.id for item in page], cursor) == (["aa", "zz", "é"], "é")
    page, cursor = index.scroll(cursor, 3, parse("n = 1"))
    assert ([item.id for item in page], cursor) == (["\U0001f600"], None)
    index.upsert(Batch(("b",), drawn(1), (None,)), 9)
    assert [item.id for item in index.scroll("a", 2)[0]] == ["aa", "b"]


def test_ef_search_changes_live_and_the_shape_does_not() -> None:
    index = settled(4_000)
    index.with_params(replace(PARAMS, ef_search=128))
    assert index.search(drawn(1), 5).plan.ef == 128
    with pytest.raises(Invalid):
        index.with_params(replace(PARAMS, dimension=9))


def test_a_costly_search_says_so() -> None:
    index = settled(4_000)
    assert index.estimated_cost_s(1, 10) < index.estimated_cost_s(100, 10)
    unread = index.estimated_cost_s(1, 10, parse("n = 1"))
    index.count(parse("n = 1"))
    assert index.estimated_cost_s(1, 10, parse("n = 1")) < unread


def test_half_the_rows_alike_are_all_found() -> None:
    index = ShardIndex(PARAMS, SMALL)
    rows = batch(1_000)
    rows.vectors[::2] = rows.vectors[0]
    index.upsert(rows, 1)
    settle(index)
    assert set(ids(index, rows.vectors[:1], 500)) == {f"i{j:05}" for j in range(0, 1_000, 2)}


@pytest.mark.parametrize("distance", Distance)
def test_vectors_that_8_bits_cannot_tell_apart_are_walked_by_their_originals(distance: Distance) -> None:
    index = ShardIndex(replace(PARAMS, distance=distance), SMALL)
    far = drawn(2_000) + np.float32(3_000)
    index.upsert(Batch(tuple(f"i{j:05}" for j in range(2_000)), far, (None,) * 2_000), 1)
    settle(index)
    truth = index.search(far[:300], 1, exact=True)
    found = index.search(far[:300], 1)
    assert [hits[0].distance for hits in found.hits] == pytest.approx(
        [hits[0].distance for hits in truth.hits]
    )


# ---- sections


def sections(index: ShardIndex) -> list[Section]:
    return [Section(part.kind, part.segment, bytes(part.data)) for part in index.view().sections()]


def restored(parts: list[Section], params: IndexParams = PARAMS) -> ShardIndex:
    return ShardIndex.restore(params, SMALL, None, parts)


def lively(distance: Distance = Distance.COSINE) -> ShardIndex:
    """A graph segment with dead rows, a tail with dead rows, and versions that differ."""
    index = settled(1_000, replace(PARAMS, distance=distance))
    index.upsert(batch(50, first=980, seed=2, metadata=b'{"n":2}'), 2_000)
    index.delete(["i00003", "i01010"])
    index.add_if_absent(batch(5), 7_000)
    return index


@pytest.mark.parametrize("distance", Distance)
def test_sections_bring_everything_back(distance: Distance) -> None:
    index = lively(distance)
    again = restored(sections(index), index.params)
    assert again.scroll(None, 2_000)[0].__repr__() == index.scroll(None, 2_000)[0].__repr__()
    queries = drawn(50, seed=8)
    assert [[(h.id, h.distance) for h in hits] for hits in again.search(queries, 10).hits] == [
        [(h.id, h.distance) for h in hits] for hits in index.search(queries, 10).hits
    ]
    assert again.count(parse("n = 2")) == index.count(parse("n = 2"))
    again.upsert(batch(100, seed=6), 9_000)
    again.delete(["i00500"])
    settle(again)
    assert len(again) == len(index) - 1


def test_sections_are_the_arrays_themselves() -> None:
    index = settled()
    parts = {part.kind: part.data for part in index.view().sections()}
    assert set(parts) >= {"segment", "vectors", "norms", "rows", "versions", "links", "upper-offsets"}
    assert bytes(parts["vectors"]) == drawn(1_000).tobytes()


BREAKAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a lost section": lambda _: None,
    "an empty section": lambda _: b"",
    "a short section": lambda data: data[:-4],
    "a long section": lambda data: data + bytes(8),
}


@pytest.mark.parametrize(
    "kind", ["segment", "vectors", "norms", "rows", "versions", "links", "upper-offsets", "upper"]
)
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_section_is_refused(kind: str, breakage: str) -> None:
    broken = []
    for part in sections(lively()):
        data = BREAKAGES[breakage](bytes(part.data)) if part.kind == kind else bytes(part.data)
        if data is not None:
            broken.append(Section(part.kind, part.segment, data))
    with pytest.raises(Corrupt):
        restored(broken)


@pytest.mark.parametrize(
    ("kind", "offset", "value"),
    [
        ("links", 0, 17),
        ("links", 4, 1_000),
        ("links", 4, 0xFFFFFFFF),
        ("upper", 0, 9),
        ("upper", 4, 5_000),
        ("upper-offsets", 0, 1),
        ("upper-offsets", 40, 0xFFFFFFFF),
        ("tombstones", 15 * 8 + 4, 0xFFFFFFFF),
    ],
)
def test_impossible_numbers_are_refused(kind: str, offset: int, value: int) -> None:
    changed = []
    for part in sections(lively()):
        data = bytearray(part.data)
        if part.kind == kind:
            struct.pack_into("<I", data, offset, value)
        changed.append(Section(part.kind, part.segment, bytes(data)))
    with pytest.raises(Corrupt):
        restored(changed)


def test_an_upper_link_to_a_row_without_that_level_is_refused() -> None:
    parts = {part.kind: bytearray(part.data) for part in sections(settled())}
    levels = np.diff(np.frombuffer(parts["upper-offsets"], np.uint32))
    struct.pack_into("<I", parts["upper"], 4, int(np.flatnonzero(levels == 0)[0]))
    with pytest.raises(Corrupt, match="not on that level"):
        restored([Section(kind, 0, bytes(data)) for kind, data in parts.items()])


@pytest.mark.parametrize(
    "header",
    [
        b"", b"[]", b"{}", b'{"rows":0,"dimension":8}', b'{"rows":1000,"dimension":9}', b'{"rows":true,"dimension":8}',
        b'{"rows":999,"dimension":8,"graph":null}', b'{"rows":1000,"dimension":8,"graph":7}',
        b'{"rows":1000,"dimension":8,"graph":{"m":8,"entry":1000,"level_max":1}}',
        b'{"rows":1000,"dimension":8,"graph":{"m":9,"entry":0,"level_max":1}}',
    ],
)  # fmt: skip
def test_a_header_that_does_not_fit_is_refused(header: bytes) -> None:
    parts = [replace(part, data=header) if part.kind == "segment" else part for part in sections(settled())]
    with pytest.raises(Corrupt):
        restored(parts)


def test_a_section_of_a_later_release_is_passed_over() -> None:
    index = settled()
    assert len(restored([*sections(index), Section("colour", 0, b"red")])) == len(index)


def test_repeated_and_double_sections_are_refused() -> None:
    parts = sections(settled())
    with pytest.raises(Corrupt):
        restored([*parts, parts[0]])
    with pytest.raises(Corrupt, match="one id"):
        restored([*parts, *(replace(part, segment=1) for part in parts)])


def test_random_damage_to_sections_never_crashes() -> None:
    """Checksums stand before this; what they cannot see must at worst answer wrongly, and never read elsewhere."""
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(150):
        damaged = []
        for part in sections(lively()):
            data = bytearray(part.data)
            if part.kind != "vectors" and random.random() < 0.3:
                data[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
            damaged.append(Section(part.kind, part.segment, bytes(data)))
        try:
            index = restored(damaged)
        except Corrupt:
            refused += 1
            continue
        index.search(drawn(5), 5)
        index.scroll(None, 10)
    assert refused > 30


# ---- memory


def test_a_full_disk_costs_memory_and_no_write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    index = settled(scratch=tmp_path)
    assert ids(index, drawn(1), 1) == ["i00000"]


def test_mapped_files_have_no_names(tmp_path: Path) -> None:
    index = settled(scratch=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert index.stats().segments == 1


@pytest.mark.parametrize("dimension", [1, 3, 1_536, 65_535])
def test_any_dimension(dimension: int) -> None:
    index = ShardIndex(IndexParams("wide", dimension, distance=Distance.EUCLIDEAN), SMALL)
    rows = 130 if dimension < 60_000 else 70
    stored = drawn(rows, dimension)
    index.upsert(Batch(tuple(map(str, range(rows))), stored, (None,) * rows), 1)
    settle(index)
    assert ids(index, stored[5:6], 1) == ["5"]
