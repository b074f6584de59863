"""What a process does beside its requests: tried again for a moment, kept until it is done, ended with the process.

What this module does not do: know what is done.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from lakehouse.core.errors import LakehouseError, NotFound, Unavailable
from lakehouse.following import observe
from lakehouse.log import Backoff
from lakehouse.runtime import Runtime

T = TypeVar("T")

logger = logging.getLogger(__name__)

ATTEMPTS = 8
GRACE_S = 5.0


async def repeated(
    runtime: Runtime,
    step: Callable[[], Awaitable[T]],
    backoff: Backoff,
    over: tuple[type[LakehouseError], ...] = (Unavailable,),
) -> T:
    """Do a step that may be repeated again while the store does not answer, which errors `over` tell.

    Raises what the last attempt raises.
    """
    for tries in range(1, ATTEMPTS):
        try:
            return await step()
        except over as error:
            logger.warning("store did not answer: trying again. attempt=%s error=%s", tries, error)
            await runtime.sleep(backoff.delay_s(tries, runtime))
    return await step()


class Errands:
    """Background tasks of one owner."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._backoff = Backoff()
        self._finishing: set[asyncio.Task[Any]] = set()
        self._waiting: set[asyncio.Task[Any]] = set()

    def later(self, work: Coroutine[Any, Any, Any], what: str) -> None:
        """Do what nobody waits for; `finish` gives it a moment."""
        self._keep(work, what, self._finishing)

    def aside(self, work: Coroutine[Any, Any, Any], what: str) -> None:
        """Do what nobody waits for, at the end neither."""
        self._keep(work, what, self._waiting)

    def _keep(self, work: Coroutine[Any, Any, Any], what: str, tasks: set[asyncio.Task[Any]]) -> None:
        task = self._runtime.spawn(work, name=what)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(observe)

    async def patiently(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Do something again while the store does not answer.  Raises what the last attempt raises."""
        await repeated(self._runtime, attempt, self._backoff, (Unavailable, NotFound))

    def stop_waiting(self) -> None:
        """End what nobody waits for."""
        for task in self._waiting:
            task.cancel()

    async def finish(self) -> None:
        """Give the rest a moment, then end it."""
        if self._finishing:
            await asyncio.wait(self._finishing, timeout=GRACE_S)
        for task in self._finishing:
            task.cancel()
