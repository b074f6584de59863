"""A life is replaced while it is written to: what it acknowledged goes over, however late anything lands.

The bucket, the processes and the clock are simulated; the engine is the real one.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from uuid import UUID

import numpy as np
import pytest

from lakehouse import beginning, building, carrying, incarnations, seeding
from lakehouse.collection import Collection
from lakehouse.core import incarnation, names
from lakehouse.core.errors import Conflict, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import Batch, Consistency
from lakehouse.opening import LINGER_S, Opened
from lakehouse.seeding import Seed
from lakehouse.shard import Shard
from lakehouse.testing.history import Lost
from lakehouse.testing.schedules import PARAMS, Act, present, run_schedule, value_of
from lakehouse.testing.world import Fault, Process, World, run
from lakehouse.writing import Writer
from successions import OTHER, RECORD_ONE, SETTINGS, begun, contents, published, put, rows


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Faults warn thousands of times; a failure names its call instead."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# ---------------------------------------------------------------- records that land late


async def _rebuild(builder: Process) -> None:
    await building.rebuild(builder.indexes, OTHER)


async def _build(builder: Process) -> None:
    await building.build(builder.indexes, PARAMS, 2, rows({"built": 1}), replaces=True)


async def _publish(builder: Process) -> None:
    await published(builder, UUID(int=7, version=4), {"built": 1})


@pytest.mark.parametrize("act", [_rebuild, _build, _publish])
@pytest.mark.parametrize("seed", range(4))
def test_a_record_that_lands_after_its_builder_died_loses_no_write(act: Act, seed: int) -> None:
    async def play() -> None:
        world = World(seed, SETTINGS)
        builder, writer = await begun(world)
        hold = world.hold(builder, "create", RECORD_ONE)
        builder.run(act(builder))
        await hold.reached.wait()
        # The PUT is on its way; its sender dies, and others go on with the life that is there.
        key, data = names.incarnation_key(PARAMS.name, 1), await _sent(builder, hold)
        builder.crash()
        await put(writer, {"late": 70})
        await put(writer, {"x0": 71, "x1": 72}, key="once")
        collection = await writer.indexes.open(PARAMS.name)
        await collection.delete(["x2"])
        version = (await collection.item("x3")).version
        await collection.delete_versions(["x3", "x4"], [version, version])
        for j in range(3):  # what would be garbage by now
            await put(writer, {"more": 80 + j})
            await collection.snapshot()
        await world.bucket.create(key, data)
        newcomer = world.start("newcomer")
        for process in (newcomer, writer):
            seen = await contents(process)
            assert [seen.get(item_id) for item_id in ("late", "x0", "x1", "more")] == [70, 71, 72, 82]
            assert not {"x2", "x3"} & seen.keys() or act is not _rebuild
        await put(newcomer, {"x0": 90})
        await put(writer, {"x0": 71, "x1": 72}, key="once")  # a repetition, after the exchange
        assert (await contents(newcomer))["x0"] == 90

    run(play)


async def _sent(process: Process, hold: object) -> bytes:
    """The bytes of the record that a process is about to create."""
    del hold
    lives = {key.split("/")[2] for key in await _keys(process) if "/snap/" in key}
    now = await incarnations.current(process.world.bucket, PARAMS.name)
    assert now is not None
    assert now.uuid is not None
    (life,) = lives - {now.uuid.hex}
    sent = process.creating[names.incarnation_key(PARAMS.name, 1)]
    assert life.encode() in sent
    return sent


async def _keys(process: Process) -> list[str]:
    return [info.key for info in await process.world.bucket.list(names.index_prefix(PARAMS.name))]


@pytest.mark.parametrize("act", [_rebuild, _build])
def test_a_record_in_doubt_is_settled_and_what_was_written_meanwhile_is_there(
    act: Act,
) -> None:
    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        world.weather.late_s = 20.0
        builder, writer = await begun(world)
        for _ in range(incarnations.ATTEMPTS):
            world.strike(builder, "create", RECORD_ONE, world.random.choice((Fault.LATE, Fault.LOST_REQUEST)))
        work = builder.run(act(builder))
        await asyncio.wait([work])
        error = work.exception()
        if error is not None:
            assert isinstance(error, Unavailable)
            assert error.outcome is Outcome.UNKNOWN
        acknowledged = 0
        for j in range(20):
            await asyncio.sleep(2 * world.random.random())
            try:
                await put(writer, {f"w{j}": j})
            except (NotFound, Unavailable):
                continue
            acknowledged += 1
            assert (await contents(world.random.choice((builder, writer))))[f"w{j}"] == j
        assert acknowledged > 10
        await asyncio.sleep(90)
        assert {(await present(process)).record.number for process in (builder, writer)} == {1}

    for seed in range(10):
        run(lambda: play(seed))  # noqa: B023  run at once


# ---------------------------------------------------------------- several processes, one build


def test_a_build_of_several_processes_is_published_once_whoever_is_killed_where() -> None:
    """Two processes race over every step; one is killed at each of its store calls in turn."""
    life = UUID(int=9, version=4)

    async def play(call: int) -> bool:
        world = World(call, SETTINGS)
        _, writer = await begun(world, 1)
        one, two = world.start("one"), world.start("two")
        calls = 0
        original = world.fault

        def struck(process: str, operation: str, key: str) -> Fault:
            nonlocal calls
            if process == one.name:
                calls += 1
                if calls == call:
                    one.crash()
            return original(process, operation, key)

        world.fault = struck  # type: ignore[method-assign]
        works = [process.run(published(process, life, {"a": 1, "b": 2})) for process in (one, two)]
        await asyncio.wait(works)
        assert works[1].exception() is None
        assert call <= calls or works[0].exception() is None
        assert await published(two, life, {"a": 1, "b": 2}) == works[1].result()  # again
        assert works[1].result().number == 1
        for process in (writer, world.start("newcomer")):
            assert await contents(process) == {"a": 1, "b": 2}
        assert [record.uuid for record in await incarnations.every(world.bucket, PARAMS.name)][1:] == [life]
        return call <= calls

    call = 1
    while run(lambda: play(call)):  # noqa: B023  run at once
        call += 1
    assert call > 20


def test_a_life_that_was_replaced_is_not_published_again() -> None:
    async def play() -> None:
        world = World(1, SETTINGS)
        one, _ = await begun(world, 1)
        old, new = UUID(int=1, version=4), UUID(int=2, version=4)
        await published(one, old, {"a": 1})
        await published(one, new, {"b": 2})
        await contents(one)
        with pytest.raises(Conflict, match="has ended"):
            await published(one, old, {"a": 1})
        assert await contents(world.start("newcomer")) == {"b": 2}

    run(lambda: play())


def test_lives_that_nobody_opened_are_replaced_one_after_the_other() -> None:
    """Publications in a row, while a writer has not heard of any: it ends up where everybody else is."""

    async def play() -> None:
        world = World(5, SETTINGS)
        one, writer = await begun(world, 2)
        store, runtime = one.store, one.runtime
        for number in (1, 2, 3):
            life = UUID(int=number, version=4)
            for shard in range(2):
                await building.build_shard(
                    store, runtime, SETTINGS, PARAMS, 2, life, shard, rows({"built": number})
                )
            record = incarnation.begin(0, life, PARAMS, 2, seeded=True)
            begins = await building.publish(store, runtime, record, replaces=True, ends_logs=False)
            assert begins.number == number
            if number == 1:
                await put(writer, {"between": 7})  # the first life goes on until somebody opens the second
        await contents(writer)
        await put(writer, {"after": 9})
        for process in (world.start("newcomer"), writer):
            assert await contents(process) == {"built": 3, "after": 9}

    run(play)


# ---------------------------------------------------------------- what killed builds leave


def test_what_a_killed_build_left_is_swept_and_can_never_begin() -> None:
    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        builder, writer = await begun(world, 1)
        life = UUID(int=5, version=4)
        hold = world.hold(builder, "create", world.random.choice((RECORD_ONE, "/fate/")))
        builder.run(published(builder, life, {"built": 1}))
        await hold.reached.wait()
        held_claim = "/fate/" in hold.key_part
        sweeper = world.start("sweeper")

        async def sweep() -> list[UUID]:
            return await beginning.sweep_unnamed(sweeper.store, sweeper.runtime, PARAMS.name, 3_600)

        assert await sweep() == []  # seen for the first time
        await put(writer, {"more": 1})
        await asyncio.sleep(3_601)
        swept = await sweep()
        assert swept == ([life] if held_claim else [])  # a claimed record may land at any time
        builder.resume()
        hold.release()
        await asyncio.sleep(30)
        if held_claim:
            assert (await contents(writer)).keys() >= {"x0", "more"}
            left = [key for key in await _keys(writer) if life.hex in key and "/fate/" not in key]
            assert left == []
        else:
            assert await contents(writer) == {"built": 1, "more": 1}
            assert await sweep() == []

    for seed in range(12):
        run(lambda: play(seed))  # noqa: B023  run at once


def test_a_claimed_life_is_swept_once_its_record_is_anothers() -> None:
    async def play() -> None:
        world = World(3, SETTINGS)
        builder, writer = await begun(world, 1)
        life = UUID(int=5, version=4)
        hold = world.hold(builder, "create", RECORD_ONE)
        builder.run(published(builder, life, {"built": 1}))
        await hold.reached.wait()
        builder.crash()
        await writer.indexes.take_over(PARAMS.name, "someone")
        assert await beginning.sweep_unnamed(writer.store, writer.runtime, PARAMS.name, 0) == [life]
        with pytest.raises(Conflict, match="removed"):
            await published(writer, life, {"built": 1})
        assert (await contents(writer))["x0"] == 0
        collection = await present(writer)
        for j in range(3):
            await put(writer, {"more": j})
            await collection.snapshot()
        assert collection.shard_list[0].counters.slots_collected > 0  # nothing is pinned any more

    run(lambda: play())


# ---------------------------------------------------------------- following


def _dataset(process: Process) -> None:
    process.indexes.read_only = lambda name: True


def test_readers_of_a_dataset_go_on_while_the_next_life_is_loaded() -> None:
    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        builder, reader = world.start("builder"), world.start("reader")
        _dataset(reader)
        old, new = UUID(int=1, version=4), UUID(int=2, version=4)
        await published(builder, old, {"a": 1, "b": 1})
        assert await contents(reader) == {"a": 1, "b": 1}
        hold = world.hold(reader, "get", new.hex)
        work = builder.run(published(builder, new, {"a": 2, "b": 2}))
        await asyncio.sleep(5)
        assert work.done()
        for _ in range(40):
            collection = await fresh(reader)
            assert value_of(collection, "a") == value_of(collection, "b") == 1
            query = np.array([[0, 1]], np.float32)
            found = await collection.search(query, 2, consistency=Consistency.STRONG)
            assert {hit.metadata for hit in found.hits[0]} == {b"1"}
            await asyncio.sleep(0.2)
        assert hold.reached.is_set()
        assert reader.indexes.life(PARAMS.name, old) is not None
        hold.release()
        await asyncio.sleep(5)
        collection = await fresh(reader)
        assert collection.record.uuid == new
        assert value_of(collection, "a") == 2
        former = reader.indexes.life(PARAMS.name, old)
        assert former is not None
        assert await former.refresh(Consistency.STRONG) > 0
        assert value_of(former, "a") == 1
        assert reader.indexes.life(PARAMS.name, new) is collection
        await asyncio.sleep(LINGER_S + 5)
        assert reader.indexes.life(PARAMS.name, old) is None

    for seed in range(6):
        run(lambda: play(seed))  # noqa: B023  run at once


async def fresh(process: Process) -> Collection:
    """As a request does: once more when the life ended meanwhile."""
    for _ in range(3):
        collection = await process.indexes.open(PARAMS.name)
        try:
            await collection.refresh(Consistency.STRONG)
            return collection
        except NotFound:
            continue
    raise Lost("the index keeps being dropped")


def test_what_is_written_to_waits_for_the_next_life_and_eventual_reads_do_not() -> None:
    async def play() -> None:
        world = World(2, SETTINGS)
        builder, writer = await begun(world, 1)
        hold = world.hold(writer, "get", "/snap/")
        await building.rebuild(builder.indexes, OTHER)
        with pytest.raises(NotFound):
            await (await writer.indexes.open(PARAMS.name)).refresh(Consistency.STRONG)
        for _ in range(2):
            with pytest.raises(Unavailable) as refused:
                await writer.indexes.open(PARAMS.name)
            assert refused.value.outcome is Outcome.NOT_COMMITTED
            assert refused.value.retry_after_s
        assert value_of(await writer.indexes.open(PARAMS.name, eventual=True), "x1") == 1
        hold.release()
        await put(writer, {"x1": 9})
        assert (await contents(builder))["x1"] == 9

    run(lambda: play())


# ---------------------------------------------------------------- planted bugs


def takes_nothing_over(patch: pytest.MonkeyPatch) -> None:
    async def carry(writer: Writer, record: Incarnation, *, complete: bool) -> None:
        if complete:
            writer.continues = None

    async def ahead(writers: Sequence[Writer], record: Incarnation) -> None:
        return

    patch.setattr(carrying, "carry", carry)
    patch.setattr(carrying, "carry_ahead", ahead)


def collects_what_is_pinned(patch: pytest.MonkeyPatch) -> None:
    async def pinned(self: Shard) -> bool:
        return False

    patch.setattr(Shard, "_is_pinned", pinned)


def forgets_the_requests_of_the_old_life(patch: pytest.MonkeyPatch) -> None:
    rebuilt = seeding.rebuilt

    async def without_window(*args: object) -> Seed:
        return replace(await rebuilt(*args), window=b"")  # type: ignore[arg-type]

    patch.setattr(seeding, "rebuilt", without_window)


def sweeps_before_all_is_taken_over(patch: pytest.MonkeyPatch) -> None:
    end_replaced = Opened._end_replaced

    async def swept(self: Opened, name: str, record: Incarnation) -> Incarnation | None:
        ended = await end_replaced(self, name, record)
        if ended is not None:
            from lakehouse import ending

            await ending.sweep(self.store, self.runtime, name, ended)
        return ended

    patch.setattr(Opened, "_end_replaced", swept)


def loses_the_versions(patch: pytest.MonkeyPatch) -> None:
    from lakehouse.index.shard_index import ShardIndex

    def put_back(self: ShardIndex, wanted: Batch, versions: Sequence[int]) -> None:
        self.upsert(wanted, 1_000_000)

    patch.setattr(ShardIndex, "put_back", put_back)


def _schedules() -> None:
    for seed in range(4):
        test_a_record_that_lands_after_its_builder_died_loses_no_write(_rebuild, seed)
    for seed in range(400):
        if seed % 8 in (3, 4):
            run_schedule(seed)


@pytest.mark.parametrize(
    "bug",
    [
        takes_nothing_over,
        collects_what_is_pinned,
        forgets_the_requests_of_the_old_life,
        sweeps_before_all_is_taken_over,
        loses_the_versions,
    ],
)
def test_a_planted_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises((AssertionError, LakehouseError)):
        _schedules()
