"""A life is replaced by another: whatever fails at any call, the name shows one of them whole, and never goes back.

The bucket, the processes and the clock are simulated; the engine is the real one.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest

from lakehouse import building, incarnations
from lakehouse.collection import Collection
from lakehouse.core import names
from lakehouse.core.entry import Kind
from lakehouse.core.errors import Conflict, Dropped, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.incarnation import Incarnation
from lakehouse.core.types import Batch, Consistency
from lakehouse.indexes import Indexes
from lakehouse.log import ShardLog
from lakehouse.replacing import Start
from lakehouse.testing.history import Lost
from lakehouse.testing.schedules import PARAMS, batch, value_of
from lakehouse.testing.world import Fault, Process, World, run, simulated_settings

T = TypeVar("T")
SETTINGS = replace(simulated_settings(), snapshot_log_entries=10_000, write_deadline_s=60.0)
SEARCH_EVERY_S = 0.1
"""A few store calls: often enough to fall between any two steps over all the runs."""
OLD, NEW, NEWER = 1, 2, 3
IDS = [f"x{j}" for j in range(6)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Faults warn thousands of times; a failure names its call instead."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def batches(generation: int) -> AsyncIterator[Batch]:
    for half in (IDS[:3], IDS[3:]):
        await asyncio.sleep(0)
        yield batch(dict.fromkeys(half, generation))


async def build(process: Process, generation: int, shards: int = 2, start: Start | None = None) -> Collection:
    return await building.build(
        process.indexes,
        PARAMS,
        shards,
        batches(generation),
        origin={"generation": generation},
        replaces=True,
        start=start,
    )


def generation_of(collection: Collection) -> int:
    """Which generation is shown.  Raises `Lost` when it is not one of them whole."""
    values = {value_of(collection, item_id) for item_id in IDS}
    if len(values) != 1:
        raise Lost(f"two lives are mixed: {values}")
    said = None if collection.origin is None else collection.origin["generation"]
    if {said} != values:
        raise Lost(f"the items are of generation {values}, the life is of {said}")
    return values.pop()


async def shown(process: Process) -> int:
    """The generation a process shows after everything acknowledged before this call."""
    return generation_of(await fresh(process))


async def fresh(process: Process) -> Collection:
    """As a request does: again when the life ended meanwhile."""
    for _ in range(4):
        collection = await process.indexes.open(PARAMS.name)
        try:
            await collection.refresh(Consistency.STRONG)
            return collection
        except Dropped:
            continue
    raise Lost("the index keeps being dropped")


class Searches:
    """Reads all the time in one process: none fails, none is mixed, none goes back."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.seen = [OLD]
        self._task = process.run(self._run())

    async def _run(self) -> None:
        query = np.array([[0, 1]], np.float32)
        while True:
            await asyncio.sleep(SEARCH_EVERY_S)
            collection = await fresh(self.process)
            found = await collection.search(query, len(IDS), consistency=Consistency.EVENTUAL)
            values = {int(hit.metadata) for hit in found.hits[0]}
            if len(values) != 1 or len(found.hits[0]) != len(IDS):
                raise Lost(f"a search mixed lives: {found.hits[0]}")
            if values.pop() < self.seen[-1]:
                raise Lost(f"a search went back from {self.seen[-1]}")
            self.seen.append(int(found.hits[0][0].metadata))

    async def stop(self) -> None:
        """Raises what a search raised."""
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()


class Calls:
    """Counts one process's store calls, and does something at one of them."""

    def __init__(self, process: Process, at: int, act: Callable[[], None], *, after: bool = False) -> None:
        self.count = 0
        self.at = at
        store = process.store
        call = store._call

        async def counted(operation: str, key: str, effect: Callable[[], Coroutine[Any, Any, T]]) -> T:
            self.count += 1
            due = self.count == at

            async def struck() -> T:
                if not after:
                    act()
                    await asyncio.sleep(0)
                answer = await effect()
                if after:
                    act()
                    await asyncio.sleep(0)
                return answer

            return await call(operation, key, struck if due else effect)

        store._call = counted  # type: ignore[method-assign]

    @property
    def reached(self) -> bool:
        return self.count >= self.at


