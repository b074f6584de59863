"""The engine over a store: lives of an index, snapshots and garbage, merging, limits, and what bad luck does."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lakehouse import named_snapshots
from lakehouse.collection import Collection
from lakehouse.core import incarnation, named, names
from lakehouse.core.entry import ENTRY_VERSION, Kind, decode_header
from lakehouse.core.errors import (
    Busy,
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    Outcome,
    StorageFull,
    TooLarge,
    Unavailable,
)
from lakehouse.core.lhv1 import read_v3
from lakehouse.core.names import shard_of
from lakehouse.core.types import (
    Batch,
    Consistency,
    Distance,
    IndexParams,
    Position,
    checked_batch,
)
from lakehouse.engine_settings import EngineSettings
from lakehouse.indexes import Indexes
from lakehouse.runtime import SystemRuntime
from lakehouse.store.base import BytesLike
from lakehouse.store.memory import MemoryStore
from lakehouse.testing.schedules import PARAMS, batch, value_of
from lakehouse.testing.world import Fault, Weather, World, run, simulated_settings

GOLDEN = Path(__file__).parent.parent / "format" / "golden"


def vectors(
    count: int, dimension: int = 4, seed: int = 0
) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32)


def items(params: IndexParams, count: int, prefix: str = "w", seed: int = 0) -> Batch:
    ids = [f"{prefix}-{j:03}" for j in range(count)]
    metadata = [b'{"n":%d}' % j for j in range(count)]
    return checked_batch(ids, vectors(count, params.dimension, seed), metadata, params)


async def keys(store: MemoryStore, part: str = "") -> list[str]:
    return [info.key for info in await store.list("") if part in info.key]


def snapshot_keys(described: dict[str, object]) -> list[str]:
    files = described["files"]
    assert isinstance(files, list)
    return [file["key"] for file in files]


# ------------------------------------------------------------------- lives of an index


async def test_a_second_create_conflicts_and_changes_nothing(runtime: SystemRuntime) -> None:
    indexes = Indexes(MemoryStore(), runtime)
    collection = await indexes.create(IndexParams("a", 4))
    await collection.add(items(collection.params, 3))
    before = await keys(indexes.store)  # type: ignore[arg-type]
    with pytest.raises(Conflict, match="already exists"):
        await indexes.create(IndexParams("a", 8))
    assert await keys(indexes.store) == before  # type: ignore[arg-type]
    assert (await indexes.open("a")).length == 3
    await indexes.close()


async def test_a_dropped_name_is_free_again_and_never_replays_the_old_log(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    old = await indexes.create(IndexParams("a", 4))
    await old.add(items(old.params, 5))
    await indexes.drop("a")
    assert await indexes.names() == []
    assert not await keys(store, "_vectors/a.lhv1")
    with pytest.raises(NotFound):
        await indexes.open("a")
    with pytest.raises(NotFound):
        await old.add(items(old.params, 1))
    new = await indexes.create(IndexParams("a", 2))
    assert (new.length, new.params.dimension) == (0, 2)
    with pytest.raises(Conflict, match="another life"):
        await new.refresh(Consistency.STRONG, old.position)
    reopened = Indexes(store.sibling(), runtime)
    assert (await reopened.open("a")).params.dimension == 2
    await indexes.close()
    await reopened.close()


async def test_whoever_opens_a_log_that_ends_in_drop_finishes_the_deletion(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    collection = await indexes.create(IndexParams("a", 4))
    await collection.add(items(collection.params, 2))
    await collection.drop()  # and the process dies before the record is written
    other = Indexes(store.sibling(), runtime)
    with pytest.raises(NotFound):
        await other.open("a")
    assert await keys(store, "inc/") == ["_vectors/a/inc/0000000000.json", "_vectors/a/inc/0000000001.json"]
    assert not await keys(store, "_vectors/a.lhv1")
    assert (await other.create(IndexParams("a", 4))).length == 0
    await other.close()


async def test_an_index_of_a_newer_release_is_refused(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    record = replace(
        incarnation.begin(0, runtime.uuid(), IndexParams("a", 4), 1), entry_version=ENTRY_VERSION + 1
    )
    await store.create("_vectors/a/inc/0000000000.json", incarnation.encode(record))
    with pytest.raises(Corrupt, match="newer release"):
        await Indexes(store, runtime).open("a")


async def test_fence_and_drop_entries_outlive_the_index(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    collection = await indexes.create(IndexParams("a", 4))
    await collection.add(items(collection.params, 2))
    await indexes.drop("a")
    await indexes.close()
    kinds = [decode_header(await store.get(key)).kind for key in await keys(store, "/log/")]
    assert kinds == [Kind.FENCE, Kind.DROP]


@pytest.mark.parametrize("name", ["", "-a", "a/b", "a" * 129, "x.lhv1", "..", "ü", "a\n"])
async def test_names_outside_the_rule_are_refused(runtime: SystemRuntime, name: str) -> None:
    with pytest.raises(Invalid, match="an index name"):
        await Indexes(MemoryStore(), runtime).create(IndexParams(name, 4))


# --------------------------------------------------------------- old files and snapshots


@pytest.mark.parametrize(
    ("file", "count"), [("v1-euclidean-300x16", 300), ("v2-cosine-50x8", 50), ("v2-single-1x4", 1)]
)
async def test_a_bare_file_of_the_old_system_is_adopted_whole(
    runtime: SystemRuntime, file: str, count: int
) -> None:
    store = MemoryStore()
    source = (GOLDEN / f"{file}.lhv1").read_bytes()
    await store.put("_vectors/old.lhv1", source)
    expected = np.frombuffer((GOLDEN / f"{file}.lhv1.f32").read_bytes(), "<f4").reshape(count, -1)
    indexes = Indexes(store, runtime)
    assert await indexes.names() == ["old"]
    collection = await indexes.open("old")
    assert collection.length == count
    found, _ = await collection.scroll(None, 1000)
    by_id = {item.id: item for item in found}
    for j in range(count):
        assert by_id[f"w-{j:05}"].vector.tobytes() == expected[j].tobytes()
        assert bool(by_id[f"w-{j:05}"].metadata) == (j % 3 != 0)
    await collection.add(Batch(("new",), expected[:1].copy(), (None,)))
    assert [await store.get(key) for key in await keys(store, "adopted")] == [source]
    again = Indexes(store.sibling(), runtime)
    assert (await again.open("old")).length == count + 1
    await indexes.close()
    await again.close()


async def test_an_unreadable_old_file_is_refused_and_left_alone(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    source = (GOLDEN / "v2-cosine-50x8.lhv1").read_bytes()[:-5]
    await store.put("_vectors/old.lhv1", source)
    indexes = Indexes(store, runtime)
    with pytest.raises(Corrupt):
        await indexes.open("old")
    assert await keys(store) == ["_vectors/old.lhv1"]


@pytest.mark.parametrize("version", [2, 3])
async def test_an_export_imports_into_a_new_index_only(
    runtime: SystemRuntime, tmp_path: Path, version: int
) -> None:
    indexes = Indexes(MemoryStore(), runtime)
    collection = await indexes.create(IndexParams("a", 4))
    await collection.add(items(collection.params, 40))
    await collection.delete(["w-007"])
    await collection.export(tmp_path / "a.lhv1", version)
    copy = await indexes.import_snapshot("copy", tmp_path / "a.lhv1")
    assert copy.length == 39
    assert (await copy.item("w-003")).vector.tobytes() == (await collection.item("w-003")).vector.tobytes()
    assert (await copy.item("w-003")).metadata == b'{"n":3}'
    await copy.add(items(copy.params, 1, "new"))
    with pytest.raises(Conflict):
        await indexes.import_snapshot("copy", tmp_path / "a.lhv1")
    await indexes.close()


async def test_the_compatibility_copy_is_written_at_create_and_after_each_snapshot(
    runtime: SystemRuntime,
) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    collection = await indexes.create(IndexParams("a", 4))
    assert (await store.get("_vectors/a.lhv1"))[:4] == b"LHV1"
    await collection.add(items(collection.params, 5))
    [key] = snapshot_keys(await collection.snapshot())
    assert await store.get("_vectors/a.lhv1") == await store.get(key)
    await indexes.close()


async def test_snapshots_let_data_entries_go_but_never_fences_nor_the_newest(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime, EngineSettings(snapshot_log_entries=4))
    collection = await indexes.create(IndexParams("a", 4))
    for j in range(20):
        await collection.add(items(collection.params, 2, f"p{j}"))
        if j % 5 == 4:
            await collection.snapshot()
    left = {
        names.sequence_of(key): decode_header(await store.get(key)).kind for key in await keys(store, "/log/")
    }
    assert left[1] is Kind.FENCE
    assert min(seq for seq, kind in left.items() if kind is Kind.DATA) > 10
    assert max(left) == collection.position.sequences[0]
    assert len(await keys(store, "/snap/")) == 2
    again = Indexes(store.sibling(), runtime)
    assert (await again.open("a")).length == 40
    await indexes.close()
    await again.close()


async def test_a_log_of_many_entries_makes_a_snapshot_by_itself(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime, EngineSettings(snapshot_log_entries=5, settle_after_s=0.05))
    collection = await indexes.create(IndexParams("a", 4))
    for j in range(12):
        await collection.add(items(collection.params, 1, f"p{j}"))
    await collection.settle()
    assert await keys(store, "/snap/")
    await indexes.close()


async def test_a_named_snapshot_keeps_its_file_and_its_name(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    collection = await indexes.create(IndexParams("a", 4))
    await collection.add(items(collection.params, 3))
    [key] = snapshot_keys(await collection.snapshot("before-upgrade"))
    for j in range(4):
        await collection.add(items(collection.params, 1, f"p{j}"))
        await collection.snapshot()
    assert await keys(store, "/named/before-upgrade/") == [key]
    assert len(await keys(store, "/snap/")) == 2
    assert read_v3(await store.get(key)).items == 3
    with pytest.raises(Conflict):
        await collection.snapshot("before-upgrade")
    with pytest.raises(Invalid):
        await collection.snapshot("Not A Name")
    await indexes.close()


async def test_a_named_snapshots_record_tells_since_when_it_is_whole_and_an_older_one_does_not(
    runtime: SystemRuntime,
) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    collection = await indexes.create(IndexParams("a", 4))
    before = runtime.now().replace(microsecond=0)
    await collection.snapshot("new")
    [new] = await indexes.named_snapshots("a")
    assert new.completed_at is not None
    assert before <= new.completed_at <= runtime.now()
    assert collection.record.uuid is not None
    record = json.loads(await store.get(names.named_snapshot_key("a", collection.record.uuid, "new")))
    del record["completed_at"]
    data = json.dumps(record).encode()
    await store.put(names.named_snapshot_key("a", collection.record.uuid, "old"), data)
    old = next(one for one in await indexes.named_snapshots("a") if one.name == "old")
    assert (old.completed_at, old.files) == (None, new.files)
    assert named.completed_at(b'{"completed_at": 7, "files": []}') is None
    await indexes.close()


async def test_what_is_left_of_a_snapshot_is_its_own_where_no_record_says_otherwise(
    runtime: SystemRuntime,
) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    collection = await indexes.create(IndexParams("a", 4))
    life = collection.record.uuid
    assert life is not None

    async def left(snapshot: str, *, was_whole: bool) -> bool:
        return await named_snapshots.left_behind(store, "a", snapshot, life, was_whole=was_whole)

    assert not await left("x", was_whole=True)
    await store.put(f"{names.named_prefix('a', life, 'x')}0123abcd/0000.lhv1", b"half")
    assert await left("x", was_whole=False)
    await collection.snapshot("y")
    await store.put(names.named_snapshot_key("a", life, "y"), b"torn")
    assert not await left("y", was_whole=False)  # another's, for all that anybody knows
    assert await left("y", was_whole=True)
    await indexes.close()


def test_flipped_bytes_in_the_store_are_refused_or_repaired() -> None:
    """Every byte of the records and log entries, and a sample of each snapshot's."""

    async def play() -> None:
        world = World(1, sim())
        writer = world.start("writer")
        collection = await writer.indexes.create(PARAMS)
        for j in range(3):
            await collection.add(batch({f"a{j}": j, f"b{j}": j}))
            await collection.snapshot()
        await collection.add(batch({"last": 9}))
        expected = {item.id: int(item.metadata) for item in (await collection.scroll())[0]}
        position = collection.position
        repaired = refused = 0
        for key in await keys(world.bucket, f"_vectors/{PARAMS.name}/"):
            original = await world.bucket.get(key)
            for at in range(0, len(original), 53 if "/snap/" in key else 1):
                await world.bucket.put(key, original[:at] + bytes([original[at] ^ 0x20]) + original[at + 1 :])
                newcomer = world.start("newcomer")
                try:
                    found = await newcomer.indexes.open(PARAMS.name)
                    seen = {item.id: int(item.metadata) for item in (await found.scroll())[0]}
                    assert (seen, found.position) == (expected, position), (key, at)
                    repaired += 1
                except Corrupt:
                    refused += 1
                newcomer.crash()
            await world.bucket.put(key, original)
        assert repaired > 50  # an older snapshot and the log stand in for a rotten one
        assert refused > 500

    run(play)


