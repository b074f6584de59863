"""Random schedules: clients write, merge and read while processes crash and stall and the bucket loses answers.

`run_schedule(seed)` plays one and raises `Lost` if a promise was broken; the seed repeats it.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from lakehouse.collection import Collection
from lakehouse.core.entry import Operation
from lakehouse.core.errors import LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.types import Batch, Consistency, Distance, IndexParams, WriteResult
from lakehouse.testing.history import ABSENT, History, Lost
from lakehouse.testing.world import Fault, Process, Weather, World, run

PARAMS = IndexParams(name="main", dimension=2, distance=Distance.EUCLIDEAN)
MERGE_PARAMS = tuple(
    IndexParams(name=name, dimension=2, distance=Distance.EUCLIDEAN) for name in ("left", "right")
)
HEAL_S = 60.0
"""Virtual seconds of calm before the last look: every deadline, retry and late answer ends within it."""
OPERATIONS = 7
"""Requests per client: with three clients, enough for several snapshots, fences and collections."""


def batch(values: dict[str, int]) -> Batch:
    """Items whose vector and metadata both tell their value."""
    vectors = np.array([[value, 1] for value in values.values()], dtype=np.float32)
    return Batch(tuple(values), vectors, tuple(b"%d" % value for value in values.values()))


def value_of(collection: Collection, item_id: str) -> int:
    """An id's value in what a process holds right now, ABSENT if it is not there.  Raises `Lost` for a torn item."""
    item = collection.shard_list[0].replica.index.item(item_id)
    if item is None:
        return ABSENT
    if int(item.vector[0]) != int(item.metadata):
        raise Lost(f"{item_id} is torn: vector {item.vector[0]}, metadata {item.metadata!r}")
    return int(item.metadata)


Act = Callable[[Process], Coroutine[Any, Any, object]]
"""What a client asks a process to do."""


async def read(process: Process, index: str, item_id: str) -> tuple[int, bool]:
    """An id's value and whether the read was strong (not served from what was known).  Checks the item is whole."""
    collection = await process.indexes.open(index)
    stale_s = await collection.refresh(Consistency.STRONG)
    return value_of(collection, item_id), stale_s == 0.0


@dataclass(frozen=True)
class Plan:
    """What a seed decides before anything runs."""

    clients: int
    processes: int
    weather: Weather
    crashes: int
    pauses: int
    span_s: float


def planned(source: random.Random) -> Plan:
    """Some worlds are calm, some stormy; each fault is absent from many, so that every pair meets alone too."""
    chances = {
        fault: source.choice((0.0, 0.02, 0.1, 0.25)) * source.random()
        for fault in (Fault.REFUSED, Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.LATE, Fault.MISSING)
    }
    weather = Weather(source.choice((0.002, 0.01, 0.05)), source.choice((0.5, 3.0)), chances)
    return Plan(
        clients=source.choice((1, 2, 3)),
        processes=source.choice((1, 2, 3)),
        weather=weather,
        crashes=source.choice((0, 0, 1, 2, 3)),
        pauses=source.choice((0, 0, 1, 2)),
        span_s=source.choice((1.0, 3.0, 10.0)),
    )


class Fleet:
    """The processes of a world, each replaced by a new one when it crashes."""

    def __init__(self, world: World, size: int) -> None:
        self.world = world
        self.members = [world.start(f"p{number}") for number in range(size)]

    def pick(self) -> Process:
        return self.world.random.choice(self.members)

    def crash(self) -> None:
        slot = self.world.random.randrange(len(self.members))
        self.members[slot].crash()
        self.members[slot] = self.world.start(
            f"{self.members[slot].name.split('.')[0]}.{len(self.world.processes)}"
        )

    async def trouble(self, plan: Plan) -> None:
        """Crashes and pauses at random moments."""
        events = [self.crash] * plan.crashes + [self._pause] * plan.pauses
        self.world.random.shuffle(events)
        for event in events:
            await asyncio.sleep(self.world.random.uniform(0, plan.span_s / max(1, len(events))))
            event()

    def _pause(self) -> None:
        process = self.pick()
        process.pause()
        loop = asyncio.get_running_loop()
        loop.call_later(self.world.random.expovariate(1 / 2.0), process.resume)


