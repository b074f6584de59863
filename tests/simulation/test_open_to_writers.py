"""What writers gave an index is not replaced by what a dataset gives it, unless somebody asked for that.

An empty index is built over while it is written to, and an index that followed its dataset takes writes for a while:
whenever the writes come, they are there afterwards.  The bucket, the processes and the clock are simulated.
"""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import pytest

from lakehouse import beginning, building, incarnations
from lakehouse.core import incarnation, names
from lakehouse.core.entry import Operation
from lakehouse.core.errors import (
    Conflict,
    CredentialsRefused,
    Invalid,
    LakehouseError,
    NotFound,
    Outcome,
    Unavailable,
)
from lakehouse.core.incarnation import Incarnation, Origin
from lakehouse.jobs import index_tasks
from lakehouse.jobs.tasks import Build
from lakehouse.jobs.workplace import Workplace
from lakehouse.lives import take_over
from lakehouse.settings import load
from lakehouse.store.base import BytesLike
from lakehouse.testing.schedules import PARAMS, batch, present
from lakehouse.testing.world import Fault, Process, World, run, simulated_settings
from successions import OTHER, RECORD_ONE, SETTINGS, contents, put, rows

GIVEN = {"dataset": "d"}
WRITTEN = {"dataset": "d", "follow": "Once"}
SHORT = replace(simulated_settings(), write_deadline_s=60.0)
"""With which logs are collected after a few entries."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Faults warn thousands of times; a failure names its call instead."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


async def job(
    process: Process,
    number: int,
    values: dict[str, int],
    *,
    shards: int = 1,
    adopts: bool = False,
    origin: Origin = GIVEN,
) -> Incarnation:
    """What the pods of one build do, in one; as the operator's Jobs do, the old logs are left to whoever serves."""
    store, runtime, settings = process.store, process.runtime, process.world.settings
    life = UUID(int=number, version=4)
    start = await building.agreed_start(store, runtime, settings, PARAMS.name, life, adopts=adopts)
    for shard in range(shards):
        await building.build_shard(store, runtime, settings, PARAMS, shards, life, shard, rows(values))
    record = incarnation.begin(
        0, life, PARAMS, shards, "owner", origin, start.ends, seeded=True, continues=start.continues
    )
    begun = await building.publish(
        store, runtime, record, replaces=True, ends_logs=False, settings=settings, guards=True
    )
    await building.forget_start(store, PARAMS.name, life)
    return begun


async def record_of(process: Process) -> Incarnation:
    found = await incarnations.current(process.world.bucket, PARAMS.name)
    assert found is not None
    return found


async def emptied(world: World, shards: int) -> tuple[Process, Process]:
    """A builder, and a writer whose index is empty again: what it held was deleted, snapshotted and collected."""
    builder, writer = world.start("builder"), world.start("writer")
    await writer.indexes.create(PARAMS, shards)
    collection = await writer.indexes.open(PARAMS.name)
    for j in range(6):
        await put(writer, {f"x{j}": j})
    await collection.delete([f"x{j}" for j in range(6)])
    for shard in collection.shard_list:
        await shard.snapshot()
    assert collection.length == 0
    return builder, writer


async def writes(process: Process, acknowledged: dict[str, int]) -> None:
    """One after the other, now and then with a snapshot, which lets the log be collected."""
    for j in range(1_000):
        try:
            await put(process, {f"w{j}": j})
        except (NotFound, Unavailable):
            continue
        acknowledged[f"w{j}"] = j
        if j % 5 == 4:
            try:
                await (await process.indexes.open(PARAMS.name)).shard_list[0].snapshot()
            except LakehouseError:
                continue
        await asyncio.sleep(0.05)


# ---------------------------------------------------------------- building over an empty index