# ------------------------------------------------------------------- writing and reading


async def test_a_reused_idempotency_key_replays_the_same_body_and_refuses_another(
    runtime: SystemRuntime,
) -> None:
    indexes = Indexes(MemoryStore(), runtime)
    collection = await indexes.create(IndexParams("a", 4))
    first = await collection.add(items(collection.params, 3), idempotency_key="k")
    again = await collection.add(items(collection.params, 3), idempotency_key="k")
    assert (first.added, first.length, first.replayed) == (3, 3, False)
    assert (again.added, again.length, again.replayed) == (3, 3, True)
    with pytest.raises(Conflict, match="another body"):
        await collection.add(items(collection.params, 2), idempotency_key="k")
    assert collection.length == 3
    await indexes.close()


async def test_an_index_of_many_shards_answers_as_one(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    whole = await indexes.create(IndexParams("whole", 4))
    parts = await indexes.create(IndexParams("parts", 4), shards=3)
    for collection in (whole, parts):
        await collection.add(items(collection.params, 200))
        await collection.delete(["w-000", "w-111"])
    assert parts.length == whole.length == 198
    assert len({shard_of(f"w-{j:03}", 3) for j in range(200)}) == 3
    queries = vectors(5, seed=9)
    one = await whole.search(queries, 10, filter="n < 150")
    two = await parts.search(queries, 10, filter="n < 150")
    assert [[hit.id for hit in hits] for hits in one.hits] == [[hit.id for hit in hits] for hits in two.hits]
    assert one.plan.matched == two.plan.matched == 148
    cursor, seen = None, []
    while True:
        page, cursor = await parts.scroll(cursor, 17)
        seen += [item.id for item in page]
        if cursor is None:
            break
    assert seen == [item.id for item in (await whole.scroll(None, 1000))[0]]
    again = Indexes(store.sibling(), runtime)
    reopened = await again.open("parts")
    assert reopened.length == 198
    assert str(reopened.position) == str(Position.parse(str(parts.position)))
    await indexes.close()
    await again.close()


async def test_merge_skips_what_is_there_or_replaces_it_and_is_idempotent(runtime: SystemRuntime) -> None:
    indexes = Indexes(MemoryStore(), runtime)
    fresh, main = [await indexes.create(IndexParams(name, 4)) for name in ("fresh", "main")]
    await main.add(items(main.params, 5, seed=1))
    await fresh.add(items(fresh.params, 8, seed=2))
    result = await indexes.merge("fresh", "main")
    assert (result.merged, result.skipped_already_present, result.failed) == (3, 5, 0)
    assert (result.length_dest, result.length_source) == (8, 8)
    assert (await indexes.merge("fresh", "main")).skipped_already_present == 8
    replaced = await indexes.merge("fresh", "main", replace=True, clear_source=True)
    assert (replaced.merged, replaced.length_dest, replaced.length_source) == (8, 8, 0)
    assert (await main.item("w-000")).vector.tobytes() == vectors(8, seed=2)[0].tobytes()
    other = await indexes.create(IndexParams("other", 3))
    with pytest.raises(Invalid, match="dimensions differ"):
        await indexes.merge("main", other.name)
    for dest in ("", "main"):
        with pytest.raises(Invalid):
            await indexes.merge("main", dest)
    with pytest.raises(NotFound):
        await indexes.merge("main", "nowhere")
    await indexes.close()


async def test_delete_where_takes_what_matches(runtime: SystemRuntime) -> None:
    indexes = Indexes(MemoryStore(), runtime)
    collection = await indexes.create(IndexParams("a", 4))
    await collection.add(items(collection.params, 50))
    result = await collection.delete_where("n >= 10 AND n < 40")
    assert (result.deleted, result.length, await collection.count("n >= 10")) == (30, 20, 10)
    await indexes.close()


async def test_recall_of_an_exact_index_is_one(runtime: SystemRuntime) -> None:
    indexes = Indexes(MemoryStore(), runtime)
    collection = await indexes.create(IndexParams("a", 4))
    assert (await collection.recall())["recall"] is None
    await collection.add(items(collection.params, 300))
    assert (await collection.recall(20))["recall"] == 1.0
    await indexes.close()


async def test_a_query_of_another_dimension_or_without_direction_is_refused(runtime: SystemRuntime) -> None:
    indexes = Indexes(MemoryStore(), runtime)
    collection = await indexes.create(IndexParams("a", 4))
    for query in (vectors(1, 5), np.zeros((1, 4), np.float32), np.full((1, 4), np.nan, np.float32)):
        with pytest.raises(Invalid):
            collection.search_now(query, 3)
        with pytest.raises(Invalid):
            await collection.search(query, 3)
    await indexes.close()


# ------------------------------------------------------------------------ limits and luck


class FullStore(MemoryStore):
    """Has no room for log entries while `full`."""

    full = False

    async def create(self, key: str, data: BytesLike) -> None:
        if self.full and "/log/" in key:
            raise StorageFull(f"no space left. key=`{key}`", outcome=Outcome.NOT_COMMITTED)
        await super().create(key, data)


async def test_a_full_store_refuses_at_once_and_loses_nothing(runtime: SystemRuntime) -> None:
    store = FullStore()
    indexes = Indexes(store, runtime)
    collection = await indexes.create(IndexParams("a", 4))
    await collection.add(items(collection.params, 2))
    store.full = True
    with pytest.raises(StorageFull) as refused:
        await collection.add(items(collection.params, 3, "more"))
    assert refused.value.outcome is Outcome.NOT_COMMITTED
    assert collection.length == 2
    store.full = False
    assert (await collection.add(items(collection.params, 3, "more"))).length == 5
    await indexes.close()


async def test_a_batch_over_the_limit_is_refused_before_it_is_queued(runtime: SystemRuntime) -> None:
    indexes = Indexes(MemoryStore(), runtime, EngineSettings(batch_bytes_max=100))
    collection = await indexes.create(IndexParams("a", 4))
    with pytest.raises(TooLarge):
        await collection.add(items(collection.params, 20))
    await indexes.close()


def sim(**changes: object) -> EngineSettings:
    return replace(simulated_settings(), snapshot_log_entries=10_000, **changes)  # type: ignore[arg-type]


def test_the_queue_is_bounded_and_the_rest_is_told_to_wait() -> None:
    async def play() -> None:
        world = World(1, sim(queue_requests_max=5))
        process = world.start("p")
        collection = await process.indexes.create(PARAMS)
        hold = world.hold(process, "create", "/log/")
        work = [process.run(collection.add(batch({f"i{j}": j}))) for j in range(20)]
        await hold.reached.wait()
        await asyncio.sleep(0.1)
        hold.release()
        done = await asyncio.gather(*work, return_exceptions=True)
        refused = [answer for answer in done if isinstance(answer, Busy)]
        assert 0 < len(refused) < 20
        assert collection.length == 20 - len(refused)

    run(play)


def test_a_log_that_snapshots_do_not_shorten_stops_writes() -> None:
    async def play() -> None:
        process = World(1, sim(log_bytes_max=100)).start("p")
        collection = await process.indexes.create(PARAMS)
        await collection.add(batch({"a": 1}))
        with pytest.raises(Busy, match="log is too long"):
            await collection.add(batch({"b": 1}))

    run(play)


@pytest.mark.parametrize(
    ("fault", "outcome"), [(Fault.REFUSED, Outcome.NOT_COMMITTED), (Fault.LOST_REQUEST, Outcome.UNKNOWN)]
)
def test_a_store_that_is_away_gives_503_then_at_once_while_reads_go_on(
    fault: Fault, outcome: Outcome
) -> None:
    async def play() -> None:
        world = World(1, sim())
        process = world.start("p")
        collection = await process.indexes.create(PARAMS)
        await collection.add(batch({"a": 1}))
        world.weather = Weather(chances={fault: 1.0})
        loop = asyncio.get_running_loop()
        with pytest.raises(Unavailable) as first:
            await collection.add(batch({"b": 2}))
        assert first.value.outcome is outcome
        began = loop.time()
        for j in range(50):
            with pytest.raises(Unavailable) as again:
                await collection.add(batch({f"c{j}": 3}))
            assert again.value.outcome is Outcome.NOT_COMMITTED
        assert loop.time() == began  # the breaker answers without waiting
        assert await collection.refresh(Consistency.STRONG) > 0
        assert value_of(collection, "a") == 1
        world.calm()
        await asyncio.sleep(10)
        await collection.add(batch({"d": 4}))
        assert await collection.refresh(Consistency.STRONG) == 0.0
        assert value_of(collection, "d") == 4

    run(play)


def test_a_read_waits_for_the_position_it_asks_for() -> None:
    async def play() -> None:
        world = World(1, sim())
        writer, reader = world.start("writer"), world.start("reader")
        collection = await writer.indexes.create(PARAMS)
        written = await collection.add(batch({"a": 1}))
        other = await reader.indexes.open(PARAMS.name)
        await collection.add(batch({"a": 2}))
        assert written.position is not None
        later = Position(written.position.incarnation, (written.position.sequences[0] + 1,))
        await other.refresh(Consistency.EVENTUAL, later)
        assert value_of(other, "a") == 2
        beyond = Position(later.incarnation, (99,))
        with pytest.raises(Unavailable, match="not reached"):
            await other.refresh(Consistency.EVENTUAL, beyond)

    run(play)


async def test_close_finishes_what_was_taken(runtime: SystemRuntime) -> None:
    store = MemoryStore()
    indexes = Indexes(store, runtime)
    collection: Collection = await indexes.create(IndexParams("a", 4))
    work = [asyncio.ensure_future(collection.add(items(collection.params, 5, f"p{j}"))) for j in range(10)]
    await asyncio.sleep(0)
    await indexes.close()
    done = await asyncio.gather(*work, return_exceptions=True)
    taken = sum(not isinstance(answer, BaseException) for answer in done)
    again = Indexes(store.sibling(), runtime)
    assert (await again.open("a")).length == 5 * taken > 0
    with pytest.raises(Unavailable):
        await collection.add(items(collection.params, 1))
    await again.close()


def test_two_writers_take_turns_and_lose_nothing() -> None:
    async def play() -> None:
        world = World(5, sim())
        one, two = world.start("one"), world.start("two")
        first = await one.indexes.create(PARAMS)
        second = await two.indexes.open(PARAMS.name)
        for j in range(10):
            await asyncio.gather(first.add(batch({f"a{j}": j})), second.add(batch({f"b{j}": j})))
        await first.refresh(Consistency.STRONG)
        await second.refresh(Consistency.STRONG)
        assert first.length == second.length == 20
        assert first.shard_list[0].replica.digest == second.shard_list[0].replica.digest

    run(play)


async def test_a_different_distance_keeps_its_definition(runtime: SystemRuntime) -> None:
    indexes = Indexes(MemoryStore(), runtime)
    a, b = np.array([3.0, 0.0], np.float32), np.array([0.0, 4.0], np.float32)
    expected = {Distance.COSINE: 1.0, Distance.EUCLIDEAN: 5.0, Distance.DOT: 0.0}
    for distance, value in expected.items():
        collection = await indexes.create(IndexParams(distance.value, 2, distance=distance))
        await collection.add(Batch(("a",), a[None], (None,)))
        found = await collection.search(b[None], 1)
        assert found.hits[0][0].distance == pytest.approx(value)
    await indexes.close()
