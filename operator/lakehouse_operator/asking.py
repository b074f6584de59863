"""Asking a store whether it answers, when it may hang: in few threads, and with a patience that is the same for all.

A request that hangs holds a thread of this process for seconds after nobody waits for it any more.  So the looks at a
bucket and at an endpoint take turns, and where nobody was answered for a while, waiting for a turn counts as being
silent to: however many lie there, all are told of together, and nobody beside them waits.  What this module does not
do: decide when to look, or what an answer means.
"""

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lakehouse.core.errors import Unavailable
from lakehouse.runtime import Runtime
from lakehouse.store.base import ObjectStore
from lakehouse.store.probe import PROBE
from lakehouse_operator.targets import Target

AT_ONE_BUCKET, AT_ONE_ENDPOINT = 4, 8
"""Requests of looks at once.  One that hangs holds a thread until the client gives it up, some seconds later, and the
process has 32: a bucket that hangs leaves room for others beside it, an endpoint that hangs for others' looks and for
work."""
LIST_S = 3.0
"""Silence that counts as such: with `LOOK_S` before it, 2 of 15 s are left to write down what was seen."""
INSTANT_S = 0.01
"""Too short to wait for: a clock need not move in what rounding leaves of a wait."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Door:
    """Where looks wait for their turn to ask."""

    turns: asyncio.Semaphore
    answered_s: float = float("-inf")
    """When anybody who asked here was last answered, with whatever it was."""


class Asking:
    """Asks, by turns."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._doors: weakref.WeakValueDictionary[tuple[str, ...], Door] = weakref.WeakValueDictionary()
        """By endpoint, and by endpoint and bucket."""
        self._requests: set[asyncio.Task[Any]] = set()
        """One that hangs outlives its look, until its thread is free."""

    async def close(self) -> None:
        for task in self._requests:
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    async def listed(self, doors: Sequence[Door], store: ObjectStore, attempts: int) -> None:
        """Have one LIST of nothing answered, by that many requests at most.  Raises what the store does."""
        try:
            await self._first_answer(doors, store, attempts)
        except TimeoutError as error:
            raise Unavailable(f"the store did not answer within {LIST_S:g} s. url=`{store.url}`") from error

    async def _first_answer(self, doors: Sequence[Door], store: ObjectStore, attempts: int) -> None:
        since_s = await self._enter(doors, self._runtime.monotonic())
        asked = {self._request(doors, store)}
        more = attempts - 1
        while True:
            left_s = max(0.0, self._left_s(since_s))
            done, asked = await asyncio.wait(
                asked, timeout=left_s / 2 if more else left_s, return_when=asyncio.FIRST_COMPLETED
            )
            errors = [task.exception() for task in done]
            if None in errors:
                return
            if more:
                more -= 1
                if done or not any(door.turns.locked() for door in doors):
                    since_s = await self._enter(doors, since_s)
                    asked.add(self._request(doors, store))
            elif not done:
                raise TimeoutError
            elif not asked and errors[-1] is not None:
                raise errors[-1]

    def _request(self, doors: Sequence[Door], store: ObjectStore) -> "asyncio.Task[Any]":
        """A LIST by itself, which keeps its turns until its thread is free: that may be long after its look ended."""

        def ended(task: "asyncio.Task[Any]") -> None:
            self._requests.discard(task)
            answered = not task.cancelled() and type(task.exception()) is not Unavailable
            for door in doors:
                door.turns.release()
                if answered:
                    door.answered_s = self._runtime.monotonic()

        task = self._runtime.spawn(store.list(PROBE, limit=1), name=f"list {store.url}")
        self._requests.add(task)
        task.add_done_callback(ended)
        return task

    # ------------------------------------------------------------------ turns

    def doors(self, place: Target) -> tuple[Door, ...]:
        """Of a place's bucket and of its endpoint, shared with whoever is behind them too."""
        doors: list[Door] = []
        for where, at_once in (
            ((place.endpoint, place.bucket), AT_ONE_BUCKET),
            ((place.endpoint,), AT_ONE_ENDPOINT),
        ):
            door = self._doors.get(where)
            if door is None:
                door = self._doors[where] = Door(asyncio.Semaphore(at_once))
            doors.append(door)
        return tuple(doors)

    async def _enter(self, doors: Sequence[Door], since_s: float) -> float:
        """Take a turn at each door.  Since when silence counts; raises `TimeoutError` when there was enough of it."""
        entered: list[Door] = []
        try:
            for door in doors:
                since_s = await self._turn(door, since_s)
                entered.append(door)
        except BaseException:
            for door in entered:
                door.turns.release()
            raise
        return since_s

    async def _turn(self, door: Door, since_s: float) -> float:
        """As long as others are answered there it may take its time; where nobody is, waiting is being silent to."""
        turn = self._runtime.spawn(door.turns.acquire(), name="turn")
        try:
            while not turn.done():
                left_s = self._left_s(max(since_s, door.answered_s))
                if left_s < INSTANT_S:
                    raise TimeoutError
                await asyncio.wait((turn,), timeout=left_s)
        except BaseException:
            if not turn.cancel():
                door.turns.release()
            raise
        return max(since_s, door.answered_s)

    def _left_s(self, since_s: float) -> float:
        return since_s + LIST_S - self._runtime.monotonic()