@pytest.mark.parametrize(("old_shards", "shards"), [(1, 1), (2, 2), (1, 3), (3, 1)])
def test_an_empty_index_loses_no_write_while_it_is_built(old_shards: int, shards: int) -> None:
    async def play(seed: int) -> None:
        world = World(seed, SHORT)
        builder, writer = await emptied(world, old_shards)
        acknowledged: dict[str, int] = {}
        hold = world.hold(builder, "put", "/snap/")
        given = {"x0": 5_000, "built": 5_001}
        work = builder.run(job(builder, 1, given, shards=shards, origin=WRITTEN))
        await hold.reached.wait()
        writing = writer.run(writes(writer, acknowledged))
        await asyncio.sleep(2)
        hold.release()
        begun = await work
        assert begun.continues is not None
        await asyncio.sleep(2)
        await writer.indexes.renew(PARAMS.name)
        await asyncio.sleep(1)
        writing.cancel()
        await asyncio.wait([writing])
        assert len(acknowledged) > 10
        for process in (world.start("newcomer"), writer):
            seen = await contents(process)
            # What was deleted before the build does not take the dataset's row of that id with it.
            assert seen.items() >= (given | acknowledged).items()
            assert len(seen.keys() - given.keys() - acknowledged.keys()) <= 1  # the last one, given up

    for seed in range(4):
        run(lambda: play(seed))  # noqa: B023  run at once


async def _killed_at(call: int) -> bool:
    """Whether the call was reached."""
    world = World(call, SHORT)
    builder, writer = await emptied(world, 2)
    count = 0
    ask = builder.store._call

    async def counted(operation, key, effect):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count == call:
            await put(writer, {"meanwhile": 7})
            builder.crash()
        return await ask(operation, key, effect)

    builder.store._call = counted  # type: ignore[method-assign]
    work = builder.run(job(builder, 1, {"built": 1}, shards=2, origin=WRITTEN))
    await asyncio.wait([work])
    for number in (1, 2):  # the next pod of the Job, then the next Job
        try:
            await job(world.start(f"next {number}"), number, {"built": 1}, shards=2, origin=WRITTEN)
            break
        except Conflict:
            continue
    seen = await contents(writer)
    if count >= call:
        assert seen["meanwhile"] == 7
    assert seen == await contents(world.start("newcomer"))
    assert seen.get("built") == 1 or seen == {"meanwhile": 7}
    return count >= call


def test_a_builder_of_an_empty_index_killed_at_any_call_loses_no_write() -> None:
    call = 1
    while run(lambda: _killed_at(call)):  # noqa: B023  run at once
        call += 1
    assert call > 15


def test_a_builder_that_comes_late_agrees_with_the_first_about_what_goes_over() -> None:
    async def play() -> None:
        world = World(1, SHORT)
        builder, writer = await emptied(world, 1)
        life = UUID(int=1, version=4)
        first = await building.agreed_start(
            builder.store, builder.runtime, SHORT, PARAMS.name, life, adopts=False
        )
        for j in range(30):
            await put(writer, {f"w{j}": j})
        assert (await record_of(builder)).number == 0
        late = world.start("late")
        again = await building.agreed_start(late.store, late.runtime, SHORT, PARAMS.name, life, adopts=False)
        assert again == first
        assert first.continues is not None
        begun = await job(late, 1, {"built": 1})
        assert begun.continues == first.continues
        assert await contents(writer) == {"built": 1} | {f"w{j}": j for j in range(30)}
        assert await world.bucket.list(names.continues_key(PARAMS.name, life)) == []

    run(play)


def test_an_index_that_holds_anything_is_built_over_only_when_that_is_given_up() -> None:
    async def play() -> None:
        world = World(2, SHORT)
        builder, writer = await emptied(world, 2)
        await put(writer, {"held": 1})
        with pytest.raises(Conflict, match="writers"):
            await job(builder, 1, {"built": 1})
        assert await contents(writer) == {"held": 1}
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(job(builder, 2, {"built": 2}, adopts=True))
        await hold.reached.wait()
        await put(writer, {"meanwhile": 3})
        hold.release()
        await work
        assert await contents(writer) == {"built": 2, "meanwhile": 3}

    run(play)


def test_what_is_given_up_goes_also_where_it_was_not_taken_over_yet() -> None:
    """A rebuild has begun a life that nobody has opened; what was written before it is in the old logs still."""

    async def play() -> None:
        world = World(13, SETTINGS)
        builder, writer = world.start("builder"), world.start("writer")
        await job(world.start("before"), 1, {"a": 1, "b": 1}, shards=2)
        await put(writer, {"mine": 7})
        await building.rebuild(builder.indexes, OTHER, serve=False)
        await put(writer, {"late": 9})
        await (await writer.indexes.open(PARAMS.name)).delete(["a"])
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(job(builder, 3, {"a": 3, "b": 3}, shards=2, adopts=True))
        await hold.reached.wait()
        await present(writer)
        await put(writer, {"meanwhile": 10})
        hold.release()
        await work
        assert await contents(writer) == {"a": 3, "b": 3, "meanwhile": 10}

    run(play)


