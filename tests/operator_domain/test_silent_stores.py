"""A store that hangs is known as one in time, however many lie there, and holds up nobody who lies elsewhere.

In virtual time: a store answers, or holds each request until the client gives it up, as boto3 does.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

import cluster_samples
from lakehouse.control.state import REACHABLE
from lakehouse.core.errors import Unavailable
from lakehouse.runtime import IO_WORKERS
from lakehouse.store.s3 import S3Settings
from lakehouse.testing.world import SimRuntime, run
from lakehouse_operator import storage
from lakehouse_operator.asking import LIST_S
from lakehouse_operator.cache import Key
from lakehouse_operator.storage import IDLE_LOOK_S, LOOK_S, Buckets

KNOWN_S = LOOK_S + LIST_S + 0.1
"""A status may lie for 15 s: the rest is for writing it."""
GIVEN_UP_S = S3Settings().read_timeout_s
HUNG, LOST = "hung", "lost"


@dataclass
class Endpoint:
    """What answers at an address, and what it was asked."""

    latency_s: float = 0.02
    hung: set[str] = field(default_factory=set)
    """Buckets that take requests and never answer."""
    next: list[str] = field(default_factory=list)
    """What becomes of the next requests."""
    asked_s: dict[str, list[float]] = field(default_factory=dict)
    """When, by prefix."""
    under_way: int = 0
    most: int = 0

    async def answer(self, bucket: str, prefix: str) -> None:
        self.asked_s.setdefault(prefix, []).append(asyncio.get_running_loop().time())
        fate = self.next.pop(0) if self.next else HUNG if bucket in self.hung else ""
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(GIVEN_UP_S if fate == HUNG else self.latency_s)
        finally:
            self.under_way -= 1
        if fate:
            raise Unavailable(f"the connection was {fate}")


@dataclass(slots=True)
class Resource:
    suspend: bool = False

    @property
    def spec(self) -> "Resource":
        return self


class World:
    """Buckets on endpoints of which some will hang; who is called, and when."""

    def __init__(self, runtime: SimRuntime) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self.told_s: dict[str, list[float]] = {}
        self.suspended: set[str] = set()
        self.runtime = runtime
        self.settings = cluster_samples.settings(default_credentials_secret="")
        self.cache = self
        self.kube = None
        given: Any = self
        self.buckets = Buckets(given)

    def parsed(self, key: Key) -> Resource:
        return Resource(key[2] in self.suspended)

    def call(self, key: Key) -> None:
        self.told_s.setdefault(key[2], []).append(self.now_s)

    @property
    def now_s(self) -> float:
        return self.runtime.monotonic()

    def endpoint(self, name: str) -> Endpoint:
        return self.endpoints.setdefault(f"http://{name}:9000", Endpoint())

    async def state(self, name: str, endpoint: str = "bad", bucket: str = "lake", prefix: str = "") -> Any:
        where = {"s3": {"endpoint": f"http://{endpoint}:9000", "bucket": bucket, "prefix": prefix or name}}
        store, state = await self.buckets.of("shop", where, ("VectorIndex", "shop", name))
        assert (store is not None) == state.reachable
        return state

    async def settled(self, names: Sequence[str], apart_s: float = 0.0, **where: str) -> None:
        for name in names:
            assert await self.state(name, **where) == REACHABLE
            await self.runtime.sleep(apart_s)

    async def hang(self, endpoint: str, *buckets: str, seconds: float) -> float:
        """Let it hang from now on, and time pass; when it began."""
        began_s = self.now_s
        self.told_s.clear()
        self.endpoint(endpoint).hung.update(buckets)
        await self.runtime.sleep(seconds)
        return began_s

    def late_s(self, since_s: float) -> dict[str, float]:
        """Who was told, and how long after."""
        return {name: told[0] - since_s for name, told in self.told_s.items()}


@pytest.fixture
def lived(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    """Runs a story in a world of its own, and closes it."""

    def live(story: Callable[[World], Awaitable[None]]) -> None:
        runtime = SimRuntime(1)
        world = World(runtime)

        class Store:
            def __init__(self, bucket: str, prefix: str, runtime: Any, settings: S3Settings) -> None:
                self.bucket, self.prefix, self.url = bucket, prefix, f"s3://{bucket}/{prefix}"
                self.endpoint = world.endpoints.setdefault(str(settings.endpoint), Endpoint())

            async def list(self, prefix: str, *, limit: int) -> tuple[()]:
                # As on a thread: nobody who stops waiting frees it.
                thread = runtime.spawn(self.endpoint.answer(self.bucket, self.prefix), name="thread")
                thread.add_done_callback(lambda task: task.cancelled() or task.exception())
                await asyncio.shield(thread)
                return ()

            async def close(self) -> None:
                pass

        async def no_probe(*_: Any) -> None:
            """What a store must prove is `probe`'s to test."""

        monkeypatch.setattr(storage, "S3Store", Store)
        monkeypatch.setattr(storage, "probe", no_probe)

        async def whole() -> None:
            world.buckets.start()
            try:
                await story(world)
            finally:
                await world.buckets.close()
                left = [task.get_name() for task in runtime.tasks if task.get_name() != "thread"]
            assert left == []

        run(whole)

    return live


