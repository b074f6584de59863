"""Lives begun, taken over and ended without opening an index, and what requests become in the life that follows."""

from collections.abc import AsyncIterator
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from lakehouse import beginning, building, incarnations, lives
from lakehouse.carrying import Replaced, Translation
from lakehouse.core import incarnation, names
from lakehouse.core.entry import (
    ALL_CARRIED,
    Cursor,
    Entry,
    Kind,
    Operation,
    Request,
    cursor_of,
    decode,
    encode,
    encode_request,
)
from lakehouse.core.errors import Conflict, Corrupt, Dropped, Invalid, NotFound
from lakehouse.core.incarnation import Continues
from lakehouse.core.types import Batch, Consistency, IndexParams
from lakehouse.indexes import Indexes
from lakehouse.runtime import SystemRuntime
from lakehouse.store.memory import MemoryStore

PARAMS = IndexParams("a", 2)
LIFE, NEXT = UUID(int=1, version=4), UUID(int=2, version=4)


def items(ids: str, value: float = 1.0) -> Batch:
    return Batch(tuple(ids), np.full((len(ids), 2), value, np.float32), (b"{}",) * len(ids))


async def stream(*batches: Batch) -> AsyncIterator[Batch]:
    for one in batches:
        yield one


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(exclusive=False)


# ---------------------------------------------------------------- records


def test_a_life_that_takes_another_over_says_so_in_a_record_of_version_2() -> None:
    begun = incarnation.begin(
        4, NEXT, PARAMS, 2, "o", {"v": 1}, LIFE, seeded=True, continues=Continues((7, 0), exact=True)
    )
    data = incarnation.encode(begun)
    assert b'"entry_version":2' in data
    assert b'"ends":"%s","continues":{"positions":[7,0],"exact":true},"sha256"' % LIFE.hex.encode() in data
    assert incarnation.decode(data) == begun
    taken = incarnation.taken_over(begun, "other")
    assert taken == replace(begun, number=5, owner="other")
    assert incarnation.decode(incarnation.encode(taken)) == taken
    empty = replace(begun, continues=Continues((7, 0), empty=True))
    assert b'"continues":{"positions":[7,0],"exact":false,"empty":true}' in incarnation.encode(empty)
    assert incarnation.decode(incarnation.encode(empty)) == empty


def test_what_cannot_be_continued_is_refused() -> None:
    with pytest.raises(Invalid, match="that it ends"):
        incarnation.begin(1, NEXT, PARAMS, 1, continues=Continues((1,)))
    with pytest.raises(Invalid, match="as many shards"):
        incarnation.begin(1, NEXT, PARAMS, 2, ends=LIFE, continues=Continues((1,), exact=True))
    spoiled = incarnation.encode(
        incarnation.begin(1, NEXT, PARAMS, 1, ends=LIFE, continues=Continues((1,)))
    ).replace(b'"positions":[1]', b'"positions":[2]')
    with pytest.raises(Corrupt):
        incarnation.decode(spoiled)


def test_a_cursor_is_read_from_its_key_and_from_no_other() -> None:
    for cursor in (Cursor(0, 1), Cursor(3, 1 << 40), ALL_CARRIED):
        assert cursor_of(cursor.key) == cursor
    for key in (b"", b"carried", ALL_CARRIED.key + b"x", UUID(int=5).bytes):
        assert cursor_of(key) is None


# ---------------------------------------------------------------- lives from outside