async def _struck_at(call: int, fault: Fault, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """One call of a build's pod that fails three times; whether the call was reached."""
    world = World(call, SHORT)
    builder, writer = await emptied(world, 1)
    calls = 0

    async def manifest(*_: object) -> SimpleNamespace:
        return SimpleNamespace(row_count=1)

    def told(*_: object) -> SimpleNamespace:
        return SimpleNamespace(manifest=manifest, batches=lambda: rows({"built": 1}))

    def struck(process: str, operation: str, key: str) -> Fault:
        nonlocal calls
        calls += process == builder.name
        return fault if process == builder.name and call <= calls < call + 3 else Fault.NONE

    monkeypatch.setattr(index_tasks, "Catalog", told)
    monkeypatch.setattr(index_tasks, "Rows", told)
    world.fault = struck  # type: ignore[method-assign]
    task = Build(PARAMS, 1, UUID(int=1, version=4), "d", 1, "id", "vector", replaces=True, origin=WRITTEN)
    place = Workplace(builder.store, builder.runtime, load(), scratch)
    assert (await builder.run(index_tasks.build(task, 0, place)))["published"]
    assert await contents(writer) == {"built": 1}
    return calls >= call


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST_REQUEST, Fault.LOST_ANSWER])
def test_a_store_that_hiccups_ends_no_build(
    fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be begun again, which takes long, or refused where the index was written to meanwhile."""
    call = 1
    while run(lambda: _struck_at(call, fault, tmp_path, monkeypatch)):  # noqa: B023  run at once
        call += 1
    assert call > 15


@pytest.mark.parametrize("call", ["list", "get"])
def test_a_builder_that_looks_while_the_others_begin_the_life_is_done_too(call: str) -> None:
    async def play() -> None:
        world = World(14, SHORT)
        builder, writer = await emptied(world, 1)
        if call == "get":  # else the first to agree is done before this one asks
            life = UUID(int=1, version=4)
            await building.agreed_start(
                builder.store, builder.runtime, SHORT, PARAMS.name, life, adopts=False
            )
        late = world.start("late")
        hold = world.hold(late, call, "/continues")
        work = late.run(job(late, 1, {"built": 1}))
        await hold.reached.wait()
        begun = await job(builder, 1, {"built": 1})
        await put(writer, {"mine": 7})
        hold.release()
        assert await work == begun
        assert await contents(writer) == {"built": 1, "mine": 7}
        assert await world.bucket.list(names.continues_key(PARAMS.name, UUID(int=1, version=4))) == []

    run(play)


def test_what_the_builders_agreed_about_goes_at_the_latest_with_the_life() -> None:
    """The last of them was killed when it had published."""

    async def play() -> None:
        world = World(15, SHORT)
        builder, writer = await emptied(world, 1)
        hold = world.hold(builder, "delete", "/continues")
        builder.run(job(builder, 1, {"built": 1}))
        await hold.reached.wait()
        builder.crash()
        assert await contents(writer) == {"built": 1}
        await writer.indexes.drop(PARAMS.name)
        await asyncio.sleep(1)
        assert await world.bucket.list(names.continues_key(PARAMS.name, UUID(int=1, version=4))) == []

    run(play)


def test_what_was_added_to_an_empty_index_is_put_over_the_dataset() -> None:
    """An answer has said that it was added, and a merge has removed it where it came from."""

    async def play() -> None:
        world = World(16, SHORT)
        builder, writer = await emptied(world, 2)
        await writer.indexes.create(replace(PARAMS, name="fresh"))
        fresh = await writer.indexes.open("fresh")
        await fresh.add(batch({"x": 7, "y": 7, "put": 7}))
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(job(builder, 1, {"x": 1, "y": 1, "put": 1, "gone": 1}, shards=2, origin=WRITTEN))
        await hold.reached.wait()
        await put(writer, {"put": 6, "gone": 6})
        merged = await writer.indexes.merge("fresh", PARAMS.name, clear_source=True)
        assert (merged.merged, merged.skipped_already_present, fresh.length) == (2, 1, 0)
        collection = await writer.indexes.open(PARAMS.name)
        await collection.delete(["gone"])
        await collection.write(Operation.ADD_IF_ABSENT, batch({"gone": 8, "x": 9}))
        before = await contents(writer)
        hold.release()
        await work
        assert await contents(writer) == before == {"x": 7, "y": 7, "put": 6, "gone": 8}

    run(play)


def test_another_build_that_was_first_is_not_replaced_by_one_of_an_empty_index() -> None:
    async def play() -> None:
        world = World(3, SHORT)
        builder, writer = await emptied(world, 1)
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(job(builder, 1, {"built": 1}))
        await hold.reached.wait()
        await job(world.start("other"), 2, {"built": 2})
        hold.release()
        await asyncio.wait([work])
        assert isinstance(work.exception(), Conflict)
        assert await contents(writer) == {"built": 2}

    run(play)


@pytest.mark.parametrize("part", ["/snap/", RECORD_ONE])
@pytest.mark.parametrize("adopts", [False, True])
def test_an_index_that_was_dropped_while_its_next_version_was_built_stays_dropped(
    part: str, adopts: bool
) -> None:
    async def play() -> None:
        world = World(17, SETTINGS)
        builder, writer = world.start("builder"), world.start("writer")
        await job(world.start("before"), 1, {"a": 1})
        assert await contents(writer) == {"a": 1}
        hold = world.hold(builder, "put" if part == "/snap/" else "create", part)
        work = builder.run(job(builder, 2, {"a": 2}, adopts=adopts))
        await hold.reached.wait()
        await writer.indexes.drop(PARAMS.name)
        hold.release()
        await asyncio.wait([work])
        assert isinstance(work.exception(), Conflict)
        assert not (await record_of(writer)).alive
        with pytest.raises(Conflict, match="dropped"):
            await job(world.start("late"), 3, {"a": 3})

    run(play)


# ---------------------------------------------------------------- what a dataset gave is written to


@pytest.mark.parametrize("shards", [1, 3])
def test_the_first_write_says_so_in_the_record_and_nothing_else_does(shards: int) -> None:
    async def play() -> None:
        world = World(1, SETTINGS)
        one, two = world.start("one"), world.start("two")
        for number in (1, 2):
            await job(world.start(f"builder {number}"), number, {"a": 1, "b": 1}, shards=shards)
            for process in (one, two):
                collection = await present(process)
                await collection.snapshot()
                assert len(await contents(process)) == 2
        assert (await record_of(one)).origin == GIVEN
        await asyncio.gather(*(put(one, {f"o{j}": j}) for j in range(5)), put(two, {"t": 1}))
        record = await record_of(one)
        assert (record.number, record.origin, record.owner) == (2, WRITTEN, "owner")
        assert (record.uuid, record.ends, record.seeded) == (
            UUID(int=2, version=4),
            UUID(int=1, version=4),
            True,
        )
        for process in (one, two):
            assert (await process.indexes.open(PARAMS.name)).origin == WRITTEN
        await put(two, {"t": 2})
        assert await record_of(one) == record
        with pytest.raises(Conflict, match="writers"):
            await job(world.start("builder 3"), 3, {"a": 3})
        assert (await contents(world.start("newcomer"))).keys() >= {"a", "o4", "t"}

    run(play)


async def _first_write_at(call: int, *, after: bool) -> bool:
    """A write that comes at one call of the next version's publication; whether the call was reached."""
    world = World(call, SETTINGS)
    builder, writer = world.start("builder"), world.start("writer")
    await job(world.start("before"), 1, {"a": 1}, shards=2)
    assert await contents(writer) == {"a": 1}
    count = 0
    ask = builder.store._call
    writing: list[asyncio.Task[None]] = []

    async def counted(operation, key, effect):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count != call:
            return await ask(operation, key, effect)
        if not after:
            writing.append(writer.run(put(writer, {"mine": 7})))
            await asyncio.sleep(world.random.choice((0, 0.01, 1)))
        answer = await ask(operation, key, effect)
        if after:
            writing.append(writer.run(put(writer, {"mine": 7})))
            await asyncio.sleep(world.random.choice((0, 0.01, 1)))
        return answer

    builder.store._call = counted  # type: ignore[method-assign]
    work = builder.run(job(builder, 2, {"a": 2}, shards=2))
    await asyncio.wait([work])
    for task in writing:
        await task
    seen = await contents(world.start("newcomer"))
    if isinstance(work.exception(), Conflict):
        assert seen == {"a": 1, "mine": 7}
    else:
        await work
        assert seen == {"a": 2} | ({"mine": 7} if writing else {})
    assert seen == await contents(writer)
    record = await record_of(writer)
    assert record.origin == (WRITTEN if writing else GIVEN)
    if writing:
        with pytest.raises(Conflict, match="writers"):
            await job(world.start("next"), 3, {"a": 3}, shards=2)
        assert (await contents(writer))["mine"] == 7
    else:
        await job(world.start("next"), 3, {"a": 3}, shards=2)
        assert await contents(writer) == {"a": 3}
    return count >= call


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_the_first_write_survives_the_next_version_whenever_it_comes(after: bool) -> None:
    call = 1
    while run(lambda: _first_write_at(call, after=after)):  # noqa: B023  run at once
        call += 1
    assert call > 15


def test_a_mark_on_its_way_while_the_next_version_begins_is_made_on_that_one() -> None:
    async def play() -> None:
        world = World(4, SETTINGS)
        builder, writer = world.start("builder"), world.start("writer")
        await job(world.start("before"), 1, {"a": 1})
        assert await contents(writer) == {"a": 1}
        hold = world.hold(writer, "create", RECORD_ONE)
        writing = writer.run(put(writer, {"mine": 7}))
        await hold.reached.wait()
        await job(builder, 2, {"a": 2})
        hold.release()
        await writing  # to the old life, which has been replaced already
        assert await contents(writer) == {"a": 2, "mine": 7}
        assert (await record_of(writer)).origin == WRITTEN

    run(play)


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.LATE])
def test_no_write_is_acknowledged_before_the_record_says_so(fault: Fault) -> None:
    async def play() -> None:
        world = World(5, SETTINGS)
        writer = world.start("writer")
        await job(world.start("builder"), 1, {"a": 1})
        assert await contents(writer) == {"a": 1}
        for _ in range(incarnations.ATTEMPTS + 2):  # more than one attempt of the write makes
            world.strike(writer, "create", RECORD_ONE, fault)
        writing = writer.run(put(writer, {"mine": 7}))
        while not writing.done():
            await asyncio.sleep(0.01)
            key = names.log_prefix(PARAMS.name, UUID(int=1, version=4), 0)
            entries = [await world.bucket.get(info.key) for info in await world.bucket.list(key)]
            if any(b"mine" in data for data in entries):
                assert (await record_of(writer)).origin == WRITTEN
        await writing
        assert (await record_of(writer)).origin == WRITTEN
        assert await contents(world.start("newcomer")) == {"a": 1, "mine": 7}

    run(play)


