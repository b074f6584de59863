"""Directed schedules for what once went wrong: drops half done, processes left behind, snapshots that fail."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from lakehouse.core.errors import Conflict, Dropped, NotFound, Unavailable
from lakehouse.core.names import shard_of
from lakehouse.core.types import Consistency
from lakehouse.testing.history import ABSENT
from lakehouse.testing.schedules import PARAMS, batch, value_of
from lakehouse.testing.world import Fault, Weather, World, run, simulated_settings

SETTINGS = replace(simulated_settings(), snapshot_log_entries=10_000)


def ids_of_shards(shards: int) -> list[str]:
    """One id for each shard, in the order of shards."""
    return [
        next(f"x{j}" for j in range(100) if shard_of(f"x{j}", shards) == shard) for shard in range(shards)
    ]


def test_a_half_finished_drop_is_finished_in_every_shard_before_the_name_is_free() -> None:
    async def play() -> None:
        world = World(1, SETTINGS)
        dropper, writer, creator = (world.start(name) for name in ("dropper", "writer", "creator"))
        first, second = ids_of_shards(2)
        await dropper.indexes.create(PARAMS, shards=2)
        old = await writer.indexes.open(PARAMS.name)
        await old.add(batch({first: 1, second: 1}))
        dropper_side = await dropper.indexes.open(PARAMS.name)
        await dropper_side.shard_list[0].drop()
        dropper.crash()
        await creator.indexes.create(PARAMS, shards=2)
        with pytest.raises(Dropped):
            await old.add(batch({second: 2}))

    run(play)


def test_a_process_that_missed_the_last_write_before_a_drop_serves_the_next_life() -> None:
    async def play() -> None:
        world = World(2, SETTINGS)
        behind, ahead = world.start("behind"), world.start("ahead")
        await ahead.indexes.create(PARAMS)
        await (await ahead.indexes.open(PARAMS.name)).add(batch({"a": 1}))
        collection = await behind.indexes.open(PARAMS.name)
        await (await ahead.indexes.open(PARAMS.name)).add(batch({"b": 2}))
        await ahead.indexes.drop(PARAMS.name)
        await asyncio.sleep(5)  # data entries are swept
        await ahead.indexes.create(PARAMS)
        await (await ahead.indexes.open(PARAMS.name)).add(batch({"c": 3}))
        with pytest.raises(NotFound):
            await collection.refresh(Consistency.STRONG)
        new = await behind.indexes.fresh(PARAMS.name)
        assert (value_of(new, "c"), new.length) == (3, 1)

    run(play)


@pytest.mark.parametrize("act", ["create", "drop"])
def test_a_process_that_knows_an_earlier_life_acts_on_the_present_one(act: str) -> None:
    async def play() -> None:
        world = World(3, SETTINGS)
        behind, ahead = world.start("behind"), world.start("ahead")
        await ahead.indexes.create(PARAMS)
        await behind.indexes.open(PARAMS.name)
        await ahead.indexes.drop(PARAMS.name)
        if act == "create":
            collection = await behind.indexes.create(PARAMS)
            await collection.add(batch({"a": 1}))
            assert (await ahead.indexes.open(PARAMS.name)).length == 1
            return
        await ahead.indexes.create(PARAMS)
        await behind.indexes.drop(PARAMS.name)
        assert await world.start("newcomer").indexes.names() == []

    run(play)


def test_one_idempotency_key_is_one_request_over_all_shards() -> None:
    async def play() -> None:
        world = World(4, SETTINGS)
        collection = await world.start("p").indexes.create(PARAMS, shards=3)
        ids = ids_of_shards(3)
        await collection.add(batch({ids[0]: 1}), idempotency_key="k")
        for other in ({ids[1]: 1}, {ids[0]: 1, ids[2]: 1}):
            with pytest.raises(Conflict):
                await collection.add(batch(other), idempotency_key="k")
        assert [value_of(collection, item_id) for item_id in ids] == [1, ABSENT, ABSENT]
        again = await collection.add(batch({ids[0]: 1}), idempotency_key="k")
        assert again.replayed

    run(play)


def test_a_batch_of_which_one_part_may_be_there_is_unknown() -> None:
    async def play() -> None:
        world = World(5, SETTINGS)
        process = world.start("p")
        collection = await process.indexes.create(PARAMS, shards=2)
        first, second = ids_of_shards(2)
        await collection.add(batch({first: 1, second: 1}))
        world.strikes.clear()
        world.weather = Weather(chances={Fault.REFUSED: 1.0})
        hold = world.hold(process, "create", "/0001/log/")
        work = process.run(collection.add(batch({first: 2, second: 2})))
        await hold.reached.wait()
        world.strike(process, "create", "/0001/log/", Fault.LOST_ANSWER)
        hold.release()
        with pytest.raises(Unavailable) as told:
            await work
        assert told.value.outcome.value == "unknown"

    run(play)


def test_a_snapshot_that_is_due_is_tried_again_and_leaves_no_file_behind(tmp_path: Path) -> None:
    async def play() -> None:
        world = World(6, replace(simulated_settings(), scratch=tmp_path, snapshot_log_entries=3))
        process = world.start("p")
        collection = await process.indexes.create(PARAMS)
        for _ in range(3):
            world.strike(process, "put", "/snap/", Fault.LOST_REQUEST)
        for j in range(5):
            await collection.add(batch({f"i{j}": j}))
        await asyncio.sleep(300)
        [shard] = collection.shard_list
        assert (shard.counters.snapshot_failures, shard.counters.snapshots) == (3, 1)
        assert list(tmp_path.iterdir()) == []

    run(play)


def test_a_named_snapshot_survives_what_others_collect_meanwhile() -> None:
    async def play() -> None:
        world = World(7, SETTINGS)
        slow, busy = world.start("slow"), world.start("busy")
        await slow.indexes.create(PARAMS)
        collection = await slow.indexes.open(PARAMS.name)
        await collection.add(batch({"a": 1}))
        hold = world.hold(slow, "create", "/named/kept.json")
        work = slow.run(collection.snapshot("kept"))
        await hold.reached.wait()
        other = await busy.indexes.open(PARAMS.name)
        for j in range(4):
            await other.add(batch({f"b{j}": j}))
            await other.snapshot()
        hold.release()
        described = await work
        files = described["files"]
        assert isinstance(files, list)
        for file in files:
            assert (await world.bucket.get(file["key"]))[:4] == b"LHV1"

    run(play)
