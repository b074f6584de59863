"""Random worlds in which an index is divided anew, over and over, while clients write to it and everything breaks.

Each build puts what it read after it had set out, so what goes over afterwards brings every id to its newest value.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from lakehouse import building, carrying
from lakehouse.core.errors import Conflict, LakehouseError, NotFound, Unavailable
from lakehouse.core.types import Batch, Consistency
from lakehouse.testing.history import Lost
from lakehouse.testing.schedules import (
    HEAL_S,
    OPERATIONS,
    PARAMS,
    Client,
    Fleet,
    Watcher,
    batch,
    planned,
    present,
    value_of,
)
from lakehouse.testing.world import Process, World, run

SCHEDULES = int(os.environ.get("LAKEHOUSE_SHARDING_SCHEDULES", "80"))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Storms warn thousands of times; the report of a failure names its seed instead."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Once(Client):
    """A client that repeats no old request: other content does not know the keys of the content before."""

    async def repeat(self) -> None:
        return


async def divide(process: Process, shards: int) -> None:
    """Exchange an index for one of so many shards with the same items."""
    start = await process.indexes.vacancy(PARAMS.name, shards, replaces=True)
    collection = await process.indexes.fresh(PARAMS.name)
    if await collection.refresh(Consistency.STRONG) > 0:
        raise Unavailable("the store does not say what there is")
    items, _ = await collection.scroll(None, 1_000, consistency=Consistency.EVENTUAL)

    async def rows() -> AsyncIterator[Batch]:
        for item in items:
            await asyncio.sleep(0.01)
            yield batch({item.id: int(item.metadata)})

    await building.build(process.indexes, PARAMS, shards, rows(), replaces=True, start=start)


async def divide_again_and_again(fleet: Fleet, span_s: float) -> None:
    source = fleet.world.random
    for _ in range(OPERATIONS):
        await asyncio.sleep(source.expovariate(OPERATIONS / span_s))
        process = fleet.pick()
        task = process.run(divide(process, source.choice((1, 2, 3))))
        await asyncio.wait([task])
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Conflict | Unavailable | NotFound):
            raise error


async def play(seed: int) -> None:
    world = World(seed)
    plan = planned(world.random)
    fleet = Fleet(world, plan.processes)
    await fleet.pick().indexes.create(PARAMS, plan.shards)
    world.weather = plan.weather
    clients = [Once(fleet, number) for number in range(plan.clients)]
    trouble = asyncio.ensure_future(fleet.trouble(plan))
    await asyncio.gather(
        *(client.live(plan) for client in clients),
        divide_again_and_again(fleet, plan.span_s),
        Watcher(fleet, list(clients)).live(plan.span_s),
    )
    await trouble
    world.calm()
    await asyncio.sleep(HEAL_S)
    for process in [*fleet.members, world.start("newcomer")]:
        collection = await present(process)
        if await collection.refresh(Consistency.STRONG) != 0.0:
            raise Lost(f"{process.name} cannot catch up in calm weather")
        for client in clients:
            for item_id, history in client.histories.items():
                history.saw(value_of(collection, item_id), f"{process.name} at the end")
    for client in clients:
        await client.check_kept()


def run_division(seed: int) -> None:
    """Play one.  Raises `Lost`, naming the seed."""
    try:
        run(lambda: play(seed))
    except (Lost, LakehouseError) as error:
        raise Lost(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("part", range(4))
def test_no_random_division_loses_an_acknowledged_write(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "AHEAD_ENTRIES", 0)
    for seed in range(part, SCHEDULES, 4):
        run_division(seed)
