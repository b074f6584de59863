"""Each safety rule has a bug that breaks it, and a directed schedule, kept by its seed, that finds the bug.

Every schedule is played twice: with the engine as it is it must lose nothing, with the bug planted it must lose.
"""

import asyncio
import io
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from lakehouse import incarnations, snapshots
from lakehouse.collection import Collection
from lakehouse.core import names
from lakehouse.core.entry import NO_DIGEST, EncodedEntry, Entry
from lakehouse.core.errors import LakehouseError, Unavailable
from lakehouse.core.incarnation import Incarnation, begin
from lakehouse.core.lhv1 import Covered
from lakehouse.core.types import Batch, Consistency
from lakehouse.core.window import IdempotencyWindow
from lakehouse.engine_settings import EngineSettings
from lakehouse.index.shard_index import Applied, ShardIndex
from lakehouse.indexes import Indexes
from lakehouse.log import Backoff, ShardLog, Slot
from lakehouse.replica import Replica
from lakehouse.seeding import Seed
from lakehouse.shard import Shard
from lakehouse.snapshots import Image, SnapshotRef, write_image
from lakehouse.testing.history import ABSENT, Lost
from lakehouse.testing.schedules import MERGE_PARAMS, PARAMS, assert_somewhere, batch, present, value_of
from lakehouse.testing.world import Fault, Hold, Process, World, run, simulated_settings

Schedule = Callable[[World], Coroutine[Any, Any, None]]
Plant = Callable[[pytest.MonkeyPatch], None]

SETTINGS = replace(simulated_settings(), snapshot_log_entries=10_000, write_deadline_s=60.0)
"""Directed schedules take their snapshots themselves."""


def slot(seq: int) -> str:
    return f"/log/{seq:020}"


async def add(process: Process, values: dict[str, int], key: str | None = None) -> None:
    collection = await process.indexes.open(PARAMS.name)
    await collection.add(batch(values), idempotency_key=key)


async def snapshot(process: Process) -> None:
    await (await process.indexes.open(PARAMS.name)).snapshot()


async def fence(process: Process) -> None:
    """Become the writer without writing anything."""
    [shard] = (await process.indexes.open(PARAMS.name)).shard_list
    async with shard._chain:
        await shard._become_writer()


async def catch_up(process: Process) -> None:
    await (await process.indexes.open(PARAMS.name)).refresh(Consistency.STRONG)


async def finished(work: "asyncio.Task[None]", hold: Hold) -> None:
    hold.release()
    await work


async def expect(world: World, expected: dict[str, int]) -> None:
    """A newcomer sees exactly `expected`.  Raises `Lost`."""
    newcomer = world.start("newcomer")
    try:
        collection = await newcomer.indexes.open(PARAMS.name)
        await collection.refresh(Consistency.STRONG)
    except LakehouseError as error:
        raise Lost(f"a newcomer cannot open the index: {error}") from error
    seen = {item_id: value_of(collection, item_id) for item_id in expected}
    if seen != expected or collection.length != sum(value != ABSENT for value in expected.values()):
        raise Lost(f"a newcomer sees {seen} of {collection.length}, expected {expected}")


# ---------------------------------------------------------------- directed schedules


async def stalled_writer_wakes_after_garbage_collection(world: World) -> None:
    old, new = world.start("old"), world.start("new")
    await old.indexes.create(PARAMS)
    await add(old, {"a": 1})  # slots 1 FENCE, 2
    hold = world.hold(old, "create", slot(3))
    late = old.run(add(old, {"b": 2}))
    await hold.reached.wait()
    await new.run(add(new, {"c": 3}))  # 3 FENCE, 4
    await new.run(add(new, {"d": 4}))  # 5
    await new.run(snapshot(new))
    await new.run(add(new, {"e": 5}))  # 6
    await new.run(snapshot(new))  # collects up to 5
    await finished(late, hold)  # acknowledged now
    await expect(world, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5})


async def fence_lands_in_a_collected_slot(world: World) -> None:
    writer, late = world.start("writer"), world.start("late")
    await writer.indexes.create(PARAMS)
    await add(writer, {"a": 1})
    await catch_up(late)
    hold = world.hold(late, "create", slot(3))
    work = late.run(add(late, {"b": 2}))
    await hold.reached.wait()
    for name, value in (("c", 3), ("d", 4)):
        await writer.run(add(writer, {name: value}))  # 3, 4
    await writer.run(snapshot(writer))
    await writer.run(add(writer, {"e": 5}))  # 5
    await writer.run(snapshot(writer))  # collects 2 to 4
    await finished(work, hold)
    await expect(world, {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5})


async def answer_is_lost_before_the_slot_is_written(world: World) -> None:
    writer = world.start("writer")
    await writer.indexes.create(PARAMS)
    await add(writer, {"a": 1})
    world.strike(writer, "create", slot(3), Fault.LOST_REQUEST)
    await writer.run(add(writer, {"b": 2}))
    await expect(world, {"a": 1, "b": 2})