class Client:
    """Owns a few ids and writes them one request at a time, remembering what may be true of each."""

    def __init__(self, fleet: Fleet, number: int) -> None:
        self.fleet = fleet
        self.random = fleet.world.random
        self.histories = {f"c{number}-{i}": History(f"c{number}-{i}") for i in range(2)}
        self.sent: list[tuple[str, dict[str, int]]] = []
        self.number = number
        self.value = 0

    async def live(self, plan: Plan) -> None:
        for _ in range(OPERATIONS):
            await asyncio.sleep(self.random.expovariate(OPERATIONS / plan.span_s))
            action = self.random.choices(
                (self.upsert, self.delete, self.look, self.repeat, self.snapshot), (6, 1, 2, 2, 1)
            )[0]
            await action()

    async def upsert(self) -> None:
        self.value += 1
        count = self.random.choice((1, 2))
        values = dict.fromkeys(self.random.sample(sorted(self.histories), count), self.value)
        key = f"{self.number}-{self.value}"
        outcome = await self._send(key, values)
        if outcome is None and self.random.random() < 0.5:  # a client's retry: same key, perhaps elsewhere
            outcome = await self._send(key, values)
        if outcome:
            self.sent.append((key, values))

    async def _send(self, key: str, values: dict[str, int]) -> bool | None:
        """True when acknowledged, False when certainly not committed, None when unknown."""

        async def write(process: Process) -> WriteResult:
            collection = await process.indexes.open(PARAMS.name)
            return await collection.add(batch(values), idempotency_key=key)

        outcome = await self._outcome(write)
        for item_id, value in values.items():
            if outcome is True:
                self.histories[item_id].acknowledged(value)
            elif outcome is None:
                self.histories[item_id].unanswered(value)
        return outcome

    async def _outcome(self, act: Act) -> bool | None:
        process = self.fleet.pick()
        task = process.run(act(process))
        await asyncio.wait([task])
        if task.cancelled():
            return None
        error = task.exception()
        if error is None:
            return True
        if isinstance(error, Unavailable) and error.outcome is Outcome.UNKNOWN:
            return None
        if isinstance(error, Unavailable | NotFound):  # a false 404 while opening: nothing was sent
            return False
        raise error

    async def delete(self) -> None:
        item_id = self.random.choice(sorted(self.histories))

        async def act(process: Process) -> WriteResult:
            return await (await process.indexes.open(PARAMS.name)).delete([item_id])

        outcome = await self._outcome(act)
        if outcome is True:
            self.histories[item_id].acknowledged(ABSENT)
        elif outcome is None:
            self.histories[item_id].unanswered(ABSENT)

    async def repeat(self) -> None:
        """Send an acknowledged request again, as a network may: nothing may change."""
        if not self.sent:
            return
        key, values = self.random.choice(self.sent)

        async def act(process: Process) -> WriteResult:
            return await (await process.indexes.open(PARAMS.name)).add(batch(values), idempotency_key=key)

        await self._outcome(act)

    async def look(self) -> None:
        for item_id, history in self.histories.items():
            process = self.fleet.pick()
            task = process.run(read(process, PARAMS.name, item_id))
            await asyncio.wait([task])
            if not _only_expected(task):
                continue
            value, strong = task.result()
            if strong:
                history.saw(value, f"strong read at {process.name}")

    async def snapshot(self) -> None:
        async def act(process: Process) -> object:
            return await (await process.indexes.open(PARAMS.name)).snapshot()

        process = self.fleet.pick()
        task = process.run(act(process))
        await asyncio.wait([task])
        _only_expected(task)


async def _play(seed: int) -> None:
    world = World(seed)
    plan = planned(world.random)
    fleet = Fleet(world, plan.processes)
    await fleet.pick().indexes.create(PARAMS)
    world.weather = plan.weather
    clients = [Client(fleet, number) for number in range(plan.clients)]
    trouble = asyncio.ensure_future(fleet.trouble(plan))
    await asyncio.gather(*(client.live(plan) for client in clients))
    await trouble
    world.calm()
    await asyncio.sleep(HEAL_S)
    await _last_look(world, fleet, clients)


