"""Who is to be looked at next: each at most once in the queue, never two looks at one at a time.

What happened is not kept, only to whom, so a burst of messages is one look and a lost message costs nothing that the
next look does not find.  What this module does not do: look.
"""

import asyncio
from collections.abc import Awaitable, Callable

from lakehouse.embedded.known import Key
from lakehouse.runtime import Runtime

LOOKS_AT_ONCE = 4
"""Looks wait for the store most of the time, but they share the loop with searches."""


class Queue:
    """Keys waiting for their turn, at once or after a while."""

    def __init__(self, runtime: Runtime, turn: Callable[[Key], Awaitable[float | None]]) -> None:
        self._runtime = runtime
        self._turn = turn
        self._waiting: dict[Key, None] = {}
        self._busy: set[Key] = set()
        self._again: set[Key] = set()
        """Called while their turn was on."""
        self._timers: dict[Key, asyncio.Task[None]] = {}
        self._signal = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._closing = False

    def start(self) -> None:
        self._workers = [
            self._runtime.spawn(self._work(), name=f"converge {number}") for number in range(LOOKS_AT_ONCE)
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

    def call(self, key: Key) -> None:
        """Give `key` a turn soon."""
        if key in self._busy:
            self._again.add(key)
        else:
            self._waiting[key] = None
            self._signal.set()

    def call_later(self, key: Key, seconds: float) -> None:
        """Give `key` a turn after a while, unless it has one before."""
        self._cancel_timer(key)
        self._timers[key] = self._runtime.spawn(self._later(key, seconds), name=f"later {key[0]}/{key[1]}")

    async def _later(self, key: Key, seconds: float) -> None:
        await self._runtime.sleep(seconds)
        del self._timers[key]
        self.call(key)

    def _cancel_timer(self, key: Key) -> None:
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
                self._busy.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.call(key)
            elif wait_s is not None:
                self.call_later(key, wait_s)

    async def _next(self) -> Key:
        while not self._waiting:
            self._signal.clear()
            await self._signal.wait()
        key = next(iter(self._waiting))
        del self._waiting[key]
        self._busy.add(key)
        return key
