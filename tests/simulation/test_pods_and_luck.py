"""Random worlds of pods: clients write and read at any of them while the index is rebuilt and everything breaks."""

import asyncio
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from lakehouse import beginning, building
from lakehouse.collection import Told
from lakehouse.core import names
from lakehouse.core.errors import Conflict, Dropped, LakehouseError, Outcome, Unavailable
from lakehouse.core.types import Consistency
from lakehouse.server import kept_index
from lakehouse.testing.history import Lost, Since
from lakehouse.testing.schedules import HEAL_S, OPERATIONS, PARAMS, Client, batch, planned, succeeded
from lakehouse.testing.world import Fault, Process, World, run, simulated_settings
from simulated_pods import Net, values

SCHEDULES = int(os.environ.get("LAKEHOUSE_POD_SCHEDULES", "120"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Storms warn thousands of times; the report of a failure names its seed instead."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class PodClient(Client):
    """A client whose reads go through the pods' own protocol."""

    async def look(self) -> None:
        process = self.fleet.pick()
        task = process.run(values(process, sorted(self.histories)))
        await asyncio.wait([task])
        if not succeeded(task):
            return
        found, strong = task.result()
        for item_id, value in found.items():
            if strong:
                self.histories[item_id].saw(value, f"strong read at {process.name}")


async def watch(net: Net, clients: list[PodClient], span_s: float) -> None:
    """No strong read may miss what was acknowledged before it began."""
    loop = asyncio.get_running_loop()
    until = loop.time() + span_s
    while loop.time() < until:
        await asyncio.sleep(net.world.random.expovariate(20 / span_s))
        before = [history.since() for client in clients for history in client.histories.values()]
        process = net.pick()
        task = process.run(_read_all(process, before))
        await asyncio.wait([task])
        succeeded(task)


async def _read_all(process: Process, before: list[Since]) -> None:
    found, strong = await values(process, [since.history.id for since in before])
    for since in before:
        if strong:
            since.check(found[since.history.id], f"strong read at {process.name}")


async def rebuild(net: Net, span_s: float) -> None:
    """Jobs that link the index anew; pods hear of it sooner or later, and jobs are killed now and then."""
    source = net.world.random
    for _ in range(OPERATIONS // 2):
        await asyncio.sleep(source.expovariate(OPERATIONS / 2 / span_s))
        job = net.world.start(f"job-{len(net.world.processes)}")
        params = replace(PARAMS, m=source.randint(4, 24))
        task = job.run(building.rebuild(job.indexes, params, serve=False))
        await asyncio.wait([task], timeout=source.choice((0.1, 60.0)))
        if not task.done():
            job.crash()
            await asyncio.wait([task])
        if not task.cancelled() and not isinstance(task.exception(), Conflict):
            succeeded(task)
        process = net.pick()
        renewing = process.run(process.indexes.renewed(PARAMS.name))
        await asyncio.wait([renewing])
        succeeded(renewing)
        job.crash()


async def play(seed: int) -> None:
    world = World(seed)
    plan = planned(world.random)
    await world.start("creator").indexes.create(PARAMS, plan.shards)
    net = Net(world, plan.shards, random.Random(seed).choice((1, 2, 2)))
    world.weather = plan.weather
    clients = [PodClient(net, number) for number in range(plan.clients)]  # type: ignore[arg-type]
    trouble = asyncio.ensure_future(net.trouble(plan.crashes, plan.pauses, plan.span_s))
    await asyncio.gather(
        *(client.live(plan) for client in clients),
        watch(net, clients, plan.span_s),
        *([rebuild(net, plan.span_s)] if seed % 3 else []),
    )
    await trouble
    world.calm()
    await asyncio.sleep(2 * HEAL_S)
    shown = set()
    for process in net.members:
        ids = sorted(item_id for client in clients for item_id in client.histories)
        found, strong = await values(process, ids)
        if not strong:
            raise Lost(f"{process.name} cannot catch up in calm weather")
        for client in clients:
            for item_id, history in client.histories.items():
                history.saw(found[item_id], f"{process.name} at the end")
        shown.add(str(sorted(found.items())))
    if len(shown) != 1:
        raise Lost(f"pods differ: {shown}")


def run_pods(seed: int) -> None:
    """Play one.  Raises `Lost`, naming the seed."""
    try:
        run(lambda: play(seed))
    except (Lost, LakehouseError) as error:
        raise Lost(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("part", range(4))
def test_no_random_schedule_of_pods_loses_an_acknowledged_write(part: int) -> None:
    for seed in range(part, SCHEDULES, 4):
        run_pods(seed)


# ---------------------------------------------------------------- directed schedules


async def _pods(world: World, shards: int) -> Net:
    await world.start("creator").indexes.create(PARAMS, shards)
    net = Net(world, shards, 2, looks=False)
    for process in net.members:
        collection = await process.indexes.open(PARAMS.name)
        await collection.add(batch({f"x{j}": j for j in range(6)}), idempotency_key="first")
    return net


@pytest.mark.parametrize("shards", [1, 2])
def test_a_write_whose_answer_was_lost_is_in_doubt_though_its_life_has_ended_since(shards: int) -> None:
    """It was done at one pod, and at the next one that is asked the log has ended meanwhile."""

    async def play(seed: int) -> bool:
        world = World(seed, replace(simulated_settings(), write_deadline_s=60.0, read_deadline_s=30.0))
        net = await _pods(world, shards)
        asked = net.pods[0, seed % 2].process
        item_id = key = next(f"i{j}" for j in range(99) if names.shard_of(f"i{j}", shards) == shards - 1)
        world.strike(asked, "call", "/write", Fault.LOST_ANSWER)
        holds = [
            world.hold(pod.process, "create", "/log/")
            for (shard, _), pod in net.pods.items()
            if shard == shards - 1
        ]
        collection = await asked.indexes.open(PARAMS.name)
        work = asked.run(collection.add(batch({item_id: 7}), idempotency_key=key))
        await asyncio.wait(
            [asyncio.ensure_future(hold.reached.wait()) for hold in holds],
            return_when=asyncio.FIRST_COMPLETED,
        )
        first = next(hold for hold in holds if hold.reached.is_set())
        world.holds.remove(next(hold for hold in holds if hold is not first))
        stopped = world.hold(
            next(
                pod.process
                for (shard, _), pod in net.pods.items()
                if shard == shards - 1 and pod.process.name != first.process
            ),
            "list",
            "/log/",
        )
        first.release()
        await asyncio.wait(
            [work, asyncio.ensure_future(stopped.reached.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        await asyncio.sleep(1)
        if work.done():  # its own pod was the preferred one
            return False
        job = world.start("job")
        await building.rebuild(job.indexes, replace(PARAMS, m=8))
        stopped.release()
        with pytest.raises(Unavailable) as refused:
            await work
        assert refused.value.outcome is Outcome.UNKNOWN
        assert (await values(job, [item_id]))[0] == {item_id: 7}
        # Repeated with its key, it is found done.
        again = await (await job.indexes.fresh(PARAMS.name)).add(batch({item_id: 7}), idempotency_key=key)
        assert again.replayed
        return True

    assert any([run(lambda: play(seed)) for seed in range(8)])  # noqa: B023, C419  all of them


def test_a_pod_whose_preferred_peer_has_lost_its_life_finds_the_next_one() -> None:
    """It forwards its writes, so nothing else tells it that the log has ended."""

    async def play(seed: int) -> None:
        world = World(seed)
        net = await _pods(world, 1)
        job = world.start("job")
        await building.rebuild(job.indexes, replace(PARAMS, m=8), serve=False)
        first, second = net.members if seed % 2 else reversed(net.members)
        await first.indexes.renew(PARAMS.name)
        for attempt in range(2):
            collection = await second.indexes.open(PARAMS.name)
            try:
                await collection.add(batch({"late": 1}), idempotency_key="late")
            except Dropped:
                assert attempt == 0
        assert (await values(first, ["late", "x1"]))[0] == {"late": 1, "x1": 1}

    for seed in range(8):
        run(lambda: play(seed))  # noqa: B023  run at once


def test_an_answer_of_a_pod_that_lags_says_so_whatever_another_request_was_told() -> None:
    """The one that said how far the log goes is gone, and the other one does not reach the store."""

    async def play(seed: int) -> None:
        world = World(seed)
        net = await _pods(world, 2)
        asked, ahead, behind = (net.pods[place] for place in ((0, 0), (1, 0), (1, 1)))
        old, new = (
            next(f"{kind}{j}" for j in range(9) if names.shard_of(f"{kind}{j}", 2) == 1) for kind in "xy"
        )
        await values(behind.process, [old])
        elsewhere = world.start("elsewhere")
        await (await elsewhere.indexes.open(PARAMS.name)).add(batch({old: 70, new: 71}))
        collection = await asked.process.indexes.open(PARAMS.name)
        original = world.fault

        def struck(process: str, operation: str, key: str) -> Fault:
            if process == behind.process.name or (operation == "call" and behind.address in key and alive):
                return Fault.REFUSED
            return original(process, operation, key)

        world.fault = struck  # type: ignore[method-assign]
        alive = True
        assert await asked.page() == ({*(f"x{j}" for j in range(6)), new}, 0.0)
        original_scroll = collection.scroll

        async def scroll(*args: Any, **options: Any) -> Any:
            nonlocal alive
            if alive:  # between this request's first step and its page, and another request is told
                alive = False
                ahead.process.crash()
                assert await collection.refresh(Consistency.STRONG) > 0
            return await original_scroll(*args, **options)

        collection.scroll = scroll  # type: ignore[method-assign]
        found, stale_s = await asked.page()
        assert new in found or stale_s > 0
        assert not alive
        told = Told()
        assert int((await collection.item(old, told=told)).metadata) < 70
        assert told.stale_s > 0
        for consistency in Consistency:
            told = Told()
            assert await collection.count(consistency=consistency, told=told) == 6
            assert told.stale_s > 0

    for seed in range(4):
        run(lambda: play(seed))  # noqa: B023  run at once


def test_pods_remove_what_a_killed_job_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pin would keep their log from ever being collected."""
    monkeypatch.setattr(kept_index, "SWEEP_EVERY", 2)
    monkeypatch.setattr(beginning, "GRACE_S", 60.0)

    async def play() -> None:
        world = World(3)
        await world.start("creator").indexes.create(PARAMS, 2)
        net = Net(world, 2, 2)
        await asyncio.sleep(5)
        await (await net.pick().indexes.open(PARAMS.name)).add(batch({"x": 1}))
        job = world.start("job")
        hold = world.hold(job, "create", "/fate/")
        job.run(building.rebuild(job.indexes, replace(PARAMS, m=8)))
        await hold.reached.wait()
        job.crash()

        async def left() -> list[str]:
            found = [info.key for info in await world.bucket.list(names.index_prefix(PARAMS.name))]
            return [key for key in found if "/pins/" in key or "/snap/" in key]

        assert await left()
        await asyncio.sleep(30)
        assert await left()
        await asyncio.sleep(120)
        keys = [info.key for info in await world.bucket.list(names.index_prefix(PARAMS.name))]
        assert not [key for key in keys if "/pins/" in key or "/snap/" in key]
        assert (await values(net.pick(), ["x"]))[0] == {"x": 1}

    run(play)