async def test_an_index_is_begun_taken_over_and_ended_without_being_opened(
    store: MemoryStore, runtime: SystemRuntime
) -> None:
    begun = await lives.begin_empty(store, runtime, PARAMS, 2, "x")
    assert (begun.number, begun.owner, begun.shards) == (0, "x", 2)
    with pytest.raises(Conflict):
        await lives.begin_empty(store, runtime, PARAMS, 2)
    indexes = Indexes(store.sibling(), runtime)
    collection = await indexes.open("a")
    await collection.add(items("pqr"))
    taken = await lives.take_over(store, runtime, "a", "y")
    assert (taken.number, taken.uuid, taken.owner) == (1, begun.uuid, "y")
    assert await lives.take_over(store, runtime, "a", "y") == taken
    assert await lives.current(store, "a") == taken
    await lives.end(store, runtime, "a")
    with pytest.raises(Dropped):
        await collection.refresh(Consistency.STRONG)
    with pytest.raises(NotFound):
        await indexes.open("a")
    for absent in (lives.end(store, runtime, "a"), lives.take_over(store, runtime, "a", "z")):
        with pytest.raises(NotFound):
            await absent
    left = [info.key for info in await store.list("_vectors/")]
    assert all("/inc/" in key or "/log/" in key for key in left)
    assert (await lives.begin_empty(store, runtime, PARAMS, 1)).number == 3
    await indexes.close()


async def test_a_damaged_index_is_ended(store: MemoryStore, runtime: SystemRuntime) -> None:
    indexes = Indexes(store, runtime)
    collection = await indexes.create(PARAMS)
    await collection.add(items("pqr"))
    await indexes.close()
    assert collection.record.uuid is not None
    key = f"{names.log_prefix('a', collection.record.uuid, 0)}{2:020}"
    await store.put(key, b"\0" + (await store.get(key))[1:])
    await lives.end(store, runtime, "a")
    record = await lives.current(store, "a")
    assert record is not None
    assert not record.alive
    await Indexes(store, runtime).create(PARAMS)


# ---------------------------------------------------------------- builds of several processes


async def shard_of_build(store: MemoryStore, runtime: SystemRuntime, shard: int) -> building.Built | None:
    settings = Indexes(store, runtime).settings
    return await building.build_shard(
        store, runtime, settings, PARAMS, 2, NEXT, shard, stream(items("pqrs"), items("tuv"))
    )


async def test_shards_are_built_apart_and_published_when_all_are_there(
    store: MemoryStore, runtime: SystemRuntime
) -> None:
    record = incarnation.begin(0, NEXT, PARAMS, 2, "o", {"dataset": "d"}, seeded=True)
    first = await shard_of_build(store, runtime, 0)
    assert first is not None
    assert first.rows == 7
    assert await building.missing(store, "a", NEXT, 2) == [1]
    with pytest.raises(Conflict, match="not there yet"):
        await building.publish(store, runtime, record, replaces=False)
    assert await shard_of_build(store, runtime, 0) is None
    second = await shard_of_build(store, runtime, 1)
    assert second is not None
    assert first.items + second.items == 7
    begun = await building.publish(store, runtime, record, replaces=False)
    assert (begun.number, begun.continues) == (0, None)
    assert await building.publish(store, runtime, record, replaces=False) == begun
    collection = await Indexes(store, runtime).open("a")
    assert {item.id for item in (await collection.scroll(None, 100))[0]} == set("pqrstuv")


async def test_a_build_that_may_not_replace_leaves_what_lives(
    store: MemoryStore, runtime: SystemRuntime
) -> None:
    await lives.begin_empty(store, runtime, PARAMS, 2)
    for shard in range(2):
        await shard_of_build(store, runtime, shard)
    record = incarnation.begin(0, NEXT, PARAMS, 2, seeded=True)
    with pytest.raises(Conflict, match="exists"):
        await building.publish(store, runtime, record, replaces=False)
    assert len(await incarnations.every(store, "a")) == 1
    assert await lives.sweep_unnamed(store, runtime, "a") == []
    assert await lives.sweep_unnamed(store, runtime, "a", grace_s=0, spared={NEXT}) == []