@pytest.mark.parametrize("written", [False, True])
def test_a_followed_index_that_took_writes_over_says_so(written: bool) -> None:
    """It was empty and open to writers; from its first version on nothing but the dataset changes it."""

    async def play() -> None:
        world = World(6, SHORT)
        builder, writer = await emptied(world, 2)
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(job(builder, 1, {"a": 1}, shards=2))
        await hold.reached.wait()
        if written:
            await put(writer, {"late": 9})
        hold.release()
        await work
        assert await contents(writer) == {"a": 1} | ({"late": 9} if written else {})
        assert (await record_of(writer)).origin == (WRITTEN if written else GIVEN)
        assert (await writer.indexes.open(PARAMS.name)).origin == (WRITTEN if written else GIVEN)
        if written:
            with pytest.raises(Conflict, match="writers"):
                await job(builder, 2, {"a": 2}, shards=2)
        else:
            await job(builder, 2, {"a": 2}, shards=2)
        assert (await contents(writer)).get("late") == (9 if written else None)

    run(play)


def test_one_process_says_so_too_of_what_it_takes_over() -> None:
    async def play() -> None:
        world = World(7, SETTINGS)
        builder, writer = world.start("builder"), world.start("writer")
        await job(world.start("before"), 1, {"a": 1})
        assert await contents(writer) == {"a": 1}
        start = await builder.indexes.vacancy(PARAMS.name, 1, replaces=True)
        await put(writer, {"late": 9})
        await building.build(
            builder.indexes, PARAMS, 1, rows({"a": 2}), origin=GIVEN, replaces=True, start=start
        )
        assert await contents(writer) == {"a": 2, "late": 9}
        assert (await builder.indexes.open(PARAMS.name)).origin == WRITTEN
        assert (await record_of(builder)).origin == WRITTEN

    run(play)


