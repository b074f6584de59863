"""Random schedules: clients write, merge and read while processes crash and stall and the bucket loses answers.

`run_schedule(seed)` plays one and raises `Lost` if a promise was broken; the seed repeats it.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lakehouse import building
from lakehouse.collection import Collection
from lakehouse.core import names
from lakehouse.core.entry import Operation
from lakehouse.core.errors import Conflict, Dropped, LakehouseError, NotFound, Outcome, Unavailable
from lakehouse.core.types import Batch, Consistency, Distance, IndexParams, WriteResult
from lakehouse.snapshots import replica_of
from lakehouse.testing.history import ABSENT, History, Lost, Since
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
    shard = collection.shard_list[names.shard_of(item_id, collection.shards)]
    item = shard.replica.index.item(item_id)
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
    shards: int
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
        shards=source.choice((1, 1, 1, 2, 3)),
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
        self.kept: list[tuple[dict[str, object], list[Since]]] = []

    async def live(self, plan: Plan) -> None:
        for _ in range(OPERATIONS):
            await asyncio.sleep(self.random.expovariate(OPERATIONS / plan.span_s))
            action = self.random.choices(
                (self.upsert, self.delete, self.look, self.repeat, self.snapshot, self.keep),
                (6, 1, 2, 2, 1, 1),
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

        for item_id, value in values.items():
            self.histories[item_id].sending(value)
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

        self.histories[item_id].sending(ABSENT)
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
            if not succeeded(task):
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
        succeeded(task)

    async def keep(self) -> None:
        """Take a named snapshot; if it is acknowledged, its files hold all that was acknowledged before."""
        self.value += 1
        name = f"kept-{self.number}-{self.value}"

        async def act(process: Process) -> dict[str, object]:
            return await (await process.indexes.open(PARAMS.name)).snapshot(name)

        before = [history.since() for history in self.histories.values()]
        process = self.fleet.pick()
        task = process.run(act(process))
        await asyncio.wait([task])
        if succeeded(task):
            self.kept.append((task.result(), before))

    async def check_kept(self) -> None:
        """Raises `Lost` when an acknowledged named snapshot lacks a file or an item."""
        bucket = self.fleet.world.bucket
        for described, before in self.kept:
            files: Any = described["files"]
            found: dict[str, int] = {}
            for file in files:
                try:
                    data = await bucket.get(file["key"])
                except NotFound as error:
                    raise Lost(f"{described['name']} lacks a file") from error
                replica = replica_of(memoryview(data), self.fleet.world.settings)
                found |= {item.id: int(item.metadata) for item in replica.index.scroll(None, 1000)[0]}
            for since in before:
                since.check(found.get(since.history.id, ABSENT), f"named snapshot {described['name']}")


class Watcher:
    """Reads everything all the time: no strong read may miss what was acknowledged before it began."""

    def __init__(self, fleet: Fleet, clients: list[Client]) -> None:
        self.fleet = fleet
        self.clients = clients

    async def live(self, span_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + span_s
        while loop.time() < until:
            await asyncio.sleep(self.fleet.world.random.expovariate(20 / span_s))
            process = self.fleet.pick()
            before = [history.since() for client in self.clients for history in client.histories.values()]
            task = process.run(self._read_all(process, before))
            await asyncio.wait([task])
            succeeded(task)

    async def _read_all(self, process: Process, before: list[Since]) -> None:
        collection = await process.indexes.open(PARAMS.name)
        if await collection.refresh(Consistency.STRONG) == 0.0:
            for since in before:
                since.check(value_of(collection, since.history.id), f"strong read at {process.name}")


class Rebuilder:
    """Links the index anew again and again, in any process, beside whoever writes and reads."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.random = fleet.world.random

    async def live(self, span_s: float) -> None:
        for _ in range(OPERATIONS // 2):
            await asyncio.sleep(self.random.expovariate(OPERATIONS / 2 / span_s))
            process = self.fleet.pick()
            params = replace(PARAMS, m=self.random.randint(4, 24))
            task = process.run(building.rebuild(process.indexes, params, serve=self.random.random() < 0.7))
            await asyncio.wait([task])
            if task.cancelled() or not isinstance(task.exception(), Conflict):  # else another was first
                succeeded(task)


async def _play(seed: int, rebuilders: int = 0) -> None:
    world = World(seed)
    plan = planned(world.random)
    fleet = Fleet(world, plan.processes)
    await fleet.pick().indexes.create(PARAMS, plan.shards)
    world.weather = plan.weather
    clients = [Client(fleet, number) for number in range(plan.clients)]
    trouble = asyncio.ensure_future(fleet.trouble(plan))
    watcher = Watcher(fleet, clients)
    await asyncio.gather(
        *(client.live(plan) for client in clients),
        *(Rebuilder(fleet).live(plan.span_s) for _ in range(rebuilders)),
        watcher.live(plan.span_s),
    )
    await trouble
    world.calm()
    await asyncio.sleep(HEAL_S)
    await _last_look(world, fleet, clients)
    for client in clients:
        await client.check_kept()
    for process in fleet.members:  # nothing that happened keeps anyone from writing
        await (await process.indexes.open(PARAMS.name)).add(batch({f"after-{process.name}": 1}))


async def _play_rebuilds(seed: int) -> None:
    """As `_play`, while the index is rebuilt: a life that is replaced hands over all that it acknowledged."""
    await _play(seed, rebuilders=1 + seed // 8 % 2)


async def _last_look(world: World, fleet: Fleet, clients: list[Client]) -> None:
    """Survivors and a newcomer agree, and every id is what its history allows."""
    replicas = {}
    for process in [*fleet.members, world.start("newcomer")]:
        collection = await present(process)
        await asyncio.sleep(2 * world.settings.tail_poll_s)
        if await collection.refresh(Consistency.STRONG) != 0.0:
            raise Lost(f"{process.name} cannot catch up in calm weather")
        replicas[process.name] = tuple(
            (shard.position, shard.replica.digest, shard.replica.window.fingerprint())
            for shard in collection.shard_list
        )
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


async def present(process: Process) -> Collection:
    """The life that counts, with all that was acknowledged.  Raises `Lost`."""
    for _ in range(OPERATIONS):
        try:
            await process.indexes.renewed(PARAMS.name)
            return await process.indexes.fresh(PARAMS.name)
        except NotFound:  # that life ended meanwhile
            continue
        except Unavailable:  # after a storm the first look may be refused, and the store is asked again
            await asyncio.sleep(1)
    raise Lost(f"{process.name} finds one ended life after the other, or no answer of the store")


def run_schedule(seed: int) -> None:
    """Play one random schedule.  Raises `Lost`, naming the seed."""
    try:
        run(lambda: PLAYS.get(seed % 8, _play)(seed))
    except (Lost, LakehouseError) as error:
        raise Lost(f"seed {seed}: {error}") from error


async def _play_lives(seed: int) -> None:
    """One name is dropped and created again by whichever process is asked; each life keeps what it acknowledged."""
    world = World(seed)
    plan = planned(world.random)
    fleet = Fleet(world, plan.processes)
    world.weather = plan.weather
    trouble = asyncio.ensure_future(fleet.trouble(plan))
    driver = Lives(fleet, plan.shards)
    await driver.live(plan)
    await trouble
    world.calm()
    await asyncio.sleep(HEAL_S)
    await driver.check(world)


class Lives:
    """The one user of a name, who knows what its present life may hold."""

    def __init__(self, fleet: Fleet, shards: int) -> None:
        self.fleet = fleet
        self.random = fleet.world.random
        self.shards = shards
        self.alive = False
        self.acknowledged: set[str] = set()
        self.possible: set[str] = set()

    async def live(self, plan: Plan) -> None:
        for step in range(2 * OPERATIONS):
            await asyncio.sleep(self.random.expovariate(2 * OPERATIONS / plan.span_s))
            if not self.alive:
                self.alive = await self._until_done("create")
                self.acknowledged, self.possible = set(), set()
            elif self.random.random() < 0.25:
                self.alive = not await self._until_done("drop")
            else:
                await self._add(f"i{step}")

    async def _until_done(self, act: str, *, doubt: bool = False) -> bool:
        """Repeat a create or drop until it is certain; `doubt`: an earlier attempt may have done it."""
        for _ in range(200):
            process = self.fleet.pick()
            work = (
                process.indexes.create(PARAMS, self.shards)
                if act == "create"
                else process.indexes.drop(PARAMS.name)
            )
            task: asyncio.Task[Any] = process.run(work)
            await asyncio.wait([task])
            error = None if task.cancelled() else task.exception()
            if not task.cancelled() and error is None:
                return True
            done = isinstance(error, Conflict if act == "create" else NotFound)
            if done and doubt:  # an earlier attempt did it
                return True
            if done:
                raise Lost(f"{act} says `{error}` of a name that is {'alive' if self.alive else 'free'}")
            if error is not None and not isinstance(error, Unavailable):
                raise error
            doubt = doubt or error is None or error.outcome is Outcome.UNKNOWN
            await asyncio.sleep(0.2)
        self.fleet.world.calm()
        return await self._until_done(act) if not doubt else await self._settled(act)

    async def _settled(self, act: str) -> bool:
        await asyncio.sleep(HEAL_S)
        process = self.fleet.world.start("asker")
        alive = PARAMS.name in await process.indexes.names()
        if alive is (act == "create"):
            return True
        return await self._until_done(act, doubt=True)

    async def _add(self, item_id: str) -> None:
        process = self.fleet.pick()
        task = process.run(_add_one(process, PARAMS.name, item_id))
        await asyncio.wait([task])
        if task.cancelled():
            self.possible.add(item_id)
            return
        error = task.exception()
        if error is None:
            self.acknowledged.add(item_id)
        elif isinstance(error, Unavailable):
            if error.outcome is Outcome.UNKNOWN:
                self.possible.add(item_id)
        elif not isinstance(error, Dropped):  # a process that was behind; a client asks again
            raise error

    async def check(self, world: World) -> None:
        """A newcomer and the survivors see the present life, and nothing of earlier ones.  Raises `Lost`."""
        for process in [*self.fleet.members, world.start("newcomer")]:
            listed = PARAMS.name in await process.indexes.names()
            if listed is not self.alive:
                raise Lost(f"{process.name} lists the index: {listed}, but it is alive: {self.alive}")
            if self.alive:
                collection = await present(process)
                seen = {item.id for item in (await collection.scroll(None, 1000))[0]}
                if not self.acknowledged <= seen <= self.acknowledged | self.possible:
                    raise Lost(f"{process.name} sees {seen}, acknowledged were {self.acknowledged}")


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
            if succeeded(task):
                added[item_id] = True

    async def merger() -> None:
        for _ in range(OPERATIONS):
            await asyncio.sleep(world.random.expovariate(OPERATIONS / plan.span_s))
            source, dest = world.random.sample([params.name for params in MERGE_PARAMS], 2)
            process = fleet.pick()
            merge = process.run(process.indexes.merge(source, dest, clear_source=True))
            await asyncio.wait([merge])
            succeeded(merge)

    trouble = asyncio.ensure_future(fleet.trouble(plan))
    await asyncio.gather(adder(0), adder(1), merger(), merger())
    await trouble
    world.calm()
    await asyncio.sleep(HEAL_S)
    await assert_somewhere(world, list(added))


async def _play_replacements(seed: int) -> None:
    """One index is built anew again and again beside writers and readers."""
    world = World(seed)
    plan = planned(world.random)
    fleet = Fleet(world, plan.processes)
    generations = Generations(fleet, plan.shards)
    first = fleet.members[0]
    await first.run(generations.build(first))
    world.weather = plan.weather
    trouble = asyncio.ensure_future(fleet.trouble(plan))
    acts = [generations.build] * min(2, plan.clients) + [generations.write] * 2 + [generations.read] * 2
    await asyncio.gather(*(generations.live(act, plan.span_s) for act in acts))
    await trouble
    world.calm()
    await asyncio.sleep(HEAL_S)
    for process in [*fleet.members, world.start("newcomer")]:
        await process.run(generations.read(process))
    await fleet.members[0].run(generations.build(fleet.members[0]))
    for process in [*fleet.members, world.start("last")]:
        await process.run(generations.read(process))


class Generations:
    """An index whose every life has items that tell which build it is: reads show one whole, and none goes back."""

    IDS = tuple(f"x{j}" for j in range(5))

    def __init__(self, fleet: Fleet, shards: int) -> None:
        self.fleet = fleet
        self.shards = shards
        self.builds = 0
        self.shown = -1
        """The number of the newest life that a build or a strong read has answered."""
        self.written: list[tuple[str, int]] = []
        """Acknowledged writes with the number of the life they went to."""

    async def live(self, act: Act, span_s: float) -> None:
        for _ in range(OPERATIONS):
            await asyncio.sleep(self.fleet.world.random.expovariate(OPERATIONS / span_s))
            process = self.fleet.pick()
            task = process.run(act(process))
            await asyncio.wait([task])
            if not task.cancelled() and isinstance(task.exception(), Conflict):
                continue  # another build was first
            succeeded(task)

    async def build(self, process: Process) -> None:
        self.builds += 1
        build = self.builds

        async def batches() -> AsyncIterator[Batch]:
            for item_id in self.IDS:
                yield batch({item_id: build})

        built = await building.build(
            process.indexes, PARAMS, self.shards, batches(), origin={"build": build}, replaces=True
        )
        self.shown = max(self.shown, built.record.number)

    async def write(self, process: Process) -> None:
        item_id = f"w{self.fleet.world.random.random()}"
        collection = await process.indexes.open(PARAMS.name)
        await collection.add(batch({item_id: 1}))
        self.written.append((item_id, collection.record.number))

    async def read(self, process: Process) -> None:
        """A strong read of everything.  Raises `Lost`."""
        at_least, before = self.shown, list(self.written)
        try:
            collection = await process.indexes.fresh(PARAMS.name)
        except Unavailable:
            return
        number = collection.record.number
        values = {value_of(collection, item_id) for item_id in self.IDS}
        if collection.origin is None or values != {collection.origin["build"]}:
            raise Lost(f"{process.name} shows {values} in build {collection.origin}")
        if number < at_least:
            raise Lost(f"{process.name} goes back from life {at_least} to {number}")
        for item_id, written_to in before:
            if written_to > number:
                raise Lost(f"{process.name} shows life {number}, a write to {written_to} was acknowledged")
            if written_to == number and value_of(collection, item_id) == ABSENT:
                raise Lost(f"{process.name} lacks {item_id}, acknowledged in life {number}")
        self.shown = max(self.shown, number)


PLAYS = {0: _play_merges, 1: _play_lives, 2: _play_replacements, 3: _play_rebuilds, 4: _play_rebuilds}
"""By seed modulo 8; the rest are reads and writes of one index."""


def succeeded(task: "asyncio.Task[Any]") -> bool:
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