async def test_swept_content_never_begins(store: MemoryStore, runtime: SystemRuntime) -> None:
    await lives.begin_empty(store, runtime, PARAMS, 2)
    for shard in range(2):
        await shard_of_build(store, runtime, shard)
    await store.put(f"{names.life_prefix('a', NEXT)}unnamed/20200101T000000Z", b"{}")
    assert await lives.sweep_unnamed(store, runtime, "a") == [NEXT]
    left = [info.key for info in await store.list(names.life_prefix("a", NEXT))]
    assert left == [names.fate_key("a", NEXT, 0)]
    with pytest.raises(Conflict, match="removed"):
        await beginning.claim(store, runtime, "a", NEXT, 1)


# ---------------------------------------------------------------- translating


def entry_of(*requests: Request, first_operation: int = 10) -> Entry:
    encoded = encode(
        kind=Kind.DATA,
        seq=5,
        epoch=1,
        incarnation=LIFE.bytes,
        writer=LIFE.bytes,
        batch=LIFE.bytes,
        previous=bytes(32),
        first_operation=first_operation,
        requests=[encode_request(request) for request in requests],
    )
    return decode(encoded.data)


def upsert(key: str, ids: str) -> Request:
    return Request(key.encode(), Operation.UPSERT, tuple(ids), items(ids).vectors, (b"{}",) * len(ids))


def test_a_delete_of_versions_deletes_what_goes_over_and_nothing_else() -> None:
    translation = Translation(Replaced(LIFE, Continues((4,))), 0, 0, 1)
    gone = Request(b"2", Operation.DELETE_IF_VERSION, ("a", "b", "old"), versions=(11, 9, 3))
    taken = translation.of(entry_of(upsert("1", "ab"), upsert("1", "ab"), gone))
    assert [(one.request.key, one.request.operation) for one in taken] == [
        (b"1", Operation.UPSERT),
        (b"2", Operation.DELETE),
    ]
    assert taken[1].request.ids == ("a",)


@pytest.mark.parametrize("empty", [False, True])
def test_what_was_added_to_an_empty_life_is_upserted(empty: bool) -> None:
    def absent(key: bytes, ids: str) -> Request:
        return Request(key, Operation.ADD_IF_ABSENT, tuple(ids), items(ids).vectors, (None,) * len(ids))

    translation = Translation(Replaced(LIFE, Continues((4,), empty=empty)), 0, 0, 1)
    gone = Request(b"3", Operation.DELETE, ("b",))
    taken = translation.of(entry_of(upsert("1", "a"), absent(b"2", "ab"), gone, absent(b"4", "abc")))
    told = [(one.request.operation, "".join(one.request.ids), one.request.metadata) for one in taken]
    if empty:
        assert told[1::2] == [(Operation.UPSERT, "b", (b"",)), (Operation.UPSERT, "bc", (b"", b""))]
    else:
        assert told[1::2] == [
            (Operation.ADD_IF_ABSENT, "ab", (None, None)),
            (Operation.ADD_IF_ABSENT, "abc", (None, None, None)),
        ]


def test_the_lifes_own_content_takes_every_request_as_it_stands() -> None:
    translation = Translation(Replaced(LIFE, Continues((4,), exact=True)), 0, 0, 1)
    found = entry_of(Request(b"2", Operation.DELETE_IF_VERSION, ("a",), versions=(3,)))
    assert translation.of(found) == list(found.requests)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2), (2, 2)])
def test_another_number_of_shards_takes_each_row_once(before: int, after: int) -> None:
    ids = "abcdefghij"
    replaced = Replaced(LIFE, Continues((0,) * before))
    rows: list[str] = []
    keys: set[bytes] = set()
    for number in range(after):
        for source in replaced.sources(number, after, ended=True):
            mine = "".join(one for one in ids if names.shard_of(one, before) == source)
            for taken in Translation(replaced, source, number, after).of(entry_of(upsert("k", mine))):
                assert {names.shard_of(one, after) for one in taken.request.ids} <= {number}
                rows += taken.request.ids
                keys.add(taken.request.key)
    assert sorted(rows) == list(ids)
    assert keys == ({b"k"} if before in (1, after) else {b"k\x000", b"k\x001", b"k\x002"})