async def prepared(world: World, shards: int) -> tuple[Process, Process]:
    """A builder and a bystander, both with the old life open and some log behind it."""
    builder, other = world.start("builder"), world.start("other")
    await build(builder, OLD, shards)
    collection = await other.indexes.open(PARAMS.name)
    await collection.add(batch({"extra": 7}))
    await collection.delete(["extra"])
    assert await shown(builder) == OLD
    return builder, other


async def _crash_at(call: int, shards: int, *, after: bool) -> bool:
    """Whether the call was reached."""
    world = World(call, SETTINGS)
    builder, other = await prepared(world, shards)
    searches = Searches(other)
    calls = Calls(builder, call, builder.crash, after=after)
    work = builder.run(build(builder, NEW, shards))
    await asyncio.wait([work])
    await asyncio.sleep(5)
    newcomer = world.start("newcomer")
    seen = await shown(newcomer)
    for process in (other, newcomer):
        if await shown(process) != seen:
            raise Lost(f"{process.name} shows another life than the newcomer, which shows {seen}")
    if seen == OLD:
        await (await fresh(other)).add(batch({"later": 8}))
        assert value_of(await fresh(newcomer), "later") == 8
    await build(newcomer, NEWER, shards)
    assert {await shown(process) for process in (other, newcomer, world.start("last"))} == {NEWER}
    await searches.stop()
    return calls.reached


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_call_of_a_replacement_leaves_one_life_whole(shards: int, after: bool) -> None:
    call = 1
    while run(lambda: _crash_at(call, shards, after=after)):  # noqa: B023  run at once
        call += 1
    assert call > 15


async def _fault_at(call: int, fault: Fault) -> bool:
    world = World(call, SETTINGS)
    builder, other = await prepared(world, 2)
    searches = Searches(other)

    def strike() -> None:
        """Nothing: the fault is the world's."""

    calls = Calls(builder, call, strike)
    original = world.fault

    def struck(process: str, operation: str, key: str) -> Fault:
        if process == builder.name and calls.count == call:
            return fault if fault is not Fault.MISSING or operation == "get" else Fault.NONE
        return original(process, operation, key)

    world.fault = struck  # type: ignore[method-assign]
    outcome = None
    try:
        await builder.run(build(builder, NEW))
    except Unavailable as error:
        outcome = error.outcome
    except LakehouseError:
        outcome = Outcome.NOT_COMMITTED
    world.fault = original  # type: ignore[method-assign]
    await asyncio.sleep(6)
    seen = {await shown(process) for process in (builder, other, world.start("newcomer"))}
    if outcome is None and seen != {NEW}:
        raise Lost(f"a build that was acknowledged is not there: {seen}")
    if len(seen) != 1:
        raise Lost(f"processes differ: {seen}")
    await build(builder, NEWER)
    assert {await shown(process) for process in (builder, other, world.start("last"))} == {NEWER}
    await searches.stop()
    return calls.reached


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE])
def test_a_fault_at_any_call_of_a_replacement_is_completed_or_undone(fault: Fault) -> None:
    call = 1
    while run(lambda: _fault_at(call, fault)):  # noqa: B023  run at once
        call += 1
    assert call > 15


