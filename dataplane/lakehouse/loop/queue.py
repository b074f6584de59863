"""Who is to be looked at next: each at most once in the queue, never two looks at one at a time.

What happened is not kept, only to whom, so a burst of messages is one look and a lost message costs nothing that the
next look does not find.  What this module does not do: look.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from lakehouse.runtime import Runtime

K = TypeVar("K", bound=tuple[str, ...])

LOOKS_AT_ONCE = 4
"""Looks wait for the store most of the time, but they share the loop with whatever else the process does."""


class Queue(Generic[K]):
    """Keys waiting for their turn, at once or after a while."""

    def __init__(
        self, runtime: Runtime, turn: Callable[[K], Awaitable[float | None]], workers: int = LOOKS_AT_ONCE
    ) -> None:
        """`turn` looks at a key and says after how many seconds it wants to be called again; None: when something
        happens.  It raises nothing."""
        self._runtime = runtime
        self._turn = turn
        self._count = workers
        self._waiting: dict[K, float] = {}
        """Since when, on the monotonic clock; in the order of the turns."""
        self._busy: dict[K, float] = {}
        self._again: set[K] = set()
        """Called while their turn was on."""
        self._timers: dict[K, asyncio.Task[None]] = {}
        self._signal = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._closing = False

    def start(self) -> None:
        self._workers = [
            self._runtime.spawn(self._work(), name=f"converge {number}") for number in range(self._count)
        ]

    async def close(self) -> None:
        """Stop in the middle; whoever looks next begins anew."""
        self._closing = True  # a cancellation gets lost where another error comes first
        tasks = [*self._workers, *self._timers.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def idle(self) -> bool:
        """Whether nobody waits and nobody is looked at; timers do not count."""
        return not self._waiting and not self._busy

    @property
    def depth(self) -> int:
        """How many wait for a turn that is due."""
        return len(self._waiting)

    @property
    def oldest_s(self) -> float:
        """How long the one that waits longest has waited; 0 when nobody waits."""
        return self._age_s(self._waiting)

    @property
    def longest_turn_s(self) -> float:
        """How long the longest turn that is on has taken so far; 0 when none is."""
        return self._age_s(self._busy)

    def _age_s(self, since: dict[K, float]) -> float:
        return max(0.0, self._runtime.monotonic() - min(since.values())) if since else 0.0

    def call(self, key: K) -> None:
        """Give `key` a turn soon."""
        if key in self._busy:
            self._again.add(key)
        else:
            self._waiting.setdefault(key, self._runtime.monotonic())
            self._signal.set()

    def call_later(self, key: K, seconds: float) -> None:
        """Give `key` a turn after a while, unless it has one before."""
        self._cancel_timer(key)
        self._timers[key] = self._runtime.spawn(self._later(key, seconds), name=f"later {'/'.join(key)}")

    async def _later(self, key: K, seconds: float) -> None:
        await self._runtime.sleep(seconds)
        del self._timers[key]
        self.call(key)

    def _cancel_timer(self, key: K) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    async def _work(self) -> None:
        while not self._closing:
            key = await self._next()
            self._cancel_timer(key)
            try:
                wait_s = await self._turn(key)
            finally:
                self._busy.pop(key, None)
            if key in self._again:
                self._again.discard(key)
                self.call(key)
            elif wait_s is not None:
                self.call_later(key, wait_s)

    async def _next(self) -> K:
        while not self._waiting:
            self._signal.clear()
            await self._signal.wait()
        key = next(iter(self._waiting))
        del self._waiting[key]
        self._busy[key] = self._runtime.monotonic()
        return key