async def _lagging_reader_on_a_forked_chain(world: World) -> Process:
    """A reader at 2 will find a void fence in slot 3, and the newest snapshot, which would tell it, is rotten."""
    writer, second, stale, reader = (world.start(name) for name in ("writer", "second", "stale", "reader"))
    await writer.indexes.create(PARAMS)
    await add(writer, {"a": 1})  # 1 FENCE, 2
    await catch_up(reader)
    await catch_up(stale)
    before = world.hold(stale, "create", slot(3))
    after = world.hold(stale, "answer", slot(3))
    stale.run(add(stale, {"x": 9}))
    await before.reached.wait()
    await writer.run(add(writer, {"b": 2}))  # 3
    await writer.run(snapshot(writer))  # covers 3
    await second.run(fence(second))  # 4 FENCE
    await second.run(snapshot(second))  # covers 4; collects 2 and 3
    before.release()
    await after.reached.wait()  # the stale fence lies in slot 3
    stale.crash()
    newest = max(info.key for info in await world.bucket.list("_vectors/main/") if "/snap/" in info.key)
    data = bytearray(await world.bucket.get(newest))
    data[-1] ^= 1
    await world.bucket.put(newest, bytes(data))
    return reader


async def forked_reader_becomes_the_writer(world: World) -> None:
    reader = await _lagging_reader_on_a_forked_chain(world)
    await reader.run(add(reader, {"d": 4}))
    await expect(world, {"a": 1, "b": 2, "d": 4})


async def forked_reader_is_asked_for_a_snapshot(world: World) -> None:
    reader = await _lagging_reader_on_a_forked_chain(world)
    await reader.run(catch_up(reader))
    await reader.run(snapshot(reader))
    await expect(world, {"a": 1, "b": 2})


async def request_is_repeated_after_a_crash(world: World) -> None:
    first, second = world.start("first"), world.start("second")
    await first.indexes.create(PARAMS)
    await first.run(add(first, {"a": 1}, key="one"))
    await first.run(add(first, {"a": 2}, key="two"))
    first.crash()
    await second.run(add(second, {"a": 1}, key="one"))
    await expect(world, {"a": 2})


async def request_is_repeated_after_a_snapshot(world: World) -> None:
    first, second = world.start("first"), world.start("second")
    await first.indexes.create(PARAMS)
    await first.run(add(first, {"a": 1}, key="one"))
    await first.run(add(first, {"a": 2}, key="two"))
    await first.run(snapshot(first))
    first.crash()
    await second.run(add(second, {"a": 1}, key="one"))
    await expect(world, {"a": 2})


async def adoption_is_killed_halfway(world: World) -> None:
    index = ShardIndex(PARAMS)
    index.upsert(batch({"a": 1, "b": 2}), 1)
    uuid = world.start("old system").runtime.uuid()
    out = io.BytesIO()
    covered = Covered(uuid, 0, 7, 1, NO_DIGEST, 2, 1)
    write_image(out, Image(PARAMS, covered, 2, index.view(), b""))
    await world.bucket.put(names.compatibility_key(PARAMS.name), out.getvalue())
    first, second = world.start("first"), world.start("second")
    hold = world.hold(first, "put", "/snap/")
    first.run(catch_up(first))
    await hold.reached.wait()
    first.crash()
    hold.release()
    try:
        await second.run(catch_up(second))
    except LakehouseError as error:
        raise Lost(f"the adopted index cannot be opened: {error}") from error
    await expect(world, {"a": 1, "b": 2})


async def deletion_by_filter_of_one_that_could_not_look(world: World) -> None:
    writer, other = world.start("writer"), world.start("other")
    collection = await writer.indexes.create(PARAMS)
    await collection.add(replace(batch({"a": 1}), metadata=(b'{"n": 1}',)))
    await catch_up(other)
    await collection.add(replace(batch({"b": 2}), metadata=(b'{"n": 2}',)))
    world.strike(other, "get", "/log/", Fault.REFUSED)
    known = await other.indexes.open(PARAMS.name)
    try:
        await known.delete_where("n > 0")
    except Unavailable:
        await known.delete_where("n > 0")
    if left := (await present(world.start("newcomer"))).length:
        raise Lost(f"{left} items are there that matched, and were acknowledged before they were deleted")


async def two_merges_in_opposite_directions(world: World) -> None:
    left, right = (params.name for params in MERGE_PARAMS)
    one, two = world.start("one"), world.start("two")
    for params in MERGE_PARAMS:
        collection = await one.indexes.create(params)
        await collection.add(batch({"x": 7}))
    hold = world.hold(one, "create", f"_vectors/{left}/")
    first = one.run(one.indexes.merge(left, right, clear_source=True))
    await hold.reached.wait()  # copied; the deletion from left is on its way
    await two.run(two.indexes.merge(right, left, clear_source=True))
    hold.release()
    await first
    await assert_somewhere(world, ["x"])


