"""Work under way and how it ended: the part of what is observed that only this process can know.

It is forgotten with the process; then nothing runs, and what is missing is begun again.  What this module does not
do: decide what to run, or how often to try.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from lakehouse.control.plan import Action
from lakehouse.control.state import Act, Failure, LastDrain, LastRefresh, Running
from lakehouse.core.errors import LakehouseError, Outcome, Unavailable
from lakehouse.runtime import Runtime

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=tuple[str, ...])

CANCEL_AGAIN_S = 1.0
"""A cancellation is lost where a part of the work meets it with an error of its own: it is repeated until the end."""


class DeadlineExceeded(Unavailable):
    """Work that took longer than it may was stopped; nothing of it can be seen."""

    def __init__(self, message: str) -> None:
        super().__init__(message, outcome=Outcome.NOT_COMMITTED)


@dataclass(slots=True, eq=False)
class Work:
    """One long action, running."""

    action: Action
    started_at: datetime
    progress: str = ""
    task: "asyncio.Task[None] | None" = None

    def tell(self, progress: str) -> None:
        """Say how far it is, for people."""
        self.progress = progress


class Workshop(Generic[K]):
    """Runs at most one long action per resource, and remembers how each act last ended."""

    def __init__(self, runtime: Runtime, ended: Callable[[K], None]) -> None:
        self._runtime = runtime
        self._ended = ended
        self._running: dict[K, Work] = {}
        self._failures: dict[K, dict[Act, Failure]] = {}
        self.drains: dict[K, LastDrain] = {}
        self.refreshes: dict[K, LastRefresh] = {}
        self.snapshots: dict[K, datetime] = {}
        """When each was complete."""

    def start(self, key: K, action: Action, body: Callable[[Work], Awaitable[None]]) -> None:
        """Run `body` beside everything else; does nothing while other work runs for the same resource."""
        if key in self._running:
            return
        work = self._running[key] = Work(action, self._runtime.now())
        work.task = self._runtime.spawn(self._run(key, work, body), name=f"{action.act} {'/'.join(key)}")

    async def _run(self, key: K, work: Work, body: Callable[[Work], Awaitable[None]]) -> None:
        try:
            await body(work)
            self.succeeded(key, work.action)
        except LakehouseError as error:
            logger.warning("work failed. resource=%s act=%s error=%s", "/".join(key), work.action.act, error)
            self.failed(key, work.action, error)
        except Exception as error:
            logger.exception("work failed. resource=%s act=%s", "/".join(key), work.action.act)
            self.failed(key, work.action, error)
        finally:
            del self._running[key]
            self._ended(key)

    def running(self, key: K) -> Running | None:
        """What is under way for a resource, as decisions see it."""
        work = self._running.get(key)
        if work is None:
            return None
        return Running(work.action.act, work.action.subject, work.started_at, work.progress)

    def action(self, key: K) -> Action | None:
        """The action that is under way for a resource."""
        work = self._running.get(key)
        return None if work is None else work.action

    def all_running(self) -> dict[K, Work]:
        return dict(self._running)

    async def stop(self, key: K, failed: str = "") -> None:
        """Cancel what is under way for a resource and wait for its end.

        `failed` says why being stopped counts as a failure; work that ended by itself meanwhile was not stopped.
        """
        work = self._running.get(key)
        if work is None or work.task is None:
            return
        while not work.task.done():
            work.task.cancel()
            await asyncio.wait([work.task], timeout=CANCEL_AGAIN_S)
        if failed and work.task.cancelled():
            self.failed(key, work.action, DeadlineExceeded(failed))

    async def stop_all(self) -> None:
        """Stop everything, all of it at once."""
        await asyncio.gather(*(self.stop(key) for key in list(self._running)))

    def succeeded(self, key: K, action: Action) -> None:
        self._failures.get(key, {}).pop(action.act, None)

    def failed(self, key: K, action: Action, error: Exception) -> None:
        """Remember an end that was none; attempts count up while the same subject fails."""
        failures = self._failures.setdefault(key, {})
        before = failures.get(action.act)
        again = before is not None and before.subject == action.subject
        failures[action.act] = Failure(
            action.act,
            action.subject,
            type(error).__name__,
            getattr(error, "message", None) or f"{type(error).__name__}: {error}",
            self._runtime.now(),
            before.attempts + 1 if before is not None and again else 1,
        )

    def failures(self, key: K) -> tuple[Failure, ...]:
        return tuple(self._failures.get(key, {}).values())

    def forget(self, key: K) -> None:
        """The resource is gone; what its name may mean later has no past."""
        self._failures.pop(key, None)
        self.drains.pop(key, None)
        self.refreshes.pop(key, None)
        self.snapshots.pop(key, None)