def test_a_rebuild_keeps_what_the_record_says_of_writers() -> None:
    async def play() -> None:
        world = World(8, SETTINGS)
        builder, writer = world.start("builder"), world.start("writer")
        await job(world.start("before"), 1, {"a": 1})
        assert await contents(writer) == {"a": 1}
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(building.rebuild(builder.indexes, OTHER))
        await hold.reached.wait()
        await put(writer, {"late": 9})
        hold.release()
        await work
        assert (await record_of(builder)).origin == WRITTEN
        assert await contents(writer) == {"a": 1, "late": 9}
        assert (await record_of(builder)).params == OTHER

    run(play)


def test_what_a_build_of_an_empty_index_left_is_swept() -> None:
    async def play() -> None:
        world = World(9, SHORT)
        builder, writer = await emptied(world, 1)
        life = UUID(int=1, version=4)
        hold = world.hold(builder, "put", "/snap/")
        builder.run(job(builder, 1, {"built": 1}))
        await hold.reached.wait()
        builder.crash()
        assert await beginning.sweep_unnamed(writer.store, writer.runtime, PARAMS.name, 0) == [life]
        left = [info.key for info in await world.bucket.list(names.index_prefix(PARAMS.name))]
        assert [key for key in left if life.hex in key] == [names.fate_key(PARAMS.name, life, 0)]
        with pytest.raises(Conflict, match="removed"):
            await job(world.start("late"), 1, {"built": 1})

    run(play)


