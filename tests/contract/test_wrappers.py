"""The wrappers do what they say: faults reach caller and store as described, and repeat from their seed."""

import asyncio
import random
from pathlib import Path

import pytest

from lakehouse.core.errors import Conflict, LakehouseError, NotFound, Outcome, StorageFull, Unavailable
from lakehouse.runtime import SystemRuntime
from lakehouse.store.local import LocalStore
from lakehouse.store.memory import MemoryStore
from lakehouse.store.wrappers import (
    Fault,
    FaultKind,
    FaultyStore,
    LatencyStore,
    MeteredStore,
    RandomFaults,
    Scripted,
    ScriptedFaults,
    kinds_for,
)


def faulty(
    runtime: SystemRuntime, operation: str, fault: Fault, **when: int
) -> tuple[MemoryStore, FaultyStore]:
    inner = MemoryStore()
    return inner, FaultyStore(inner, runtime, ScriptedFaults([Scripted(operation, "^k$", fault, **when)]))


@pytest.mark.parametrize(
    ("kind", "error", "outcome", "done"),
    [
        (FaultKind.REFUSED, Unavailable, Outcome.NOT_COMMITTED, False),
        (FaultKind.RACING, Unavailable, Outcome.NOT_COMMITTED, False),
        (FaultKind.ERROR_BEFORE, Unavailable, Outcome.UNKNOWN, False),
        (FaultKind.ERROR_AFTER, Unavailable, Outcome.UNKNOWN, True),
        (FaultKind.FULL, StorageFull, Outcome.UNKNOWN, False),
    ],
)
async def test_a_failed_create_is_done_or_not_as_its_kind_says(
    runtime: SystemRuntime, kind: FaultKind, error: type[LakehouseError], outcome: Outcome, done: bool
) -> None:
    inner, store = faulty(runtime, "create", Fault(kind))
    with pytest.raises(error) as caught:
        await store.create("k", b"x")
    assert getattr(caught.value, "outcome", None) is outcome
    assert [found.key for found in await inner.list("")] == (["k"] if done else [])
    assert store.faults == {kind: 1}


async def test_a_late_create_happens_after_the_caller_gave_up(runtime: SystemRuntime) -> None:
    inner, store = faulty(runtime, "create", Fault(FaultKind.LATE, late_s=0.01))
    with pytest.raises(Unavailable):
        await store.create("k", b"x")
    assert await inner.list("") == []
    await store.settled()
    assert await inner.get("k") == b"x"


async def test_a_late_create_that_finds_its_place_taken_changes_nothing(runtime: SystemRuntime) -> None:
    inner, store = faulty(runtime, "create", Fault(FaultKind.LATE, late_s=0.01))
    with pytest.raises(Unavailable):
        await store.create("k", b"late")
    await store.create("k", b"first")
    await store.settled()
    assert await inner.get("k") == b"first"


async def test_a_hanging_call_waits_for_release(runtime: SystemRuntime) -> None:
    for kind, done_while_hanging in [(FaultKind.HANG_BEFORE, False), (FaultKind.HANG_AFTER, True)]:
        inner, store = faulty(runtime, "create", Fault(kind))
        task = runtime.spawn(store.create("k", b"x"), name="create")
        while not store.hanging:
            await runtime.sleep(0)
        assert (len(await inner.list("")) == 1) is done_while_hanging
        assert not task.done()
        store.release()
        await task
        assert await inner.get("k") == b"x"


async def test_reads_are_missing_cut_or_flipped(runtime: SystemRuntime, tmp_path: Path) -> None:
    inner = MemoryStore()
    body = bytes(1_000)
    await inner.put("k", body)
    plan = ScriptedFaults(
        [
            Scripted("get", "k", Fault(FaultKind.MISSING)),
            Scripted("get", "k", Fault(FaultKind.TRUNCATED, at=0.3), nth=2),
            Scripted("*", "k", Fault(FaultKind.BIT_FLIP, at=0.999), nth=3, times=2),
        ]
    )
    store = FaultyStore(inner, runtime, plan)
    with pytest.raises(NotFound):
        await store.get("k")
    assert await store.get("k") == body[:300]
    flipped = await store.get("k")
    assert (len(flipped), sum(byte.bit_count() for byte in flipped)) == (1_000, 1)
    await store.download("k", tmp_path / "target")
    assert sum(byte.bit_count() for byte in (tmp_path / "target").read_bytes()) == 1
    assert await store.get("k") == await inner.get("k") == body