def test_what_was_acknowledged_to_the_old_life_came_before_the_new_one() -> None:
    """A writer of another process goes on until it learns: no acknowledged write is in neither life."""

    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        builder, other = await prepared(world, 2)
        done, began = asyncio.Event(), asyncio.Event()
        written: list[tuple[str, Any]] = []
        kept: set[str] = set()
        """Of those the ones acknowledged after the build had begun."""

        async def write() -> None:
            number = 0
            while not done.is_set():
                number += 1
                collection = await other.indexes.open(PARAMS.name)
                begun = began.is_set()
                try:
                    result = await collection.add(batch({f"w{number}": number}))
                except Dropped:
                    continue
                assert result.position is not None
                written.append((f"w{number}", result.position.incarnation))
                # A strong read anywhere that begins now shows it, also in a later life, which takes it over.
                seen = await fresh(world.random.choice([builder, other]))
                if seen.record.uuid != result.position.incarnation:
                    assert generation_of(seen) == NEW
                    assert result.position.incarnation == old
                if begun or seen.record.uuid == result.position.incarnation:
                    assert value_of(seen, f"w{number}") == number
                if begun:
                    kept.add(f"w{number}")

        old = (await fresh(other)).record.uuid
        task = other.run(write())
        await asyncio.sleep(world.random.uniform(0, 0.2))
        start = await builder.run(builder.indexes.vacancy(PARAMS.name, 2, replaces=True))
        began.set()
        new = await builder.run(build(builder, NEW, start=start))
        await asyncio.sleep(2)
        done.set()
        await task
        last = await fresh(world.start("last"))
        assert last.record.uuid == new.record.uuid
        for item_id, life in written:
            if life == new.record.uuid or item_id in kept:
                assert value_of(last, item_id) == int(item_id[1:])
        assert written
        assert kept
        assert written[-1][1] == new.record.uuid

    for seed in range(40):
        run(lambda: play(seed))  # noqa: B023  run at once


def test_a_writer_that_stalls_over_a_replacement_is_refused() -> None:
    async def play() -> None:
        world = World(1, SETTINGS)
        builder, other = await prepared(world, 1)
        old = await other.indexes.open(PARAMS.name)
        hold = world.hold(other, "create", "/log/")
        work = other.run(old.add(batch({"late": 9})))
        await hold.reached.wait()
        await build(builder, NEW, 1)
        await asyncio.sleep(5)  # the old life's data entries are swept
        hold.release()
        with pytest.raises(NotFound):
            await work
        assert await shown(other) == NEW
        assert value_of(await fresh(other), "late") == -1

    run(play)


def test_two_builds_of_one_name_replace_it_once() -> None:
    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        builder, other = await prepared(world, 2)
        works = [builder.run(build(builder, NEW)), other.run(build(other, NEWER))]
        await asyncio.wait(works)
        errors = [work.exception() for work in works]
        assert any(error is None for error in errors), errors
        assert all(error is None or isinstance(error, Conflict) for error in errors), errors
        seen = {await shown(process) for process in (builder, other, world.start("last"))}
        assert len(seen) == 1
        lives = {info.key.split("/")[2] for info in await world.bucket.list(names.index_prefix(PARAMS.name))}
        assert len(lives) == 1 + 1 + sum(
            error is None for error in errors
        )  # inc, the first life, those built

    for seed in range(40):
        run(lambda: play(seed))  # noqa: B023  run at once


def test_a_drop_beside_a_replacement_leaves_the_name_free_or_with_the_new_life() -> None:
    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        builder, other = await prepared(world, 2)
        build_work = builder.run(build(builder, NEW))
        await asyncio.sleep(world.random.uniform(0, 0.3))
        await other.run(other.indexes.drop(PARAMS.name))
        await asyncio.wait([build_work])
        error = build_work.exception()
        assert error is None or isinstance(error, Conflict | Unavailable), error
        last = world.start("last")
        if PARAMS.name in await last.indexes.names():
            assert {await shown(process) for process in (builder, other, last)} == {NEW}
            return
        for process in (builder, other, last):
            with pytest.raises(NotFound):
                await fresh(process)
        await build(builder, NEWER)
        assert await shown(other) == NEWER

    for seed in range(60):
        run(lambda: play(seed))  # noqa: B023  run at once


def test_a_new_owner_beside_a_drop_does_not_bring_the_index_back() -> None:
    async def play(seed: int) -> None:
        world = World(seed, SETTINGS)
        builder, other = await prepared(world, 1)
        taking = builder.run(builder.indexes.take_over(PARAMS.name, "someone"))
        await asyncio.sleep(world.random.uniform(0, 0.05))
        await other.run(other.indexes.drop(PARAMS.name))
        await asyncio.wait([taking])
        error = taking.exception()
        assert error is None or isinstance(error, Conflict | NotFound), error
        for process in (builder, other, world.start("last")):
            with pytest.raises(NotFound):
                await fresh(process)
        assert await other.indexes.names() == []
        await other.indexes.create(PARAMS)

    for seed in range(60):
        run(lambda: play(seed))  # noqa: B023  run at once