def test_what_comes_while_an_index_is_given_up_for_the_next_version_goes_over() -> None:
    """Its resource still has the annotation from before, and its pods do not know yet that they may not write."""

    async def play() -> None:
        world = World(10, SETTINGS)
        builder, writer = world.start("builder"), world.start("writer")
        await job(world.start("before"), 1, {"a": 1})
        assert await contents(writer) == {"a": 1}
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(job(builder, 2, {"a": 2}, adopts=True))
        await hold.reached.wait()
        await put(writer, {"meanwhile": 3})
        hold.release()
        await work
        assert await contents(writer) == {"a": 2, "meanwhile": 3}

    run(play)


@pytest.mark.parametrize("empty", [False, True])
def test_an_origin_as_long_as_may_be_has_room_for_the_mark(empty: bool) -> None:
    """Whether a client is the first to write, or what it wrote is taken over."""
    origin = {**GIVEN, "columns": "c" * 4_068}
    with pytest.raises(Invalid, match="at most 4096 bytes"):
        incarnation.begin(0, UUID(int=1), PARAMS, 1, origin={**origin, "columns": "c" * 4_069})

    async def play() -> None:
        world = World(11, SHORT)
        if empty:
            builder, writer = await emptied(world, 1)
        else:
            builder, writer = world.start("builder"), world.start("writer")
            await job(world.start("before"), 1, {"a": 1}, origin=origin)
            assert await contents(writer) == {"a": 1}
            await put(writer, {"late": 9})
            assert await contents(writer) == {"a": 1, "late": 9}
            await take_over(writer.store, writer.runtime, PARAMS.name, "another")
            assert (await record_of(writer)).origin == {**origin, **WRITTEN}
            return
        hold = world.hold(builder, "put", "/snap/")
        work = builder.run(job(builder, 1, {"a": 1}, origin=origin))
        await hold.reached.wait()
        await put(writer, {"late": 9})
        hold.release()
        await work
        assert await contents(writer) == {"a": 1, "late": 9}

    run(play)


def test_a_store_that_refuses_the_mark_is_told_of_as_what_it_is() -> None:
    async def play() -> None:
        world = World(12, SETTINGS)
        writer = world.start("writer")
        await job(world.start("before"), 1, {"a": 1})
        assert await contents(writer) == {"a": 1}
        create = writer.store.create

        async def refuse(key: str, data: BytesLike) -> None:
            if "/inc/" in key:
                raise CredentialsRefused("denied", outcome=Outcome.NOT_COMMITTED)
            await create(key, data)

        writer.store.create = refuse  # type: ignore[method-assign]
        with pytest.raises(CredentialsRefused):
            await put(writer, {"late": 9})

    run(play)