async def test_a_flipped_download_leaves_the_inner_stores_file(
    runtime: SystemRuntime, tmp_path: Path
) -> None:
    inner = LocalStore(tmp_path / "data", runtime)
    await inner.put("k", bytes(100))
    store = FaultyStore(inner, runtime, ScriptedFaults([Scripted("*", "k", Fault(FaultKind.BIT_FLIP))]))
    await store.download("k", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() != bytes(100)
    assert await inner.get("k") == bytes(100)
    await inner.close()


async def test_a_script_counts_its_own_calls(runtime: SystemRuntime) -> None:
    _, store = faulty(runtime, "put", Fault(FaultKind.ERROR_BEFORE), nth=2, times=2)
    failed = []
    for j in range(5):
        await store.put("other", b"")
        await store.get("other")
        try:
            await store.put("k", b"")
        except Unavailable:
            failed.append(j)
    assert failed == [1, 2]


async def test_random_faults_repeat_from_their_seed_and_keep_their_rate(runtime: SystemRuntime) -> None:
    async def run(seed: int) -> tuple[list[str], dict[FaultKind, int]]:
        weights = {kind: 1.0 for kind in FaultKind if "hang" not in kind.value}
        store = FaultyStore(
            MemoryStore(), runtime, RandomFaults(random.Random(seed), 0.1, weights, wait_s_max=0)
        )
        seen = []
        for j in range(3_000):
            try:
                await store.create(f"log/{j}", b"x")
                await store.get(f"log/{j}")
            except (Unavailable, NotFound, Conflict) as error:
                seen.append(str(error))
        await store.settled()
        return seen, store.faults

    first, second, other = await run(7), await run(7), await run(8)
    assert first == second
    assert first != other
    assert 400 < sum(first[1].values()) < 800
    assert set(first[1]) == {*kinds_for("create"), *kinds_for("get")} - {
        FaultKind.HANG_BEFORE,
        FaultKind.HANG_AFTER,
    }


async def test_no_rate_is_no_fault_and_full_rate_is_every_call(runtime: SystemRuntime) -> None:
    for rate, expected in [(0.0, 0), (1.0, 50)]:
        plan = RandomFaults(random.Random(1), rate, {FaultKind.REFUSED: 1.0}, wait_s_max=0)
        store = FaultyStore(MemoryStore(), runtime, plan)
        await asyncio.gather(*(store.put(f"k{j}", b"") for j in range(50)), return_exceptions=True)
        assert sum(store.faults.values()) == expected


async def test_the_meter_tells_operation_and_outcome(runtime: SystemRuntime) -> None:
    seen: list[tuple[str, str]] = []

    class Observer:
        def observe(self, operation: str, outcome: str, seconds: float) -> None:
            assert seconds >= 0
            seen.append((operation, outcome))

    _, failing = faulty(runtime, "create", Fault(FaultKind.FULL))
    store = MeteredStore(failing, runtime, Observer())
    with pytest.raises(StorageFull):
        await store.create("k", b"x")
    await store.create("k", b"x")
    with pytest.raises(Conflict):
        await store.create("k", b"x")
    with pytest.raises(NotFound):
        await store.head("none")
    assert b"".join([chunk async for chunk in store.stream("k")]) == b"x"
    await store.list("")
    assert seen == [
        ("create", "storage_full"),
        ("create", "ok"),
        ("create", "conflict"),
        ("head", "not_found"),
        ("stream", "ok"),
        ("list", "ok"),
    ]


async def test_latency_lies_before_and_after_the_effect() -> None:
    inner = MemoryStore()
    slept: list[tuple[float, int]] = []

    class Clock(SystemRuntime):
        async def sleep(self, seconds: float) -> None:
            slept.append((seconds, len(await inner.list(""))))

    runtime = Clock()
    store = LatencyStore(inner, runtime, lambda: 3.0)
    await store.create("k", b"x")
    assert slept == [(1.5, 0), (1.5, 1)]
    runtime.close()


async def test_siblings_share_objects_and_close_apart() -> None:
    first = MemoryStore()
    assert first.exclusive
    second = first.sibling()
    assert not first.exclusive
    assert not second.exclusive
    await first.create("k", b"x")
    await first.close()
    assert await second.get("k") == b"x"
    with pytest.raises(Conflict):
        await second.create("k", b"y")