async def _last_look(world: World, fleet: Fleet, clients: list[Client]) -> None:
    """Survivors and a newcomer agree, and every id is what its history allows."""
    replicas = {}
    for process in [*fleet.members, world.start("newcomer")]:
        collection = await process.indexes.open(PARAMS.name)
        await collection.refresh(Consistency.STRONG)  # after a storm the first read may be stale, and looks again
        await asyncio.sleep(2 * world.settings.tail_poll_s)
        if await collection.refresh(Consistency.STRONG) != 0.0:
            raise Lost(f"{process.name} cannot catch up in calm weather")
        [shard] = collection.shard_list
        replicas[process.name] = (shard.position, shard.replica.digest, shard.replica.window.fingerprint())
        for client in clients:
            for item_id, history in client.histories.items():
                history.saw(value_of(collection, item_id), f"{process.name} at the end")
        known = sum(
            value_of(collection, item_id) != ABSENT for client in clients for item_id in client.histories
        )
        if known != collection.length:
            raise Lost(f"{process.name} says length {collection.length}, but holds {known} items")
    if len(set(replicas.values())) != 1:
        raise Lost(f"replicas differ: {replicas}")


def run_schedule(seed: int) -> None:
    """Play one random schedule.  Raises `Lost`, naming the seed."""
    try:
        run(lambda: _play(seed) if seed % 8 else _play_merges(seed))
    except (Lost, LakehouseError) as error:
        raise Lost(f"seed {seed}: {error}") from error


async def _play_merges(seed: int) -> None:
    """Items are added to two indexes that are merged into each other all the time: each must stay in one of them."""
    world = World(seed)
    plan = planned(world.random)
    fleet = Fleet(world, plan.processes)
    for params in MERGE_PARAMS:
        await fleet.pick().indexes.create(params)
    world.weather = plan.weather
    added: dict[str, bool] = {}

    async def adder(number: int) -> None:
        for i in range(OPERATIONS):
            await asyncio.sleep(world.random.expovariate(OPERATIONS / plan.span_s))
            item_id, index = f"m{number}-{i}", world.random.choice(MERGE_PARAMS).name
            process = fleet.pick()
            task = process.run(_add_one(process, index, item_id))
            await asyncio.wait([task])
            if _only_expected(task):
                added[item_id] = True

    async def merger() -> None:
        for _ in range(OPERATIONS):
            await asyncio.sleep(world.random.expovariate(OPERATIONS / plan.span_s))
            source, dest = world.random.sample([params.name for params in MERGE_PARAMS], 2)
            process = fleet.pick()
            merge = process.run(process.indexes.merge(source, dest, clear_source=True))
            await asyncio.wait([merge])
            _only_expected(merge)

    trouble = asyncio.ensure_future(fleet.trouble(plan))
    await asyncio.gather(adder(0), adder(1), merger(), merger())
    await trouble
    world.calm()
    await asyncio.sleep(HEAL_S)
    await assert_somewhere(world, list(added))


def _only_expected(task: "asyncio.Task[Any]") -> bool:
    """Whether a request succeeded; an error that no weather explains is raised."""
    if task.cancelled():
        return False
    error = task.exception()
    if error is not None and not isinstance(error, Unavailable | NotFound):
        raise error
    return error is None


async def _add_one(process: Process, index: str, item_id: str) -> None:
    collection = await process.indexes.open(index)
    await collection.write(Operation.UPSERT, batch({item_id: 7}))


async def assert_somewhere(world: World, ids: list[str]) -> None:
    """A newcomer finds each id in at least one of the two merged indexes.  Raises `Lost`."""
    newcomer = world.start("newcomer")
    opened = [await newcomer.indexes.open(params.name) for params in MERGE_PARAMS]
    for collection in opened:
        await collection.refresh(Consistency.STRONG)
    for item_id in ids:
        if all(value_of(collection, item_id) == ABSENT for collection in opened):
            raise Lost(f"{item_id} was acknowledged and is in neither index")
