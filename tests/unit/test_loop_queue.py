"""Turns: at most one per key at a time, none lost, and how long somebody waits."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from lakehouse.loop.queue import Queue
from lakehouse.runtime import SystemRuntime

Key = tuple[str, str, str]
A, B = ("VectorIndex", "shop", "a"), ("VectorIndex", "shop", "b")


class Clock(SystemRuntime):
    """A monotonic clock that tests set."""

    at_s = 100.0

    def monotonic(self) -> float:
        return self.at_s


class Turns:
    """Turns that last until they are let go."""

    def __init__(self) -> None:
        self.begun: list[Key] = []
        self.gates: dict[Key, asyncio.Event] = {A: asyncio.Event(), B: asyncio.Event()}
        self.again_s: float | None = None

    async def __call__(self, key: Key) -> float | None:
        self.begun.append(key)
        await self.gates[key].wait()
        return self.again_s


@pytest.fixture
def turns() -> Turns:
    return Turns()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def queue(clock: Clock, turns: Turns) -> AsyncIterator[Queue[Key]]:
    queue: Queue[Key] = Queue(clock, turns, workers=1)
    queue.start()
    yield queue
    await queue.close()


async def settled(check: Callable[[], bool]) -> None:
    for _ in range(1_000):
        if check():
            return
        await asyncio.sleep(0)
    raise AssertionError("never")


async def test_calls_while_a_turn_is_on_are_one_more_turn(queue: Queue[Key], turns: Turns) -> None:
    queue.call(A)
    queue.call(A)
    await settled(lambda: turns.begun == [A])
    for _ in range(5):
        queue.call(A)
    assert queue.depth == 0
    turns.gates[A].set()
    await settled(lambda: queue.idle)
    assert turns.begun == [A, A]


async def test_how_long_somebody_waits_and_a_turn_lasts_is_told(
    queue: Queue[Key], turns: Turns, clock: Clock
) -> None:
    assert (queue.depth, queue.oldest_s, queue.longest_turn_s) == (0, 0.0, 0.0)
    queue.call(A)
    await settled(lambda: turns.begun == [A])
    clock.at_s += 5
    queue.call(B)
    clock.at_s += 7
    queue.call(B)  # no younger for being called again
    assert (queue.depth, queue.oldest_s, queue.longest_turn_s) == (1, 7.0, 12.0)
    turns.gates[A].set()
    await settled(lambda: turns.begun == [A, B])
    assert (queue.depth, queue.oldest_s, queue.longest_turn_s) == (0, 0.0, 0.0)
    turns.gates[B].set()
    await settled(lambda: queue.idle)


async def test_a_turn_that_wants_another_one_gets_it(queue: Queue[Key], turns: Turns) -> None:
    turns.again_s = 0.0
    turns.gates[A].set()
    queue.call(A)
    await settled(lambda: len(turns.begun) >= 3)
    turns.again_s = None