def named(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


@pytest.mark.parametrize("since_look_s", [0.0, 3.3, 6.9, 9.95])
@pytest.mark.parametrize("apart_s", [0.0, 0.23])
@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_store_that_hangs_is_known_in_time_by_everyone_who_lies_there(
    lived: Any, count: int, apart_s: float, since_look_s: float
) -> None:
    async def story(world: World) -> None:
        await world.settled(named(count), apart_s)
        await world.runtime.sleep(2 * LOOK_S + since_look_s)
        began_s = await world.hang("bad", "lake", seconds=60)
        late_s = world.late_s(began_s)
        assert set(late_s) == set(named(count))
        assert max(late_s.values()) <= KNOWN_S
        assert world.told_s == {name: [began_s + late_s[name]] for name in late_s}  # once
        state = await world.state("p0")
        assert (state.reachable, state.reason) == (False, "Timeout")
        assert "did not answer within" in state.detail

    lived(story)


def test_forty_buckets_of_one_endpoint_that_hangs_are_known_in_time_too(lived: Any) -> None:
    async def story(world: World) -> None:
        buckets = [f"lake-{number}" for number in range(40)]
        for bucket in buckets:
            await world.settled([bucket], bucket=bucket)
        await world.runtime.sleep(2 * LOOK_S)
        began_s = await world.hang("bad", *buckets, seconds=30)
        late_s = world.late_s(began_s)
        assert set(late_s) == set(buckets)
        assert max(late_s.values()) <= KNOWN_S

    lived(story)


def test_one_endpoint_that_hangs_keeps_no_other_waiting_and_leaves_most_threads_free(lived: Any) -> None:
    async def story(world: World) -> None:
        await world.settled(named(40))
        await world.settled(["well"], endpoint="good")
        await world.runtime.sleep(2 * LOOK_S)
        began_s = await world.hang("bad", "lake", seconds=120)
        assert len(world.told_s) == 40
        assert "well" not in world.told_s
        asked_s = [at for at in world.endpoint("good").asked_s["well"] if at >= began_s - LOOK_S]
        assert max(after - before for before, after in itertools.pairwise(asked_s)) < LOOK_S + 0.1
        assert len(asked_s) >= 120 / LOOK_S - 1
        assert world.endpoint("bad").most <= IO_WORKERS / 4

    lived(story)


def test_a_bucket_that_hangs_says_nothing_of_another_beside_it(lived: Any) -> None:
    async def story(world: World) -> None:
        await world.settled(named(40))
        await world.settled(["well"], bucket="other")
        began_s = await world.hang("bad", "lake", seconds=120)
        assert set(world.late_s(began_s)) == set(named(40))

    lived(story)


@pytest.mark.parametrize("fate", [HUNG, LOST])
def test_one_connection_that_is_lost_turns_nothing(lived: Any, fate: str) -> None:
    async def story(world: World) -> None:
        await world.settled(["p0"])
        world.endpoint("bad").next = [fate]
        await world.runtime.sleep(3 * LOOK_S)
        assert world.endpoint("bad").next == []
        assert list(world.told_s) == ["p0"]  # at its first look
        assert await world.state("p0") == REACHABLE

    lived(story)


def test_two_that_are_lost_are_told_of_and_so_is_the_next_that_is_not(lived: Any) -> None:
    async def story(world: World) -> None:
        await world.settled(["p0"])
        world.told_s.clear()
        world.endpoint("bad").next = [LOST, LOST]
        await world.runtime.sleep(2 * LOOK_S)
        assert len(world.told_s["p0"]) == 2
        assert await world.state("p0") == REACHABLE

    lived(story)


@pytest.mark.parametrize("latency_s", [0.6 * LIST_S, 0.9 * LIST_S])
def test_a_store_that_is_slow_is_no_store_that_hangs(lived: Any, latency_s: float) -> None:
    """Forty take their time, a few at once: whoever waits sees the others answered."""

    async def story(world: World) -> None:
        await world.settled(named(40))
        world.told_s.clear()
        world.endpoint("bad").latency_s = latency_s
        await world.runtime.sleep(120)
        assert world.told_s == {}
        assert all(len(asked) > 2 for asked in world.endpoint("bad").asked_s.values())

    lived(story)


@pytest.mark.parametrize("count", [1, 40])
def test_a_store_that_answers_again_is_known_in_time_too(lived: Any, count: int) -> None:
    async def story(world: World) -> None:
        await world.settled(named(count))
        for seconds in (30.0, 31.7, 33.1, 37.9):
            await world.hang("bad", "lake", seconds=seconds)
            assert len(world.told_s) == count
            world.told_s.clear()
            world.endpoint("bad").hung.clear()
            again_s = world.now_s
            await world.runtime.sleep(20)
            late_s = world.late_s(again_s)
            assert set(late_s) == set(named(count))
            assert max(late_s.values()) < 14
            await world.runtime.sleep(20)

    lived(story)


def test_who_asks_about_a_store_that_hangs_is_told_at_once(lived: Any) -> None:
    """A turn that waited for it would be one less for resources that lie elsewhere."""

    async def story(world: World) -> None:
        await world.settled(named(40))
        await world.hang("bad", "lake", seconds=40)
        began_s = world.now_s
        for name in named(40):
            assert not (await world.state(name)).reachable
        assert world.now_s == began_s

    lived(story)


def test_many_that_lie_in_one_place_are_one_look_and_no_sooner_than_before(lived: Any) -> None:
    async def story(world: World) -> None:
        for name in named(400):
            assert await world.state(name, prefix="shared") == REACHABLE
        world.suspended = set(named(200))
        asked_s = world.endpoint("bad").asked_s
        before = len(asked_s["shared"])
        await world.runtime.sleep(600)
        assert 600 / LOOK_S - 2 <= len(asked_s["shared"]) - before <= 600 / LOOK_S
        world.suspended = set(named(400))
        before = len(asked_s["shared"])
        await world.runtime.sleep(600)
        assert 600 / IDLE_LOOK_S - 2 <= len(asked_s["shared"]) - before <= 600 / IDLE_LOOK_S + 1
        assert list(asked_s) == ["shared"]

    lived(story)


@pytest.mark.parametrize("seconds", [0.0, 5.0, 11.5, 12.9, 20.0])
def test_closing_leaves_nothing_behind_while_a_store_hangs(lived: Any, seconds: float) -> None:
    async def story(world: World) -> None:
        await world.settled(named(40))
        await world.hang("bad", "lake", seconds=seconds)

    lived(story)  # which asks what is left