# ---------------------------------------------------------------------- planted bugs


def collects_fences(patch: pytest.MonkeyPatch) -> None:
    async def is_garbage(self: Shard, seq: int) -> bool:
        return True

    patch.setattr(Shard, "is_garbage", is_garbage)


def does_not_validate_after_fencing(patch: pytest.MonkeyPatch) -> None:
    async def validated(self: Shard, fence: int) -> bool:
        return True

    patch.setattr(Shard, "_validated", validated)


def steps_past_an_unresolved_slot(patch: pytest.MonkeyPatch) -> None:
    async def settle(self: ShardLog, seq: int, encoded: EncodedEntry, backoff: Backoff) -> Slot:
        try:
            await self.store.create(self.key(seq), encoded.data)
        except Unavailable:
            await self.store.create(self.key(seq + 1), encoded.data)
        return Slot.OURS

    patch.setattr(ShardLog, "settle", settle)


def has_no_digest_anchor(patch: pytest.MonkeyPatch) -> None:
    async def anchored(self: Shard, ref: SnapshotRef) -> bool:
        return True

    patch.setattr(Shard, "_anchored", anchored)


def lets_readers_snapshot(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Shard, "may_snapshot", lambda self: True)


def does_not_replay_the_window(patch: pytest.MonkeyPatch) -> None:
    take = Shard._take

    def forgetful(self: Shard, replica: Replica, found: Entry, size: int) -> object:
        trouble = take(self, replica, found, size)
        replica.window = IdempotencyWindow()
        return trouble

    patch.setattr(Shard, "_take", forgetful)


def leaves_the_window_out_of_snapshots(patch: pytest.MonkeyPatch) -> None:
    original = snapshots.replica_of

    def without_window(data: memoryview, settings: EngineSettings) -> Replica:
        replica = original(data, settings)
        replica.window = IdempotencyWindow()
        return replica

    patch.setattr(snapshots, "replica_of", without_window)


def adopts_with_the_record_first(patch: pytest.MonkeyPatch) -> None:
    async def seed(self: Indexes, name: str, data: bytes) -> Incarnation:
        record = begin(0, self.runtime.uuid(), replace(PARAMS, name=name), 1)
        await incarnations.create(self.store, self.runtime, name, record)
        assert record.uuid is not None
        await self._seed_content(name, record.uuid, [Seed(ShardIndex(PARAMS), 2)])
        return record

    patch.setattr(Indexes, "_seed", seed)


def keeps_the_version_of_a_skipped_item(patch: pytest.MonkeyPatch) -> None:
    original = ShardIndex.add_if_absent

    def without_touching(self: ShardIndex, wanted: Batch, first_version: int) -> Applied:
        rows: Sequence[int] = [j for j, item_id in enumerate(wanted.ids) if self.version(item_id) is None]
        absent = Batch(
            tuple(wanted.ids[j] for j in rows),
            np.ascontiguousarray(wanted.vectors[list(rows)]),
            tuple(wanted.metadata[j] for j in rows),
        )
        return original(self, absent, first_version) if rows else Applied(0, 0, len(wanted))

    patch.setattr(ShardIndex, "add_if_absent", without_touching)


def works_on_what_it_happens_to_hold(patch: pytest.MonkeyPatch) -> None:
    async def looked(self: Collection) -> None:
        await self.refresh(Consistency.STRONG)

    patch.setattr(Collection, "catch_up", looked)


@dataclass(frozen=True)
class Case:
    seed: int
    schedule: Schedule
    bug: Plant


CASES = (
    Case(1, stalled_writer_wakes_after_garbage_collection, collects_fences),
    Case(2, fence_lands_in_a_collected_slot, does_not_validate_after_fencing),
    Case(3, answer_is_lost_before_the_slot_is_written, steps_past_an_unresolved_slot),
    Case(4, forked_reader_becomes_the_writer, has_no_digest_anchor),
    Case(5, forked_reader_is_asked_for_a_snapshot, lets_readers_snapshot),
    Case(6, request_is_repeated_after_a_crash, does_not_replay_the_window),
    Case(7, request_is_repeated_after_a_snapshot, leaves_the_window_out_of_snapshots),
    Case(8, adoption_is_killed_halfway, adopts_with_the_record_first),
    Case(9, two_merges_in_opposite_directions, keeps_the_version_of_a_skipped_item),
    Case(10, deletion_by_filter_of_one_that_could_not_look, works_on_what_it_happens_to_hold),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.schedule.__name__)
def test_the_engine_loses_nothing_in_a_directed_schedule(case: Case) -> None:
    run(lambda: case.schedule(World(case.seed, SETTINGS)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.bug.__name__)
def test_a_planted_bug_is_found_by_its_directed_schedule(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.bug(monkeypatch)
    with pytest.raises(Lost):
        run(lambda: case.schedule(World(case.seed, SETTINGS)))
