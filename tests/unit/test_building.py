"""Whole indexes: building, restoring, replacing, suspending; owners, named snapshots, deleting what is damaged."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lakehouse import building
from lakehouse.collection import Collection
from lakehouse.core import incarnation, names
from lakehouse.core.entry import ENTRY_VERSION, Kind, decode_header
from lakehouse.core.errors import Conflict, Corrupt, Dropped, Invalid, NotFound, Outcome, Unavailable
from lakehouse.core.types import Batch, Consistency, Distance, IndexParams
from lakehouse.engine_settings import EngineSettings
from lakehouse.index import predicate
from lakehouse.indexes import Indexes
from lakehouse.log import Backoff, ShardLog
from lakehouse.named_snapshots import NamedSnapshot
from lakehouse.runtime import SystemRuntime
from lakehouse.store.local import LocalStore
from lakehouse.store.memory import MemoryStore

GOLDEN = Path(__file__).parent.parent / "format" / "golden"
PARAMS = IndexParams("a", 4)


@pytest.fixture
async def indexes(runtime: SystemRuntime) -> AsyncIterator[Indexes]:
    indexes = Indexes(MemoryStore(exclusive=False), runtime)
    yield indexes
    await indexes.close()


def items(count: int, prefix: str = "w", *, dimension: int = 4, seed: int = 0) -> Batch:
    vectors = np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)
    ids = tuple(f"{prefix}-{j:05}" for j in range(count))
    return Batch(ids, vectors, tuple(b'{"n":%d}' % j for j in range(count)))


async def stream(*batches: Batch) -> AsyncIterator[Batch]:
    for batch in batches:
        await asyncio.sleep(0)
        yield batch


async def keys(indexes: Indexes, part: str = "") -> list[str]:
    return [info.key for info in await indexes.store.list("_vectors/") if part in info.key]


async def sibling(indexes: Indexes, runtime: SystemRuntime) -> Indexes:
    """Another process over the same store."""
    assert isinstance(indexes.store, MemoryStore)
    return Indexes(indexes.store.sibling(), runtime)


async def ids_of(collection: Collection) -> set[str]:
    found, after = await collection.scroll(None, 10_000)
    assert after is None
    return {item.id for item in found}


# ---------------------------------------------------------------- building


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_build_is_found_whole_with_its_graphs_and_open_for_writes(
    indexes: Indexes, runtime: SystemRuntime, shards: int
) -> None:
    seen: list[int] = []
    origin = {"dataset": "products", "version": 3}
    built = await building.build(
        indexes,
        PARAMS,
        shards,
        stream(items(3_000), items(3_000, "v", seed=1)),
        owner="ns/products",
        origin=origin,
        progress=seen.append,
    )
    assert (built.items, built.owner, built.origin, seen) == (6_000, "ns/products", origin, [3_000, 6_000])
    assert built.position.sequences == (0,) * shards
    for shard in built.shard_list:
        stats = shard.replica.index.stats()
        assert (stats.segments, stats.exact_rows) == (1, 0)
    assert await keys(indexes, "/log/") == []
    await built.add(items(5, "later"))
    [hits] = (await built.search(items(1, seed=1).vectors, 1)).hits
    assert hits[0].distance < 1e-5
    item = await built.item("w-00007")
    assert item.metadata == b'{"n":7}'
    other = await sibling(indexes, runtime)
    again = await other.open("a")
    written = {**origin, "follow": "Once"}
    assert (again.length, again.origin, again.owner) == (6_005, written, "ns/products")
    assert (await again.item("w-00007")).vector.tobytes() == item.vector.tobytes()
    await other.close()


async def test_versions_of_later_writes_are_above_those_of_the_build(indexes: Indexes) -> None:
    built = await building.build(indexes, PARAMS, 1, stream(items(10)))
    versions = [item.version for item in (await built.scroll(None, 100))[0]]
    assert sorted(versions) == list(range(1, 11))
    await built.add(items(1))
    assert (await built.item("w-00000")).version == 11


async def test_an_empty_source_builds_an_empty_index(indexes: Indexes, runtime: SystemRuntime) -> None:
    assert (await building.build(indexes, PARAMS, 2, stream())).length == 0
    other = await sibling(indexes, runtime)
    assert (await other.open("a")).length == 0
    await other.close()


def broken(change: str) -> Batch:
    whole = items(3, "v")
    vectors, ids, metadata = whole.vectors.copy(), list(whole.ids), list(whole.metadata)
    if change == "nan":
        vectors[1, 2] = np.nan
    elif change == "zero":
        vectors[1] = 0
    elif change == "dimension":
        vectors = vectors[:, :3].copy()
    elif change == "empty":
        ids[1] = ""
    elif change == "within":
        ids[1] = ids[0]
    elif change == "across":
        ids[1] = "w-00002"
    elif change == "large":
        metadata[1] = b'"' + b"x" * (1 << 20) + b'"'
    return Batch(tuple(ids), vectors, tuple(metadata))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("nan", "row 11: the vector of id `v-00001` holds a NaN"),
        ("zero", "row 11: the vector of id `v-00001` has norm zero"),
        ("dimension", "vectors must have 4 dimensions each.*rows=`10–12`"),
        ("empty", "row 11: the id is empty"),
        ("within", "row 11: an id occurs twice in the source. id=`v-00000`"),
        ("across", "row 11: an id occurs twice in the source. id=`w-00002`"),
        ("large", "row 11: metadata is larger than"),
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
async def test_a_source_that_is_wrong_names_the_row_and_makes_nothing(
    indexes: Indexes, change: str, message: str, shards: int
) -> None:
    with pytest.raises(Invalid, match=message):
        await building.build(indexes, PARAMS, shards, stream(items(10), broken(change)))
    assert await keys(indexes) == []
    assert await indexes.names() == []


async def test_the_last_of_an_id_wins_where_that_was_asked_for(indexes: Indexes) -> None:
    first, second = items(4), items(4, seed=1)
    doubled = Batch(second.ids[:2] * 2, np.concatenate([first.vectors[:2], second.vectors[:2]]), (b"",) * 4)
    built = await building.build(indexes, PARAMS, 2, stream(first, doubled), last_wins=True)
    assert built.length == 4
    assert (await built.item("w-00001")).vector.tobytes() == second.vectors[1].tobytes()
    assert (await built.item("w-00003")).vector.tobytes() == first.vectors[3].tobytes()


async def test_a_source_that_fails_makes_nothing(indexes: Indexes) -> None:
    async def failing() -> AsyncIterator[Batch]:
        yield items(10)
        raise RuntimeError("the source is gone")

    with pytest.raises(RuntimeError):
        await building.build(indexes, PARAMS, 1, failing())
    assert await keys(indexes) == []


async def test_a_build_into_a_name_that_lives_conflicts_before_it_reads(indexes: Indexes) -> None:
    await indexes.create(PARAMS)

    async def unread() -> AsyncIterator[Batch]:
        raise AssertionError("the source was read")
        yield items(1)

    with pytest.raises(Conflict, match="already exists"):
        await building.build(indexes, PARAMS, 1, unread())


async def test_a_name_taken_during_a_build_conflicts_and_leaves_no_content(indexes: Indexes) -> None:
    async def racing() -> AsyncIterator[Batch]:
        yield items(10)
        await indexes.create(PARAMS)

    with pytest.raises(Conflict, match="already exists"):
        await building.build(indexes, PARAMS, 1, racing())
    await asyncio.sleep(0.1)
    assert (await indexes.open("a")).length == 0
    assert await keys(indexes, "/snap/") == []


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({"x": "y" * 5_000}, "at most 4096 bytes"),
        ([1], "must be a JSON object"),
        ({"x": float("nan")}, "JSON object"),
        ({"x": {1, 2}}, "JSON object"),
    ],
)
async def test_an_origin_is_a_small_json_object(indexes: Indexes, origin: object, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        await indexes.create(PARAMS, origin=origin)  # type: ignore[arg-type]
    assert await keys(indexes) == []


def test_a_record_without_origin_is_the_bytes_it_always_was(runtime: SystemRuntime) -> None:
    uuid = runtime.uuid()
    plain = incarnation.encode(incarnation.begin(3, uuid, PARAMS, 2))
    assert plain.startswith(
        b'{"number":3,"entry_version":1,"uuid":"%s","params":{"name":"a","dimension":4,"m":16,"ef_search":64,'
        b'"distance":"cosine","ef_construction":200},"shards":2,"owner":null,"seeded":false,"sha256":"'
        % uuid.hex.encode()
    )
    full = incarnation.begin(4, runtime.uuid(), PARAMS, 1, "o", {"v": [1, {"x": None}]}, uuid, seeded=True)
    assert incarnation.decode(incarnation.encode(full)) == full
    assert incarnation.decode(plain).ends is None


# ---------------------------------------------------------------- replacing


async def test_a_replacement_exchanges_the_life_in_one_step(indexes: Indexes, runtime: SystemRuntime) -> None:
    old = await indexes.create(PARAMS, shards=2)
    written = await old.add(items(20))
    other = await sibling(indexes, runtime)
    theirs = await other.open("a")
    kept = await old.snapshot("kept")
    new = await building.build(indexes, PARAMS, 1, stream(items(30, "v")), origin={"v": 2}, replaces=True)
    assert indexes.opened("a") is new
    assert (new.length, new.record.ends, new.record.number) == (30, old.record.uuid, 1)
    with pytest.raises(Dropped):
        await old.add(items(1))
    with pytest.raises(Dropped):
        await theirs.refresh(Consistency.STRONG)
    assert (await other.fresh("a")).origin == {"v": 2}
    assert await new.refresh(Consistency.STRONG, written.position) == 0.0  # all of the old life came before
    assert await other.names() == ["a"]
    await other.close()
    await indexes.close()
    assert old.record.uuid is not None
    left = await keys(indexes, old.record.uuid.hex)
    kinds = [decode_header(await indexes.store.get(key)).kind for key in left if "/log/" in key]
    assert Kind.DATA not in kinds
    assert [key for key in left if "/snap/" in key] == []
    files = kept["files"]
    assert isinstance(files, list)
    assert {file["key"] for file in files} <= set(left)  # named snapshots stay


async def test_the_copy_for_old_tools_follows_a_replacement(indexes: Indexes) -> None:
    for generation in (1, 2):
        built = await building.build(indexes, PARAMS, 1, stream(items(generation)), replaces=True)
        [snapshot] = [key for key in await keys(indexes, "/snap/") if built.position.incarnation.hex in key]
        assert await indexes.store.get("_vectors/a.lhv1") == await indexes.store.get(snapshot)
    await building.build(indexes, PARAMS, 2, stream(items(3)), replaces=True)
    assert await keys(indexes, "_vectors/a.lhv1") == []


async def test_a_build_that_replaces_makes_an_index_where_none_is(indexes: Indexes) -> None:
    built = await building.build(indexes, PARAMS, 1, stream(items(3)), replaces=True)
    assert (built.length, built.record.ends) == (3, None)
    await indexes.drop("a")
    again = await building.build(indexes, PARAMS, 1, stream(items(4)), replaces=True)
    assert (again.length, again.record.number, again.record.ends) == (4, 2, None)


async def test_a_replacement_fails_when_another_one_was_first(indexes: Indexes) -> None:
    await building.build(indexes, PARAMS, 1, stream(items(3)))

    async def racing() -> AsyncIterator[Batch]:
        yield items(5)
        await building.build(indexes, PARAMS, 1, stream(items(4)), replaces=True)

    with pytest.raises(Conflict, match="another build was first"):
        await building.build(indexes, PARAMS, 1, racing(), replaces=True)
    assert (await indexes.open("a")).length == 4


async def test_a_replacement_of_a_damaged_life_needs_a_drop_first(
    indexes: Indexes, runtime: SystemRuntime
) -> None:
    await damaged_log(indexes)
    other = await sibling(indexes, runtime)
    with pytest.raises(Corrupt):
        await building.build(other, PARAMS, 1, stream(items(3)), replaces=True)
    await other.drop("a")
    assert (await building.build(other, PARAMS, 1, stream(items(3)), replaces=True)).length == 3
    await other.close()


async def test_searches_under_way_finish_on_the_life_they_began_with(
    runtime: SystemRuntime, tmp_path: Path
) -> None:
    store = LocalStore(tmp_path / "data", runtime, ["vectors"])
    assert store.exclusive
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    indexes = Indexes(store, runtime, EngineSettings(scratch=scratch))
    await building.build(indexes, PARAMS, 1, stream(items(2_000, "old")))
    done = asyncio.Event()
    seen: set[frozenset[str]] = set()

    async def search() -> None:
        while not done.is_set():
            collection = await indexes.open("a")
            result = await collection.search(items(20).vectors, 10)
            kinds = frozenset(hit.id.split("-")[0] for hits in result.hits for hit in hits)
            assert len(kinds) == 1
            seen.add(kinds)

    work = [asyncio.create_task(search()) for _ in range(4)]
    for generation in range(4):
        await building.build(indexes, PARAMS, 1, stream(items(2_000, f"g{generation}")), replaces=True)
    done.set()
    await asyncio.gather(*work)
    assert len(seen) >= 4
    await indexes.close()
    assert list(scratch.iterdir()) == []
    await store.close()


# ---------------------------------------------------------------- restoring


async def kept_snapshot(indexes: Indexes, name: str = "kept") -> NamedSnapshot:
    [found] = [found for found in await indexes.named_snapshots("a") if found.name == name]
    return found


@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 3), (3, 1), (1, 3), (3, 2)])
async def test_a_named_snapshot_is_restored_over_any_number_of_shards(
    indexes: Indexes, before: int, after: int
) -> None:
    source = await building.build(indexes, PARAMS, before, stream(items(2_000)))
    await source.add(items(10, "later"))
    await source.delete(["w-00003"])
    await source.snapshot("kept")
    await source.add(items(1, "after"))
    found = await kept_snapshot(indexes)
    assert (found.items, found.incarnation) == (2_009, source.record.uuid)
    restored = await building.restore(
        indexes, "b", found.keys[::-1], shards=after, owner="o", origin={"snapshot": "kept"}
    )
    assert (restored.length, restored.shards, restored.owner) == (2_009, after, "o")
    assert await ids_of(restored) == await ids_of(source) - {"after-00000"}
    assert (await restored.item("w-00007")).metadata == b'{"n":7}'
    await restored.add(items(1))
    assert (await restored.item("w-00000")).version > 0
    assert restored.params.name == "b"


@pytest.mark.parametrize("file", ["v1-euclidean-300x16", "v2-cosine-50x8", "v2-single-1x4"])
async def test_files_of_the_old_system_are_restored(indexes: Indexes, file: str) -> None:
    path = GOLDEN / f"{file}.lhv1"
    restored = await building.restore(indexes, "b", [path], shards=2)
    adopted = await building.restore(indexes, "c", [path], shards=1)
    assert await ids_of(restored) == await ids_of(adopted)
    await indexes.store.put("old/file.lhv1", path.read_bytes())
    assert (await building.restore(indexes, "d", ["old/file.lhv1"], shards=1)).length == adopted.length


async def test_a_restore_refuses_what_is_wrong_and_makes_nothing(indexes: Indexes, tmp_path: Path) -> None:
    source = await building.build(indexes, PARAMS, 2, stream(items(50)))
    await source.snapshot("kept")
    first, second = (await kept_snapshot(indexes)).keys
    before = await keys(indexes)
    data = bytearray(await indexes.store.get(first))
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.lhv1").write_bytes(data)
    wrong: list[tuple[type[Exception], Sequence[str | Path], IndexParams | None, str]] = [
        (Corrupt, [tmp_path / "damaged.lhv1"], None, "damaged.lhv1"),
        (NotFound, [tmp_path / "missing.lhv1"], None, "missing"),
        (NotFound, ["no/such/key.lhv1"], None, "key"),
        (Invalid, [], None, "no files"),
        (Invalid, [second], None, "not the shards 0 to n"),
        (Invalid, [first, first], None, "not the shards 0 to n"),
        (Invalid, [first, second], IndexParams("b", 5), "4 dimensions"),
        (Invalid, [first, second], IndexParams("b", 4, distance=Distance.DOT), "cosine distance"),
    ]
    for kind, files, params, message in wrong:
        with pytest.raises(kind, match=message):
            await building.restore(indexes, "b", files, shards=1, params=params)
    with pytest.raises(Conflict):
        await building.restore(indexes, "a", [first, second], shards=2)
    assert await keys(indexes) == before


async def test_a_restore_with_other_graph_parameters_builds_them_again(indexes: Indexes) -> None:
    source = await building.build(indexes, PARAMS, 1, stream(items(2_000)))
    await source.snapshot("kept")
    asked = IndexParams("b", 4, m=8, ef_search=33)
    restored = await building.restore(
        indexes, "b", (await kept_snapshot(indexes)).keys, shards=1, params=asked
    )
    assert restored.params == asked
    stats = restored.shard_list[0].replica.index.stats()
    assert (stats.segments, restored.length) == (1, 2_000)
    assert stats.graph_bytes < 0.7 * source.shard_list[0].replica.index.stats().graph_bytes


# ---------------------------------------------------------------- owners and suspending


async def test_another_owner_takes_an_index_over_and_its_life_goes_on(
    indexes: Indexes, runtime: SystemRuntime
) -> None:
    collection = await indexes.create(PARAMS, owner="cluster-a/ns/x", origin={"v": 1})
    await collection.add(items(3))
    other = await sibling(indexes, runtime)
    theirs = await other.open("a")
    assert await other.foreign_owner("a", "cluster-b/ns/x") == "cluster-a/ns/x"
    assert await other.foreign_owner("a", "cluster-a/ns/x") is None
    assert await other.foreign_owner("nothing", "cluster-a/ns/x") is None
    assert await other.take_over("a", "cluster-b/ns/x") is theirs
    assert (theirs.owner, theirs.origin, theirs.length) == ("cluster-b/ns/x", {"v": 1}, 3)
    await collection.add(items(3, "more"))  # the life goes on for those who have not heard
    assert await collection.refresh(Consistency.STRONG) == 0.0
    newcomer = await sibling(indexes, runtime)
    assert ((await newcomer.open("a")).owner, (await newcomer.open("a")).length) == ("cluster-b/ns/x", 6)
    await indexes.drop("a")
    with pytest.raises(NotFound):
        await newcomer.fresh("a")
    assert await newcomer.names() == []
    assert (await newcomer.create(PARAMS)).record.number == 3
    for one in (other, newcomer):
        await one.close()


async def test_a_suspended_index_is_freed_refused_and_still_there(indexes: Indexes) -> None:
    collection = await indexes.create(PARAMS)
    await collection.add(items(3))
    await indexes.suspend("a")
    await indexes.suspend("a")
    assert indexes.opened("a") is None
    assert indexes.suspended == {"a"}
    for refused in (indexes.open("a"), indexes.fresh("a"), indexes.take_over("a", "o")):
        with pytest.raises(Unavailable, match="suspended") as told:
            await refused
        assert told.value.outcome is Outcome.NOT_COMMITTED
    assert await indexes.names() == ["a"]
    assert await indexes.open_all() == []
    with pytest.raises(Conflict):
        await indexes.create(PARAMS)
    assert (await indexes.resume("a")).length == 3
    with pytest.raises(NotFound):
        await indexes.suspend("nothing")


async def test_a_suspended_index_can_be_dropped_without_opening_it(
    indexes: Indexes, runtime: SystemRuntime
) -> None:
    collection = await indexes.create(PARAMS, shards=2)
    await collection.add(items(30))
    other = await sibling(indexes, runtime)
    theirs = await other.open("a")
    await indexes.suspend("a")
    await indexes.drop("a")
    with pytest.raises(Dropped):
        await theirs.add(items(3))
    assert await other.names() == []
    assert (await indexes.create(PARAMS)).length == 0
    assert (await other.fresh("a")).length == 0
    await other.close()


async def test_ef_search_changes_live_and_stays_over_a_restart_of_a_shard(indexes: Indexes) -> None:
    collection = await building.build(indexes, PARAMS, 2, stream(items(3_000)))
    await indexes.set_ef_search("a", 200)
    assert {shard.replica.index.view().params.ef_search for shard in collection.shard_list} == {200}
    await collection.shard_list[0].open()
    assert collection.params.ef_search == 200
    with pytest.raises(Invalid):
        await indexes.set_ef_search("a", 0)


# ---------------------------------------------------------------- named snapshots


async def test_named_snapshots_of_all_lives_are_listed_and_deleted(indexes: Indexes) -> None:
    first = await building.build(indexes, PARAMS, 2, stream(items(20)))
    await first.snapshot("s1")
    second = await building.build(indexes, PARAMS, 1, stream(items(30)), replaces=True)
    await second.snapshot("s2")
    await second.snapshot("s1")
    listed = await indexes.named_snapshots("a")
    assert sorted(
        (found.name, found.incarnation, found.items, len(found.files)) for found in listed
    ) == sorted(
        [
            ("s1", first.record.uuid, 20, 2),
            ("s1", second.record.uuid, 30, 1),
            ("s2", second.record.uuid, 30, 1),
        ]
    )
    for found in listed:
        assert found.size == sum([(await indexes.store.head(key)).size for key in found.keys])
    await indexes.delete_named_snapshot("a", "s1", first.record.uuid)
    assert [found.incarnation for found in await indexes.named_snapshots("a")] == [second.record.uuid] * 2
    await indexes.delete_named_snapshot("a", "s1")
    await indexes.delete_named_snapshot("a", "s2")
    assert await indexes.named_snapshots("a") == []
    assert await keys(indexes, "/named/") == []
    with pytest.raises(NotFound):
        await indexes.delete_named_snapshot("a", "s1")


async def test_what_a_failed_attempt_at_a_snapshot_left_goes_with_its_name(indexes: Indexes) -> None:
    collection = await indexes.create(PARAMS)
    assert collection.record.uuid is not None
    orphan = names.named_file_key("a", collection.record.uuid, "s", collection.record.uuid, 0)
    await indexes.store.put(orphan, b"half")
    assert await indexes.named_snapshots("a") == []
    await indexes.delete_named_snapshot("a", "s")
    assert await keys(indexes, "/named/") == []


async def test_a_snapshot_survives_the_index_and_is_restored_under_its_name(indexes: Indexes) -> None:
    collection = await building.build(indexes, PARAMS, 2, stream(items(20)))
    await collection.snapshot("s")
    await indexes.drop("a")
    found = await kept_snapshot(indexes, "s")
    assert (await building.restore(indexes, "a", found.keys, shards=2)).length == 20


# ---------------------------------------------------------------- deleting what is damaged


async def damaged_log(indexes: Indexes, shards: int = 1) -> Collection:
    collection = await indexes.create(PARAMS, shards)
    for j in range(4):
        await collection.add(items(10, f"p{j}"))
    [key, *_] = [key for key in await keys(indexes, "/log/") if key.endswith("3")]
    data = bytearray(await indexes.store.get(key))
    data[-3] ^= 1
    await indexes.store.delete(key)
    await indexes.store.create(key, bytes(data))
    return collection


@pytest.mark.parametrize("shards", [1, 2])
async def test_an_index_whose_log_is_damaged_can_be_dropped(
    indexes: Indexes, runtime: SystemRuntime, shards: int
) -> None:
    collection = await damaged_log(indexes, shards)
    other = await sibling(indexes, runtime)
    with pytest.raises(Corrupt):
        await other.open("a")
    await other.drop("a")
    assert await other.names() == []
    with pytest.raises(Dropped):  # a writer that had it open whole
        await collection.add(items(1))
    with pytest.raises(NotFound):
        await indexes.fresh("a")
    await other.close()
    assert [
        key
        for key in await keys(indexes, "/log/")
        if key.endswith("3") is False and decode_header(await indexes.store.get(key)).kind is Kind.DATA
    ] == []
    assert (await indexes.create(PARAMS)).length == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
async def test_an_index_whose_record_is_damaged_can_be_dropped(
    indexes: Indexes, runtime: SystemRuntime, damage: str
) -> None:
    collection = await indexes.create(PARAMS, shards=2)
    await collection.add(items(10))
    [key] = await keys(indexes, "/inc/")
    data = await indexes.store.get(key)
    wrong = {"cut": data[:-20], "flipped": data.replace(b'"m":16', b'"m":17'), "empty": b""}[damage]
    await indexes.store.delete(key)
    await indexes.store.create(key, wrong)
    other = await sibling(indexes, runtime)
    with pytest.raises(Corrupt):
        await other.open("a")
    await other.drop("a")
    assert await other.names() == []
    with pytest.raises(Dropped):
        await collection.add(items(10))
    assert (await other.create(PARAMS)).record.number == 2
    await other.close()


async def test_a_record_of_a_newer_release_is_not_dropped(indexes: Indexes, runtime: SystemRuntime) -> None:
    record = replace(incarnation.begin(0, runtime.uuid(), PARAMS, 1), entry_version=ENTRY_VERSION + 1)
    await indexes.store.create("_vectors/a/inc/0000000000.json", incarnation.encode(record))
    with pytest.raises(Corrupt, match="this release"):
        await indexes.drop("a")
    assert await keys(indexes) == ["_vectors/a/inc/0000000000.json"]


async def test_ending_a_log_twice_is_ending_it_once(indexes: Indexes, runtime: SystemRuntime) -> None:
    collection = await indexes.create(PARAMS)
    await collection.add(items(1))
    assert collection.record.uuid is not None
    log = ShardLog(indexes.store, runtime, "a", collection.record.uuid, 0)
    assert not await log.ends_in_drop()
    for _ in range(2):
        await log.end(Backoff())
    assert await log.ends_in_drop()
    assert len(await log.after(0)) == 3  # FENCE, DATA, DROP


# ---------------------------------------------------------------- filtering by ids


async def test_a_filter_by_ids_is_counted_searched_scrolled_and_deleted_by(indexes: Indexes) -> None:
    collection = await building.build(indexes, PARAMS, 2, stream(items(3_000)))
    await collection.add(items(10, "tail"))
    wanted = [f"w-{j:05}" for j in range(0, 3_000, 100)] + ["tail-00003", "absent"]
    by_id = predicate.members(wanted)
    assert await collection.count(by_id) == 31
    result = await collection.search(items(1).vectors, 31, filter=by_id)
    assert {hit.id for hit in result.hits[0]} == set(wanted) - {"absent"}
    assert result.plan.matched == 31
    both = predicate.all_of(by_id, predicate.parse("n < 1000"))
    assert {item.id for item in (await collection.scroll(None, 100, both))[0]} == {
        *(f"w-{j:05}" for j in range(0, 1_000, 100)),
        "tail-00003",
    }
    assert await collection.count(predicate.all_of(predicate.negated(by_id), predicate.parse("n = 3"))) == 1
    assert await collection.count(predicate.any_of(by_id, predicate.parse("n = 3"))) == 32
    with pytest.raises(Invalid, match="no item has"):
        await collection.count(predicate.all_of(by_id, predicate.parse("other = 3")))
    assert (await collection.delete_where(by_id)).deleted == 31
    assert await collection.count(by_id) == 0


async def test_a_filter_by_ids_needs_no_metadata(indexes: Indexes) -> None:
    collection = await indexes.create(PARAMS)
    bare = items(5)
    await collection.add(Batch(bare.ids, bare.vectors, (b"",) * 5))
    by_id = predicate.members(["w-00001", "w-00004"])
    assert await collection.count(by_id) == 2
    assert await collection.count(predicate.negated(by_id)) == 3
    mixed = predicate.any_of(by_id, predicate.parse("price IS NULL"))
    assert await collection.count(mixed) == 5


def test_a_predicate_of_ids_is_known_by_their_digest() -> None:
    one, other = predicate.members(["a", "b"]), predicate.members(["b", "a", "b"])
    assert one == other
    assert hash(one) == hash(other)
    assert one != predicate.members(["ab"])
    assert predicate.paths("price < 3 AND maker.name = 'x'") == {"price", "maker"}
    assert predicate.paths(predicate.all_of(one, predicate.parse("tags = 'x'"))) == {"tags"}