# ---------------------------------------------------------------- planted bugs


def serves_the_new_life_before_the_old_logs_end(patch: pytest.MonkeyPatch) -> None:
    async def end_replaced(self: Indexes, name: str, record: Incarnation) -> None:
        return

    async def carry(self: Indexes, collection: Collection) -> None:
        return

    patch.setattr(Indexes, "_end_replaced", end_replaced)
    patch.setattr(Indexes, "_carry", carry)


def test_serving_before_the_old_logs_end_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder dies between the record and the logs' end: a newcomer and the old writer would part ways."""

    async def play() -> None:
        world = World(3, SETTINGS)
        builder, other = await prepared(world, 1)
        hold = world.hold(builder, "create", "/log/")
        builder.run(build(builder, NEW, 1))
        await hold.reached.wait()
        builder.crash()
        hold.release()
        newcomer = world.start("newcomer")
        assert await shown(newcomer) == NEW
        old = await other.indexes.open(PARAMS.name)
        try:
            result = await old.add(batch({"late": 9}))
        except Dropped:
            return
        assert result.position is not None
        if value_of(await fresh(newcomer), "late") != 9:
            raise Lost("a write was acknowledged that nobody will see")

    run(play)
    serves_the_new_life_before_the_old_logs_end(monkeypatch)
    with pytest.raises(Lost):
        run(play)


def ends_the_old_logs_before_the_record(patch: pytest.MonkeyPatch) -> None:
    place = Indexes._place

    async def logs_first(self: Indexes, new: Collection, old: Collection | None, start: Start) -> None:
        if old is not None:
            await self._drop_logs(old)
        await place(self, new, old, start)

    patch.setattr(Indexes, "_place", logs_first)


def serves_the_new_life_before_the_record_takes_effect(patch: pytest.MonkeyPatch) -> None:
    async def early(self: Indexes, new: Collection, old: Collection | None, start: Start) -> None:
        await incarnations.create(self.store, self.runtime, new.name, new.record)
        self._exchange(new.name, new)
        if old is not None:
            await self._drop_logs(old)

    patch.setattr(Indexes, "_place", early)


@pytest.mark.parametrize(
    ("plant", "schedule"),
    [
        (
            ends_the_old_logs_before_the_record,
            lambda: test_a_crash_at_any_call_of_a_replacement_leaves_one_life_whole(1, after=False),
        ),
        (
            serves_the_new_life_before_the_record_takes_effect,
            lambda: test_what_was_acknowledged_to_the_old_life_came_before_the_new_one(),
        ),
    ],
    ids=["logs first", "serving first"],
)
def test_another_order_of_the_steps_is_found(
    plant: Callable[[pytest.MonkeyPatch], None],
    schedule: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plant(monkeypatch)
    with pytest.raises((NotFound, AssertionError)):
        schedule()


# ---------------------------------------------------------------- ends off the chain


def test_an_end_that_lands_in_a_collected_slot_ends_nothing() -> None:
    async def play() -> None:
        world = World(4, SETTINGS)
        ender, writer = world.start("ender"), world.start("writer")
        collection = await writer.indexes.create(PARAMS)
        await collection.add(batch({"a": 1}))
        behind = await ender.indexes.open(PARAMS.name)
        uuid = collection.record.uuid
        assert uuid is not None
        log = ShardLog(ender.store, ender.runtime, PARAMS.name, uuid, 0)
        hold = world.hold(ender, "create", "/log/")
        work = ender.run(log.end(behind.shard_list[0]._backoff))
        await hold.reached.wait()
        for j in range(3):
            await collection.add(batch({f"b{j}": j}))
            await collection.snapshot()
        stopped = world.hold(ender, "list", "/log/")
        hold.release()
        await stopped.reached.wait()  # its end lies in a slot that was collected
        late = world.start("late")
        assert (await fresh(late)).length == 4
        await collection.add(batch({"c": 5}))
        stopped.release()
        await work
        with pytest.raises(Dropped):
            await collection.add(batch({"d": 5}))
        newest = (await log.after(0))[-1]
        assert (await log.read_header(newest)).kind is Kind.DROP

    run(play)
